"""Catalogues: one row an object, in Parquet parts that workers write, with units.

    CATALOGUE/_about.json          what it is of, its parts and columns; written last
    CATALOGUE/part-00000.parquet   half a million rows at most

Parts carry units and descriptions in their fields' metadata and as a VOTable header (the VOParquet
convention, https://www.ivoa.net/documents/Notes/VOParquet/), which TOPCAT and astropy read; Parquet
readers take the folder as one table. `skyray.inference.single_file` makes one FITS or VOTable file
of it, `skyray.inference.hats` partitions it by sky.
"""

from __future__ import annotations

import io
import itertools
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from astropy.io.votable import from_table
from astropy.table import Column, Table
from pyarrow import fs

from skyray.families.base import Columns, OutputColumn
from skyray.inference.results import ABOUT, Results
from skyray.records import tensor_values
from skyray.runtime import places

PART_ROWS = 500_000
_ROWS_PER_GROUP = 65_536
Extend = Callable[[int, pa.Table], pa.Table]


class NotACatalogue(ValueError):
    """There is no finished catalogue at a place."""


@dataclass(frozen=True)
class Catalogue:
    """A finished catalogue.

    Attributes
    ----------
    columns : tuple of OutputColumn
    parts : tuple of (str, int)
        Name and rows of every part, in order.
    widths : dict
        Longest text of every text column, bytes.
    """

    uri: str
    columns: tuple[OutputColumn, ...]
    parts: tuple[tuple[str, int], ...]
    widths: Mapping[str, int]

    @staticmethod
    def exists(uri: str) -> bool:
        """Return whether a finished catalogue is there."""
        place = places.join(uri, ABOUT)
        return places.exists(place) and "parts" in places.read_json(place)

    @classmethod
    def open(cls, uri: str) -> Catalogue:
        """Open a catalogue by its folder.

        Raises
        ------
        NotACatalogue
            If none is there, or its job has not finished.
        """
        if not cls.exists(uri):
            raise NotACatalogue(f"{uri}: not a finished catalogue (no {ABOUT} with parts)")
        about = places.read_json(places.join(uri, ABOUT))
        columns = tuple(OutputColumn(**column) for column in about["described"])
        parts = tuple((name, rows) for name, rows in about["parts"])
        return cls(uri, columns, parts, about["widths"])

    @property
    def rows(self) -> int:
        return sum(rows for _, rows in self.parts)

    def files(self) -> list[str]:
        """Return the places of the parts, in order."""
        return [places.join(self.uri, name) for name, _ in self.parts]

    def size_bytes(self) -> int:
        filesystem, root = places.resolve(self.uri)
        paths = [places.join(root, name) for name, _ in self.parts]
        return sum(info.size or 0 for info in filesystem.get_file_info(paths))

    def groups(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """Yield the rows in order, one row group at a time."""
        for uri in self.files():
            filesystem, path = places.resolve(uri)
            with pq.ParquetFile(path, filesystem=filesystem) as part:
                for group in range(part.num_row_groups):
                    yield part.read_row_group(group, columns=columns, use_threads=False)


# writing -------------------------------------------------------------------------------------


def write_catalogue(
    results: Results, described: Sequence[OutputColumn], extend: Extend | None = None
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

    Raises
    ------
    ValueError
        If a described column is missing or cannot be stored as its type, or names repeat.
    """
    import ray.data

    if results.finished:
        results.remove_pieces()  # of a job that was killed just before it did so
        return Catalogue.open(results.uri)
    names = [column.name for column in described]
    if len(set(names)) != len(names):
        raise ValueError(f"catalogue {results.uri}: column names are not unique: {names}")
    pieces = max(1, PART_ROWS // results.size)
    count = max(1, -(-results.count // pieces))

    def write(batch: Columns) -> Columns:
        number = int(batch["id"][0])
        chosen = range(number * pieces, min((number + 1) * pieces, results.count))
        tables = (_piece(results, piece, extend) for piece in chosen)
        rows, widths = write_part(part_uri(results.uri, number), tables, described)
        told = {"part": number, "rows": rows, **{f"width/{n}": w for n, w in widths.items()}}
        return {name: np.array([value]) for name, value in told.items()}

    listing = ray.data.range(count, override_num_blocks=count)
    made = listing.map_batches(write, batch_size=1, batch_format="numpy").take_all()
    made.sort(key=lambda row: row["part"])
    if (rows := sum(row["rows"] for row in made)) != results.rows:
        raise RuntimeError(f"{results.uri}: expected {results.rows} rows, found {rows}")
    catalogue = publish(results.uri, described, made)
    results.remove_pieces()
    return catalogue


def _piece(results: Results, number: int, extend: Extend | None) -> pa.Table:
    table = results.read(number)
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
    schema = first.schema.with_metadata(_voparquet(described, first.schema.types))
    with whole_file(uri) as path, pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for batch in itertools.chain([first], batches):
            writer.write_table(batch, row_group_size=_ROWS_PER_GROUP)
            rows += batch.num_rows
            for name in widths:
                longest = pc.max(pc.binary_length(batch[name])).as_py() or 1
                widths[name] = max(widths[name], longest)
    return rows, widths


def _regrouped(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """Yield the rows of tables in tables of a row group's size."""
    held, rows = [], 0
    for table in tables:
        held.append(table)
        rows += table.num_rows
        if rows >= _ROWS_PER_GROUP:
            yield pa.concat_tables(held)
            held, rows = [], 0
    if held:
        yield pa.concat_tables(held)


@contextmanager
def whole_file(uri: str) -> Iterator[Path]:
    """Yield a local path whose file appears at `uri` when the block ends well."""
    filesystem, path = places.resolve(uri)
    folder = os.path.dirname(path)
    filesystem.create_dir(folder, recursive=True)
    local = isinstance(filesystem, fs.LocalFileSystem)
    work = Path(tempfile.mkdtemp(prefix="_writing-", dir=folder if local else None))
    try:
        yield work / "file"
        if local:
            os.replace(work / "file", path)
        else:
            _upload(work / "file", filesystem, path)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _upload(made: Path, filesystem: fs.FileSystem, path: str) -> None:
    try:
        with made.open("rb") as source, filesystem.open_output_stream(path) as sink:
            shutil.copyfileobj(source, sink, 1 << 20)
    except BaseException:
        filesystem.delete_file(path)  # closing the stream has made a short object of it
        raise


# types ---------------------------------------------------------------------------------------


def conform(batch: pa.Table | Columns, described: Sequence[OutputColumn], where: str) -> pa.Table:
    """Return the described columns in their declared types, with units and descriptions."""
    names = batch.column_names if isinstance(batch, pa.Table) else list(batch)
    missing = [column.name for column in described if column.name not in names]
    if missing:
        raise ValueError(f"catalogue {where}: expected columns {missing}, found {names}")
    arrays = [_storable(column, batch[column.name]) for column in described]
    fields = [_field(c, array.type) for c, array in zip(described, arrays, strict=True)]
    return pa.Table.from_arrays(arrays, schema=pa.schema(fields))


def is_text(column: OutputColumn) -> bool:
    """Return whether a column holds texts."""
    return column.dtype in ("str", "string")


def numpy_type(column: OutputColumn) -> np.dtype:
    """Return the numpy dtype of a column's values."""
    return np.dtype("U1") if is_text(column) else np.dtype(column.dtype)


def _storable(column: OutputColumn, values: pa.ChunkedArray | np.ndarray) -> pa.Array:
    """Return values in the column's declared type; vectors as fixed-size lists."""
    try:
        if is_text(column):
            if isinstance(values, pa.ChunkedArray):
                return pc.fill_null(values.cast(pa.string()), "").combine_chunks()
            words = ["" if word is None else str(word) for word in values.tolist()]
            return pa.array(words, pa.string())
        array = as_numpy(values)
        kind = pa.from_numpy_dtype(column.dtype)
        flat = pa.array(np.ascontiguousarray(array.astype(column.dtype)).reshape(-1), kind)
        if array.ndim == 1:
            return flat
        return pa.FixedSizeListArray.from_arrays(flat, int(np.prod(array.shape[1:])))
    except (TypeError, ValueError, pa.ArrowInvalid) as error:
        raise ValueError(
            f"catalogue column {column.name!r}: expected {column.dtype}: {error}"
        ) from error


def as_numpy(values: pa.ChunkedArray | np.ndarray) -> np.ndarray:
    """Return a column as an array [N] or, of vectors, [N, …]."""
    if not isinstance(values, pa.ChunkedArray):
        return np.asarray(values)
    if isinstance(values.type, pa.BaseExtensionType):
        return tensor_values(values)
    if pa.types.is_fixed_size_list(values.type):
        flat = values.combine_chunks().flatten().to_numpy(zero_copy_only=False)
        return flat.reshape(len(values), values.type.list_size)
    return values.to_numpy()


def _field(column: OutputColumn, kind: pa.DataType) -> pa.Field:
    metadata = {"unit": column.unit, "description": column.description}
    return pa.field(column.name, kind, metadata=metadata)


def _voparquet(columns: Sequence[OutputColumn], kinds: Sequence[pa.DataType]) -> dict[str, str]:
    return {
        "IVOA.VOTable-Parquet.version": "1.0",
        "IVOA.VOTable-Parquet.content": votable_header(columns, kinds),
    }


def votable_header(columns: Sequence[OutputColumn], kinds: Sequence[pa.DataType]) -> str:
    """Return the VOTable of a catalogue without its rows."""
    table = Table()
    for column, kind in zip(columns, kinds, strict=True):
        size = (kind.list_size,) if pa.types.is_fixed_size_list(kind) else ()
        empty = np.zeros((0, *size), numpy_type(column))
        table[column.name] = Column(empty, unit=column.unit or None, description=column.description)
    votable = from_table(table)
    for column, field in zip(columns, votable.get_first_table().fields, strict=True):
        if is_text(column):
            field.arraysize = "*"
    text = io.BytesIO()
    votable.to_xml(text)
    return text.getvalue().decode()
