"""Peak memory of training on a survey and on ten times as much of it, through all stages.

    python benchmarks/train_memory.py [--rows 600] [--epochs 1] [--json FILE]

`skyray train outliers/desi_bgs_laptop` as a process of its own with a private Ray: autoencoder,
invariance, and the flow on latents that the frozen encoder makes. Rows are read batch by batch
(``memory_bytes=0``); by default rows that take no more than 1 GiB are held in memory, which is
bounded too. Memory is measured as in `memory.py`.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "platform"), str(ROOT / "benchmarks")]

from memory import LIMIT, make_dataset, peak_of  # noqa: E402
from report import Row, finish  # noqa: E402

from skyray.cards import load_card  # noqa: E402

RECIPE = "outliers/desi_bgs_laptop"
PHASES = ("train", "train_invariance", "train_flow")


def settings(epochs: int) -> list[str]:
    changes = [f"{p}.{key}" for p in PHASES for key in (f"epochs={epochs}", "memory_bytes=0")]
    return [part for change in changes for part in ("--set", change)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=600, help="rows of the smaller survey")
    parser.add_argument("--epochs", type=int, default=1, help="of every stage")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    peaks = {}
    with tempfile.TemporaryDirectory(prefix="skyray-bench-") as folder:
        os.environ["SKYRAY_HOME"] = f"{folder}/home"
        for rows in (options.rows, 10 * options.rows):
            data = make_dataset(load_card("desi_bgs"), rows, Path(folder, f"{rows}")).uri
            peaks[rows] = peak_of(
                ["train", RECIPE, "--data", data, "--out", f"{folder}/bundle-{rows}",
                 *settings(options.epochs)]
            )  # fmt: skip
    one, ten = peaks.values()
    note = f"MiB at {10 * options.rows} rows against {options.rows}"
    rows = [
        Row(f"train: {kind}", ten[kind], "MiB", one[kind], ten[kind] / one[kind],
            None if kind == "object store" else LIMIT, note)
        for kind in ("driver", "worker", "object store")
    ]  # fmt: skip
    finish("Memory of training at ten times the data", rows, options.json)


if __name__ == "__main__":
    main()
