"""Arrays of numbers → planes of pixels: axes, types, sizes."""

from __future__ import annotations

import numpy as np

from skyray.records import InvalidRecord

MAX_PIXELS = 2048 * 2048  # of a cutout; a card may allow more
_SMALLEST = float(np.finfo(np.float32).tiny)


def check_size(pixels: int, limit: int) -> None:
    """Raise `InvalidRecord` (``image_too_large``) beyond a limit of pixels."""
    if pixels > limit:
        raise InvalidRecord(
            "image_too_large", f"expected at most {limit:,} pixels, found {pixels:,}"
        )


def as_planes(array: np.ndarray, bands: int) -> np.ndarray:
    """Return an array as float32 [bands, H, W]; [H, W] is one band, [H, W, bands] is turned.

    Raises
    ------
    InvalidRecord
        ``image_shape``, ``image_type``, ``image_range``.
    """
    if array.dtype.kind not in "fiub":
        raise InvalidRecord("image_type", f"expected numbers, found {array.dtype}")
    found = array.shape
    if array.ndim == 2:
        array = array[None]
    elif array.ndim == 3 and found[2] == bands and found[0] != bands:
        array = array.transpose(2, 0, 1)
    if array.ndim != 3 or len(array) != bands:
        raise InvalidRecord(
            "image_shape", f"expected [{bands}, height, width] or [height, width], found {found}"
        )
    return as_float32(array)


def as_float32(array: np.ndarray) -> np.ndarray:
    """Return numbers as float32, C-contiguous; NaN and infinities stay.

    Raises
    ------
    InvalidRecord
        ``image_range`` where a finite value would become infinite, or the largest of all loses
        digits below 1.2 · 10⁻³⁸: fluxes in cgs units.
    """
    if array.dtype.kind == "f" and array.dtype.itemsize > 4:
        finite = np.abs(array[np.isfinite(array)])
        largest = float(finite.max()) if finite.size else 0.0
        if largest > np.finfo(np.float32).max or 0 < largest < _SMALLEST * 1e6:
            raise InvalidRecord(
                "image_range",
                f"expected values whose largest is within 1e-32 to 3e38, found {largest:g}",
            )
    return np.ascontiguousarray(array, dtype=np.float32)
