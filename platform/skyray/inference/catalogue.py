"""Catalogues: one row an object, as Parquet, FITS and (on request) VOTable with units.

The Parquet file carries units and descriptions in its fields' metadata and as a VOTable header
(the VOParquet convention, https://www.ivoa.net/documents/Notes/VOParquet/), which TOPCAT and
astropy read; the FITS file in TUNIT and TCOMM, with checksums.
"""

from __future__ import annotations

import io
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from astropy.io import fits
from astropy.table import Column, Table
from pyarrow import fs

from skyray.families.base import Columns, OutputColumn
from skyray.records import tensor_values
from skyray.runtime import places

_ROWS_PER_GROUP = 65_536


class CatalogueWriter:
    """Writes a catalogue batch by batch with bounded memory; it appears when the block ends well.

    Parameters
    ----------
    base : str
        Path or URI without suffix: ``BASE.parquet``, ``BASE.fits`` and ``BASE.vot`` are written.
    columns : sequence of OutputColumn
        Name, type, unit and meaning of every column, in order.
    votable : bool
        Whether to write a VOTable too (it is built in memory).

    Attributes
    ----------
    rows : int
        Rows written so far.
    files : list of str
        The files, once the block has ended.
    """

    def __init__(self, base: str | os.PathLike, columns: Sequence[OutputColumn], *,
                 votable: bool = False):  # fmt: skip
        names = [column.name for column in columns]
        if len(set(names)) != len(names):
            raise ValueError(f"catalogue {base}: column names are not unique: {names}")
        self._base, self._columns, self._votable = os.fspath(base), list(columns), votable
        self._widths = dict.fromkeys((c.name for c in columns if _is_text(c)), 1)
        self._writer: pq.ParquetWriter | None = None
        self.rows = 0
        self.files: list[str] = []

    def __enter__(self) -> CatalogueWriter:
        filesystem, path = places.resolve(self._base)
        folder = os.path.dirname(path)
        filesystem.create_dir(folder, recursive=True)
        local = isinstance(filesystem, fs.LocalFileSystem)
        self._work = Path(tempfile.mkdtemp(prefix=".catalogue-", dir=folder if local else None))
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None,
                 trace: TracebackType | None) -> None:  # fmt: skip
        try:
            if kind is None:
                self._finish()
        finally:
            if self._writer is not None:
                self._writer.close()
            shutil.rmtree(self._work, ignore_errors=True)

    def write(self, batch: pa.Table | Columns) -> None:
        """Append rows.

        Raises
        ------
        ValueError
            If a described column is missing or cannot be stored as its type.
        """
        table = self._conform(batch)
        if self._writer is None:
            self._open(table.schema)
        self._writer.write_table(table, row_group_size=_ROWS_PER_GROUP)
        self.rows += table.num_rows
        for name in self._widths:
            longest = max((len(text.encode()) for text in table[name].to_pylist()), default=1)
            self._widths[name] = max(self._widths[name], longest)

    def _open(self, schema: pa.Schema) -> None:
        self._writer = pq.ParquetWriter(self._work / "parquet", schema, compression="zstd")

    def _conform(self, batch: pa.Table | Columns) -> pa.Table:
        names = batch.column_names if isinstance(batch, pa.Table) else list(batch)
        missing = [column.name for column in self._columns if column.name not in names]
        if missing:
            raise ValueError(f"catalogue {self._base}: expected columns {missing}, found {names}")
        arrays = [_storable(column, batch[column.name]) for column in self._columns]
        fields = [_field(c, array.type) for c, array in zip(self._columns, arrays, strict=True)]
        metadata = _voparquet(self._columns, [array.type for array in arrays])
        return pa.Table.from_arrays(arrays, schema=pa.schema(fields, metadata=metadata))

    def _finish(self) -> None:
        if self._writer is None:  # an empty catalogue is a catalogue
            self.write({c.name: np.zeros(0, _numpy_type(c)) for c in self._columns})
        self._writer.close()
        made = {"parquet": self._work / "parquet", "fits": self._work / "fits"}
        parquet_to_fits(made["parquet"], made["fits"], self._columns, self._widths)
        if self._votable:
            made["vot"] = self._work / "vot"
            table = _astropy_table(pq.read_table(made["parquet"]), self._columns)
            table.write(made["vot"], format="votable", tabledata_format="binary2")
        self.files = [_publish(path, f"{self._base}.{suffix}") for suffix, path in made.items()]


def write_catalogue(
    base: str | os.PathLike,
    rows: pa.Table | Columns,
    columns: Sequence[OutputColumn],
    *,
    votable: bool = False,
) -> list[str]:
    """Write rows that fit in memory as a catalogue and return its files: see `CatalogueWriter`."""
    with CatalogueWriter(base, columns, votable=votable) as writer:
        writer.write(rows)
    return writer.files


# types ---------------------------------------------------------------------------------------


def _is_text(column: OutputColumn) -> bool:
    return column.dtype in ("str", "string")


def _numpy_type(column: OutputColumn) -> np.dtype:
    return np.dtype("U1") if _is_text(column) else np.dtype(column.dtype)


