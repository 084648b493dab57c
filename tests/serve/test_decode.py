"""Request bodies → spectra: JSON, Arrow, FITS; and what is refused, with which status."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from serve.decode import decode
from serve.refusal import Refusal
from tests.request_bodies import ARROW, FITS, JSON, PIXELS, about, arrow_body, refusal, spec_file

from skyray.data.rows import admit
from skyray.records import InvalidRecord, Spectrum
from skyray.transforms.spectra import air_to_vacuum


# JSON ----------------------------------------------------------------------------------------
def test_json_spectrum(read, spectrum):
    (found,) = read(spectrum)
    assert found.object_id == "a"
    np.testing.assert_array_equal(found.wavelength, spectrum["wavelength"])
    np.testing.assert_array_equal(found.flux, np.float32(spectrum["flux"]))
    assert found.flux.dtype == found.ivar.dtype == np.float32
    assert (found.ivar == 4).all()
    assert not found.mask.any()


def test_json_error_becomes_ivar(read, spectrum):
    del spectrum["ivar"]
    spectrum["error"] = [2.0, 0.0, None] + [0.5] * (PIXELS - 3)
    (found,) = read(spectrum)
    np.testing.assert_array_equal(found.ivar[:4], [0.25, 0, 0, 4])


def test_json_air_becomes_vacuum(read, spectrum):
    spectrum["medium"] = "air"
    (found,) = read(spectrum)
    np.testing.assert_array_equal(found.wavelength, air_to_vacuum(spectrum["wavelength"]))
    assert found.wavelength[0] - spectrum["wavelength"][0] == pytest.approx(1.13, abs=0.02)


def test_json_mask_and_null_flux(read, spectrum):
    spectrum["mask"] = [True] + [False] * (PIXELS - 1)
    spectrum["flux"][3] = None
    spectrum["ivar"][3] = 0.0
    (found,) = read(spectrum)
    assert found.mask[0]
    assert np.isnan(found.flux[3])


def test_json_batch_keeps_order_and_names_the_nameless(read, spectrum):
    nameless = {k: v for k, v in spectrum.items() if k != "object_id"}
    found = read({"spectra": [spectrum, nameless, {**spectrum, "object_id": 7}]})
    assert [s.object_id for s in found] == ["a", "1", "7"]


@pytest.mark.parametrize(
    ("change", "reason", "text"),
    [
        ({"medium": None}, "json_invalid", "medium"),
        ({"medium": "water"}, "json_invalid", "medium"),
        ({"flux": "abc"}, "json_invalid", "flux"),
        ({"flux": [1.0, "x"]}, "json_invalid", "flux.1"),
        ({"ivars": [1.0]}, "json_invalid", "ivars"),
        ({"error": [1.0]}, "json_invalid", "either ivar or error"),
        ({"ivar": None}, "json_invalid", "either ivar or error"),
        ({"wavelength": None}, "json_invalid", "wavelength"),
        ({"object_id": "x" * 500}, "json_invalid", "object_id"),
    ],
)
def test_json_malformed_names_the_field(read, spectrum, change, reason, text):
    refused = refusal(read, {**spectrum, **change})
    assert (refused.status, refused.reason) == (400, reason)
    assert text in refused.detail


@pytest.mark.parametrize(
    "body",
    [b"{", b"\xff\xfe", b"[" * 100_000, b"null", b"[]", b"3", b'{"spectra": []}', b'{"spectra": 1}',
     b"1" * 6000, b'{"flux": [1' + b"0" * 6000 + b"]}"],
)  # fmt: skip
def test_json_garbage_is_400(read, body):
    assert refusal(read, body).status == 400


def test_too_many_records_is_413(read, spectrum):
    refused = refusal(read, {"spectra": [spectrum] * 3}, max_records=2)
    assert (refused.status, refused.reason) == (413, "too_many_records")


def test_negative_error_refuses_only_its_spectrum(read, spectrum):
    bad = {k: v for k, v in spectrum.items() if k != "ivar"} | {"error": [-1.0] * PIXELS}
    good, refused = read({"spectra": [spectrum, bad]})
    assert isinstance(good, Spectrum)
    assert refused.reason == "error_negative"


@pytest.mark.parametrize("kind", ["", "text/plain", "multipart/form-data; boundary=x"])
def test_unknown_content_type_is_415(read, kind):
    assert refusal(read, b"x", kind).status == 415


# what the model cannot use -------------------------------------------------------------------
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"ivar": [0.0] * PIXELS}, "ivar_empty"),
        ({"ivar": [-1.0] * PIXELS}, "ivar_negative"),
        ({"flux": [None] * PIXELS}, "flux_all_nan"),
        ({"flux": [1e300] * PIXELS}, "value_out_of_range"),
        ({"flux": [0.0] * PIXELS}, "flux_all_zero"),
        ({"flux": [1.0]}, "shape_mismatch"),
        ({"wavelength": [4000.0] * PIXELS}, "wavelength_not_increasing"),
        ({"wavelength": [-1.0] * PIXELS}, "wavelength_not_finite"),
        ({"mask": [True] * PIXELS}, "too_few_good_pixels"),
        ({"wavelength": list(range(20_000, 20_000 + PIXELS))}, "off_grid"),
    ],
)
def test_unusable_spectrum_has_its_reason(read, card, spectrum, change, reason):
    (item,) = read({**spectrum, **change})
    refused = admit(item, about(card.grid.grid(), card.min_good_pixels))
    assert isinstance(refused, InvalidRecord)
    assert refused.reason == reason


def test_usable_spectrum_is_admitted(read, card, spectrum):
    (item,) = read(spectrum)
    assert admit(item, about(card.grid.grid(), card.min_good_pixels)) is item


# anything at all -----------------------------------------------------------------------------
_KINDS = st.sampled_from([JSON, ARROW, "application/vnd.apache.arrow.file", FITS])


_NUMBERS = st.lists(st.none() | st.floats() | st.integers() | st.booleans(), max_size=6)


_NEARLY = st.fixed_dictionaries(
    {"wavelength": _NUMBERS, "flux": _NUMBERS, "medium": st.sampled_from(["air", "vacuum", "x"])},
    optional={"ivar": _NUMBERS, "error": _NUMBERS, "mask": _NUMBERS, "object_id": st.text()},
)


def survive(body: bytes, kind: str, card) -> None:
    """Decode; nothing but a 4xx refusal may be raised, and every item must be judged."""
    try:
        items = decode(kind, body, card, 10, 100_000, "")
    except Refusal as refused:
        items, status = [], refused.status
    else:
        status = 400
    assert 400 <= status < 500
    for item in items:
        admit(item, about(card.grid.grid(), 1))


@settings(max_examples=150, deadline=None)
@given(kind=_KINDS, body=st.binary(min_size=1, max_size=300))
def test_random_bytes_never_break_decoding(card, kind, body):
    survive(body, kind, card)


@settings(max_examples=150, deadline=None)
@given(value=_NEARLY)
def test_nearly_right_json_never_breaks_decoding(card, value):
    survive(json.dumps(value).encode(), JSON, card)


@settings(max_examples=200, deadline=None)
@given(data=st.data(), kind=st.sampled_from([ARROW, FITS]))
def test_damaged_bodies_never_break_decoding(card, data, kind):
    columns = {k: [list(range(1, 9))] for k in ("wavelength", "flux", "ivar")}
    whole = arrow_body(columns, {"medium": "air"}) if kind == ARROW else spec_file(20)
    body = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 6))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(1, len(body)))
    survive(bytes(body[:cut]), kind, card)
