"""What the morphology family gains over plain eager float32, paired in one run, one thread.

Xception at 299 × 299 with the paper's head, random weights: inference, a training step with all
layers unfrozen, and an epoch of the frozen stage from features computed once. The two sides of a
pair take turns, so that a busy machine slows both; ratios are medians over the rounds.

    python benchmarks/morphology.py [--rounds 5] [--batch 4] [--images 16] [--json FILE]
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "platform"), str(ROOT / "benchmarks")]

import numpy as np  # noqa: E402
import torch  # noqa: E402
from report import Row, finish  # noqa: E402
from torch.nn import functional  # noqa: E402

from skyray.families.base import DataInfo, load_recipe  # noqa: E402
from skyray.families.morphology.family import (  # noqa: E402
    MorphologyFamily,
    base_features,
    unit,
)
from skyray.models.vision import VisionNetwork  # noqa: E402
from skyray.models.vision_inference import bf16_support, optimised  # noqa: E402


def make_family(size: int, architecture: str) -> MorphologyFamily:
    """Return the paper's recipe without its weights, for images of `size` pixels."""
    recipe = load_recipe("morphology/sdss_xception").override(
        ["network.weights=''", f"network.architecture={architecture}",
         f"network.input_size={size}"]
    )  # fmt: skip
    info = DataInfo(
        card="sdss_galaxies", record="cutout", classes=("elliptical", "spiral"), coarse={},
        fingerprint="0" * 12, bands=("g", "r", "i", "z"), image_size=size,
    )  # fmt: skip
    return MorphologyFamily(recipe, info)


def networks(family: MorphologyFamily) -> tuple[VisionNetwork, VisionNetwork]:
    """Return the same network twice: as timm makes it, and as the family makes it."""
    torch.manual_seed(0)
    plain = VisionNetwork(family.recipe.vision(), 3, 2, family.data.image_size)
    plain.to(memory_format=torch.contiguous_format)
    ours = family.build_model()
    ours.load_state_dict(plain.state_dict())
    return plain, ours


def paired(
    slow: Callable[[], object], fast: Callable[[], object], rounds: int
) -> tuple[float, float, float]:
    """Return median seconds of both and the median of their ratios, after one warm-up each."""
    slow(), fast()
    seconds: list[tuple[float, float]] = []
    for _ in range(rounds):
        took = []
        for work in (slow, fast):
            started = time.perf_counter()
            work()
            took.append(time.perf_counter() - started)
        seconds.append((took[0], took[1]))
    ratios = [a / b for a, b in seconds]
    return (
        statistics.median(a for a, _ in seconds),
        statistics.median(b for _, b in seconds),
        statistics.median(ratios),
    )


def images(count: int, size: int) -> dict[str, torch.Tensor]:
    """Return 8-bit images of blobs, as the family's transform gives them, with labels."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:size, :size] - size / 2
    light = 160 * np.exp(-np.hypot(x, y) / (size / 10))
    noisy = light + rng.normal(20, 10, (count, 3, size, size))
    return {
        "image": torch.as_tensor(np.clip(noisy, 0, 255).astype(np.uint8)),
        "label_index": torch.as_tensor(rng.integers(0, 2, count)),
    }


def inference(family: MorphologyFamily, batch: int, rounds: int) -> Row:
    plain, ours = networks(family)
    plain.eval()
    fast = optimised(ours.eval(), "bf16")
    image = unit(images(batch, family.data.image_size)["image"])

    def eager() -> torch.Tensor:
        with torch.no_grad():
            return plain(image)

    slow_s, fast_s, ratio = paired(eager, lambda: fast(image), rounds)
    difference = (eager() - fast(image)).abs().max().item()
    return Row(
        "Xception inference", batch / fast_s, "images/s", batch / slow_s, ratio, 3.0,
        f"{fast.precision} ({fast.reason}); largest logit difference {difference:.1e}",
    )  # fmt: skip


def training(family: MorphologyFamily, batch: int, rounds: int) -> Row:
    """A step of the last stage as the engine does it, against the same step in eager float32."""
    plain, ours = networks(family)
    stage = family.stages()[-1]
    data = images(batch, family.data.image_size)
    fast, reason = bf16_support()
    steps = []
    for network, mixed in ((plain, False), (ours, fast)):
        network.requires_grad_(False)
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(stage.trains(name))
        network.train()
        optimizer = torch.optim.Adam(
            [p for p in network.parameters() if p.requires_grad], lr=1e-4, eps=1e-7
        )

        def step(network=network, optimizer=optimizer, mixed=mixed) -> torch.Tensor:
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=mixed):
                loss, _ = stage.loss(network, data)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            return loss.detach()

        steps.append(step)
    slow_s, fast_s, ratio = paired(*steps, rounds)
    note = f"channels-last, {'bf16' if fast else 'float32'} ({reason}); augmentation included"
    return Row("Xception training, all layers", batch / fast_s, "images/s", batch / slow_s, ratio,
               2.0, note)  # fmt: skip


def frozen(family: MorphologyFamily, count: int, batch: int, rounds: int) -> Row:
    """An epoch of stage 1: through the frozen base each time, against cached base features."""
    plain, ours = networks(family)
    stage = family.stages()[0]
    data = images(count, family.data.image_size)
    ours.requires_grad_(False).eval()
    with torch.no_grad():
        started = time.perf_counter()
        kept = base_features(ours, data)
        once = time.perf_counter() - started
    epochs = []
    for network, cached in ((plain, False), (ours, True)):
        network.requires_grad_(False)
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(stage.trains(name))
        network.train()
        optimizer = torch.optim.Adam([p for p in network.parameters() if p.requires_grad], lr=1e-4)

        def epoch(network=network, optimizer=optimizer, cached=cached) -> None:
            for start in range(0, count, batch):
                rows = slice(start, start + batch)
                target = data["label_index"][rows]
                if cached:
                    logits = network.from_base(kept["base"][rows])
                else:
                    logits = network(unit(data["image"][rows]))
                loss = functional.cross_entropy(logits, target)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()

        epochs.append(epoch)
    slow_s, fast_s, ratio = paired(*epochs, rounds)
    return Row(
        "frozen stage, an epoch after the first", count / fast_s, "images/s", count / slow_s, ratio,
        10.0, f"{count} images; computing the features once took {once:.2f} s",
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--images", type=int, default=16, help="images of the frozen stage's epoch")
    parser.add_argument("--size", type=int, default=299)
    parser.add_argument("--architecture", default="legacy_xception")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    family = make_family(options.size, options.architecture)
    rows = [
        inference(family, options.batch, options.rounds),
        training(family, options.batch, max(2, options.rounds // 2)),
        frozen(family, options.images, options.batch, max(2, options.rounds // 2)),
    ]
    finish(f"Morphology: {options.architecture}, one thread", rows, options.json)


if __name__ == "__main__":
    main()
