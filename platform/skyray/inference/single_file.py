"""A catalogue as one file, FITS or VOTable, streamed from its parts with bounded memory.

FITS carries units in TUNIT, descriptions in TCOMM, and checksums; VOTable is version 1.4 with its
rows as text (TABLEDATA).
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np
import pyarrow as pa
import ray
from astropy.io import fits

from skyray.families.base import OutputColumn
from skyray.inference.catalogue import (
    Catalogue,
    as_numpy,
    is_text,
    numpy_type,
    votable_header,
)
from skyray.runtime import places

# Above either, one file is written on request only: most programs read such a file whole.
MOST_ROWS = 5_000_000
MOST_BYTES = 2 << 30  # of the Parquet parts


def fits_in_one(catalogue: Catalogue) -> bool:
    """Return whether a catalogue is small enough that one file of it is written unasked."""
    return catalogue.rows <= MOST_ROWS and catalogue.size_bytes() <= MOST_BYTES


def write_single(uri: str, target: str) -> str:
    """Write the catalogue at `uri` as one file in a Ray task and return `target`.

    The name's ending, ``.fits`` or ``.vot``, decides the format.
    """
    return ray.get(_write.remote(uri, target))


@ray.remote(num_cpus=1)
def _write(uri: str, target: str) -> str:
    catalogue = Catalogue.open(uri)
    beside = places.parent(target) if places.is_local(target) else None
    with tempfile.TemporaryDirectory(prefix="_writing-", dir=beside) as folder:
        path = Path(folder, "file")
        (write_votable if target.endswith(".vot") else write_fits)(catalogue, path)
        if beside:
            os.replace(path, target)
        else:
            places.copy(path, target)
    return target


# FITS ----------------------------------------------------------------------------------------


def write_fits(catalogue: Catalogue, path: Path) -> None:
    """Write a catalogue as a FITS binary table, row group by row group."""
    columns, groups = catalogue.columns, catalogue.groups()
    first = next(groups)
    record = _record_type(first.schema, columns, catalogue.widths)
    stream = fits.StreamingHDU(path, _fits_header(record, columns, catalogue.rows))
    for group in _after(first, groups):
        rows = _records(group, record, columns)
        if len(rows):
            stream.write(rows.view(np.uint8))
    stream.close()
    with fits.open(path, mode="update", memmap=True) as hdus:
        for hdu in hdus:
            hdu.add_checksum()


def _after(first: pa.Table, others: Iterator[pa.Table]) -> Iterator[pa.Table]:
    yield first
    yield from others


def _record_type(
    schema: pa.Schema, columns: Sequence[OutputColumn], widths: Mapping[str, int]
) -> np.dtype:
    parts = []
    for column in columns:
        kind = schema.field(column.name).type
        size = (kind.list_size,) if pa.types.is_fixed_size_list(kind) else ()
        if is_text(column):
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
        if numpy_type(column).kind == "b":
            code = f"{repeat}L"
        elif base.kind == "S":
            code = f"{base.itemsize}A"
        else:
            code = f"{repeat}{_FITS_CODES[base.str[1:]]}"
        described.append(fits.Column(column.name, code, unit=column.unit or None))
    header = fits.BinTableHDU.from_columns(described, nrows=0, name="CATALOGUE").header
    header["NAXIS2"] = rows
    for number, column in enumerate(columns, start=1):
        header[f"TCOMM{number}"] = column.description.encode("ascii", "backslashreplace").decode()
    header["CHECKSUM"], header["DATASUM"] = "0" * 16, "0"  # room: filled when the data are there
    return header


def _records(table: pa.Table, record: np.dtype, columns: Sequence[OutputColumn]) -> np.ndarray:
    rows = np.zeros(table.num_rows, dtype=record)
    for column in columns:
        values = table[column.name]
        if is_text(column):
            rows[column.name] = [text.encode() for text in values.to_pylist()]
        elif np.dtype(column.dtype).kind == "b":
            rows[column.name] = np.where(as_numpy(values), b"T", b"F")
        else:
            rows[column.name] = as_numpy(values)
    return rows


# VOTable -------------------------------------------------------------------------------------

_NUMBERS = {"nan": "NaN", "inf": "+Inf", "-inf": "-Inf"}


def write_votable(catalogue: Catalogue, path: Path) -> None:
    """Write a catalogue as a VOTable, row group by row group."""
    columns, groups = catalogue.columns, catalogue.groups()
    first = next(groups)
    head, end, tail = votable_header(columns, first.schema.types).partition("</TABLE>")
    with path.open("w", encoding="utf-8") as file:
        file.write(head + "<DATA>\n<TABLEDATA>\n")
        for group in _after(first, groups):
            cells = [_cells(group[column.name], column) for column in columns]
            file.writelines(
                "<TR>" + "".join(f"<TD>{cell}</TD>" for cell in row) + "</TR>\n"
                for row in zip(*cells, strict=True)
            )
        file.write("</TABLEDATA>\n</DATA>\n" + end + tail)


def _cells(values: pa.ChunkedArray, column: OutputColumn) -> Iterator[str]:
    """Return a column as the texts of its cells; numbers as their shortest exact decimals."""
    if is_text(column):
        return (escape(text) for text in values.to_pylist())
    array = as_numpy(values)
    rows = array.reshape(len(array), int(np.prod(array.shape[1:])))
    if array.dtype.kind == "b":
        rows = rows.astype(np.uint8)  # astropy declares them as bits
    return (" ".join(_NUMBERS.get(text := str(value), text) for value in row) for row in rows)
