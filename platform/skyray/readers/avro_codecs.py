"""Codecs of Avro blocks, each inflated to a limit and no further.

Source: Apache Avro 1.12 specification, "Required Codecs" and "Optional Codecs"; Snappy format
description ("Preamble": the length, a variable-length integer).
"""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Callable

import pyarrow as pa

_XZ_MEMORY = 256 << 20  # xz -9 takes 65 MB
_CRC_BYTES = 4


class TooLarge(ValueError):
    """A block that inflates beyond the limit."""


class BadBlock(ValueError):
    """A block that its codec cannot inflate."""


def _null(block: bytes, most: int) -> bytes:
    if len(block) > most:
        raise TooLarge
    return block


def _deflate(block: bytes, most: int) -> bytes:
    decoder = zlib.decompressobj(-zlib.MAX_WBITS)
    found = decoder.decompress(block, most)
    if decoder.unconsumed_tail:
        raise TooLarge
    if not decoder.eof:
        raise BadBlock("deflate: expected a whole stream, found its start")
    return found


def _bzip2(block: bytes, most: int) -> bytes:
    return _streamed(bz2.BZ2Decompressor(), block, most)


def _xz(block: bytes, most: int) -> bytes:
    return _streamed(lzma.LZMADecompressor(memlimit=_XZ_MEMORY), block, most)


def _streamed(decoder: bz2.BZ2Decompressor | lzma.LZMADecompressor, block: bytes, most: int):
    found = decoder.decompress(block, most + 1)
    if len(found) > most:
        raise TooLarge
    if not decoder.eof:
        raise BadBlock("expected a whole stream, found its start")
    return found


def _zstandard(block: bytes, most: int) -> bytes:
    with pa.CompressedInputStream(pa.BufferReader(block), "zstd") as stream:
        found = stream.read(most + 1)
    if len(found) > most:
        raise TooLarge
    return found


def _snappy(block: bytes, most: int) -> bytes:
    """A raw Snappy block and the CRC-32 of what it holds, four bytes, big-endian."""
    if len(block) <= _CRC_BYTES:
        raise BadBlock(f"expected data and a checksum, found {len(block)} bytes")
    data, crc = block[:-_CRC_BYTES], int.from_bytes(block[-_CRC_BYTES:], "big")
    size = _snappy_length(data)
    if size > most:
        raise TooLarge
    found = pa.Codec("snappy").decompress(data, size, asbytes=True) if size else b""
    if zlib.crc32(found) != crc:
        raise BadBlock("the checksum of a block does not fit")
    return found


def _snappy_length(data: bytes) -> int:
    size = 0
    for number, byte in enumerate(data[:5]):
        size |= (byte & 127) << 7 * number
        if byte < 128:
            return size
    raise BadBlock("expected a length of 32 bits, found a longer one")


CODECS: dict[str, Callable[[bytes, int], bytes]] = {
    "null": _null,
    "deflate": _deflate,
    "snappy": _snappy,
    "zstandard": _zstandard,
    "bzip2": _bzip2,
    "xz": _xz,
}


def inflated(codec: str, block: bytes, most: int) -> bytes:
    """Return a block's content of at most `most` bytes.

    Raises
    ------
    TooLarge, BadBlock
    """
    try:
        return CODECS[codec](block, most)
    except (TooLarge, BadBlock):
        raise
    except (zlib.error, lzma.LZMAError, pa.ArrowException, OSError, ValueError, EOFError) as error:
        raise BadBlock(f"{codec}: {error}"[:200]) from None
    except MemoryError:
        raise TooLarge from None
