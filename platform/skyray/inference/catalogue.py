"""Catalogues: one row an object, in Parquet parts that workers write, with units.

    CATALOGUE/_about.json          what it is of, its parts and columns; written last
    CATALOGUE/part-00000.parquet   half a million rows at most

Parts carry units and descriptions in their fields' metadata and as a VOTable header (the VOParquet
convention, https://www.ivoa.net/documents/Notes/VOParquet/), which TOPCAT and astropy read; Parquet
readers take the folder as one table. `skyray.inference.catalogue_parts` writes them,
`skyray.inference.single_file` makes one FITS or VOTable file of them, `skyray.inference.hats`
partitions them by sky.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from skyray.families.base import Columns, OutputColumn
from skyray.inference.results import ABOUT, narrow_columns, on_workers
from skyray.records import tensor_values
from skyray.runtime import places


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

    def columns_of(self, names: Sequence[str]) -> Columns:
        """Return columns of one value a row, all rows in order."""
        return narrow_columns(self.groups(list(names)))

    def select(
        self, pick: Callable[[pa.Table], pa.Table], columns: Sequence[str] | None = None
    ) -> pa.Table:
        """Return what the workers pick out of the row groups, in order; Ray must be running.

        Parameters
        ----------
        pick : callable
            Table of a row group, with its rows' ``position`` in the catalogue → table.
        columns : sequence of str, optional
            Columns it is given; default all.
        """
        starts = np.cumsum([0, *(rows for _, rows in self.parts)])

        def run(number: int) -> Iterator[pa.Table]:
            start = int(starts[number])
            for group in self._groups_of(number, columns):
                rows = pa.array(np.arange(start, start + group.num_rows))
                yield pick(group.append_column("position", rows))
                start += group.num_rows

        if tables := on_workers(len(self.parts), run):
            return pa.concat_tables(tables)
        nothing = next(self.groups(columns)).slice(0, 0)
        return pick(nothing.append_column("position", pa.array([], pa.int64())))

    def groups(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """Yield the rows in order, one row group at a time."""
        for number in range(len(self.parts)):
            yield from self._groups_of(number, columns)

    def _groups_of(self, number: int, columns: Sequence[str] | None) -> Iterator[pa.Table]:
        filesystem, path = places.resolve(self.files()[number])
        with pq.ParquetFile(path, filesystem=filesystem) as part:
            for group in range(part.num_row_groups):
                yield part.read_row_group(group, columns=columns, use_threads=False)


# columns ---------------------------------------------------------------------------------------


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


def voparquet(columns: Sequence[OutputColumn], kinds: Sequence[pa.DataType]) -> dict[str, str]:
    """Return the metadata by which a Parquet file is a VOTable too."""
    return {
        "IVOA.VOTable-Parquet.version": "1.0",
        "IVOA.VOTable-Parquet.content": votable_header(columns, kinds),
    }


def votable_header(columns: Sequence[OutputColumn], kinds: Sequence[pa.DataType]) -> str:
    """Return the VOTable of a catalogue without its rows."""
    from astropy.io.votable import from_table
    from astropy.table import Column, Table

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
