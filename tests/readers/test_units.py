"""Units of survey files: every spelling the surveys use, and what is no unit."""

from __future__ import annotations

import io

import numpy as np
import pytest
from astropy.io import fits

from skyray.readers.fits_bytes import FitsFile
from skyray.readers.memory import memory_file
from skyray.readers.units import flux_factor, to_angstrom
from skyray.records import InvalidRecord

WAVE = np.array([4000.0, 8000.0])


@pytest.fixture
def file() -> FitsFile:
    stream = io.BytesIO()
    fits.PrimaryHDU().writeto(stream)
    return FitsFile(memory_file(stream.getvalue(), "x.fits"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [("1E-17 erg/cm^2/s/Ang", 1), ("10^-17 ergs/s/cm^2/Angs", 1), ("1e-17 erg/(s cm2 Angstrom)", 1),
     ("10**-17 erg/(s cm2 Angstrom)", 1), ("10-17erg/s/cm2/A", 1), ("1.0D-16 erg/s/cm2/AA", 10),
     ("10**(-17)erg.cm**(-2).s**(-1).angstrom**(-1)", 1), ("erg cm-2 s-1 A-1", 1e17),
     ("erg / (s cm2 nm)", 1e16), ("W m-2 um-1", 1e16), ("erg/s/cm2/Å", 1e17),
     ("Jy", 2.99792458e-5 / WAVE**2 * 1e17), ("mJy", 2.99792458e-8 / WAVE**2 * 1e17),
     ("erg/s/cm2/Hz", 2.99792458e18 / WAVE**2 * 1e17)],
)  # fmt: skip
def test_flux(file, text, expected):
    np.testing.assert_allclose(flux_factor("x.fits", "FLUX", text, WAVE), expected, rtol=1e-9)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("Angstrom", 1), ("angstrom", 1), ("Angstroms", 1), ("A", 1), ("AA", 1), ("0.1nm", 1),
     ("nm", 10), ("um", 1e4), ("micron", 1e4), ("microns", 1e4), ("m", 1e10), ("10**-10 m", 1)],
)  # fmt: skip
def test_wavelength(file, text, expected):
    np.testing.assert_allclose(
        to_angstrom("x.fits", "WAVE", text, WAVE / expected), WAVE, rtol=1e-9
    )


STRANGE = ["", "?", "adu", "counts", "mag", "K", "m**(1/0)", "10**99999 erg/s/cm2/A", "1e-9999",
           "10**(-17)", "erg**9999999999", "((((", "erg/s/cm2/Angstrom/foo", "km/s"]  # fmt: skip


@pytest.mark.parametrize("text", STRANGE)
def test_what_is_no_such_unit_is_refused(file, text):
    with pytest.raises(InvalidRecord, match=r"unit_unknown: FLUX: expected .* found"):
        flux_factor("x.fits", "FLUX", text, WAVE)
    with pytest.raises(InvalidRecord, match=r"unit_unknown: WAVE: expected .* found"):
        to_angstrom("x.fits", "WAVE", text, WAVE)
