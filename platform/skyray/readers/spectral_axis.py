"""The spectral axis of an image: the wavelength of every pixel, by what its header states.

- CTYPE of FITS WCS paper III: WAVE, AWAV, FREQ, ENER, WAVN, and their algorithms (WAVE-LOG …) by
  wcslib through astropy;
- a linear axis (CRVAL1, CRPIX1, and CD1_1 or CDELT1 with PC1_1) in CUNIT1 or WAT1's ``units``, with
  IRAF's DC-FLAG (0: linear, 1: log10; LTV and LTM are of another file) or SDSS's COEFF0, COEFF1;
- IRAF's multispec, where each line has an axis of its own (`iraf_multispec`).

Axes of velocity and of pixels are refused, and so is what IRAF has not corrected (DC-FLAG −1).

Source: Greisen et al. 2006, A&A 446, 747 (paper III); Valdes 1993, ASP Conf. 52, 467 (DC-FLAG).
"""

from __future__ import annotations

import re
import warnings
from typing import NoReturn

import numpy as np

from skyray.readers.column_facts import ColumnFacts
from skyray.readers.fits_keywords import Keywords
from skyray.readers.iraf_multispec import is_multispec, multispec_axes
from skyray.readers.units import spectral_unit
from skyray.records import InvalidRecord

_WCS_TYPES = {"WAVE": "m", "AWAV": "m", "FREQ": "Hz", "ENER": "J", "WAVN": "1/m"}  # SI, by wcslib
_VELOCITIES = ("VELO", "VRAD", "VOPT", "ZOPT", "BETA", "FELO")
_PLAIN = ("", "LINEAR", "LAMBDA", "WAVELENGTH", "ANGSTROM", "LOG-LIN")
_WAT_UNITS = re.compile(r"\bunits\s*=\s*([^\s\"']+)")
_WAT_LABEL = re.compile(r"\blabel\s*=\s*[\"']?([^\s\"']+)")
_WAVELENGTHS = ("WAVE", "WAVELENGTH", "LAMBDA")
_MIXING = [f"{matrix}1_{axis}" for matrix in ("CD", "PC") for axis in (2, 3, 4)]


def spectral_axis(
    source: str, header: Keywords, size: int, lines: int = 1
) -> tuple[np.ndarray, ColumnFacts]:
    """Return the coordinate of every pixel of the first axis and what is stated of it.

    Parameters
    ----------
    size, lines : int
        Pixels of the first axis, and of the second.

    Returns
    -------
    float64 [1, size], or [lines, size] where each line has its own; ColumnFacts

    Raises
    ------
    InvalidRecord
        ``wavelength_missing`` where the header does not tell it; ``unit_unknown`` for velocities;
        ``unit_conflict``.
    """
    ctype = str(header.get("CTYPE1") or "").strip().upper()
    facts = {"name": "axis 1", "ucd": str(header.get("UCD1") or ""), "ctype": ctype}
    kind = ctype[:4]
    if kind in _VELOCITIES:
        detail = f"CTYPE1: expected a wavelength, frequency or energy, found {ctype!r}"
        raise InvalidRecord("unit_unknown", detail, source)
    lines_differ = is_multispec(header, ctype)
    known = kind in _WCS_TYPES and ctype[4:5] in ("", "-")
    if not (known or lines_differ or ctype in _PLAIN):
        _missing(source, f"CTYPE1: expected an axis of wavelengths, found {ctype!r}")
    logarithm = _logarithm(source, header, ctype)
    unit, origin = _unit(source, header, ctype)
    if lines_differ:
        axis = multispec_axes(source, header, size, lines)
        return axis, ColumnFacts(**facts, unit=unit, origin=origin)
    if known and not unit:
        detail = f"CUNIT1: expected the unit of CTYPE1 {ctype}, found none"
        raise InvalidRecord("unit_unknown", detail, source)
    if known and ctype[4:]:
        if logarithm:
            _missing(source, f"expected {ctype} or {logarithm}, found both")
        axis = _by_wcslib(source, header, ctype, size)
        return axis[None], ColumnFacts(**facts, unit=_WCS_TYPES[kind], origin=f"CTYPE1 {ctype}")
    axis, coefficients = _linear(source, header, size)
    logarithm = logarithm or coefficients
    if not (unit or logarithm) and np.array_equal(axis - axis[0], np.arange(size)) and axis[0] < 2:
        _missing(source, f"expected wavelengths, found pixels counted from {axis[0]:g}")
    if logarithm and not unit.lower().startswith(("log", "dex")):
        unit, origin = f"log10({unit or 'Angstrom'})", f"{origin}, {logarithm}"
    return axis[None], ColumnFacts(**facts, unit=unit, origin=origin)


def _missing(source: str, detail: str) -> NoReturn:
    raise InvalidRecord("wavelength_missing", detail, source)


