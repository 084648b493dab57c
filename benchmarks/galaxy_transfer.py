"""Transfer from ImageNet against scratch on real galaxies: spiral or elliptical, Galaxy Zoo 1.

Both arms train tf_efficientnet_lite0 on the same SDSS colour cutouts, by shares of the training
objects, and are scored on the test split (objects, not rows). ``transfer`` is the recipe
gz1_lite0_laptop: ImageNet weights, head, middle, whole network; ``scratch`` is gz1_lite0_scratch.
Finished runs in --out are not repeated, so arms, shares and seeds may be run one by one.

    python benchmarks/galaxy_transfer.py --images galaxies_69px.parquet --out DIR
        [--arms transfer scratch] [--fractions 0.05 0.1 0.5 1.0] [--seeds 0 1 2 3 4]
        [--threads N] [--set key=value] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "platform"), str(ROOT / "benchmarks")]

from report import Row, finish  # noqa: E402

from skyray.analysis import plots  # noqa: E402
from skyray.cards import load_card  # noqa: E402
from skyray.engine.dataset import MANIFEST  # noqa: E402
from skyray.engine.ingest import ingest  # noqa: E402
from skyray.engine.lone import train_alone  # noqa: E402
from skyray.engine.session import ray_session  # noqa: E402
from skyray.families.base import load_recipe  # noqa: E402

ARMS = {"transfer": "morphology/gz1_lite0_laptop", "scratch": "morphology/gz1_lite0_scratch"}
TARGETS = {"accuracy": 0.90, "auc": 0.95}


def score(bundle: Path, data: Path) -> dict[str, Any]:
    """Return the metrics of the test split, without Ray: the set is small."""
    from skyray.engine.bundle import Predictor
    from skyray.engine.dataset import Dataset, table_to_columns

    predictor = Predictor.from_bundle(bundle, device="cpu")
    family = predictor.family
    names = list(dict.fromkeys([*family.columns(training=True), *family.truth_columns()]))
    columns = table_to_columns(Dataset.open(data).to_table(names, "test"))
    output = predictor.predict(columns, training=True)
    output["label_pred"] = output.pop("label")
    table = {name: columns[name] for name in family.truth_columns()} | output
    return family.evaluate(table, predictor.calibration)


def run(arm: str, fraction: float, seed: int, data: Path, options: argparse.Namespace) -> None:
    """Train and score one arm with one share and seed, and keep its metrics."""
    kept = options.out / f"{arm}-{fraction:g}-{seed}.json"
    if kept.exists():
        return
    recipe = load_recipe(ARMS[arm]).override([f"seed={seed}", f"fraction={fraction}", *options.set])
    bundle = options.out / "bundles" / kept.stem
    place = options.out / "runs" / kept.stem
    train_alone(recipe, str(data), str(place), out=str(bundle), threads=options.threads)
    kept.write_text(json.dumps(score(bundle, data)), encoding="utf-8")
    print(f"{kept.stem}: accuracy {json.loads(kept.read_text())['accuracy']:.4f}", flush=True)


def load(out: Path) -> dict[tuple[str, float], dict[int, dict[str, Any]]]:
    """Return the metrics of every finished run: (arm, share) → seed → metrics."""
    found: dict[tuple[str, float], dict[int, dict[str, Any]]] = {}
    for arm in ARMS:
        for path in sorted(out.glob(f"{arm}-*.json")):
            _, fraction, seed = path.stem.split("-")
            found.setdefault((arm, float(fraction)), {})[int(seed)] = json.loads(path.read_text())
    return found


def table(found: dict[tuple[str, float], dict[int, dict[str, Any]]]) -> list[Row]:
    """Return means over seeds; the ratio counts the seeds in which transfer beats scratch."""
    rows = []
    for (arm, fraction), runs in sorted(found.items(), key=lambda item: (item[0][1], item[0][0])):
        for name, target in TARGETS.items():
            values = [metrics[name] for metrics in runs.values()]
            other = found.get(("scratch", fraction), {}) if arm == "transfer" else {}
            both = sorted(set(runs) & set(other))
            wins = sum(runs[seed][name] > other[seed][name] for seed in both)
            note = f"{len(values)} seeds: {min(values):.4f} to {max(values):.4f}"
            if both:
                note += f"; better than scratch in {wins} of {len(both)}"
            rows.append(Row(
                f"{arm}, {fraction:.0%}: {name}", statistics.mean(values), "",
                statistics.mean(other[s][name] for s in both) if both else None,
                None, target if arm == "transfer" and fraction == 1 else None, note,
            ))  # fmt: skip
    return rows


def draw(found: dict[tuple[str, float], dict[int, dict[str, Any]]], path: Path) -> Path:
    """Draw accuracy and AUC against the share of the training objects."""
    from matplotlib import rc_context

    with rc_context(plots.STYLE):
        figure, axes = plots.panels(1, 2)
        for axis, name in zip(axes[0], TARGETS, strict=True):
            for arm, color in (("transfer", plots.BLUE), ("scratch", plots.RED)):
                shares = sorted(fraction for a, fraction in found if a == arm)
                runs = [[m[name] for m in found[arm, f].values()] for f in shares]
                means = [statistics.mean(values) for values in runs]
                spread = [statistics.pstdev(values) for values in runs]
                axis.errorbar(shares, means, spread, color=color, marker="o", capsize=3, label=arm)
            axis.axhline(TARGETS[name], color=plots.SOFT, linestyle=":")
            axis.set(xscale="log", xlabel="share of the training objects",
                     title=name.replace("auc", "ROC AUC"))  # fmt: skip
        axes[0, 0].legend(fontsize=8)
        return plots.save(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, required=True, help="galaxies_69px.parquet")
    parser.add_argument("--out", type=Path, default=Path("results/galaxy_transfer"))
    parser.add_argument("--arms", nargs="*", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--fractions", nargs="*", type=float, default=[0.05, 0.1, 0.5, 1.0])
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--set", action="append", default=[], help="change both recipes: key=value")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    options.out = options.out.absolute()
    os.environ.setdefault("SKYRAY_HOME", str(options.out / "home"))
    data = options.out / "dataset"
    if not (data / MANIFEST).exists():
        with ray_session():
            ingest(load_card("galaxies_gz1"), [str(options.images)], str(data))
    for seed in options.seeds:
        for fraction in options.fractions:
            for arm in options.arms:
                run(arm, fraction, seed, data, options)
    found = load(options.out)
    draw(found, options.out / "transfer.png")
    finish("Transfer from ImageNet against scratch", table(found), options.json)


if __name__ == "__main__":
    main()
