"""The spectrographs: pixels, line-spread function, throughput and night sky.

Wavelengths are vacuum Å. Numbers are the instruments' published ones, rounded: SDSS/BOSS (Smee et
al. 2013, AJ 146, 32), DESI (Abareshi et al. 2022, AJ 164, 207), 4MOST low resolution (de Jong et
al. 2019, Messenger 175, 3).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from skyray.config import ConfigError
from skyray.simulate.lines import LIGHT_KMS, add_gaussian
from skyray.transforms.sky_lines import load_sky_lines


@dataclass(frozen=True)
class Pixels:
    """The pixels of one exposure and what falls on them besides the object.

    Attributes
    ----------
    wavelength : float64 [L]
        Vacuum Å.
    log_wavelength : float64 [L]
        Its log10.
    sky : float64 [L]
        Night sky in 1e-17 erg/s/cm²/Å, typical level.
    throughput : float64 [L]
        Relative to the peak.
    lines : bool [L]
        True on bright sky lines.
    """

    wavelength: np.ndarray
    log_wavelength: np.ndarray
    sky: np.ndarray
    throughput: np.ndarray
    lines: np.ndarray

    def cut(self, first: int, last: int) -> Pixels:
        """Return a range of the pixels."""
        part = slice(first, last)
        return Pixels(self.wavelength[part], self.log_wavelength[part], self.sky[part],
                      self.throughput[part], self.lines[part])  # fmt: skip


@dataclass(frozen=True)
class Instrument:
    """A spectrograph.

    Attributes
    ----------
    name : str
    resolution : float
        λ/FWHM, taken as constant.
    pixels : Pixels
        Everything it can record.
    log_grid : bool
        Whether pixels are equal in log λ (SDSS) or in λ.
    joints : tuple of float
        Å where the arms meet.
    noise_floor : float
        Median σ per pixel of a sky-limited exposure, 1e-17 erg/s/cm²/Å.
    """

    name: str
    resolution: float
    pixels: Pixels
    log_grid: bool
    joints: tuple[float, ...]
    noise_floor: float

    @property
    def lsf_kms(self) -> float:
        """σ of the line-spread function in km/s."""
        return LIGHT_KMS / self.resolution / 2.3548

    def exposure(self, rng: np.random.Generator) -> Pixels:
        """Return the pixels of one spectrum.

        SDSS spectra begin and end where fibre and plate put them: BOSS near 3570 Å and 10380 Å,
        one in five like the first spectrographs near 3810 Å and 9210 Å; always whole steps of
        1e-4 dex from 3.55. The others have fixed pixels.
        """
        if self.name != "sdss":
            return self.pixels
        if rng.random() < 0.2:
            first = int(rng.integers(295, 336))
            return self.pixels.cut(first, first + int(rng.integers(3815, 3855)))
        return self.pixels.cut(int(rng.integers(0, 110)), int(rng.integers(4625, 4665)))


def _throughput(wavelength: np.ndarray, blue: float, red: float, joints) -> np.ndarray:
    """Return a smooth throughput that falls toward both ends and dips where arms meet."""
    rise = 1.0 / (1.0 + np.exp(-(wavelength - blue) / 130.0))
    fall = 1.0 / (1.0 + np.exp((wavelength - red) / 250.0))
    dip = np.ones_like(wavelength)
    for joint in joints:
        dip *= 1.0 - 0.20 * np.exp(-0.5 * ((wavelength - joint) / 70.0) ** 2)
    return rise * fall * dip + 0.015


def _sky(wavelength: np.ndarray, resolution: float) -> np.ndarray:
    """Return the night sky: a continuum that brightens to the red, and lines."""
    level = 1.1 + 0.9 * np.clip((wavelength - 5500.0) / 3500.0, 0.0, 1.5)
    level += 0.25 * np.exp(-0.5 * ((wavelength - 5950.0) / 250.0) ** 2)
    sky = level.copy()
    lines = load_sky_lines()
    for center, relative in zip(lines.wavelength_vacuum, lines.intensity, strict=True):
        sigma = center / resolution / 2.3548
        add_gaussian(sky, wavelength, center, sigma, 7.5 * relative)
    return sky


def _pixels(wavelength: np.ndarray, resolution, blue, red, joints) -> Pixels:
    sky = _sky(wavelength, resolution)
    smooth = np.interp(wavelength, wavelength[::60], np.minimum.reduceat(
        sky, np.arange(0, len(sky), 60))[: len(wavelength[::60])])  # fmt: skip
    return Pixels(
        wavelength, np.log10(wavelength), sky,
        _throughput(wavelength, blue, red, joints), sky > 3.0 * smooth,
    )  # fmt: skip


@lru_cache(maxsize=3)
def instrument(name: str) -> Instrument:
    """Return an instrument by name: ``sdss``, ``desi`` or ``fourmost``.

    Raises
    ------
    ConfigError
        For any other name.
    """
    if name == "sdss":
        wavelength = 10.0 ** (3.55 + 1e-4 * np.arange(4700))
        joints = (6000.0,)
        pixels = _pixels(wavelength, 1950.0, 4000.0, 9700.0, joints)
        return Instrument(name, 1950.0, pixels, True, joints, 0.45)
    if name == "desi":
        wavelength = 3600.0 + 0.8 * np.arange(7781)
        joints = (5780.0, 7570.0)
        pixels = _pixels(wavelength, 3200.0, 3900.0, 9750.0, joints)
        return Instrument(name, 3200.0, pixels, False, joints, 0.4)
    if name == "fourmost":
        wavelength = 3700.0 + 1.0 * np.arange(5801)
        joints = (5400.0, 7050.0)
        pixels = _pixels(wavelength, 5500.0, 4000.0, 9400.0, joints)
        return Instrument(name, 5500.0, pixels, False, joints, 0.4)
    raise ConfigError(f"instrument {name!r}: expected sdss, desi or fourmost")
