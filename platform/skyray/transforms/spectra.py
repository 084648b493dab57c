"""Spectrum → network input: grids, masks, normalisation, air and vacuum. Pure numpy.

Shape suffixes: B batch, L pixels of the dataset's grid, P pixels of the network's grid.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from skyray.records import Grid, Spectrum

# A pixel lies on the grid when it is nearer than this fraction of a step (float32 wavelengths of
# SDSS files are rounded by up to 1e-3 of a pixel).
_ALIGNED = 0.02


def air_to_vacuum(wavelength_angstrom: np.ndarray) -> np.ndarray:
    """Convert air to vacuum wavelengths, Å (Ciddor 1996 in the form of Morton 2000, as VALD)."""
    air = np.asarray(wavelength_angstrom, dtype=np.float64)
    s2 = (1e4 / air) ** 2
    factor = (
        1.0
        + 0.00008336624212083
        + 0.02408926869968 / (130.1065924522 - s2)
        + 0.0001599740894897 / (38.92568793293 - s2)
    )
    return np.where(air > 2000.0, air * factor, air)


def vacuum_to_air(wavelength_angstrom: np.ndarray) -> np.ndarray:
    """Convert vacuum to air wavelengths, Å (Morton 2000, eq. 8). Unchanged below 2000 Å."""
    vacuum = np.asarray(wavelength_angstrom, dtype=np.float64)
    s2 = (1e4 / vacuum) ** 2
    factor = 1.0 + 0.0000834254 + 0.02406147 / (130.0 - s2) + 0.00015998 / (38.9 - s2)
    return np.where(vacuum > 2000.0, vacuum / factor, vacuum)


def place_on_grid(spectrum: Spectrum, grid: Grid) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Bring one spectrum onto `grid`.

    Pixels already on the grid are copied unchanged. Others are interpolated linearly in flux with
    the variance propagated; a grid pixel that touches an unmeasured neighbour is unmeasured.
    Outside the spectrum flux and ivar are 0.

    Returns
    -------
    flux, ivar : float32 [L]
    mask : uint8 [L]
        1 where the survey flags the pixel or nothing was measured.
    """
    wavelength = np.asarray(spectrum.wavelength, dtype=np.float64)
    axis = wavelength if grid.kind == "linear" else np.log10(wavelength)
    position = (axis - grid.start) / grid.step
    nearest = np.rint(position)
    if np.abs(position - nearest).max() < _ALIGNED and (np.diff(nearest) > 0).all():
        return _copy_aligned(spectrum, nearest.astype(np.int64), grid)
    return _interpolate(spectrum, position, grid)


def _copy_aligned(spectrum: Spectrum, index: np.ndarray, grid: Grid):
    flux, ivar = np.zeros((2, grid.size), dtype=np.float32)
    mask = np.ones(grid.size, dtype=np.uint8)
    inside = (index >= 0) & (index < grid.size)
    target = index[inside]
    flux[target] = np.nan_to_num(spectrum.flux[inside], posinf=0.0, neginf=0.0)
    ivar[target] = spectrum.ivar[inside]
    mask[target] = np.asarray(spectrum.mask, dtype=bool)[inside] | (spectrum.ivar[inside] <= 0)
    return flux, ivar, mask


def _interpolate(spectrum: Spectrum, position: np.ndarray, grid: Grid):
    pixels = np.arange(grid.size, dtype=np.float64)
    inside = (pixels >= position[0]) & (pixels <= position[-1])
    right = np.clip(np.searchsorted(position, pixels, side="left"), 1, len(position) - 1)
    left = right - 1
    weight = (pixels - position[left]) / (position[right] - position[left])
    weight = np.clip(weight, 0.0, 1.0)
    source_flux = np.nan_to_num(spectrum.flux, posinf=0.0, neginf=0.0).astype(np.float64)
    source_ivar = np.asarray(spectrum.ivar, dtype=np.float64)
    variance = np.divide(1.0, source_ivar, out=np.full_like(source_ivar, np.inf),
                         where=source_ivar > 0)  # fmt: skip
    flux = (1 - weight) * source_flux[left] + weight * source_flux[right]
    with np.errstate(invalid="ignore"):
        spread = np.where(weight < 1, (1 - weight) ** 2 * variance[left], 0.0) + np.where(
            weight > 0, weight**2 * variance[right], 0.0
        )
    ivar = np.where(np.isfinite(spread) & inside, 1.0 / spread, 0.0)
    bad = np.asarray(spectrum.mask, dtype=bool)
    flagged = (bad[left] & (weight < 1)) | (bad[right] & (weight > 0))
    flux = np.where(inside, flux, 0.0)
    mask = flagged | (ivar <= 0)
    return flux.astype(np.float32), ivar.astype(np.float32), mask.astype(np.uint8)


def inpaint(flux_BL: np.ndarray, bad_BL: np.ndarray) -> np.ndarray:
    """Replace bad pixels by linear interpolation between their good neighbours, float32 [B, L].

    Before the first and after the last good pixel the nearest good value is repeated. A row
    without any good pixel becomes 0.
    """
    flux = np.array(flux_BL, dtype=np.float32, copy=True)
    pixels = np.arange(flux.shape[1])
    for row, bad in zip(flux, np.asarray(bad_BL, dtype=bool), strict=True):
        if bad.all():
            row[:] = 0.0
        elif bad.any():
            row[bad] = np.interp(pixels[bad], pixels[~bad], row[~bad])
    return flux


@dataclass(frozen=True)
class LinearResampler:
    """Linear interpolation from one grid to another with the indices computed once.

    Outside the source grid the nearest edge value is repeated.
    """

    left_P: np.ndarray
    weight_P: np.ndarray

    @classmethod
    def between(cls, source: Grid, target: Grid) -> LinearResampler:
        wavelength = target.wavelength()
        axis = wavelength if source.kind == "linear" else np.log10(wavelength)
        position = np.clip((axis - source.start) / source.step, 0, source.size - 1)
        left = np.minimum(np.floor(position).astype(np.int64), source.size - 2)
        return cls(left, (position - left).astype(np.float32))

    def __call__(self, flux_BL: np.ndarray) -> np.ndarray:
        """Return flux on the target grid, float32 [B, P]."""
        low = flux_BL[:, self.left_P]
        return low + self.weight_P * (flux_BL[:, self.left_P + 1] - low)


def unit_rms(flux_BP: np.ndarray) -> np.ndarray:
    """Scale each spectrum to unit root-mean-square: √P · y / ‖y‖₂ (GaSNet-II, eq. 2).

    A spectrum of zeros stays zeros. float32 [B, P], the norm accumulated in float64.
    """
    power = np.mean(np.square(flux_BP, dtype=np.float64), axis=1, keepdims=True)
    scale = np.divide(1.0, np.sqrt(power), out=np.zeros_like(power), where=power > 0)
    return (flux_BP * scale).astype(np.float32)


def median_snr(flux: np.ndarray, ivar: np.ndarray, mask: np.ndarray) -> float:
    """Return the median of flux·√ivar over the good pixels of one spectrum, NaN without any."""
    good = (np.asarray(ivar) > 0) & ~np.asarray(mask, dtype=bool)
    return float(np.median(flux[good] * np.sqrt(ivar[good]))) if good.any() else float("nan")
