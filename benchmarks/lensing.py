"""Lensing: inference against eager escnn and timm, and the throughput of the simulator.

One thread, the same weights on both sides, runs interleaved; a figure is the ratio of the medians
of CPU time. The equivariant network is the published one at 150 pixels (`--small`: a quarter of its
fields at 64). Weights come from a few steps on mock lenses, so that probabilities mean something.

    python benchmarks/lensing.py [--small] [--rounds 3] [--images 48] [--no-ray] [--json FILE]
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "platform"), str(ROOT / "benchmarks")]

from report import Row, finish  # noqa: E402

from skyray.cards import load_card  # noqa: E402
from skyray.families.lensing.networks import LensClassifier  # noqa: E402
from skyray.families.lensing.recipes import NetworkConfig  # noqa: E402
from skyray.models.equivariant import AntialiasedPool, EquivariantConfig  # noqa: E402
from skyray.models.escnn_import import import_escnn  # noqa: E402
from skyray.models.vision_inference import bf16_support  # noqa: E402
from skyray.simulate.base import make_simulator  # noqa: E402

CARD = "lenses_two_domains"
FLOAT32, BFLOAT16, PROBABILITY, WORKERS = 1.1, 5.0, 5e-3, 1.8
BATCHES = (1, 8)
TRAINING_BATCH = 32


def mock_images(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return `count` images [N, 1, 64, 64] of unit rms and their classes."""
    card = load_card(CARD)
    survey = make_simulator(card, 1)
    label = [index % len(card.classes) for index in range(count)]
    image = [
        survey.record(card.classes[kind], index).image
        for index, kind in enumerate(label)
    ]  # fmt: skip
    image = torch.as_tensor(np.stack(image))
    image /= image.square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
    return image, torch.as_tensor(label)


