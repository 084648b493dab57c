"""What the engine costs: one worker on a table on disk against a bare torch loop on tensors.

For a spectrum classifier (5001 pixels, 4.16 M parameters), the SPENDER autoencoder and the alert
CNN, each with its own batch, loss, optimiser and precision. Both sides run the same forward,
backward and optimiser step on the same number of threads. The bare loop holds its rows as tensors;
ours reads every batch from the prepared table, checkpoints, reports and logs to MLflow after every
epoch, and that time counts. Epochs of both come in turns; the figure is the ratio of the medians
over epochs. Start-up is reported, not compared.

    python benchmarks/train_overhead.py [--networks redshift outliers alerts] [--rows 1024]
        [--epochs 4] [--pairs 3] [--memory] [--json FILE]
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "platform"), str(ROOT / "benchmarks")]

from report import Row, finish  # noqa: E402

from skyray.cards import load_card  # noqa: E402
from skyray.data.dataset import Dataset  # noqa: E402
from skyray.data.prepared import prepare  # noqa: E402
from skyray.data.simulate import simulate  # noqa: E402
from skyray.families.base import Family, load_family, load_recipe  # noqa: E402
from skyray.runtime.session import ray_session  # noqa: E402
from skyray.training.loader import Rows  # noqa: E402
from skyray.training.optimizers import make_optimizer  # noqa: E402
from skyray.training.train import train  # noqa: E402

THREADS = 1
TARGET = 0.95


@dataclass(frozen=True)
class Network:
    """The first stage of a recipe, on mock data of a card; other stages as short as they go."""

    recipe: str
    card: str
    changes: tuple[str, ...] = ()


NETWORKS = {
    "redshift": Network("redshift/sdss_coarse", "sdss_coarse", ("redshift_classes=[]",)),
    "outliers": Network(
        "outliers/desi_bgs", "desi_bgs", ("train_invariance.epochs=1", "train_flow.epochs=1")
    ),
    "alerts": Network("alerts/ztf_cnn", "ztf_bts"),
}


def bare_loop(family: Family, tensors: dict[str, torch.Tensor], epochs: int) -> list[float]:
    """Train the first stage without any framework; return rows/s of each epoch."""
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    stage, model = family.stages()[0], family.build_model()
    part = stage.part(model).train()
    optimizer = make_optimizer(stage.train.optimizer, part, stage.lr_factor)
    size, clip = stage.train.batch_size, stage.train.clip_norm
    rows = len(next(iter(tensors.values())))
    rates = []
    for epoch in range(epochs):
        started = time.perf_counter()
        order = torch.as_tensor(np.random.default_rng(epoch).permutation(rows))
        for start in range(0, rows, size):
            index = order[start : start + size]
            batch = {name: values[index] for name, values in tensors.items()}
            with torch.autocast("cpu", torch.bfloat16, stage.train.precision == "bf16"):
                loss, _ = stage.loss(part, batch)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            if clip:
                torch.nn.utils.clip_grad_norm_(part.parameters(), clip)
            optimizer.step()
        rates.append(rows / (time.perf_counter() - started))
    return rates


def our_loop(recipe, stage: str, data: str, out: str) -> tuple[list[float], float]:
    """Train the same with Ray Train; return rows/s of each epoch and seconds of the rest."""
    started = time.perf_counter()
    whole = train(recipe, data, out, workers=1, threads=THREADS, progress=False).history
    took = time.perf_counter() - started
    history = [row for row in whole if row["stage"] == stage]
    # The first epoch has no checkpoint before it; the others carry the one of their predecessor.
    rates = [h["train_rows"] / (h["train_seconds"] + h["between_seconds"]) for h in history[1:]]
    inside = sum(h["train_seconds"] + h["validation_seconds"] + h["between_seconds"] for h in whole)
    return rates, took - inside


def measure(name: str, options: argparse.Namespace, folder: str) -> list[Row]:
    """Return the figures of one network."""
    network = NETWORKS[name]
    data = f"{folder}/{name}"
    simulate(load_card(network.card), round(options.rows / 0.7), 1, data, progress=False)
    memory = 1 << 34 if options.memory else 0
    recipe = load_recipe(network.recipe).override(
        [f"train.epochs={options.epochs}", f"train.memory_bytes={memory}",
         "train.early_stopping=null", *network.changes]
    )  # fmt: skip
    dataset = Dataset.open(data)
    family = load_family(recipe.family)(recipe, dataset.info())
    stage = family.stages()[0]
    rows = Rows(prepare(dataset, family, progress=False)).of(stage)["train"]
    tensors = rows.read(np.arange(len(rows)))
    bare, ours, start_up = [], [], []
    for pair in range(options.pairs):
        bare += bare_loop(family, tensors, options.epochs)[1:]
        rates, rest = our_loop(recipe, stage.name, data, f"{folder}/{name}-bundle-{pair}")
        ours += rates
        start_up.append(rest)
    reference = statistics.median(bare)
    note = "with checkpoint, report and MLflow after every epoch"
    size = f"batch {stage.train.batch_size}"
    return [
        Row(f"{name}: bare torch loop", reference, "rows/s", note=size),
        Row(
            f"{name}: one worker, rows {'in memory' if options.memory else 'on disk'}",
            statistics.median(ours), "rows/s", reference=reference,
            ratio=statistics.median(ours) / reference, target=TARGET, note=note,
        ),
        Row(f"{name}: start, calibration, bundle", statistics.median(start_up), "s",
            note="once a run"),
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--rows", type=int, default=1024, help="training rows")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--memory", action="store_true", help="ours in memory too")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SKYRAY_HOME"] = folder
        with ray_session():
            for name in options.networks:
                rows += measure(name, options, folder)
    finish("One worker against a bare torch loop (1 thread)", rows, options.json)


if __name__ == "__main__":
    main()
