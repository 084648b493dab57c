"""IRAF's multispec: wavelengths of a line each, written into the keywords WAT2_001, WAT2_002 …

``spec3 = "ap beam dtype w1 dw nw z aplow aphigh"`` is the third line's: nw pixels, linear (dtype 0)
or log10 (1) from w1 in steps of dw, divided by 1 + z (refused of log10: it may be the logarithm
that is divided). Of dtype 2 functions follow, each ``weight zero type order pmin pmax c1 c2 …``,
and the wavelength is the sum of weight · (zero + f(pixel)) by 1 + z; Chebyshev (type 1) and
Legendre (2) are read, splines and tables refused.

Source: IRAF, noao.onedspec help "specwcs"; Valdes 1993, ASP Conf. 52, 467.
"""

from __future__ import annotations

import re

import numpy as np
from numpy.polynomial import chebyshev, legendre

from skyray.readers.csv_columns import number_of
from skyray.readers.fits_keywords import Keywords
from skyray.records import InvalidRecord

_SPEC = re.compile(r"spec(\d{1,5})\s*=\s*\"([^\"]*)\"")
_CARD = 68  # characters: a value ends there, in the middle of a number too, its blanks not written
_SERIES = {1: chebyshev.chebval, 2: legendre.legval}
_MAX_CARDS = 1_000


def is_multispec(header: Keywords, ctype: str) -> bool:
    """Return whether the lines of an image have axes of their own."""
    return ctype.startswith("MULTISPE") or any(
        "multispec" in str(header.get(key) or "") for key in ("WAT0_001", "WAT1_001")
    )


def multispec_axes(source: str, header: Keywords, size: int, lines: int) -> np.ndarray:
    """Return the wavelengths of every line, float64 [lines, size]; NaN behind its last pixel.

    Raises
    ------
    InvalidRecord
        ``wavelength_missing`` where a line's are not told, or by a function that is not read.
    """
    text = ""
    for n in range(1, _MAX_CARDS):
        if (part := header.get(f"WAT2_{n:03d}")) is None:
            break
        text += str(part).ljust(_CARD)
    told = {int(number): value for number, value in _SPEC.findall(text)}
    shifts = {"LTV1": 0, "LTV2": 0, "LTM1_1": 1, "LTM2_2": 1}
    moved = {key: header.get(key) for key, plain in shifts.items()
             if header.get(key) not in (None, plain)}  # fmt: skip
    try:
        if moved:
            raise ValueError(f"{moved}: a part of another image, whose pixels it counts")
        if missing := [n for n in range(1, lines + 1) if n not in told]:
            raise ValueError(f"no spec{missing[0]}")
        return np.stack([_line(told[n], size) for n in range(1, lines + 1)])
    except ValueError as error:
        detail = f"WAT2: expected the wavelengths of {lines} lines, found {error}"[:300]
        raise InvalidRecord("wavelength_missing", detail, source) from None


def _line(text: str, size: int) -> np.ndarray:
    """Return the wavelengths of one line, float64 [size]."""
    values = [float(number_of(word)) for word in text.split()]
    if len(values) < 9 or not np.isfinite(values).all():
        raise ValueError(f"{text[:60]!r}, not nine numbers")
    kind, first, step, count, redshift = values[2:7]
    pixel = np.arange(1.0, size + 1)
    if kind in (0, 1):
        axis = first + step * (pixel - 1)
        with np.errstate(over="ignore"):
            axis = 10.0**axis if kind == 1 else axis
    elif kind == 2:
        axis = _functions(values[9:], pixel)
    else:
        raise ValueError(f"dispersion type {kind:g}: no wavelengths")
    if redshift <= -1 or (kind == 1 and redshift) or not 2 <= count <= size:
        raise ValueError(f"{count:g} of {size} pixels, redshift {redshift:g}")
    return np.where(pixel <= count, axis / (1 + redshift), np.nan)


def _functions(values: list[float], pixel: np.ndarray) -> np.ndarray:
    total = np.zeros(len(pixel))
    if not values:
        raise ValueError("no function of dispersion type 2")
    while values:
        if len(values) < 6:
            raise ValueError(f"a function of only {len(values)} numbers")
        weight, zero, kind, order, low, high, *rest = values
        if kind not in _SERIES:
            raise ValueError(f"function type {kind:g}; Chebyshev (1) and Legendre (2) are read")
        if not (order.is_integer() and 1 <= order <= len(rest)) or high <= low:
            raise ValueError(f"order {order:g} of {len(rest)} coefficients, {low:g} to {high:g}")
        scaled = (pixel - (low + high) / 2) / ((high - low) / 2)
        total += weight * (zero + _SERIES[kind](scaled, rest[: int(order)]))
        values = rest[int(order) :]
    return total
