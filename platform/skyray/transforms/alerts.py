"""Alerts → what the networks see: the image triplet and the 25 ordered metadata features.

The one place where both are computed: ingest, training, batch prediction and serving call these
functions. Pure numpy; no row depends on another. Shape suffixes: B alerts, S pixels a side.

Source: Rehemtulla et al. 2024, ApJ 972, 7 (BTSbot), and the training code its authors released.
"""

from __future__ import annotations

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


def alert_features(alert: Alert) -> np.ndarray:
    """Return the features of an alert in the order of `FEATURES`, float32 [25]; NaN where unknown.

    Those that are not fields of the packet:

    ``age``
        jd − first jd, days; never negative. First is the earliest of ``jdstarthist``, the history's
        detections and the alert itself.
    ``peakmag_so_far``, ``maxmag_so_far``
        Smallest and largest ``magpsf`` of the detections up to this alert, in any band.
    ``days_since_peak``, ``days_to_peak``
        jd − jd of the peak so far; jd of the peak so far − first jd.
    ``nnotdet``
        ``ncovhist`` − ``ndethist``.
    ``new_drb``
        ``new_drb`` where the candidate has it (a deep real/bogus score computed again with one
        version of braai for all alerts), else the packet's ``drb``. Never the older ``rb``.

    The history is what the packet carries (ZTF: 30 days), without later entries.
    """
    found = {**history_features(alert), "ra": alert.ra, "dec": alert.dec}
    candidate = alert.candidate
    found["nnotdet"] = _number(candidate, "ncovhist") - _number(candidate, "ndethist")
    score = _number(candidate, "new_drb")
    found["new_drb"] = _number(candidate, "drb") if np.isnan(score) else score
    values = [found[name] if name in found else _number(candidate, name) for name in FEATURES]
    return np.array(values, dtype=np.float64).astype(np.float32)


def history_features(alert: Alert) -> dict[str, float]:
    """Return age, days_since_peak, days_to_peak, peakmag_so_far and maxmag_so_far (float64)."""
    seen = [(alert.jd, _number(alert.candidate, "magpsf"))]
    seen += [(_number(entry, "jd"), _number(entry, "magpsf")) for entry in alert.history]
    jd, mag = np.array(sorted(seen), dtype=np.float64).T
    used = np.isfinite(mag) & (jd <= alert.jd)
    start = _number(alert.candidate, "jdstarthist")
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


def _number(fields: Mapping[str, Any], name: str) -> float:
    value = fields.get(name)
    return float("nan") if value is None else float(value)


def check_features(names: Sequence[str]) -> None:
    """Raise ValueError unless `names` are `FEATURES` in their order.

    A swapped feature is a number like any other to the network: only names can tell.
    """
    if tuple(names) == FEATURES:
        return
    if sorted(names) == sorted(FEATURES):
        at = next(i for i, name in enumerate(names) if name != FEATURES[i])
        detail = f"position {at}: expected {FEATURES[at]!r}, found {names[at]!r}"
    else:
        missing = [name for name in FEATURES if name not in names]
        strange = [name for name in names if name not in FEATURES]
        detail = f"missing {missing}, unknown {strange}, {len(names)} in all"
    raise ValueError(
        f"features: expected the {len(FEATURES)} of skyray.transforms.alerts.FEATURES in their "
        f"order; {detail}"
    )


def triplet_input(
    triplet_B3SS: np.ndarray,
    stamp_shape_B2: np.ndarray,
    mode: Literal["corrected", "as_published"] = "corrected",
) -> np.ndarray:
    """Return the network's images, float32 [B, 3, S, S].

    Each stamp on its own: NaN → 0, divided by its Frobenius norm, and only then padded below and to
    the right with `PADDING`. No mean, no standard deviation, no clipping.

    Parameters
    ----------
    triplet_B3SS : float32 [B, 3, S, S]
        Raw stamps in the order science, template, difference, each in the upper left corner.
    stamp_shape_B2 : int [B, 2]
        Height and width of the stamps; what lies outside is ignored.
    mode : str
        A stamp without signal has no norm. ``corrected`` refuses it, ``as_published`` makes it NaN.

    Raises
    ------
    InvalidRecord
        ``stamp_empty``.
    ValueError
        If a shape does not fit.
    """
    triplet = np.asarray(triplet_B3SS, dtype=np.float32)
    shape = np.asarray(stamp_shape_B2)
    if triplet.ndim != 4 or triplet.shape[1] != 3 or triplet.shape[2] != triplet.shape[3]:
        raise ValueError(f"triplet: expected [B, 3, S, S], found {triplet.shape}")
    if shape.shape != (len(triplet), 2):
        raise ValueError(f"stamp_shape: expected [{len(triplet)}, 2], found {shape.shape}")
    pixel = np.arange(triplet.shape[-1])
    inside = (pixel[:, None] < shape[:, 0, None, None]) & (pixel < shape[:, 1, None, None])
    inside = inside[:, None]
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


def crop_triplet(image_B3SS: np.ndarray, size: int) -> np.ndarray:
    """Return the central `size` pixels of normalised stamps, each of Frobenius norm 1 again.

    A stamp with nothing but padding there stays as it is.
    """
    start = (image_B3SS.shape[-1] - size) // 2
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
