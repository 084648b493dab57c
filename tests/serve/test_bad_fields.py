"""A bad field refuses its record by name: never the batch, the request or the service."""

from __future__ import annotations

import io
import json
import struct
import zipfile
from functools import cache

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from serve.decode import decode
from serve.model import predict_calls
from serve.refusal import Refusal
from tests.bad_values import FIELDS, as_json, junk, packet
from tests.serve.conftest import make_spectrum
from tests.serve.test_decode_images_alerts import about

from skyray.cards import load_card
from skyray.data.rows import admit
from skyray.records import Alert, InvalidRecord

CARD = "ztf_real_bogus"
card_of, info_of = cache(load_card), cache(about)


def answers(body: bytes | dict, card: str = CARD, kind: str = "application/json") -> list:
    """Return what a request gives before prediction, as the service does."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    items = decode(kind, content, card_of(card), 10, 4_000_000)
    return [admit(item, info_of(card)) for item in items]


def refused(*args) -> InvalidRecord | Refusal:
    """Return the refusal of a body of one record: of the request, or of the record."""
    try:
        (found,) = answers(*args)
    except Refusal as refusal:
        return refusal
    assert isinstance(found, InvalidRecord)
    return found


@pytest.mark.parametrize(
    "changes",
    [
        {"drb": "None"}, {"fwhm": {"$numberDouble": "NaN"}}, {"fid": float("inf")},
        {"jd": "2459000.5 d"}, {"ra": [150.1]}, {"magpsf": {}}, {"ndethist": "12 detections"},
        {"ra": float("nan"), "dec": float("nan"), "jd": None}, {"fid": None}, {"jd": 10**400},
    ],
)  # fmt: skip
def test_a_field_that_is_no_number_refuses_its_packet_and_no_other(changes):
    assert refused(as_json(packet(**changes))).detail
    first, second, third = answers(
        {"alerts": [as_json(packet()), as_json(packet(17, **changes)), as_json(packet(18))]}
    )
    assert (first.object_id, third.object_id) == ("2695378462115010012", "18")
    assert isinstance(second, InvalidRecord)
    assert second.source == "request[1]"


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(FIELDS), junk, st.booleans())
@example("isdiffpos", {}, False)
@example("jd", 10**400, True)
def test_no_value_of_a_field_breaks_a_request(field, value, in_history):
    bad = packet(17)
    (bad["prv_candidates"][0] if in_history else bad["candidate"])[field] = value
    good, found = answers({"alerts": [as_json(packet()), as_json(bad)]})
    assert isinstance(good, Alert)
    assert isinstance(found, Alert | InvalidRecord)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(["objectId", "candid", "candidate", "prv_candidates", "cutouts", "x"]), junk)
def test_no_part_of_a_packet_breaks_a_request(part, value):
    good, found = answers({"alerts": [as_json(packet()), as_json(packet(17)) | {part: value}]})
    assert isinstance(good, Alert)
    assert isinstance(found, Alert | InvalidRecord)


@pytest.mark.parametrize(
    ("stamp", "reason"),
    [
        ("ÄÖÜ=", "stamp_not_base64"), ("no base64", "stamp_not_base64"), ([[1.0], [1.0, 2.0]],
        "stamp_shape"), ([], "stamp_shape"), (None, "stamp_missing"), ("QUJD", "not_fits"),
    ],
)  # fmt: skip
def test_stamps_of_every_wrong_kind_have_a_name(stamp, reason):
    one = as_json(packet())
    one["cutouts"]["science"] = stamp
    found = refused({"alerts": [one]})
    assert found.reason in {reason, "json_invalid"}, found


def test_a_wrong_item_of_a_list_is_refused_in_its_place():
    card = load_card("sdss_coarse")
    body = {"spectra": [make_spectrum(1), {"flux": "no list"}, 5, make_spectrum(2)]}
    items = decode("application/json", json.dumps(body).encode(), card, 10, 4_000_000)
    assert [getattr(item, "reason", item.object_id) for item in items] == [
        "mock-1", "json_invalid", "json_invalid", "mock-2",
    ]  # fmt: skip
    for wrong in ({"spectra": []}, {"spectra": {}}, {"spectra": [1], "more": 1}):
        with pytest.raises(Refusal) as caught:
            decode("application/json", json.dumps(wrong).encode(), card, 10, 4_000_000)
        assert (caught.value.status, caught.value.reason) == (400, "json_invalid")


@pytest.mark.parametrize(
    "image",
    [
        [[[1.0, 2.0]], []], [[[1.0], [1.0, 2.0]]], [], [[]], [[[]]], [[[1e400]]], [[["1"]]],
        [[[{}]]],
    ],
)  # fmt: skip
def test_ragged_and_empty_images_have_a_name(image):
    good = {"image": np.random.default_rng(1).uniform(0, 255, (3, 69, 69)).round().tolist()}
    body = json.dumps({"cutouts": [good, {"image": image}]}).encode()
    first, second = answers(body, "galaxies_gz1")
    assert not isinstance(first, InvalidRecord)
    assert isinstance(second, InvalidRecord)
    assert second.source == "request[1]"


def _zip(flag: int, method: int) -> bytes:
    """Return an npz whose entry says that it is encrypted (flag), or packed by another method."""
    content = io.BytesIO()
    np.savez(content, packet=np.array("{}"))
    body = bytearray(content.getvalue())
    for magic, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        start = body.index(magic)
        struct.pack_into("<HH", body, start + at, flag, method)
    return bytes(body)


@pytest.mark.parametrize(("flag", "method"), [(1, 0), (0, 9), (0, 99)])
def test_encrypted_and_strangely_packed_npz_are_refused(flag, method):
    assert zipfile.is_zipfile(io.BytesIO(_zip(flag, method)))
    assert refused(_zip(flag, method), CARD, "application/x-npz").reason == "npz_invalid"


@pytest.mark.parametrize("stamp", ["[" * 100_000, '{"a":' * 100_000, "\ud800".encode(
    "utf-8", "surrogatepass"), '{"grid": {"kind": []}}'])  # fmt: skip
def test_metadata_of_an_arrow_schema_that_is_no_json_of_ours(stamp):
    schema = pa.schema([("flux", pa.list_(pa.float32())), ("ivar", pa.list_(pa.float32()))])
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema.with_metadata({"skyray": stamp})) as writer:
        writer.write_table(schema.with_metadata(None).empty_table())
    body = sink.getvalue().to_pybytes()
    assert refused(body, "sdss_coarse", "application/vnd.apache.arrow.stream").status == 400


def test_a_null_in_one_row_of_an_arrow_body_refuses_that_row():
    spectrum = make_spectrum(1)
    names = ("wavelength", "flux", "ivar")
    table = pa.table({n: pa.array([spectrum[n], None], pa.list_(pa.float64())) for n in names})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema.with_metadata({"medium": "vacuum"})) as writer:
        writer.write_table(table.replace_schema_metadata({"medium": "vacuum"}))
    card = load_card("sdss_coarse")
    kind = "application/vnd.apache.arrow.stream"
    items = decode(kind, sink.getvalue().to_pybytes(), card, 10, 4_000_000)
    info = about("galaxies_gz1")  # of other records: both are refused, each by itself
    assert [admit(item, info).reason for item in items] == ["record_type", "record_type"]
    assert len(items) == 2


def test_calls_that_came_together_do_not_answer_for_one_another():
    """The batch spans HTTP requests: one record that the network fails on costs itself."""
    (good,), (bad,) = (answers(as_json(packet(n))) for n in (17, 18))

    def predict(records: list[Alert]) -> pa.Table:
        if any(record.object_id == "18" for record in records):
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")
        return pa.table({"object_id": [record.object_id for record in records]})

    first, second, third, none = predict_calls(predict, [[good, bad], [good], [bad], []])
    assert first[0]["object_id"].to_pylist() == second[0]["object_id"].to_pylist() == ["17"]
    assert [first[1].reason, third[0].reason] == ["reader_fault", "reader_fault"]
    assert none == []
