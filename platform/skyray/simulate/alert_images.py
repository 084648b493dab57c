"""The three stamps of a mock alert: science, template, difference, and the faults of differencing.

Calibrated on stamps of the public ZTF stream: science and template share their background (about
165 DN), a template is six times deeper, the difference has mean 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import shift

from skyray.simulate.alert_sources import SourceModel, StaticObject
from skyray.simulate.sky_images import galaxies_image, moffat_image

SIZE = 63
_GAIN = 6.2  # electrons per DN
_TEMPLATE_DEPTH = 6.0
# Real noise per pixel is about half of what the stated limiting magnitude allows for.
_NOISE_SHARE = 0.5


@dataclass(frozen=True)
class Visit:
    """An exposure: when, in which band, how deep and how sharp.

    `limit` is the 5 σ magnitude of a point source, `fwhm` in pixels, `zero_point` of DN.
    """

    jd: float
    band: int
    limit: float
    fwhm: float
    zero_point: float
    background: float

    def counts(self, flux: float) -> float:
        """Return DN of a flux 10^(−0.4 mag)."""
        return flux * 10 ** (0.4 * self.zero_point)

    @property
    def flux_error(self) -> float:
        """1 σ of a point source's flux, in flux."""
        return 10 ** (-0.4 * self.limit) / 5.0

    @property
    def pixel_noise(self) -> float:
        """1 σ of a pixel of the empty sky, DN."""
        noise_area = 4 * np.pi * (self.fwhm / 2.355) ** 2
        return _NOISE_SHARE * self.counts(self.flux_error) / np.sqrt(noise_area)


def scene_image(scene: Sequence[StaticObject], band: int, fwhm: float, size: int) -> np.ndarray:
    """Return the flux of stars and galaxies per pixel; `band` 1 g, 2 r, 3 z."""
    image, galaxies = np.zeros((size, size)), []
    for item in scene:
        flux = 10 ** (-0.4 * item.mag[band - 1])
        if item.shape is None:
            image += flux * moffat_image(size, fwhm, item.x, item.y)
        else:
            galaxies.append((flux, item.x, item.y, item.shape))
    return image + galaxies_image(size, galaxies, fwhm)


def draw_stamps(
    source: SourceModel, visit: Visit, flux: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return science, template and difference, float32 [height, width], in DN.

    Parameters
    ----------
    flux : float
        Of the change, in the units of `SourceModel.curve`.
    """
    noise = visit.pixel_noise
    static = visit.counts(1.0) * scene_image(source.scene, visit.band, visit.fwhm, SIZE)
    sharp = float(rng.uniform(1.6, 2.4))
    reference = visit.counts(1.0) * scene_image(source.scene, visit.band, sharp, SIZE)
    change = _change(source.kind, visit, flux, rng)
    light = np.clip(static + change, 0, None)
    science = static + change + rng.normal(0, np.sqrt(noise**2 + light / _GAIN))
    template_noise = np.sqrt(noise**2 + np.clip(reference, 0, None) / _GAIN) / _TEMPLATE_DEPTH
    template = reference + rng.normal(0, template_noise)
    matched = shift(static, _misregistration(source.kind, rng), order=3, mode="nearest")
    scale = 1 + rng.normal(0, 0.004)
    difference = science - scale * matched + rng.normal(0, noise / _TEMPLATE_DEPTH, science.shape)
    stamps = [science + visit.background, template + visit.background, difference]
    if source.kind == "edge" or rng.random() < 0.02:
        stamps = _at_edge(stamps, source.kind == "edge", noise, rng)
    science, template, difference = (stamp.astype(np.float32) for stamp in stamps)
    return science, template, difference


def _change(kind: str, visit: Visit, flux: float, rng: np.random.Generator) -> np.ndarray:
    """Return what the science image has and the reference has not, DN [SIZE, SIZE]."""
    counts = visit.counts(flux)
    if kind in ("dipole", "edge"):  # these come from the subtraction alone
        return np.zeros((SIZE, SIZE))
    if kind == "hot_pixel":
        image = np.zeros((SIZE, SIZE))
        image[SIZE // 2, SIZE // 2] = counts
        if rng.random() < 0.5:
            image[:, SIZE // 2] += counts * rng.uniform(0.02, 0.1)
        return image
    if kind in ("cosmic_ray", "streak"):
        length = rng.uniform(2, 12) if kind == "cosmic_ray" else 90.0
        width = 0.35 if kind == "cosmic_ray" else visit.fwhm / 2.355
        return _line(counts, length, width, rng)
    if kind == "moving":  # trailed by a few tenths of a pixel at most in 30 s
        return counts * moffat_image(SIZE, visit.fwhm * rng.uniform(1.0, 1.08))
    x, y = rng.normal(0, 0.08, 2)
    return counts * moffat_image(SIZE, visit.fwhm, x, y)


def _line(counts: float, length: float, width: float, rng: np.random.Generator) -> np.ndarray:
    at = np.arange(SIZE) - SIZE // 2
    turn = rng.uniform(0, np.pi)
    along = np.cos(turn) * at[None, :] + np.sin(turn) * at[:, None]
    across = -np.sin(turn) * at[None, :] + np.cos(turn) * at[:, None]
    profile = np.exp(-0.5 * (across / width) ** 2) * (np.abs(along) <= length / 2)
    return counts * profile / max(profile.sum() * min(1.0, 12 / length), 1e-9)


def _misregistration(kind: str, rng: np.random.Generator) -> np.ndarray:
    if kind != "dipole":
        return rng.normal(0, 0.02, 2)
    turn, size = rng.uniform(0, 2 * np.pi), rng.uniform(0.15, 0.7)
    return size * np.array([np.sin(turn), np.cos(turn)])


def _at_edge(
    stamps: list[np.ndarray], faulty: bool, noise: float, rng: np.random.Generator
) -> list[np.ndarray]:
    """Cut stamps at a detector's edge; a faulty one shows an excess of light along it."""
    lost, side, axis = int(rng.integers(4, 29)), int(rng.integers(2)), int(rng.integers(2))
    if faulty:
        at = np.arange(SIZE) - lost if side else SIZE - 1 - lost - np.arange(SIZE)
        excess = noise * rng.uniform(6, 30) * np.exp(-np.abs(at) / rng.uniform(2, 8))
        excess = excess[:, None] if axis == 0 else excess[None, :]
        sign = rng.choice([-1.0, 1.0])
        stamps = [stamps[0] + sign * excess, stamps[1], stamps[2] + sign * excess]
    kept = slice(lost, None) if side else slice(None, SIZE - lost)
    return [stamp[kept] if axis == 0 else stamp[:, kept] for stamp in stamps]
