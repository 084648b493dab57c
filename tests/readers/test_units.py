"""Units: every spelling against factors worked out by hand and by astropy; what is no unit."""

from __future__ import annotations

import math

import numpy as np
import pytest
from astropy import units
from hypothesis import given, settings
from hypothesis import strategies as st

from skyray.readers.units import (
    flux_factor,
    ivar_factor,
    parse_unit,
    to_angstrom,
    to_degrees,
)
from skyray.records import InvalidRecord, attempt

WAVE = np.array([4000.0, 8000.0])
C = 2.99792458e18  # Å/s
H = 6.62607015e-27  # erg s
JY = 1e-23 * C / WAVE**2 * 1e17

FLUX = {
    1.0: [
        "1E-17 erg/cm^2/s/Ang", "10^-17 ergs/s/cm^2/Angs", "1e-17 erg/(s cm2 Angstrom)",
        "10**-17 erg/(s cm2 Angstrom)", "10-17erg/s/cm2/A", "10**(-17) erg/s/cm2/Angstrom",
        "10**(-17)erg.cm**(-2).s**(-1).angstrom**(-1)", "1e-17 erg / (Angstrom cm2 s)",
        "1E-17*erg s^-1 cm^-2 A^-1", "10^-17 erg/s/cm^2/Å", "[1e-17 erg/s/cm2/A]",
        "(10^-17 erg s^-1 cm^-2 Å^-1)", "10⁻¹⁷ erg s⁻¹ cm⁻² Å⁻¹", "erg/s/cm2/A 1e-17",
        "erg/s/cm2/A*1e-17", "10^(-17)erg/s/cm^2/Angstrom", "x10-17 erg/s/cm2/A",
        "1e-17 FLAM", "10-17mW/m2/A", "1e-16 erg/s/cm2/nm",
    ],
    10.0: ["1.0D-16 erg/s/cm2/AA", "10E-17 erg/s/cm2/A", "1.E-16 ERG/CM2/S/A"],
    1e17: [
        "erg cm-2 s-1 A-1", "erg.s**-1.cm**-2.Angstrom**-1", "erg/s/cm2/Å", "ERG/CM2/S/A",
        "ERG/S/CM**2/ANGSTROM", "erg/cm^2/sec/A", "ergs/sec/cm2/Ang", "FLAM", "flam",
        "erg.s-1.cm-2.A-1", "erg s⁻¹ cm⁻² Å⁻¹", "erg / s / cm ** 2 / Angstrom",
        "erg·s⁻¹·cm⁻²·Å⁻¹", "mW/m2/A",
    ],
    1e16: ["erg / (s cm2 nm)", "erg.cm**(-2).s**(-1).nm**(-1)", "W m-2 um-1", "W/m2/um",
           "mW.m-2.nm-1"],
    1e13: ["erg/s/cm2/um", "erg s-1 cm-2 micron-1"],
    0.1: ["[10-17mW/m2/nm]", "1e-20 W/m2/nm"],
}  # fmt: skip


@pytest.mark.parametrize(("expected", "text"), [(f, t) for f, ts in FLUX.items() for t in ts])
def test_flux_per_wavelength(expected, text):
    assert flux_factor("x.fits", "FLUX", text, WAVE) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("Jy", JY), ("JY", JY), ("jansky", JY), ("mJy", JY * 1e-3), ("MJy", JY * 1e6),
     ("uJy", JY * 1e-6), ("µJy", JY * 1e-6), ("nJy", JY * 1e-9), ("10**-3 Jy", JY * 1e-3),
     ("erg/s/cm2/Hz", JY * 1e23), ("erg cm-2 s-1 Hz-1", JY * 1e23), ("W/m^2/Hz", JY * 1e26),
     ("FNU", JY * 1e23), ("photons cm-2 s-1 Angstrom-1", H * C / WAVE * 1e17)],
)  # fmt: skip
def test_flux_per_frequency_and_of_photons(text, expected):
    np.testing.assert_allclose(flux_factor("x.fits", "FLUX", text, WAVE), expected, rtol=1e-7)


