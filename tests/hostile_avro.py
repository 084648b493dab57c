"""Makers of Avro containers that no survey writes: what each asks for, in few bytes.

``HOSTILE[name] = (container, reason it must be given)``. Run as a program with a reader's name it
reads them all, one name and reason a line: a body that kills its reader kills only that process.
"""

from __future__ import annotations

import json
import sys
import zlib
from pathlib import Path
from typing import Any

SYNC = b"0123456789abcdef"


def number(value: int) -> bytes:
    """A long of Avro's: zig-zag, seven bits a byte."""
    value = (value << 1) ^ (value >> 63)
    found = b""
    while value >= 128:
        found += bytes([value % 128 + 128])
        value //= 128
    return found + bytes([value])


def text(content: bytes) -> bytes:
    return number(len(content)) + content


def container(schema: Any, block: bytes = b"", count: int = 1, codec: bytes = b"null") -> bytes:
    """A container of one block. `schema` may be JSON's bytes."""
    if not isinstance(schema, bytes):
        schema = json.dumps(schema, separators=(",", ":")).encode()
    meta = number(2) + text(b"avro.schema") + text(schema) + text(b"avro.codec") + text(codec)
    if codec == b"deflate":
        deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
        block = deflate.compress(block) + deflate.flush()
    header = b"Obj\x01" + meta + b"\0" + SYNC
    return header + number(count) + number(len(block)) + block + SYNC


def record(*types: Any, name: str = "a", **more: Any) -> dict[str, Any]:
    """A record type whose fields have these types."""
    fields = [{"name": f"f{n}", "type": kind} for n, kind in enumerate(types)]
    return {"type": "record", "name": name, "fields": fields, **more}


def array(items: Any) -> dict[str, Any]:
    return {"type": "array", "items": items}


def mapping(values: Any) -> dict[str, Any]:
    return {"type": "map", "values": values}


def nested(depth: int, wrap: str) -> bytes:
    """A field's type within `depth` types; as text, since JSON's writer has a stack too."""
    start, end = {"union": ("[", "]"), "type": ('{"type":', "}"),
                  "array": ('{"type":"array","items":', "}"),
                  "record": ('{"type":"record","name":"r%d","fields":[{"name":"f","type":', "}]}")}[
        wrap
    ]  # fmt: skip
    opened = "".join(start % n if "%" in start else start for n in range(depth))
    inner = f'{opened}"int"{end * depth}'
    return f'{{"type":"record","name":"a","fields":[{{"name":"f","type":{inner}}}]}}'.encode()


def laughs(levels: int, leaf: Any) -> dict[str, Any]:
    """Records of two fields of the record below: a billion values of no bytes each."""
    kind: Any = record(leaf, name="r0")
    for level in range(1, levels):
        kind = record(kind, f"r{level - 1}", name=f"r{level}")
    return record(kind, "int")


BIG = number(1 << 62)
NO_BYTES = {
    "null": "null",
    "no fields": record(name="none"),
    "nulls": record("null", record(name="none"), "null", name="nulls"),
    "fixed 0": {"type": "fixed", "name": "x", "size": 0},
}
PARSED = {"__fastavro_parsed": True, "__named_schemas": {"a": record("a")}}