def trained(config: NetworkConfig, image, label, steps: int) -> LensClassifier:
    torch.manual_seed(0)
    model = LensClassifier.build(config, 1, image.shape[-1], 3)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for step in range(steps):
        rows = torch.arange(8 * step, 8 * step + 8) % len(image)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16_support()[0]):
            logits = model(image[rows])[1]
        loss = torch.nn.functional.cross_entropy(logits.float(), label[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


def as_escnn(model: LensClassifier) -> LensClassifier:
    """Give a D₂ network the pools of escnn in place of ours, which compute the same."""
    pool_of = import_escnn().nn.PointwiseAvgPoolAntialiased
    blocks = model.encoder.blocks
    for number, block in enumerate(blocks):
        if isinstance(block, AntialiasedPool):
            edge = {} if block.padded else {"padding": 0}
            kind = blocks[number - 1].out_type
            blocks[number] = pool_of(kind, block.sigma, stride=block.stride, **edge)
    return model


def eager(model: LensClassifier) -> LensClassifier:
    """Return escnn as it is used: its modules in evaluation mode, filters expanded once."""
    model = as_escnn(model).eval()
    for module in model.modules():
        if type(module).__name__ == "R2Conv":
            module.eval()
    return model


def paired(rounds: int, runs: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Return the median CPU seconds of each run; the runs take turns, after one to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            started = time.process_time()
            run()
            if number:
                seconds[name].append(time.process_time() - started)
    return {name: statistics.median(taken) for name, taken in seconds.items()}


@torch.inference_mode()
def inference_rows(name: str, reference, model: LensClassifier, image, rounds: int) -> list[Row]:
    fast, reason = bf16_support()
    ours = {"float32": model.optimised("float32")}
    if fast:
        ours["bf16"] = model.optimised("bf16")
    rows = []
    for batch in BATCHES:
        part = image[:batch]
        runs = {"eager": lambda part=part: reference(part)}
        runs |= {kind: lambda net=net, part=part: net(part) for kind, net in ours.items()}
        seconds = paired(rounds, runs)
        for kind, target in (("float32", FLOAT32), ("bf16", BFLOAT16)):
            title = f"{name}, batch {batch}, {kind}"
            if kind not in seconds:
                rows.append(Row(title, float("nan"), "", note=f"skipped: {reason}"))
                continue
            rows.append(
                Row(title, batch / seconds[kind], "images/s", batch / seconds["eager"],
                    seconds["eager"] / seconds[kind], target if name == "D2" else None)
            )  # fmt: skip
    exact = probabilities(reference, image)
    for kind, net in ours.items():
        error = float((probabilities(net, image) - exact).abs().max())
        note = f"largest of {len(image)} images, ≤ {PROBABILITY} wanted"
        rows.append(Row(f"{name}, {kind}: difference of probabilities", error, "", note=note))
    return rows


def training_row(config: NetworkConfig, rounds: int) -> Row:
    """Compare a D₂ training step with that of escnn's own pools; bf16 where it is fast."""
    image, label = torch.randn(TRAINING_BATCH, 1, 64, 64), torch.arange(TRAINING_BATCH) % 3

    def step(model: LensClassifier) -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16_support()[0]):
            logits = model(image)[1]
        torch.nn.functional.cross_entropy(logits.float(), label).backward()

    ours = LensClassifier.build(config, 1, 64, 3).train()
    theirs = as_escnn(LensClassifier.build(config, 1, 64, 3)).train()
    seconds = paired(rounds, {"ours": lambda: step(ours), "escnn": lambda: step(theirs)})
    return Row(
        f"D2 training step, batch {TRAINING_BATCH}, 64 pixels", TRAINING_BATCH / seconds["ours"],
        "images/s", TRAINING_BATCH / seconds["escnn"], seconds["escnn"] / seconds["ours"],
        note="forward and backward; a quarter of the fields",
    )  # fmt: skip


def probabilities(model, image: torch.Tensor) -> torch.Tensor:
    return torch.cat([model(part)[1].float().softmax(1) for part in image.split(8)])


def simulation_rows(objects: int, ray: bool) -> list[Row]:
    card = load_card(CARD)
    survey = make_simulator(card, 1)
    rows = []
    for label in card.classes:
        survey.record(label, 0)
        started = time.process_time()
        for index in range(1, 25):
            survey.record(label, index)
        taken = (time.process_time() - started) / 24
        rows.append(Row(f"simulate {label}", 1e3 * taken, "ms/image", note="64 pixels, one thread"))
    if ray:
        rates = {workers: ray_rate(card, objects, workers) for workers in (1, 2)}
        ratio = rates[2] / rates[1]
        note = f"{objects} images into a dataset; wall time, start of Ray left out"
        rows.append(
            Row("simulate on 2 workers", rates[2], "images/s", rates[1], ratio, WORKERS, note)
        )
    return rows


def ray_rate(card, objects: int, workers: int) -> float:
    """Return images per second of wall time of a simulation on so many workers."""
    from skyray.data.simulate import simulate
    from skyray.runtime.session import ray_session

    with tempfile.TemporaryDirectory() as folder, ray_session(num_cpus=workers):
        simulate(card, 128, 1, f"{folder}/warm", progress=False)
        started = time.monotonic()
        simulate(card, objects, 2, f"{folder}/data", progress=False)
        return objects / (time.monotonic() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="a quarter of the fields, 64 pixels")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=48, help="of the check of probabilities")
    parser.add_argument("--steps", type=int, default=6, help="training steps before measuring")
    parser.add_argument("--objects", type=int, default=2048, help="images of the run on Ray")
    parser.add_argument("--no-ray", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    image, label = mock_images(options.images)
    small = EquivariantConfig(fields=(6, 12, 12, 24, 24, 16))
    size = small if options.small else EquivariantConfig(input_size=149)
    networks = {
        "D2": NetworkConfig(equivariant=size),
        "EfficientNet-B0": NetworkConfig(encoder="vision"),
    }
    rows = []
    for name, config in networks.items():
        model = trained(config, image, label, options.steps)
        reference = eager(_twin(config, model)) if name == "D2" else model
        rows += inference_rows(name, reference, model, image, options.rounds)
    rows.append(training_row(NetworkConfig(equivariant=small), 2 * options.rounds))
    rows += simulation_rows(options.objects, not options.no_ray)
    title = "Lensing: inference against eager escnn and timm (1 thread), simulator"
    finish(title, rows, options.json)


def _twin(config: NetworkConfig, model: LensClassifier) -> LensClassifier:
    twin = LensClassifier.build(config, 1, 64, 3)
    twin.load_state_dict(model.state_dict())
    return twin


if __name__ == "__main__":
    main()
