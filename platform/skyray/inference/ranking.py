"""Ranks of a results table's rows by a distributed sort: no process holds a column of all rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import ray
import ray.data

from skyray.families.base import Columns
from skyray.inference.results import Results


def ranks(results: Results, columns: Sequence[str]) -> ray.data.Dataset:
    """Return ``row`` and ``rank`` of every row, int64, in the order of the ranks.

    Rank 1 has the largest value of the first column; ties go by the next ones, then by the order of
    the rows. What is not finite comes last.
    """
    keys = [f"key{number}" for number in range(len(columns))]

    def read(batch: Columns) -> Columns:
        number = int(batch["id"][0])
        table = results.read(number, list(columns))
        found = {"row": number * results.size + np.arange(table.num_rows)}
        for key, name in zip(keys, columns, strict=True):
            values = table[name].to_numpy().astype(np.float64)
            found[key] = np.where(np.isnan(values), -np.inf, values)
        return found

    listing = ray.data.range(results.count, override_num_blocks=results.count)
    narrow = listing.map_batches(read, batch_size=1, batch_format="numpy")
    ordered = narrow.sort([*keys, "row"], descending=[True] * len(keys) + [False])
    blocks = ordered.to_arrow_refs()
    rows = ray.get([_rows.remote(block) for block in blocks])
    starts = np.cumsum([0, *rows])
    if starts[-1] != results.rows:
        raise RuntimeError(f"{results.uri}: expected {results.rows} ranks, found {starts[-1]}")
    return ray.data.from_arrow_refs(
        [_ranked.remote(block, int(start)) for block, start in zip(blocks, starts, strict=False)]
    )


@ray.remote(num_cpus=0.5)
def _rows(block: pa.Table) -> int:
    return block.num_rows


@ray.remote(num_cpus=0.5)
def _ranked(block: pa.Table, start: int) -> pa.Table:
    rank = np.arange(start + 1, start + 1 + block.num_rows)
    return pa.table({"row": block["row"], "rank": pa.array(rank)})
