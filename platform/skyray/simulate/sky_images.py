"""Galaxies and points as a camera sees them: pixel-integrated, convolved with a Moffat PSF.

Positions are (x, y) = (column, row) in pixels from the centre of the middle pixel; sizes in pixels;
images are float64 [S, S] in flux per pixel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.signal import fftconvolve
from scipy.special import gamma, gammaincinv

MOFFAT_BETA = 3.0
_FINE = 3  # sub-pixels a side


@dataclass(frozen=True)
class Sersic:
    """A Sérsic (1963) galaxy of total flux 1.

    Attributes
    ----------
    half_light_radius : float
        Semi-major axis of the ellipse that holds half of the light.
    n : float
        Index; 1 is exponential, 4 de Vaucouleurs.
    axis_ratio : float
        Minor over major axis, (0, 1].
    angle : float
        Of the major axis from +x to +y, radians.
    """

    half_light_radius: float
    n: float = 1.0
    axis_ratio: float = 1.0
    angle: float = 0.0

    def density(self, du: np.ndarray, dv: np.ndarray) -> np.ndarray:
        """Return the flux per pixel² at offsets from the centre, without a PSF."""
        along = np.cos(self.angle) * du + np.sin(self.angle) * dv
        across = (-np.sin(self.angle) * du + np.cos(self.angle) * dv) / self.axis_ratio
        # The cusp is flat within a tenth of a sub-pixel: light of a galaxy's centre is finite.
        radius = np.sqrt(along**2 + across**2 + (0.1 / _FINE) ** 2) / self.half_light_radius
        b = gammaincinv(2 * self.n, 0.5)
        total = 2 * np.pi * self.n * np.exp(b) * b ** (-2 * self.n) * gamma(2 * self.n)
        total *= self.axis_ratio * self.half_light_radius**2
        return np.exp(-b * (radius ** (1 / self.n) - 1)) / total


def moffat_image(size: int, fwhm: float, x: float = 0.0, y: float = 0.0) -> np.ndarray:
    """Return a point source of flux 1 through a Moffat PSF (Moffat 1969, β = 3)."""
    return _binned(_moffat(*_axes(size), fwhm, x, y))


def galaxies_image(
    size: int, galaxies: Sequence[tuple[float, float, float, Sersic]], fwhm: float
) -> np.ndarray:
    """Return galaxies (flux, x, y, profile) through one Moffat PSF."""
    if not galaxies:
        return np.zeros((size, size))
    columns, rows = _axes(size)
    light = sum(flux * shape.density(columns - x, rows - y) for flux, x, y, shape in galaxies)
    psf = _moffat(columns, rows, fwhm, 0.0, 0.0) / _FINE**2
    return _binned(fftconvolve(light, psf, mode="same"))


def _axes(size: int) -> tuple[np.ndarray, np.ndarray]:
    at = (np.arange(size * _FINE) + 0.5) / _FINE - size / 2
    return at[None, :], at[:, None]


def _moffat(columns, rows, fwhm: float, x: float, y: float) -> np.ndarray:
    """Return the PSF's density per pixel² on the fine grid."""
    alpha = fwhm / (2 * np.sqrt(2 ** (1 / MOFFAT_BETA) - 1))
    near = 1 + ((columns - x) ** 2 + (rows - y) ** 2) / alpha**2
    return (MOFFAT_BETA - 1) / (np.pi * alpha**2) / (near * near * near)


def _binned(fine: np.ndarray) -> np.ndarray:
    size = len(fine) // _FINE
    return fine.reshape(size, _FINE, size, _FINE).mean(axis=(1, 3))
