"""Columns of FITS tables: how a row is built, and what the bytes of a cell mean.

A column is decoded here only where every keyword that changes its values is understood: TFORMn,
TDIMn, TSCALn, TZEROn, TNULLn. One that is not understood has a *fault*: it is refused by name when
it is asked for, and the other columns of its table are read.

Source: FITS Standard 4.0, section 7.3 (binary tables), 7.3.3.1 and appendix C (strings).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod

import numpy as np

from skyray.readers.fits_header import MAX_FIELDS, BadHeader, Header

MAX_ROW_BYTES = (1 << 31) - 1  # numpy's limit
NUMBERS = {"B": "u1", "I": ">i2", "J": ">i4", "K": ">i8", "E": ">f4", "D": ">f8"}

_WIDTHS = {**NUMBERS, "L": "u1", "X": "u1", "A": "S1", "C": ">c8", "M": ">c16", "P": ">i4",
           "Q": ">i8"}  # fmt: skip
_FORM = re.compile(r"\s*(\d{0,10})([A-Z])\s*(.*?)\s*", re.DOTALL)
_HEAP_FORM = re.compile(r"([A-Z])(\(\d*\))?")
_DIMENSIONS = re.compile(r"\s*\(\s*(\d{1,10}(?:\s*,\s*\d{1,10})*)\s*\)\s*")
_EXACT = 1 << 53  # integers up to here are exact as float64


@dataclass(frozen=True)
class Column:
    """One column; `field` names it in the dtype of a row, `cell` is the shape of a cell."""

    number: int
    name: str
    field: str
    code: str  # the letter of TFORMn; of P and Q: of the items in the heap
    stored: str = "row"  # or "heap" (P, Q), or "text": the columns of ASCII tables
    cell: tuple[int, ...] = ()
    width: int = 0  # of a text, in bytes; of a bit array, in bits
    zero: float = 0
    scale: float = 1
    null: float | None = None
    fault: str = ""

    @property
    def plain(self) -> bool:
        """Whether the bytes of a cell, in the dtype of a row, are its value."""
        if self.fault or self.stored != "row" or len(self.cell) > 1:
            return False
        number = self.code in NUMBERS and self.zero == 0 and self.scale == 1 and self.null is None
        return number or (self.code == "A" and self.width > 0 and not self.cell)


@dataclass(frozen=True)
class TableLayout:
    """How a row of a table is built; columns by lower-case name."""

    dtype: np.dtype
    columns: tuple[Column, ...]
    named: dict[str, list[Column]]
    _parts: dict[tuple[str, ...], tuple[np.dtype, list[str]]] = field(default_factory=dict)

    @staticmethod
    def of(columns: list[Column], types: list[tuple], width: int | None = None) -> TableLayout:
        """Return a layout; `types` are (format,) or, with a row's `width`, (format, offset)."""
        named: dict[str, list[Column]] = {}
        for column in columns:
            named.setdefault(column.name.lower(), []).append(column)
        described = {"names": [c.field for c in columns], "formats": [t[0] for t in types]}
        if width is not None:
            described |= {"offsets": [t[1] for t in types], "itemsize": width}
        try:
            dtype = np.dtype(
                described if width is not None else list(zip(*described.values(), strict=True))
            )
        except (ValueError, OverflowError) as error:
            raise BadHeader(f"TFORMn, TBCOLn: {error}") from None
        return TableLayout(dtype, tuple(columns), named)

    @cached_property
    def names(self) -> frozenset[str]:
        """Names of the columns in lower case."""
        return frozenset(self.named)

    def column(self, name: str) -> Column:
        """Return a column by its name in any case.

        Raises
        ------
        BadHeader
            Where several have that name, or its keywords are not understood.
        KeyError
            Where there is none.
        """
        found = self.named[name.lower()]
        if len(found) > 1:
            names = ", ".join(f"TTYPE{c.number} {c.name!r}" for c in found)
            raise BadHeader(f"expected one column {name!r} in whatever case, found {names}")
        if found[0].fault:
            raise BadHeader(found[0].fault)
        return found[0]

    def part(self, names: tuple[str, ...]) -> tuple[np.dtype, list[str]]:
        """Return the layout of those columns alone whose bytes are their values; and the others."""
        if names not in self._parts:
            found = [(n, self.named[n.lower()]) for n in names if n.lower() in self.named]
            plain = {n: c[0].field for n, c in found if len(c) == 1 and c[0].plain}
            fields = {n: self.dtype.fields[field] for n, field in plain.items()}
            kinds = np.dtype({
                "names": list(fields), "formats": [kind for kind, *_ in fields.values()],
                "offsets": [at for _, at, *_ in fields.values()], "itemsize": self.dtype.itemsize,
            })  # fmt: skip
            self._parts[names] = kinds, [name for name, _ in found if name not in plain]
        return self._parts[names]


