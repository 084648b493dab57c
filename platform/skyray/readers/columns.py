"""Columns of a FITS, Parquet, CSV or npz file behind one small interface."""

from __future__ import annotations

import io
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from skyray.readers.base import SurveyFile
from skyray.readers.column_facts import Facts, fits_facts, parquet_facts
from skyray.readers.column_masks import masks_of, without_masked
from skyray.readers.csv_columns import csv_columns
from skyray.readers.fits_bytes import FitsFile, Hdu
from skyray.readers.fits_header import decode_text
from skyray.readers.fits_keywords import Keywords
from skyray.readers.foreign_arrow import ParquetFile
from skyray.readers.layout import is_fits_name
from skyray.readers.unpacked import SUFFIXES, plain_name, unpacked_bytes
from skyray.records import InvalidRecord

CSV_NAMES = ("*.csv", *(f"*.csv{suffix}" for suffix in SUFFIXES))

MAX_PIXELS = 1 << 20  # of one spectrum, a row each
_WHOLE_BYTES = 256 << 20
_FITS_BYTES_AT_ONCE = 64 << 20  # of rows
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
    header : Keywords, optional
        FITS keywords, which stand in for columns that do not exist.
    names : sequence of str
        Every column of the file, where `columns` holds only those asked for.
    facts : Facts
        What the file states of its columns: units, UCDs.
    """

    source: str
    columns: Mapping[str, np.ndarray | pa.Array]
    first_row: int = 0
    header: Keywords | None = field(default=None, compare=False)
    names: Sequence[str] = ()
    facts: Facts = field(default_factory=Facts, compare=False)

    def _column(self, name: str) -> np.ndarray | pa.Array:
        if name not in self.columns:
            found = sorted(self.names or self.columns)[:40]
            raise InvalidRecord(
                "column_missing", f"expected a column {name!r}, found {found}", self.source
            )
        return self.columns[name]

    def rows(self, name: str) -> int:
        column = self._column(name)
        if _is_numpy(column) and column.ndim == 0:
            detail = f"{name}: expected a row an object, found a single value"
            raise InvalidRecord("column_type", detail, self.source)
        return len(column)

    def array(self, name: str, row: int | None, shared: bool = False) -> np.ndarray:
        """Return the array in a cell; the whole column for row None or a `shared` 1-D array.

        Raises
        ------
        InvalidRecord
            ``column_missing``; ``column_type`` where the cell holds no numbers.
        """
        column = self._column(name)
        if row is not None and not shared:
            self._check_row(name, column, row)
        if isinstance(column, pa.Array):
            cell = column if row is None else _list_values(column, row)
            values = None if cell is None else self._numbers(name, cell)
        else:
            one = shared and column.ndim == 1 and column.dtype != object  # else lists of the heap
            single = column.ndim == 0  # one value for all rows: no array, refused below
            values = column if row is None or one or single else column[row]
        if isinstance(values, np.ma.MaskedArray):
            values = values.astype(np.float64).filled(np.nan)
        if values is None or np.ndim(values) != 1 or values.dtype.kind not in "fiub":
            found = "none" if values is None else f"{values.dtype} of shape {np.shape(values)}"
            where = self.source if row is None else f"{self.source}#{self.first_row + row}"
            raise InvalidRecord(
                "column_type", f"{name}: expected an array of numbers, found {found}", where
            )
        return values

    def _numbers(self, name: str, cell: pa.Array) -> np.ndarray:
        """Return Arrow's numbers; among integers a null is NaN, where a float can hold them."""
        values = cell.to_numpy(zero_copy_only=False)
        if cell.null_count and pa.types.is_integer(cell.type):
            low, high = pc.min_max(cell).values()
            if max(abs(low.as_py() or 0), abs(high.as_py() or 0)) > 2**53:
                detail = f"{name}: expected integers without nulls, or below 2^53, found both"
                raise InvalidRecord("column_type", detail, self.source)
        return values

    def identifier(self, name: str, row: int | None) -> str:
        """Return a cell as an exact name: text as it is written, an integer in full.

        Raises
        ------
        InvalidRecord
            ``column_missing``; ``field_invalid`` for a null, an empty text, or what names nothing;
            ``id_not_exact`` for a float that is no integer, or so large that its neighbour has the
            same value.
        """
        value = self.exact(name, row)
        if isinstance(value, int | str | Decimal) and not isinstance(value, bool):
            text = f"{value:f}" if isinstance(value, Decimal) else str(value)
            if text.strip():
                return text
        detail = f"{name}: expected an identifier, found {value!r}"
        where = f"{self.source}#{self.first_row + (row or 0)}"
        raise InvalidRecord("id_not_exact" if isinstance(value, float) else "field_invalid",
                            detail, where)  # fmt: skip

    def exact(self, name: str, row: int | None) -> Any:
        """Return a cell as `scalar` does, a float that is an integer as that integer.

        Raises
        ------
        InvalidRecord
            ``id_not_exact`` for one so large that a neighbouring integer has the same value.
        """
        value = self.scalar(name, row)
        if not isinstance(value, float) or not value.is_integer():
            return value
        limit = 2 ** (np.finfo(_float_type(self.columns.get(name))).nmant + 1)
        if abs(value) < limit:
            return int(value)
        detail = f"{name}: expected integers below {limit} in a column of floats, found {value:.0f}"
        raise InvalidRecord("id_not_exact", detail, f"{self.source}#{self.first_row + (row or 0)}")

    def _check_row(self, name: str, column: np.ndarray | pa.Array, row: int) -> None:
        one = _is_numpy(column) and column.ndim == 0
        if not one and row >= len(column):
            detail = f"{name}: expected row {row}, as other columns have, found {len(column)} rows"
            raise InvalidRecord("shape_mismatch", detail, self.source)

    def scalar(self, name: str, row: int | None) -> Any:
        """Return a cell as a Python object, bytes as text; None for null.

        Row None: what all rows have that have any (``field_invalid`` where two differ).
        """
        if name not in self.columns and self.header is not None:
            value = self.header.get(name.upper())
            if value is not None:
                return value
        cell = self._cell(name, self._common_row(name) if row is None else row)
        return decode_text(cell.rstrip(b"\x00 ")) if isinstance(cell, bytes) else cell

    def _common_row(self, name: str) -> int:
        """Return a row that has what all rows have that have any."""
        column = self._column(name)
        if _is_numpy(column) and (column.ndim != 1 or column.dtype.kind not in "biufSUM"):
            return 0
        values = pa.array(column) if _is_numpy(column) else column
        if pa.types.is_nested(values.type):
            return 0
        known = pc.indices_nonzero(pc.invert(pc.is_null(values, nan_is_null=True)))
        if len(found := pc.unique(values.take(known))) > 1:
            shown = " and ".join(repr(value.as_py()) for value in found[:2])
            detail = f"{name}: expected one value in all rows of a spectrum, found {shown}"
            raise InvalidRecord("field_invalid", detail, self.source)
        return known[0].as_py() if len(known) else 0

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
        column = self._column(name)
        self._check_row(name, column, row)
        cell = column[()] if _is_numpy(column) and column.ndim == 0 else column[row]
        if isinstance(cell, pa.Scalar):
            found = cell.as_py()
            return float(found) if isinstance(found, np.floating) else found
        if cell is np.ma.masked:
            return None
        if isinstance(cell, np.datetime64 | np.timedelta64):
            return str(cell)
        return cell.item() if isinstance(cell, np.generic) else cell


