"""Request bodies → spectra: JSON, Arrow, FITS; and what is refused, with which status."""

from __future__ import annotations

import bz2
import gzip
import io
import json

import numpy as np
import pyarrow as pa
import pytest
from astropy.io import fits
from hypothesis import given, settings
from hypothesis import strategies as st
from serve.decode import decode
from serve.refusal import Refusal
from tests.hostile_arrow import pickled

from skyray.cards import load_card
from skyray.data.rows import admit
from skyray.families.base import DataInfo
from skyray.readers.memory import memory_file
from skyray.records import Grid, InvalidRecord, Spectrum, spectrum_schema, tensor_array
from skyray.transforms.spectra import air_to_vacuum

JSON = "application/json"
ARROW = "application/vnd.apache.arrow.stream"
FITS = "application/fits"
PIXELS = 400


def about(grid: Grid, min_good_pixels: int) -> DataInfo:
    return DataInfo("card", "spectrum", (), {}, "", grid, min_good_pixels=min_good_pixels)


@pytest.fixture(scope="module")
def card():
    return load_card("sdss_dr16")


@pytest.fixture
def spectrum() -> dict:
    """A JSON spectrum on SDSS's wavelengths."""
    wavelength = 10 ** (3.6 + 1e-4 * np.arange(PIXELS))
    return {
        "object_id": "a",
        "medium": "vacuum",
        "wavelength": wavelength.tolist(),
        "flux": np.linspace(1, 2, PIXELS).tolist(),
        "ivar": [4.0] * PIXELS,
    }


@pytest.fixture
def read(card):
    def run(body, kind=JSON, max_records=10, max_bytes=10_000_000):
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return decode(kind, content, card, max_records, max_bytes, "")

    return run


def refusal(read, *args, **kwargs) -> Refusal:
    with pytest.raises(Refusal) as caught:
        read(*args, **kwargs)
    return caught.value


