"""Cameras of mock lens surveys: pixels, point spread, sky and the noise of an exposure.

Images are in electrons a second. Settings are those of lenstronomy's observation definitions
(Birrer & Amara 2018): HST as they stand, Euclid VIS as they stood for Alexander et al. 2022
(later versions list zero point 25.72, 4 × 566 s and sky 22.3).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter

_FWHM_PER_SIGMA = 2.0 * np.sqrt(2.0 * np.log(2.0))


@dataclass(frozen=True)
class Camera:
    """A camera and how long it looks.

    Attributes
    ----------
    zero_point : float
        AB magnitude of one electron a second.
    sky_magnitude : float
        Sky brightness, magnitudes per square arcsecond.
    read_noise : float
        Electrons, once an exposure.
    """

    name: str
    pixel_scale_arcsec: float
    psf_fwhm_arcsec: float
    zero_point: float
    exposure_seconds: float
    exposures: int
    sky_magnitude: float
    read_noise: float

    @property
    def seconds(self) -> float:
        return self.exposure_seconds * self.exposures

    @property
    def background_variance(self) -> float:
        """Variance of sky and read-out in a pixel, (e⁻/s)²."""
        sky = 10.0 ** (-0.4 * (self.sky_magnitude - self.zero_point)) * self.pixel_scale_arcsec**2
        electrons = sky * self.seconds + self.exposures * self.read_noise**2
        return electrons / self.seconds**2

    def noise_sigma(self, signal: np.ndarray) -> np.ndarray:
        """Return the standard deviation of each pixel of a signal (e⁻/s), same shape."""
        return np.sqrt(self.background_variance + np.maximum(signal, 0.0) / self.seconds)

    def magnitude(self, rate: float) -> float:
        """Return the magnitude of a rate in e⁻/s."""
        return float(self.zero_point - 2.5 * np.log10(rate))

    def expose(self, signal: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return one noisy image of a signal (e⁻/s): Poisson light, Gaussian sky and read-out."""
        light = rng.poisson(np.maximum(signal, 0.0) * self.seconds) / self.seconds
        return light + rng.normal(0.0, np.sqrt(self.background_variance), signal.shape)

    def rays(self, size: int, supersampling: int) -> tuple[np.ndarray, np.ndarray]:
        """Return sky positions x, y (arcsec) of size·supersampling squared rays, centred on 0."""
        count = size * supersampling
        step = self.pixel_scale_arcsec / supersampling
        axis = (np.arange(count) - 0.5 * (count - 1)) * step
        x, y = np.meshgrid(axis, axis)
        return x, y

    def detect(self, brightness: np.ndarray, supersampling: int) -> np.ndarray:
        """Return the light in each pixel from surface brightness on rays: blurred, then binned.

        Parameters
        ----------
        brightness : float [size·k, size·k]
            Per square arcsecond, at the positions of `rays`.
        """
        sigma = self.psf_fwhm_arcsec / _FWHM_PER_SIGMA / self.pixel_scale_arcsec * supersampling
        blurred = gaussian_filter(brightness, sigma, mode="constant", truncate=5.0)
        size = len(brightness) // supersampling
        binned = blurred.reshape(size, supersampling, size, supersampling).mean(axis=(1, 3))
        return binned * self.pixel_scale_arcsec**2


def arc_snr(signal: np.ndarray, sigma: np.ndarray) -> float:
    """Return the signal-to-noise ratio of a pixel of the arcs: its mean, weighted by the signal.

    The weight makes a threshold needless; for an arc of even brightness it is the SNR of any of
    its pixels.
    """
    return float(np.sum(signal**2 / sigma) / np.sum(signal))


def scale_to_snr(signal: np.ndarray, camera: Camera, snr: float) -> np.ndarray:
    """Return the signal times the factor that gives it an `arc_snr` of `snr` with this camera."""
    low, high = -60.0, 60.0  # natural logarithm of the factor; SNR rises with it
    for _ in range(60):
        middle = 0.5 * (low + high)
        scaled = signal * np.exp(middle)
        if arc_snr(scaled, camera.noise_sigma(scaled)) < snr:
            low = middle
        else:
            high = middle
    return signal * np.exp(0.5 * (low + high))


CAMERAS = {
    "hst": Camera("hst", 0.08, 0.08, 25.96, 5400.0, 1, 22.3, 4.0),  # WFC3 F160W, drizzled
    "euclid": Camera("euclid", 0.101, 0.16, 24.0, 565.0, 4, 22.35, 4.2),  # VIS
}
