"""Images of several cameras on one angular scale."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import affine_transform


def to_field(
    image_NBSS: np.ndarray, pixel_scale_arcsec_N: np.ndarray, field_arcsec: float
) -> np.ndarray:
    """Return the central `field_arcsec` of each image on the pixels it had, bilinear.

    Parameters
    ----------
    image_NBSS : float [N, B, S, S]
        Without NaN. What a field needs beyond an image is 0.
    pixel_scale_arcsec_N : float [N]
        Images whose scale is NaN or not positive stay as they are.
    field_arcsec : float
        Side of the field.

    Returns
    -------
    float32 [N, B, S, S]
        Surface brightness is kept, not the sum.
    """
    out = np.array(image_NBSS, dtype=np.float32)
    size = out.shape[-1]
    for row, scale in enumerate(np.asarray(pixel_scale_arcsec_N, dtype=np.float64)):
        step = field_arcsec / size / scale if scale > 0 else np.nan  # old pixels in a new one
        if not np.isfinite(step) or abs(step - 1) < 1e-6:
            continue
        start = 0.5 * (size - 1) * (1 - step)
        for band in range(out.shape[1]):
            out[row, band] = affine_transform(
                image_NBSS[row, band], [step, step], start, order=1, mode="constant"
            )
    return out
