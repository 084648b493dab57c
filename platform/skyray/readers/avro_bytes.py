"""Avro object container files from their bytes: blocks of bounded size, damage named.

The container is walked here and only the records are decoded by fastavro: a library that reads the
whole container inflates any block it is given, and reports every damage alike.

Source: Apache Avro 1.11 specification, "Object Container Files".
"""

from __future__ import annotations

import io
import json
import zlib
from collections.abc import Iterator
from typing import Any

import fastavro

from skyray.records import InvalidRecord

MAX_BLOCK_BYTES = 64 << 20
_MAGIC = b"Obj\x01"
_HEADER = {"type": "map", "values": "bytes"}
_DECODING = (
    ValueError,
    LookupError,
    TypeError,
    EOFError,
    OverflowError,
    MemoryError,
    StopIteration,
)


def avro_records(content: bytes, source: str) -> Iterator[dict[str, Any] | InvalidRecord]:
    """Yield the records of a container; after a block that is damaged, an `InvalidRecord`.

    Raises
    ------
    InvalidRecord
        Where nothing can be read: ``file_empty``, ``not_avro``, ``avro_schema``, ``avro_codec``
        (neither null nor deflate). From inside: ``avro_truncated``, ``avro_corrupt``,
        ``avro_too_large`` (a block that inflates beyond 64 MB).
    """
    if not content:
        raise InvalidRecord("file_empty", "expected an Avro container, found 0 bytes", source)
    if not content.startswith(_MAGIC):
        detail = f"expected {_MAGIC!r} at the start, found {content[:16]!r}"
        raise InvalidRecord("not_avro", detail, source)
    stream = io.BytesIO(content)
    schema, codec, sync = _header(stream, source)
    while stream.tell() < len(content):
        try:
            count, block = _block(stream, codec, sync, source)
            records = io.BytesIO(block)
            for _ in range(count):
                yield _record(records, schema, source)
        except InvalidRecord as error:
            yield error
            return


def _header(stream: io.BytesIO, source: str) -> tuple[Any, str, bytes]:
    stream.seek(len(_MAGIC))
    try:
        meta = fastavro.schemaless_reader(stream, _HEADER)
        schema = fastavro.parse_schema(json.loads(meta["avro.schema"]))
        codec = meta.get("avro.codec", b"null").decode()
    except (*_DECODING, fastavro.schema.SchemaParseException) as error:
        detail = f"expected a container header with a schema, found {_said(error)}"
        raise InvalidRecord("avro_schema", detail, source) from None
    if codec not in ("null", "deflate"):
        detail = f"expected codec null or deflate, found {codec!r}"
        raise InvalidRecord("avro_codec", detail, source)
    return schema, codec, stream.read(16)


def _block(stream: io.BytesIO, codec: str, sync: bytes, source: str) -> tuple[int, bytes]:
    """Return the number of records of the next block and its inflated bytes."""
    try:
        count, size = (fastavro.schemaless_reader(stream, "long") for _ in range(2))
    except _DECODING:
        raise InvalidRecord("avro_truncated", "a block ends in its header", source) from None
    if size < 0 or not 0 <= count <= max(size, 1):
        detail = f"a block of {size} bytes claims to hold {count} records"
        raise InvalidRecord("avro_corrupt", detail, source)
    block, end = stream.read(size), stream.read(16)
    if len(block) < size or len(end) < 16:
        detail = f"expected a block of {size} bytes, found {len(block)}"
        raise InvalidRecord("avro_truncated", detail, source)
    if end != sync:
        raise InvalidRecord("avro_corrupt", "a block does not end in the sync marker", source)
    return count, _inflated(block, source) if codec == "deflate" else block


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


def _record(stream: io.BytesIO, schema: Any, source: str) -> dict[str, Any]:
    try:
        found = fastavro.schemaless_reader(stream, schema)
    except _DECODING as error:
        raise InvalidRecord("avro_corrupt", _said(error), source) from None
    if not isinstance(found, dict):
        raise InvalidRecord("avro_schema", f"expected a record, found {type(found)}", source)
    return found


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:200]
