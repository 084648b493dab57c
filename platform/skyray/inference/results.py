"""Results tables: what the workers of a job wrote about the rows of a dataset, piece by piece.

The rows of a dataset version, in their order, are cut into pieces of equal size; a piece is one
Parquet file, written whole or not at all by the worker that has its rows. Its name follows from its
rows: what is done twice is written twice under one name, so that a job killed at any moment goes
on with the pieces that are missing and ends as an undisturbed one.

    RESULTS/_about.json                    what the table is of
    RESULTS/_pieces/piece-00000012.parquet
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from skyray.data.dataset import table_to_columns
from skyray.families.base import Columns
from skyray.records import tensor_array
from skyray.runtime import places

ABOUT = "_about.json"
_PIECES = "_pieces"  # readers of Parquet folders pass over names that begin so
_PIECE = re.compile(r"piece-(\d{8})\.parquet")
_PIECE_BYTES = 32 << 20
_LEAST, _MOST = 16, 8192
_TEXT_BYTES = 32
_TASK = "_task"


class OtherResults(ValueError):
    """A place holds results of another bundle, dataset or question."""


@dataclass(frozen=True)
class Results:
    """A results table of `rows` rows in pieces of `size` rows; the last one may be shorter.

    `finished` ones have become a catalogue in the same folder, and have no pieces any more.
    """

    uri: str
    rows: int
    size: int
    finished: bool = False

    @classmethod
    def claim(
        cls, uri: str, about: dict[str, Any], rows: int, size: int, replace: bool = False
    ) -> Results:
        """Begin a results table, or go on with the one at `uri`.

        Parameters
        ----------
        about : dict
            What its rows follow from, as JSON: bundle, dataset version, columns.
        replace : bool
            Whether a table of something else is deleted.

        Raises
        ------
        OtherResults
            If the table there is of something else and not to be replaced.
        """
        expected = {**about, "rows": rows, "piece_rows": size}
        place = places.join(uri, ABOUT)
        found = places.read_json(place) if places.exists(place) else {}
        other = [name for name in expected if found and found.get(name) != expected[name]]
        if other and not replace:
            raise OtherResults(
                f"{uri}: holds results of other work: "
                + "; ".join(f"{n}: expected {expected[n]}, found {found.get(n)}" for n in other)
                + ". Choose another --out, or remove these"
            )
        if other:
            places.remove(uri)
        if other or not found:
            places.write_json(place, expected)
        return cls(uri, rows, size, not other and "parts" in found)

    @property
    def count(self) -> int:
        """Return the number of pieces."""
        return -(-self.rows // self.size)

    def piece(self, number: int) -> str:
        """Return the place of a piece."""
        return places.join(self.uri, _PIECES, f"piece-{number:08d}.parquet")

    def rows_of(self, number: int) -> int:
        """Return how many rows a piece holds."""
        return min(self.size, self.rows - number * self.size)

    def missing(self) -> np.ndarray:
        """Return the numbers of the pieces that are not there yet, int64, ascending."""
        if self.finished:
            return np.zeros(0, np.int64)
        filesystem, path = places.resolve(places.join(self.uri, _PIECES))
        listing = filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True))
        names = (_PIECE.fullmatch(info.base_name) for info in listing)
        there = np.fromiter((int(name[1]) for name in names if name), np.int64)
        return np.setdiff1d(np.arange(self.count), there)

    def write(self, number: int, columns: Columns) -> int:
        """Write a piece, whole or not at all, and return its rows.

        Raises
        ------
        RuntimeError
            If these are not all rows of the piece.
        """
        table = _table(columns)
        if table.num_rows != self.rows_of(number):
            raise RuntimeError(f"{self.piece(number)}: expected {self.rows_of(number)} rows, "
                               f"found {table.num_rows}")  # fmt: skip
        content = io.BytesIO()
        pq.write_table(table, content, compression="zstd", compression_level=1)
        places.write_bytes(self.piece(number), content.getvalue())
        return table.num_rows

    def read(self, number: int, columns: Sequence[str] | None = None) -> pa.Table:
        """Return a piece, or some of its columns."""
        filesystem, path = places.resolve(self.piece(number))
        return pq.read_table(path, columns=columns, filesystem=filesystem, use_threads=False)

    def tables(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """Yield the pieces in their order."""
        for number in range(self.count):
            yield self.read(number, columns)

    def schema(self) -> pa.Schema:
        """Return the Arrow schema of the pieces (read from the first one)."""
        filesystem, path = places.resolve(self.piece(0))
        return pq.read_schema(path, filesystem=filesystem)

    def columns(self, names: Sequence[str]) -> Columns:
        """Return narrow columns of all rows; equal texts share their memory."""
        return narrow_columns(self.tables(list(names)))

    def narrow(self) -> list[str]:
        """Return the names of the columns that hold one value a row."""
        return [f.name for f in self.schema() if not isinstance(f.type, pa.FixedShapeTensorType)]

    def take(self, rows: np.ndarray, columns: Sequence[str] | None = None) -> Columns:
        """Return some rows by their positions, ascending, picked out by the workers.

        Ray must be running; only these rows reach the caller.
        """
        numbers = np.unique(rows // self.size)

        def pick(task: int) -> Iterator[pa.Table]:
            start = int(numbers[task]) * self.size
            here = rows[(rows >= start) & (rows < start + self.size)]
            yield self.read(int(numbers[task]), columns).take(pa.array(here - start))

        return table_to_columns(pa.concat_tables(on_workers(len(numbers), pick)))

    def remove_pieces(self) -> None:
        """Delete the pieces, and leave what was made of them."""
        places.remove(places.join(self.uri, _PIECES))


def piece_rows(schema: pa.Schema, columns: Sequence[str], rows: int) -> int:
    """Return how many rows a piece takes when these columns are read: some 32 MB.

    `rows` are those of the whole table, which is cut into pieces of nearly one size.
    """
    width = row_bytes(schema, columns)
    most = min(_MOST, max(_LEAST, _PIECE_BYTES // width))
    return max(1, -(-rows // max(1, -(-rows // most))))


def row_bytes(schema: pa.Schema, columns: Sequence[str] | None = None) -> int:
    """Return about how many bytes a row of some columns takes in memory."""
    names = schema.names if columns is None else set(columns)
    return max(1, sum(_width(schema.field(name).type) for name in names))


def _width(kind: pa.DataType) -> int:
    if isinstance(kind, pa.FixedShapeTensorType):
        return int(np.prod(kind.shape)) * _width(kind.value_type)
    try:
        return max(1, kind.bit_width // 8)
    except ValueError:
        return _TEXT_BYTES


def _table(columns: Columns) -> pa.Table:
    """Return numpy columns as Arrow; arrays [N, ...] as tensor columns."""
    arrays = {}
    for name, values in columns.items():
        values = np.asarray(values)
        if values.ndim > 1:
            arrays[name] = tensor_array(values, pa.from_numpy_dtype(values.dtype))
        elif values.dtype == object or values.dtype.kind == "U":
            arrays[name] = pa.array(values.tolist(), pa.string())
        else:
            arrays[name] = pa.array(values)
    return pa.table(arrays)


def on_workers(tasks: int, work: Callable[[int], Iterator[pa.Table]]) -> list[pa.Table]:
    """Return the tables that `work` yields for 0, 1 …, in order, made by the workers.

    A single task is done in this process: its tables come to it anyway.
    """
    if tasks == 1:
        return list(work(0))
    import ray.data

    def run(batch: Columns) -> Iterator[pa.Table]:
        task = int(batch["id"][0])
        for table in work(task):
            yield table.append_column(_TASK, pa.array(np.full(table.num_rows, task)))

    made = ray.data.range(tasks, override_num_blocks=tasks).map_batches(
        run, batch_size=1, batch_format="numpy"
    )
    tables = [t for t in made.iter_batches(batch_size=None, batch_format="pyarrow") if len(t)]
    tables.sort(key=lambda table: table[_TASK][0].as_py())
    return [table.drop_columns(_TASK) for table in tables]


def narrow_columns(tables: Iterable[pa.Table]) -> Columns:
    """Return tables of one value a row as numpy columns; equal texts share their memory."""
    table = pa.concat_tables([_compact(table) for table in tables])
    table = table.unify_dictionaries().combine_chunks()
    found = {}
    for name in table.column_names:
        column = table[name]
        if pa.types.is_dictionary(column.type) and column.num_chunks:
            values = np.array(column.chunk(0).dictionary.to_pylist(), dtype=object)
            found[name] = values[column.chunk(0).indices.to_numpy()]
        else:
            found[name] = table_to_columns(table.select([name]))[name]
    return found


def _compact(table: pa.Table) -> pa.Table:
    """Return a table with its texts as numbers into a dictionary."""
    for index, field in enumerate(table.schema):
        if pa.types.is_string(field.type):
            coded = table.column(index).fill_null("").dictionary_encode()
            table = table.set_column(index, field.name, coded)
    return table