def field_names(header: Header, count: int) -> list[tuple[str, str]]:
    """Return for each column its name and that of its field: in lower case, unique."""
    names = [str(header.get(f"TTYPE{n}") or f"col{n}").strip() for n in range(1, count + 1)]
    fields: dict[str, None] = {}
    for n, name in enumerate(names, start=1):
        fields[name.lower() if name.lower() not in fields else f"#{n}"] = None
    return list(zip(names, fields, strict=True))


def table_layout(header: Header) -> TableLayout:
    """Return the layout of a binary table; computed once for tables that share their header.

    Raises
    ------
    BadHeader
        Where TFIELDS, NAXIS1 or TFORMn are impossible.
    """
    if header.layout:
        return header.layout
    count = header.integer("TFIELDS", 0, MAX_FIELDS)
    columns, types = [], []
    for n, (name, unique) in enumerate(field_names(header, count), start=1):
        code, repeat, rest = _form(header, n)
        columns.append(_column(header, Column(n, name, unique, code), repeat, rest))
        types.append((_stored(code, repeat),))
    layout = TableLayout.of(columns, types)
    width = header.integer("NAXIS1", 0, MAX_ROW_BYTES)
    if layout.dtype.itemsize != width:
        raise BadHeader(
            f"NAXIS1: expected the {layout.dtype.itemsize} bytes of the columns, found {width}"
        )
    header.layout = layout
    return layout


def _form(header: Header, n: int) -> tuple[str, int, str]:
    """Return the letter of TFORMn, how often it is repeated, and what follows."""
    form = header.text(f"TFORM{n}", "none")
    match = _FORM.fullmatch(form.upper())
    if match is None or match[2] not in _WIDTHS:
        raise BadHeader(f"TFORM{n}: expected a type of binary tables, found {form!r}")
    repeat, code, rest = int(match[1] or 1), match[2], match[3]
    if code == "A" and not match[1] and rest.isdecimal():
        repeat, rest = int(rest[:10]), ""  # A8 for 8A, a common slip
    if repeat > MAX_ROW_BYTES:
        raise BadHeader(f"TFORM{n}: expected a repeat of at most {MAX_ROW_BYTES}, found {form!r}")
    return code, repeat, rest


