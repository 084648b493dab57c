"""Avro from strangers: schemas checked, counts bounded, and real packets as fastavro reads them."""

from __future__ import annotations

import io
import json
import math
import os
import subprocess
import sys
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import fastavro
import pytest
from fastavro.utils import generate_one
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.hostile_avro import HOSTILE, NO_BYTES, array, container, mapping, number, record, text

from skyray.readers.avro_bytes import avro_records
from skyray.readers.avro_layout import MAX_VALUES, Damaged, measure_of, value_end
from skyray.readers.avro_schema import MAX_NODES, BadSchema, check_schema
from skyray.records import InvalidRecord

ROOT = Path(__file__).resolve().parents[2]


def checked(schema: Any):
    return check_schema(json.dumps(schema).encode())


def run(*arguments: str, timeout: float) -> subprocess.CompletedProcess:
    path = os.pathsep.join([str(ROOT / "platform"), str(ROOT)])
    return subprocess.run([sys.executable, *arguments], env={**os.environ, "PYTHONPATH": path},
                          capture_output=True, text=True, timeout=timeout, check=False)  # fmt: skip


# bodies that kill a decoder ----------------------------------------------------------------------
@pytest.mark.parametrize("reader", ["ztf", "lsst"])
def test_hostile_containers_are_refused_each_for_its_reason(reader):
    """In a process of its own, with 1 GB and two minutes for all of them."""
    done = run("-m", "tests.hostile_avro", reader, timeout=120)
    lines = dict(line.split(": ", 1) for line in done.stdout.splitlines())
    assert done.returncode == 0, (done.returncode, done.stdout[-300:], done.stderr[-2000:])
    assert lines == {name: str([reason]) for name, (_, reason) in HOSTILE.items()}


MUTATE = """
import random, sys
from skyray.readers.avro_bytes import avro_records
from skyray.records import InvalidRecord
from tests.hostile_avro import HOSTILE, array, container, mapping, number, record, text
bodies = [content for content, _ in HOSTILE.values() if len(content) < 3000]
many = record(array(record("int", ["null", "string"], name="b")), mapping("double"), "b")
block = number(2) + b"\\2\\0\\4\\2" + text(b"xy") + b"\\0" + number(1) + text(b"k") + bytes(11)
bodies += 20 * [container(many, block)]
assert len(list(avro_records(bodies[-1], "good"))) == 1
draw = random.Random(int(sys.argv[1]))
for _ in range(6000):
    body = bytearray(draw.choice(bodies))
    for _ in range(draw.randint(1, 6)):
        body[draw.randrange(4, len(body))] = draw.choice([draw.randrange(256), 0, 1, 2, 127, 255])
    try:
        list(avro_records(bytes(body), "mutated"))
    except InvalidRecord:
        pass
"""


def test_mutated_containers_end_in_records_or_reasons():
    done = run("-c", MUTATE, "1", timeout=120)
    assert done.returncode == 0, (done.returncode, done.stderr[-2000:])


# schemas -----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("schema", "said"),
    [
        (record("a"), "schema.f0: expected no type that holds itself, found a"),
        (record(["int", ["null"]]), "schema.f0: expected no union within a union"),
        (record([]), "a union of at least one type"),
        (record("b"), "a primitive type or one defined before, found b"),
        (record(array(record("null", name="b"))), "items that take at least one byte, found reco"),
        (record({"type": "array"}), "array with items"),
        (record({"type": "fixed", "name": "x", "size": -1}), "fixed with a size of 0–"),
        (record({"type": "fixed", "name": "x", "size": True}), "fixed with a size of 0–"),
        (record({"type": "enum", "name": "x", "symbols": "gr"}), "enum with a list of symbols"),
        (record({"type": "enum", "symbols": ["g"]}), "enum with a name"),
        (record(record(name="a")), "a name that is not taken, found a"),
        (record(7), "a type, found 7"),
        (record(None), "a type, found None"),
        ({"type": "record", "name": "a"}, "a list of fields"),
        ({"type": "record", "name": "a", "fields": ["x"]}, "a field with name and type"),
        ({"type": "record", "name": "a", "fields": [{"name": "x", "type": "int"}] * 2}, "differe"),
        (["null", record("int")], "expected a record, found union"),
        ("int", "expected a record, found int"),
    ],
)
def test_a_refused_schema_is_told_where_and_why(schema, said):
    with pytest.raises(BadSchema) as refusal:
        checked(schema)
    assert said in str(refusal.value)
    with pytest.raises(InvalidRecord, match="avro_schema"):
        list(avro_records(container(schema, b"\0"), "a.avro"))


