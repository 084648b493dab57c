"""Request bodies → cutouts and alerts: every content type, and what is refused."""

from __future__ import annotations

import base64
import gzip
import io
import json

import numpy as np
import pytest
from astropy.io import fits
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from serve.decode import DECODERS, decode
from serve.refusal import Refusal

from skyray.cards import load_card
from skyray.data.rows import admit
from skyray.families.base import DataInfo
from skyray.readers.base import make_reader
from skyray.readers.memory import memory_file
from skyray.records import Alert, Cutout, InvalidRecord

RNG = np.random.default_rng(3)


def read(card: str, kind: str, body: bytes, **limits):
    limits = {"max_records": 10, "max_bytes": 4_000_000, **limits}
    return decode(kind, body, load_card(card), **limits)


def refusal(*args, **limits) -> Refusal:
    with pytest.raises(Refusal) as caught:
        read(*args, **limits)
    return caught.value


def attempt(*args):
    """Return what a body of one record gives, or why it was refused."""
    try:
        (found,) = read(*args)
    except Refusal as refused:
        return refused
    return found


def about(card: str) -> DataInfo:
    found = load_card(card)
    return DataInfo(card, found.record, tuple(found.classes), {}, "", bands=tuple(found.bands),
                    image_size=found.image_size, image_fit=found.image_fit)  # fmt: skip


