"""Units of flux, wavelength and angle as files spell them; what is not understood is refused.

SDSS writes ``1E-17 erg/cm^2/s/Ang`` and ``10^-17 ergs/s/cm^2/Angs``, DESI ``10**-17 erg/(s cm2
Angstrom)``, ESO ``10**(-17)erg.cm**(-2).s**(-1).angstrom**(-1)``, IRAF ``ERG/CM2/S/A``, HST
``FLAM``. Powers of ten and the surveys' own words are read here, everything else by astropy in the
formats FITS, OGIP, CDS and VOUnit. A bare ``A`` is Å: no flux density holds amperes.

A unit that astropy reads and that is no flux density (counts, adu, a magnitude), and a text it does
not read, are both refused as ``unit_unknown``.
"""

from __future__ import annotations

import re
import warnings
from functools import lru_cache
from typing import Any

import numpy as np
from astropy import units
from astropy.coordinates import Angle

from skyray.records import InvalidRecord

FLUX = units.Unit("1e-17 erg / (s cm2 Angstrom)")  # what a Spectrum holds
_DENSITIES = (  # per wavelength, per frequency, and of photons; not ν f_ν, which is a flux
    FLUX, units.Jy, units.Unit("photon / (s cm2 Angstrom)"), units.Unit("photon / (s cm2 Hz)"),
)  # fmt: skip
_MAX_CHARACTERS = 120
_NUMBER = r"[-+]?\d{1,5}"
# 10**(-17), 10^-17, 10**-17, 10-17, 10E-17 apart; and 1e-17, 1.0D-17, x10^-17
_POWER = (
    rf"10\s*(?:(?:\*\*|\^)\s*\(?\s*({_NUMBER})\s*\)?|\(?([-+]\d{{1,5}})\)?)"
    r"|(\d+\.?\d*[eEdD][-+]?\d{1,5})"
)
_FIRST = re.compile(rf"\s*[x*]?\s*(?:{_POWER})\s*[.*x]?\s*")
_LAST = re.compile(rf"\s*([*x/\s])\s*(?:{_POWER})\s*$")
_SIGNS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺·×−", "0123456789-+.*-")
_WORDS = {
    "Angstrom": r"Angs?|[Aa]ngstroms?|ANGSTROMS?|angs?|AA?|Å|Å",
    "erg": r"ergs|Ergs?",
    "s": r"secs?|seconds?",
    "um": r"[Mm]icrons?|micro-?meters?|MICRONS?",
    "nm": r"nanomet(?:er|re)s?",
    "m": r"met(?:er|re)s?",
    "Jy": r"Janskys?|janskys?|jy",
    "Hz": r"hz|Hertz|hertz",
    "W": r"[Ww]atts?",
    "photon": r"photons?|Photons?",
    "erg / (s cm2 Angstrom)": r"FLAM|flam",
    "erg / (s cm2 Hz)": r"FNU|fnu",
}
_SPELLINGS = [
    (re.compile(rf"(?<![A-Za-zÅ])(?:{wrong})(?![A-Za-zÅ])"), right)
    for right, wrong in _WORDS.items()
]
_UPPER = {"ERG": "erg", "ERGS": "erg", "S": "s", "SEC": "s", "CM": "cm", "M": "m", "NM": "nm",
          "UM": "um", "HZ": "Hz", "JY": "Jy", "DEG": "deg", "RAD": "rad"}  # fmt: skip