HOSTILE: dict[str, tuple[bytes, str]] = {
    "holds itself": (container(record("a"), b"\0"), "avro_schema"),
    "holds itself or null": (container(record(["null", "a"]), b"\2" * 300_000), "avro_schema"),
    "holds arrays of itself": (container(record(array("a")), b"\2" * 300_000), "avro_schema"),
    "holds maps of itself": (container(record(mapping("a")), b"\2\0" * 99_999), "avro_schema"),
    "holds itself by a detour": (
        container(record(record(["null", "a"], name="b")), b"\2" * 300_000), "avro_schema"
    ),
    "says it was parsed": (container(record("a", **PARSED), b"\0"), "avro_schema"),
    "says a part was parsed": (
        container(record(record("b", name="b", **PARSED)), b"\0"), "avro_schema"
    ),
    "union of itself": (container(["null", record(["null", "a"])], b"\2" * 300_000), "avro_schema"),
    "unions in unions": (container(nested(60, "union"), b"\0" * 99), "avro_schema"),
    "deep unions": (container(nested(900, "union"), b"\0" * 999), "avro_schema"),
    "deep types": (container(nested(400, "type"), b"\0"), "avro_schema"),
    "deep arrays": (container(nested(300, "array"), b"\2" * 999), "avro_schema"),
    "deep records": (container(nested(200, "record"), b"\2"), "avro_schema"),
    "deep JSON": (container(b"[" * 300_000), "avro_schema"),
    "deep JSON in a note": (
        container(b'{"type":7,"doc":' + b"[" * 900 + b"]" * 900 + b"}"), "avro_schema"
    ),
    "a billion nulls": (container(laughs(30, "null"), b"\2"), "avro_schema"),
    "a billion integers": (container(laughs(30, "int"), b"\2" * 999), "avro_schema"),
    **{f"array of {name}": (container(record(array(kind)), BIG + b"\0"), "avro_schema")
       for name, kind in NO_BYTES.items()},
    **{f"map of {name}": (container(record(mapping(kind)), BIG + b"\0"), "avro_schema")
       for name, kind in NO_BYTES.items()},
    "array of named nulls": (
        container(record(record("null", name="b"), array("b")), BIG), "avro_schema"
    ),
    "array of 2^62 integers": (container(record(array("int")), BIG + b"\2" * 9), "avro_corrupt"),
    "array of -2^62 integers": (
        container(record(array("int")), number(-(1 << 62)) + number(9) + b"\2" * 9), "avro_corrupt"
    ),
    "array of -2^63 integers": (
        container(record(array("int")), number(-(1 << 63)) + number(9) + b"\2" * 9), "avro_corrupt"
    ),
    "array block of other size": (
        container(record(array("int")), number(-3) + number(7) + b"\2\2\2\0"), "avro_corrupt"
    ),
    "map of 2^62": (container(record(mapping("int")), BIG + b"\2a\2" * 9), "avro_corrupt"),
    "arrays of arrays": (
        container(record(array(array(array("int")))), number(900_000) + b"\2\2\2\0\0" * 900_000,
                  codec=b"deflate"), "avro_corrupt"
    ),
    "many small records": (
        container(record(array(record("int", name="b"))), number(30 << 20) + bytes(30 << 20),
                  codec=b"deflate"), "avro_corrupt"
    ),
    "text of 2^62 bytes": (container(record("string"), BIG), "avro_corrupt"),
    "bytes of -1": (container(record("bytes"), number(-1) + b"abc"), "avro_corrupt"),
    "branch -1": (container(record(["null", "int"]), number(-1) + b"\0"), "avro_corrupt"),
    "branch 2^62": (container(record(["null", "int"]), BIG), "avro_corrupt"),
    "symbol -1": (
        container(record({"type": "enum", "name": "e", "symbols": ["g", "r"]}), number(-1)),
        "avro_corrupt",
    ),
    "integer without end": (container(record("long"), b"\xff" * 99_999), "avro_corrupt"),
    "fixed of 2^40": (
        container(record({"type": "fixed", "name": "x", "size": 1 << 40})), "avro_schema"
    ),
    "records of no bytes": (container(record(), b"", 1 << 62), "avro_corrupt"),
    "2^62 records": (container(record("int"), b"\2" * 9, 1 << 62), "avro_corrupt"),
    "header of 2^62 entries": (b"Obj\x01" + BIG + b"\0\0" * 99, "avro_schema"),
    "header of many entries": (b"Obj\x01" + number(9_999) + b"\2a\0" * 9_999 + b"\0" + SYNC,
                               "avro_schema"),
    "codec lz4": (container(record("int"), b"\2", codec=b"lz4"), "avro_codec"),
    "deflated zeros": (
        container(record("bytes"), bytes(200 << 20), codec=b"deflate"), "avro_too_large"
    ),
}  # fmt: skip


def main(reader_name: str) -> None:
    import resource

    from skyray.readers.base import make_reader
    from skyray.readers.memory import memory_file
    from skyray.records import InvalidRecord

    reader = make_reader(reader_name, {"fields": {}} if reader_name == "lsst" else {})
    sizes = Path("/proc/self/statm")
    if sizes.exists():
        limit = int(sizes.read_text().split()[0]) * resource.getpagesize() + (1 << 30)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for name, (content, _) in HOSTILE.items():
        try:
            found = list(reader.read(memory_file(content, "a.avro")))
        except InvalidRecord as error:
            found = [error]
        print(name, [getattr(item, "reason", "read") for item in found], sep=": ", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
