"""Tables of a FITS file: binary ones, with their heap, and ASCII ones.

Source: FITS Standard 4.0, sections 7.2 and 7.3.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from skyray.readers.fits_columns import (
    MAX_ROW_BYTES,
    NUMBERS,
    Column,
    TableLayout,
    decode,
    decode_texts,
    field_names,
    scaled,
    with_nan,
)
from skyray.readers.fits_header import MAX_FIELDS, BadHeader, Header, decode_text
from skyray.readers.unpacked import most_bytes

if TYPE_CHECKING:
    from skyray.readers.fits_bytes import Hdu

_ASCII_FORM = re.compile(r"\s*([AIFED])(\d{1,9})(?:\.\d+)?\s*")
_INTEGER = re.compile(rb"[+-]?\d{1,18}")
_REAL = re.compile(rb"[+-]?(\d+\.\d*|\.\d+)([ED]?[+-]?\d+)?")


@dataclass(frozen=True)
class Table:
    """Rows of a table; columns by name in any case, as long as one only has it."""

    hdu: Hdu
    layout: TableLayout
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def __contains__(self, name: str) -> bool:
        return name.lower() in self.layout.named

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the columns as the file spells them."""
        return tuple(column.name for column in self.layout.columns)

    def column(self, name: str) -> np.ndarray:
        """Return a column, one item a row and cells as TDIMn shapes them, in native byte order.

        Text is str without blanks at its end, logicals and bits are bool; where a number or a
        logical is null, all are float64 with NaN. Lists of any length come as objects.

        Raises
        ------
        InvalidRecord
            ``column_missing``; ``column_type`` for keywords that are not understood (complex
            numbers, an unknown TDIMn), ambiguous names, logicals other than T and F, and nulls
            among integers beyond 2**53; ``heap_invalid``.
        """
        values, nulls = self._decoded(name)
        try:
            return with_nan(values, nulls)
        except BadHeader as error:
            self.hdu.refuse("column_type", f"column {name!r}: {error}")

    def masked(self, name: str) -> np.ndarray:
        """Return a column as `column`, but with nulls masked and their type kept."""
        values, nulls = self._decoded(name)
        return values if nulls is None or not nulls.any() else np.ma.array(values, mask=nulls)

    def value(self, name: str, row: int = 0, default: Any = None) -> Any:
        """Return one cell as a Python object, None for null, `default` without such a column."""
        return self.values((name,), row).get(name, default)

    def values(self, names: tuple[str, ...], row: int = 0) -> dict[str, Any]:
        """Return cells of a row as Python objects, None for null, of those columns it has."""
        part, others = self.layout.part(names)
        cells = self.rows[row : row + 1].view(part)[0].item() if part.names else ()
        found = dict(zip(part.names, cells, strict=True)) if part.names else {}
        for name, cell in found.items():
            if isinstance(cell, bytes):
                found[name] = decode_text(cell.partition(b"\x00")[0]).rstrip()
            elif isinstance(cell, np.ndarray):
                found[name] = cell.tolist()
        for name in others:
            one = replace(self, rows=self.rows[row : row + 1]).masked(name)
            found[name] = one.tolist()[0]
        return {name: found[name] for name in names if name in found}

    def _column(self, name: str) -> Column:
        try:
            return self.layout.column(name)
        except KeyError:
            detail = f"expected a column {name!r}, found {list(self.names)[:40]}"
            self.hdu.refuse("column_missing", detail)
        except BadHeader as error:
            self.hdu.refuse("column_type", str(error))

    def _decoded(self, name: str) -> tuple[np.ndarray, np.ndarray | None]:
        column = self._column(name)
        raw = self.rows[column.field]
        try:
            if column.stored == "heap":
                return self._lists(column, raw), None
            if column.stored == "text":
                return decode_ascii(column, raw)
            if column.code == "A" and column.width:
                raw = np.ascontiguousarray(raw).view(f"S{column.width}")
            elif column.code == "A":
                return np.full((len(self), *column.cell), ""), None
            values, nulls = decode(column, raw)
        except BadHeader as error:
            self.hdu.refuse("column_type", str(error))
        shape = (len(self), *column.cell)
        return values.reshape(shape), None if nulls is None else nulls.reshape(shape)

    def _lists(self, column: Column, descriptors: np.ndarray) -> np.ndarray:
        """Return lists of the heap, one a row, as an array of arrays (of str, for text)."""
        found = np.empty(len(descriptors), dtype=object)
        if descriptors.shape[1] == 0:
            found[:] = [decode(column, np.empty(0, _item(column)))[0] for _ in found]
            return found
        item, heap = np.dtype(_item(column)), self._heap
        counts, starts = (descriptors[:, n].astype(np.int64) for n in (0, 1))
        ends = starts + counts * item.itemsize
        if np.any((counts < 0) | (starts < 0) | (counts > len(heap)) | (ends > len(heap))):
            bad = int(np.argmax((counts < 0) | (starts < 0) | (ends > len(heap))))
            self.hdu.refuse(
                "heap_invalid",
                f"column {column.name!r}, row {bad}: expected a list within the {len(heap):,} "
                f"bytes of the heap, found {counts[bad]} items at {starts[bad]}",
            )
        if int(counts.sum()) * 8 > most_bytes(len(heap)):  # lists may share bytes, but not all
            detail = f"column {column.name!r}: expected lists of the heap's size, found more"
            self.hdu.refuse("heap_invalid", detail)
        for row, (start, count) in enumerate(zip(starts.tolist(), counts.tolist(), strict=True)):
            if column.code == "A":
                text = bytes(heap[start : start + count]).partition(b"\x00")[0]
                found[row] = decode_text(text).rstrip()
                continue
            raw = np.frombuffer(heap, item, count, start) if count else np.empty(0, item)
            found[row] = with_nan(*decode(column, raw))
        return found

    @cached_property
    def _heap(self) -> bytes | memoryview:
        return self.hdu.heap(self.layout.dtype.itemsize)


