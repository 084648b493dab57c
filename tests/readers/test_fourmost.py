"""4MOST products: the layout of the module's docstring, read back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from pyarrow import fs

from skyray.readers.base import SurveyFile, make_reader
from skyray.records import InvalidRecord, check_spectrum
from skyray.transforms.spectra import air_to_vacuum

WAVE = 3700.0 + np.arange(5801.0)
FLUX_UNIT = "10**(-17)erg.cm**(-2).s**(-1).angstrom**(-1)"


def write(path: Path, wave=WAVE, unit=FLUX_UNIT, wave_unit="angstrom", tucd="", **keywords) -> Path:
    size = len(wave)
    flux, error = np.linspace(1, 2, size), np.full(size, 0.25)
    error[3] = 0.0
    quality = np.zeros(size, dtype=np.int32)
    quality[7] = 1
    columns = [
        fits.Column("WAVE", f"{size}D", unit=wave_unit, array=[wave]),
        fits.Column("FLUX", f"{size}E", unit=unit, array=[flux]),
        fits.Column("ERR_FLUX", f"{size}E", unit=unit, array=[error]),
        fits.Column("QUAL", f"{size}J", array=[quality]),
    ]
    primary = fits.PrimaryHDU()
    header = {"OBJECT": "MOCK-000017", "RA": 150.25, "DEC": -30.5, "SPECSYS": "BARYCENT"}
    primary.header.update({**header, **keywords})
    table = fits.BinTableHDU.from_columns(columns, name="SPECTRUM")
    if tucd:
        table.header["TUCD1"] = tucd
    fits.HDUList([primary, table]).writeto(path)
    return path


def read(path: Path):
    (record,) = make_reader("fourmost").read(SurveyFile(fs.LocalFileSystem(), str(path)))
    return record


def test_layout(tmp_path):
    path = write(tmp_path / "qmost_17.fits", TRG_CLS="ClusB", TRG_Z=0.52, SNR=5.8)
    spectrum = read(path)
    check_spectrum(spectrum)
    assert (spectrum.object_id, spectrum.ra, spectrum.dec) == ("MOCK-000017", 150.25, -30.5)
    assert (spectrum.spectype, spectrum.redshift, spectrum.snr) == ("ClusB", 0.52, 5.8)
    assert (spectrum.zwarning, spectrum.extra["specsys"]) == (0, "BARYCENT")
    np.testing.assert_array_equal(spectrum.wavelength, WAVE)
    np.testing.assert_allclose(spectrum.flux, np.linspace(1, 2, 5801), rtol=1e-6)
    assert spectrum.ivar[3] == 0.0
    assert spectrum.ivar[4] == pytest.approx(16.0)
    assert spectrum.mask.sum() == 1
    assert spectrum.mask[7]


def test_class_may_be_unknown(tmp_path):
    spectrum = read(write(tmp_path / "qmost_17.fits"))
    assert (spectrum.spectype, spectrum.zwarning) == ("", -1)
    assert np.isnan(spectrum.redshift)
    assert spectrum.snr == pytest.approx(np.median(np.linspace(1, 2, 5801)) * 4, rel=1e-3)


def test_units(tmp_path):
    plain = "erg.cm**(-2).s**(-1).angstrom**(-1)"
    spectrum = read(write(tmp_path / "qmost_1.fits", WAVE / 10, plain, "nm"))
    np.testing.assert_allclose(spectrum.wavelength, WAVE, rtol=1e-12)
    assert spectrum.flux[0] == pytest.approx(1e17)
    with pytest.raises(InvalidRecord, match=r"unit_unknown.*WAVE"):
        read(write(tmp_path / "qmost_2.fits", wave_unit="eV"))


def test_air_is_converted(tmp_path):
    spectrum = read(write(tmp_path / "qmost_1.fits", tucd="em.wl;obs;air"))
    np.testing.assert_array_equal(spectrum.wavelength, air_to_vacuum(WAVE))


@pytest.mark.parametrize(
    ("unit", "factor"),
    [("erg cm-2 s-1 A-1", 1e17), ("erg/s/cm^2/nm", 1e16), ("W/m2/um", 1e16),
     ("10**(-16)erg.cm**(-2).s**(-1).angstrom**(-1)", 10.0)],
)  # fmt: skip
def test_flux_units_of_every_spelling(tmp_path, unit, factor):
    spectrum = read(write(tmp_path / "x.fits", unit=unit))
    np.testing.assert_allclose(spectrum.flux, factor * np.linspace(1, 2, 5801), rtol=1e-6)
    good = spectrum.ivar > 0
    expected = np.broadcast_to(1 / (0.25 * np.asarray(factor)) ** 2, WAVE.shape)
    np.testing.assert_allclose(spectrum.ivar[good], expected[good], rtol=1e-6)


@pytest.mark.parametrize("unit", ["adu", "", "mag", "A", "Jy"])
def test_a_flux_of_no_known_unit_is_refused(tmp_path, unit):
    with pytest.raises(InvalidRecord, match=r"unit_unknown.*FLUX"):
        read(write(tmp_path / "x.fits", unit=unit))


def test_a_topocentric_spectrum_is_refused(tmp_path):
    with pytest.raises(InvalidRecord, match=r"frame_topocentric.*TOPOCENT"):
        read(write(tmp_path / "x.fits", SPECSYS="TOPOCENT"))


def test_a_sky_spectrum_is_refused(tmp_path):
    with pytest.raises(InvalidRecord, match="sky_fibre"):
        read(write(tmp_path / "x.fits", OBJECT="SKY"))


@pytest.mark.parametrize("name", ["ADP.2024-01-01T00:00:00.000.fits", "X.FIT", "upload"])
def test_the_observation_is_named_by_the_archive_or_its_content(tmp_path, name):
    archived = write(tmp_path / name, ARCFILE="ADP.2024-01-01T00:00:00.123.fits")
    assert read(archived).observation_id == "ADP.2024-01-01T00:00:00.123"
    archived.unlink()
    assert read(write(tmp_path / name)).observation_id.startswith("MOCK-000017-")


@pytest.mark.parametrize("extname", ["PHASE3SPECTRUM", ""])
def test_columns_of_the_standard(tmp_path, extname):
    path = write(tmp_path / "x.fits")
    with fits.open(path, mode="update") as hdus:
        hdus[1].header["EXTNAME"] = extname
        hdus[1].header["TTYPE3"] = "ERR"
        hdus[1].header["TTYPE4"] = "OTHER"
        hdus[1].header["TUCD1"] = "em.wl;obs.air"
    spectrum = read(path)
    assert not spectrum.mask.any()
    assert spectrum.ivar[4] == pytest.approx(16.0)
    np.testing.assert_array_equal(spectrum.wavelength, air_to_vacuum(WAVE))


def test_missing_column_is_named(tmp_path):
    path = write(tmp_path / "qmost_1.fits")
    with fits.open(path, mode="update") as hdus:
        hdus[1].header["TTYPE3"] = "SIGMA"
    with pytest.raises(InvalidRecord, match=r"column_missing.*err_flux"):
        read(path)


def test_text_in_a_numeric_keyword_is_unknown(tmp_path):
    spectrum = read(write(tmp_path / "qmost_1.fits", RA="unknown", TRG_Z="?", SNR="n/a"))
    assert np.isnan(spectrum.ra)
    assert np.isnan(spectrum.redshift)
    assert spectrum.snr > 0
