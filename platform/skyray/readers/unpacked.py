"""Compressed files, unpacked within limits: gzip, bzip2 and xz.

A few kilobytes can unpack to gigabytes, so that bytes are counted while they are unpacked, never
after. What may be unpacked follows from what came in: images and tables of measured light shrink to
a tenth at best, masks and empty frames to a hundredth.
"""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Callable

import pyarrow as pa

from skyray.records import InvalidRecord

FREE_BYTES = 64 << 20  # unpacked, however small the file: an empty frame of 4096² floats
MAX_RATIO = 100
MAX_UNPACKED_BYTES = 1 << 30
_CHUNK = 1 << 20

SUFFIXES = (".gz", ".bz2", ".xz")
_MAGIC = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz"}
_TRUNCATED = {"gzip": "gzip_truncated", "bzip2": "bzip2_truncated", "xz": "xz_truncated"}
_REFUSED = {
    b"\x1f\x9d": "compress (.Z)", b"\x28\xb5\x2f\xfd": "zstandard", b"7z\xbc\xaf\x27\x1c": "7z",
    b"Rar!": "rar", b"\x04\x22\x4d\x18": "lz4",
}  # fmt: skip
_FAULTS = (EOFError, OSError, ValueError, zlib.error, lzma.LZMAError)


def most_bytes(size: int) -> int:
    """Return how many bytes `size` compressed ones may unpack to."""
    return min(MAX_UNPACKED_BYTES, max(FREE_BYTES, MAX_RATIO * size))


def packing(head: bytes, source: str) -> str:
    """Return ``gzip``, ``bzip2``, ``xz``, or ``""`` for a file that is not compressed.

    Raises
    ------
    InvalidRecord
        ``compression_unknown`` for a compression that is not read.
    """
    for magic, name in _REFUSED.items():
        if head.startswith(magic):
            detail = f"expected a plain file, gzip, bzip2 or xz, found {name}; unpack it first"
            raise InvalidRecord("compression_unknown", detail, source)
    return next((name for magic, name in _MAGIC.items() if head.startswith(magic)), "")


def unpack(handle: pa.NativeFile, kind: str, source: str) -> bytes:
    """Return what a file holds, all its members after one another; zeros behind them are padding.

    Raises
    ------
    InvalidRecord
        ``unpacked_too_large`` (more than `most_bytes` of the file's size), ``gzip_truncated``,
        ``bzip2_truncated`` or ``xz_truncated``: the stream is cut, damaged or followed by others.
    """
    size = handle.size()
    limit, found, position = most_bytes(size), bytearray(), 0
    decoder, packed = None, b""
    try:
        while True:
            if not packed and position < size:
                packed = handle.read_at(_CHUNK, position)
                position += len(packed)
            if decoder is None:
                packed = packed.lstrip(b"\x00") if found else packed
                if not packed and position >= size:
                    return bytes(found)
                decoder = _DECODERS[kind]()
            piece, packed = decoder.feed(packed, limit + 1 - len(found))
            found += piece
            if len(found) > limit:
                detail = f"expected at most {limit:,} bytes from {size:,} of {kind}, found more"
                raise InvalidRecord("unpacked_too_large", detail, source)
            if decoder.eof:
                decoder = None
            elif not piece and not packed and position >= size:
                raise EOFError("the stream ends before its end")
    except _FAULTS as error:
        if isinstance(error, InvalidRecord):
            raise
        detail = f"expected a whole {kind} stream, found: {error}"
        raise InvalidRecord(_TRUNCATED[kind], detail, source) from None


class _Gzip:
    def __init__(self):
        self._decoder = zlib.decompressobj(16 + zlib.MAX_WBITS)

    @property
    def eof(self) -> bool:
        return self._decoder.eof

    def feed(self, packed: bytes, most: int) -> tuple[bytes, bytes]:
        """Return what was unpacked, at most `most` bytes, and what of `packed` is left."""
        piece = self._decoder.decompress(packed, most)
        return piece, self._decoder.unused_data or self._decoder.unconsumed_tail


class _Buffered:
    """The decoders of bz2 and lzma keep by themselves what they have not yet unpacked."""

    def __init__(self, make: Callable):
        self._decoder = make()

    @property
    def eof(self) -> bool:
        return self._decoder.eof

    def feed(self, packed: bytes, most: int) -> tuple[bytes, bytes]:
        pieces = [self._decoder.decompress(packed, most)]
        while not (self.eof or self._decoder.needs_input) and sum(map(len, pieces)) < most:
            pieces.append(self._decoder.decompress(b"", most - sum(map(len, pieces))))
        return b"".join(pieces), self._decoder.unused_data if self.eof else b""


_DECODERS = {
    "gzip": _Gzip,
    "bzip2": lambda: _Buffered(bz2.BZ2Decompressor),
    "xz": lambda: _Buffered(lambda: lzma.LZMADecompressor(memlimit=128 << 20)),
}
