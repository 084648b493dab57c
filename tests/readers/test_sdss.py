"""SDSS and BOSS spec files: equal to astropy on real files; what is read without a catalogue."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from pyarrow import fs
from tests.damaged_fits import spec_file

from skyray.readers.base import SurveyFile, make_reader
from skyray.readers.sdss import BAD_PIXEL_BITS
from skyray.records import Spectrum, check_spectrum

RAW = (
    "spec-0266-51602-0001", "spec-0266-51602-0013", "spec-0266-51602-0031",
    "spec-1059-52618-0453", "spec-3655-55240-0026", "spec-7102-56666-0156",
)  # fmt: skip


def read_one(path: Path) -> Spectrum:
    (record,) = make_reader("sdss_spec").read(SurveyFile(fs.LocalFileSystem(), str(path)))
    assert isinstance(record, Spectrum)
    return record


@pytest.mark.parametrize("name", RAW)
def test_real_file_equals_astropy(survey_data, name):
    path = survey_data / "spectra_sdss" / "raw_fits" / f"{name}.fits"
    spectrum = read_one(path)
    with fits.open(path) as hdus:
        coadd, row, header = hdus[1].data, hdus[2].data[0], hdus[0].header
        np.testing.assert_array_equal(spectrum.flux, coadd["flux"])
        np.testing.assert_array_equal(spectrum.ivar, coadd["ivar"])
        np.testing.assert_array_equal(
            spectrum.wavelength, 10.0 ** coadd["loglam"].astype(np.float64)
        )
        bad = sum(1 << bit for bit in BAD_PIXEL_BITS.values())
        np.testing.assert_array_equal(spectrum.mask, (coadd["and_mask"] & bad) != 0)
        assert spectrum.spectype == row["CLASS"].strip()
        assert spectrum.subtype == row["SUBCLASS"].strip()
        assert spectrum.redshift == row["Z"]
        assert spectrum.redshift_err == row["Z_ERR"]
        assert spectrum.zwarning == row["ZWARNING"]
        assert spectrum.snr == row["SN_MEDIAN_ALL"]
        assert (spectrum.ra, spectrum.dec) == (header["PLUG_RA"], header["PLUG_DEC"])
        assert spectrum.extra["plate"] == row["PLATE"]
    assert spectrum.object_id == name.removeprefix("spec-")
    check_spectrum(spectrum)


@pytest.mark.parametrize("shift", [0.0, 1e-6, -4e-5, 0.5])
def test_wavelengths_on_and_off_the_surveys_own_pixels(tmp_path, shift):
    with fits.open(io.BytesIO(spec_file())) as hdus:
        loglam = hdus["COADD"].data["loglam"]
        loglam += np.float32(shift)
        expected = 10.0 ** loglam.astype(np.float64)
        hdus.writeto(tmp_path / "spec-1-2-3.fits")
    np.testing.assert_array_equal(read_one(tmp_path / "spec-1-2-3.fits").wavelength, expected)


def test_real_files_cover_both_surveys_and_all_classes(survey_data):
    folder = survey_data / "spectra_sdss" / "raw_fits"
    spectra = [read_one(folder / f"{name}.fits") for name in RAW]
    assert {s.spectype for s in spectra} == {"STAR", "GALAXY", "QSO"}
    assert [s.survey for s in spectra] == ["sdss"] * 4 + ["boss"] * 2


@pytest.mark.parametrize("catalogue", ["SPECOBJ", "SPALL", ""])
def test_catalogue_row_by_any_name(tmp_path, catalogue):
    path = tmp_path / "spec-0266-51602-0007.fits"
    path.write_bytes(spec_file(catalogue))
    spectrum = read_one(path)
    assert (spectrum.spectype, spectrum.subtype, spectrum.zwarning) == ("GALAXY", "AGN", 4)
    assert spectrum.redshift == np.float32(0.125)


def test_without_catalogue_the_class_is_unknown(tmp_path):
    path = tmp_path / "spec-0266-51602-0007.fits"
    path.write_bytes(spec_file(catalogue=None))
    spectrum = read_one(path)
    assert (spectrum.spectype, spectrum.subtype, spectrum.zwarning) == ("", "", -1)
    assert np.isnan(spectrum.redshift)
    assert spectrum.object_id == "0266-51602-0007"
    assert (spectrum.ra, spectrum.dec) == (10.5, -1.25)
    expected = np.median(spectrum.flux * np.sqrt(2.0))
    assert spectrum.snr == pytest.approx(expected, rel=1e-6)


def test_bright_sky_is_kept_and_no_data_is_bad(tmp_path):
    path = tmp_path / "spec-0266-51602-0007.fits"
    path.write_bytes(spec_file())
    with fits.open(path, mode="update") as hdus:
        hdus["COADD"].data["and_mask"][:3] = [1 << 23, 1 << 24, (1 << 23) | (1 << 27)]
    np.testing.assert_array_equal(read_one(path).mask[:4], [False, True, True, False])


def test_later_hdus_are_not_needed(tmp_path):
    whole = spec_file(extra_hdus=3)
    path = tmp_path / "spec-0266-51602-0007.fits"
    path.write_bytes(whole[:-20_000])
    assert read_one(path).spectype == "GALAXY"


def test_gzip_is_read(tmp_path):
    import gzip

    path = tmp_path / "spec-0266-51602-0007.fits.gz"
    path.write_bytes(gzip.compress(spec_file()))
    assert read_one(path).object_id == "0266-51602-0007"


@pytest.mark.parametrize(
    ("path", "claimed"),
    [
        ("a/spec-0266-51602-0007.fits", True),
        ("s/spec-lite-0266-51602-0007.fits", True),
        ("spec-015150-59291-4544164319.fits.gz", True),
        ("SPEC-0266-51602-0007.FITS", True),
        ("galaxy.fit.bz2", True),
        ("spPlate-0266-51602.fits", False),
        ("notes.txt", False),
        ("specObj-dr16.fits", False),
    ],
)
def test_claims(path, claimed):
    assert make_reader("sdss_spec").claims(path) is claimed
