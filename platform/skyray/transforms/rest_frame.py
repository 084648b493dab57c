"""Rest-frame normalisation and resampling, co-adding of neighbouring pixels. Pure numpy.

Shape suffixes: B batch, L observed pixels, R rest-frame pixels, M groups of pixels.
"""

from __future__ import annotations

import numpy as np

from skyray.records import Grid


def rest_median(
    flux_BL: np.ndarray,
    good_BL: np.ndarray,
    wavelength_L: np.ndarray,
    z_B: np.ndarray,
    low: float = 5300.0,
    high: float = 5850.0,
    min_pixels: int = 10,
) -> np.ndarray:
    """Return the median flux of each spectrum in a rest-frame window, float64 [B].

    The norm of Liang et al. (2023), who use 5300–5850 Å: quiet in galaxies, and observed at all
    redshifts below 0.8 of DESI.

    Parameters
    ----------
    flux_BL : float [B, L]
    good_BL : bool [B, L]
        Pixels that count; those whose flux is not finite never do.
    wavelength_L : float [L]
        Observed vacuum Å, strictly increasing.
    z_B : float [B]
        Redshifts.
    low, high : float
        Rest-frame Å, both ends included.
    min_pixels : int
        With fewer good pixels in the window the result is NaN, as it is where z is not finite.

    Raises
    ------
    ValueError
        If shapes do not fit or the window is empty.
    """
    flux, wavelength, redshift = (np.asarray(a) for a in (flux_BL, wavelength_L, z_B))
    shape = (redshift.size, wavelength.size)
    if flux.shape != shape or np.shape(good_BL) != shape:
        raise ValueError(
            f"rest_median: expected flux and good of shape {shape}, "
            f"found {flux.shape} and {np.shape(good_BL)}"
        )
    if not low < high:
        raise ValueError(f"rest_median: expected low < high, found {low}, {high}")
    factor = 1.0 + redshift.astype(np.float64)
    known = np.isfinite(factor) & (factor > 0)
    factor = np.where(known, factor, 1.0)
    first = np.searchsorted(wavelength, low * factor, side="left")
    last = np.where(known, np.searchsorted(wavelength, high * factor, side="right"), first)
    # Only the window is gathered: at z = 0 it is a tenth of the pixels of a DESI spectrum.
    width = int((last - first).max(initial=0))
    if width == 0:
        return np.full(redshift.size, np.nan)
    index = first[:, None] + np.arange(width)
    inside = index < last[:, None]
    index = np.minimum(index, wavelength.size - 1)
    part = np.take_along_axis(flux, index, axis=1).astype(np.float64)
    used = inside & np.take_along_axis(np.asarray(good_BL, dtype=bool), index, axis=1)
    used &= np.isfinite(part)
    ordered = np.sort(np.where(used, part, np.inf), axis=1)  # unused pixels go to the end
    count = used.sum(axis=1)
    row = np.arange(redshift.size)
    at = np.maximum(count - 1, 0)
    median = 0.5 * (ordered[row, at // 2] + ordered[row, (at + 1) // 2])
    return np.where(count >= max(min_pixels, 1), median, np.nan)


def to_rest_frame(
    flux_BL: np.ndarray,
    ivar_BL: np.ndarray,
    wavelength_L: np.ndarray,
    z_B: np.ndarray,
    rest_R: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Interpolate spectra linearly at rest-frame wavelengths, with the variance propagated.

    Parameters
    ----------
    flux_BL, ivar_BL : float [B, L]
        ivar 0 where nothing was measured.
    wavelength_L : float [L]
        Observed vacuum Å, strictly increasing.
    z_B : float [B]
    rest_R : float [R]
        Rest-frame Å.

    Returns
    -------
    flux, ivar : float32 [B, R]
        Flux at observed wavelength rest · (1 + z), not scaled by 1 + z. Both are 0 outside the
        spectrum, next to an unmeasured pixel and where z is not finite.
    """
    flux, ivar = np.asarray(flux_BL), np.asarray(ivar_BL)
    wavelength, rest = np.asarray(wavelength_L, np.float64), np.asarray(rest_R, np.float64)
    redshift = np.asarray(z_B, dtype=np.float64)
    if flux.shape != (redshift.size, wavelength.size) or ivar.shape != flux.shape:
        raise ValueError(
            f"to_rest_frame: expected flux and ivar of shape {(redshift.size, wavelength.size)}, "
            f"found {flux.shape} and {ivar.shape}"
        )
    out_flux, out_ivar = np.zeros((2, redshift.size, rest.size), dtype=np.float32)
    for row in np.flatnonzero(np.isfinite(redshift)):
        at = rest * (1.0 + redshift[row])
        right = np.clip(np.searchsorted(wavelength, at), 1, wavelength.size - 1)
        left = right - 1
        t = (at - wavelength[left]) / (wavelength[right] - wavelength[left])
        low, high = ivar[row, left], ivar[row, right]
        used = (t >= 0) & (t <= 1) & (low > 0) & (high > 0)
        t, left, right, low, high = (a[used] for a in (t, left, right, low, high))
        out_flux[row, used] = (1 - t) * flux[row, left] + t * flux[row, right]
        out_ivar[row, used] = 1.0 / ((1 - t) ** 2 / low + t**2 / high)
    return out_flux, out_ivar


def rebin(flux_BL: np.ndarray, ivar_BL: np.ndarray, factor: int) -> tuple[np.ndarray, np.ndarray]:
    """Co-add groups of `factor` neighbouring pixels, weighted by ivar.

    Parameters
    ----------
    flux_BL, ivar_BL : float [B, L]
        ivar 0 where a pixel must not count; its flux may be anything.
    factor : int
        ≥ 1. The pixels left over at the red end are dropped: M = L // factor.

    Returns
    -------
    flux : float32 [B, M]
        Σ ivar·flux / Σ ivar; 0 for a group without weight.
    ivar : float32 [B, M]
        Σ ivar.

    Raises
    ------
    ValueError
        If `factor` is < 1 or > L, or the shapes differ.
    """
    flux, ivar = np.asarray(flux_BL), np.asarray(ivar_BL)
    if flux.ndim != 2 or flux.shape != ivar.shape:
        raise ValueError(f"rebin: expected two arrays [B, L], found {flux.shape}, {ivar.shape}")
    _check_factor(factor, flux.shape[1])
    if factor == 1:
        return np.where(ivar > 0, flux, 0).astype(np.float32), ivar.astype(np.float32)
    groups = flux.shape[1] // factor
    shape = (len(flux), groups, factor)
    weight = ivar[:, : groups * factor].reshape(shape)
    signal = np.where(weight > 0, flux[:, : groups * factor].reshape(shape), 0)
    total = weight.sum(axis=2, dtype=np.float64)
    weighted = np.einsum("bmk,bmk->bm", signal, weight, dtype=np.float64)
    out = np.divide(weighted, total, out=np.zeros_like(total), where=total > 0)
    return out.astype(np.float32), total.astype(np.float32)


def rebin_grid(grid: Grid, factor: int) -> Grid:
    """Return the grid of `rebin`'s pixels: their centres, in Å or log10 Å as `grid`.

    Raises
    ------
    ValueError
        If `factor` is < 1, or fewer than two pixels would be left.
    """
    _check_factor(factor, grid.size)
    start = grid.start + 0.5 * (factor - 1) * grid.step
    return Grid(grid.kind, start, grid.step * factor, grid.size // factor)


def _check_factor(factor: int, size: int) -> None:
    if not 1 <= factor <= size:
        raise ValueError(f"rebin: expected 1 ≤ factor ≤ {size}, found {factor}")
