"""Datasets as Lance tables against the Parquet parts that they were before, on the same rows.

    python benchmarks/tables.py [--rows 6000] [--repeats 7] [--json FILE]

Mock SDSS spectra, each with noise of its own, on the grid of the card sdss_dr16. Both are written
in files of 2,048 rows, in turn; then 128 random rows, a full scan and a scan of one split are read
from both in turn, through `Dataset`. After an append, the version before it is read again: of the
parts, those of the former manifest. All files are in the page cache.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "platform"), str(ROOT / "benchmarks")]

from report import Row, finish  # noqa: E402

from skyray.cards import Card, load_card  # noqa: E402
from skyray.data.dataset import RECORDS, Dataset  # noqa: E402
from skyray.data.derive import derived_job  # noqa: E402
from skyray.data.ingest import ROWS_PER_FILE  # noqa: E402
from skyray.data.outcomes import records_schema, row_digest, table_of  # noqa: E402
from skyray.data.publish import create_dataset, publish  # noqa: E402
from skyray.data.rows import row_of, schema_of  # noqa: E402
from skyray.data.tables import commit_append, write_fragments  # noqa: E402
from skyray.records import SPLITS  # noqa: E402
from skyray.runtime import places  # noqa: E402
from skyray.simulate.spectra import MockSurvey  # noqa: E402

BATCH = 128
TARGETS = {"128 random rows": 5.0, "full scan": 2.0, "write": 2.0}


# the former layout, as commit c290a87 wrote and read it (engine/parts.py, engine/dataset.py) -----

ROWS_PER_GROUP = 256


class Parts:
    """Parquet parts whose row groups hold one split each."""

    def __init__(self, folder: Path, schema: pa.Schema):
        self._folder, self._schema = folder, schema
        self.paths: list[Path] = []
        folder.mkdir()

    def write(self, table: pa.Table) -> None:
        """Write one part."""
        self.paths.append(self._folder / f"{len(self.paths):05d}.parquet")
        tensors = [f for f in self._schema if isinstance(f.type, pa.FixedShapeTensorType)]
        floats = [f.name for f in tensors if pa.types.is_floating(f.type.value_type)]
        with pq.ParquetWriter(
            self.paths[-1], self._schema, compression="zstd", compression_level=1,
            use_dictionary=[f.name for f in self._schema if pa.types.is_string(f.type)],
            use_byte_stream_split=[f"{name}.list.element" for name in floats],
            write_statistics=["split", "label", "redshift"],
        ) as writer:  # fmt: skip
            for split in SPLITS:
                rows = table.filter(pa.compute.equal(table["split"], split))
                for start in range(0, rows.num_rows, ROWS_PER_GROUP):
                    group = rows.slice(start, ROWS_PER_GROUP)
                    writer.write_table(group, row_group_size=group.num_rows)

    def scan(self, split: str | None = None) -> Iterator[pa.Table]:
        """Yield the row groups, of one split or of all."""
        for path in self.paths:
            with pq.ParquetFile(path, pre_buffer=False) as part:
                position = part.schema_arrow.names.index("split")
                for group in range(part.num_row_groups):
                    found = part.metadata.row_group(group).column(position).statistics
                    if split is None or found.min == found.max == split:
                        yield part.read_row_group(group, use_threads=False)

    def take(self, rows: Sequence[int]) -> pa.Table:
        """Return rows by their number; reads the row groups that hold them, and no others."""
        order = np.sort(np.asarray(rows))
        first, found = 0, []
        for path in self.paths:
            with pq.ParquetFile(path, pre_buffer=False) as part:
                for group in range(part.num_row_groups):
                    count = part.metadata.row_group(group).num_rows
                    inside = order[(order >= first) & (order < first + count)] - first
                    if len(inside):
                        table = part.read_row_group(group, use_threads=False)
                        found.append(table.take(pa.array(inside)))
                    first += count
        return pa.concat_tables(found)


# the rows ------------------------------------------------------------------------------------


def make_rows(card: Card, count: int) -> list[pa.Table]:
    """Return tables of the records' schema, `ROWS_PER_FILE` rows each but the last."""
    random, survey = np.random.default_rng(0), MockSurvey(card, seed=1)
    templates = [row_of(card, survey.spectrum(label, 0), False) for label in survey.classes]
    rows = []
    for number in range(count):
        row = dict(templates[number % len(templates)])
        noise = random.normal(1.0, 0.05, (2, len(row["flux"]))).astype(np.float32)
        name = f"mock-{number:07d}"
        row |= {
            "observation_id": name, "object_id": name, "object_key": name,
            "split": SPLITS[number % 10 // 8 + (number % 10 == 9)], "redshift": random.random(),
            "flux": row["flux"] * noise[0], "ivar": row["ivar"] * noise[1],
        }  # fmt: skip
        origin = {
            "ingest_file": f"rows:{name}", "ingest_stamp": "", "ingest_unit": 0, "ingest_row": 0,
            "ingest_rows": 1,
        }  # fmt: skip
        rows.append({**row, **origin, "digest": row_digest(row)})
    schema, step = records_schema(card), ROWS_PER_FILE
    return [table_of(rows[i : i + step], schema) for i in range(0, count, step)]


def write_lance(card: Card, tables: list[pa.Table], out: Path) -> str:
    """Write and commit tables as a dataset's records, file by file."""
    job = derived_job(card, str(out))
    create_dataset(job)
    place = places.join(job.out, RECORDS)
    for table in tables:
        commit_append(place, write_fragments(place, table))
    return job.out


def write_parts(card: Card, tables: list[pa.Table], out: Path) -> Parts:
    parts = Parts(out, schema_of(card))
    for table in tables:
        parts.write(table.select(schema_of(card).names))
    return parts


# figures -------------------------------------------------------------------------------------


class Pairs:
    """Times of two ways to do a thing, taken in turn."""

    def __init__(self, repeats: int):
        self._repeats = repeats

    def figure(
        self,
        name: str,
        rows: int,
        ours: Callable[[int], None],
        former: Callable[[int], None],
        after: Callable[[int], None] = lambda repeat: None,
    ) -> Row:
        times: tuple[list[float], list[float]] = ([], [])
        cpu = [0.0, 0.0]
        for repeat in range(self._repeats + 1):
            for kind, work in enumerate((ours, former)):
                start, used = time.perf_counter(), time.process_time()
                work(repeat)
                if repeat:  # the first warms up
                    times[kind].append(time.perf_counter() - start)
                    cpu[kind] += time.process_time() - used
            after(repeat)
        ratios = [theirs / own for own, theirs in zip(*times, strict=True)]
        note = (
            f"{self._repeats} pairs, ratios {min(ratios):.2f} to {max(ratios):.2f}; "
            f"CPU time {cpu[1] / cpu[0]:.2f}"
        )
        speeds = [rows / statistics.median(taken) for taken in times]
        ratio = speeds[0] / speeds[1]
        return Row(name, speeds[0], "rows/s", speeds[1], ratio, TARGETS.get(name), note)


def run(folder: Path, count: int, repeats: int) -> Iterator[Row]:
    card, pairs = load_card("sdss_dr16"), Pairs(repeats)
    tables = make_rows(card, count)
    yield pairs.figure(
        "write", count,
        lambda n: write_lance(card, tables, folder / f"lance{n}"),
        lambda n: write_parts(card, tables, folder / f"parts{n}"),
        lambda n: [shutil.rmtree(folder / f"{kind}{n}") for kind in ("lance", "parts")],
    )  # fmt: skip
    out = write_lance(card, tables, folder / "lance")
    parts = write_parts(card, tables, folder / "parts")
    dataset, random = publish(derived_job(card, out)), np.random.default_rng(2)
    choices = [random.choice(count, BATCH, replace=False) for _ in range(repeats + 1)]
    yield pairs.figure(
        "128 random rows", BATCH,
        lambda n: _expect(BATCH, [dataset.take(choices[n])]),
        lambda n: _expect(BATCH, [parts.take(choices[n])]),
    )  # fmt: skip
    yield pairs.figure(
        "full scan", count,
        lambda n: _expect(count, dataset.iter_tables()),
        lambda n: _expect(count, parts.scan()),
    )  # fmt: skip
    split = dataset.count("validation")
    yield pairs.figure(
        "scan of a split", split,
        lambda n: _expect(split, dataset.iter_tables(split="validation")),
        lambda n: _expect(split, parts.scan("validation")),
    )  # fmt: skip
    before = list(parts.paths)
    yield from _grown(pairs, card, dataset, parts, tables)
    parts.paths = before
    sizes = (dataset.size_bytes() / 1e6, sum(path.stat().st_size for path in before) / 1e6)
    raw = sum(table.nbytes for table in tables) / 1e6
    yield Row("size on disk", sizes[0], "MB", sizes[1], sizes[0] / sizes[1], None,
              f"in memory {raw:.0f} MB; parts are compressed (zstd)")  # fmt: skip


def _grown(pairs: Pairs, card: Card, dataset: Dataset, parts: Parts, tables) -> Iterator[Row]:
    """Append a file of rows and read what was there before."""
    names = pa.array([f"new-{number}" for number in range(tables[0].num_rows)])
    columns = ("observation_id", "object_id", "object_key", "ingest_file")
    more = tables[0]
    for name in columns:
        more = more.set_column(more.schema.get_field_index(name), more.schema.field(name), names)
    place, count, first = places.join(dataset.uri, RECORDS), dataset.count(), list(parts.paths)
    yield pairs.figure(
        "append", more.num_rows,
        lambda n: commit_append(place, write_fragments(place, more)),
        lambda n: parts.write(more.select(schema_of(card).names)),
    )  # fmt: skip
    parts.paths = first
    yield pairs.figure(
        "snapshot read", count,
        lambda n: _expect(count, Dataset.open(dataset.uri, version=1).iter_tables()),
        lambda n: _expect(count, parts.scan()),
    )  # fmt: skip


def _expect(rows: int, tables) -> None:
    found = sum(table.num_rows for table in tables)
    if found != rows:
        raise RuntimeError(f"expected {rows} rows, found {found}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=6000, help="spectra in the dataset")
    parser.add_argument("--repeats", type=int, default=7, help="pairs of each figure")
    parser.add_argument("--json", type=Path, help="write the rows here")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="skyray-bench-") as folder:
        rows = list(run(Path(folder), arguments.rows, arguments.repeats))
    finish("Lance tables against the former Parquet parts", rows, arguments.json)


if __name__ == "__main__":
    main()
