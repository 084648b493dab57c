"""Avro written by fastavro over the whole specification: ours must agree with its reader or refuse.

``SKYRAY_EXAMPLES`` sets the number of files (`make differential` takes 50,000).
"""

from __future__ import annotations

import collections
import io
import json
import math
import os
import random
import uuid
import zlib
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

import fastavro
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from tests.hostile_avro import container

from skyray.readers.avro_bytes import avro_records, named_records
from skyray.records import InvalidRecord

EXAMPLES = int(os.environ.get("SKYRAY_EXAMPLES", "2000"))
# What refuses a file that fastavro reads: nothing else may.
ALLOWED = {"avro_schema", "decimal"}
LEAST_READ = 0.9
CODECS = ("null", "deflate", "bzip2", "xz", "snappy", "zstandard")
PRIMITIVES = ("null", "boolean", "int", "long", "float", "double", "bytes", "string")
LOGICAL = {
    "date": "int", "time-millis": "int", "time-micros": "long", "timestamp-millis": "long",
    "timestamp-micros": "long", "local-timestamp-millis": "long", "local-timestamp-micros": "long",
    "timestamp-nanos": "long", "no-such-type": "long", "uuid": "string", "decimal": "bytes",
}  # fmt: skip


class Maker:
    """Draws a schema and data that fit it from one seed, as `random` does: fast, and shrinkable."""

    def __init__(self, seed: int):
        self.draw = random.Random(seed)
        self.named: list[str] = []  # full names of types that are complete
        self.open: list[str] = []
        self.count = 0

    def name(self, space: str) -> tuple[dict[str, str], str]:
        """A new name in one of the three ways to write it, and in full."""
        self.count += 1
        short = f"{self.draw.choice(['t', 'alert', 'x_'])}{self.count}"
        way = self.draw.randrange(3)
        if way == 0:
            return {"name": short}, f"{space}.{short}" if space else short
        other = self.draw.choice(["a.b", "lsst.v9_0", "z"])
        if way == 1:
            return {"name": short, "namespace": other}, f"{other}.{short}"
        return {"name": f"{other}.{short}"}, f"{other}.{short}"

    def schema(self, space: str = "", depth: int = 0) -> Any:
        draw = self.draw
        known = [full for full in self.named if "." in full or not space]
        if known and draw.random() < 0.08:
            return draw.choice(known)
        if self.open and depth > 1 and draw.random() < 0.02:
            return ["null", draw.choice(self.open)]  # a type that holds itself
        kinds = ["primitive"] * 6 + ["logical"] * 3 + ["fixed", "enum", "wrapped"]
        if depth < 4:
            kinds += ["array", "map", "union", "union", "record"]
        return getattr(self, "_" + draw.choice(kinds))(space, depth + 1)

    def record(self, space: str, depth: int, fields: int | None = None) -> dict[str, Any]:
        about, full = self.name(space)
        inner = full.rpartition(".")[0]
        self.open.append(full)
        number = self.draw.randrange(5) if fields is None else fields
        made = {"type": "record", **about, "doc": "d", "aliases": [f"old{self.count}"],
                "fields": [self._field(n, inner, depth) for n in range(number)]}  # fmt: skip
        self.open.remove(full)
        self.named.append(full)
        return made

    def _field(self, number: int, space: str, depth: int) -> dict[str, Any]:
        found = {"name": f"f{number}", "type": self.schema(space, depth)}
        if isinstance(found["type"], list) and found["type"][0] == "null":
            found["default"] = None
        return {**found, "order": "ignore", "aliases": [f"g{number}"]}

    def _record(self, space: str, depth: int) -> Any:
        return self.record(space, depth)

    def _primitive(self, space: str, depth: int) -> Any:
        return self.draw.choice(PRIMITIVES)

    def _wrapped(self, space: str, depth: int) -> Any:
        return {"type": self.draw.choice(PRIMITIVES), "doc": "d", "unit": "nJy"}

    def _logical(self, space: str, depth: int) -> Any:
        logical, base = self.draw.choice(list(LOGICAL.items()))
        found = {"type": base, "logicalType": logical}
        if logical == "decimal":
            precision = self.draw.randint(1, 40)
            found |= {"precision": precision, "scale": self.draw.randint(0, precision)}
        return found

    def _fixed(self, space: str, depth: int) -> Any:
        about, full = self.name(space)
        self.named.append(full)
        found = {"type": "fixed", **about, "size": self.draw.randint(1, 20)}
        if self.draw.random() < 0.3:
            digits = max(1, int((8 * found["size"] - 1) * math.log10(2)))
            found |= {"logicalType": "decimal", "precision": digits, "scale": digits // 2}
        return found

    def _enum(self, space: str, depth: int) -> Any:
        about, full = self.name(space)
        self.named.append(full)
        return {"type": "enum", **about, "symbols": list("ugrizy"), "default": "g"}

    def _array(self, space: str, depth: int) -> Any:
        return {"type": "array", "items": self.schema(space, depth), "default": []}

    def _map(self, space: str, depth: int) -> Any:
        return {"type": "map", "values": self.schema(space, depth)}

    def _union(self, space: str, depth: int) -> Any:
        branches: dict[str, Any] = {"null": "null"}
        for _ in range(self.draw.randint(1, 3)):
            before = len(self.named)
            kind = self.schema(space, depth)
            about = kind if isinstance(kind, str | list) else kind.get("name", kind["type"])
            if isinstance(kind, list) or str(about) in branches:
                del self.named[before:]  # what was named in a branch that is not used
            else:
                branches[str(about)] = kind
        found = list(branches.values())
        return found if self.draw.random() < 0.7 else found[::-1]


def value(kind: Any, named: dict[str, Any], draw: random.Random) -> Any:
    """A value of a parsed schema's type; extremes are as likely as the rest."""
    if isinstance(kind, list):
        return value(draw.choice(kind), named, draw)
    if isinstance(kind, str):
        kind = named.get(kind, {"type": kind})
    if logical := kind.get("logicalType"):
        made = logical_value(logical, kind, draw)
        if made is not None:
            return made
    return _VALUES[kind["type"]](kind, named, draw)


def logical_value(logical: str, kind: dict[str, Any], draw: random.Random) -> Any:
    moment = datetime(2026, 3, 1, tzinfo=UTC) + timedelta(microseconds=draw.randrange(10**15))
    if logical == "decimal":
        digits = draw.randrange(10 ** kind["precision"])
        return Decimal((draw.randrange(2), Decimal(digits).as_tuple().digits, -kind["scale"]))
    if logical == "date":
        return date(2026, 3, 1) + timedelta(days=draw.randrange(-100_000, 100_000))
    if logical.startswith("time-"):
        step = 1000 if logical.endswith("millis") else 1
        return time(12, 30, 5, draw.randrange(1000) * step)
    if logical.startswith("timestamp-") and not logical.endswith("nanos"):
        return moment
    if logical.startswith("local-"):
        return moment.replace(tzinfo=None)
    return uuid.UUID(int=draw.getrandbits(128)) if logical == "uuid" else None


def _integer(bits: int):
    edge = 1 << (bits - 1)
    return lambda kind, named, draw: draw.choice(
        [0, -1, edge - 1, -edge, draw.randrange(-edge, edge), draw.randrange(300)]
    )


def _double(kind, named, draw):
    return draw.choice([0.0, -0.0, math.inf, -math.inf, math.nan, 1.5, -(2.0**100), draw.random()])


def _record_value(kind, named, draw):
    return {f["name"]: value(f["type"], named, draw) for f in kind["fields"]}


_VALUES = {
    "null": lambda *_: None,
    "boolean": lambda kind, named, draw: draw.random() < 0.5,
    "int": _integer(32), "long": _integer(64), "float": _double, "double": _double,
    "bytes": lambda kind, named, draw: draw.randbytes(draw.choice([0, 1, 7, 200])),
    "string": lambda kind, named, draw: draw.choice(["", "ZTF", "Ünïçødé ☄", "\x00", "x" * 300]),
    "fixed": lambda kind, named, draw: draw.randbytes(kind["size"]),
    "enum": lambda kind, named, draw: draw.choice(kind["symbols"]),
    "array": lambda kind, named, draw: [value(kind["items"], named, draw)
                                        for _ in range(draw.choice([0, 1, 3]))],
    "map": lambda kind, named, draw: {f"k{n}": value(kind["values"], named, draw)
                                      for n in range(draw.choice([0, 1, 3]))},
    "record": _record_value,
}  # fmt: skip


def equal(ours: Any, theirs: Any) -> bool:
    """Equal values of equal types; NaN equals NaN, and a negative 0 is no 0."""
    if type(ours) is not type(theirs):
        return False
    if isinstance(ours, float):
        return repr(ours) == repr(theirs)
    if isinstance(ours, dict):
        return list(ours) == list(theirs) and all(equal(v, theirs[k]) for k, v in ours.items())
    if isinstance(ours, list):
        return len(ours) == len(theirs) and all(map(equal, ours, theirs))
    return ours == theirs


def packed(schema: Any, records: list[Any], codec: str) -> bytes:
    """A container by fastavro; its blocks by pyarrow where fastavro has no such codec here."""
    stream = io.BytesIO()
    if codec not in ("snappy", "zstandard"):
        fastavro.writer(stream, schema, records, codec=codec)
        return stream.getvalue()
    for item in records:
        fastavro.schemaless_writer(stream, schema, item)
    block = stream.getvalue()
    found = pa.compress(block, "zstd" if codec == "zstandard" else codec, asbytes=True)
    check = zlib.crc32(block).to_bytes(4, "big") if codec == "snappy" else b""
    text = json.dumps(schema).encode()
    return container(text, found + check, len(records), codec=codec.encode())


def unpacked(content: bytes, plain: bytes) -> list[Any]:
    """What fastavro reads; of the same records uncompressed where it lacks the codec."""
    try:
        return list(fastavro.reader(io.BytesIO(content)))
    except ValueError as error:
        if "codec" not in str(error):
            raise
    return list(fastavro.reader(io.BytesIO(plain)))


def written(seed: int) -> tuple[bytes, bytes] | None:
    """A container of up to three records, also uncompressed; None where it cannot be written."""
    maker = Maker(seed)
    schema = maker.record("", 0, 1 + seed % 5)
    draw, named = maker.draw, {}
    try:
        parsed = fastavro.parse_schema(json.loads(json.dumps(schema)), named)
        records = [value(parsed, named, draw) for _ in range(draw.choice([0, 1, 1, 3]))]
        return packed(parsed, records, draw.choice(CODECS)), packed(parsed, records, "null")
    except (ValueError, TypeError, RecursionError, OverflowError, KeyError):
        return None
    except fastavro.schema.SchemaParseException:
        return None


def outcome(content: bytes) -> tuple[list[Any], str]:
    """What ours reads, and the reason for which it reads no more."""
    try:
        found = list(avro_records(content, "a.avro"))
    except InvalidRecord as error:
        return [], error.reason
    if found and isinstance(found[-1], InvalidRecord):
        # more bytes than its precision allows: fastavro rounds it without a word
        decimal = "expected a decimal of at most" in found[-1].detail
        return found[:-1], "decimal" if decimal else found[-1].reason
    return found, ""


COUNTS: collections.Counter = collections.Counter()


@settings(max_examples=EXAMPLES, deadline=None, database=None, derandomize=True,
          phases=[Phase.generate], suppress_health_check=list(HealthCheck))  # fmt: skip
@given(st.integers(0, 2**62))
def _agrees(seed):
    made = written(seed)
    if made is None:
        COUNTS["not written"] += 1
        return
    content, plain = made
    ours, reason = outcome(content)
    COUNTS[reason or "read"] += 1
    COUNTS["records"] += len(ours)
    try:
        theirs = unpacked(content, plain)
    except (ValueError, OverflowError):  # a moment that Python has no number for, no UUID
        assert reason in {"avro_corrupt", *ALLOWED}, (seed, ours)
        return
    assert reason in ALLOWED or not reason, (seed, reason)
    assert reason or equal(ours, theirs), (seed, ours, theirs)


def test_ours_agrees_with_fastavro_or_refuses_by_name(capsys):
    COUNTS.clear()
    _agrees()
    files = EXAMPLES - COUNTS["not written"]
    with capsys.disabled():
        print(f"\nAvro: {files:,} files, {dict(COUNTS)}, 0 disagreements")
    assert files >= 0.9 * EXAMPLES
    assert COUNTS["read"] >= LEAST_READ * files


@pytest.mark.parametrize("codec", CODECS)
def test_every_codec_is_read_and_damage_in_it_is_named(codec):
    schema = {"type": "record", "name": "a", "fields": [{"name": "x", "type": "string"}]}
    records = [{"x": "alert" * 500}] * 3
    content = packed(schema, records, codec)
    assert list(avro_records(content, "a.avro")) == records
    draw = random.Random(1)
    for _ in range(150):
        damaged = bytearray(content)
        damaged[draw.randrange(90, len(content))] ^= 64
        found, reason = outcome(bytes(damaged))
        assert all(isinstance(item, dict) for item in found)
        assert not reason or reason.startswith("avro_")
        assert reason or codec != "snappy"  # the one with a checksum in the format
    short = container(schema, content[-400:-100], 1, codec=b"null").replace(b"null", b"nope")
    assert outcome(short) == ([], "avro_codec")


def test_the_full_name_of_the_schema_is_told():
    for about in ({"name": "alert", "namespace": "lsst.v9_0"}, {"name": "lsst.v9_0.alert"}):
        schema = {"type": "record", **about, "fields": [{"name": "x", "type": "int"}]}
        stream = io.BytesIO()
        fastavro.writer(stream, schema, [{"x": 1}])
        assert list(named_records(stream.getvalue(), "a.avro")) == [({"x": 1}, "lsst.v9_0.alert")]
