"""Throughput of ingest against two plain astropy processes that read the same columns.

    python benchmarks/ingest.py [--files DIR] [--count 2000] [--repeats 5] [--json FILE]

Copies of spec files (of DIR, or mock ones) with flux, fibre and position changed are read
alternately by ingest (list, check, label, split, grid, digest, Lance, commit, publish) and by two
processes that open each file with astropy and read flux, loglam, ivar, and_mask and the class and
redshift columns, and do nothing with them. Ray and the processes are started, and have read once,
before the clock. Beside the time on the clock stands the CPU time of all processes, which on a
machine with other work tells more; but an idle Ray uses CPU time as long as it stands there, and
where others hold the machine it stands there longer. So that rate is measured too, and a row says
what is left without it.

Memory: `skyray ingest` as a process of its own, at `count` and a tenth of it; private pages of the
driver, of Ray's workers and of the processes in which they read.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
from astropy.io import fits

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "platform"), str(ROOT / "benchmarks")]

from processes import TOGETHER, PeakMemory, cpu_seconds  # noqa: E402
from report import Row, finish  # noqa: E402

from skyray.cards import load_card  # noqa: E402
from skyray.data.ingest import ingest  # noqa: E402
from skyray.runtime.session import ray_session  # noqa: E402

TARGET = 10.0
MEMORY_LIMIT = 1.15  # at most
FILES_PER_FOLDER = 200
IDLE_SECONDS = 5.0  # in which nothing is asked of Ray
PIXEL_COLUMNS = ("flux", "loglam", "ivar", "and_mask")
ROW_COLUMNS = ("CLASS", "SUBCLASS", "Z", "Z_ERR", "ZWARNING")


def plain_read(paths: list[str]) -> int:
    """Open each file with astropy and read the columns that ingest uses."""
    pixels = 0
    for path in paths:
        with fits.open(path) as hdus:
            arrays = [np.array(hdus[1].data[name]) for name in PIXEL_COLUMNS]
            for name in ROW_COLUMNS:
                hdus[2].data[name][0]
            pixels += arrays[0].size
    return pixels


def make_templates(folder: Path) -> list[Path]:
    """Write one mock spec file a class."""
    from skyray.simulate.spectra import MockSurvey
    from skyray.simulate.survey_files import write_survey_files

    card = load_card("sdss_dr16")
    survey = MockSurvey(card, seed=1)
    return list(
        write_survey_files(card, [survey.spectrum(label, 0) for label in survey.classes], folder)
    )


def copy_changed(templates: list[Path], count: int, folder: Path) -> list[Path]:
    """Write `count` copies of the templates in turn, each a distinct object with its own noise."""
    random = np.random.default_rng(0)
    made = []
    contents = [_Template(path) for path in templates]
    for number in range(count):
        name = f"spec-{1 + number // 1000:04d}-50000-{1 + number % 1000:04d}.fits"
        path = folder / f"{number // FILES_PER_FOLDER:04d}" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(contents[number % len(contents)].changed(number, random))
        made.append(path)
    return made


class _Template:
    """A spec file as bytes, and where its flux and identity lie."""

    def __init__(self, path: Path):
        self._bytes = path.read_bytes()
        with fits.open(path) as hdus:
            self._flux = _place(hdus[1], "flux")
            self._pixels, self._stride = len(hdus[1].data), hdus[1].data.dtype.itemsize
            self._row = {
                name.upper(): (_place(hdus[2], name), hdus[2].data.dtype[name].newbyteorder(">"))
                for name in hdus[2].columns.names
                if name.upper() in ("PLATE", "MJD", "FIBERID", "PLUG_RA", "RA")
            }

    def changed(self, number: int, random: np.random.Generator) -> bytes:
        content = bytearray(self._bytes)
        flux = np.ndarray(self._pixels, ">f4", content, self._flux, (self._stride,))
        flux *= random.normal(1.0, 0.05, self._pixels).astype("f4")
        values = {"PLATE": 1 + number // 1000, "MJD": 50000, "FIBERID": 1 + number % 1000}
        position = 360.0 * random.random()
        for name, (offset, dtype) in self._row.items():
            np.ndarray(1, dtype, content, offset)[0] = values.get(name, position)
        header = bytes(content[:28800]).partition(b"END" + b" " * 77)[0]
        where = header.find(b"PLUG_RA =")
        if where >= 0:
            content[where + 10 : where + 30] = f"{position:20.8f}".encode()
        return bytes(content)


def _place(hdu: fits.BinTableHDU, name: str) -> int:
    column = [found.lower() for found in hdu.columns.names].index(name.lower())
    return hdu.fileinfo()["datLoc"] + hdu.data.dtype.fields[hdu.columns.names[column]][1]


def run(files: Path | None, count: int, repeats: int) -> list[Row]:
    with tempfile.TemporaryDirectory(prefix="skyray-bench-") as name:
        folder = Path(name)
        templates = sorted(files.rglob("spec-*.fits")) if files else make_templates(folder / "mock")
        paths = [str(p) for p in copy_changed(templates, count, folder / "files")]
        times = _times(folder, paths, repeats)
        rows = _rows(times, count, "real files" if files else "mock files")
        return rows + _memory(folder, count)


def _times(folder: Path, paths: list[str], repeats: int) -> dict[str, list[float]]:
    chunks = [paths[i : i + 50] for i in range(0, len(paths), 50)]
    times: dict[str, list[float]] = defaultdict(list)
    with multiprocessing.get_context("spawn").Pool(2) as pool, ray_session():
        readers = [process.pid for process in multiprocessing.active_children()]
        ours = [os.getpid()]  # Ray's processes are this one's children; the readers are too
        for repeat in range(repeats + 1):
            work = {
                "plain": (readers, lambda: pool.map(plain_read, chunks, chunksize=1)),
                "ingest": (ours, lambda n=repeat: _ingest(folder, f"out{n}", len(paths))),
            }
            for kind, (pids, call) in work.items():
                cpu, start = cpu_seconds(pids), time.perf_counter()
                call()
                if repeat:  # the first round warms Ray's workers and the page cache
                    times[kind].append(time.perf_counter() - start)
                    times[f"{kind} CPU"].append(cpu_seconds(pids) - cpu)
            cpu, start = cpu_seconds(ours), time.perf_counter()
            time.sleep(IDLE_SECONDS)
            idle = (cpu_seconds(ours) - cpu) / (time.perf_counter() - start)
            if repeat:
                times["plain busy"].append(times["plain CPU"][-1])
                times["ingest busy"].append(times["ingest CPU"][-1] - idle * times["ingest"][-1])
    return times


def _ingest(folder: Path, out: str, count: int) -> None:
    card, files = load_card("sdss_dr16"), [folder / "files"]
    manifest = ingest(card, files, folder / out, apply_cuts=False, progress=False).manifest
    if manifest.rows_written != count:
        raise RuntimeError(f"expected {count} rows, found {manifest.quarantine_reasons}")


def _rows(times: dict[str, list[float]], count: int, kind: str) -> list[Row]:
    rows = []
    kinds = (
        ("ingest", "files/s", ""), ("CPU time", "files/CPU s", " CPU"),
        ("CPU time but Ray's when idle", "files/CPU s", " busy"),
    )  # fmt: skip
    for name, unit, suffix in kinds:
        plain, ours = times[f"plain{suffix}"], times[f"ingest{suffix}"]
        pairs = [p / o for p, o in zip(plain, ours, strict=True)]
        ratio = statistics.median(plain) / statistics.median(ours)
        note = (
            f"{count} {kind}, {len(pairs)} interleaved pairs, pair ratios "
            f"{min(pairs):.2f} to {max(pairs):.2f}"
        )
        speeds = [count / statistics.median(taken) for taken in (ours, plain)]
        rows.append(Row(name, speeds[0], unit, speeds[1], ratio, TARGET, note))
    return rows


def _memory(folder: Path, count: int) -> list[Row]:
    peaks = []
    for number, part in enumerate((count // 10, count)):
        sources = [folder / "files" / f"{n:04d}" for n in range(-(-part // FILES_PER_FOLDER))]
        out = folder / f"memory{number}"
        command = [
            sys.executable,
            "-m",
            "skyray.cli",
            "ingest",
            "sdss_dr16",
            *sources,
            "--out",
            out,
        ]
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "platform")}
        with subprocess.Popen(
            [str(word) for word in command], env=environment, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as driver, PeakMemory(driver.pid) as memory:  # fmt: skip
            if driver.wait():
                raise RuntimeError(f"skyray ingest ended with {driver.returncode}")
        peaks.append(memory.peaks)
    note = f"peak of private pages, {count} files against {count // 10}"
    shared = "peak of the raylet's shared memory"
    return [
        Row(f"memory of {kind}", peaks[1][kind], "MiB", peaks[0][kind],
            peaks[1][kind] / peaks[0][kind], limit, why)
        for kind, limit, why in (("driver", MEMORY_LIMIT, note), ("worker", MEMORY_LIMIT, note),
                                 ("decoder", MEMORY_LIMIT, note), (TOGETHER, None, note),
                                 ("object store", None, shared))
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=Path, help="folder of spec files to copy; default: mock")
    parser.add_argument("--count", type=int, default=2000, help="files to read")
    parser.add_argument("--repeats", type=int, default=5, help="pairs of runs")
    parser.add_argument("--json", type=Path, help="write the rows here")
    arguments = parser.parse_args()
    rows = run(arguments.files, arguments.count, arguments.repeats)
    finish("Ingest against two plain astropy processes", rows, arguments.json)


if __name__ == "__main__":
    main()