def _float_type(column: np.ndarray | pa.Array | None) -> np.dtype:
    """Return the type of a column of floats; float64 for what is none, such as a keyword."""
    kind = None if column is None else column.dtype if _is_numpy(column) else column.type
    if isinstance(kind, pa.DictionaryType):
        kind = kind.value_type
    if isinstance(kind, pa.DataType):
        kind = kind.to_pandas_dtype()
    kind = np.dtype(np.float64 if kind is None else kind)
    return kind if kind.kind == "f" else np.dtype(np.float64)


def _is_numpy(column: np.ndarray | pa.Array) -> bool:
    return isinstance(column, np.ndarray)


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
    file: SurveyFile,
    unit: int,
    names: set[str],
    hdu: str | int | None = None,
    text: Collection[str] = (),
    whole: bool = False,
) -> Iterator[Columns]:
    """Yield the rows of a file in pieces of bounded size (npz and CSV: in one piece).

    With `whole`, the rows of all units come in one piece: they are one spectrum's.

    Columns of a nested Parquet file have names such as ``candidate.ra``. Those in `text` hold
    names: of a CSV file they are taken as they are written.

    Raises
    ------
    InvalidRecord
        ``file_empty``, ``parquet_invalid``, ``extension_type``, ``npz_invalid``, ``csv_invalid``,
        ``format_unknown``, ``spectrum_too_large`` or what `FitsFile` refuses.
    """
    if file.filesystem.get_file_info(file.path).size == 0:
        raise InvalidRecord("file_empty", "expected a table, found 0 bytes", file.path)
    name = file.name.lower()
    if name.endswith(".parquet"):
        yield from _open_parquet(file, unit, names, whole)
    elif name.endswith(".npz"):
        yield Columns(file.path, _open_npz(file, names))
    elif plain_name(name).endswith(".csv"):
        yield Columns(file.path, csv_columns(unpacked_bytes(file), file.path, text))
    elif is_fits_name(file.name):
        yield from _open_fits(file, names, hdu, whole)
    else:
        raise InvalidRecord("format_unknown", "expected .parquet, .npz, .csv or .fits", file.path)


def _open_parquet(file: SurveyFile, unit: int, names: set[str], whole: bool) -> Iterator[Columns]:
    with ParquetFile(file.path, file.filesystem) as parquet:
        metadata = parquet.metadata
        groups = list(range(metadata.num_row_groups)) if whole else [unit]
        first = sum(metadata.row_group(n).num_rows for n in range(groups[0] if groups else 0))
        pieces = _pieces(file, parquet, groups, names, first)
        if not whole:
            yield from pieces
        elif metadata.num_rows:
            check_whole(metadata.num_rows, 0, file.path)
            yield _joined(pieces)