def encoded(kind: str) -> bytes:
    content = io.BytesIO()
    pixels = RNG.integers(0, 255, (69, 69, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(content, kind)
    return content.getvalue()


@pytest.mark.parametrize(
    ("kind", "form"),
    [("image/jpeg", "JPEG"), ("image/png", "PNG"), ("image/tiff", "TIFF")],
)
def test_encoded_image(kind, form):
    (found,) = read("galaxies_gz1", kind, encoded(form))
    assert isinstance(found, Cutout)
    assert found.image.shape == (3, 69, 69)
    assert admit(found, about("galaxies_gz1")) is found


def test_size_of_a_picture_follows_from_the_card():
    content = io.BytesIO()
    Image.new("RGB", (2000, 2000)).save(content, "PNG")  # 12 MB from 12 kB
    (found,) = read("galaxies_gz1", "image/png", content.getvalue())
    assert found.reason == "image_too_large"


def test_axion_mass_beside_the_image_needs_no_pickle():
    pair = np.empty(2, object)
    pair[:] = [RNG.random((150, 150)), 1e-23]
    content = io.BytesIO()
    np.save(content, pair, allow_pickle=True)
    (found,) = read("lenses_folder", "application/x-npy", content.getvalue())
    np.testing.assert_array_equal(found.image[0], pair[0].astype(np.float32))
    assert found.extra["axion_mass"] == 1e-23


def test_pixel_scale_of_json_is_positive():
    image = RNG.random((1, 64, 64)).tolist()
    for scale in (0, -0.1):
        body = json.dumps({"image": image, "pixel_scale_arcsec": scale}).encode()
        assert isinstance(attempt("lenses_hst", "application/json", body), Refusal)


def test_numpy_array_of_a_lens():
    image = RNG.gamma(2, 1, (64, 64)).astype(np.float32)
    content = io.BytesIO()
    np.save(content, image)
    (found,) = read("lenses_hst", "application/x-npy", content.getvalue())
    np.testing.assert_array_equal(found.image, image[None])


def test_fits_image_gzipped():
    image = RNG.gamma(2, 1, (64, 64)).astype(np.float32)
    content = io.BytesIO()
    fits.PrimaryHDU(image).writeto(content)
    (found,) = read("lenses_hst", "application/fits", gzip.compress(content.getvalue()))
    np.testing.assert_array_equal(found.image, image[None])


def test_cutouts_in_json():
    image = RNG.gamma(2, 1, (1, 64, 64)).round(3)
    body = {"cutouts": [{"image": image.tolist(), "object_id": 7},
                        {"image": [[[1.0, 2.0], [3.0]]]}]}  # fmt: skip
    good, ragged = read("lenses_hst", "application/json", json.dumps(body).encode())
    np.testing.assert_allclose(good.image, image, rtol=1e-6)
    assert (good.object_id, good.bands) == ("7", ("light",))
    assert isinstance(ragged, InvalidRecord)
    assert ragged.reason == "image_shape"


@pytest.mark.parametrize(
    ("kind", "body", "status", "reason"),
    [
        ("image/jpeg", b"not a picture", 400, None),
        ("application/x-npy", b"\x93NUMPY broken", 400, None),
        ("application/json", b'{"image": 3}', 400, "json_invalid"),
        ("text/plain", b"x", 415, "content_type_unknown"),
        ("application/avro", b"Obj\x01", 415, "content_type_unknown"),
    ],
)
def test_bad_cutout_bodies(kind, body, status, reason):
    found = attempt("galaxies_gz1", kind, body)
    if isinstance(found, Refusal):
        assert found.status == status
    assert reason in (None, found.reason)


def test_numpy_pickle_is_not_opened():
    content = io.BytesIO()
    np.save(content, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    found = attempt("lenses_hst", "application/x-npy", content.getvalue())
    assert isinstance(found, Refusal | InvalidRecord)


def test_image_of_wrong_size_is_refused_by_name():
    body = json.dumps({"image": RNG.gamma(2, 1, (1, 20, 20)).tolist()}).encode()
    (found,) = read("lenses_hst", "application/json", body)
    assert admit(found, about("lenses_hst")).reason == "image_size"


@pytest.fixture(scope="module")
def packet(survey_data) -> bytes:
    return sorted((survey_data / "ztf_alerts" / "raw_avro").glob("*.avro"))[0].read_bytes()


@pytest.fixture(scope="module")
def alert(packet) -> Alert:
    (found,) = make_reader("ztf").read(memory_file(packet, "a.avro"))
    return found


def as_json(alert: Alert, cutouts: dict) -> dict:
    plain = {
        k: None if isinstance(v, float) and not np.isfinite(v) else v
        for k, v in alert.candidate.items()
        if isinstance(v, str | int | float | bool | type(None))
    }
    return {"objectId": alert.source_id, "candid": alert.candid, "candidate": plain,
            "prv_candidates": [dict(row) for row in alert.history], "cutouts": cutouts}  # fmt: skip


def same(found: Alert, expected: Alert) -> None:
    from skyray.transforms.alerts import alert_features

    np.testing.assert_array_equal(alert_features(found), alert_features(expected))
    for one, other in zip(found.stamps(), expected.stamps(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_avro_packet(packet, alert):
    (found,) = read("ztf_real_bogus", "application/avro", packet)
    same(found, alert)
    assert admit(found, about("ztf_real_bogus")) is found


def test_alert_in_json_gives_the_same_numbers(alert):
    rows = {name: np.where(np.isnan(s), None, s.astype(object)).tolist()
            for name, s in zip(("science", "template", "difference"), alert.stamps(),
                               strict=True)}  # fmt: skip
    body = json.dumps({"alerts": [as_json(alert, rows)]}).encode()
    (found,) = read("ztf_real_bogus", "application/json", body)
    same(found, alert)
    stamps = {}
    for name, stamp in zip(rows, alert.stamps(), strict=True):
        content = io.BytesIO()
        fits.PrimaryHDU(stamp).writeto(content)
        stamps[name] = base64.b64encode(gzip.compress(content.getvalue())).decode()
    (found,) = read(
        "ztf_real_bogus", "application/json", json.dumps(as_json(alert, stamps)).encode()
    )
    same(found, alert)


def test_alert_in_npz_gives_the_same_numbers(alert):
    content = io.BytesIO()
    text = json.dumps({k: v for k, v in as_json(alert, {}).items() if k != "cutouts"})
    np.savez(content, packet=np.array(text), science=alert.science, template=alert.template,
             difference=alert.difference)  # fmt: skip
    (found,) = read("ztf_real_bogus", "application/x-npz", content.getvalue())
    same(found, alert)


def test_bad_alert_bodies(alert):
    assert refusal("ztf_real_bogus", "application/x-npz", b"PK\x03\x04").reason == "npz_invalid"
    content = io.BytesIO()
    np.savez(content, science=alert.science)
    found = refusal("ztf_real_bogus", "application/x-npz", content.getvalue())
    assert found.reason == "npz_array_missing"
    bomb = io.BytesIO()
    np.savez_compressed(bomb, packet=np.zeros(4_000_000))
    body = bomb.getvalue()
    assert refusal("ztf_real_bogus", "application/x-npz", body, max_bytes=100_000).status == 413
    broken = as_json(alert, {"science": "no base64!"})
    (found,) = read("ztf_real_bogus", "application/json", json.dumps(broken).encode())
    assert found.reason == "stamp_not_base64"


@settings(max_examples=60, deadline=None)
@given(
    record=st.sampled_from([("ztf_real_bogus", "alert"), ("galaxies_gz1", "cutout")]),
    data=st.data(),
    body=st.binary(max_size=300),
)
def test_random_bytes_never_break_decoding(record, data, body):
    card, name = record
    kind = data.draw(st.sampled_from(DECODERS[name].content_types))
    try:
        items, status = read(card, kind, body), 400
    except Refusal as refused:
        items, status = [], refused.status
    assert 400 <= status < 500
    for item in items:
        assert isinstance(item, InvalidRecord | Cutout | Alert)