def arrow_body(columns: dict, metadata: dict | None = None, file: bool = False) -> bytes:
    table = pa.table(columns).replace_schema_metadata(metadata)
    sink = pa.BufferOutputStream()
    make = pa.ipc.new_file if file else pa.ipc.new_stream
    with make(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


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


# Arrow ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("file", [False, True])
def test_arrow_lists(read, spectrum, file):
    columns = {k: [spectrum[k]] * 2 for k in ("wavelength", "flux", "ivar")}
    columns["object_id"] = ["x", "y"]
    body = arrow_body(columns, {"medium": "vacuum"}, file=file)
    first, second = read(body, ARROW)
    assert (first.object_id, second.object_id) == ("x", "y")
    np.testing.assert_array_equal(second.flux, np.float32(spectrum["flux"]))


def test_arrow_nulls_and_ragged_rows(read):
    columns = {
        "wavelength": [[4000.0, 4001.0, 4002.0], [5000.0, 5001.0], None],
        "flux": [[1.0, None, 3.0], [1.0, 2.0], None],
        "error": [[1.0, None, 2.0], [1.0, 1.0], None],
        "mask": [[False, True, False], [True, False], None],
    }
    first, second, empty = read(arrow_body(columns, {"medium": "air"}), ARROW)
    assert np.isnan(first.flux[1])
    np.testing.assert_array_equal(first.ivar, np.float32([1, 0, 0.25]))
    np.testing.assert_array_equal(first.mask, [False, True, False])
    assert second.wavelength.shape == (2,)
    assert admit(empty, about(Grid("linear", 4000, 1, 1000), 1)).reason == "too_short"


def test_arrow_rows_of_a_dataset(read):
    """Rows as ingest writes them need no wavelength: their schema carries the grid."""
    grid = Grid("log10", 3.6, 1e-4, 300)
    flux = np.random.default_rng(0).normal(size=(2, 300)).astype(np.float32)
    columns = {
        "object_id": ["p", "q"],
        "flux": tensor_array(flux, pa.float32()),
        "ivar": tensor_array(np.ones_like(flux), pa.float32()),
        "mask": tensor_array(np.zeros((2, 300), np.uint8), pa.uint8()),
    }
    found = read(arrow_body(columns, spectrum_schema(grid).metadata), ARROW)
    np.testing.assert_array_equal(found[1].flux, flux[1])
    np.testing.assert_array_equal(found[1].wavelength, grid.wavelength())


@pytest.mark.parametrize(
    ("columns", "metadata", "reason"),
    [
        ({"wavelength": [[1.0]], "flux": [[1.0]], "ivar": [[1.0]]}, None, "medium_missing"),
        ({"wavelength": [[1.0]], "flux": [[1.0]]}, {"medium": "air"}, "column_missing"),
        ({"flux": [[1.0]], "ivar": [[1.0]]}, {"medium": "air"}, "column_missing"),
        ({"wavelength": [1.0], "flux": [[1.0]], "ivar": [[1.0]]}, {"medium": "air"}, "column_type"),
        ({"wavelength": [["a"]], "flux": [[1.0]], "ivar": [[1.0]]}, {"medium": "air"},
         "column_type"),
        ({"flux": [[1.0]], "ivar": [[1.0]]}, {"skyray": '{"grid": {"kind": "log10"}}'},
         "grid_invalid"),
        ({"flux": [[1.0]], "ivar": [[1.0]]}, {"skyray": "{"}, "arrow_invalid"),
    ],
)  # fmt: skip
def test_arrow_malformed_is_400(read, columns, metadata, reason):
    refused = refusal(read, arrow_body(columns, metadata), ARROW)
    assert (refused.status, refused.reason) == (400, reason)


def test_arrow_of_an_extension_type_is_400_and_runs_nothing(read, spectrum, tmp_path):
    columns = {k: [spectrum[k]] for k in ("wavelength", "flux", "ivar")}
    for file in (False, True):
        body = arrow_body({**columns, "object_id": pickled(1, tmp_path / "marker")},
                          {"medium": "vacuum"}, file)  # fmt: skip
        refused = refusal(read, body, ARROW)
        assert (refused.status, refused.reason) == (400, "extension_type")
        assert "column object_id" in refused.detail
    assert not (tmp_path / "marker").exists()


def test_arrow_compressed_bomb_is_refused(read):
    """Ten megabytes of zeros in a few kilobytes must not be inflated."""
    table = pa.table({"flux": [np.zeros(1_250_000)]}).replace_schema_metadata({"medium": "air"})
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_stream(sink, table.schema, options=options) as writer:
        writer.write_table(table)
    refused = refusal(read, sink.getvalue().to_pybytes(), ARROW, max_bytes=100_000)
    assert refused.status == 413


def test_arrow_compressed_within_the_limit_is_read(read, spectrum):
    columns = {k: [spectrum[k]] for k in ("wavelength", "flux", "ivar")}
    table = pa.table(columns).replace_schema_metadata({"medium": "vacuum"})
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    with pa.ipc.new_stream(sink, table.schema, options=options) as writer:
        writer.write_table(table)
    (found,) = read(sink.getvalue().to_pybytes(), ARROW)
    np.testing.assert_array_equal(found.flux, np.float32(spectrum["flux"]))


def test_arrow_row_limit_is_413(read, spectrum):
    columns = {k: [spectrum[k]] * 3 for k in ("wavelength", "flux", "ivar")}
    body = arrow_body(columns, {"medium": "vacuum"})
    assert refusal(read, body, ARROW, max_records=2).status == 413


# FITS ----------------------------------------------------------------------------------------
@pytest.mark.timeout(60)
def test_fits_that_leads_back_to_itself_is_400(read):
    cards = ("SIMPLE", "T"), ("BITPIX", "8"), ("NAXIS", "1"), ("NAXIS1", "0"), ("PCOUNT", "-2880")
    body = "".join(f"{key:<8}= {value:>20}".ljust(80) for key, value in cards) + "END"
    refused = refusal(read, body.ljust(2880).encode(), FITS)
    assert (refused.status, refused.reason) == (400, "header_invalid")
    assert "PCOUNT" in refused.detail


def spec_file(pixels: int = PIXELS, class_hdu: bool = True) -> bytes:
    """A spec-PLATE-MJD-FIBER file as BOSS wrote them, with the columns readers use."""
    coadd = fits.BinTableHDU.from_columns(
        [
            fits.Column("flux", "E", array=np.linspace(1, 2, pixels)),
            fits.Column("loglam", "E", array=3.6 + 1e-4 * np.arange(pixels)),
            fits.Column("ivar", "E", array=np.full(pixels, 4.0)),
            fits.Column("and_mask", "J", array=np.zeros(pixels)),
        ],
        name="COADD",
    )
    row = fits.BinTableHDU.from_columns(
        [
            fits.Column("PLATE", "J", array=[266]),
            fits.Column("MJD", "J", array=[51602]),
            fits.Column("FIBERID", "J", array=[13]),
            fits.Column("CLASS", "6A", array=["GALAXY"]),
            fits.Column("SUBCLASS", "6A", array=[""]),
            fits.Column("Z", "E", array=[0.1]),
            fits.Column("Z_ERR", "E", array=[1e-4]),
            fits.Column("ZWARNING", "J", array=[0]),
            fits.Column("PLUG_RA", "D", array=[146.0]),
            fits.Column("PLUG_DEC", "D", array=[-0.5]),
        ],
        name="SPECOBJ",
    )
    stream = io.BytesIO()
    fits.HDUList([fits.PrimaryHDU(), coadd, row][: 3 if class_hdu else 2]).writeto(stream)
    return stream.getvalue()


def test_fits_goes_through_the_cards_reader(read):
    (found,) = read(spec_file(), FITS)
    assert found.object_id == "0266-51602-0013"
    np.testing.assert_array_equal(found.flux, np.float32(np.linspace(1, 2, PIXELS)))


def test_fits_gzipped(read):
    (found,) = read(gzip.compress(spec_file()), "application/octet-stream")
    assert found.object_id == "0266-51602-0013"


def test_fits_gzip_bomb_is_413(read):
    body = gzip.compress(b"SIMPLE  =" + b" " * 5_000_000)
    assert refusal(read, body, FITS, max_bytes=100_000).status == 413


@pytest.mark.parametrize(
    "body",
    [b"PK\x03\x04", b"<html>", b"\x1f\x8bxx", gzip.compress(b"x" * 999)[:20], b"SIMPLE  ="],
    ids=["zip", "html", "gzip magic", "cut gzip", "cut header"],
)
def test_not_fits_is_400(read, body):
    assert refusal(read, body, FITS).status == 400


def test_truncated_fits_is_400(read):
    refused = refusal(read, spec_file()[:4000], FITS)
    assert refused.status == 400
    assert refused.detail


def test_real_fits(read, survey_data):
    for path in sorted((survey_data / "spectra_sdss" / "raw_fits").glob("*.fits")):
        (found,) = read(path.read_bytes(), FITS)
        assert found.object_id == path.stem.removeprefix("spec-")


COMPRESS = {"plain": bytes, "gzip": gzip.compress, "bzip2": bz2.compress}


@pytest.mark.parametrize("packed", COMPRESS)
@pytest.mark.parametrize("name", ["", "coadd-1.fits", "redrock-1.fits", "tile.FITS.GZ", "a/b", "é"])
def test_survey_files_are_known_by_their_content_whatever_the_name(survey_data, name, packed):
    path = survey_data / "spectra_desi" / "raw_fits" / "coadd-special-dark-27247.fits"
    body = COMPRESS[packed](path.read_bytes())
    (found,) = decode(FITS, body, load_card("desi"), 10, 10_000_000, name)
    assert found.object_id == "39089837499744649"
    assert found.observation_id == "special-dark-27247-39089837499744649"
    assert found.zwarning == -1  # redrock's file is not in the request


@pytest.mark.parametrize("card", ["sdss_dr16", "desi", "lamost_dr10", "fourmost_mock"])
def test_a_file_of_another_survey_is_400_and_says_what_it_is(survey_data, card):
    own = {"sdss_dr16": "spectra_sdss/raw_fits/spec-0266-51602-0001.fits",
           "desi": "spectra_desi/raw_fits/coadd-special-dark-27247.fits",
           "lamost_dr10": "spectra_lamost/spec-55862-B6212_sp06-003.fits"}  # fmt: skip
    for other, path in own.items():
        if other != card:
            with pytest.raises(Refusal) as refused:
                decode(FITS, (survey_data / path).read_bytes(), load_card(card), 10, 10_000_000)
            assert refused.value.status == 400
            assert refused.value.reason in ("layout_unknown", "hdu_missing")
            assert "found" in refused.value.detail


def test_bzip2_bomb_is_413_and_its_beginning_400(read):
    body = bz2.compress(b"SIMPLE  =" + b" " * 5_000_000)
    assert refusal(read, body, FITS, max_bytes=100_000).status == 413
    refused = refusal(read, bz2.compress(spec_file())[:-50], FITS)
    assert (refused.status, refused.reason) == (400, "bzip2_damaged")


def test_memory_file_is_a_survey_file():
    file = memory_file(b"abc", "../../etc/x.fits")
    assert (file.name, file.read_bytes(), file.exists()) == ("x.fits", b"abc", True)
    assert not file.sibling("y.fits").exists()
    assert not memory_file(b"", "other").sibling("x.fits").exists()


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
