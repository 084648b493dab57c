"""Spectrum → network input: grids, masks, normalisation, air and vacuum. Pure numpy.

Shape suffixes: B batch, L pixels of the dataset's grid, P pixels of the network's grid.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from skyray.records import Grid, Spectrum
from skyray.transforms.resampling import resample

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

    Pixels already on the grid are copied unchanged; others are resampled (`resample`). Where
    nothing was measured, outside the spectrum and in gaps of its wavelengths, flux and ivar are 0.

    Returns
    -------
    flux, ivar : float32 [L]
    mask : uint8 [L]
        1 where the survey flags the pixel or nothing was measured.
    """
    wavelength = np.asarray(spectrum.wavelength, dtype=np.float64)
    offset = _offset(wavelength, grid)
    if offset is not None:
        return _copy_run(spectrum, offset, grid)
    axis = wavelength if grid.kind == "linear" else np.log10(wavelength)
    position = (axis - grid.start) / grid.step
    nearest = np.rint(position)
    if np.abs(position - nearest).max() < _ALIGNED:
        steps = np.diff(nearest)
        if (steps > 0).all() and np.median(steps) == 1:  # on the grid, some pixels left out
            return _copy_aligned(spectrum, nearest.astype(np.int64), grid)
    bad = np.asarray(spectrum.mask, dtype=bool)
    edges = _grid_edges(grid)
    flux, ivar, flagged = resample(wavelength, spectrum.flux, spectrum.ivar, bad, edges)
    return flux.astype(np.float32), ivar.astype(np.float32), flagged.astype(np.uint8)


def _offset(wavelength: np.ndarray, grid: Grid) -> int | None:
    """Return which grid pixel the first pixel lies on, if every next one lies on the next.

    Cheaper than positions for all pixels, and near the limit of what lies on the grid it says None.
    """
    axis, tolerance = _wide_axis(grid)
    first = wavelength[0] if grid.kind == "linear" else math.log10(max(wavelength[0], 1e-300))
    at = round((first - grid.start) / grid.step) + grid.size
    if not 0 <= at <= len(axis) - len(wavelength):
        return None
    run = slice(at, at + len(wavelength))
    near = np.abs(wavelength - axis[run]) < tolerance[run]
    return at - grid.size if near.all() else None


@lru_cache(maxsize=8)
def _wide_axis(grid: Grid) -> tuple[np.ndarray, np.ndarray]:
    """Return the wavelengths of a grid, one size more to each side, and what counts as on them."""
    axis = grid.start + grid.step * np.arange(-grid.size, 2 * grid.size)
    tolerance = np.full(len(axis), 0.95 * _ALIGNED * grid.step)
    if grid.kind == "log10":
        axis = 10.0**axis
        tolerance *= math.log(10.0) * axis
    return axis, tolerance


@lru_cache(maxsize=8)
def _grid_edges(grid: Grid) -> np.ndarray:
    """Return the edges of a grid's pixels, Å, float64 [L + 1]."""
    axis = grid.start + grid.step * (np.arange(grid.size + 1) - 0.5)
    return axis if grid.kind == "linear" else 10.0**axis


def _copy_run(spectrum: Spectrum, offset: int, grid: Grid):
    """Copy pixels that lie on grid pixels `offset`, `offset` + 1 …"""
    flux, ivar = np.zeros((2, grid.size), dtype=np.float32)
    mask = np.ones(grid.size, dtype=np.uint8)
    begin, end = max(offset, 0), min(offset + len(spectrum.flux), grid.size)
    if begin < end:
        here, there = slice(begin, end), slice(begin - offset, end - offset)
        values, weights = spectrum.flux[there], spectrum.ivar[there]
        np.copyto(flux[here], values, where=np.isfinite(values), casting="same_kind")
        ivar[here] = weights
        mask[here] = np.asarray(spectrum.mask, dtype=bool)[there] | (weights <= 0)
    return flux, ivar, mask


def _copy_aligned(spectrum: Spectrum, index: np.ndarray, grid: Grid):
    flux, ivar = np.zeros((2, grid.size), dtype=np.float32)
    mask = np.ones(grid.size, dtype=np.uint8)
    inside = (index >= 0) & (index < grid.size)
    target = index[inside]
    flux[target] = np.nan_to_num(spectrum.flux[inside], posinf=0.0, neginf=0.0)
    ivar[target] = spectrum.ivar[inside]
    mask[target] = np.asarray(spectrum.mask, dtype=bool)[inside] | (spectrum.ivar[inside] <= 0)
    return flux, ivar, mask


