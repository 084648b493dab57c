"""Avro object container files from their bytes: blocks of bounded size, damage named.

The container is walked here and only the records are decoded by fastavro: a library that reads the
whole container inflates any block it is given, and reports every damage alike. It decodes them by a
schema that was checked (`avro_schema`), from bytes whose counts were held against what is there
(`avro_layout`).

Source: Apache Avro 1.11 specification, "Object Container Files".
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import fastavro

from skyray.readers.avro_layout import Damaged, Measure, measure_of, value_end
from skyray.readers.avro_schema import BadSchema, Node, check_schema
from skyray.records import InvalidRecord

MAX_BLOCK_BYTES = 64 << 20
_MAGIC = b"Obj\x01"
_MAX_HEADER_ENTRIES = 1_000
_HEADER = {"type": "map", "values": "bytes"}
_HEADER_END = measure_of(Node("map", _HEADER, 1, parts=(Node("bytes", "bytes", 1),)))
_SYNC_BYTES = 16
_DECODING = (
    ValueError,
    LookupError,
    TypeError,
    EOFError,
    OverflowError,
    MemoryError,
    StopIteration,
)


@dataclass(frozen=True)
class _Records:
    """How the records of a container are read."""

    schema: Any
    measure: Measure
    least: int


@lru_cache(maxsize=8)  # a survey's packets, a file each, repeat one schema of at most 1 MB
def _records_of(text: bytes) -> _Records:
    node = check_schema(text)
    try:
        schema = fastavro.parse_schema(node.schema)
    except (*_DECODING, fastavro.schema.SchemaParseException) as error:
        raise BadSchema(_said(error)) from None
    return _Records(schema, measure_of(node), node.least)


def avro_records(content: bytes, source: str) -> Iterator[dict[str, Any] | InvalidRecord]:
    """Yield the records of a container; after a block that is damaged, an `InvalidRecord`.

    Raises
    ------
    InvalidRecord
        Where nothing can be read: ``file_empty``, ``not_avro``, ``avro_schema`` (none, or one that
        `check_schema` refuses), ``avro_codec`` (neither null nor deflate). From inside:
        ``avro_truncated``, ``avro_corrupt``, ``avro_too_large`` (a block that inflates beyond
        64 MB).
    """
    if not content:
        raise InvalidRecord("file_empty", "expected an Avro container, found 0 bytes", source)
    if not content.startswith(_MAGIC):
        detail = f"expected {_MAGIC!r} at the start, found {content[:16]!r}"
        raise InvalidRecord("not_avro", detail, source)
    stream = io.BytesIO(content)
    records, codec, sync = _header(stream, source)
    while stream.tell() < len(content):
        try:
            count, block = _block(stream, codec, sync, records.least, source)
            at = 0
            for _ in range(count):
                record, at = _record(block, at, records, source)
                yield record
        except InvalidRecord as error:
            yield error
            return


def _header(stream: io.BytesIO, source: str) -> tuple[_Records, str, bytes]:
    try:
        end = value_end(_HEADER_END, stream.getvalue(), len(_MAGIC), _MAX_HEADER_ENTRIES)
        stream.seek(len(_MAGIC))
        meta = fastavro.schemaless_reader(stream, _HEADER)
        if stream.tell() != end:
            raise Damaged(f"expected a header of {end} bytes, found {stream.tell()}")
        records = _records_of(meta["avro.schema"])
        codec = meta.get("avro.codec", b"null").decode()
    except _DECODING as error:
        detail = f"expected a container header with a schema, found {_said(error)}"
        raise InvalidRecord("avro_schema", detail, source) from None
    if codec not in ("null", "deflate"):
        detail = f"expected codec null or deflate, found {codec[:40]!r}"
        raise InvalidRecord("avro_codec", detail, source)
    return records, codec, stream.read(_SYNC_BYTES)


def _block(
    stream: io.BytesIO, codec: str, sync: bytes, least: int, source: str
) -> tuple[int, bytes]:
    """Return the number of records of the next block and its inflated bytes."""
    try:
        count, size = (fastavro.schemaless_reader(stream, "long") for _ in range(2))
    except _DECODING:
        raise InvalidRecord("avro_truncated", "a block ends in its header", source) from None
    if size < 0 or count < 0:
        detail = f"a block of {size} bytes claims to hold {count} records"
        raise InvalidRecord("avro_corrupt", detail, source)
    block, end = stream.read(size), stream.read(_SYNC_BYTES)
    if len(block) < size or len(end) < _SYNC_BYTES:
        detail = f"expected a block of {size} bytes, found {len(block)}"
        raise InvalidRecord("avro_truncated", detail, source)
    if end != sync:
        raise InvalidRecord("avro_corrupt", "a block does not end in the sync marker", source)
    block = _inflated(block, source) if codec == "deflate" else block
    if count * max(least, 1) > len(block):
        detail = f"a block of {len(block)} bytes claims to hold {count} records"
        raise InvalidRecord("avro_corrupt", detail, source)
    return count, block


def _inflated(block: bytes, source: str) -> bytes:
    decoder = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        found = decoder.decompress(block, MAX_BLOCK_BYTES)
    except zlib.error as error:
        raise InvalidRecord("avro_corrupt", f"deflate: {error}", source) from None
    if decoder.unconsumed_tail:
        detail = f"a block inflates beyond {MAX_BLOCK_BYTES >> 20} MB"
        raise InvalidRecord("avro_too_large", detail, source)
    return found


def _record(block: bytes, start: int, records: _Records, source: str) -> tuple[dict[str, Any], int]:
    """Return the record that begins at `start` of a block, and where it ends."""
    try:
        end = value_end(records.measure, block, start)
        stream = io.BytesIO(block[start:end])
        found = fastavro.schemaless_reader(stream, records.schema)
        if stream.tell() != end - start:
            raise Damaged(f"expected a record of {end - start} bytes, found {stream.tell()}")
    except _DECODING as error:
        raise InvalidRecord("avro_corrupt", _said(error), source) from None
    return found, end


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:300]
