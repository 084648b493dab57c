"""Images → network input: size, brightness limits, stretches and colour mappings.

Pure functions in numpy. Shape suffixes: B bands, H height, W width, S side. An image is
float [B, H, W] in the survey's units; NaN marks unmeasured pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from skyray.records import InvalidRecord

Mode = Literal["corrected", "as_published"]
DISPLAY_BANDS = ("red", "green", "blue")


# size ------------------------------------------------------------------------------------------
def fit_image(image_BHW: np.ndarray, size: int, how: str) -> np.ndarray:
    """Bring an image to `size` × `size` pixels.

    Parameters
    ----------
    image_BHW : float [B, H, W]
    size : int
        Side of the result in pixels.
    how : str
        ``exact``: the image must have that size. ``crop``: its central part. ``resize``: its
        largest central square, averaged over the area of each new pixel (enlarged: bilinear).

    Returns
    -------
    float32 [B, size, size]
        Of ``resize``: surface brightness is kept, not the sum. A new pixel is NaN where less than
        half of its area was measured.

    Raises
    ------
    InvalidRecord
        ``image_size`` where the image is not that size (``exact``) or too small (``crop``).
    ValueError
        For an unknown `how`.
    """
    image = np.asarray(image_BHW, dtype=np.float32)
    height, width = image.shape[1:]
    if how == "resize":
        return _resize(_centre(image, min(height, width)), size)
    if how not in ("exact", "crop"):
        raise ValueError(f"fit_image: expected exact, crop or resize, found {how!r}")
    if (height, width) == (size, size):
        return image
    if how == "exact" or min(height, width) < size:
        least = "at least " if how == "crop" else ""
        raise InvalidRecord(
            "image_size",
            f"expected {least}{size} × {size} pixels, found {height} × {width}; a card may set "
            "image_fit: resize",
        )
    return _centre(image, size)


def fitted_scale(pixel_scale_arcsec: float, shape: tuple[int, int], size: int, how: str) -> float:
    """Return the pixel scale in arcsec after `fit_image` of an image of `shape` (H, W)."""
    return pixel_scale_arcsec * (min(shape) / size if how == "resize" else 1.0)


def _centre(image: np.ndarray, side: int) -> np.ndarray:
    top, left = ((n - side) // 2 for n in image.shape[1:])
    return np.ascontiguousarray(image[:, top : top + side, left : left + side])


def _resize(image: np.ndarray, size: int) -> np.ndarray:
    if image.shape[1] == size:
        return image
    weight_SH = _resize_weights(image.shape[1], size)
    measured = ~np.isnan(image)
    if measured.all():
        return (weight_SH @ image @ weight_SH.T).astype(np.float32)
    share = weight_SH @ measured.astype(np.float32) @ weight_SH.T
    total = weight_SH @ np.where(measured, image, 0.0) @ weight_SH.T
    out = np.full_like(total, np.nan)
    return np.divide(total, share, out=out, where=share >= 0.5).astype(np.float32)


def _resize_weights(old: int, new: int) -> np.ndarray:
    """Return float32 [new, old], rows of sum 1: area overlap (smaller) or bilinear (larger)."""
    if new < old:
        edge_new, edge_old = np.arange(new + 1) * (old / new), np.arange(old + 1)
        upper = np.minimum(edge_new[1:, None], edge_old[None, 1:])
        lower = np.maximum(edge_new[:-1, None], edge_old[None, :-1])
        return (np.clip(upper - lower, 0, None) * (new / old)).astype(np.float32)
    place = np.clip((np.arange(new) + 0.5) * (old / new) - 0.5, 0, old - 1)
    distance = np.abs(place[:, None] - np.arange(old)[None])
    return np.clip(1 - distance, 0, None).astype(np.float32)


# brightness ------------------------------------------------------------------------------------
def clip_limits(band_HW: np.ndarray, mode: Mode = "corrected") -> tuple[float, float]:
    """Return the brightness limits [μ − σ, μ + 5σ] of one band.

    ``corrected``: μ and σ of the fainter half of the pixels, as was meant (Khan et al. 2019).
    ``as_published``: of all pixels, since the released code sorts each row and then cuts rows.
    NaN pixels are left out.
    """
    values = band_HW[np.isfinite(band_HW)].astype(np.float64)
    if mode == "corrected":
        half = max(values.size // 2, 1)
        values = np.partition(values, half - 1)[:half]
    mean, spread = values.mean(), values.std()
    return float(mean - spread), float(mean + 5 * spread)


def scale_unit(
    band_HW: np.ndarray, limits: tuple[float, float], clipped: bool = True
) -> np.ndarray:
    """Map [low, high] to [0, 1], float32 [H, W]; NaN and limits of no width give 0.

    Below 0 is always cut off, above 1 only where `clipped`.
    """
    low, high = limits
    if not high > low:
        return np.zeros(band_HW.shape, np.float32)
    unit = np.nan_to_num((band_HW - low) / (high - low))
    return np.clip(unit, 0, 1 if clipped else None).astype(np.float32)


def lupton(rgb_3HW: np.ndarray, stretch: float = 1.0, q: float = 1.0) -> np.ndarray:
    """Return the asinh colour stretch of Lupton et al. 2004 (PASP 116, 133), minimum 0.

    The mean of the three channels is stretched; where a channel would exceed white, all three are
    scaled down together, so that colour is kept.

    Parameters
    ----------
    rgb_3HW : float [3, H, W]
        Red, green, blue in one unit.
    stretch, q : float
        Linear stretch and asinh softening, as in `astropy.visualization.make_lupton_rgb`.

    Returns
    -------
    float32 [3, H, W]
        Between 0 and 1.
    """
    rgb = np.asarray(rgb_3HW, dtype=np.float64)
    intensity = rgb.mean(axis=0)
    slope = 0.1 / np.arcsinh(0.1 * q)
    factor = np.divide(
        np.arcsinh(intensity * q / stretch) * slope, intensity,
        out=np.zeros_like(intensity), where=intensity > 0,
    )  # fmt: skip
    rgb = np.clip(rgb * factor, 0, None)
    return (rgb / np.maximum(rgb.max(axis=0), 1.0)).astype(np.float32)


# colour ----------------------------------------------------------------------------------------
@dataclass(frozen=True)
class ColourMapping:
    """How a survey's bands become red, green and blue.

    Attributes
    ----------
    bands : tuple of str
        For red, green, blue.
    stretch : str
        ``linear`` or ``lupton``, after the limits of `clip_limits`.
    scale, q : float
        Parameters of the Lupton stretch, in units of the distance between the limits.
    clipped : bool
        Whether brightness above the upper limit is cut off first. Unless it is, Lupton's stretch
        keeps the bright parts apart; ``linear`` always cuts.
    """

    bands: tuple[str, str, str] = ("i", "r", "g")
    stretch: Literal["linear", "lupton"] = "lupton"
    scale: float = 3.0
    q: float = 8.0
    clipped: bool = False


# Released code of Khan et al. 2019 (arXiv:1812.02183): the two surveys are coloured differently.
PUBLISHED_MAPPINGS = {
    "sdss": ColourMapping(("z", "r", "g"), "linear", clipped=True),
    "des": ColourMapping(("i", "r", "g"), "lupton", scale=1.0, q=1.0, clipped=True),
}


def published_mapping(survey: str) -> ColourMapping:
    """Return the released code's mapping of a survey, found by its name.

    Raises
    ------
    ValueError
        If the name holds neither ``sdss`` nor ``des``.
    """
    for name, mapping in PUBLISHED_MAPPINGS.items():
        if name in survey.lower():
            return mapping
    raise ValueError(
        f"survey: expected a name with one of {sorted(PUBLISHED_MAPPINGS)}, found {survey!r}; "
        "use the corrected colour mapping"
    )


def to_colour(
    image_BHW: np.ndarray, bands: Sequence[str], mapping: ColourMapping, clip: Mode = "corrected"
) -> np.ndarray:
    """Return a colour image float32 [3, H, W] in 0–1 from survey bands.

    Raises
    ------
    ValueError
        If the image lacks a band of the mapping.
    """
    missing = set(mapping.bands) - set(bands)
    if missing:
        raise ValueError(
            f"bands: expected {mapping.bands}, found {tuple(bands)}: no {sorted(missing)}"
        )
    cut = mapping.clipped or mapping.stretch == "linear"
    planes = [np.asarray(image_BHW[list(bands).index(name)]) for name in mapping.bands]
    rgb = np.stack([scale_unit(plane, clip_limits(plane, clip), cut) for plane in planes])
    return lupton(rgb, mapping.scale, mapping.q) if mapping.stretch == "lupton" else rgb


def display_to_unit(image_BHW: np.ndarray) -> np.ndarray:
    """Return a display image (JPEG, PNG: 0–255) as float32 in 0–1; NaN gives 0."""
    return np.clip(np.nan_to_num(np.asarray(image_BHW, np.float32) / 255.0), 0, 1)
