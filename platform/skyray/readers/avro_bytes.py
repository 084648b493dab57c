"""Avro from its bytes: containers and single messages, of bounded size, with damage named.

The container is walked here and only the records are decoded by fastavro: a library that reads the
whole container inflates any block it is given, and reports every damage alike. It decodes them by a
schema that was checked (`avro_schema`), from bytes whose counts were held against what is there
(`avro_layout`).

Source: Apache Avro 1.12 specification, "Object Container Files"; Confluent's wire format
(https://docs.confluent.io/platform/current/schema-registry/fundamentals/serdes-develop).
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import fastavro

from skyray.readers.avro_codecs import CODECS, BadBlock, TooLarge, inflated
from skyray.readers.avro_layout import Damaged, Measure, measure_of, value_end
from skyray.readers.avro_schema import BadSchema, Node, check_schema
from skyray.records import InvalidRecord

MAX_BLOCK_BYTES = 64 << 20
MAGIC = b"Obj\x01"
_WIRE, _WIRE_BYTES = b"\x00", 5  # Confluent: 0, then the schema's number, four bytes
_SINGLE_OBJECT = b"\xc3\x01"
_MAX_HEADER_ENTRIES = 1_000
_HEADER = {"type": "map", "values": "bytes"}
_HEADER_END = measure_of(Node("map", _HEADER, 1, parts=(Node("bytes", "bytes", 1),)))
_SYNC_BYTES = 16
_MAX_EMPTY = 1_000  # records of no bytes in a block
_DECODING = (
    ArithmeticError,
    ValueError,
    LookupError,
    TypeError,
    EOFError,
    MemoryError,
    StopIteration,
)


class Schemas(Protocol):
    """Where the schemas of messages are that carry only a number."""

    def text(self, number: int) -> bytes:
        """Return a schema's JSON; raises `InvalidRecord` (``schema_unknown``)."""


@dataclass(frozen=True)
class _Records:
    """How the records of a schema are read; `name` is the full name it gives them."""

    schema: Any
    measure: Measure
    least: int
    name: str


@lru_cache(maxsize=8)  # a survey's packets, a file each, repeat one schema of at most 1 MB
def _records_of(text: bytes) -> _Records:
    node = check_schema(text)
    try:
        schema = fastavro.parse_schema(node.schema)
    except (*_DECODING, fastavro.schema.SchemaParseException) as error:
        raise BadSchema(_said(error)) from None
    return _Records(schema, measure_of(node), node.least, node.name)


def avro_records(
    content: bytes, source: str, schemas: Schemas | None = None
) -> Iterator[dict[str, Any] | InvalidRecord]:
    """Yield the records of a container or message; after damage, an `InvalidRecord`.

    Raises
    ------
    InvalidRecord
        As `named_records`.
    """
    for record, _ in named_records(content, source, schemas):
        yield record


def named_records(
    content: bytes, source: str, schemas: Schemas | None = None
) -> Iterator[tuple[dict[str, Any] | InvalidRecord, str]]:
    """Yield the records of a container or message with the full name their schema gives them.

    Parameters
    ----------
    content : bytes
        An object container file (codecs null, deflate, snappy, zstandard, bzip2, xz), or one
        message in Confluent's wire format.
    schemas : Schemas, optional
        Where the schema of a message is.

    Raises
    ------
    InvalidRecord
        Where nothing can be read: ``file_empty``, ``not_avro``, ``schema_unknown`` (a message
        without its schema), ``avro_schema`` (none, or one that `check_schema` refuses),
        ``avro_codec``. From inside: ``avro_truncated``, ``avro_corrupt``, ``avro_too_large`` (a
        block that inflates beyond 64 MB).
    """
    if not content:
        raise InvalidRecord("file_empty", "expected an Avro container, found 0 bytes", source)
    if content.startswith(MAGIC):
        yield from _container(content, source)
    elif content.startswith(_WIRE) and len(content) > _WIRE_BYTES:
        yield _message(content, source, schemas)
    else:
        single = " (Avro's single-object encoding)" * content.startswith(_SINGLE_OBJECT)
        detail = f"expected {MAGIC!r} or Confluent's wire format, found {content[:16]!r}{single}"
        raise InvalidRecord("not_avro", detail, source)


def _message(content: bytes, source: str, schemas: Schemas | None) -> tuple[dict[str, Any], str]:
    number = int.from_bytes(content[1:_WIRE_BYTES], "big")
    if schemas is None:
        raise InvalidRecord(
            "schema_unknown",
            f"a message in Confluent's wire format, of schema {number}: expected reader option "
            "`schemas` (the URL of a registry, or a folder), found none",
            source,
        )
    try:
        records = _records_of(schemas.text(number))
    except BadSchema as error:
        raise InvalidRecord("avro_schema", f"schema {number}: {error}", source) from None
    record, end = _record(content, _WIRE_BYTES, records, source)
    if end != len(content):
        detail = f"schema {number}: expected a message of {end} bytes, found {len(content)}"
        raise InvalidRecord("avro_corrupt", detail, source)
    return record, records.name


def _container(content: bytes, source: str) -> Iterator[tuple[dict[str, Any] | InvalidRecord, str]]:
    stream = io.BytesIO(content)
    records, codec, sync = _header(stream, source)
    while stream.tell() < len(content):
        try:
            count, block = _block(stream, codec, sync, records.least, source)
            at = 0
            for _ in range(count):
                record, at = _record(block, at, records, source)
                yield record, records.name
            if at != len(block):
                detail = f"{count} records end at byte {at} of a block of {len(block)}"
                raise InvalidRecord("avro_corrupt", detail, source)
        except InvalidRecord as error:
            yield error, records.name
            return


def _header(stream: io.BytesIO, source: str) -> tuple[_Records, str, bytes]:
    try:
        end = value_end(_HEADER_END, stream.getvalue(), len(MAGIC), _MAX_HEADER_ENTRIES)
        stream.seek(len(MAGIC))
        meta = fastavro.schemaless_reader(stream, _HEADER)
        if stream.tell() != end:
            raise Damaged(f"expected a header of {end} bytes, found {stream.tell()}")
        records = _records_of(meta["avro.schema"])
        codec = meta.get("avro.codec", b"null").decode()
    except _DECODING as error:
        detail = f"expected a container header with a schema, found {_said(error)}"
        raise InvalidRecord("avro_schema", detail, source) from None
    if codec not in CODECS:
        detail = f"expected codec {', '.join(CODECS)}, found {codec[:40]!r}"
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
    try:
        block = inflated(codec, block, MAX_BLOCK_BYTES)
    except TooLarge:
        detail = f"a block inflates beyond {MAX_BLOCK_BYTES >> 20} MB"
        raise InvalidRecord("avro_too_large", detail, source) from None
    except BadBlock as error:
        raise InvalidRecord("avro_corrupt", str(error), source) from None
    if count * least > len(block) or (least == 0 and count > _MAX_EMPTY):
        detail = f"a block of {len(block)} bytes claims to hold {count} records"
        raise InvalidRecord("avro_corrupt", detail, source)
    return count, block


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