_ANGLES = {
    **dict.fromkeys(("", "deg", "degree", "degrees", "dms"), units.deg),
    **dict.fromkeys(("h", "hr", "hrs", "hour", "hours", "hms", "hourangle"), units.hourangle),
    **dict.fromkeys(("rad", "radian", "radians"), units.rad),
    **dict.fromkeys(("arcmin", "arcminutes"), units.arcmin),
    **dict.fromkeys(("arcsec", "arcseconds"), units.arcsec),
}
_UNKNOWN = ("", "unknown", "none", "null", "n/a", "na", "nan", "--", "?")  # words for no angle
_A_PIXEL = re.compile(
    r"(\s*/\s*|\s+per\s+|[\s.]+)pix(el)?s?(\s*(\*\*|\^)?\s*\(?-1\)?)?$", re.IGNORECASE
)
_FORMATS = (None, "fits", "ogip", "vounit", "cds")
_LOGARITHM = re.compile(
    r"\s*(?:(log10|log|dex|ln)\s*(?:\(\s*(.*?)\s*\)|\[\s*(.*?)\s*\]|\s(.*))|(.*?)\s*\(?\s*(dex|log10)\)?)\s*",
    re.IGNORECASE,
)
# 1/(flux)^2 and (flux)**-2, whose power of ten is squared as well
_INVERSE_SQUARE = re.compile(
    r"\s*(?:1\s*/\s*\((.{1,100})\)\s*(?:\*\*|\^)?\s*\(?2\)?"
    r"|\((.{1,100})\)\s*(?:\*\*|\^)?\s*\(?-2\)?)\s*"
)
_MEDIUM = re.compile(r"[\s,;(]*\b(?:in\s+)?(?:air|vac|vacuum)\b\)?\s*$", re.IGNORECASE)


# flux ------------------------------------------------------------------------------------------
@lru_cache(maxsize=256)
def is_flux(text: str) -> bool:
    """Return whether a text is the unit of a flux density, per wavelength or per frequency."""
    unit = parse_unit(text)
    return unit is not None and any(unit.is_equivalent(density) for density in _DENSITIES)


def flux_factor(source: str, name: str, text: str, wavelength: np.ndarray) -> float | np.ndarray:
    """Return what brings a flux to 1e-17 erg/s/cm²/Å: a number, or one a pixel for Jy and the like.

    Parameters
    ----------
    source, name : str
        File and column, for the refusal.
    text : str
        The unit as it is written.
    wavelength : float64 [L]
        Å, as measured (f_ν = f_λ λ²/c is meant in vacuum; air differs by 6e-4).

    Raises
    ------
    InvalidRecord
        ``unit_unknown`` where it is no flux density.
    """
    if (factor := _plain_factor(text)) is not None:
        return factor
    if not is_flux(text):
        raise _unknown(source, name, text, "a flux density")
    density = units.spectral_density(wavelength * units.AA)
    return parse_unit(text).to(FLUX, equivalencies=density)


def ivar_factor(source: str, name: str, text: str, wavelength: np.ndarray) -> float | np.ndarray:
    """Return what brings an inverse variance to (1e-17 erg/s/cm²/Å)⁻², as `flux_factor` a flux."""
    match = _INVERSE_SQUARE.fullmatch(text.translate(_SIGNS))
    unit = parse_unit(text)
    root = (match[1] or match[2]) if match else "" if unit is None else (unit**-0.5).to_string()
    if not is_flux(root):
        raise _unknown(source, name, text, "the inverse square of a flux density")
    return flux_factor(source, name, root, wavelength) ** -2.0


@lru_cache(maxsize=256)
def _plain_factor(text: str) -> float | None:
    """Return the factor of a unit per wavelength, None for one that depends on the wavelength."""
    unit = parse_unit(text)
    if unit is None or not unit.is_equivalent(FLUX):
        return None
    factor = unit.to(FLUX)
    power = float(f"1e{round(np.log10(factor))}")
    return power if abs(factor / power - 1) < 1e-12 else factor


