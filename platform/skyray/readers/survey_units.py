"""Units as surveys spell them → Å and 1e-17 erg/s/cm²/Å; what is not understood is refused.

SDSS writes ``1E-17 erg/cm^2/s/Ang`` and ``10^-17 ergs/s/cm^2/Angs``, DESI ``10**-17 erg/(s cm2
Angstrom)``, ESO ``10**(-17)erg.cm**(-2).s**(-1).angstrom**(-1)``. The number before the unit is
read here, the unit by astropy. A bare ``A`` is Å: no flux density holds amperes.
"""

from __future__ import annotations

import re
import warnings
from functools import lru_cache

import numpy as np
from astropy import units

from skyray.readers.fits_bytes import FitsFile, Hdu

_FLUX = units.Unit("1e-17 erg / (s cm2 Angstrom)")
_POWER = re.compile(
    r"\s*(?:10\s*(?:\*\*|\^)?\s*\(?\s*([-+]\d+)\s*\)?|(\d+\.?\d*[eEdD][-+]?\d+))\s*[.*]?\s*"
)
_SPELLINGS = ((r"\bergs\b", "erg"), (r"\b(Angs?|[Aa]ngstroms?|ANGSTROMS?|AA|A|Å)\b", "Angstrom"),
              (r"\^", "**"), (r"\bmicrons?\b", "um"))  # fmt: skip
_FORMATS = (None, "fits", "ogip", "vounit", "cds")


def column_card(hdu: Hdu, keyword: str, column: str) -> str:
    """Return TUNITn, TUCDn … of a table's column, '' where there is none."""
    for n in range(1, hdu.header.get("TFIELDS", 0) + 1):
        if str(hdu.header.get(f"TTYPE{n}", "")).strip().lower() == column:
            return str(hdu.header.get(f"{keyword}{n}", "")).strip()
    return ""


def flux_factor(fits: FitsFile, name: str, unit: str, wavelength: np.ndarray) -> float | np.ndarray:
    """Return what brings a flux to 1e-17 erg/s/cm²/Å: a number, or one a pixel for Jy and the like.

    `wavelength` is in Å. Refused (``unit_unknown``) where the unit is no flux density.
    """
    if _is_ours(unit):
        return 1.0
    try:
        density = units.spectral_density(wavelength * units.AA)
        return _parsed(fits, name, unit).to(_FLUX, equivalencies=density)
    except units.UnitConversionError:
        fits.refuse("unit_unknown", f"{name}: expected a flux density, found {unit!r}")


def to_angstrom(fits: FitsFile, name: str, unit: str, values: np.ndarray) -> np.ndarray:
    """Return wavelengths in Å, float64; refused (``unit_unknown``) where the unit is no length."""
    try:
        factor = _parsed(fits, name, unit).to(units.AA)
    except units.UnitConversionError:
        fits.refuse("unit_unknown", f"{name}: expected a unit of length, found {unit!r}")
    return np.asarray(values, dtype=np.float64) * factor


def _parsed(fits: FitsFile, name: str, text: str) -> units.UnitBase:
    unit = _unit(text.strip())
    if unit is None:
        fits.refuse("unit_unknown", f"{name}: expected a unit, found {text!r}")
    return unit


@lru_cache(maxsize=256)
def _is_ours(text: str) -> bool:
    unit = _unit(text.strip())
    return unit is not None and unit.is_equivalent(_FLUX) and abs(unit.to(_FLUX) - 1) < 1e-9


@lru_cache(maxsize=256)
def _unit(text: str) -> units.UnitBase | None:
    power = _POWER.match(text)
    scale = 1.0
    if power:
        scale = float(f"1e{power[1]}" if power[1] else re.sub("[dD]", "e", power[2]))
        if not 0 < scale < float("inf"):
            return None
        text = text[power.end() :]
    for wrong, right in _SPELLINGS:
        text = re.sub(wrong, right, text)
    with warnings.catch_warnings():  # "contains multiple slashes": they are read from the left
        warnings.simplefilter("ignore", units.UnitsWarning)
        for form in _FORMATS if text else ():
            try:
                return units.Unit(scale * units.Unit(text, format=form))
            except (ValueError, TypeError, ArithmeticError):
                continue
    return None