def test_inverse_variances_have_the_inverse_square():
    for text, expected in (
        ("10**+34 (s2 cm4 Angstrom2) / erg2", 1.0),
        ("(1e-17 erg/(s cm2 nm))**-2", 100.0),
        ("1/(10**(-17) erg/s/cm2/A)^2", 1.0),
        ("Jy-2", JY**-2.0),
        ("1/mJy2", JY**-2.0 * 1e6),
    ):
        found = ivar_factor("x.fits", "IVAR", text, WAVE)
        np.testing.assert_allclose(found, expected, rtol=1e-9)
    with pytest.raises(InvalidRecord, match=r"unit_unknown: IVAR: .*inverse square"):
        ivar_factor("x.fits", "IVAR", "1e-17 erg/s/cm2/A", WAVE)


@pytest.mark.parametrize(
    ("text", "values", "expected"),
    [("Angstrom", 5000, 5000), ("angstroms", 5000, 5000), ("A", 5000, 5000), ("AA", 5000, 5000),
     ("ANGSTROMS", 5000, 5000), ("0.1nm", 5000, 5000), ("nm", 500, 5000), ("um", 0.5, 5000),
     ("microns", 0.5, 5000), ("m", 5e-7, 5000), ("10**-10 m", 5000, 5000),
     ("log10(Angstrom)", 3.5, 10**3.5), ("log(nm)", 2.5, 10**3.5), ("dex(Angstrom)", 4, 1e4),
     ("ln(Angstrom)", 8.5, math.exp(8.5)), ("LOG10(ANGSTROM)", 4, 1e4), ("log Angstrom", 4, 1e4),
     ("Hz", 6e14, C / 6e14), ("GHz", 6e5, C / 6e14), ("eV", 2, 12398.41984 / 2),
     ("keV", 2e-3, 12398.41984 / 2), ("cm-1", 20000, 5000), ("Angstrom (vacuum)", 5000, 5000)],
)  # fmt: skip
def test_wavelength(text, values, expected):
    found = to_angstrom("x.fits", "WAVE", text, np.array([values]))
    np.testing.assert_allclose(found, [expected], rtol=1e-9)


STRANGE = ["", "?", "adu", "ADU", "counts", "count/s", "electron", "DN", "mag", "mag(AB)", "ABmag",
           "K", "m**(1/0)", "10**99999 erg/s/cm2/A", "1e-9999", "10**(-17)", "erg**9999999999",
           "((((", "erg/s/cm2/Angstrom/foo", "km/s", "pixel", "normalized", "erg/s/cm2/A/1e-17",
           "MJY", "dex", "log(lambda)", "e" * 5000]  # fmt: skip


@pytest.mark.parametrize("text", [*STRANGE, "erg/s/cm2", "Angstrom", "solLum/Angstrom",
                                  "erg/s/cm2/A/arcsec2"])  # fmt: skip
def test_what_is_no_flux_density_is_refused(text):
    with pytest.raises(InvalidRecord, match=r"unit_unknown: FLUX: expected .* found"):
        flux_factor("x.fits", "FLUX", text, WAVE)


@pytest.mark.parametrize("text", STRANGE)
def test_what_is_no_wavelength_is_refused(text):
    with pytest.raises(InvalidRecord, match=r"unit_unknown: WAVE: expected .* found"):
        to_angstrom("x.fits", "WAVE", text, WAVE)


ANGLES = [
    (12.5, "", 12.5), ("12.5", "deg", 12.5), (math.pi, "rad", 180), (3.5, "hourangle", 52.5),
    (3.5, "h", 52.5), ("3.5", "hours", 52.5), (3600, "arcsec", 1), (3.5, "DEG", 3.5),
    ("12:30:00", "", 187.5), ("12h30m", "", 187.5), ("12 30 00.0", "hms", 187.5),
    ("12:30:00", "deg", 12.5), (None, "", math.nan), ("  ", "", math.nan), (math.nan, "", math.nan),
]  # fmt: skip


