"""Keywords by which values are understood: inherited, and refused where an HDU states two."""

from __future__ import annotations

import io

import numpy as np
import pytest
from astropy.io import fits

from skyray.readers.base import make_reader
from skyray.readers.column_facts import fits_facts
from skyray.readers.fits_bytes import FitsFile
from skyray.readers.memory import memory_file
from skyray.readers.read_records import read_records
from skyray.records import InvalidRecord


def file_of(*hdus):
    stream = io.BytesIO()
    fits.HDUList(list(hdus)).writeto(stream)
    return memory_file(stream.getvalue(), "a.fits")


@pytest.mark.parametrize(
    ("inherit", "pixels", "expected"),
    [(None, 0, ["Jy", 5.0, "g", "BARYCENT"]), (True, 0, ["Jy", 5.0, "g", "BARYCENT"]),
     (None, 3, [None, None, "g", "BARYCENT"]), (False, 0, [None, None, "g", None])],
)  # fmt: skip
def test_what_the_primary_hdu_lends(inherit, pixels, expected):
    primary = fits.PrimaryHDU(np.zeros(pixels, "f4") if pixels else None)
    primary.header.update({"BUNIT": "Jy", "CRVAL1": 5.0, "FILTER": "r", "SPECSYS": "BARYCENT"})
    image = fits.ImageHDU(np.zeros(3, "f4"))
    image.header["FILTER"] = "g"
    if inherit is not None:
        image.header["INHERIT"] = inherit
    with FitsFile(file_of(primary, image)) as file:
        found = file.hdu(1).inherited_header()
        assert [found.get(k) for k in ("BUNIT", "CRVAL1", "FILTER", "SPECSYS")] == expected


def test_a_keyword_with_two_values_is_refused_with_its_hdu():
    primary = fits.PrimaryHDU()
    primary.header["SPECSYS"] = "TOPOCENT"  # of another HDU: may differ
    table = fits.BinTableHDU.from_columns([fits.Column(n, "E", unit="nm", array=[1]) for n in "AB"])
    cards = [("SPECSYS", "BARYCENT"), ("TUNIT1", "nm"), ("TUNIT2", "um"), ("VACUUM", True),
             ("VACUUM", False), ("HIERARCH ESO OBS ID", 1),
             ("HIERARCH ESO OBS ID", 2), ("HIERARCH ESO OBS NAME", "x")]  # fmt: skip
    for card in cards:
        table.header.append(card)
    with FitsFile(file_of(primary, table)) as file:
        hdu = file.hdu(1)
        found = hdu.inherited_header()
        assert [found.get(k) for k in ("SPECSYS", "ESO OBS NAME")] == ["BARYCENT", "x"]
        assert fits_facts(hdu.own_header(), {"A"}).of("a").unit == "nm"  # twice the same
        with pytest.raises(InvalidRecord, match="TUNIT2: expected one value"):
            fits_facts(hdu.own_header())  # B is asked for too
        for key in ("VACUUM", "ESO OBS ID"):
            with pytest.raises(InvalidRecord, match=f"HDU 1: {key}: expected one value") as caught:
                found.get(key)
            assert (caught.value.reason, caught.value.source) == ("header_invalid", "/a.fits")
            assert hdu.header.get(key) == 1  # the first


AXIS = {"BUNIT": "1e-17 erg/s/cm2/Angstrom", "CTYPE1": "WAVE", "CUNIT1": "nm", "CRVAL1": 400.0,
        "CDELT1": 0.2, "CRPIX1": 1.0, "SPECSYS": "BARYCENT", "AIRORVAC": "vac"}  # fmt: skip


@pytest.mark.parametrize("key", AXIS)
def test_no_statement_of_a_spectrum_is_taken_of_two(key):
    primary, noise = fits.PrimaryHDU(np.ones(300)), fits.ImageHDU(np.ones(300), name="ERRS")
    primary.header.update(AXIS)
    reader = make_reader("spectrum_image", {"error": "ERRS"})
    (good,) = read_records(reader, file_of(primary, noise))
    assert good.wavelength[0] == pytest.approx(4000)
    other = f"{AXIS[key]}s" if isinstance(AXIS[key], str) else AXIS[key] + 1
    primary.header.append((key, other))
    (refused,) = read_records(reader, file_of(primary, noise))
    assert refused.reason == "header_invalid"
    assert f"{key}: expected one value, found" in refused.detail


@pytest.mark.parametrize("key", ["CRVAL1", "CD1_1", "CUNIT2"])
def test_no_statement_of_a_sky_image_is_taken_of_two(key):
    cards = {"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRVAL1": 10.0, "CRVAL2": 5.0,
             "CRPIX1": 4.0, "CRPIX2": 4.0, "CD1_1": -1e-4, "CD2_2": 1e-4,
             "CUNIT1": "deg", "CUNIT2": "deg"}  # fmt: skip
    image = fits.ImageHDU(np.ones((8, 8), "f4"))
    image.header.update(cards)
    reader = make_reader("image_fits", {"bands": ["r"]})
    (good,) = read_records(reader, file_of(fits.PrimaryHDU(), image))
    assert good.pixel_scale_arcsec == pytest.approx(0.36, rel=1e-3)
    image.header.append((key, "arcsec" if key == "CUNIT2" else 0.5))
    (refused,) = read_records(reader, file_of(fits.PrimaryHDU(), image))
    assert refused.reason == "wcs_invalid"
    assert f"{key}: expected one value, found" in refused.detail
