"""Galaxies behind a lens: Sérsic profiles with clumps, or pictures of real galaxies.

A source is a function of positions in the source plane (arcsec) that returns surface brightness in
arbitrary units; the simulator scales the lensed image to the wanted signal-to-noise ratio.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from pyarrow.fs import LocalFileSystem
from scipy.ndimage import gaussian_filter, map_coordinates

from skyray.config import ConfigError
from skyray.readers.base import SurveyFile
from skyray.readers.fits_image import fits_image
from skyray.readers.foreign_arrow import read_schema, read_table

Source = Callable[[np.ndarray, np.ndarray], np.ndarray]
_PICTURES = (".png", ".jpg", ".jpeg")
_ARRAYS = (".npy", ".fits", ".fit")
_PICTURE_COLUMNS = ("image_jpeg", "image_png", "image")


@dataclass(frozen=True)
class Sersic:
    """An elliptical Sérsic profile: exp(−b (r/R)^(1/n)), total light `flux`."""

    flux: float
    radius_arcsec: float
    index: float
    e1: float
    e2: float
    x: float
    y: float

    def __call__(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        angle = 0.5 * np.arctan2(self.e2, self.e1)
        strength = min(np.hypot(self.e1, self.e2), 0.9)
        ratio = (1.0 - strength) / (1.0 + strength)
        dx, dy = x - self.x, y - self.y
        along = dx * np.cos(angle) + dy * np.sin(angle)
        across = dy * np.cos(angle) - dx * np.sin(angle)
        radius = np.sqrt(ratio * along**2 + across**2 / ratio) / self.radius_arcsec
        b = 1.9992 * self.index - 0.3271  # Capaccioli 1989, 0.5 < n < 10
        profile = np.exp(-b * np.maximum(radius, 1e-6) ** (1.0 / self.index))
        return self.flux / self.radius_arcsec**2 * profile


def draw_sersic_galaxy(
    rng: np.random.Generator,
    radii_arcsec: tuple[float, float],
    indices: tuple[float, float],
    clumps: int,
    offset_arcsec: float,
) -> Source:
    """Draw a disc with up to `clumps` star-forming knots, within ±`offset_arcsec` of the axis."""
    x, y = rng.uniform(-offset_arcsec, offset_arcsec, 2)
    radius, index = rng.uniform(*radii_arcsec), rng.uniform(*indices)
    strength, angle = rng.uniform(0.0, 0.35), rng.uniform(0.0, np.pi)
    e1, e2 = strength * np.cos(2 * angle), strength * np.sin(2 * angle)
    parts = [Sersic(1.0, radius, index, e1, e2, x, y)]
    for _ in range(rng.integers(0, clumps + 1)):
        far, turn = radius * rng.uniform(0.3, 1.5), rng.uniform(0.0, 2 * np.pi)
        parts.append(
            Sersic(rng.uniform(0.02, 0.1), radius * rng.uniform(0.1, 0.25), 1.0, 0.0, 0.0,
                   x + far * np.cos(turn), y + far * np.sin(turn))
        )  # fmt: skip
    return lambda bx, by: sum(part(bx, by) for part in parts)


@dataclass(frozen=True)
class Picture:
    """A picture of a galaxy laid on the source plane, centred at (x, y) and turned by `angle`."""

    light: np.ndarray
    pixel_arcsec: float
    angle: float
    x: float
    y: float

    def __call__(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        dx, dy = (x - self.x) / self.pixel_arcsec, (y - self.y) / self.pixel_arcsec
        column = dx * np.cos(self.angle) + dy * np.sin(self.angle)
        row = dy * np.cos(self.angle) - dx * np.sin(self.angle)
        middle = [0.5 * (size - 1) for size in self.light.shape]
        return map_coordinates(self.light, [row + middle[0], column + middle[1]], order=1)


class Gallery:
    """Pictures of real galaxies from a folder (PNG, JPEG, npy, FITS) or a Parquet file.

    Each is masked by a Gaussian and smoothed, so that neighbours and noise are not lensed with the
    galaxy (Alexander et al. 2022, §2).

    Raises
    ------
    ConfigError
        If the path holds no pictures.
    """

    def __init__(self, path: Path, mask_sigma: float = 0.2, smoothing_pixels: float = 2.0):
        self._mask_sigma, self._smoothing = mask_sigma, smoothing_pixels
        self._read = _reader(path)
        self.size = len(self._read)
        if not self.size:
            raise ConfigError(
                f"{path}: expected pictures ({', '.join(_PICTURES + _ARRAYS)}) or a Parquet file "
                f"with a column {' or '.join(_PICTURE_COLUMNS)}, found none"
            )

    def draw(self, rng: np.random.Generator, size_arcsec: float, offset_arcsec: float) -> Source:
        """Draw a galaxy, turned at random; its picture is `size_arcsec` wide."""
        light = self.prepared(int(rng.integers(self.size)))
        x, y = rng.uniform(-offset_arcsec, offset_arcsec, 2)
        return Picture(light, size_arcsec / light.shape[1], rng.uniform(0, 2 * np.pi), x, y)

    @lru_cache(maxsize=4096)  # noqa: B019 - a gallery lives as long as its simulator
    def prepared(self, index: int) -> np.ndarray:
        """Return picture `index` without its sky, masked and smoothed, float32 [H, W], sum 1."""
        light = self._read[index]
        edge = np.concatenate([light[0], light[-1], light[:, 0], light[:, -1]])
        light = np.maximum(light - np.median(edge), 0.0)
        rows, columns = (np.linspace(-0.5, 0.5, size) for size in light.shape)
        square = rows[:, None] ** 2 + columns[None, :] ** 2
        light = light * np.exp(-0.5 * square / self._mask_sigma**2)
        light = gaussian_filter(light, self._smoothing)
        return (light / max(float(light.sum()), 1e-12)).astype(np.float32)


class _Files:
    def __init__(self, paths: list[Path]):
        self._paths = paths

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> np.ndarray:
        path = self._paths[index]
        if path.suffix.lower() in _PICTURES:
            return _grey(path.read_bytes())
        if path.suffix.lower() == ".npy":
            return _plane(np.load(path, allow_pickle=False))
        return _plane(fits_image(SurveyFile(LocalFileSystem(), str(path)))[0])


class _Rows:
    def __init__(self, path: Path):
        names = read_schema(path).names
        column = next((name for name in _PICTURE_COLUMNS if name in names), None)
        self._bytes = [] if column is None else read_table(path, columns=[column])[column]

    def __len__(self) -> int:
        return len(self._bytes)

    def __getitem__(self, index: int) -> np.ndarray:
        return _grey(self._bytes[index].as_py())


def _reader(path: Path) -> _Files | _Rows:
    if not path.exists():
        raise ConfigError(f"{path}: expected a folder or a Parquet file of pictures: no such path")
    if path.is_file() and path.suffix == ".parquet":
        return _Rows(path)
    found = [path] if path.is_file() else sorted(path.rglob("*"))
    return _Files([p for p in found if p.suffix.lower() in _PICTURES + _ARRAYS])


def _grey(content: bytes) -> np.ndarray:
    from PIL import Image

    with Image.open(io.BytesIO(content)) as picture:
        return np.asarray(picture.convert("L"), dtype=np.float64)


def _plane(values: np.ndarray) -> np.ndarray:
    values = np.nan_to_num(np.asarray(values, dtype=np.float64))
    return values if values.ndim == 2 else values.reshape(-1, *values.shape[-2:]).mean(axis=0)
