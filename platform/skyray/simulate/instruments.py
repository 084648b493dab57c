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
from skyray.transforms.spectra import air_to_vacuum

# Air wavelengths and relative strengths of night-sky lines (Osterbrock et al. 1996), moonless.
SKY_LINES = [
    (4046.6, 0.5), (4358.3, 1.0), (5460.7, 1.0), (5577.3, 26.0), (5683.0, 0.6), (5890.0, 2.5),
    (5895.9, 1.5), (6300.3, 7.0), (6363.8, 2.5), (6498.7, 0.9), (6533.0, 1.2), (6553.6, 0.9),
    (6863.9, 2.0), (6912.6, 1.0), (6923.2, 1.3), (6939.5, 1.0), (7244.9, 2.2), (7276.4, 4.5),
    (7284.4, 1.8), (7303.7, 2.0), (7316.3, 5.0), (7329.1, 1.6), (7340.9, 4.5), (7358.7, 1.5),
    (7369.2, 2.5), (7402.0, 1.8), (7524.0, 1.7), (7571.7, 2.3), (7712.0, 2.6), (7716.0, 2.2),
    (7750.6, 6.0), (7780.0, 1.5), (7794.1, 6.0), (7808.5, 3.0), (7821.5, 6.0), (7841.3, 4.5),
    (7853.2, 2.5), (7870.7, 2.0), (7890.0, 1.6), (7913.7, 9.0), (7921.0, 3.0), (7949.2, 5.0),
    (7964.6, 9.0), (7993.3, 8.0), (8014.0, 2.6), (8025.8, 6.0), (8052.0, 3.5), (8062.0, 2.0),
    (8104.0, 2.0), (8281.0, 2.6), (8298.0, 2.6), (8344.6, 11.0), (8352.8, 3.5), (8382.4, 5.0),
    (8399.2, 12.0), (8415.2, 5.0), (8430.2, 11.0), (8452.3, 7.0), (8465.4, 6.5), (8493.4, 5.5),
    (8504.6, 3.5), (8538.7, 2.5), (8548.7, 1.6), (8761.4, 3.0), (8767.9, 6.0), (8778.3, 4.5),
    (8791.2, 5.0), (8824.0, 1.7), (8827.1, 8.0), (8836.0, 3.5), (8849.0, 3.5), (8867.6, 7.0),
    (8885.9, 12.0), (8903.1, 8.0), (8919.6, 12.0), (8943.4, 6.0), (8958.1, 9.0), (8988.4, 5.0),
    (9001.1, 5.0), (9038.1, 4.0), (9049.0, 2.2), (9313.0, 7.0), (9337.9, 8.0), (9375.9, 10.0),
    (9399.7, 6.0), (9419.7, 6.0), (9439.7, 11.0), (9458.5, 6.0), (9476.8, 8.0), (9502.8, 7.0),
    (9519.2, 7.0), (9552.5, 6.0), (9567.1, 5.0), (9607.0, 4.0), (9620.6, 3.5), (9700.0, 5.0),
    (9720.0, 4.0), (9791.4, 6.0), (9799.8, 4.0), (9872.1, 7.0), (9914.7, 5.0), (9952.0, 5.0),
    (10013.0, 5.0), (10063.0, 4.0), (10082.0, 7.0), (10124.0, 6.0), (10173.0, 6.0), (10213.0, 4.0),
    (10256.0, 4.0), (10288.0, 5.0), (10341.0, 4.0),
]  # fmt: skip


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
    for air, relative in SKY_LINES:
        center = float(air_to_vacuum(np.array([air]))[0])
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