# wavelength --------------------------------------------------------------------------------------
def to_angstrom(source: str, name: str, text: str, values: np.ndarray) -> np.ndarray:
    """Return wavelengths in Å, float64, in the order of `values`.

    Lengths, frequencies, wave numbers, energies (of photons), and logarithms of a length:
    ``log10(Angstrom)``, ``log(nm)``, ``dex(Angstrom)``, ``ln(Angstrom)``.

    Raises
    ------
    InvalidRecord
        ``unit_unknown`` where the unit is none of these.
    """
    values = np.asarray(values, dtype=np.float64)
    base, length = spectral_unit(source, name, text)
    with np.errstate(all="ignore"):  # absurd values are refused as such later
        if base is not None:
            values = base**values
        if length.is_equivalent(units.AA):
            return values * length.to(units.AA)
        return (values * length).to_value(units.AA, equivalencies=units.spectral())


def spectral_unit(source: str, name: str, text: str) -> tuple[float | None, units.UnitBase]:
    """Return the base of the logarithm, None for none, and the unit of a spectral coordinate."""
    found = _spectral_unit(text)
    if found is None:
        expected = "a wavelength, frequency, energy or the logarithm of a length"
        raise _unknown(source, name, text, expected)
    return found


@lru_cache(maxsize=256)
def is_length(text: str) -> bool:
    """Return whether a spectral coordinate is a wavelength or the logarithm of one."""
    found = _spectral_unit(text)
    return found is not None and found[1].is_equivalent(units.AA)


@lru_cache(maxsize=256)
def _spectral_unit(text: str) -> tuple[float | None, units.UnitBase] | None:
    match = _LOGARITHM.fullmatch(_MEDIUM.sub("", text))
    if match:
        inner = next((part for part in match.groups()[1:5] if part), "")
        unit = parse_unit(inner)
        kind = (match[1] or match[6]).lower()
        if unit is None or not unit.is_equivalent(units.AA):
            return None
        return (np.e if kind == "ln" else 10.0), unit
    unit = parse_unit(_MEDIUM.sub("", text))
    if unit is None or not unit.is_equivalent(units.AA, equivalencies=units.spectral()):
        return None
    return None, unit


# angles ------------------------------------------------------------------------------------------
def to_degrees(source: str, name: str, text: str, value: Any, hours: bool = False) -> float:
    """Return an angle in degrees, NaN for none.

    Parameters
    ----------
    text : str
        The unit; '' means degrees, of a sexagesimal text hours where `hours` (right ascension).
    value : number or str
        ``12.5``, ``"12.5"``, ``"00 50 00.0"``, ``"0h50m0s"``, ``"-5d30m"``.

    Raises
    ------
    InvalidRecord
        ``unit_unknown``; ``field_invalid`` for what is no angle.
    """
    if value is None or (isinstance(value, str) and value.strip().lower() in _UNKNOWN):
        return float("nan")
    if isinstance(value, bool | bytes):
        raise InvalidRecord("field_invalid", f"{name}: expected an angle, found {value!r}", source)
    word = text.strip().lower().rstrip(".")
    unit = _ANGLES.get(word) or parse_unit(text)
    if unit is None or not unit.is_equivalent(units.deg):
        raise _unknown(source, name, text, "an angle")
    try:
        if isinstance(value, str):
            number = re.fullmatch(r"\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*", value)
            if not number:
                sexagesimal = units.hourangle if hours and not text else unit
                return float(Angle(value.strip()[:64], sexagesimal).deg)
        return float(value) * float(unit.to(units.deg))
    except (ValueError, TypeError, ArithmeticError) as error:
        detail = f"{name}: expected an angle, found {value!r} ({str(error)[:80]})"
        raise InvalidRecord("field_invalid", detail, source) from None


def to_arcsec(source: str, name: str, text: str, value: float) -> float:
    """Return an angle, or one a pixel, in arcsec; without a unit it is in arcsec.

    Raises
    ------
    InvalidRecord
        ``unit_unknown``.
    """
    word = _A_PIXEL.sub("", text).strip()
    if word.lower() in ("", "arcsec", "arcseconds"):
        return value
    return to_degrees(source, name, word, value) * 3600


