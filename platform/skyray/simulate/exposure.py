"""From the light that arrives to what a pipeline delivers: noise, calibration, sky, lost pixels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from skyray.simulate.instruments import Instrument, Pixels


@dataclass(frozen=True)
class Exposure:
    """A mock observation.

    Attributes
    ----------
    truth : float64 [L]
        Noiseless flux with calibration errors, 1e-17 erg/s/cm²/Å.
    flux, ivar : float32 [L]
        As delivered.
    mask : bool [L]
        True where the pipeline flags the pixel.
    """

    truth: np.ndarray
    flux: np.ndarray
    ivar: np.ndarray
    mask: np.ndarray


def observe(
    shape: np.ndarray, snr: float, instrument: Instrument, pixels: Pixels, rng: np.random.Generator
) -> Exposure:
    """Observe light of a given spectral shape at a median SNR per pixel.

    Parameters
    ----------
    shape : float64 [L]
        F_λ ≥ 0 in arbitrary units.
    snr : float
        Wanted median of truth/σ.
    """
    level = instrument.noise_floor * float(np.exp(rng.normal(0.0, 0.25)))
    background = _background_variance(pixels, level, rng)
    shape = shape * _calibration(pixels, instrument, rng)
    gain = level / 6.0 / pixels.throughput  # photon noise: σ² = gain · flux
    truth = shape * _brightness(shape, background, gain, snr)
    variance = background + gain * np.clip(truth, 0.0, None)
    sigma = np.sqrt(variance)
    flux = truth + sigma * rng.standard_normal(len(truth))
    flux += _sky_residuals(pixels, sigma, rng)
    ivar = 1.0 / variance
    mask = _lose_pixels(flux, ivar, sigma, pixels, rng)
    return Exposure(truth, flux.astype(np.float32), ivar.astype(np.float32), mask)


def _background_variance(pixels: Pixels, level: float, rng: np.random.Generator) -> np.ndarray:
    """Return the variance from sky photons and detector, median about level²."""
    moon = float(rng.uniform(0.0, 0.8)) * (5000.0 / pixels.wavelength) ** 2
    sky = pixels.sky * float(np.exp(rng.normal(0.0, 0.15))) + moon
    # per unit of F_λ there are more, hence relatively less noisy, photons in the red
    energy = 5500.0 / pixels.wavelength
    photons = energy * sky / pixels.throughput + 0.3 * (energy / pixels.throughput) ** 2
    return level**2 * photons / np.median(photons)


def _calibration(pixels: Pixels, instrument: Instrument, rng: np.random.Generator) -> np.ndarray:
    """Return smooth multiplicative errors: a few per cent, more in the blue, a step at the arms.

    Guiding offsets and differential refraction tilt the spectra of point sources by up to tens of
    per cent at the blue end (Margala et al. 2016, ApJ 831, 157).
    """
    x = (pixels.log_wavelength - 3.75) / 0.2
    coefficient = rng.normal(0.0, [0.06, 0.03, 0.02])
    a, b, c = coefficient
    wave = ((c * x + 1.5 * b) * x + a) * x - 0.5 * b
    wave += rng.normal(0.0, 0.06) * np.exp(-(pixels.wavelength - 3600.0) / 350.0)
    wave += rng.normal(0.0, 0.008) * np.sin(x * rng.uniform(3.0, 14.0) + rng.uniform(0.0, 6.28))
    for joint in instrument.joints:
        wave += rng.normal(0.0, 0.012) / (1.0 + np.exp(-(pixels.wavelength - joint) / 40.0))
    return np.exp(wave)


def _brightness(shape, background, gain, snr: float) -> float:
    """Return the factor on `shape` at which the median of signal over noise is `snr`.

    Each pixel's own factor solves (a·s)² = snr² (background + gain·a·s); SNR grows with the factor
    in every pixel, so the median of the factors is the factor of the median.
    """
    s = np.maximum(shape, 1e-9)
    half = 0.5 * snr**2 * gain
    return float(np.median((half + np.sqrt(half**2 + snr**2 * background)) / s))


def _sky_residuals(pixels: Pixels, sigma: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return what sky subtraction leaves on bright lines beyond the claimed noise, coherent."""
    residual = np.zeros_like(sigma)
    amount = abs(rng.normal(0.0, 0.45))
    common = rng.normal(0.0, 1.0)
    at = np.flatnonzero(pixels.lines)
    wiggle = rng.normal(0.0, 0.5, len(at)) + common
    residual[at] = amount * wiggle * sigma[at]
    return residual


def _lose_pixels(flux, ivar, sigma, pixels: Pixels, rng: np.random.Generator) -> np.ndarray:
    """Flag and unweight pixels in place; return the mask. Some cosmic rays stay unnoticed."""
    size = len(flux)
    lost = np.zeros(size, dtype=bool)
    lost[: rng.integers(0, 25)] = True
    lost[size - rng.integers(0, 25) :] = True
    for _ in range(rng.poisson(2.0)):  # cosmic rays and bad columns
        start = int(rng.integers(0, size))
        lost[start : start + int(rng.integers(2, 9))] = True
    if rng.random() < 0.04:  # a dead stretch
        start = int(rng.integers(0, size - 200))
        lost[start : start + int(rng.integers(30, 160))] = True
    bright = np.flatnonzero(pixels.lines)
    if rng.random() < 0.15:
        lost[bright[rng.random(len(bright)) < rng.uniform(0.0, 0.3)]] = True
    if rng.random() < 0.7:  # the brightest line of the sky, [O I] 5577 in air
        lost[np.abs(pixels.wavelength - 5578.9) < rng.uniform(1.5, 5.0)] = True
    hits = rng.integers(0, size, rng.poisson(0.7))
    flux[hits] += sigma[hits] * rng.exponential(8.0, len(hits))
    ivar[lost] = 0.0
    at = np.flatnonzero(lost)
    flux[at] += sigma[at] * rng.normal(0.0, 2.0, len(at))
    return lost
