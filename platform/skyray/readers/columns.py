"""Columns of a FITS, Parquet, CSV or npz file behind one small interface."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv

from skyray.readers.base import SurveyFile
from skyray.readers.fits_bytes import FitsFile, Hdu
from skyray.readers.fits_header import Header, decode_text
from skyray.readers.fits_image import is_fits_name
from skyray.readers.foreign_arrow import ParquetFile
from skyray.records import InvalidRecord

_FITS_BYTES_AT_ONCE = 64 << 20  # of rows; the pixels of one spectrum, a row each, are far less
_ROWS_AT_ONCE = 256  # of a Parquet row group: 256 spectra of 5,000 px in three arrays are 15 MB


@dataclass(frozen=True)
class Columns:
    """Some rows of a table.

    Attributes
    ----------
    source : str
        File, for errors.
    columns : mapping
        Name → numpy array (first axis = rows, or an array all rows share) or Arrow array.
    first_row : int
        Number of the first row in its file.
    header : Header, optional
        FITS keywords, which stand in for columns that do not exist.
    names : sequence of str
        Every column of the file, where `columns` holds only those asked for.
    """

    source: str
    columns: Mapping[str, np.ndarray | pa.Array]
    first_row: int = 0
    header: Header | None = field(default=None, compare=False)
    names: Sequence[str] = ()

    def _column(self, name: str) -> np.ndarray | pa.Array:
        if name not in self.columns:
            found = sorted(self.names or self.columns)[:40]
            raise InvalidRecord(
                "column_missing", f"expected a column {name!r}, found {found}", self.source
            )
        return self.columns[name]

    def rows(self, name: str) -> int:
        return len(self._column(name))

    def array(self, name: str, row: int | None, shared: bool = False) -> np.ndarray:
        """Return the array in a cell; the whole column for row None or a `shared` 1-D array.

        Raises
        ------
        InvalidRecord
            ``column_missing``; ``column_type`` where the cell holds no numbers.
        """
        column = self._column(name)
        if isinstance(column, pa.Array):
            cell = column if row is None else _list_values(column, row)
            values = None if cell is None else cell.to_numpy(zero_copy_only=False)
        else:
            one = shared and column.ndim == 1 and column.dtype != object  # else lists of the heap
            values = column if row is None or one else column[row]
        if isinstance(values, np.ma.MaskedArray):
            values = values.astype(np.float64).filled(np.nan)
        if values is None or np.ndim(values) != 1 or values.dtype.kind not in "fiub":
            found = "none" if values is None else f"{values.dtype} of shape {np.shape(values)}"
            where = self.source if row is None else f"{self.source}#{self.first_row + row}"
            raise InvalidRecord(
                "column_type", f"{name}: expected an array of numbers, found {found}", where
            )
        return values

    def scalar(self, name: str, row: int | None) -> Any:
        """Return a cell as a Python object, bytes as text; None for null. Row None: the first."""
        if name not in self.columns and self.header is not None:
            value = self.header.get(name.upper())
            if value is not None:
                return value
        cell = self._cell(name, row or 0)
        return decode_text(cell.rstrip(b"\x00 ")) if isinstance(cell, bytes) else cell

    def content(self, name: str, row: int) -> bytes | None:
        """Return the bytes of a cell, an encoded image; None for null.

        Raises
        ------
        InvalidRecord
            ``column_missing``; ``column_type`` where it holds something else.
        """
        cell = self._cell(name, row)
        if cell is None or isinstance(cell, bytes):
            return cell
        detail = f"{name}: expected bytes, found {type(cell).__name__}"
        raise InvalidRecord("column_type", detail, f"{self.source}#{self.first_row + row}")

    def _cell(self, name: str, row: int) -> Any:
        cell = self._column(name)[row]
        if isinstance(cell, pa.Scalar):
            return cell.as_py()
        if cell is np.ma.masked:
            return None
        return cell.item() if isinstance(cell, np.generic) else cell


def _list_values(column: pa.Array, row: int) -> pa.Array | None:
    if isinstance(column, pa.ExtensionArray):
        column = column.storage
    cell = column[row]
    return cell.values if isinstance(cell, pa.ListScalar) else None


def parquet_units(file: SurveyFile) -> list[int]:
    """Return the numbers of a Parquet file's row groups.

    Raises
    ------
    InvalidRecord
        ``parquet_invalid``, ``extension_type``.
    """
    with ParquetFile(file.path, file.filesystem) as parquet:
        return list(range(parquet.num_row_groups))


def open_columns(
    file: SurveyFile, unit: int, names: set[str], hdu: str | int | None = None
) -> Iterator[Columns]:
    """Yield the rows of a file in pieces of bounded size (npz and CSV: in one piece).

    Raises
    ------
    InvalidRecord
        ``file_empty``, ``parquet_invalid``, ``extension_type``, ``npz_invalid``, ``csv_invalid``,
        ``format_unknown`` or what `FitsFile` refuses.
    """
    if file.filesystem.get_file_info(file.path).size == 0:
        raise InvalidRecord("file_empty", "expected a table, found 0 bytes", file.path)
    if file.name.endswith(".parquet"):
        yield from _open_parquet(file, unit, names)
    elif file.name.endswith(".npz"):
        yield Columns(file.path, _open_npz(file, names))
    elif file.name.endswith(".csv"):
        yield Columns(file.path, _open_csv(file))
    elif is_fits_name(file.name):
        yield from _open_fits(file, names, hdu)
    else:
        raise InvalidRecord("format_unknown", "expected .parquet, .npz, .csv or .fits", file.path)


def _open_parquet(file: SurveyFile, unit: int, names: set[str]) -> Iterator[Columns]:
    with ParquetFile(file.path, file.filesystem) as parquet:
        first = sum(parquet.metadata.row_group(n).num_rows for n in range(unit))
        wanted = [name for name in parquet.schema_arrow.names if name in names]
        batches = parquet.iter_batches(_ROWS_AT_ONCE, row_groups=[unit], columns=wanted)
        while True:
            try:
                batch = next(batches, None)
            except (pa.ArrowException, OSError) as error:
                raise InvalidRecord("parquet_invalid", str(error), file.path) from None
            if batch is None:
                return
            columns = dict(zip(batch.schema.names, batch.columns, strict=True))
            yield Columns(file.path, columns, first)
            first += len(batch)


def _open_npz(file: SurveyFile, names: set[str]) -> dict[str, np.ndarray]:
    try:
        with np.load(io.BytesIO(file.read_bytes()), allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files if name in names}
    except (zipfile.BadZipFile, ValueError, OSError, EOFError) as error:
        raise InvalidRecord("npz_invalid", str(error), file.path) from None


def _open_csv(file: SurveyFile) -> dict[str, pa.Array]:
    try:
        table = pa.csv.read_csv(io.BytesIO(file.read_bytes()))
    except pa.ArrowException as error:
        raise InvalidRecord("csv_invalid", str(error), file.path) from None
    return {name: table[name].combine_chunks() for name in table.column_names}


def _open_fits(file: SurveyFile, names: set[str], wanted: str | int | None) -> Iterator[Columns]:
    """Yield the columns named, in any case, of a FITS table; large ones in pieces."""
    with FitsFile(file) as fits:
        hdu = _table_hdu(fits, wanted)
        header = next(fits.hdus()).header
        header = hdu.header if hdu.header.get("INHERIT") is False else hdu.header.over(header)
        rows, width = hdu.row_count, max(1, hdu.header.get("NAXIS1"))
        step = max(1, _FITS_BYTES_AT_ONCE // width)
        for first in range(0, max(rows, 1), step):
            table = hdu.table(first, first + step)
            columns = {name: table.masked(name) for name in names if name in table}
            yield Columns(file.path, columns, first, header, table.names)


def _table_hdu(fits: FitsFile, wanted: str | int | None) -> Hdu:
    if wanted is not None:
        return fits.hdu(wanted)
    for hdu in fits.hdus():
        if hdu.kind in ("table", "compressed table"):
            return hdu
    fits.refuse("hdu_missing", "expected a table, found none")