def test_a_schema_may_be_wide_but_not_endless():
    assert checked(record(*["int"] * (MAX_NODES - 1))).nodes == MAX_NODES
    for schema in (record(*["int"] * MAX_NODES), record(record(*["int"] * 6_000, name="b"), "b",
                                                        "b", "b")):  # fmt: skip
        with pytest.raises(BadSchema, match=r"at most 20,000 types"):
            checked(schema)
    with pytest.raises(BadSchema, match="1,048,576 bytes"):
        check_schema(b" " * (1 << 20) + b'"int"')
    with pytest.raises(BadSchema, match="expected JSON"):
        check_schema(b'{"type": "record"')


def test_names_mean_what_the_specification_says():
    inner = {"type": "record", "name": "cutout", "namespace": "ztf.alert", "fields": [
        {"name": "stamp", "type": "bytes"}, {"name": "file", "type": "cutout_name"}]}  # fmt: skip
    named = {"type": "enum", "name": "cutout_name", "symbols": ["g", "r"]}
    schema = {"type": "record", "name": "ztf.alert.packet", "fields": [
        {"name": "name", "type": named}, {"name": "one", "type": ["null", inner]},
        {"name": "two", "type": ["null", "ztf.alert.cutout"]},
        {"name": "three", "type": "cutout"}]}  # fmt: skip
    packet = {"name": "g", "one": {"stamp": b"1", "file": "g"}, "two": None,
              "three": {"stamp": b"2", "file": "r"}}  # fmt: skip
    stream = io.BytesIO()
    fastavro.writer(stream, {**schema, "doc": "d", "version": "4.02"}, [packet])
    assert list(avro_records(stream.getvalue(), "a.avro")) == [packet]


def test_times_are_times_and_decimals_are_decimals():
    moment = datetime(2026, 3, 1, 12, tzinfo=UTC)
    schema = record({"type": "long", "logicalType": "timestamp-micros"},
                    {"type": "bytes", "logicalType": "decimal", "precision": 4},
                    {"type": "long", "logicalType": ["no", "name"]})  # fmt: skip
    block = number(int(moment.timestamp() * 1e6)) + text(b"\x01\x02") + number(5)
    (found,) = avro_records(container(schema, block), "a.avro")
    assert found == {"f0": moment, "f1": Decimal(258), "f2": 5}
    long = number(0) + text(bytes(400)) + number(5)
    (found,) = avro_records(container(schema, long), "a.avro")
    assert found.reason == "avro_corrupt"
    many = record({"type": "bytes", "logicalType": "decimal", "precision": 10**6})
    with pytest.raises(BadSchema, match="decimal of at most"):
        checked(many)


# counts ------------------------------------------------------------------------------------------
def test_blocks_of_items_in_every_way_of_writing_them():
    schema = record(array(["null", "int"]), mapping("string"))
    pair = number(-2) + number(3) + b"\2\x06\0"  # two items of three bytes, with their size
    block = number(1) + b"\2\x04" + pair + b"\0"
    block += number(-1) + number(4) + text(b"k") + text(b"v") + number(1) + text(b"l") * 2 + b"\0"
    (found,) = avro_records(container(schema, block), "a.avro")
    assert found == {"f0": [2, 3, None], "f1": {"k": "v", "l": "l"}}


