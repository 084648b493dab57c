"""Inference of the image networks against timm's and torch's own eager float32: speed, accuracy.

One thread, batch 32 (MaxViT 8, Xception 4), both sides with the same weights in the same run, in
turns; a figure is the ratio of the medians of the process's CPU time.

Random weights say little about precision. So each network is first trained from scratch on labelled
synthetic stamps (a point source on a galaxy, or none) for a few dozen steps: badly, but until its
probabilities spread. They and the AUC are then compared on other stamps.

    python benchmarks/alerts_inference.py [--models NAME ...] [--images 192] [--rounds 5]
                                          [--steps N] [--json FILE]

By default the alert paper's three: alert_cnn, convnext_pico, maxvit_tiny_rw_224 (each takes one to
two minutes of CPU time, most of it for training). Also known: legacy_xception and efficientnet_b0,
those of the morphology and lensing papers.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch
from torch import nn

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "platform"), str(ROOT / "benchmarks")]

from report import Row, finish  # noqa: E402
from sklearn.metrics import roc_auc_score  # noqa: E402

from skyray.models.vision import VisionConfig, VisionNetwork  # noqa: E402
from skyray.models.vision_inference import OptimisedVision, bf16_support, optimised  # noqa: E402


@dataclass(frozen=True)
class Setting:
    """Sizes of a network's benchmark; `most` limits its images, `target` is that of bf16."""

    image_size: int
    batch: int
    steps: int
    most: int
    input_size: int | None = None
    target: float | None = None


SETTINGS = {
    "alert_cnn": Setting(63, 32, steps=80, most=1024, target=5.0),
    "convnext_pico": Setting(63, 32, steps=40, most=1024, target=2.0),
    "maxvit_tiny_rw_224": Setting(63, 8, steps=30, most=96, input_size=224, target=3.0),
    "legacy_xception": Setting(299, 4, steps=16, most=48),
    "efficientnet_b0": Setting(150, 32, steps=16, most=192),
}
ALERTS = ("alert_cnn", "convnext_pico", "maxvit_tiny_rw_224")
PROBABILITY, AUC = 2e-3, 1e-3


def stamps(count: int, size: int, seed: int) -> tuple[torch.Tensor, np.ndarray]:
    """Return images [N, 3, S, S] (science, template, difference) and labels [N]: transient or not.

    Each is divided by its norm, as alerts are.
    """
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    label = np.arange(count) % 2
    images = np.empty((count, 3, size, size), np.float32)
    for i in range(count):
        a, b = random.uniform(0.05, 0.2, 2) * size
        galaxy = random.uniform(0, 5) * np.exp(-0.5 * ((x / a) ** 2 + (y / b) ** 2))
        source = random.uniform(0.5, 6) * np.exp(-0.5 * (x**2 + y**2) / (0.03 * size) ** 2)
        science, template = random.normal(size=(2, size, size)) + galaxy
        science = science + label[i] * source
        images[i] = science, template, science - template
    images /= np.linalg.norm(images, axis=(2, 3), keepdims=True)
    return torch.as_tensor(images), label


def make_network(name: str, steps: int | None) -> VisionNetwork:
    """Return the network after its short training, in evaluation mode."""
    setting = SETTINGS[name]
    torch.manual_seed(0)
    config = VisionConfig(architecture=name, input_size=setting.input_size, conv_dropout=(0.0, 0.0))
    network = VisionNetwork(config, bands=3, outputs=1, image_size=setting.image_size)
    with torch.no_grad():
        for key, parameter in network.named_parameters():
            if key.endswith(".gamma"):  # ConvNeXt's 1e-6 would hide the blocks and their rounding
                parameter.fill_(0.1)
    steps = setting.steps if steps is None else steps
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=max(1, steps))
    images, label = stamps(steps * setting.batch, setting.image_size, seed=2)
    label = torch.as_tensor(label).float()[:, None]
    network.train()
    for image, wanted in zip(images.split(setting.batch), label.split(setting.batch), strict=True):
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16_support()[0]):
            logits = network(image)
        nn.functional.binary_cross_entropy_with_logits(logits.float(), wanted).backward()
        optimizer.step()
        schedule.step()
    settle(network, stamps(4 * setting.batch, setting.image_size, seed=4)[0], setting.batch)
    return network.to(memory_format=torch.contiguous_format).eval()  # as timm makes it


