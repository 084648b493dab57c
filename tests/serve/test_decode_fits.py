"""Survey files in a request: known by content, unpacked within limits; what is refused."""

from __future__ import annotations

import bz2
import gzip
import lzma

import numpy as np
import pyarrow as pa
import pytest
from serve.decode import decode
from serve.refusal import Refusal
from tests.request_bodies import FITS, PIXELS, refusal, spec_file

from skyray.cards import load_card
from skyray.readers.memory import memory_file


# FITS ----------------------------------------------------------------------------------------
@pytest.mark.timeout(60)
def test_fits_that_leads_back_to_itself_is_400(read):
    cards = ("SIMPLE", "T"), ("BITPIX", "8"), ("NAXIS", "1"), ("NAXIS1", "0"), ("PCOUNT", "-2880")
    body = "".join(f"{key:<8}= {value:>20}".ljust(80) for key, value in cards) + "END"
    refused = refusal(read, body.ljust(2880).encode(), FITS)
    assert (refused.status, refused.reason) == (400, "header_invalid")
    assert "PCOUNT" in refused.detail


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


COMPRESS = {
    "plain": bytes, "gzip": gzip.compress, "bzip2": bz2.compress, "xz": lzma.compress,
    "zstandard": lambda body: pa.compress(body, "zstd", asbytes=True),
}  # fmt: skip


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


@pytest.mark.parametrize("packed", sorted({*COMPRESS} - {"plain"}))
def test_packed_bodies_are_whole_and_within_the_limit(read, packed):
    compress, content = COMPRESS[packed], spec_file()
    (whole,), cut = read(content, FITS), len(content) // 2
    (found,) = read(compress(content[:cut]) + compress(content[cut:]), FITS)  # of two members
    np.testing.assert_array_equal(found.flux, whole.flux)
    bomb = compress(b"SIMPLE  =" + b" " * 5_000_000)
    assert refusal(read, bomb, FITS, max_bytes=100_000).reason == "body_too_large"
    refused = refusal(read, compress(content)[:-50], FITS)
    assert (refused.status, refused.reason) == (400, f"{packed}_truncated")


def test_packings_that_are_not_read_are_named(read):
    refused = refusal(read, b"\x1f\x9d" + bytes(40), FITS)
    assert (refused.status, refused.reason) == (400, "compression_unknown")


def test_memory_file_is_a_survey_file():
    file = memory_file(b"abc", "../../etc/x.fits")
    assert (file.name, file.read_bytes(), file.exists()) == ("x.fits", b"abc", True)
    assert not file.sibling("y.fits").exists()
    assert not memory_file(b"", "other").sibling("x.fits").exists()
