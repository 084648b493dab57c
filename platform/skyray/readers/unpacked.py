"""Compressed files, unpacked within limits: gzip, bzip2, xz and zstandard.

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

from skyray.readers.base import SurveyFile
from skyray.records import InvalidRecord

FREE_BYTES = 64 << 20  # unpacked, however small the file: an empty frame of 4096² floats
MAX_RATIO = 100
MAX_UNPACKED_BYTES = 1 << 30
_CHUNK = 1 << 20
_PIECE = 16 << 20  # held beside what was unpacked before

SUFFIXES = (".gz", ".bz2", ".xz", ".zst")
_MAGIC = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz",
          b"\x28\xb5\x2f\xfd": "zstandard"}  # fmt: skip
_TRUNCATED = {
    "gzip": "gzip_truncated", "bzip2": "bzip2_truncated", "xz": "xz_truncated",
    "zstandard": "zstandard_truncated",
}  # fmt: skip
_REFUSED = {
    b"\x1f\x9d": "compress (.Z)", b"7z\xbc\xaf\x27\x1c": "7z", b"Rar!": "rar",
    b"\x04\x22\x4d\x18": "lz4",
}  # fmt: skip
_FAULTS = (EOFError, OSError, ValueError, zlib.error, lzma.LZMAError, pa.ArrowException)


def most_bytes(size: int) -> int:
    """Return how many bytes `size` compressed ones may unpack to."""
    return min(MAX_UNPACKED_BYTES, max(FREE_BYTES, MAX_RATIO * size))


def plain_name(name: str) -> str:
    """Return a name without what says that it is compressed: ``a.csv.gz`` → ``a.csv``."""
    packed = next((suffix for suffix in SUFFIXES if name.lower().endswith(suffix)), "")
    return name[: len(name) - len(packed)]


def packing(head: bytes, source: str) -> str:
    """Return ``gzip``, ``bzip2``, ``xz``, ``zstandard``; ``""`` for a plain file.

    Raises
    ------
    InvalidRecord
        ``compression_unknown`` for a compression that is not read.
    """
    for magic, name in _REFUSED.items():
        if head.startswith(magic):
            known = "a plain file, gzip, bzip2, xz or zstandard"
            detail = f"expected {known}, found {name}; unpack it first"
            raise InvalidRecord("compression_unknown", detail, source)
    return next((name for magic, name in _MAGIC.items() if head.startswith(magic)), "")


def unpack(handle: pa.NativeFile, kind: str, source: str, most: int | None = None) -> bytes:
    """Return what a file holds, all its members after one another; zeros behind them are padding.

    Parameters
    ----------
    most : int, optional
        Bytes that it may unpack to, where these are fewer than `most_bytes` of the file's size.

    Raises
    ------
    InvalidRecord
        ``unpacked_too_large``, ``gzip_truncated``, ``bzip2_truncated`` …: the stream is cut,
        damaged or followed by others.
    """
    size = handle.size()
    limit = min(most_bytes(size), most_bytes(size) if most is None else most)
    try:
        found = (_zstandard if kind == "zstandard" else _members)(handle, kind, size, limit)
    except _FAULTS as error:
        detail = f"expected a whole {kind} stream, found: {error}"
        raise InvalidRecord(_TRUNCATED[kind], detail, source) from None
    if len(found) > limit:
        detail = f"expected at most {limit:,} bytes from {size:,} of {kind}, found more"
        raise InvalidRecord("unpacked_too_large", detail, source)
    return bytes(found)


def unpacked_bytes(file: SurveyFile) -> bytes:
    """Return the content of a file, unpacked where it is compressed.

    Raises
    ------
    InvalidRecord
        What `packing` and `unpack` refuse.
    """
    with file.filesystem.open_input_file(file.path) as handle:
        kind = packing(handle.read_at(8, 0), file.path)
        return unpack(handle, kind, file.path) if kind else handle.read_at(handle.size(), 0)


def _zstandard(handle: pa.NativeFile, kind: str, size: int, limit: int) -> bytearray:
    content, found = handle.read_at(size, 0), bytearray()
    with pa.CompressedInputStream(pa.BufferReader(content), "zstd") as stream:
        while piece := stream.read(min(_CHUNK, limit + 1 - len(found))):
            found += piece
    return found


def _members(handle: pa.NativeFile, kind: str, size: int, limit: int) -> bytearray:
    found, position = bytearray(), 0
    decoder, packed = None, b""
    while True:
        if not packed and position < size:
            packed = handle.read_at(_CHUNK, position)
            position += len(packed)
        if decoder is None:
            packed = packed.lstrip(b"\x00") if found else packed
            if not packed and position >= size:
                return found
            decoder = _DECODERS[kind]()
        piece, packed = decoder.feed(packed, min(_PIECE, limit + 1 - len(found)))
        found += piece
        if len(found) > limit:
            return found
        if decoder.eof:
            decoder = None
        elif not piece and not packed and position >= size:
            raise EOFError("the stream ends before its end")


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
