"""1-D images with a spectral axis: every kind of axis against its formula; refusals by name."""

from __future__ import annotations

import numpy as np
import pytest
from astropy.io import fits
from pyarrow import fs

from skyray.readers.base import SurveyFile, make_reader
from skyray.records import InvalidRecord, Spectrum, check_spectrum
from skyray.transforms.spectra import air_to_vacuum

SIZE = 600
PIXEL = np.arange(SIZE)
C = 2.99792458e18  # Å/s
HC = 12398.419843320026  # eV Å
FLUX = np.linspace(1, 3, SIZE)
UNIT = {"BUNIT": "10**(-17) erg/s/cm2/Angstrom"}


def write(path, keywords, errors=None):
    primary = fits.PrimaryHDU(FLUX)
    noise = fits.ImageHDU(np.full(SIZE, 0.5) if errors is None else errors, name="ERRS")
    for hdu in (primary, noise):
        hdu.header.update({**UNIT, **{k: v for k, v in keywords.items() if hdu is primary}})
    fits.HDUList([primary, noise]).writeto(path)
    return path


def read(path, **options) -> Spectrum:
    reader = make_reader("spectrum_image", {"error": "ERRS", **options})
    (record,) = reader.read(SurveyFile(fs.LocalFileSystem(), str(path)))
    return record


def linear(ctype, unit, start, step, **more):
    return {"CTYPE1": ctype, "CUNIT1": unit, "CRVAL1": start, "CDELT1": step, "CRPIX1": 1.0, **more}


# keywords, the axis in vacuum Å pixel by pixel
AXES = {
    "WAVE Å": (linear("WAVE", "Angstrom", 4000, 2), 4000 + 2 * PIXEL),
    "WAVE nm": (linear("WAVE", "nm", 400, 0.2), 4000 + 2 * PIXEL),
    "WAVE m": (linear("WAVE", "m", 4e-7, 2e-10), 4000 + 2 * PIXEL),
    "AWAV": (linear("AWAV", "nm", 400, 0.2), air_to_vacuum(4000 + 2 * PIXEL)),
    "CRPIX": (linear("WAVE", "nm", 400, 0.2, CRPIX1=11.0), 4000 + 2 * (PIXEL - 10)),
    "CD1_1": ({"CTYPE1": "WAVE", "CUNIT1": "nm", "CRVAL1": 400.0, "CD1_1": 0.2, "CRPIX1": 1.0},
              4000 + 2 * PIXEL),
    "WAVE-LOG": (linear("WAVE-LOG", "nm", 400, 0.2), 4000 * np.exp(2 * PIXEL / 4000)),
    "AWAV-LOG": (linear("AWAV-LOG", "Angstrom", 4000, 2),
                 air_to_vacuum(4000 * np.exp(2 * PIXEL / 4000))),
    "FREQ": (linear("FREQ", "Hz", 5e14, 2e11), C / (5e14 + 2e11 * PIXEL)),
    "FREQ GHz": (linear("FREQ", "GHz", 5e5, 2e2), C / (5e14 + 2e11 * PIXEL)),
    "ENER": (linear("ENER", "eV", 2, 1e-3), HC / (2 + 1e-3 * PIXEL)),
    "WAVN": (linear("WAVN", "1/m", 2e6, 1e3), 1e10 / (2e6 + 1e3 * PIXEL)),
    "WAVE-F2W": (linear("WAVE-F2W", "nm", 500, 0.2),  # linear in frequency, paper III eq. 30
                 C / (C / 5000 - PIXEL * 2 * C / 5000**2)),
    "IRAF linear": (linear("LINEAR", "", 4000, 2, VACUUM=True, WAT1_001="units=angstroms"),
                    4000 + 2 * PIXEL),
    "IRAF log": ({"CTYPE1": "LINEAR", "CRVAL1": 3.6, "CD1_1": 2e-4, "CRPIX1": 1.0, "DC-FLAG": 1,
                  "VACUUM": True}, 10 ** (3.6 + 2e-4 * PIXEL)),
    "SDSS": ({"COEFF0": 3.6, "COEFF1": 1e-4, "VACUUM": True}, 10 ** (3.6 + 1e-4 * PIXEL)),
}  # fmt: skip


@pytest.mark.parametrize("name", AXES)
def test_axes(tmp_path, name):
    keywords, expected = AXES[name]
    spectrum = read(write(tmp_path / "x.fits", keywords))
    check_spectrum(spectrum)
    descending = expected[0] > expected[-1]
    flux = FLUX[::-1] if descending else FLUX
    expected = expected[::-1] if descending else expected
    np.testing.assert_allclose(spectrum.wavelength, expected, rtol=1e-9)
    np.testing.assert_allclose(spectrum.flux, flux, rtol=1e-6)
    np.testing.assert_allclose(spectrum.ivar, 4.0, rtol=1e-6)
    assert {"medium", "wavelength_unit", "flux_unit", "frame"} <= set(spectrum.statements)


@pytest.mark.parametrize(
    ("keywords", "options", "reason"),
    [(linear("LINEAR", "Angstrom", 4000, 2), {}, "medium_unknown"),
     (linear("AWAV", "nm", 400, 0.2), {"medium": "vacuum"}, "medium_conflict"),
     (linear("WAVE", "nm", 400, 0.2, BUNIT="adu"), {}, "unit_unknown"),
     (linear("WAVE", "nm", 400, 0.2, BUNIT="Jy"), {"flux_unit": 1.0}, "unit_conflict"),
     (linear("WAVE", "nm", 400, 0.2, SPECSYS="TOPOCENT"), {}, "frame_topocentric"),
     (linear("VELO", "km/s", 0, 20), {}, "unit_unknown"), (linear("RA---TAN", "deg", 0, 1), {},
                                                          "wavelength_missing"),
     ({"CTYPE1": "WAVE", "CUNIT1": "nm"}, {}, "wavelength_missing"), ({}, {"medium": "air"},
                                                                      "wavelength_missing"),
     (linear("WAVE", "", 400, 0.2), {}, "unit_unknown"), (linear("WAVE", "parsec/s", 4, 2), {},
                                                          "unit_unknown")],
)  # fmt: skip
def test_what_is_not_told_or_contradicts_is_refused(tmp_path, keywords, options, reason):
    path = write(tmp_path / "x.fits", keywords)
    with pytest.raises(InvalidRecord) as refused:
        read(path, **options)
    assert refused.value.reason == reason
    assert refused.value.source == str(path)


def test_a_stack_needs_a_row(tmp_path):
    stack = np.stack([FLUX, FLUX * 2, np.full(SIZE, 0.5)])[:, None]
    hdu = fits.PrimaryHDU(stack)
    hdu.header.update({**UNIT, **linear("WAVE", "nm", 400, 0.2), "OBJECT": "HD 1", "RA": "1:00:00"})
    hdu.writeto(tmp_path / "x.fits")
    spectrum = read(tmp_path / "x.fits", flux="0:1", error="0:2")
    np.testing.assert_allclose(spectrum.flux, 2 * FLUX, rtol=1e-6)
    assert (spectrum.object_id, spectrum.ra) == ("HD 1", pytest.approx(15.0))
    assert spectrum.observation_id.startswith("HD 1-")
    for options in ({"error": 0}, {"flux": "0:3", "error": "0:2"}):
        with pytest.raises(InvalidRecord, match="shape_mismatch"):
            read(tmp_path / "x.fits", **options)
