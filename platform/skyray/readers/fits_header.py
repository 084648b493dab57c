"""Headers of FITS HDUs: keywords, the numbers that say where data lie, the layout of tables.

Whatever says how many bytes there are to read is checked here before it is used: that it is an
integer, and within bounds. An HDU so never ends before its own header does.

Source: FITS Standard 4.0 (Pence et al. 2010, A&A 524, A42; version of 2018), sections 4.4 and 7.3.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

MAX_AXES = 32  # numpy's own limit before version 2; the standard's is 999
MAX_FIELDS = 999
MAX_ROW_BYTES = (1 << 31) - 1  # numpy's limit
MAX_DATA_BYTES = 1 << 50
IMAGE_TYPES = {8: "u1", 16: ">i2", 32: ">i4", 64: ">i8", -32: ">f4", -64: ">f8"}
CARD = 80

_COLUMN_TYPES = {
    "L": "S1", "X": "u1", "B": "u1", "I": ">i2", "J": ">i4", "K": ">i8", "E": ">f4", "D": ">f8",
    "C": ">c8", "M": ">c16", "P": ">i4", "Q": ">i8",
}  # fmt: skip
_VALUE = re.compile(rb"\s*(?:'((?:[^']|'')*)'|([^/\s]+))")
_INTEGER = re.compile(r"[+-]?\d+")
_REAL = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(E[+-]?\d+)?")
_CACHED_BYTES = 128 << 10  # larger headers are not kept


class BadHeader(ValueError):
    """A keyword whose value is not what the standard allows; names it, and both values."""


class Header:
    """The cards of one HDU, searched on demand; of a keyword given twice the first counts."""

    def __init__(self, block: bytes):
        self.block = block

    def get(self, key: str, default: Any = None) -> Any:
        """Return the value of a keyword as str, bool, int or float."""
        at = self._find(key)
        return default if at < 0 else _parse_value(self.block[at + 9 : at + CARD], default)

    def number(self, key: str) -> float:
        """Return the value of a numeric keyword, NaN without one."""
        value = self.get(key)
        return float(value) if isinstance(value, int | float) else float("nan")

    def integer(self, key: str, low: int, high: int, default: int | None = None) -> int:
        """Return an integer keyword within ``low`` to ``high``; `default` where there is none.

        Raises
        ------
        BadHeader
            For another value, or none without a default.
        """
        value = self.get(key)
        if type(value) is int and low <= value <= high:
            return value
        if default is not None and self._find(key) < 0:
            return default
        raise BadHeader(f"{key}: expected an integer {low}–{high}, found {self._shown(key)}")

    def factor(self, key: str, default: float) -> float:
        """Return a real keyword (BZERO, TSCALn …); `default` where there is none.

        Raises
        ------
        BadHeader
            For a value that is no number.
        """
        value = self.get(key)
        if type(value) in (int, float):
            return value
        if self._find(key) < 0:
            return default
        raise BadHeader(f"{key}: expected a number, found {self._shown(key)}")

    def data_bytes(self) -> int:
        """Return the size of the data behind this header, at least 0.

        Raises
        ------
        BadHeader
            Where BITPIX, NAXIS, NAXISn, PCOUNT or GCOUNT are no integers of their range.
        """
        axes = self.integer("NAXIS", 0, MAX_AXES)
        bits = self.integer("BITPIX", -64, 64, default=None if axes else 8)
        if bits not in IMAGE_TYPES:
            raise BadHeader(f"BITPIX: expected one of {sorted(IMAGE_TYPES)}, found {bits}")
        sizes = [self.integer(f"NAXIS{n + 1}", 0, MAX_DATA_BYTES) for n in range(axes)]
        extra = self.integer("PCOUNT", 0, MAX_DATA_BYTES, default=0)
        groups = self.integer("GCOUNT", 1, MAX_DATA_BYTES, default=1)
        width = abs(bits) // 8
        # An axis of 0 must not hide from numpy's integers how long the others are.
        if width * groups * (extra + math.prod(size or 1 for size in sizes)) > MAX_DATA_BYTES:
            raise BadHeader(
                f"NAXISn, PCOUNT, GCOUNT: expected at most {MAX_DATA_BYTES:,} bytes of data, "
                f"found BITPIX {bits}, axes {sizes}, PCOUNT {extra}, GCOUNT {groups}"
            )
        return width * groups * (extra + math.prod(sizes)) if axes else 0

    def _find(self, key: str) -> int:
        """Return where the card of a keyword lies, -1 where there is none."""
        prefix = key.encode().ljust(8) + b"="
        at = self.block.find(prefix)
        return at if at < 0 or at % CARD == 0 else self._index.get(prefix, -1)

    @cached_property
    def _index(self) -> dict[bytes, int]:
        """All keywords; made only where text looks like a keyword, so that a search stays short."""
        found: dict[bytes, int] = {}
        for at in range(0, len(self.block), CARD):
            found.setdefault(self.block[at : at + 9], at)
        return found

    def _shown(self, key: str) -> str:
        at = self._find(key)
        text = self.block[at + 9 : at + CARD].decode("ascii", "replace")
        return "none" if at < 0 else repr(text.partition("/")[0].strip())


def _parse_value(text: bytes, default: Any) -> Any:
    match = _VALUE.match(text)
    if match is None:
        return default
    if match[1] is not None:
        return match[1].replace(b"''", b"'").rstrip().decode("ascii", "replace")
    word = match[2].decode("ascii", "replace")
    if word in ("T", "F"):
        return word == "T"
    if _INTEGER.fullmatch(word):
        return int(word)
    word = word.upper().replace("D", "E")
    return float(word) if _REAL.fullmatch(word) else default


# tables ----------------------------------------------------------------------------------------
@dataclass(frozen=True)
class TableLayout:
    """How a row of a binary table is built; column names in lower case."""

    dtype: np.dtype
    zeros: dict[str, float]
    scales: dict[str, float]


def table_layout(header: Header) -> TableLayout:
    """Return the layout of a binary table; computed once for tables that share their header.

    Raises
    ------
    BadHeader
        Where TFIELDS, NAXIS1, TTYPEn, TFORMn, TZEROn or TSCALn are impossible.
    """
    small = len(header.block) <= _CACHED_BYTES
    return _kept_layout(header.block) if small else _layout(header.block)


def _layout(block: bytes) -> TableLayout:
    header = Header(block)
    fields, zeros, scales = [], {}, {}
    for n in range(1, header.integer("TFIELDS", 0, MAX_FIELDS) + 1):
        name = str(header.get(f"TTYPE{n}") or f"col{n}").lower()
        fields.append((name, *_column_type(f"TFORM{n}", str(header.get(f"TFORM{n}")))))
        if zero := header.factor(f"TZERO{n}", 0):
            zeros[name] = zero
        if (scale := header.factor(f"TSCAL{n}", 1)) != 1:
            scales[name] = scale
    width = header.integer("NAXIS1", 1, MAX_ROW_BYTES)
    try:
        dtype = np.dtype(fields)
    except ValueError as error:
        raise BadHeader(f"TTYPEn, TFORMn: {error}") from None
    if dtype.itemsize != width:
        raise BadHeader(
            f"NAXIS1: expected the {dtype.itemsize} bytes of the columns, found {width}"
        )
    return TableLayout(dtype, zeros, scales)


_kept_layout = lru_cache(maxsize=256)(_layout)


def _column_type(key: str, form: str) -> tuple:
    match = re.match(r"\s*(\d*)([A-Z])", form)
    if match is None or match[2] not in (*_COLUMN_TYPES, "A"):
        raise BadHeader(f"{key}: expected a type of binary tables, found {form!r}")
    repeat, code = int(match[1] or 1), match[2]
    if repeat > MAX_ROW_BYTES:
        raise BadHeader(f"{key}: expected a repeat of at most {MAX_ROW_BYTES}, found {form!r}")
    if code == "A":
        return (f"S{repeat}",)
    if code in "PQ":
        return (_COLUMN_TYPES[code], (2 * repeat,))
    if code == "X":
        repeat = -(-repeat // 8)
    return (_COLUMN_TYPES[code],) if repeat == 1 else (_COLUMN_TYPES[code], (repeat,))


def scaled(values: np.ndarray, zero: float, scale: float) -> np.ndarray:
    """Return ``zero + scale · values``; as integers where the standard stores them so."""
    if scale == 1 and zero == 0:
        return values
    kind, bits = values.dtype.kind, 8 * values.dtype.itemsize
    if scale == 1 and kind == "i" and zero == 2 ** (bits - 1):
        # The standard's way to store unsigned integers: flip the sign bit.
        unsigned = values.view(np.dtype(f"u{values.dtype.itemsize}"))
        return unsigned ^ unsigned.dtype.type(1 << (bits - 1))
    if scale == 1 and values.dtype == np.uint8 and zero == -128:
        return (values ^ np.uint8(128)).view(np.int8)
    with np.errstate(over="ignore", invalid="ignore"):
        return values * float(scale) + float(zero)
