"""Alerts → what the networks see: the image triplet and the ordered metadata features.

The one place where both are computed: ingest, training, batch prediction and serving call these
functions. Pure numpy; no row depends on another. Shape suffixes: B alerts, S pixels a side.

Source: Rehemtulla et al. 2024, ApJ 972, 7 (BTSbot), and the training code its authors released.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from skyray.records import Alert, InvalidRecord

FEATURES = (
    "sgscore1", "distpsnr1", "sgscore2", "distpsnr2", "fwhm", "magpsf", "sigmapsf", "chipsf", "ra",
    "dec", "diffmaglim", "ndethist", "nmtchps", "age", "days_since_peak", "days_to_peak",
    "peakmag_so_far", "new_drb", "ncovhist", "nnotdet", "chinr", "sharpnr", "scorr", "sky",
    "maxmag_so_far",
)  # fmt: skip
PADDING = 1e-9
_LARGEST = float(np.finfo(np.float32).max)


def alert_features(alert: Alert, names: Sequence[str] = FEATURES) -> np.ndarray:
    """Return features of an alert in the order of `names`, float32 [len(names)]; NaN where unknown.

    A name is a field of the candidate, ``ra``, ``dec``, ``jd`` or ``fid``, or one of these, which
    are computed unless the candidate has them (a published table does):

    ``age``
        jd − first jd, days; never negative. First is the earliest of ``jdstarthist``, the history's
        detections (forced photometry is none) and the alert itself.
    ``peakmag_so_far``, ``maxmag_so_far``
        Smallest and largest ``magpsf`` of the detections up to this alert, in any band.
    ``days_since_peak``, ``days_to_peak``
        jd − jd of the peak so far; jd of the peak so far − first jd.
    ``nnotdet``
        ``ncovhist`` − ``ndethist``.
    ``new_drb``
        A deep real/bogus score computed again with one version of braai for all alerts; else the
        packet's ``drb``. Never the older ``rb``.

    The history is what the packet carries (ZTF: 30 days), without later entries.

    Raises
    ------
    InvalidRecord
        ``packet_field_invalid``: a field that is no number, or beyond float32.
    """
    candidate = alert.candidate
    found = {**history_features(alert), "ra": alert.ra, "dec": alert.dec}
    found |= {"jd": alert.jd, "fid": float(alert.fid)}
    found["nnotdet"] = number(candidate, "ncovhist") - number(candidate, "ndethist")
    found["new_drb"] = number(candidate, "drb")
    own = {
        name: number(candidate, name) for name in names if name not in ("ra", "dec", "jd", "fid")
    }
    found |= {name: value for name, value in own.items() if not np.isnan(value)}
    return np.array([found.get(name, np.nan) for name in names], np.float64).astype(np.float32)


def history_features(alert: Alert) -> dict[str, float]:
    """Return age, days_since_peak, days_to_peak, peakmag_so_far and maxmag_so_far (float64)."""
    seen = [(alert.jd, number(alert.candidate, "magpsf"))]
    seen += [(number(entry, "jd"), number(entry, "magpsf")) for entry in alert.history
             if not entry.get("forced")]  # fmt: skip
    jd, mag = np.array(sorted(seen), dtype=np.float64).T
    used = np.isfinite(mag) & (jd <= alert.jd)
    start = number(alert.candidate, "jdstarthist")
    first = min(value for value in (start, alert.jd, *jd[used]) if np.isfinite(value))
    found = {"age": alert.jd - first}
    if used.any():
        peak = int(np.argmin(mag[used]))  # the earliest of equals
        at = float(jd[used][peak])
        found |= {"peakmag_so_far": float(mag[used][peak]), "maxmag_so_far": float(mag[used].max()),
                  "days_since_peak": alert.jd - at, "days_to_peak": at - first}  # fmt: skip
    else:
        names = ("peakmag_so_far", "maxmag_so_far", "days_since_peak", "days_to_peak")
        found |= dict.fromkeys(names, float("nan"))
    return found


def number(fields: Mapping[str, Any], name: str) -> float:
    """Return a field as a number; NaN where there is none.

    Raises
    ------
    InvalidRecord
        ``packet_field_invalid``: text, a list, an infinity, or beyond what float32 holds.
    """
    value = fields.get(name)
    if value is None:
        return float("nan")
    real = isinstance(value, numbers.Real)  # a flag is 0 or 1
    # abs() of a huge integer is compared without becoming a float
    if real and (value != value or abs(value) <= _LARGEST):
        return float(value)
    found = f"{value!r:.60}"
    if isinstance(value, int):
        found = f"an integer of {value.bit_length()} bits"
    raise InvalidRecord("packet_field_invalid", f"{name}: expected a number, found {found}")


def check_features(names: Sequence[str], expected: Sequence[str] = FEATURES) -> None:
    """Raise ValueError unless `names` are those `expected`, in their order.

    A swapped feature is a number like any other to the network: only names can tell.
    """
    if tuple(names) == tuple(expected):
        return
    if sorted(names) == sorted(expected):
        at = next(i for i, name in enumerate(expected) if name != names[i])
        detail = f"position {at}: expected {expected[at]!r}, found {names[at]!r}"
    else:
        missing = [name for name in expected if name not in names]
        strange = [name for name in names if name not in expected]
        detail = f"missing {missing}, unknown {strange}, {len(names)} in all"
    raise ValueError(f"features: expected {len(expected)} in their order; {detail}")


def place_stamp(
    stamp_HW: np.ndarray,
    source: tuple[float, float],
    size: int,
    zoom: float = 1.0,
) -> tuple[np.ndarray, tuple[int, int, int, int]]:
    """Lay a stamp on a canvas with the source in its middle pixel.

    Parameters
    ----------
    stamp_HW : float32 [H, W]
        NaN where unmeasured.
    source : (row, column)
        Where the source lies: pixels from 0, whole numbers at pixel centres.
    size : int
        Side of the canvas; the source's pixel lands at size // 2, what does not fit is cut off.
    zoom : float
        Canvas pixels to a stamp's pixel; other than 1 it is resampled, with the source at the
        centre of the middle pixel.

    Returns
    -------
    canvas : float32 [size, size]
        NaN where nothing was measured. Resampled: each pixel holds the flux that falls on it, so
        that sums are kept; NaN where less than half of it was measured.
    box : (top, left, height, width)
        What of the canvas the stamp covers.
    """
    canvas = np.full((size, size), np.nan, dtype=np.float32)
    if zoom != 1.0:
        return _resampled(canvas, np.asarray(stamp_HW, np.float64), source, zoom)
    spans = []
    for at, side in zip(source, stamp_HW.shape, strict=True):
        start = size // 2 - math.floor(at + 0.5)
        spans.append((max(start, 0), min(start + side, size), start))
    (top, bottom, row), (left, right, column) = spans
    if top >= bottom or left >= right:
        return canvas, (0, 0, 0, 0)
    canvas[top:bottom, left:right] = stamp_HW[
        top - row : bottom - row, left - column : right - column
    ]
    return canvas, (top, left, bottom - top, right - left)


def _resampled(
    canvas: np.ndarray, stamp: np.ndarray, source: tuple[float, float], zoom: float
) -> tuple[np.ndarray, tuple[int, int, int, int]]:
    size = len(canvas)
    rows, columns = (_overlaps(side, at, size, zoom)
                     for side, at in zip(stamp.shape, source, strict=True))  # fmt: skip
    known = np.isfinite(stamp)
    flux = rows @ np.where(known, stamp, 0.0) @ columns.T
    share = (rows @ known @ columns.T) * zoom**2  # of a canvas pixel that was measured
    good = share >= 0.5
    canvas[good] = (flux[good] / share[good]).astype(np.float32)
    inside = [np.flatnonzero(part.sum(1) > 0) for part in (rows, columns)]
    if not all(len(part) for part in inside):
        return canvas, (0, 0, 0, 0)
    (top, height), (left, width) = ((int(part[0]), len(part)) for part in inside)
    return canvas, (top, left, height, width)


def _overlaps(side: int, at: float, size: int, zoom: float) -> np.ndarray:
    """Return the share of each stamp pixel that falls on each canvas pixel, [size, side]."""
    edges = (np.arange(side + 1) - 0.5 - at) * zoom + size // 2 + 0.5  # of stamp pixels, on canvas
    low = np.maximum(edges[:-1], np.arange(size)[:, None])
    high = np.minimum(edges[1:], np.arange(1, size + 1)[:, None])
    return np.maximum(high - low, 0.0) / zoom


def triplet_input(
    triplet_B3SS: np.ndarray,
    stamp_box: np.ndarray,
    mode: Literal["corrected", "as_published"] = "corrected",
    position: Literal["corrected", "as_published"] = "corrected",
) -> np.ndarray:
    """Return the network's images, float32 [B, 3, S, S].

    Each stamp on its own: NaN → 0, divided by its Frobenius norm, and only then padded with
    `PADDING`. No mean, no standard deviation, no clipping.

    Parameters
    ----------
    triplet_B3SS : float32 [B, 3, S, S]
        Raw stamps in the order science, template, difference.
    stamp_box : int [B, 3, 4] or [B, 2]
        Top, left, height and width of each stamp, or height and width of stamps that lie in the
        upper left corner; what is outside is ignored.
    mode : str
        A stamp without signal has no norm. ``corrected`` refuses it, ``as_published`` makes it NaN.
    position : str
        ``corrected`` leaves stamps where they are, with the source in the middle;
        ``as_published`` moves them to the upper left corner, so that all padding is below and to
        the right.

    Raises
    ------
    InvalidRecord
        ``stamp_empty``.
    ValueError
        If a shape does not fit.
    """
    triplet = np.asarray(triplet_B3SS, dtype=np.float32)
    if triplet.ndim != 4 or triplet.shape[1] != 3 or triplet.shape[2] != triplet.shape[3]:
        raise ValueError(f"triplet: expected [B, 3, S, S], found {triplet.shape}")
    box = _boxes(np.asarray(stamp_box), len(triplet))
    if position == "as_published":
        triplet, box = _in_corner(triplet, box)
    pixel = np.arange(triplet.shape[-1])
    start, end = box[..., :2], box[..., :2] + box[..., 2:]
    rows, columns = (
        (pixel >= start[..., axis, None]) & (pixel < end[..., axis, None]) for axis in (0, 1)
    )
    inside = rows[..., :, None] & columns[..., None, :]
    kept = np.where(inside & ~np.isnan(triplet), triplet, np.float32(0.0))
    squares = np.square(kept, dtype=np.float64).sum(axis=(2, 3), keepdims=True)
    norm = np.sqrt(squares)
    if mode == "corrected" and (norm == 0).any():
        row, stamp = np.argwhere(norm[..., 0, 0] == 0)[0]
        name = ("science", "template", "difference")[stamp]
        raise InvalidRecord("stamp_empty", f"{name} of row {row}: every pixel is 0 or NaN")
    with np.errstate(invalid="ignore"):
        scaled = (kept / norm).astype(np.float32)
    return np.where(inside, scaled, np.float32(PADDING))


def _boxes(box: np.ndarray, rows: int) -> np.ndarray:
    if box.shape == (rows, 2):
        corner = np.concatenate([np.zeros_like(box), box], axis=1)
        return np.repeat(corner[:, None], 3, axis=1)
    if box.shape != (rows, 3, 4):
        raise ValueError(f"stamp_box: expected [{rows}, 3, 4], found {box.shape}")
    return box


def _in_corner(triplet: np.ndarray, box: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    moved = box.copy()
    moved[..., :2] = 0
    if not (box[..., :2] > 0).any():
        return triplet, moved
    found = triplet.copy()
    for row, plane in np.argwhere((box[..., :2] > 0).any(-1)):
        found[row, plane] = np.roll(triplet[row, plane], tuple(-box[row, plane, :2]), axis=(0, 1))
    return found, moved


def crop_triplet(image_B3SS: np.ndarray, size: int) -> np.ndarray:
    """Return the central `size` pixels of normalised stamps, each of Frobenius norm 1 again.

    The middle pixel stays the middle pixel; a stamp with nothing but padding there stays as it is.
    """
    start = image_B3SS.shape[-1] // 2 - size // 2
    centre = image_B3SS[..., start : start + size, start : start + size]
    squares = np.square(centre, dtype=np.float64).sum(axis=(2, 3), keepdims=True)
    norm = np.sqrt(squares)
    return (centre / np.where(norm > 1e-6, norm, 1.0)).astype(np.float32)


def cutout_input(image_BCSS: np.ndarray, stretch: Literal["asinh", "none"]) -> np.ndarray:
    """Return colour cutouts as the network's images, float32 [B, C, S, S].

    NaN → 0. ``asinh``: each band's median is taken off, and asinh(flux / 3σ) / 3 keeps both the
    sky's noise σ (1.4826 times the median absolute deviation) and bright cores in range.
    """
    image = np.asarray(image_BCSS, dtype=np.float32)
    if stretch == "none":
        return np.nan_to_num(image)
    with np.errstate(invalid="ignore"):
        middle = np.nanmedian(image, axis=(2, 3), keepdims=True)
        noise = 1.4826 * np.nanmedian(np.abs(image - middle), axis=(2, 3), keepdims=True)
    noise = np.where(noise > 0, noise, np.float32(1.0))
    return np.nan_to_num(np.arcsinh((image - middle) / (3 * noise)) / 3).astype(np.float32)