def _logarithm(source: str, header: Keywords, ctype: str) -> str:
    """Return the keyword by which an axis is log10; '' for none."""
    flag = header.get("DC-FLAG")
    if flag is not None and (isinstance(flag, bool) or flag not in (0, 1)):
        known = "0 (linear) or 1 (log10)"
        _missing(source, f"DC-FLAG: expected {known}, found {flag!r}, no dispersion correction")
    if ctype == "LOG-LIN" and flag == 0:
        _missing(source, "expected CTYPE1 LOG-LIN or DC-FLAG 0, found both")
    return "CTYPE1" if ctype == "LOG-LIN" else "DC-FLAG" if flag == 1 else ""


def _unit(source: str, header: Keywords, ctype: str) -> tuple[str, str]:
    """Return the unit of the axis, '' for none, and the keyword that states it."""
    wat = str(header.get("WAT1_001") or "")
    found = _WAT_UNITS.search(wat)
    stated = {"CUNIT1": str(header.get("CUNIT1") or "").strip(),
              "WAT1_001": found[1] if found else "",
              "CTYPE1": "Angstrom" if ctype == "ANGSTROM" else ""}  # fmt: skip
    stated = {key: unit for key, unit in stated.items() if unit}
    units = stated.items() if len(stated) > 1 else ()
    if len({spectral_unit(source, key, unit) for key, unit in units}) > 1:
        detail = f"expected one unit of the first axis, found {stated}"
        raise InvalidRecord("unit_conflict", detail, source)
    label = _WAT_LABEL.search(wat)
    if label and not stated and label[1].upper() not in _WAVELENGTHS:
        _missing(source, f"WAT1_001: expected wavelengths, or units, found label {label[1]!r}")
    key = next(iter(stated), "CUNIT1")
    return stated.get(key, ""), key


def _linear(source: str, header: Keywords, size: int) -> tuple[np.ndarray, str]:
    """Return a linear axis, and COEFF0 where it is SDSS's, of log10."""
    start, reference, coefficients = _number(source, header, "CRVAL1"), None, ""
    if start is None and header.get("COEFF0") is not None:
        start, step = (_number(source, header, key) for key in ("COEFF0", "COEFF1"))
        coefficients = "COEFF0"
    else:
        reference, step = _number(source, header, "CRPIX1"), _step(source, header)
    if start is None or not step:
        _missing(source, "expected CRVAL1 with CD1_1 or CDELT1 other than 0, found none")
    first = 1 - (1.0 if reference is None else reference)
    return start + step * (np.arange(size) + first), coefficients


def _step(source: str, header: Keywords) -> float | None:
    """Return the step of the first axis, which no other may change."""
    if mixed := {key: header.get(key) for key in _MIXING if header.get(key) not in (None, 0)}:
        _missing(source, f"expected an axis that no other turns, found {mixed}")
    scale, rotation, step = (_number(source, header, k) for k in ("CD1_1", "PC1_1", "CDELT1"))
    if scale is not None:
        if rotation not in (None, 1):
            _missing(source, f"expected CD1_1 or PC1_1, found both ({scale:g}, {rotation:g})")
        return scale
    return step if rotation is None or step is None else step * rotation


def _number(source: str, header: Keywords, key: str) -> float | None:
    value = header.get(key)
    if value is not None and type(value) not in (int, float):
        _missing(source, f"{key}: expected a number, found {value!r:.60}")
    return None if value is None else float(value)


def _by_wcslib(source: str, header: Keywords, ctype: str, size: int) -> np.ndarray:
    from astropy.io import fits
    from astropy.wcs import WCS

    cards = fits.Header()
    keys = ("CTYPE1", "CUNIT1", "CRVAL1", "CRPIX1", "CDELT1", "CD1_1", "PC1_1", "RESTFRQ",
            "RESTWAV", "PV1_0", "PV1_1", "PV1_2", "PV1_3", "PV1_4", "PV1_5", "PV1_6")  # fmt: skip
    for key in keys:
        if (value := header.get(key)) is not None:
            cards[key] = value
    cards["WCSAXES"] = 1
    unit = str(cards.get("CUNIT1") or "").strip()
    if unit.lower() in ("angstroms", "a", "ang"):
        cards["CUNIT1"] = "Angstrom"
    if (cards.get("CDELT1") or cards.get("CD1_1")) is None or cards.get("CRVAL1") is None:
        _missing(source, "expected CRVAL1 with CD1_1 or CDELT1, found none")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return WCS(cards, naxis=1).wcs_pix2world(np.arange(size), 0)[0]
    except Exception as error:  # whatever wcslib finds wrong
        _missing(source, f"CTYPE1 {ctype}: {type(error).__name__}: {error}"[:300])
