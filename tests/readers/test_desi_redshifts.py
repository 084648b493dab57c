"""Redshifts of redrock beside DESI co-additions: found, joined by target, refused."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from astropy.io import fits
from tests.desi_files import HEALPIX, coadd_file, read, redrock_file, write_any

from skyray.readers.base import make_reader
from skyray.records import InvalidRecord


def test_join_is_by_targetid(tmp_path):
    coadd_file().writeto(tmp_path / "coadd-sv3-bright-1.fits")
    targets = [2**55 + 2, 2**55]  # another order, one missing
    redrock_file(targets).writeto(tmp_path / "redrock-sv3-bright-1.fits")
    spectra = read(tmp_path / "coadd-sv3-bright-1.fits")
    assert [s.spectype for s in spectra] == ["GALAXY", "", "GALAXY"]
    assert [s.redshift for s in spectra] == pytest.approx([0.2, np.nan, 0.1], nan_ok=True)
    assert [s.extra.get("deltachi2") for s in spectra] == [55.0, None, 55.0]
    assert {s.survey for s in spectra} == {"sv3"}


def test_a_damaged_redrock_is_not_taken_for_a_missing_one(survey_data, tmp_path):
    folder = survey_data / "spectra_desi" / "raw_fits"
    shutil.copy(folder / HEALPIX, tmp_path / HEALPIX)
    (tmp_path / HEALPIX.replace("coadd", "redrock")).write_bytes(b"")
    with pytest.raises(InvalidRecord, match="file_empty"):
        read(tmp_path / HEALPIX)


REDROCK_PLACES = {
    "coadd-sv3-dark-1.fits": "redrock-sv3-dark-1.fits",
    "coadd-7-1-thru2021.fits": "redrock-7-1-thru2021.fits.gz",
    "COADD-7-1-THRU2021.FITS": "REDROCK-7-1-THRU2021.FITS",
    "coadd-0-80605.fits.gz": "zbest-0-80605.fits",
    "my-coadd.fit": "my-redrock.fit",
}


@pytest.mark.parametrize("name", [*REDROCK_PLACES, "target.fits", "a.b.c.fits.gz", "inside.fits"])
def test_name_and_redshifts(tmp_path, name):
    hdus, fitted = coadd_file(), redrock_file([2**55 + 1, 2**55, 2**55 + 2])
    if name == "inside.fits":
        hdus.append(fitted["REDSHIFTS"])
    elif name in REDROCK_PLACES:
        if "zbest" in REDROCK_PLACES[name]:
            fitted[1].name = "ZBEST"
        write_any(fitted, tmp_path / REDROCK_PLACES[name])
    write_any(hdus, tmp_path / name)
    assert make_reader("desi_coadd").claims(name)
    found = [(s.object_id, s.zwarning, s.redshift) for s in read(tmp_path / name)]
    known = name == "inside.fits" or name in REDROCK_PLACES
    expected = [0.2, 0.1, 0.3] if known else [np.nan] * 3
    assert [o for o, _, _ in found] == [str(2**55 + n) for n in range(3)]
    assert [w for _, w, _ in found] == [0 if known else -1] * 3
    assert [z for _, _, z in found] == pytest.approx(expected, nan_ok=True)


def test_redrock_of_other_spectra_is_refused(tmp_path):
    spectra, fitted = coadd_file(), redrock_file([2**55])
    spectra[0].header["PROGRAM"], fitted[0].header["PROGRAM"] = "dark", "bright"
    spectra.writeto(tmp_path / "coadd-x.fits")
    fitted.writeto(tmp_path / "redrock-x.fits")
    with pytest.raises(InvalidRecord, match=r"redrock_mismatch.*PROGRAM"):
        read(tmp_path / "coadd-x.fits")


def test_redrock_that_names_a_target_twice_is_refused(tmp_path):
    coadd_file().writeto(tmp_path / "coadd-x.fits")
    redrock_file([2**55, 2**55]).writeto(tmp_path / "redrock-x.fits")
    with pytest.raises(InvalidRecord, match="redrock_ambiguous"):
        read(tmp_path / "coadd-x.fits")


def test_companions_are_passed_over_in_a_folder_and_refused_when_named(tmp_path):
    reader = make_reader("desi_coadd")
    for name in ("redrock-x.fits", "REDROCK-X.FITS.GZ", "zbest-1-2.fits", "qso_qn-x.fits"):
        assert not reader.claims(name)
    redrock_file([1]).writeto(tmp_path / "any.fits")
    with pytest.raises(InvalidRecord, match=r"companion_file.*redshifts alone.*REDSHIFTS"):
        read(tmp_path / "any.fits")
    fits.HDUList([fits.PrimaryHDU(np.zeros((3, 4)))]).writeto(tmp_path / "image.fits")
    with pytest.raises(InvalidRecord, match=r"layout_unknown.*image 3 × 4"):
        read(tmp_path / "image.fits")
