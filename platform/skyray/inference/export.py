"""A dataset as Parquet for other programs: workers write parts, tensors are fixed-size lists."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from skyray.data.dataset import Dataset
from skyray.inference.results import Results, on_workers, piece_rows
from skyray.runtime import places

_PIECES_A_PART = 8  # of some 32 MB; each is a row group


@dataclass(frozen=True)
class ExportResult:
    """Where the parts are, and how many rows they hold."""

    parquet: str
    version: int
    rows: int
    parts: int


def export_parquet(data: str, out: str, version: int | None = None) -> ExportResult:
    """Write a dataset version to ``OUT/part-….parquet``; Ray must be running.

    Arrays become fixed-size lists, their shapes metadata of the field. Parts that are there already
    are not written again.

    Raises
    ------
    OtherResults
        If `out` holds another dataset or version.
    """
    dataset = Dataset.open(data, version)
    step = piece_rows(dataset.schema, dataset.schema.names, dataset.count())
    about = {"data": dataset.uri, "version": dataset.version,
             "fingerprint": dataset.manifest.fingerprint}  # fmt: skip
    parts = Results.claim(places.absolute(out), about, dataset.count(), step * _PIECES_A_PART)

    def write(number: int) -> Iterator[pa.Table]:
        target = places.join(parts.uri, f"part-{number:05d}.parquet")
        if not places.exists(target):
            rows = number * parts.size + np.arange(parts.rows_of(number))
            _write_part(dataset, rows, step, target)
        with pq.ParquetFile(places.read_stream(target)) as file:
            yield pa.table({"rows": [file.metadata.num_rows]})

    written = on_workers(parts.count, write) if parts.count else []
    rows = sum(table["rows"][0].as_py() for table in written)
    if rows != dataset.count():
        raise RuntimeError(f"{out}: expected {dataset.count()} rows, found {rows}")
    return ExportResult(parts.uri, dataset.version, rows, parts.count)


def _write_part(dataset: Dataset, rows: np.ndarray, step: int, target: str) -> None:
    schema = plain_lists(dataset.take(rows[:0])).schema
    with (
        places.write_stream(target) as file,
        pq.ParquetWriter(file, schema, compression="zstd") as writer,
    ):
        for start in range(0, len(rows), step):
            writer.write_table(plain_lists(dataset.take(rows[start : start + step])))


def plain_lists(table: pa.Table) -> pa.Table:
    """Return a table with its tensor columns as fixed-size lists, their shapes as metadata."""
    for position, field in enumerate(table.schema):
        if isinstance(field.type, pa.FixedShapeTensorType):
            column = table.column(position)
            lists = pa.chunked_array(
                [chunk.storage for chunk in column.chunks], field.type.storage_type
            )
            shape = "×".join(map(str, field.type.shape))
            metadata = {**(field.metadata or {}), "shape": shape}
            made = pa.field(field.name, lists.type, metadata=metadata)
            table = table.set_column(position, made, lists)
    return table
