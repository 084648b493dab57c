"""A lean, read-only view of a FITS file: headers, binary tables and images straight from its bytes.

Surveys hand out millions of small files, and building astropy's column objects for the 236 columns
of an SDSS catalogue row costs more than reading the file. Here a header is searched for the few
keywords wanted, the layout of a table is computed once for all files that share its header, and
later HDUs are never read. Tested equal to astropy on the real files.

Source: FITS Standard 4.0 (Pence et al. 2010, A&A 524, A42; version of 2018).
"""

from __future__ import annotations

import gzip
import math
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NoReturn

import numpy as np

from skyray.readers.base import SurveyFile
from skyray.records import InvalidRecord

_BLOCK = 2880
_CARD = 80
_END = b"END" + b" " * 77
_HEAD_BYTES = 262_144  # holds the first three HDUs of an SDSS spec file; later ones stay unread
_GZIP = b"\x1f\x8b"
_VALUE = re.compile(rb"\s*(?:'((?:[^']|'')*)'|([^/\s]+))")
_IMAGE_TYPES = {8: "u1", 16: ">i2", 32: ">i4", 64: ">i8", -32: ">f4", -64: ">f8"}
_COLUMN_TYPES = {
    "L": "S1", "X": "u1", "B": "u1", "I": ">i2", "J": ">i4", "K": ">i8", "E": ">f4", "D": ">f8",
    "C": ">c8", "M": ">c16", "P": ">i4", "Q": ">i8",
}  # fmt: skip


class Header:
    """The cards of one HDU, searched on demand."""

    def __init__(self, block: bytes):
        self.block = block

    def get(self, key: str, default: Any = None) -> Any:
        """Return the value of a keyword as str, bool, int or float."""
        prefix = key.encode().ljust(8) + b"="
        at = self.block.find(prefix)
        while at >= 0 and at % _CARD:
            at = self.block.find(prefix, at + 1)
        return default if at < 0 else _parse_value(self.block[at + 9 : at + _CARD], default)

    def number(self, key: str) -> float:
        """Return the value of a numeric keyword, NaN without one."""
        value = self.get(key)
        return float(value) if isinstance(value, int | float) else float("nan")


def _parse_value(text: bytes, default: Any) -> Any:
    match = _VALUE.match(text)
    if match is None:
        return default
    if match[1] is not None:
        return match[1].replace(b"''", b"'").rstrip().decode("ascii", "replace")
    word = match[2].decode("ascii", "replace")
    if word in ("T", "F"):
        return word == "T"
    for convert in (int, float):
        try:
            return convert(word.replace("D", "E"))
        except ValueError:
            continue
    return default


@dataclass(frozen=True)
class TableLayout:
    """How a row of a binary table is built; column names in lower case."""

    dtype: np.dtype
    zeros: dict[str, float]
    scales: dict[str, float]


class _BadLayout(ValueError):
    pass


@lru_cache(maxsize=256)
def _table_layout(block: bytes) -> TableLayout:
    cards = {
        card[:8].rstrip().decode("ascii", "replace"): _parse_value(card[9:], None)
        for card in (block[i : i + _CARD] for i in range(0, len(block), _CARD))
        if card[8:9] == b"="
    }
    fields, zeros, scales = [], {}, {}
    for n in range(1, int(cards.get("TFIELDS") or 0) + 1):
        name = str(cards.get(f"TTYPE{n}") or f"col{n}").lower()
        fields.append((name, *_column_type(str(cards.get(f"TFORM{n}")))))
        if cards.get(f"TZERO{n}"):
            zeros[name] = cards[f"TZERO{n}"]
        if cards.get(f"TSCAL{n}", 1) != 1:
            scales[name] = cards[f"TSCAL{n}"]
    try:
        dtype = np.dtype(fields)
    except ValueError as error:
        raise _BadLayout(str(error)) from None
    if dtype.itemsize != cards.get("NAXIS1"):
        raise _BadLayout(f"columns fill {dtype.itemsize} bytes, NAXIS1 says {cards.get('NAXIS1')}")
    return TableLayout(dtype, zeros, scales)