def _storable(column: OutputColumn, values: pa.ChunkedArray | np.ndarray) -> pa.Array:
    """Return values in the column's declared type; vectors as fixed-size lists."""
    try:
        if _is_text(column):
            words = values.to_pylist() if isinstance(values, pa.ChunkedArray) else values.tolist()
            return pa.array(["" if word is None else str(word) for word in words], pa.string())
        array = _as_numpy(values)
        kind = pa.from_numpy_dtype(column.dtype)
        flat = pa.array(np.ascontiguousarray(array.astype(column.dtype)).reshape(-1), kind)
        if array.ndim == 1:
            return flat
        return pa.FixedSizeListArray.from_arrays(flat, int(np.prod(array.shape[1:])))
    except (TypeError, ValueError, pa.ArrowInvalid) as error:
        raise ValueError(
            f"catalogue column {column.name!r}: expected {column.dtype}: {error}"
        ) from error


def _as_numpy(values: pa.ChunkedArray | np.ndarray) -> np.ndarray:
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


def _voparquet(columns: Sequence[OutputColumn], kinds: Sequence[pa.DataType]) -> Mapping[str, str]:
    empty = [pa.array([], kind) for kind in kinds]
    table = _astropy_table(pa.table(empty, names=[c.name for c in columns]), columns)
    text = io.BytesIO()
    table.write(text, format="votable")
    return {
        "IVOA.VOTable-Parquet.version": "1.0",
        "IVOA.VOTable-Parquet.content": text.getvalue().decode(),
    }


def _astropy_table(rows: pa.Table, columns: Sequence[OutputColumn]) -> Table:
    table = Table()
    for column in columns:
        values = rows[column.name]
        array = np.array(values.to_pylist(), "U") if _is_text(column) else _as_numpy(values)
        unit = column.unit or None
        table[column.name] = Column(array, unit=unit, description=column.description)
    return table


# FITS ----------------------------------------------------------------------------------------


def parquet_to_fits(
    source: Path, target: Path, columns: Sequence[OutputColumn], widths: Mapping[str, int]
) -> None:
    """Write a Parquet catalogue as a FITS binary table, row group by row group.

    Parameters
    ----------
    widths : mapping
        Longest text of every text column, bytes.
    """
    with pq.ParquetFile(source) as parquet:
        record = _record_type(parquet.schema_arrow, columns, widths)
        header = _fits_header(record, columns, parquet.metadata.num_rows)
        stream = fits.StreamingHDU(target, header)
        for group in range(parquet.num_row_groups):
            rows = _records(parquet.read_row_group(group), record, columns)
            if len(rows):
                stream.write(rows.view(np.uint8))
        stream.close()
    with fits.open(target, mode="update") as hdus:
        for hdu in hdus:
            hdu.add_checksum()


def _record_type(
    schema: pa.Schema, columns: Sequence[OutputColumn], widths: Mapping[str, int]
) -> np.dtype:
    parts = []
    for column in columns:
        kind = schema.field(column.name).type
        size = (kind.list_size,) if pa.types.is_fixed_size_list(kind) else ()
        if _is_text(column):
            parts.append((column.name, f"S{widths[column.name]}", size))
        else:
            parts.append((column.name, _fits_type(np.dtype(column.dtype)), size))
    return np.dtype(parts)


def _fits_type(dtype: np.dtype) -> np.dtype:
    if dtype.kind == "b":
        return np.dtype("S1")  # FITS logicals are the letters T and F
    if dtype.kind == "f" and dtype.itemsize == 2:
        return np.dtype(">f4")
    signed = {("i", 1): "i2", ("u", 2): "i4", ("u", 4): "i8", ("u", 8): "i8"}
    return np.dtype(signed.get((dtype.kind, dtype.itemsize), dtype)).newbyteorder(">")


_FITS_CODES = {"u1": "B", "i2": "I", "i4": "J", "i8": "K", "f4": "E", "f8": "D"}


def _fits_header(record: np.dtype, columns: Sequence[OutputColumn], rows: int) -> fits.Header:
    described = []
    for column in columns:
        base, shape = record[column.name].base, record[column.name].shape
        repeat = int(np.prod(shape, dtype=int))
        if np.dtype(_numpy_type(column)).kind == "b":
            code = f"{repeat}L"
        elif base.kind == "S":
            code = f"{base.itemsize}A"
        else:
            code = f"{repeat}{_FITS_CODES[base.str[1:]]}"
        described.append(fits.Column(column.name, code, unit=column.unit or None))
    header = fits.BinTableHDU.from_columns(described, nrows=0, name="CATALOGUE").header
    header["NAXIS2"] = rows
    for number, column in enumerate(columns, start=1):
        header[f"TCOMM{number}"] = column.description.encode("ascii", "replace").decode()
    header["CHECKSUM"], header["DATASUM"] = "0" * 16, "0"  # room: filled when the data are there
    return header


def _records(table: pa.Table, record: np.dtype, columns: Sequence[OutputColumn]) -> np.ndarray:
    rows = np.zeros(table.num_rows, dtype=record)
    for column in columns:
        values = table[column.name]
        if _is_text(column):
            rows[column.name] = [text.encode() for text in values.to_pylist()]
        elif np.dtype(column.dtype).kind == "b":
            rows[column.name] = np.where(_as_numpy(values), b"T", b"F")
        else:
            rows[column.name] = _as_numpy(values)
    return rows


def _publish(made: Path, uri: str) -> str:
    filesystem, path = places.resolve(uri)
    if isinstance(filesystem, fs.LocalFileSystem):
        os.replace(made, path)
    else:
        with made.open("rb") as source, filesystem.open_output_stream(path) as sink:
            shutil.copyfileobj(source, sink, 1 << 20)
    return uri