def _item(column: Column) -> str:
    return NUMBERS.get(column.code, "u1")


# ASCII tables ----------------------------------------------------------------------------------
def ascii_layout(header: Header) -> TableLayout:
    """Return the layout of an ASCII table.

    Raises
    ------
    BadHeader
        Where TFIELDS, NAXIS1, TBCOLn or TFORMn are impossible.
    """
    width = header.integer("NAXIS1", 0, MAX_ROW_BYTES)
    count = header.integer("TFIELDS", 0, MAX_FIELDS)
    columns, types = [], []
    for n, (name, unique) in enumerate(field_names(header, count), start=1):
        form = header.text(f"TFORM{n}", "none")
        match = _ASCII_FORM.fullmatch(form.upper())
        if match is None:
            raise BadHeader(f"TFORM{n}: expected a type of ASCII tables, found {form!r}")
        size = int(match[2])
        first = header.integer(f"TBCOL{n}", 1, width - size + 1) - 1
        column = Column(n, name, unique, match[1], "text", width=size)
        try:
            zero, scale = header.scale(f"TZERO{n}", f"TSCAL{n}")
            if (zero, scale) != (0, 1) and match[1] == "A":
                raise BadHeader(f"TZERO{n}, TSCAL{n}: expected none for text, found some")
            null = str(header.get(f"TNULL{n}")).strip() if header.states(f"TNULL{n}") else None
            column = replace(column, zero=zero, scale=scale, null=null)
        except BadHeader as error:
            column = replace(column, fault=f"column {name!r}: {error}")
        columns.append(column)
        types.append((f"S{size}" if size else ("u1", (0,)), first))
    return TableLayout.of(columns, types, width)


def decode_ascii(column: Column, raw: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the values of a column of an ASCII table, and where it is null or blank."""
    if not column.width:
        return np.full(len(raw), ""), None
    if column.code == "A":
        values = decode_texts(raw)
        nulls = None if column.null is None else values == column.null
        return np.where(nulls, "", values) if nulls is not None else values, None
    cells = [cell.strip(b" \x00") for cell in raw.tolist()]
    none = (b"",) if column.null is None else (b"", column.null.encode())
    nulls = np.array([cell in none for cell in cells], bool)
    parse: Callable = _parse_integer if column.code == "I" else _parse_real
    numbers = [0 if null else parse(column, c) for c, null in zip(cells, nulls, strict=True)]
    values = np.array(numbers, np.int64 if column.code == "I" else np.float64)
    return scaled(values, column.zero, column.scale), nulls


def _parse_integer(column: Column, cell: bytes) -> int:
    if not _INTEGER.fullmatch(cell):
        raise BadHeader(f"column {column.name!r}: expected an integer, found {cell!r}")
    return int(cell)


def _parse_real(column: Column, cell: bytes) -> float:
    """Return a number; one without a point, which TFORMn may imply, is refused."""
    match = _REAL.fullmatch(cell.upper())
    if match is None and cell.upper() not in (b"NAN", b"INF", b"-INF", b"+INF"):
        raise BadHeader(f"column {column.name!r}: expected a number with a point, found {cell!r}")
    exponent = match[2] if match else None
    if exponent and exponent[:1] not in b"ED":  # 1.5+3: the letter may be left out
        return float(match[0][: -len(exponent)] + b"E" + exponent)
    return float(cell.upper().replace(b"D", b"E"))
