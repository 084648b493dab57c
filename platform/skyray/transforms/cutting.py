"""From survey frames and catalogues to cutouts: sizes, cutting, matching and votes.

Pure functions on arrays and astropy objects. N catalogue rows.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from astropy import units as u
from astropy.coordinates import SkyCoord, search_around_sky
from astropy.nddata.utils import NoOverlapError, overlap_slices
from astropy.wcs import WCS

from skyray.records import InvalidRecord
from skyray.transforms.images import Mode

SDSS_PIXEL_ARCSEC = 0.396
DES_PIXEL_ARCSEC = 0.263
PETROSIAN_RADII = 2.0
# Median of 2 petroRad_r / (KRON_RADIUS · A_IMAGE · 0.263″) over the 879 galaxies with Galaxy Zoo
# votes that lie in SDSS and DES (Khan et al. 2019, released cross-match): the same sky in both.
KRON_ELLIPSES = 1.08
PUBLISHED_KRON_PIXELS = 12.0

# Debiased vote fractions above which a label is safe (Khan et al. 2019, §II.A).
SPIRAL_THRESHOLD, ELLIPTICAL_THRESHOLD = 0.985, 0.926
SPIRAL, ELLIPTICAL = "spiral", "elliptical"


# sizes -----------------------------------------------------------------------------------------
def sdss_half_width(petro_rad_r_arcsec: float) -> float:
    """Return 2 Petrosian radii in SDSS pixels of 0.396″."""
    return PETROSIAN_RADII * petro_rad_r_arcsec / SDSS_PIXEL_ARCSEC


def des_half_width(kron_radius: float, a_image: float, mode: Mode = "corrected") -> float:
    """Return half the side of a DES cutout in pixels.

    Parameters
    ----------
    kron_radius : float
        ``KRON_RADIUS``, in units of the semi-major axis.
    a_image : float
        ``A_IMAGE``, the semi-major axis in pixels.
    mode : str
        ``corrected``: 1.08 Kron ellipses, the sky that SDSS cutouts show. ``as_published``:
        12 · KRON_RADIUS taken as pixels; as KRON_RADIUS is 3.5 for nearly all galaxies, nearly all
        cutouts have 84 pixels whatever the galaxy's size.
    """
    if mode == "as_published":
        return PUBLISHED_KRON_PIXELS * kron_radius
    return KRON_ELLIPSES * kron_radius * a_image


# cutting ---------------------------------------------------------------------------------------
def cut(frame: Any, wcs: WCS, ra: float, dec: float, half_width: float) -> np.ndarray:
    """Return the square around a sky position, float32 [S, S] with S = round(2 · half_width).

    Parameters
    ----------
    frame : array [H, W], or anything with ``shape`` that can be sliced (a FITS section)
    wcs : WCS
        Celestial, of the frame.
    ra, dec : float
        Degrees, ICRS.
    half_width : float
        In pixels of the frame.

    Returns
    -------
    float32 [S, S]
        NaN outside the frame.

    Raises
    ------
    InvalidRecord
        ``outside_frame`` where the square does not touch the frame, ``size_invalid``.
    """
    if not (np.isfinite(half_width) and 4 <= half_width <= 4096):
        raise InvalidRecord(
            "size_invalid", f"expected a half width of 4–4096 pixels, found {half_width:g}"
        )
    side = round(2 * half_width)
    x, y = (float(v) for v in wcs.world_to_pixel(SkyCoord(ra * u.deg, dec * u.deg)))
    try:
        if not (np.isfinite(x) and np.isfinite(y)):
            raise NoOverlapError
        on_frame, on_cutout = overlap_slices(frame.shape, (side, side), (y, x), mode="partial")
    except NoOverlapError:
        raise InvalidRecord(
            "outside_frame",
            f"expected ({ra:.5f}, {dec:.5f}) inside {frame.shape} pixels, "
            f"found x {x:.1f}, y {y:.1f}",
        ) from None
    square = np.full((side, side), np.nan, np.float32)
    square[on_cutout] = frame[on_frame]
    return square


# catalogues ------------------------------------------------------------------------------------
class SkyMatch(NamedTuple):
    """Pairs of two catalogues: rows of the first, rows of the second, distance in arcsec."""

    first: np.ndarray
    second: np.ndarray
    distance_arcsec: np.ndarray


def cross_match(
    ra_N: np.ndarray,
    dec_N: np.ndarray,
    ra_M: np.ndarray,
    dec_M: np.ndarray,
    radius_arcsec: float = 1.0,
) -> SkyMatch:
    """Pair objects that are each other's nearest within a radius, so that none is used twice.

    Positions in degrees, ICRS. (The released code pairs one way only, and lets two objects of the
    first catalogue share one of the second.)
    """
    if not len(ra_N) or not len(ra_M):
        none = np.zeros(0, np.int64)
        return SkyMatch(none, none, np.zeros(0))
    first, second = SkyCoord(ra_N, dec_N, unit="deg"), SkyCoord(ra_M, dec_M, unit="deg")
    forward, distance, _ = first.match_to_catalog_sky(second)
    backward, _, _ = second.match_to_catalog_sky(first)
    rows = np.arange(len(first))
    chosen = (distance.arcsec <= radius_arcsec) & (backward[forward] == rows)
    return SkyMatch(rows[chosen], np.asarray(forward)[chosen], distance.arcsec[chosen])


def first_on_sky(ra_N: np.ndarray, dec_N: np.ndarray, radius_arcsec: float = 1.0) -> np.ndarray:
    """Return bool [N]: whether no earlier row that is kept lies within the radius."""
    kept = np.ones(len(ra_N), dtype=bool)
    if len(ra_N) < 2:
        return kept
    place = SkyCoord(ra_N, dec_N, unit="deg")
    one, other, _, _ = search_around_sky(place, place, radius_arcsec * u.arcsec)
    later = one < other
    order = np.argsort(one[later], kind="stable")
    for i, j in zip(one[later][order], other[later][order], strict=True):
        if kept[i]:
            kept[j] = False
    return kept


def balanced(labels_N: np.ndarray, seed: int) -> np.ndarray:
    """Return bool [N]: a random part of each class, as large as the rarest class."""
    labels = np.asarray(labels_N)
    rng = np.random.default_rng(seed)
    kept = np.zeros(len(labels), dtype=bool)
    classes, counts = np.unique(labels, return_counts=True)
    for name in classes:
        rows = np.flatnonzero(labels == name)
        kept[rng.permutation(rows)[: counts.min()]] = True
    return kept


def vote_label(
    p_spiral: float,
    p_elliptical: float,
    spiral_threshold: float = SPIRAL_THRESHOLD,
    elliptical_threshold: float = ELLIPTICAL_THRESHOLD,
) -> str:
    """Return ``spiral``, ``elliptical`` or '' of debiased Galaxy Zoo 1 vote fractions.

    With the thresholds of Khan et al. 2019 this gives the training and HP sets; with both at 0 the
    larger fraction decides, as in the FO sets.
    """
    # Released tables hold .9259999999999999 where .926 is meant.
    if p_spiral >= spiral_threshold - 1e-9 and p_spiral > p_elliptical:
        return SPIRAL
    if p_elliptical >= elliptical_threshold - 1e-9 and p_elliptical > p_spiral:
        return ELLIPTICAL
    return ""
