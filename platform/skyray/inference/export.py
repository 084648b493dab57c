"""A dataset as plain Parquet: parts that any program reads, written by the workers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import ray.data

from skyray.data.dataset import Dataset
from skyray.inference.hats import plain_lists
from skyray.inference.results import piece_rows
from skyray.runtime import places


@dataclass(frozen=True)
class Exported:
    """Where the parts are, how many, and their rows."""

    uri: str
    rows: int
    parts: int


def export_parquet(uri: str, out: str, version: int | None = None) -> Exported:
    """Write ``OUT/part-00000.parquet`` … of a dataset; Ray must be running.

    Tensor columns become lists of one size, their shape in the field's metadata. A part appears
    whole or not at all.

    Raises
    ------
    NotADataset
        If `uri` is none.
    RuntimeError
        If the parts do not hold as many rows as the dataset.
    """
    dataset = Dataset.open(uri, version)
    size = piece_rows(dataset.schema, dataset.schema.names, dataset.count())
    parts = max(1, -(-dataset.count() // size))

    def write(row: dict[str, Any]) -> dict[str, int]:
        number = int(row["id"])
        rows = np.arange(number * size, min((number + 1) * size, dataset.count()))
        table = plain_lists(dataset.take(rows))
        with places.write_stream(places.join(out, f"part-{number:05d}.parquet")) as file:
            pq.write_table(table, file, compression="zstd")
        return {"rows": table.num_rows}

    written = ray.data.range(parts, override_num_blocks=parts).map(write).take_all()
    found = sum(row["rows"] for row in written)
    if found != dataset.count():
        raise RuntimeError(f"{out}: expected {dataset.count()} rows, found {found}")
    return Exported(out, found, parts)