def settle(network: VisionNetwork, images: torch.Tensor, batch: int) -> None:
    """Give batch norms the mean statistics of these images: few steps leave old ones behind."""
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    if norms:
        run(network.train(), images, batch)


@torch.no_grad()
def run(
    model: nn.Module, images: torch.Tensor, batch: int, method: str = "forward"
) -> torch.Tensor:
    return torch.cat([getattr(model, method)(chunk) for chunk in images.split(batch)])


def paired(rounds: int, **runs: Callable[[], object]) -> dict[str, float]:
    """Return the median CPU seconds of each run; the runs take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, call in runs.items():
            started = time.process_time()
            call()
            seconds[name].append(time.process_time() - started)
    return {name: statistics.median(taken) for name, taken in seconds.items()}


def speed_rows(name: str, forms: dict[str, nn.Module], rounds: int, bf16: str) -> list[Row]:
    setting = SETTINGS[name]
    batch = setting.batch
    images, _ = stamps(batch, setting.image_size, seed=3)
    runs = {form: (lambda m=model: run(m, images, batch)) for form, model in forms.items()}
    for call in runs.values():
        call()
    seconds = paired(rounds, **runs)
    eager = seconds.pop("eager")
    rows = []
    for form, taken in seconds.items():
        last = form == list(seconds)[-1]
        note = f"batch {batch}, against eager float32" + (f"; {bf16}" if form == "bf16" else "")
        rows.append(
            Row(f"{name}, {form}", batch / taken, "images/s", batch / eager, eager / taken,
                setting.target if last else None, note)
        )  # fmt: skip
    return rows


def accuracy_rows(
    name: str, network: VisionNetwork, forms: dict[str, OptimisedVision], images: int
) -> list[Row]:
    """Compare probabilities and AUC with the eager network's."""
    setting = SETTINGS[name]
    stamp, label = stamps(min(images, setting.most), setting.image_size, seed=1)

    def probability(model: nn.Module) -> np.ndarray:
        return run(model, stamp, setting.batch).sigmoid()[:, 0].numpy()

    exact = probability(network)
    auc = roc_auc_score(label, exact)
    note = f"{len(label)} stamps, probabilities spread by {exact.std():.2f} (std)"
    rows = [Row(f"{name}, AUC eager", auc, "", note=note)]
    for form, model in forms.items():
        ours = probability(model)
        error = np.abs(ours - exact)
        note = f"largest difference, ≤ {PROBABILITY:g} wanted; rms {np.sqrt((error**2).mean()):.2g}"
        rows.append(Row(f"{name}, probabilities {form}", float(error.max()), "", note=note))
        change = abs(roc_auc_score(label, ours) - auc)
        rows.append(Row(f"{name}, AUC {form}", change, "", note=f"change, ≤ {AUC:g} wanted"))
    return rows


def benchmark(name: str, images: int, rounds: int, steps: int | None) -> list[Row]:
    network = make_network(name, steps)
    forms = {"float32": optimised(network)}
    fast, reason = bf16_support()
    if fast:
        forms["bf16"] = optimised(network, "bf16")
    rows = speed_rows(name, {"eager": network, **forms}, rounds, reason)
    if not fast:
        rows.append(Row(f"{name}, bf16", float("nan"), "", note=f"skipped: {reason}"))
    return rows + accuracy_rows(name, network, forms, images)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=SETTINGS, default=ALERTS, metavar="NAME")
    parser.add_argument("--images", type=int, default=192, help="stamps of the accuracy check")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, help="training steps; default: the network's own")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [
        row
        for name in options.models
        for row in benchmark(name, options.images, options.rounds, options.steps)
    ]
    finish("Image networks against eager float32 (1 thread)", rows, options.json)


if __name__ == "__main__":
    main()