def test_a_record_has_at_most_so_many_values():
    measure = measure_of(checked(record(array(array("int")))))
    block = number(3) + (number(4) + b"\2" * 4 + b"\0") * 3 + b"\0"
    assert value_end(measure, block, 0, 15) == len(block)
    with pytest.raises(Damaged, match="more than the limit"):
        value_end(measure, block, 0, 14)
    alert = checked(record(array(record(*[["null", "double"]] * 110, name="source"))))
    assert 2_000 * alert.parts[0].parts[0].values < MAX_VALUES / 4


def test_records_that_deflate_well_are_read():
    content = container(record("double"), bytes(8 * 50_000), 50_000, codec=b"deflate")
    assert len(content) < 1_000
    assert sum(found == {"f0": 0.0} for found in avro_records(content, "a.avro")) == 50_000


TYPES = st.recursive(
    st.sampled_from(["null", "boolean", "int", "long", "float", "double", "bytes", "string"]),
    lambda inner: st.one_of(
        inner.map(lambda kind: record(kind, "int", name="")),
        inner.map(lambda kind: array(record(kind, "int", name=""))),
        inner.map(lambda kind: mapping(record(kind, "long", name=""))),
        st.sampled_from(["string", "double", array("long"), mapping("bytes")]).map(
            lambda kind: ["null", kind]
        ),
        st.just({"type": "fixed", "name": "", "size": 5}),
        st.just({"type": "enum", "name": "", "symbols": ["g", "r"]}),
    ),
    max_leaves=12,
)


def numbered(schema: Any, names) -> Any:
    """The schema with a name of its own for every named type."""
    if isinstance(schema, list):
        return [numbered(part, names) for part in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: numbered(value, names) for key, value in schema.items()}
    return {**found, "name": f"t{next(names)}"} if schema.get("name") == "" else found


@settings(max_examples=80, deadline=None)
@given(st.lists(TYPES, min_size=1, max_size=4), st.data())
def test_whatever_fastavro_writes_ends_where_it_ends(kinds, data):
    schema = numbered(record(*kinds), iter(range(10_000)))
    parsed = fastavro.parse_schema(json.loads(json.dumps(schema)))
    stream = io.BytesIO()
    packet = generate_one(parsed)
    fastavro.schemaless_writer(stream, parsed, packet)
    block = stream.getvalue()
    measure = measure_of(checked(schema))
    assert value_end(measure, b"xy" + block + b"z", 2) == 2 + len(block)
    if block:
        cut = data.draw(st.integers(0, len(block) - 1))
        with pytest.raises(Damaged):
            value_end(measure, block[:cut], 0)
        theirs = fastavro.schemaless_reader(io.BytesIO(block), parsed)
        assert same(list(avro_records(container(schema, block), "a.avro")), [theirs])


def test_types_of_no_bytes_may_stand_alone():
    schema = record(*NO_BYTES.values(), "int")
    schema["fields"][2]["type"]["fields"][1]["type"]["name"] = "none2"
    (found,) = avro_records(container(schema, b"\x0e"), "a.avro")
    assert (found["f0"], found["f1"], found["f3"], found["f4"]) == (None, {}, b"", 7)


def same(a: Any, b: Any) -> bool:
    """Equal, of one type, and NaN the same as NaN."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    both_nan = isinstance(a, float) and isinstance(b, float) and math.isnan(a) and math.isnan(b)
    return both_nan or (a == b and type(a) is type(b))


def test_real_packets_are_what_fastavro_reads(survey_data):
    folders = survey_data / "ztf_alerts" / "raw_avro", survey_data / "rubin_alerts"
    read = 0
    for path in (path for folder in folders for path in sorted(folder.glob("*.avro"))):
        content = path.read_bytes()
        if content.startswith(b"Obj\x01"):  # two are messages without a container
            theirs = list(fastavro.reader(io.BytesIO(content)))
            assert same(list(avro_records(content, str(path))), theirs)
            read += len(theirs)
    assert read >= 40
