"""Our laptop recipe against the original layer sizes and schedule, on the same mock spectra.

Both arms train on the same 13-class mock set and network grid and are scored on its test split.
``original`` is the released training: widths 16 … 512, N(0, 1e-3²) weights, Adam 1e-3 halved every
5 epochs, 50 epochs, 10·z targets, raw flux; ``ours`` is the recipe sdss_dr16_laptop. Finished runs
in --out are not repeated, so arms and seeds may be run one by one.

    python benchmarks/published_training.py --out DIR [--objects 13000] [--arms ours original]
        [--seeds 0 1 2] [--members 1] [--json FILE]

With --wall it measures time instead of scores: the first arm trained with its stages side by side,
one thread each, against one after another on all cores (what one would do without lanes) and on one
thread; the last of these must give the same networks, bit by bit.

    python benchmarks/published_training.py --wall --out DIR [--objects 1300] [--turns 1]
        [--set train.epochs=2] [--json FILE]
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "platform"), str(ROOT / "benchmarks")]

from report import Row, finish  # noqa: E402

from skyray.cards import load_card  # noqa: E402
from skyray.data.dataset import Dataset  # noqa: E402
from skyray.data.simulate import simulate  # noqa: E402
from skyray.families.base import load_recipe  # noqa: E402
from skyray.runtime.session import ray_session  # noqa: E402

ARMS = {
    "ours": ("redshift/sdss_dr16_laptop", []),
    "original": (
        "redshift/sdss_dr16_as_published",
        # the network's grid is the laptop recipe's in both arms
        ["input.step=2.5", "input.pixels=2001", "ensemble=corrected"],
    ),
}
SCORES = {
    "accuracy": ("", "accuracy"),
    "coarse accuracy": ("", "coarse_accuracy"),
    "galaxies: median Δz/(1+z)": ("", "true_class_galaxy_delta_z_median"),
    "galaxies: NMAD": ("", "true_class_galaxy_nmad"),
    "quasars: median Δz/(1+z)": ("", "true_class_qso_delta_z_median"),
    "quasars: NMAD": ("", "true_class_qso_nmad"),
}


def run(arm: str, seed: int, data: Path, options: argparse.Namespace) -> None:
    """Train and score one arm with one seed and keep its metrics."""
    from skyray.inference.evaluate import evaluate
    from skyray.training.train import train

    kept = options.out / f"{arm}-{seed}.json"
    if kept.exists():
        return
    name, changes = ARMS[arm]
    recipe = load_recipe(name).override(
        [*changes, *options.set, f"seed={seed}", f"members={options.members}",
         f"train.precision={options.precision}", f"train_redshift.precision={options.precision}"]
    )  # fmt: skip
    bundle = options.out / f"bundle-{arm}-{seed}"
    train(recipe, str(data), str(bundle), threads=options.threads, resume=options.resume)
    options.resume = None
    metrics = evaluate(str(bundle), str(data), str(options.out / f"scores-{arm}-{seed}"))
    kept.write_text(json.dumps(metrics), encoding="utf-8")


def table(out: Path) -> list[Row]:
    """Return mean and seed-to-seed spread of every score for every arm that has finished."""
    found: dict[str, list[dict[str, Any]]] = {
        arm: [json.loads(path.read_text()) for path in sorted(out.glob(f"{arm}-*.json"))]
        for arm in ARMS
    }
    rows = []
    for title, (unit, key) in SCORES.items():
        values = {arm: [m[key] for m in metrics if key in m] for arm, metrics in found.items()}
        reference = statistics.mean(values["original"]) if values["original"] else None
        for arm, numbers in values.items():
            if not numbers:
                continue
            spread = f"{min(numbers):.4g} to {max(numbers):.4g}"
            mean = statistics.mean(numbers)
            ratio = mean / reference if reference and arm == "ours" else None
            rows.append(
                Row(f"{title}, {arm}", mean, unit, reference if arm == "ours" else None, ratio,
                    note=f"{len(numbers)} seeds: {spread}")
            )  # fmt: skip
    return rows


WAYS = {  # stages at once (None: what the machine holds), threads of each (None: all cores)
    "side by side": (None, 1),
    "one after another": (1, None),
    "one after another, one thread": (1, 1),
}


def wall(data: Path, options: argparse.Namespace) -> list[Row]:
    """Return the seconds of all stages, trained in each of the `WAYS` in turn."""
    from skyray.runtime import places
    from skyray.training.train import train
    from skyray.training.worker import StageFiles

    name, changes = ARMS[options.arms[0]]
    recipe = load_recipe(name).override([*changes, f"members={options.members}", *options.set])
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    parts: dict[str, dict[str, bytes]] = {}
    for turn, way in itertools.product(range(options.turns), WAYS):
        lanes, threads = WAYS[way]
        begun = time.perf_counter()
        made = train(recipe, str(data), str(options.out / f"wall-{turn}-{way.replace(' ', '-')}"),
                     threads=threads, side_by_side=lanes, progress=False)  # fmt: skip
        seconds[way].append(time.perf_counter() - begun)
        files = StageFiles(places.join(places.home(), "runs", made.run_id))
        stages = sorted({row["stage"] for row in made.history})
        parts[way] = {s: places.read_bytes(files.part_place(s)) for s in stages}
    same = parts["side by side"] == parts["one after another, one thread"]
    ours = statistics.median(seconds["side by side"])
    rows = [Row("side by side", ours, "s", note=f"{len(stages)} stages; training and bundle")]
    for way in list(WAYS)[1:]:
        other = statistics.median(seconds[way])
        rows.append(Row(way, other, "s", ours, other / ours))
    rows.append(Row("same networks, bit by bit", float(same), "", 1.0, float(same), 1.0))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("results/published_training"))
    parser.add_argument("--objects", type=int, default=13000)
    parser.add_argument("--arms", nargs="*", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--members", type=int, default=1, help="redshift networks a class")
    parser.add_argument("--precision", default="float32", choices=["float32", "bf16"])
    parser.add_argument("--set", action="append", default=[], help="change both recipes: key=value")
    parser.add_argument("--threads", type=int, help="CPU threads; default: all cores")
    parser.add_argument("--resume", help="MLflow run id of the first training, interrupted before")
    parser.add_argument("--wall", action="store_true", help="measure the time of all stages")
    parser.add_argument("--turns", type=int, default=1, help="of --wall: medians over so many")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    options.out = options.out.absolute()
    os.environ.setdefault("SKYRAY_HOME", str(options.out / "home"))
    data = options.out / "dataset"
    with ray_session():
        if not Dataset.exists(data):
            simulate(load_card("sdss_dr16"), options.objects, 1, str(data))
        if options.wall:
            rows = wall(data, options)
            finish("All stages on this machine", rows, options.json)
            return
        for arm in options.arms:
            for seed in options.seeds:
                run(arm, seed, data, options)
    finish("Our recipe against the original training", table(options.out), options.json)


if __name__ == "__main__":
    main()