def check_redshift(source: str, name: str, text: str) -> None:
    """Refuse (``unit_unknown``) a redshift whose column states a velocity or a length."""
    unit = parse_unit(text)
    if unit is not None and not unit.is_equivalent(units.dimensionless_unscaled):
        raise _unknown(source, name, text, "a redshift, which has none")


def agreed_angle(source: str, name: str, card: str | None, stated: str) -> str:
    """Return the unit of an angle by file and card, '' where neither says.

    Raises
    ------
    InvalidRecord
        ``unit_conflict`` where they contradict, ``unit_unknown`` for what is no unit of angles.
    """
    if card and stated:
        ours, theirs = (to_degrees(source, name, unit, 1.0) for unit in (card, stated))
        if abs(ours / theirs - 1) > 1e-9:
            detail = f"{name}: expected {card!r}, as the card says, found {stated!r}"
            raise InvalidRecord("unit_conflict", detail, source)
    return stated or card or ""


# any unit ----------------------------------------------------------------------------------------
@lru_cache(maxsize=512)
def parse_unit(text: str) -> units.UnitBase | None:
    """Return the unit that a text means, None where it is none; see the module."""
    if len(text) > _MAX_CHARACTERS:
        return None
    text = text.translate(_SIGNS).strip()
    while (text[:1], text[-1:]) in (("[", "]"), ("(", ")"), ('"', '"')) and _whole(text):
        text = text[1:-1].strip()
    scale, text = _scaled(text)
    if scale is None or not text:
        return None
    if text.upper() == text:
        text = re.sub(r"[A-Z]+", lambda m: _UPPER.get(m[0], m[0]), text)
    for wrong, right in _SPELLINGS:
        text = wrong.sub(right, text)
    unit = _by_astropy(re.sub(r"(?<=[0-9)])(?=[A-Za-zÅ])", " ", text.replace("^", "**")))
    if not isinstance(unit, units.UnitBase):  # a magnitude is none
        return None
    try:
        unit = units.Unit(scale * unit)
        return unit if 0 < abs(unit.scale) < float("inf") else None
    except (ValueError, TypeError, ArithmeticError):
        return None


def _whole(text: str) -> bool:
    """Return whether the first bracket of a text closes at its end."""
    depth = 0
    for at, sign in enumerate(text[:-1]):
        depth += (sign in "([") - (sign in ")]")
        if depth == 0 and sign != '"' and at:
            return False
    return True


def _scaled(text: str) -> tuple[float | None, str]:
    """Split a power of ten, before or behind the unit, from the unit."""
    if match := _FIRST.match(text):
        return _power(match.groups()), text[match.end() :]
    if (match := _LAST.search(text)) and match.start():
        # "erg/s/cm2/A/1e-17" may mean the power or its inverse
        scale = None if match[1] == "/" else _power(match.groups()[1:])
        return scale, text[: match.start()]
    return 1.0, text


def _power(parts: tuple[str | None, ...]) -> float | None:
    bracketed, plain, number = parts
    power = bracketed or plain
    scale = float(f"1e{power}" if power else re.sub("[dD]", "e", number))
    return scale if 0 < scale < float("inf") else None


def _by_astropy(text: str) -> units.UnitBase | None:
    with warnings.catch_warnings():  # "contains multiple slashes": they are read from the left
        warnings.simplefilter("ignore", units.UnitsWarning)
        for form in _FORMATS:
            try:
                return units.Unit(text, format=form)
            except (ValueError, TypeError, ArithmeticError):
                continue
    return None


def _unknown(source: str, name: str, text: str, expected: str) -> InvalidRecord:
    unit, kind = parse_unit(text), ""
    if unit is not None:
        physical = str(unit.physical_type)
        kind = "" if physical == "unknown" else f", which is a unit of {physical}"
    detail = f"{name}: expected the unit of {expected}, found {text[:_MAX_CHARACTERS]!r}{kind}"
    return InvalidRecord("unit_unknown", detail, source)
