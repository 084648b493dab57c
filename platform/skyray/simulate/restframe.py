"""The rest-frame grid of template libraries, and bringing a template onto observed pixels."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import gaussian_filter1d

from skyray.simulate.lines import LIGHT_KMS

# 1e-4 dex is 69 km/s, the pixel of SDSS; 1000 Å reach the blue end of z = 2.5 galaxies.
LOG_START, LOG_STEP, LOG_SIZE = 3.0, 1.0e-4, 10600
PIXEL_KMS = LOG_STEP * np.log(10.0) * LIGHT_KMS


def rest_wavelength() -> np.ndarray:
    """Return the vacuum wavelengths of the rest-frame grid, float64 [LOG_SIZE], Å."""
    return 10.0 ** (LOG_START + LOG_STEP * np.arange(LOG_SIZE))


def broaden(template: np.ndarray, sigma_kms: float) -> np.ndarray:
    """Return templates [..., LOG_SIZE] convolved with a Gaussian velocity distribution."""
    if sigma_kms <= 0.0:
        return template
    return gaussian_filter1d(template, sigma_kms / PIXEL_KMS, axis=-1, mode="nearest", truncate=3.5)


def observe(template: np.ndarray, log_wavelength: np.ndarray, redshift: float) -> np.ndarray:
    """Return a rest-frame template at observed wavelengths, float64 [L].

    Parameters
    ----------
    template : [LOG_SIZE]
    log_wavelength : float64 [L]
        log10 of the observed wavelengths in Å. Outside the grid the edge value is repeated.
    """
    position = (log_wavelength - np.log10(1.0 + redshift) - LOG_START) / LOG_STEP
    position = np.clip(position, 0.0, LOG_SIZE - 1.001)
    left = position.astype(np.int64)
    weight = position - left
    low = template[left]
    return low + weight * (template[left + 1] - low)


def resample(wavelength: np.ndarray, flux: np.ndarray) -> np.ndarray:
    """Bring tabulated templates [..., P] at `wavelength` [P] onto the rest-frame grid.

    Outside the table the edge value is repeated.
    """
    grid = rest_wavelength()
    rows = np.atleast_2d(np.asarray(flux, dtype=np.float64))
    placed = np.stack([np.interp(grid, wavelength, row) for row in rows])
    return placed.reshape(*np.shape(flux)[:-1], LOG_SIZE)
