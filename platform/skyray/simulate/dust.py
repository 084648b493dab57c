"""Extinction by dust, for stars behind the Galactic disc and for galaxies' own gas and stars."""

from __future__ import annotations

import numpy as np

# Fitzpatrick (1999), R_V = 3.1: anchor points A(λ)/E(B−V) of his cubic spline (table 3) with the
# far-ultraviolet continued along his parametrisation; x = 1/λ in 1/µm.
_INVERSE_MICRON = np.array([0.0, 0.377, 0.820, 1.667, 1.828, 2.141, 2.433, 3.704, 3.846, 4.6,
                            5.2, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0])  # fmt: skip
_A_OVER_EBV = np.array([0.0, 0.265, 0.829, 2.688, 3.055, 3.806, 4.315, 6.265, 6.591, 9.0,
                        8.0, 7.75, 8.4, 9.4, 11.0, 13.2, 16.0])  # fmt: skip
R_V = 3.1


def extinction_curve(wavelength_angstrom: np.ndarray) -> np.ndarray:
    """Return A(λ)/A(V) of Fitzpatrick (1999) for R_V = 3.1, interpolated linearly in 1/λ."""
    x = 1e4 / np.asarray(wavelength_angstrom, dtype=np.float64)
    return np.interp(x, _INVERSE_MICRON, _A_OVER_EBV) / R_V


def redden(flux: np.ndarray, wavelength_angstrom: np.ndarray, a_v: float) -> np.ndarray:
    """Return `flux` behind a dust screen of `a_v` magnitudes in V."""
    return flux * 10 ** (-0.4 * a_v * extinction_curve(wavelength_angstrom))
