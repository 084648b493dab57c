"""Tile-compressed images, unpacked by astropy after their numbers were checked.

astropy's decoders, partly in C, believe what a header says of sizes; so the size of the image, of
its tiles and of what each tile unpacks to are bounded here before they see it.

Source: FITS Standard 4.0, section 10.
"""

from __future__ import annotations

import io
import math
import warnings
import zlib
from typing import TYPE_CHECKING

import astropy.io.fits
import numpy as np

from skyray.readers.fits_header import MAX_AXES, BadHeader, Header
from skyray.readers.unpacked import most_bytes

if TYPE_CHECKING:
    from skyray.readers.fits_bytes import Hdu

_ALGORITHMS = ("RICE_1", "RICE_ONE", "GZIP_1", "GZIP_2", "PLIO_1", "HCOMPRESS_1", "NOCOMPRESS")
_DITHERS = ("", "NONE", "NO_DITHER", "SUBTRACTIVE_DITHER_1", "SUBTRACTIVE_DITHER_2")
_PRIMARY = b"".join(
    card.ljust(80)
    for card in (b"SIMPLE  =                    T", b"BITPIX  =                    8",
                 b"NAXIS   =                    0", b"END")
).ljust(2880)  # fmt: skip


def tiled_shape(hdu: Hdu) -> tuple[int, ...]:
    """Return the shape of a compressed image in numpy's order.

    Raises
    ------
    InvalidRecord
        ``header_invalid``, ``unpacked_too_large``.
    """
    header = hdu.header
    try:
        axes = header.integer("ZNAXIS", 1, MAX_AXES)
        bits = header.integer("ZBITPIX", -64, 64)
        shape = tuple(header.integer(f"ZNAXIS{n}", 0, 2**31 - 1) for n in range(axes, 0, -1))
    except BadHeader as error:
        hdu.refuse("header_invalid", str(error))
    size, limit = math.prod(shape) * abs(bits) // 8, most_bytes(hdu.size)
    if size > limit:
        detail = f"expected at most {limit:,} bytes from {hdu.size:,} compressed, found {size:,}"
        hdu.refuse("unpacked_too_large", detail)
    return shape


def image_header(hdu: Hdu) -> Header:
    """Return the header of an image as it was before compression.

    Raises
    ------
    InvalidRecord
        ``tiles_invalid``, or what `tiled_shape` refuses.
    """
    if hdu.header.compressed != "image":
        return hdu.header
    tiled_shape(hdu)  # whose numbers astropy follows
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with astropy.io.fits.open(io.BytesIO(_PRIMARY + hdu.raw())) as file:
                text = file[1].header.tostring(endcard=False, padding=False)
        except Exception as error:  # headers of strangers make astropy raise anything
            hdu.refuse("tiles_invalid", f"expected the header of an image: {error}"[:300])
    return Header(text.encode("utf-8"))


def read_tiles(hdu: Hdu, start: int, stop: int) -> np.ndarray:
    """Return rows of the last axis of a compressed image, scaled, NaN where it is blank.

    Raises
    ------
    InvalidRecord
        ``header_invalid``, ``unpacked_too_large``, ``tiles_invalid``.
    """
    shape = tiled_shape(hdu)
    _check_tiles(hdu, shape)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            content = io.BytesIO(_PRIMARY + hdu.raw())
            with astropy.io.fits.open(content, do_not_scale_image_data=True) as file:
                whole = (start, stop) == (0, shape[0])
                values = file[1].data if whole else file[1].section[start:stop]
                values = np.asarray(values).reshape(stop - start, *shape[1:])
        except Exception as error:  # decoders of foreign bytes raise anything
            detail = f"expected compressed tiles, found: {type(error).__name__}: {error}"
            hdu.refuse("tiles_invalid", detail[:300])
    return values.astype(values.dtype.newbyteorder("="), copy=False)