def _pieces(
    file: SurveyFile, parquet: ParquetFile, groups: list[int], names: set[str], first: int
) -> Iterator[Columns]:
    there, facts = parquet.schema_arrow.names, parquet_facts(parquet.schema_arrow, file.path, names)
    masks = masks_of(facts, names, there)
    asked = sorted(names | set(masks.values()))
    wanted = {name: [name] if name in there else name.split(".") for name in asked}
    roots = {path[0] for path in wanted.values()} & set(there)
    if twice := sorted(name for name in roots if there.count(name) > 1):
        raise InvalidRecord("column_repeated", f"expected each once: {twice}", file.path)
    batches = parquet.iter_batches(_ROWS_AT_ONCE, row_groups=groups, columns=sorted(roots))
    while True:
        try:
            batch = next(batches, None)
        except (pa.ArrowException, OSError) as error:
            raise InvalidRecord("parquet_invalid", str(error), file.path) from None
        if batch is None:
            return
        found = {name: _nested(batch, path) for name, path in wanted.items()}
        columns = {name: found[name] for name in names if found[name] is not None}
        for name in masks.keys() & columns.keys():
            columns[name] = without_masked(name, columns[name], found[masks[name]], file.path)
        yield Columns(file.path, columns, first, names=there, facts=facts)
        first += len(batch)


def _joined(pieces: Iterator[Columns]) -> Columns:
    """Return the rows of all pieces, one after another."""
    found, size = [], 0
    for piece in pieces:
        size += sum(column.nbytes for column in piece.columns.values())
        check_whole(0, size, piece.source)
        found.append(piece)
    columns = {}
    for name in found[0].columns:
        chunks = pa.chunked_array([piece.columns[name] for piece in found])
        columns[name] = chunks.unify_dictionaries().combine_chunks()
    return replace(found[0], columns=columns)


def check_whole(rows: int, size: int, source: str) -> None:
    """Refuse (``spectrum_too_large``) rows and bytes that cannot be those of one spectrum."""
    if rows > MAX_PIXELS or size > _WHOLE_BYTES:
        limit = f"at most {MAX_PIXELS:,} pixels, a row each, in {_WHOLE_BYTES >> 20} MiB"
        found = f"{rows:,} rows" if rows > MAX_PIXELS else f"{size:,} bytes"
        raise InvalidRecord("spectrum_too_large", f"expected {limit}, found {found}", source)


def _nested(batch: pa.RecordBatch, path: Sequence[str]) -> pa.Array | None:
    """Return a column, or a field of a struct's; None where there is none."""
    if path[0] not in batch.schema.names:
        return None
    column = batch.column(path[0])
    for name in path[1:]:
        if not pa.types.is_struct(column.type) or column.type.get_field_index(name) < 0:
            return None
        column = pc.struct_field(column, name)  # null where the struct is
    return column


def _open_npz(file: SurveyFile, names: set[str]) -> dict[str, np.ndarray]:
    name = "archive"
    try:
        with np.load(io.BytesIO(file.read_bytes()), allow_pickle=False) as archive:
            columns = {}
            for name in sorted(names & set(archive.files)):
                columns[name] = archive[name]
            return columns
    except MemoryError:
        raise
    except Exception as error:  # encrypted, damaged, objects: zipfile and numpy have many ways
        detail = f"{name}: {type(error).__name__}: {error}"[:300]
        raise InvalidRecord("npz_invalid", detail, file.path) from None


def _open_fits(
    file: SurveyFile, names: set[str], wanted: str | int | None, whole: bool
) -> Iterator[Columns]:
    """Yield the columns named, in any case, of a FITS table; large ones in pieces."""
    with FitsFile(file) as fits:
        hdu = _table_hdu(fits, wanted)
        header, facts = hdu.inherited_header(), fits_facts(hdu.own_header(), names)
        masks = masks_of(facts, names, hdu.table(0, 0).names)
        rows, width = hdu.row_count, max(1, hdu.header.get("NAXIS1"))
        step = max(1, _FITS_BYTES_AT_ONCE // width)
        if whole:
            check_whole(rows, rows * width, file.path)
            step = max(1, rows)
        for first in range(0, max(rows, 1), step):
            table = hdu.table(first, first + step)
            columns = {name: table.masked(name) for name in names if name in table}
            for name in masks.keys() & columns.keys():
                mask = table.column(masks[name])
                columns[name] = without_masked(name, columns[name], mask, file.path)
            yield Columns(file.path, columns, first, header, table.names, facts)


def _table_hdu(fits: FitsFile, wanted: str | int | None) -> Hdu:
    if wanted is not None:
        return fits.hdu(wanted)
    for hdu in fits.hdus():
        if hdu.kind in ("table", "compressed table"):
            return hdu
    fits.refuse("hdu_missing", "expected a table, found none")