def _column_type(form: str) -> tuple:
    match = re.match(r"\s*(\d*)([A-Z])", form)
    if match is None or match[2] not in (*_COLUMN_TYPES, "A"):
        raise _BadLayout(f"unknown TFORM {form!r}")
    repeat, code = int(match[1] or 1), match[2]
    if code == "A":
        return (f"S{repeat}",)
    if code in "PQ":
        return (_COLUMN_TYPES[code], (2 * repeat,))
    if code == "X":
        repeat = -(-repeat // 8)
    return (_COLUMN_TYPES[code],) if repeat == 1 else (_COLUMN_TYPES[code], (repeat,))


class FitsFile:
    """A survey file read as FITS; plain or gzip-compressed.

    Raises
    ------
    InvalidRecord
        From the constructor or any reading: ``file_empty``, ``file_is_zip``, ``file_is_html``,
        ``not_fits``, ``gzip_truncated``, ``header_truncated``, ``header_invalid``,
        ``data_truncated``, ``hdu_missing``, ``hdu_wrong_type``, ``column_missing``.
    """

    def __init__(self, file: SurveyFile):
        self.source = file.path
        self._hdus: list[Hdu] = []
        self._handle = file.filesystem.open_input_file(file.path)
        try:
            self._open()
        except InvalidRecord:
            self._handle.close()
            raise

    def _open(self) -> None:
        self._head = self._handle.read_at(_HEAD_BYTES, 0)
        if self._head[:2] == _GZIP:
            self._head = self._unpack(self._handle.read_at(self._handle.size(), 0))
            self.size = len(self._head)
        else:
            self.size = self._handle.size()
        self._check_kind(self._head)

    def __enter__(self) -> FitsFile:
        return self

    def __exit__(self, *_) -> None:
        self._handle.close()

    def refuse(self, reason: str, detail: str) -> NoReturn:
        """Raise `InvalidRecord` in the name of this file."""
        raise InvalidRecord(reason, detail, self.source)

    def read(self, offset: int, size: int) -> bytes | memoryview:
        """Return `size` bytes; fewer only at the end of the file."""
        if offset + size <= len(self._head) or len(self._head) == self.size:
            return memoryview(self._head)[offset : offset + size]
        return self._handle.read_at(size, offset)

    def hdus(self) -> Iterator[Hdu]:
        """Yield the HDUs in their order; each is looked at only when it is asked for."""
        index = 0
        while True:
            if index == len(self._hdus):
                at = self._hdus[-1].end if self._hdus else 0
                if at >= self.size:
                    return
                self._hdus.append(self._read_hdu(index, at))
            yield self._hdus[index]
            index += 1

    def find(self, *names: str, at: int | None = None) -> Hdu | None:
        """Return the first HDU with one of these names, else number `at`, else None."""
        for hdu in self.hdus():
            if (hdu.name and hdu.name in names) or (not hdu.name and hdu.index == at):
                return hdu
        return None

    def need(self, *names: str, at: int | None = None) -> Hdu:
        """Return an HDU as `find`, or refuse the file."""
        hdu = self.find(*names, at=at)
        if hdu is None:
            found = [h.name or f"#{h.index}" for h in self._hdus]
            self.refuse("hdu_missing", f"expected an HDU {' or '.join(names)}, found {found}")
        return hdu

    def _unpack(self, content: bytes) -> bytes:
        try:
            return gzip.decompress(content)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            self.refuse("gzip_truncated", f"expected a whole gzip stream, found: {error}")

    def _check_kind(self, head: bytes) -> None:
        if not head:
            self.refuse("file_empty", "expected a FITS file, found 0 bytes")
        if head[:4] == b"PK\x03\x04":
            self.refuse("file_is_zip", "expected a FITS file, found a zip archive")
        if head[:512].lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
            self.refuse("file_is_html", "expected a FITS file, found a web page")
        if not head.startswith(b"SIMPLE  ="):
            self.refuse("not_fits", f"expected SIMPLE at the start, found {bytes(head[:16])!r}")

    def _read_hdu(self, index: int, at: int) -> Hdu:
        window = 16 * _BLOCK
        while True:
            text = bytes(self.read(at, window))
            end = text.find(_END)
            while end >= 0 and end % _CARD:
                end = text.find(_END, end + 1)
            if end >= 0:
                break
            if at + window >= self.size:
                self.refuse("header_truncated", f"HDU {index}: expected END, found end of file")
            window *= 4
        header = Header(text[:end])
        return Hdu(self, index, header, at + _BLOCK * (end // _BLOCK + 1), self._data_size(header))

    def _data_size(self, header: Header) -> int:
        axes = header.get("NAXIS")
        if axes == 0:
            return 0
        count = axes if isinstance(axes, int) and axes < 1000 else 0  # the standard's limit is 999
        keys = ["BITPIX", *(f"NAXIS{n + 1}" for n in range(count))]
        bits, *sizes = (header.get(key) for key in keys)
        if not sizes or bits not in _IMAGE_TYPES or any(
            not isinstance(size, int) or size < 0 for size in sizes
        ):  # fmt: skip
            self.refuse("header_invalid", f"NAXIS {axes!r}, BITPIX {bits!r}, axes {sizes!r}")
        extra, groups = header.get("PCOUNT", 0), header.get("GCOUNT", 1)
        return abs(bits) // 8 * groups * (extra + math.prod(sizes))


@dataclass(frozen=True)
class Hdu:
    """One header and data unit of a `FitsFile`."""

    file: FitsFile
    index: int
    header: Header
    offset: int
    size: int

    @property
    def name(self) -> str:
        return str(self.header.get("EXTNAME", "")).upper()

    @property
    def end(self) -> int:
        return self.offset + -(-self.size // _BLOCK) * _BLOCK

    def _refuse(self, reason: str, detail: str) -> NoReturn:
        self.file.refuse(reason, f"HDU {self.name or self.index}: {detail}")

    def check_whole(self) -> None:
        """Refuse the file (``data_truncated``) unless all of this HDU's data are there."""
        if self.offset + self.size > self.file.size:
            self._refuse(
                "data_truncated",
                f"expected {self.offset + self.size} bytes, found {self.file.size}",
            )

    def _bytes(self, start: int, size: int) -> bytes | memoryview:
        self.check_whole()
        return self.file.read(self.offset + start, size)

    def table(self) -> Table:
        """Return the binary table of this HDU.

        Raises
        ------
        InvalidRecord
            ``hdu_wrong_type``, ``header_invalid`` or ``data_truncated``.
        """
        kind = self.header.get("XTENSION", "PRIMARY")
        if kind != "BINTABLE":
            self._refuse("hdu_wrong_type", f"expected a BINTABLE, found {kind!r}")
        try:
            layout = _table_layout(self.header.block)
        except _BadLayout as error:
            self._refuse("header_invalid", str(error))
        rows = self.header.get("NAXIS2")
        size = rows * layout.dtype.itemsize if isinstance(rows, int) else -1
        if not 0 <= size <= self.size:
            self._refuse("header_invalid", f"{rows} rows do not fit {self.size} bytes of data")
        content = self._bytes(0, size)
        return Table(self, layout, np.frombuffer(content, layout.dtype, count=rows))

    def image_rows(self, start: int, stop: int) -> np.ndarray:
        """Return rows of the last axis of an image (for a 1-D image: pixels), native byte order.

        Raises
        ------
        InvalidRecord
            ``hdu_wrong_type`` or ``data_truncated``.
        """
        shape = self.shape
        row = math.prod(shape[1:])
        dtype = np.dtype(_IMAGE_TYPES[self.header.get("BITPIX")])
        content = self._bytes(start * row * dtype.itemsize, (stop - start) * row * dtype.itemsize)
        values = np.frombuffer(content, dtype).reshape(stop - start, *shape[1:])
        values = values.astype(dtype.newbyteorder("="))
        zero, scale = self.header.get("BZERO", 0), self.header.get("BSCALE", 1)
        return _scaled(values, zero, scale)

    def image(self) -> np.ndarray:
        """Return the whole image."""
        return self.image_rows(0, self.shape[0])

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the image in numpy's order."""
        kind, axes = self.header.get("XTENSION", "IMAGE"), self.header.get("NAXIS")
        if kind != "IMAGE" or axes == 0:
            self._refuse("hdu_wrong_type", f"expected an IMAGE, found {kind!r} of {axes} axes")
        return tuple(self.header.get(f"NAXIS{n}") for n in range(axes, 0, -1))


def _scaled(values: np.ndarray, zero: float, scale: float) -> np.ndarray:
    if scale == 1 and zero == 0:
        return values
    bits = 8 * values.dtype.itemsize
    if scale == 1 and values.dtype.kind == "i" and zero == 2 ** (bits - 1):
        # The standard's way to store unsigned integers: flip the sign bit.
        unsigned = values.view(np.dtype(f"u{values.dtype.itemsize}"))
        return unsigned ^ unsigned.dtype.type(1 << (bits - 1))
    return values * scale + zero


@dataclass(frozen=True)
class Table:
    """A binary table; columns by lower-case name."""

    hdu: Hdu
    layout: TableLayout
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def __contains__(self, name: str) -> bool:
        return name in self.layout.dtype.fields

    def column(self, name: str) -> np.ndarray:
        """Return a column in native byte order; text as str, stripped; vectors flat (no TDIM).

        Raises
        ------
        InvalidRecord
            ``column_missing``.
        """
        if name not in self:
            self.hdu._refuse(
                "column_missing", f"expected a column {name!r}, found {list(self.rows.dtype.names)}"
            )
        values = self.rows[name]
        if values.dtype.kind == "S":
            return np.char.rstrip(np.char.decode(values, "ascii", "replace"))
        values = values.astype(values.dtype.newbyteorder("="))
        return _scaled(values, self.layout.zeros.get(name, 0), self.layout.scales.get(name, 1))

    def value(self, name: str, row: int = 0, default: Any = None) -> Any:
        """Return one cell as a Python scalar (text stripped), `default` without such a column."""
        if name not in self:
            return default
        cell = self.rows[name][row]
        if isinstance(cell, bytes):
            return cell.decode("ascii", "replace").rstrip("\x00 ")
        if name in self.layout.zeros or name in self.layout.scales:
            cell = self.column(name)[row]
        return cell.tolist()
