"""Emission lines: vacuum wavelengths, and Gaussian profiles drawn onto observed pixels."""

from __future__ import annotations

import numpy as np

LIGHT_KMS = 299792.458

# Vacuum wavelengths in Å (NIST; the SDSS line list), narrow lines of galaxies and AGN.
NARROW = {
    "[O II] 3727": 3727.09,
    "[O II] 3730": 3729.88,
    "[Ne III] 3869": 3869.86,
    "H8": 3890.15,
    "Hepsilon": 3971.20,
    "Hdelta": 4102.89,
    "Hgamma": 4341.68,
    "He II 4687": 4687.02,
    "Hbeta": 4862.68,
    "[O III] 4960": 4960.30,
    "[O III] 5008": 5008.24,
    "He I 5877": 5877.25,
    "[O I] 6302": 6302.05,
    "[N II] 6550": 6549.85,
    "Halpha": 6564.61,
    "[N II] 6585": 6585.27,
    "He I 6680": 6679.99,
    "[S II] 6718": 6718.29,
    "[S II] 6733": 6732.67,
    "[Ar III] 7138": 7137.77,
    "[S III] 9071": 9071.10,
    "[S III] 9533": 9533.20,
}


def add_gaussian(
    flux: np.ndarray, wavelength: np.ndarray, center: float, sigma: float, area: float
) -> None:
    """Add a Gaussian of total `area` (flux · Å) to `flux` in place.

    Parameters
    ----------
    flux, wavelength : float64 [L]
        Pixels; wavelength strictly increasing, Å.
    center, sigma : float
        Å. Outside 5 σ nothing is added; a line off the pixels changes nothing.
    """
    first, last = np.searchsorted(wavelength, (center - 5 * sigma, center + 5 * sigma))
    if first == last:
        return
    x = (wavelength[first:last] - center) / sigma
    flux[first:last] += area / (sigma * 2.5066282746310002) * np.exp(-0.5 * x * x)


def width(center: float, *sigmas_kms: float) -> float:
    """Return the σ in Å of Gaussian broadenings added in quadrature."""
    return center / LIGHT_KMS * float(np.sqrt(np.sum(np.square(sigmas_kms))))
