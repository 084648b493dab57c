"""Spectra onto other pixels: flux-conserving where pixels grow, interpolated where they shrink.

A target pixel at least as wide as the source's is the mean of what it covers, weighted by the
lengths covered, with the variance of that sum: flux in a line and noise are kept (as in SpectRes,
Carnall 2017, arXiv:1705.05165). A narrower one is interpolated linearly between two neighbours. At
equal widths both are the same. ivar is that of the single pixel; neighbours that share source
pixels are correlated.

Where nothing was measured nothing is made up: a gap in the wavelengths stays one. A target pixel is
good where more than half of it is covered by good pixels, and holds those alone; an interpolated
one where both neighbours are good. Else it is bad, and holds what was measured, if more than half.
"""

from __future__ import annotations

import numpy as np

_GAP = 1.5  # steps longer than this many of those around are gaps
_WINDOW = 9  # steps that are "around"
_COVERED = 0.5 + 1e-6
_NARROWER = 1 - 1e-4


def resample(
    wavelength: np.ndarray,
    flux: np.ndarray,
    ivar: np.ndarray,
    bad: np.ndarray,
    edges: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return flux, ivar (float64 [L]) and what is bad (bool [L]) on pixels between `edges`.

    Parameters
    ----------
    wavelength : float64 [P]
        Å, strictly increasing: the centres of the source's pixels.
    flux, ivar : float [P]
        Flux density per Å and its inverse variance; ivar 0 is unmeasured.
    bad : bool [P]
        Pixels that carry no weight.
    edges : float64 [L + 1]
        Å, strictly increasing.
    """
    source = _Source(wavelength, flux, ivar)
    good = source.measured & ~bad
    value, variance, there = source.onto(edges, good)
    known = there
    if (source.measured & bad).any():
        more, spread, known = source.onto(edges, source.measured)
        value, variance = np.where(there, value, more), np.where(there, variance, spread)
        known |= there
    ivar_out = np.divide(1.0, variance, out=np.zeros(len(variance)), where=known)
    return np.where(known, value, 0.0), ivar_out, ~there


class _Source:
    """Pixels to be resampled."""

    def __init__(self, wavelength: np.ndarray, flux: np.ndarray, ivar: np.ndarray):
        self.wavelength = wavelength
        self.left, self.right = pixel_edges(wavelength)
        self.measured = (ivar > 0) & np.isfinite(flux)
        self.values = np.where(self.measured, flux, 0.0).astype(np.float64)
        weight = np.asarray(ivar, dtype=np.float64)
        self.variance = np.divide(1.0, weight, out=np.zeros(len(weight)), where=self.measured)

    def onto(self, edges: np.ndarray, used: np.ndarray) -> tuple[np.ndarray, ...]:
        """Return value and variance of each target pixel, and whether they hold."""
        centres, width = (edges[1:] + edges[:-1]) / 2, np.diff(edges)
        after = np.clip(np.searchsorted(self.wavelength, centres), 1, len(self.wavelength) - 1)
        nearest = after - (centres - self.wavelength[after - 1] <= self.wavelength[after] - centres)
        narrower = width < _NARROWER * (self.right - self.left)[nearest]
        if narrower.all():
            return self._interpolated(centres, after, used)
        wide = self._rebinned(edges, used)
        if not narrower.any():
            return wide
        fine = self._interpolated(centres, after, used)
        return tuple(np.where(narrower, f, w) for f, w in zip(fine, wide, strict=True))

    def _rebinned(self, edges: np.ndarray, used: np.ndarray) -> tuple[np.ndarray, ...]:
        # Every stretch between two neighbouring edges, of either side, lies in one pixel of each.
        cuts = np.concatenate([self.left, self.right, edges])
        cuts.sort(kind="stable")
        length, middle = np.diff(cuts), (cuts[1:] + cuts[:-1]) / 2
        source = np.searchsorted(self.left, middle, side="right") - 1
        target = np.searchsorted(edges, middle, side="right") - 1
        count = len(edges) - 1
        kept = (length > 0) & (source >= 0) & (target >= 0) & (target < count)
        kept &= (middle < self.right[source]) & used[source]
        length, source, target = length[kept], source[kept], target[kept]
        covered = np.bincount(target, length, count)
        total = np.bincount(target, length * self.values[source], count)
        spread = np.bincount(target, length**2 * self.variance[source], count)
        norm = np.where(covered > 0, covered, 1.0)
        return total / norm, spread / norm**2, covered > _COVERED * np.diff(edges)

    def _interpolated(
        self, centres: np.ndarray, after: np.ndarray, used: np.ndarray
    ) -> tuple[np.ndarray, ...]:
        before = after - 1
        step = self.wavelength[after] - self.wavelength[before]
        weight = (centres - self.wavelength[before]) / step
        inside = (weight >= 0) & (weight <= 1)
        weight = np.clip(weight, 0.0, 1.0)
        value = (1 - weight) * self.values[before] + weight * self.values[after]
        spread = (1 - weight) ** 2 * self.variance[before] + weight**2 * self.variance[after]
        both = used[before] & used[after] & (self.left[after] - self.right[before] < 1e-6 * step)
        alone = (used[before] & (weight == 0)) | (used[after] & (weight == 1))
        return value, spread, inside & (both | alone)


def pixel_edges(wavelength: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the left and right edge of each pixel, Å, float64 [P].

    Halfway between neighbours; at the ends, and beside a gap, as far as on the other side or as
    pixels around are wide.
    """
    steps = np.diff(wavelength)
    half = steps / 2
    ratio = steps[1:] / steps[:-1]
    if len(ratio) and max(ratio.max(), 1 / ratio.min()) > _GAP:
        usual = _usual_steps(steps)
        half = np.where(steps > _GAP * usual, usual, steps) / 2
        beside = np.minimum(half, steps / 2)
    else:
        beside = half
    left = wavelength - np.concatenate([beside[:1], beside])
    right = wavelength + np.concatenate([beside, beside[-1:]])
    return left, right


def _usual_steps(steps: np.ndarray) -> np.ndarray:
    """Return the running median of the steps."""
    reach = min(_WINDOW // 2, len(steps) - 1)
    padded = np.pad(steps, reach, mode="reflect") if reach else steps
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * reach + 1)
    return np.median(windows, axis=1)
