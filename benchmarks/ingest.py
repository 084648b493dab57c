"""Throughput of ingest against two plain astropy processes that read the same columns.

    python benchmarks/ingest.py [--files DIR] [--count 2000] [--repeats 5] [--json FILE]

Copies of spec files (of DIR, or mock ones) with flux, fibre and position changed are read
alternately by ingest (check, label, split, grid, digest, Parquet) and by two processes that open
each file with astropy and read flux, loglam, ivar, and_mask and the class and redshift columns,
and do nothing with them. Ray and the processes are started, and have read once, before the clock.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from astropy.io import fits

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "platform"), str(ROOT / "benchmarks")]

from report import Row, finish  # noqa: E402

from skyray.cards import load_card  # noqa: E402
from skyray.data.ingest import ingest  # noqa: E402
from skyray.runtime.session import ray_session  # noqa: E402

TARGET = 0.9
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
        path = folder / f"spec-{1 + number // 1000:04d}-50000-{1 + number % 1000:04d}.fits"
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
        (folder / "files").mkdir()
        paths = [str(p) for p in copy_changed(templates, count, folder / "files")]
        context = multiprocessing.get_context("spawn")
        with context.Pool(2) as pool, ray_session():
            chunks = [paths[i : i + 50] for i in range(0, count, 50)]
            pool.map(plain_read, chunks)
            times: dict[str, list[float]] = {"plain": [], "ingest": []}
            for repeat in range(repeats + 1):
                plain = _clock(lambda: pool.map(plain_read, chunks, chunksize=1))
                ours = _clock(lambda n=repeat: _ingest(folder / "files", folder / f"out{n}", count))
                if repeat:  # the first round warms Ray's workers and the page cache
                    times["plain"].append(plain)
                    times["ingest"].append(ours)
    return _rows(times, count, "real files" if files else "mock files")


def _clock(work) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _ingest(files: Path, out: Path, count: int) -> None:
    manifest = ingest(
        load_card("sdss_dr16"), [files], out, apply_cuts=False, progress=False
    ).manifest
    if manifest.rows_written != count:
        raise RuntimeError(f"expected {count} rows, found {manifest.quarantine_reasons}")


def _rows(times: dict[str, list[float]], count: int, kind: str) -> list[Row]:
    plain, ours = (count / statistics.median(times[name]) for name in ("plain", "ingest"))
    ratio = statistics.median(times["plain"]) / statistics.median(times["ingest"])
    pairs = [p / o for p, o in zip(times["plain"], times["ingest"], strict=True)]
    note = (
        f"{count} {kind}, {len(pairs)} interleaved pairs, pair ratios "
        f"{min(pairs):.2f} to {max(pairs):.2f}"
    )
    return [Row("ingest", ours, "files/s", plain, ratio, TARGET, note)]


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
