"""The best combination of a basis's templates at one redshift, at any phase of the pixels.

The scan (`skyray.models.redshift_scan`) knows whole shifts alone, puts pixels together for some
bases, and a parabola between its steps is not χ². Here templates are shifted by cubic B-splines:
linear interpolation would broaden them by as much as the redshift falls between pixels, and χ²
would depend on that.

Shape suffixes: L pixels, K templates.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import spline_filter1d

from skyray.models.template_bases import LOG_STEP, LYMAN_ALPHA, TemplateBasis

_TINY = 1e-12


def forest_transmission(wavelength: np.ndarray) -> np.ndarray:
    """Return the mean transmission of the Lyα forest at observed wavelengths, Å.

    Kamble et al. (2020, ApJ 892, 70): τ_eff = 0.00554 (1+z)^3.182, z of the absorber.
    """
    return np.exp(-0.00554 * (np.asarray(wavelength) / LYMAN_ALPHA) ** 3.182)


@dataclass(frozen=True)
class Solution:
    """The best combination: coefficients [K], model [L], and χ² as the scan has it.

    That is, with the prior's share, and the logarithm of the weights of absorbed pixels.
    """

    coefficients: np.ndarray
    model: np.ndarray
    chi2: float


class TemplateModel:
    """One basis, ready for spectra on pixels first … first + size − 1 of the log grid."""

    def __init__(self, basis: TemplateBasis, first: int, size: int):
        self.basis, self.first, self.size = basis, first, size
        self.wavelength = 10.0 ** (LOG_STEP * (first + np.arange(size)))  # observed, Å
        self._spline = spline_filter1d(basis.vectors, axis=1, mode="mirror")
        self._transmission = forest_transmission(self.wavelength)

    def templates(self, redshift: float) -> np.ndarray:
        """Return the templates as observed, float64 [K, L]; 0 outside their range."""
        start = self.first - np.log10(1.0 + redshift) / LOG_STEP - self.basis.first
        whole, size, count = int(np.floor(start)), self.size, self._spline.shape[1]
        at = np.arange(whole - 1, whole + size + 2)
        inside = at[0] >= 0 and at[-1] < count
        at = np.minimum(np.abs(at), np.abs(2 * (count - 1) - at)).clip(0, count - 1)
        values = self._spline[:, at[0] : at[-1] + 1] if inside else self._spline[:, at]
        t = start - whole
        taps = ((1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3)
        found = taps[0] / 6.0 * values[:, :size]
        for k in (1, 2, 3):
            found += taps[k] / 6.0 * values[:, k : k + size]
        if not inside:  # the spline is mirrored there
            position = start + np.arange(size)
            found[:, (position < -1e-6) | (position > count - 1 + 1e-6)] = 0.0
        if self.basis.forest:
            behind = int(np.searchsorted(self.wavelength, LYMAN_ALPHA * (1.0 + redshift)))
            found[:, :behind] *= self._transmission[:behind]
        return found

    def absorbed(self, redshift: float) -> np.ndarray:
        """Return which pixels are seen through the forest or in troughs, bool [L]."""
        return self.basis.absorbed(self.wavelength / (1.0 + redshift))

    def solve(
        self,
        redshift: float,
        flux_L: np.ndarray,
        weight_L: np.ndarray,
        forest_L: np.ndarray,
        scale: float,
        absorbed_L: np.ndarray | None = None,
    ) -> Solution:
        """Return the best combination at a redshift.

        Parameters
        ----------
        weight_L, forest_L : float64 [L]
            The weights of clear pixels, and of absorbed ones.
        scale : float
            The spectrum's rms, in units of which the coefficients have their prior.
        absorbed_L : bool [L], optional
            Where `forest_L` counts; default: where the basis is absorbed at this redshift.
        """
        seen, absorbed = self.templates(redshift), absorbed_L
        if absorbed is None:
            absorbed = self.absorbed(redshift)
        weight = np.where(absorbed, forest_L, weight_L)
        matrix, vector = (seen * weight) @ seen.T, seen @ (weight * flux_L)
        strength = matrix.diagonal().max()
        ridge = 1.0 / self.basis.variance / scale**2 + _TINY * (strength if strength > 0 else 1.0)
        coefficients = np.linalg.solve(matrix + np.diag(ridge), vector)
        good = absorbed & (weight_L > 0)
        price = np.log(weight_L[good] / forest_L[good]).sum()
        chi2 = weight @ np.square(flux_L) - vector @ coefficients + price
        return Solution(coefficients, coefficients @ seen, float(chi2))