def _check_tiles(hdu: Hdu, shape: tuple[int, ...]) -> None:
    header = hdu.header
    try:
        algorithm = header.text("ZCMPTYPE", "none").strip().upper()
        if algorithm not in _ALGORITHMS:
            raise BadHeader(f"ZCMPTYPE: expected one of {_ALGORITHMS}, found {algorithm!r}")
        if (dither := header.text("ZQUANTIZ").strip().upper()) not in _DITHERS:
            raise BadHeader(f"ZQUANTIZ: expected one of {_DITHERS}, found {dither!r}")
        tile = _tile_shape(header, shape)
        tiles = math.prod(-(-size // part) for size, part in zip(shape, tile, strict=True))
        header.integer("NAXIS2", tiles, tiles)
        if algorithm.startswith("RICE"):
            _check_settings(header, {"BLOCKSIZE": range(1, 65536), "BYTEPIX": (1, 2, 4)})
        if algorithm == "HCOMPRESS_1":
            _check_settings(header, {"SCALE": range(2**31), "SMOOTH": range(2)})
    except BadHeader as error:
        hdu.refuse("header_invalid", str(error))
    table, most = hdu.rows_table(), 8 * math.prod(tile)
    for name in ("COMPRESSED_DATA", "GZIP_COMPRESSED_DATA"):
        for number, packed in enumerate(table.column(name) if name in table else ()):
            if not len(packed):
                continue
            fault = ""
            if name.startswith("GZIP") or algorithm.startswith("GZIP"):
                fault = _gzip_fault(packed.tobytes(), most)
            elif algorithm == "HCOMPRESS_1":
                fault = _hcompress_fault(packed.tobytes(), math.prod(tile))
            elif algorithm == "PLIO_1":
                fault = _plio_fault(packed)
            if fault:
                hdu.refuse("tiles_invalid", f"tile {number}: {fault}")


def _tile_shape(header: Header, shape: tuple[int, ...]) -> tuple[int, ...]:
    sizes = reversed(shape)
    found = [
        header.integer(f"ZTILE{n}", 1, 2**31 - 1, default=(size or 1) if n == 1 else 1)
        for n, size in enumerate(sizes, start=1)
    ]
    return tuple(min(part, size or 1) for part, size in zip(reversed(found), shape, strict=True))


def _check_settings(header: Header, allowed: dict) -> None:
    for n in range(1, 1000):
        name = str(header.get(f"ZNAME{n}", "")).strip().upper()
        if not name:
            return
        value = header.get(f"ZVAL{n}")
        if name in allowed and (value != int(value or 0) or int(value) not in allowed[name]):
            raise BadHeader(f"ZVAL{n}: expected a {name} that is possible, found {value!r}")


def _gzip_fault(packed: bytes, most: int) -> str:
    """Return what is wrong with a gzip tile; it is unpacked no further than it may be."""
    decoder = zlib.decompressobj(16 + zlib.MAX_WBITS)
    try:
        found = len(decoder.decompress(packed, most + 1))
    except zlib.error as error:
        return f"expected gzip, found: {error}"
    if found > most or decoder.unused_data.strip(b"\0") or not decoder.eof:
        return f"expected one whole gzip stream of at most {most:,} bytes, found another"
    return ""


def _hcompress_fault(packed: bytes, pixels: int) -> str:
    """Return what is wrong with the sizes that an HCOMPRESS stream begins with."""
    if len(packed) < 14 or packed[:2] != b"\xdd\x99":
        return f"expected an HCOMPRESS stream, found {packed[:2]!r}"
    rows, columns = (int.from_bytes(packed[at : at + 4], "big", signed=True) for at in (2, 6))
    if min(rows, columns) < 1 or rows * columns > pixels:
        return f"expected at most {pixels:,} pixels, found {rows} × {columns}"
    return ""


def _plio_fault(words: np.ndarray) -> str:
    """Return what is wrong with the length that an IRAF pixel list begins with."""
    if words.dtype != np.int16 or len(words) < 3:
        return f"expected a pixel list of 16-bit words, found {len(words)} {words.dtype}"
    if words[2] > 0:
        stated = int(words[2])
    elif len(words) >= 5:
        stated = (int(words[4]) << 15) + int(words[3])
    else:
        return "expected the length of a pixel list, found none"
    return "" if 0 < stated <= len(words) else f"expected {len(words)} words, found {stated}"