def _stored(code: str, repeat: int) -> str | tuple:
    if code == "A" and repeat:
        return f"S{repeat}"
    if code in "PQ":
        return (_WIDTHS[code], (2 * repeat,))
    if code == "X":
        return ("u1", (-(-repeat // 8),))
    return _WIDTHS[code] if repeat == 1 else (_WIDTHS[code], (repeat,))


def _column(header: Header, column: Column, repeat: int, rest: str) -> Column:
    """Return a column with all that changes its values, or with its fault."""
    try:
        if column.code in "PQ":
            column = _heap_column(header, column, repeat, rest)
        else:
            column = _row_column(header, column, repeat, rest)
        zero, scale = header.scale(f"TZERO{column.number}", f"TSCAL{column.number}")
        if (zero, scale) != (0, 1) and column.code not in NUMBERS:
            raise BadHeader(f"TZEROn, TSCALn: expected none for type {column.code}, found some")
        return replace(column, zero=zero, scale=scale, null=_null(header, column))
    except BadHeader as error:
        return replace(column, fault=f"column {column.name!r}: {error}")


def _heap_column(header: Header, column: Column, repeat: int, rest: str) -> Column:
    n, match = column.number, _HEAP_FORM.fullmatch(rest)
    if match is None or match[1] not in (*NUMBERS, "L", "A") or repeat > 1:
        shown = header.get(f"TFORM{n}")
        raise BadHeader(f"TFORM{n}: expected lists of numbers, logicals or text, found {shown!r}")
    if dimensions := header.text(f"TDIM{n}").strip():
        raise BadHeader(f"TDIM{n}: expected none for lists of any length, found {dimensions!r}")
    return replace(column, code=match[1], stored="heap")


def _row_column(header: Header, column: Column, repeat: int, rest: str) -> Column:
    n, code = column.number, column.code
    if code in "CM":
        raise BadHeader(f"TFORM{n}: expected real numbers, logicals or text, found complex numbers")
    cell, width = () if repeat == 1 else (repeat,), repeat if code in "AX" else 0
    if code == "A":
        cell = ()
        if rest.isdecimal() and 0 < int(rest[:10]) <= repeat and repeat % int(rest[:10]) == 0:
            width = int(rest)  # rAw: r / w texts of w bytes
            cell = () if width == repeat else (repeat // width,)
            rest = ""
    if rest.strip("0123456789." if code != "A" else ""):
        raise BadHeader(f"TFORM{n}: expected nothing behind the letter {code}, found {rest!r}")
    if dimensions := header.text(f"TDIM{n}").strip():
        match = _DIMENSIONS.fullmatch(dimensions)
        sizes = [int(size) for size in match[1].split(",")] if match else []
        if not match or prod(sizes) != repeat:
            raise BadHeader(f"TDIM{n}: expected sizes of {repeat} in all, found {dimensions!r}")
        if code == "A":
            width = sizes.pop(0)
        cell = tuple(reversed(sizes))
    return replace(column, cell=cell, width=width)


def _null(header: Header, column: Column) -> float | None:
    """Return what stands for no value; for real numbers too, though only NaN should there."""
    key = f"TNULL{column.number}"
    if not header.states(key):
        return None
    if column.code in "BIJK":
        return header.integer(key, -(2**63), 2**63 - 1)
    if column.code in "ED":
        return header.factor(key, 0)
    raise BadHeader(f"{key}: expected none for type {column.code}, found {header.get(key)!r}")


# values ----------------------------------------------------------------------------------------
def decode(column: Column, raw: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the values of raw items in native byte order, and where there is none (or None).

    Logicals and bits are bool, text is str, unsigned integers are unsigned.

    Raises
    ------
    BadHeader
        For a logical that is neither T, F nor 0.
    """
    if column.code == "A":
        return decode_texts(raw), None
    if column.code == "X":
        return np.unpackbits(raw, axis=-1)[..., : column.width].astype(bool), None
    if column.code == "L":
        values, nulls = raw == ord("T"), raw == 0
        if not (values | nulls | (raw == ord("F"))).all():
            raise BadHeader(f"column {column.name!r}: expected T, F or 0 for a logical")
        return values, nulls
    values = raw.astype(raw.dtype.newbyteorder("="))
    nulls = None if column.null is None else values == column.null
    return scaled(values, column.zero, column.scale), nulls


def decode_texts(raw: np.ndarray) -> np.ndarray:
    """Return byte strings as str: up to the first NUL, without blanks at the end."""
    letters = np.ascontiguousarray(raw)[..., None].view(np.uint8)
    behind = np.logical_or.accumulate(letters == 0, axis=-1)
    if letters[behind].any():
        raw = np.where(behind, np.uint8(0), letters).view(raw.dtype)[..., 0]
    return np.char.rstrip(np.char.decode(raw, "utf-8", "backslashreplace"))


def with_nan(values: np.ndarray, nulls: np.ndarray | None) -> np.ndarray:
    """Return numbers with NaN where there is none, as float64 unless all are there.

    Raises
    ------
    BadHeader
        For integers that float64 does not hold.
    """
    if nulls is None or not nulls.any():
        return values
    if values.dtype.kind in "iu" and values.dtype.itemsize == 8:
        most = max((abs(int(v)) for v in (values[~nulls].min(initial=0),
                                          values[~nulls].max(initial=0))), default=0)  # fmt: skip
        if most > _EXACT:
            raise BadHeader(
                f"expected integers up to 2**53 beside nulls, found {most}: NaN needs floats"
            )
    return np.where(nulls, np.nan, values.astype(np.float64))


def scaled(values: np.ndarray, zero: float, scale: float) -> np.ndarray:
    """Return ``zero + scale · values``: as exact integers where it gives such, else as float64.

    Raises
    ------
    BadHeader
        Where a sum of integers exceeds 64 bits.
    """
    if scale == 1 and zero == 0:
        return values
    kind, bits = values.dtype.kind, 8 * values.dtype.itemsize
    if scale == 1 and kind == "i" and zero == 2 ** (bits - 1):
        # The standard's way to store unsigned integers: flip the sign bit.
        unsigned = values.view(np.dtype(f"u{values.dtype.itemsize}"))
        return unsigned ^ unsigned.dtype.type(1 << (bits - 1))
    if scale == 1 and values.dtype == np.uint8 and zero == -128:
        return (values ^ np.uint8(128)).view(np.int8)
    if scale == 1 and kind in "iu" and zero == int(zero):
        low, high = (int(v) + int(zero) for v in (values.min(initial=0), values.max(initial=0)))
        if min(low, int(zero)) < -(2**63) or max(high, int(zero)) >= 2**63:
            raise BadHeader(f"TZEROn, BZERO: expected sums within 64 bits, found {low} to {high}")
        return values.astype(np.int64) + int(zero)
    with np.errstate(over="ignore", invalid="ignore"):
        return values.astype(np.float64) * float(scale) + float(zero)
