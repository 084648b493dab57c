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
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from skyray.readers.base import SurveyFile
from skyray.readers.fits_header import (
    CARD,
    IMAGE_TYPES,
    BadHeader,
    Header,
    TableLayout,
    scaled,
    table_layout,
)
from skyray.records import InvalidRecord

MAX_HDUS = 10_000
MAX_HEADER_BLOCKS = 1_000  # 36,000 cards

_BLOCK = 2880
_END = b"END" + b" " * 77
_HEAD_BYTES = 262_144  # holds the first three HDUs of an SDSS spec file; later ones stay unread
_GZIP = b"\x1f\x8b"


class FitsFile:
    """A survey file read as FITS; plain or gzip-compressed.

    Raises
    ------
    InvalidRecord
        From the constructor or any reading: ``file_empty``, ``file_is_zip``, ``file_is_html``,
        ``not_fits``, ``gzip_truncated``, ``header_truncated``, ``header_too_long``,
        ``header_invalid``, ``too_many_hdus``, ``data_truncated``, ``hdu_missing``,
        ``hdu_wrong_type``, ``column_missing``.
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
        """Yield the HDUs in their order, at most `MAX_HDUS`; each is read when it is asked for."""
        index = 0
        while True:
            if index == len(self._hdus):
                at = self._hdus[-1].end if self._hdus else 0
                if at >= self.size:
                    return
                if index == MAX_HDUS:
                    self.refuse("too_many_hdus", f"expected at most {MAX_HDUS:,} HDUs, found more")
                hdu = self._read_hdu(index, at)
                if hdu.end <= at:  # whatever a header says, the next one lies behind it
                    detail = f"HDU {index}: expected its end behind byte {at}, found {hdu.end}"
                    self.refuse("header_invalid", detail)
                self._hdus.append(hdu)
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
            found = [h.name or f"#{h.index}" for h in self._hdus[:40]]
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
        window, longest = 16 * _BLOCK, MAX_HEADER_BLOCKS * _BLOCK
        while True:
            text = bytes(self.read(at, window))
            end = text.find(_END)
            while end >= 0 and end % CARD:
                end = text.find(_END, end + 1)
            if end >= 0:
                break
            if at + window >= self.size:
                self.refuse("header_truncated", f"HDU {index}: expected END, found end of file")
            if window >= longest:
                detail = f"HDU {index}: expected END within {longest:,} bytes, found none"
                self.refuse("header_too_long", detail)
            window = min(4 * window, longest)
        header = Header(text[:end])
        try:
            size = header.data_bytes()
        except BadHeader as error:
            self.refuse("header_invalid", f"HDU {index}: {error}")
        return Hdu(self, index, header, at + _BLOCK * (end // _BLOCK + 1), size)


def check_headers(file: SurveyFile) -> None:
    """Read every header of a file that astropy is to open: it follows whatever they say.

    Raises
    ------
    InvalidRecord
        What `FitsFile` refuses.
    """
    with FitsFile(file) as fits:
        for _ in fits.hdus():
            pass


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
            layout = table_layout(self.header)
            rows = self.header.integer("NAXIS2", 0, self.size // layout.dtype.itemsize)
        except BadHeader as error:
            self._refuse("header_invalid", str(error))
        size = rows * layout.dtype.itemsize
        content = self._bytes(0, size)
        return Table(self, layout, np.frombuffer(content, layout.dtype, count=rows))

    def image_rows(self, start: int, stop: int) -> np.ndarray:
        """Return rows of the last axis of an image (for a 1-D image: pixels), native byte order.

        Raises
        ------
        InvalidRecord
            ``hdu_wrong_type``, ``header_invalid`` or ``data_truncated``.
        """
        shape = self.shape
        row = math.prod(shape[1:])
        dtype = np.dtype(IMAGE_TYPES[self.header.get("BITPIX")])
        content = self._bytes(start * row * dtype.itemsize, (stop - start) * row * dtype.itemsize)
        values = np.frombuffer(content, dtype).reshape(stop - start, *shape[1:])
        values = values.astype(dtype.newbyteorder("="))
        try:
            zero, scale = self.header.factor("BZERO", 0), self.header.factor("BSCALE", 1)
        except BadHeader as error:
            self._refuse("header_invalid", str(error))
        return scaled(values, zero, scale)

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
        return scaled(values, self.layout.zeros.get(name, 0), self.layout.scales.get(name, 1))

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