def inpaint(flux_BL: np.ndarray, bad_BL: np.ndarray) -> np.ndarray:
    """Replace bad pixels by linear interpolation between their good neighbours, float32 [B, L].

    Before the first and after the last good pixel the nearest good value is repeated. A row
    without any good pixel becomes 0.
    """
    flux = np.array(flux_BL, dtype=np.float32, copy=True, order="C")
    bad = np.asarray(bad_BL, dtype=bool)
    if bad.shape != flux.shape:
        raise ValueError(f"inpaint: expected bad of shape {flux.shape}, found {bad.shape}")
    index = np.flatnonzero(bad)  # row · L + pixel
    if index.size == 0:
        return flux
    # The work is done run by run: the bad pixels between two good ones share a straight line.
    length = flux.shape[1]
    begins = np.ones(index.size, dtype=bool)
    begins[1:] = (np.diff(index) != 1) | (index[1:] % length == 0)
    first = index[begins]
    counts = np.diff(np.append(np.flatnonzero(begins), index.size))
    after = first + counts
    has_left, has_right = first % length != 0, after % length != 0
    values = flux.reshape(-1)
    low = values[np.where(has_left, first - 1, 0)].astype(np.float64)
    high = values[np.where(has_right, after, 0)].astype(np.float64)
    low = np.where(has_left, low, np.where(has_right, high, 0.0))
    high = np.where(has_right, high, low)
    slope = (high - low) / (counts + 1)
    steps = index - np.repeat(first - 1, counts)
    values[index] = np.repeat(low, counts) + np.repeat(slope, counts) * steps
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
        # np.take keeps rows contiguous: sums along them then do not depend on the batch
        low = np.take(flux_BL, self.left_P, axis=1)
        return low + self.weight_P * (np.take(flux_BL, self.left_P + 1, axis=1) - low)


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


def ivar_of_error(error: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Turn 1 σ errors into inverse variances, float64.

    An error of 0, and any that is not finite at a masked pixel, means unmeasured: ivar 0. Others
    that make no sense stay visible for `check_spectrum`: NaN stays NaN, a negative error gives a
    negative ivar.
    """
    error = np.asarray(error, dtype=np.float64)
    with np.errstate(over="ignore", divide="ignore"):
        ivar = np.divide(np.sign(error), error**2, out=np.zeros_like(error), where=error != 0)
    unmeasured = np.asarray(mask, dtype=bool) & ~np.isfinite(ivar)
    return np.where(unmeasured, 0.0, ivar)


def coadd_arms(
    grid: Grid,
    arms: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]],
    min_ivar: float = 1e-6,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Co-add the arms of a spectrograph on one grid, weighted by ivar where nothing is masked.

    Parameters
    ----------
    grid : Grid
        Linear grid that every arm's pixels lie on.
    arms : sequence of (wavelength [P] Å, flux [..., P], ivar [..., P], mask [..., P])
        Leading axes (spectra) must agree. A pixel with mask ≠ 0 or ivar ≤ 0 carries no weight.
    min_ivar : float
        Sums up to this become 0 (as in the SPENDER pipeline for DESI).

    Returns
    -------
    flux : float32 [..., L]
        Σ ivar·flux / Σ ivar; 0 where nothing was measured.
    ivar : float32 [..., L]
        Σ ivar.
    mask : bool [..., L]
        True where nothing was measured.

    Raises
    ------
    ValueError
        If an arm's wavelengths do not lie on the grid.
    """
    if grid.kind != "linear":
        raise ValueError(f"coadd_arms: expected a linear grid, found {grid.kind!r}")
    lead = np.shape(arms[0][1])[:-1]
    total, weighted = np.zeros((2, *lead, grid.size))
    for wavelength, flux, ivar, mask in arms:
        index = _aligned_index(wavelength, grid)
        inside = (index >= 0) & (index < grid.size)
        weight = np.where((np.asarray(mask) == 0) & (np.asarray(ivar) > 0), ivar, 0.0)
        signal = np.where(weight > 0, np.asarray(flux, dtype=np.float64), 0.0) * weight
        # An arm's indices are distinct, so += through an index array adds every pixel once.
        total[..., index[inside]] += weight[..., inside]
        weighted[..., index[inside]] += signal[..., inside]
    total[total <= min_ivar] = 0.0
    flux = np.divide(weighted, total, out=np.zeros_like(total), where=total > 0)
    return flux.astype(np.float32), total.astype(np.float32), total <= 0


def _aligned_index(wavelength: np.ndarray, grid: Grid) -> np.ndarray:
    position = (np.asarray(wavelength, dtype=np.float64) - grid.start) / grid.step
    index = np.rint(position)
    if not np.abs(position - index).max() <= _ALIGNED or (np.diff(index) <= 0).any():
        raise ValueError(
            f"coadd_arms: expected wavelengths on the grid {grid}, found "
            f"{wavelength[0]:.3f} to {wavelength[-1]:.3f} Å, {len(wavelength)} pixels"
        )
    return index.astype(np.int64)
