"""Peak memory of `skyray predict` and `skyray evaluate` on a survey and on ten times as much of it.

    python benchmarks/memory.py [--rows 5000] [--json FILE]

Spectra of 200 pixels, made of mock SDSS ones and noise, and a small redshift network trained on 600
of them. Each verb runs as a process of its own with a private Ray, on `rows` and on ten times as
many; the private pages (unique set size) of the driver and of Ray's workers are looked at ten times
a second. The object store is counted apart: it is shared memory, and bounded.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "platform"), str(ROOT / "benchmarks")]

from processes import PeakMemory  # noqa: E402
from report import Row, finish  # noqa: E402

from skyray.cards import Card, load_card  # noqa: E402
from skyray.data.dataset import Dataset  # noqa: E402
from skyray.data.derive import append_rows, commit_rows, derived_job  # noqa: E402
from skyray.data.outcomes import table_of  # noqa: E402
from skyray.data.rows import row_of, schema_of  # noqa: E402
from skyray.families.base import load_recipe  # noqa: E402
from skyray.records import SPLITS  # noqa: E402
from skyray.runtime.session import ray_session  # noqa: E402
from skyray.simulate.spectra import MockSurvey  # noqa: E402
from skyray.training.train import train  # noqa: E402

LIMIT = 1.15  # at most
TRAINING_ROWS = 600
_GRID = ("grid.start=3.55", "grid.step=0.0024", "grid.size=200")
_NETWORK = (
    "network.widths=[4,8,8,16,16]", "network.dense=16", "input.step=5.0", "input.pixels=1001",
    "members=2", "train.epochs=2", "train.batch_size=32", "train_redshift.epochs=2",
    "train_redshift.batch_size=32",
)  # fmt: skip
_ROWS_PER_FILE = 2000


def make_dataset(card: Card, count: int, out: Path) -> Dataset:
    """Write a dataset of so many spectra: mock ones with noise, redshift and place of their own."""
    random, survey = np.random.default_rng(count), MockSurvey(card, seed=1)
    templates = [row_of(card, survey.spectrum(label, 0), False) for label in survey.classes]
    job, fragments = derived_job(card, str(out)), []
    for start in range(0, count, _ROWS_PER_FILE):
        rows = []
        for number in range(start, min(count, start + _ROWS_PER_FILE)):
            row, name = templates[number % len(templates)], f"mock-{number:07d}"
            noise = random.normal(0.0, 0.2 * row["flux"].std(), len(row["flux"]))
            names = {"observation_id": name, "object_id": name, "object_key": name}
            split = SPLITS[(number % 10 > 7) + (number % 10 > 8)]
            flux = row["flux"] + noise.astype(np.float32)
            sky = {"ra": 360 * random.random(), "dec": 80 * random.random()}
            rows.append({**row, **names, **sky, "split": split, "flux": flux})
        fragments += append_rows(job, table_of(rows, schema_of(card)))
    return commit_rows(job, fragments)


def run(folder: Path, count: int) -> Iterator[Row]:
    card = load_card("sdss_coarse").override(_GRID)
    small = make_dataset(card, TRAINING_ROWS, folder / "training")
    recipe = load_recipe("redshift/sdss_coarse_laptop").override(_NETWORK)
    bundle = folder / "bundle"
    with ray_session():
        train(recipe, small.uri, str(bundle), progress=False)
    surveys = {size: make_dataset(card, size, folder / f"{size}") for size in (count, 10 * count)}
    for verb, options in (("predict", ()), ("evaluate", ("--split", "all"))):
        peaks, seconds = {}, {}
        for size, survey in surveys.items():
            data = [survey.uri] if verb == "predict" else ["--data", survey.uri]
            out = folder / f"{verb}-{size}"
            begun = time.perf_counter()
            peaks[size] = peak_of([verb, str(bundle), *data, "--out", str(out), *options])
            seconds[size] = time.perf_counter() - begun
        yield from _rows(verb, count, peaks, seconds)


def peak_of(arguments: list[str]) -> Counter[str]:
    """Run a verb of skyray and return the peaks of its memory, MiB."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "platform")}
    command = [sys.executable, "-m", "skyray.cli", *arguments]
    with tempfile.TemporaryFile("w+") as errors:
        with (
            subprocess.Popen(
                command, env=environment, stdout=subprocess.DEVNULL, stderr=errors
            ) as driver,
            PeakMemory(driver.pid) as memory,
        ):
            code = driver.wait()
        errors.seek(0)
        if code:
            raise RuntimeError(f"skyray {' '.join(arguments)}: {errors.read()[-3000:]}")
    return memory.peaks


def _rows(verb: str, count: int, peaks: dict, seconds: dict) -> Iterator[Row]:
    one, ten = peaks[count], peaks[10 * count]
    for kind in ("driver", "worker", "object store"):
        limit = None if kind == "object store" else LIMIT
        note = f"MiB at {10 * count} rows against {count}"
        if kind == "driver":
            note += f"; {seconds[10 * count]:.0f} s against {seconds[count]:.0f} s"
        yield Row(
            f"{verb}: {kind}", ten[kind], "MiB", one[kind], ten[kind] / one[kind], limit, note
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=5000, help="rows of the smaller survey")
    parser.add_argument("--json", type=Path, help="write the rows here")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="skyray-bench-") as folder:
        os.environ["SKYRAY_HOME"] = str(Path(folder) / "home")
        rows = list(run(Path(folder), arguments.rows))
    finish("Memory at ten times the data", rows, arguments.json)


if __name__ == "__main__":
    main()
