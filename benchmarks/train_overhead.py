"""What Ray Train costs: one worker against a bare torch loop on the same rows in memory.

The network has its real size (5001 pixels, 4.16 M parameters, batch 128, float32). Both sides run
the same forward, backward and Adam step on the same number of threads; the Ray side also
checkpoints, reports and logs to MLflow after every epoch, and that time counts. Runs are
interleaved; the figure is the ratio of the medians over epochs. Start-up is reported, not compared.

    python benchmarks/train_overhead.py [--rows 1024] [--epochs 4] [--pairs 3] [--json FILE]
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "platform"), str(ROOT / "benchmarks")]

from report import Row, finish  # noqa: E402

from skyray.cards import load_card  # noqa: E402
from skyray.data.dataset import Dataset, table_to_columns  # noqa: E402
from skyray.data.simulate import simulate  # noqa: E402
from skyray.families.base import load_recipe  # noqa: E402
from skyray.families.redshift.family import RedshiftFamily  # noqa: E402
from skyray.families.redshift.networks import ClassifierLoss  # noqa: E402
from skyray.runtime.session import ray_session  # noqa: E402
from skyray.training.optimizers import make_optimizer  # noqa: E402
from skyray.training.train import train  # noqa: E402

THREADS = 1
TARGET = 0.9


def bare_loop(family: RedshiftFamily, inputs: dict, epochs: int) -> list[float]:
    """Train the classifier without any framework; return spectra/s of each epoch."""
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    network = family.build_model().classifier.train()
    loss_of = ClassifierLoss(family.recipe)
    optimizer = make_optimizer(family.recipe.train.optimizer, network.parameters())
    tensors = {k: torch.as_tensor(v) for k, v in inputs.items()}
    rows, size = len(tensors["x"]), family.recipe.train.batch_size
    rates = []
    for epoch in range(epochs):
        started = time.perf_counter()
        order = torch.as_tensor(np.random.default_rng(epoch).permutation(rows))
        for start in range(0, rows, size):
            index = order[start : start + size]
            loss, _ = loss_of(network, {k: v[index] for k, v in tensors.items()})
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        rates.append(rows / (time.perf_counter() - started))
    return rates


def ray_loop(recipe, data: str, out: str) -> tuple[list[float], float]:
    """Train the same with Ray Train; return spectra/s of each epoch and seconds of the rest."""
    started = time.perf_counter()
    history = train(recipe, data, out, workers=1, threads=THREADS, progress=False).history
    whole = time.perf_counter() - started
    # The first epoch has no checkpoint before it; the others carry the one of their predecessor.
    rates = [h["train_rows"] / (h["train_seconds"] + h["between_seconds"]) for h in history[1:]]
    inside = sum(
        h["train_seconds"] + h["validation_seconds"] + h["between_seconds"] for h in history
    )
    return rates, whole - inside


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1024, help="training spectra")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    bare, ray, start_up = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SKYRAY_HOME"] = folder
        with ray_session():
            data = f"{folder}/data"
            simulate(load_card("sdss_coarse"), round(options.rows / 0.7), 1, data, progress=False)
            recipe = load_recipe("redshift/sdss_coarse").override(
                [f"train.epochs={options.epochs}", "redshift_classes=[]"]
            )
            dataset = Dataset.open(data)
            family = RedshiftFamily(recipe, dataset.info())
            table = dataset.to_table(family.columns(training=True), "train")
            inputs = family.transform(table_to_columns(table), training=True)
            for pair in range(options.pairs):
                bare += bare_loop(family, inputs, options.epochs)[1:]
                rates, rest = ray_loop(recipe, data, f"{folder}/bundle-{pair}")
                ray += rates
                start_up.append(rest)
    ratio = statistics.median(ray) / statistics.median(bare)
    finish(
        "Ray Train against a bare torch loop (1 worker, 1 thread)",
        [
            Row("bare torch loop", statistics.median(bare), "spectra/s"),
            Row(
                "Ray Train, 1 worker", statistics.median(ray), "spectra/s",
                reference=statistics.median(bare), ratio=ratio, target=TARGET,
                note="with checkpoint, report and MLflow after every epoch",
            ),
            Row("start, calibration, bundle", statistics.median(start_up), "s", note="once a run"),
        ],
        options.json,
    )  # fmt: skip


if __name__ == "__main__":
    main()
