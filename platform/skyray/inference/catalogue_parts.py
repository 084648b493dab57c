"""Writing a catalogue: workers join the pieces of a results table to parts."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray.data

from skyray.families.base import OutputColumn
from skyray.inference.catalogue import Catalogue, conform, is_text, numpy_type, voparquet
from skyray.inference.results import ABOUT, Results
from skyray.runtime import places

PART_ROWS = 500_000
_ROWS_PER_GROUP, _BYTES_PER_GROUP = 65_536, 64 << 20
Extend = Callable[[int, pa.Table], pa.Table]


def write_catalogue(
    results: Results,
    described: Sequence[OutputColumn],
    extend: Extend | None = None,
    beside: ray.data.Dataset | None = None,
    out: str | None = None,
) -> Catalogue:
    """Turn a results table into a catalogue in its folder; Ray must be running.

    Workers join the pieces to parts. When all parts are there, ``_about.json`` names them and the
    pieces are deleted; a job killed before that writes the parts again.

    Parameters
    ----------
    described : sequence of OutputColumn
        Name, type, unit and meaning of every column, in order.
    extend : callable, optional
        (piece number, its table) → the table with further columns.
    beside : ray.data.Dataset, optional
        Further columns of all rows in any order, found by the column ``row``.
    out : str, optional
        Another folder for the catalogue; the results keep their pieces then.

    Raises
    ------
    ValueError
        If a described column is missing or cannot be stored as its type, or names repeat.
    """
    uri = out or results.uri
    if out and Catalogue.exists(out):
        return Catalogue.open(out)
    if results.finished:
        results.remove_pieces()  # of a job that was killed just before it did so
        return Catalogue.open(results.uri)
    names = [column.name for column in described]
    if len(set(names)) != len(names):
        raise ValueError(f"catalogue {results.uri}: column names are not unique: {names}")
    pieces = max(1, PART_ROWS // results.size)
    count = max(1, -(-results.count // pieces))

    def write(number: int, further: pa.Table | None) -> dict[str, int]:
        chosen = range(number * pieces, min((number + 1) * pieces, results.count))
        tables = (_piece(results, piece, chosen[0], extend, further) for piece in chosen)
        rows, widths = write_part(part_uri(uri, number), tables, described)
        return {"part": number, "rows": rows, **{f"width/{n}": w for n, w in widths.items()}}

    if beside is None or not results.rows:
        listing = ray.data.range(count, override_num_blocks=count)
        written = listing.map(lambda row: write(int(row["id"]), None))
    else:
        written = _by_part(beside, pieces * results.size, count).map_groups(
            lambda group: pa.Table.from_pylist(
                [write(group["part"][0].as_py(), group.drop_columns("part").sort_by("row"))]
            ),
            batch_format="pyarrow",
        )
    made = sorted(written.take_all(), key=lambda row: row["part"])
    if (rows := sum(row["rows"] for row in made)) != results.rows:
        raise RuntimeError(f"{results.uri}: expected {results.rows} rows, found {rows}")
    catalogue = publish(uri, described, made)
    if out is None:
        results.remove_pieces()
    return catalogue


def _by_part(beside: ray.data.Dataset, rows: int, count: int):
    numbered = beside.map_batches(
        lambda batch: {**batch, "part": batch["row"] // rows}, batch_format="numpy"
    )
    return numbered.groupby("part", num_partitions=count)


def _piece(
    results: Results, number: int, first: int, extend: Extend | None, further: pa.Table | None
) -> pa.Table:
    """Return a piece with its further columns; those of its part begin with piece `first`."""
    table = results.read(number)
    if further is not None:
        rows = further.slice((number - first) * results.size, table.num_rows)
        start = number * results.size
        if not np.array_equal(rows["row"].to_numpy(), np.arange(start, start + table.num_rows)):
            raise RuntimeError(f"{results.piece(number)}: further columns lack rows of it")
        for name in set(rows.column_names) - {"row"}:
            table = table.append_column(name, rows[name])
    return table if extend is None else extend(number, table)


def part_uri(uri: str, number: int) -> str:
    """Return the place of a catalogue's part."""
    return places.join(uri, f"part-{number:05d}.parquet")


def publish(uri: str, described: Sequence[OutputColumn], made: Sequence[Mapping[str, Any]]):
    """Name the parts in ``_about.json``, which makes them a catalogue, and return it."""
    place = places.join(uri, ABOUT)
    about = places.read_json(place) if places.exists(place) else {}
    texts = [column.name for column in described if is_text(column)]
    about["described"] = [asdict(column) for column in described]
    about["parts"] = [(part_uri("", row["part"]).lstrip("/"), int(row["rows"])) for row in made]
    about["widths"] = {n: max((int(row[f"width/{n}"]) for row in made), default=1) for n in texts}
    places.write_json(place, about)
    return Catalogue.open(uri)


def write_part(
    uri: str, tables: Iterator[pa.Table], described: Sequence[OutputColumn]
) -> tuple[int, dict[str, int]]:
    """Write one Parquet file, whole or not at all; return its rows and its texts' widths, bytes."""
    widths = {column.name: 1 for column in described if is_text(column)}
    rows = 0
    batches = _regrouped(conform(table, described, uri) for table in tables)
    first = next(batches, None)
    if first is None:  # an empty catalogue is a catalogue
        first = conform({c.name: np.zeros(0, numpy_type(c)) for c in described}, described, uri)
    schema = first.schema.with_metadata(voparquet(described, first.schema.types))
    with (
        places.write_stream(uri) as file,
        pq.ParquetWriter(file, schema, compression="zstd") as writer,
    ):
        for batch in itertools.chain([first], batches):
            writer.write_table(batch, row_group_size=_ROWS_PER_GROUP)
            rows += batch.num_rows
            for name in widths:
                longest = pc.max(pc.binary_length(batch[name])).as_py() or 1
                widths[name] = max(widths[name], longest)
    return rows, widths


def _regrouped(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """Yield the rows of tables in tables of a row group's size, by rows or by bytes."""
    held, rows, size = [], 0, 0
    for table in tables:
        held.append(table)
        rows, size = rows + table.num_rows, size + table.nbytes
        if rows >= _ROWS_PER_GROUP or size >= _BYTES_PER_GROUP:
            yield pa.concat_tables(held)
            held, rows, size = [], 0, 0
    if held:
        yield pa.concat_tables(held)
