"""What the WCS of an image says: pixel scale, orientation, positions; by astropy, any unit.

Sources: FITS Standard 4.0, section 8; Calabretta & Greisen 2002, A&A 395, 1077; SIP (Shupe et al.
2005); lookup tables as HST has them (CPDISn, D2IMDISn).
"""

from __future__ import annotations

import math
import re
import warnings
from contextlib import nullcontext
from typing import NamedTuple

import numpy as np
from astropy.wcs import WCS
from astropy.wcs.utils import pixel_to_skycoord

from skyray.readers.base import SurveyFile
from skyray.readers.fits_header import BadHeader, Header
from skyray.readers.fits_image import astropy_file
from skyray.records import InvalidRecord

MAX_ASPECT = 1.02
# What astropy makes a WCS of; of a keyword given twice it takes the last.
_KEYWORDS = re.compile(
    r"C(TYPE|UNIT|RVAL|RPIX|DELT|ROTA)\d.?|(CD|PC|PV|PS)\d+_\d+.?|[AB]P?_(\d_\d|ORDER)"
    r"|WCSAXES|L(ON|AT)POLE.?|RADE(SYS|CSYS).?|EQUINOX.?"
)
_TABLES = ("CPDIS1", "CPDIS2", "D2IMDIS1", "D2IMDIS2")


class Sampling(NamedTuple):
    """How an image samples the sky at its centre; angles in degrees."""

    pixel_scale_arcsec: float
    aspect: float  # long side of a pixel by its short one
    up: float  # position angle of the rows' direction of growth, north through east
    mirrored: bool  # east lies to the right where north is up

    def __str__(self) -> str:
        mirror = ", mirrored" if self.mirrored else ""
        return f"y at position angle {self.up:.1f} deg{mirror} (WCS)"


def sky_wcs(header: Header, file: SurveyFile) -> WCS | None:
    """Return the celestial WCS of an image, with distortions; None where it has none.

    Raises
    ------
    InvalidRecord
        ``wcs_invalid``: what astropy cannot make sense of, or a keyword with two values.
    """
    if not any(header.states(f"CTYPE{n}") for n in (1, 2)):
        return None
    try:
        header.check_once(_KEYWORDS)
    except BadHeader as error:
        raise InvalidRecord("wcs_invalid", str(error)) from None
    tables = any(header.states(key) for key in _TABLES) or any(
        str(header.get(f"CTYPE{n}", "")).upper().endswith("-TAB") for n in range(1, 5)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with astropy_file(file) if tables else nullcontext() as hdus:
                wcs = WCS(header.astropy(), fobj=hdus)
                return wcs.celestial if wcs.has_celestial else None
        except InvalidRecord:
            raise
        except Exception as error:  # wcslib raises types of its own for strange headers
            raise _invalid(error) from None


def sampling(wcs: WCS, shape: tuple[int, int]) -> Sampling:
    """Return scale and orientation at the centre of an image [height, width].

    Raises
    ------
    InvalidRecord
        ``wcs_invalid``, ``pixels_not_square`` (sides differ by more than 2 %).
    """
    x, y = (shape[1] - 1) / 2, (shape[0] - 1) / 2
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            sky = pixel_to_skycoord(np.array([x, x + 1, x]), np.array([y, y, y + 1]), wcs).icrs
            steps = sky[0].separation(sky[1:]).arcsec
            angles = sky[0].position_angle(sky[1:]).deg
        except Exception as error:
            raise _invalid(error) from None
    turn = math.sin(math.radians(angles[0] - angles[1]))
    scale = math.sqrt(steps[0] * steps[1] * abs(turn))
    if not scale > 0:
        raise InvalidRecord("wcs_invalid", f"expected pixels of some size, found {steps} arcsec")
    aspect = float(max(steps) / min(steps))
    if aspect > MAX_ASPECT or abs(turn) < 1 / MAX_ASPECT:
        raise InvalidRecord(
            "pixels_not_square",
            f"expected square pixels, found {steps[0]:.5g} by {steps[1]:.5g} arcsec at "
            f"{math.degrees(math.asin(min(1.0, abs(turn)))):.1f} deg",
        )
    return Sampling(scale, aspect, float(angles[1]) % 360, turn > 0)


def check_scale(stated: float, expected: float) -> None:
    """Refuse (``pixel_scale_wrong``) an image whose WCS contradicts the card by more than 1 %."""
    if math.isfinite(expected) and abs(stated / expected - 1) > 0.01:
        raise InvalidRecord(
            "pixel_scale_wrong",
            f"expected {expected:g} arcsec a pixel (card), found {stated:.6g} by the WCS",
        )


def _invalid(error: Exception) -> InvalidRecord:
    return InvalidRecord("wcs_invalid", f"{type(error).__name__}: {error}"[:300])