@pytest.mark.parametrize(("value", "unit", "expected"), ANGLES)
def test_right_ascension(value, unit, expected):
    found = to_degrees("x.fits", "RA", unit, value, hours=True)
    assert found == pytest.approx(expected, rel=1e-12, nan_ok=True)


def test_sexagesimal_declinations_are_degrees_also_below_zero():
    assert to_degrees("x.fits", "DEC", "", "-00:30:00") == pytest.approx(-0.5)
    assert to_degrees("x.fits", "DEC", "", "-5d30m") == pytest.approx(-5.5)


@pytest.mark.parametrize(
    ("value", "unit", "reason"),
    [("abc", "", "field_invalid"), (True, "", "field_invalid"), ("12:99:00", "", "field_invalid"),
     ([1.0], "", "field_invalid"), (1.0, "m", "unit_unknown"), (1.0, "pixels", "unit_unknown")],
)  # fmt: skip
def test_what_is_no_angle_is_refused(value, unit, reason):
    with pytest.raises(InvalidRecord) as refused:
        to_degrees("x.fits", "RA", unit, value, hours=True)
    assert refused.value.reason == reason


# Random spellings of a unit whose factor is known from its parts.
_ERG = {"erg": 1.0, "W": 1e7, "mW": 1e4, "kW": 1e10}
_AREA = {"cm": 1.0, "m": 1e-4}  # per area, in 1/cm²
_LENGTH = {"Angstrom": 1.0, "A": 1.0, "nm": 0.1, "um": 1e-4, "AA": 1.0}  # per length, in 1/Å
_POWERS = ["10**({n})", "10^{n}", "10**{n}", "1e{n}", "1E{n}", "1.0D{n}", "10({n})", "10^({n})"]


@settings(max_examples=400, deadline=None)
@given(
    st.sampled_from(sorted(_ERG)), st.sampled_from(sorted(_AREA)), st.sampled_from(sorted(_LENGTH)),
    st.sampled_from([*_POWERS, ""]), st.integers(-30, -1),
    st.sampled_from(["/", "-1", "**-1", "**(-1)", "^-1", "(/)"]), st.sampled_from([" ", ".", "*"]),
    st.randoms(use_true_random=False), st.booleans(),
)  # fmt: skip
def test_random_spellings_mean_what_their_parts_do(
    power, area, length, scale, n, style, join, order, spaced
):
    parts = [(area, 2), (length, 1)]
    expected = _ERG[power] * _AREA[area] * _LENGTH[length] * 1e17
    if power == "erg":
        parts.append(("s", 1))
    order.shuffle(parts)

    def raised(name: str, exponent: int) -> str:
        if style in ("/", "(/)"):
            return name if exponent == 1 else f"{name}{exponent}"
        return name + style.replace("1", str(exponent))

    words = [raised(*part) for part in parts]
    if style == "/":
        text = f"{power}/" + "/".join(words)
    elif style == "(/)":
        text = f"{power}/({join.join(words)})"
    else:
        text = join.join([power, *words])
    if scale:
        expected *= 10.0**n
        text = scale.format(n=n) + (" " if spaced or join == "*" else "") + text
    assert flux_factor("x", "FLUX", text, WAVE) == pytest.approx(expected, rel=1e-9)


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="ergscmAJyHzWn10-+*/^().e² ", max_size=24))
def test_any_text_is_a_unit_or_refused(text):
    unit = parse_unit(text)
    factor = attempt(lambda: flux_factor("x", "FLUX", text, WAVE))
    if isinstance(factor, InvalidRecord):
        assert factor.reason == "unit_unknown"
        return
    density = units.spectral_density(WAVE * units.AA)
    ours = units.Unit("1e-17 erg / (s cm2 Angstrom)")
    np.testing.assert_allclose(factor, unit.to(ours, equivalencies=density), rtol=1e-9)
