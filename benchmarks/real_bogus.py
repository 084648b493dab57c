"""Real or bogus learned from a few hundred real alerts, on objects never seen, with braai beside.

    python benchmarks/real_bogus.py --alerts TABLE [--braai WEIGHTS] [--splits N] [--json FILE]

TABLE holds ZTF packets (Parquet, see `skyray.readers.ztf`) or is a folder of Avro packets. Labels
are the stream's own deep real/bogus score: real above 0.5, bogus below 0.3 (card
``ztf_real_bogus``), so braai, which made that score, is a reference and not a competitor. Objects
are split, several times, since bogus alerts are few. With --mocks N the network first learns from N
mock alerts.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "platform"), str(ROOT / "benchmarks")]

from report import Row, finish  # noqa: E402

from skyray.analysis.classification import roc_auc  # noqa: E402
from skyray.cards import Card, load_card  # noqa: E402
from skyray.data.dataset import Dataset, table_to_columns  # noqa: E402
from skyray.data.ingest import ingest_source  # noqa: E402
from skyray.data.sources import FileSource  # noqa: E402
from skyray.families.base import load_recipe  # noqa: E402
from skyray.records import Alert  # noqa: E402
from skyray.runtime.session import ray_session  # noqa: E402
from skyray.transforms.alerts import triplet_input  # noqa: E402

RECIPE = "alerts/real_bogus_laptop"
SPLIT = {"train": 0.70, "validation": 0.10, "test": 0.20}
AUC_TARGET, LEAST_TRAINING = 0.95, 300


def card_of_benchmark() -> Card:
    """Return the card with more objects to test on: bogus alerts are few."""
    return load_card("ztf_real_bogus").model_copy(update={"split": SPLIT})


class OtherSplit(FileSource):
    """Survey files whose objects fall into other splits for every number."""

    def __init__(self, card: Card, sources: list[str], number: int):
        super().__init__(card, sources)
        self.number = number

    def read(self, unit):
        for record in super().read(unit):
            if isinstance(record, Alert):
                record = replace(record, source_id=f"{record.source_id}/{self.number}")
            yield record


def trained(options: argparse.Namespace, folder: Path, number: int) -> dict[str, Any]:
    """Split the objects anew, train, and return the metrics of the test objects."""
    from skyray.inference.evaluate import evaluate
    from skyray.training.train import train

    card, real = card_of_benchmark(), str(folder / f"real-{number}")
    ingest_source(card, OtherSplit(card, [options.alerts], number), real)
    changes = [f"seed={number}", *options.set]
    if options.mocks:
        changes.append(f"network.weights={_learned_from_mocks(options, folder)}")
    bundle = str(folder / f"bundle-{number}")
    recipe = load_recipe(options.recipe).override(changes)
    train(recipe, real, bundle, workers=options.workers, threads=options.threads)
    found = evaluate(bundle, real, str(folder / f"scores-{number}"))
    found["training"] = sum(n for k, n in Dataset.open(real).manifest.counts["train"].items() if k)
    if options.braai:
        found["braai"] = braai_auc(options.braai, real)
    return found


def _learned_from_mocks(options: argparse.Namespace, folder: Path) -> Path:
    """Return the weights of a network trained on mock alerts alone; made once."""
    from skyray.bundles.bundle import WEIGHTS_FILE
    from skyray.data.simulate import simulate
    from skyray.training.train import train

    weights = folder / "bundle-mock" / WEIGHTS_FILE
    if not weights.exists():
        mock = str(folder / "mock")
        simulate(load_card("ztf_real_bogus"), options.mocks, 1, mock)
        changes = ["seed=1", *options.set]
        if options.mock_epochs:
            changes.append(f"train.epochs={options.mock_epochs}")
        recipe = load_recipe(options.recipe).override(changes)
        train(recipe, mock, str(weights.parent), workers=options.workers, threads=options.threads)
    return weights


def braai_auc(weights: str, real: str) -> float:
    """Return braai's AUC on the test objects."""
    from braai import braai_scores, load_braai

    names = ["triplet", "stamp_box", "label"]
    tables = [table_to_columns(t) for t in Dataset.open(real).iter_tables(names, "test")]
    columns = {name: np.concatenate([table[name] for table in tables]) for name in names}
    known = columns["label"].astype(str) != ""
    image = triplet_input(columns["triplet"][known], columns["stamp_box"][known])
    score = braai_scores(load_braai(weights), image)
    return roc_auc(score, columns["label"][known].astype(str) == "REAL")


def rows_of(found: list[dict[str, Any]]) -> list[Row]:
    """Return the figures: medians over the splits."""
    auc = np.array([scores["auc"] for scores in found])
    braai = [scores["braai"] for scores in found if "braai" in scores]
    reference = float(np.median(braai)) if braai else None
    middle = float(np.median(auc))
    alerts, bogus = (sum(s[n] for s in found) for n in ("rows", "true_negatives"))
    bogus += sum(s["false_positives"] for s in found)
    note = f"{len(auc)} splits: {auc.min():.3f} to {auc.max():.3f}; {alerts} alerts, {bogus} bogus"
    rows = [
        Row("training alerts (fewest)", min(s["training"] for s in found), "",
            target=LEAST_TRAINING),
        Row("AUC, unseen objects", middle, "", reference,
            middle / reference if reference else None, AUC_TARGET, note),
        Row("calibration error",
            float(np.median([s["expected_calibration_error"] for s in found])), ""),
    ]  # fmt: skip
    if reference is not None:
        note = f"{min(braai):.3f} to {max(braai):.3f}; the labels are its score's"
        rows.append(Row("AUC of braai, the same alerts", reference, "", note=note))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--alerts", help="ZTF packets: a Parquet table or a folder of Avro files")
    parser.add_argument("--braai", help="braai_d6_m9.weights.h5")
    parser.add_argument("--recipe", default=RECIPE)
    parser.add_argument("--splits", type=int, default=5, help="splits of the objects, and seeds")
    parser.add_argument("--mocks", type=int, default=0, help="mock alerts to learn from first")
    parser.add_argument("--mock-epochs", type=int, help="epochs on mocks; default: the recipe's")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--threads", type=int, help="CPU threads a worker; default: all cores")
    parser.add_argument("--set", action="append", default=[], help="change the recipe: key=value")
    parser.add_argument("--out", type=Path, help="keep datasets, bundles and figures here")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if not options.alerts:
        print("skipped: needs real alerts, give --alerts TABLE")
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.out or Path(temporary)).absolute()
        os.environ.setdefault("SKYRAY_HOME", str(folder / "home"))
        with ray_session():
            found = [trained(options, folder, number) for number in range(options.splits)]
        finish("Real or bogus on real ZTF alerts", rows_of(found), options.json)


if __name__ == "__main__":
    main()
