"""The redshifts that GaSNet-II's authors released, through our metrics, beside the paper's numbers.

18,000 rows of their test set, each scored on the networks of its true class. The table is fetched
from the authors' repository (it has no licence, so it is not kept here), or read with --table.
Without network the benchmark is skipped, and says why.

    python benchmarks/released_table.py [--table FILE] [--keep FILE] [--json FILE]
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import requests
from scipy.stats import spearmanr

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "platform"), str(ROOT / "benchmarks")]

from report import Row, finish  # noqa: E402

from skyray.families.redshift import published  # noqa: E402
from skyray.families.redshift.released import URL, read_released, released_scores  # noqa: E402

ROWS = 18_000
# The paper prints two digits: a difference below half of the last one is rounding.
_TOLERANCE = {"delta_z_mean": 0.5e-4, "good_fraction": 0.005, "tau_below_3": 0.005}


def rows_of(columns: dict[str, np.ndarray]) -> list[Row]:
    """Return paper, ours and their difference for every number the paper has of this table."""
    scores = released_scores(columns, published.VALIDATION_MAE)
    found = [Row("rows", len(columns["label"]), "", ROWS, len(columns["label"]) / ROWS, 1.0)]
    found += [_beside(f"mean Δz/(1+z), {name}", scores.get(name), "delta_z_mean", paper)
              for name, paper in published.DELTA_Z.items()]  # fmt: skip
    for score, title, papers in (
        ("good_fraction", "good fraction", published.GOOD),
        ("tau_below_3", "τ < 3", published.TAU_BELOW_3),
    ):
        found += [_beside(f"{title}, {name}", scores["per_class"].get(name), score, paper)
                  for name, paper in papers.items()]  # fmt: skip
    for name, one in scores["per_class"].items():
        here = columns["label"] == name
        rank = spearmanr(columns["snr"][here], columns["redshift_err_true_route"][here]).statistic
        found += [
            Row(f"NMAD, {name}", one["nmad"], ""),
            Row(f"within 1 σ, {name}", one["coverage_1sigma"], "", 0.6827),
            Row(f"robust share, {name}", one["robust_fraction"], ""),
            Row(f"rank correlation of SNR and σ, {name}", float(rank), ""),
        ]
    return found


def _beside(title: str, scores: dict | None, score: str, paper: float) -> Row:
    if scores is None:
        return Row(title, float("nan"), "", paper, note="no rows of this class")
    value = scores[score]
    agrees = abs(value - paper) <= max(_TOLERANCE[score], 0.02 * paper)
    note = f"difference {value - paper:+.4g}, {'agrees' if agrees else 'DIFFERS'}"
    return Row(title, value, "", paper, value / paper, 1.0, note)


def fetched(place: Path) -> str:
    """Write the released table to `place`; return '' or the reason why it could not be had."""
    try:
        answer = requests.get(URL, timeout=60)
        answer.raise_for_status()
    except requests.RequestException as error:
        return f"{URL}: {type(error).__name__}: {error}"
    place.parent.mkdir(parents=True, exist_ok=True)
    half = place.with_name(f"{place.name}.part")
    half.write_bytes(answer.content)
    os.replace(half, place)
    return ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--table", type=Path, help="the released table, where it is there already")
    parser.add_argument("--keep", type=Path, help="where to leave the fetched table")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        table = options.table or options.keep or Path(folder) / "test_results.fits"
        if options.table is None and not table.exists() and (reason := fetched(table)):
            print(f"skipped: the released table cannot be fetched: {reason}")
            return
        rows = rows_of(read_released(table))
    finish("Released redshifts of GaSNet-II through our metrics", rows, options.json)


if __name__ == "__main__":
    main()
