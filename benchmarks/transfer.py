"""Transfer from ImageNet against scratch, by share of the training set and over seeds.

    python benchmarks/transfer.py galaxies --images galaxies_69px.parquet --out DIR
    python benchmarks/transfer.py alerts --images alerts.parquet --out DIR
        [--arms transfer scratch] [--fractions 0.05 0.1 0.5 1.0] [--seeds 0 1 2 3 4]
        [--threads N] [--set key=value] [--json FILE]

Both arms train EfficientNet-lite0 on the same images and are scored on objects not trained on.
``galaxies``: spiral or elliptical, Galaxy Zoo 1; one split of the objects. ``alerts``: real or
bogus, ZTF; bogus alerts are few, so every seed splits the objects anew. Finished trainings in --out
are not repeated, so arms, shares and seeds may be run one by one; the table is of all that are
there.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "platform"), str(ROOT / "benchmarks")]

from real_bogus import OtherSplit, card_of_benchmark  # noqa: E402
from report import Row, finish  # noqa: E402

from skyray.analysis import plots  # noqa: E402
from skyray.cards import load_card  # noqa: E402
from skyray.data.dataset import Dataset  # noqa: E402
from skyray.data.ingest import ingest, ingest_source  # noqa: E402
from skyray.families.base import load_recipe  # noqa: E402
from skyray.runtime import places  # noqa: E402
from skyray.runtime.session import ray_session  # noqa: E402
from skyray.search.cells import Cell, train_cells  # noqa: E402

Runs = dict[tuple[str, float], dict[int, dict[str, Any]]]  # (arm, share) → seed → scores
SHARES = (0.05, 0.1, 0.5, 1.0)
SCORES = ("accuracy", "auc")
TABLE = "scores.json"


@dataclass(frozen=True)
class Subject:
    """What is learned: a recipe for each arm, and the scores to reach with the whole set."""

    arms: dict[str, str]
    targets: dict[str, float]


SUBJECTS = {
    "galaxies": Subject(
        {"transfer": "morphology/gz1_lite0_laptop", "scratch": "morphology/gz1_lite0_scratch"},
        {"accuracy": 0.90, "auc": 0.95},
    ),
    "alerts": Subject(
        {"transfer": "alerts/real_bogus_lite0_imagenet", "scratch": "alerts/real_bogus_lite0"},
        {"auc": 0.95},
    ),
}


def dataset(subject: str, images: str, out: Path, seed: int) -> str:
    """Ingest the images once, or for alerts once a seed; return where they are."""
    data = str(out / ("dataset" if subject == "galaxies" else f"dataset-{seed}"))
    if not Dataset.exists(data):
        if subject == "galaxies":
            ingest(load_card("galaxies_gz1"), [images], data)
        else:
            card = card_of_benchmark()
            ingest_source(card, OtherSplit(card, [images], seed), data)
    return data


def train_all(options: argparse.Namespace) -> Runs:
    """Train and score what is asked for; return all scores that the folder holds."""
    place = str(options.out / TABLE)
    kept = places.read_json(place) if places.exists(place) else {}
    data = {s: dataset(options.subject, options.images, options.out, s) for s in options.seeds}
    cells = [
        _cell(options, arm, fraction, seed, data[seed])
        for seed in options.seeds
        for fraction in options.fractions
        for arm in options.arms
    ]
    kept |= train_cells(cells, threads=options.threads)
    places.write_json(place, kept)
    found: Runs = {}
    for name, scores in kept.items():
        arm, fraction, seed = name.split("-")
        found.setdefault((arm, float(fraction)), {})[int(seed)] = scores
    return found


def _cell(options: argparse.Namespace, arm: str, fraction: float, seed: int, data: str) -> Cell:
    changes = [f"seed={seed}", f"fraction={fraction}", *options.set]
    recipe = load_recipe(SUBJECTS[options.subject].arms[arm]).override(changes)
    name = f"{arm}-{fraction:g}-{seed}"
    return Cell(name, recipe, data, str(options.out / "cells" / name))


def table(found: Runs, targets: dict[str, float]) -> list[Row]:
    """Return medians over seeds; transfer beside scratch, and in how many seeds it is better."""
    rows = []
    for (arm, fraction), runs in sorted(found.items(), key=lambda item: (item[0][1], item[0][0])):
        other = found.get(("scratch", fraction), {}) if arm == "transfer" else {}
        both = sorted(set(runs) & set(other))
        for name in SCORES:
            values = [scores[name] for scores in runs.values()]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            note = f"± {spread:.4f}, {len(values)} seeds: {min(values):.4f} to {max(values):.4f}"
            if both:
                wins = sum(runs[seed][name] > other[seed][name] for seed in both)
                note += f"; better than scratch in {wins} of {len(both)}"
            reached = targets.get(name) if arm == "transfer" and fraction == 1 else None
            rows.append(Row(
                f"{arm}, {fraction:.0%}: {name}", statistics.median(values), "",
                statistics.median(other[s][name] for s in both) if both else None,
                None, reached, note,
            ))  # fmt: skip
    return rows


def draw(found: Runs, targets: dict[str, float], path: Path) -> Path:
    """Draw accuracy and AUC against the share of the training objects."""
    from matplotlib import rc_context

    with rc_context(plots.STYLE):
        figure, axes = plots.panels(1, len(SCORES))
        for axis, name in zip(axes[0], SCORES, strict=True):
            for arm, color in (("transfer", plots.BLUE), ("scratch", plots.RED)):
                shares = sorted(fraction for a, fraction in found if a == arm)
                runs = [[scores[name] for scores in found[arm, f].values()] for f in shares]
                middle = [statistics.median(values) for values in runs]
                spread = [statistics.stdev(v) if len(v) > 1 else 0.0 for v in runs]
                axis.errorbar(shares, middle, spread, color=color, marker="o", capsize=3, label=arm)
            if name in targets:
                axis.axhline(targets[name], color=plots.SOFT, linestyle=":")
            axis.set(xscale="log", xlabel="share of the training objects",
                     title=name.replace("auc", "ROC AUC"))  # fmt: skip
        axes[0, 0].legend(fontsize=8)
        return plots.save(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("subject", choices=list(SUBJECTS))
    parser.add_argument("--images", required=True, help="galaxies_69px.parquet or alerts.parquet")
    parser.add_argument("--out", type=Path, help="default: results/transfer-SUBJECT")
    parser.add_argument("--arms", nargs="*", default=["transfer", "scratch"],
                        choices=["transfer", "scratch"])  # fmt: skip
    parser.add_argument("--fractions", nargs="*", type=float, default=list(SHARES))
    parser.add_argument("--seeds", nargs="*", type=int, default=list(range(5)))
    parser.add_argument("--threads", type=int, default=1, help="CPU threads a training")
    parser.add_argument("--set", action="append", default=[], help="change both recipes: key=value")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    options.out = (options.out or Path(f"results/transfer-{options.subject}")).absolute()
    os.environ.setdefault("SKYRAY_HOME", str(options.out / "home"))
    targets = SUBJECTS[options.subject].targets
    with ray_session():
        found = train_all(options)
    draw(found, targets, options.out / "transfer.png")
    finish(f"Transfer from ImageNet against scratch: {options.subject}", table(found, targets),
           options.json)  # fmt: skip


if __name__ == "__main__":
    main()
