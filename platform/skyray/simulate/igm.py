"""Absorption by intergalactic hydrogen: Lyα and Lyβ forest, damped systems, the Lyman limit.

The forest is a log-normal optical depth field whose mean transmission equals the published one at
every redshift (Becker et al. 2013, MNRAS 430, 2067, eq. 5; below z = 2.2, its range, the power law
of Faucher-Giguère et al. 2008, ApJ 681, 831).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from skyray.simulate.lines import LIGHT_KMS

LYA, LYB, LYMAN_LIMIT = 1215.67, 1025.72, 911.76
_FIELD_SIGMA = 1.6  # scatter of ln τ at the resolution of the spectrograph
_TAU_NODES = np.geomspace(1e-4, 50.0, 120)


def effective_optical_depth(redshift: np.ndarray) -> np.ndarray:
    """Return τ_eff = −ln⟨F⟩ of the Lyα forest at an absorber redshift."""
    z = np.asarray(redshift, dtype=np.float64)
    becker = 0.751 * ((1.0 + z) / 4.5) ** 2.90 - 0.132
    faucher = 0.0018 * (1.0 + z) ** 3.92
    return np.where(z < 2.2, faucher, np.maximum(becker, 0.0))


def mean_transmission(redshift: np.ndarray) -> np.ndarray:
    """Return ⟨F⟩ of the Lyα forest at an absorber redshift."""
    return np.exp(-effective_optical_depth(redshift))


@lru_cache(maxsize=1)
def _amplitudes() -> tuple[np.ndarray, np.ndarray]:
    """Return (τ_eff, ln A): the log-normal field A·e^{σg} has this effective optical depth."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(40)
    field = np.exp(_FIELD_SIGMA * nodes)
    transmission = np.exp(-_TAU_NODES[:, None] * field) @ weights / weights.sum()
    return -np.log(transmission), np.log(_TAU_NODES)


def _field(rng: np.random.Generator, size: int, pixel_kms: float) -> np.ndarray:
    """Return a Gaussian field of unit variance, correlated over 100 and over 600 km/s."""
    field = np.zeros(size)
    for scale, share in ((100.0, 0.8), (600.0, 0.6)):
        sigma = max(scale / pixel_kms, 0.3)
        reach = int(5 * sigma) + 1
        kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
        kernel /= np.sqrt(np.square(kernel).sum())
        field += share * np.convolve(rng.standard_normal(size + 2 * reach), kernel, mode="valid")
    return field


def forest_transmission(
    wavelength: np.ndarray, redshift: float, rng: np.random.Generator
) -> np.ndarray:
    """Return the transmission of one line of sight, float64 [L] in 0…1.

    Parameters
    ----------
    wavelength : float64 [L]
        Observed vacuum Å, increasing.
    redshift : float
        Of the quasar. Lyα absorbs below 1215.67 Å rest, Lyβ below 1025.72 Å.
    """
    transmission = np.ones_like(wavelength)
    last = int(np.searchsorted(wavelength, LYA * (1.0 + redshift)))
    if last < 2:
        return transmission
    blue = wavelength[:last]
    pixel_kms = float(LIGHT_KMS * (blue[-1] - blue[0]) / (last - 1) / blue[last // 2])
    tau_eff, log_amplitude = _amplitudes()
    for line, relative in ((LYA, 1.0), (LYB, 0.16)):
        stop = int(np.searchsorted(blue, line * (1.0 + redshift)))
        if stop < 2:
            continue
        mean_tau = effective_optical_depth(blue[:stop] / line - 1.0)
        # the proximity zone: the quasar itself ionises the last 2000 km/s
        velocity = LIGHT_KMS * (1.0 - blue[:stop] / (line * (1.0 + redshift)))
        mean_tau = mean_tau * np.clip(velocity / 2000.0, 0.15, 1.0)
        amplitude = np.exp(np.interp(mean_tau, tau_eff, log_amplitude))
        field = np.exp(_FIELD_SIGMA * _field(rng, stop, pixel_kms))
        transmission[:stop] *= np.exp(-relative * amplitude * field)
    return transmission


def strong_absorbers(
    wavelength: np.ndarray, redshift: float, rng: np.random.Generator
) -> np.ndarray:
    """Return the transmission of damped Lyα systems and of the Lyman continuum, float64 [L].

    Damped systems: 0.2 per unit redshift at z = 2.5 growing as (1+z)^1.3, column densities from
    10^20.3 with dN/dN_HI ∝ N^−1.8. Lyman-limit systems: 1.2 per unit redshift at z = 3 growing as
    (1+z)^1.5 (Prochaska et al. 2010), opaque below their limit.
    """
    transmission = np.ones_like(wavelength)
    lowest = max(wavelength[0] / LYA - 1.0, 0.0)
    for z in _redshifts(rng, lowest, redshift, 0.2, 3.5, 1.3):
        column = 10 ** (20.3 + min(rng.exponential(0.543), 1.7))
        transmission *= np.exp(-damping_wing(wavelength, z, column))
    lowest = max(wavelength[0] / LYMAN_LIMIT - 1.0, 0.0)
    for z in _redshifts(rng, lowest, redshift, 1.2, 4.0, 1.5):
        tau = 10 ** rng.uniform(0.0, 1.2)
        below = wavelength < LYMAN_LIMIT * (1.0 + z)
        transmission[below] *= np.exp(-tau * (wavelength[below] / (LYMAN_LIMIT * (1 + z))) ** 3)
    return transmission


def _redshifts(rng, low: float, high: float, rate: float, pivot: float, slope: float) -> np.ndarray:
    """Draw absorber redshifts with dN/dz = rate·((1+z)/pivot)^slope between low and high."""
    if high <= low:
        return np.empty(0)
    peak = rate * ((1.0 + high) / pivot) ** slope
    drawn = rng.uniform(low, high, rng.poisson(peak * (high - low)))
    kept = rng.random(drawn.size) < ((1.0 + drawn) / (1.0 + high)) ** slope
    return drawn[kept]


def damping_wing(wavelength: np.ndarray, redshift: float, column: float) -> np.ndarray:
    """Return the optical depth of Lyα's Lorentzian wings for a column density in 1/cm²."""
    offset = wavelength / (1.0 + redshift) - LYA
    # the wing τ = aN/Δλ² has equivalent width 2√(πaN) = 7.3 Å (N / 1e20 cm⁻²)^½
    return column * 4.26e-20 / np.maximum(offset**2, 0.25)
