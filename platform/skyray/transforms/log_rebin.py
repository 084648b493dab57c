"""Spectra onto the log-wavelength grid of the template fit: flux conserved, information kept."""

from __future__ import annotations

import numpy as np

from skyray.records import Grid

_ALIGNED = 0.02  # of a pixel


class LogRebin:
    """Brings spectra from a dataset's grid onto the pixels ``10 ** (i · step)`` Å.

    A source that has these pixels already is copied. Otherwise each pixel takes the mean of the
    good flux that falls on it, by share of width, and the sum of the ivar: as much is known of the
    spectrum afterwards as before, without a bias where neighbouring pixels differ in noise.

    Attributes
    ----------
    first, size : int
        The first pixel i and their number: all that lie wholly on the source.
    """

    def __init__(self, source: Grid, step: float):
        index = np.arange(source.size + 1) - 0.5
        edges = source.start + source.step * index
        position = (edges if source.kind == "log10" else np.log10(edges)) / step  # in target pixels
        centres = position + 0.5 * (source.kind == "log10") * source.step / step
        self._copy = bool(
            source.kind == "log10"
            and abs(source.step / step - 1.0) * source.size < _ALIGNED
            and np.abs(centres - np.rint(centres)).max() < _ALIGNED
        )
        if self._copy:
            self.first, self.size = round(float(centres[0])), source.size
            return
        self.first = int(np.ceil(position[0] + 0.5 - 1e-9))
        self.size = int(np.floor(position[-1] - 0.5 + 1e-9)) - self.first + 1
        wanted = self.first - 0.5 + np.arange(self.size + 1)
        # Cumulative sums at the wanted edges: whole pixels before, and a share of the one it cuts.
        inside = 10.0 ** (step * wanted)
        exact = np.log10(inside) if source.kind == "log10" else inside
        at = np.clip((exact - edges[0]) / source.step, 0.0, source.size)
        self._whole = np.minimum(at.astype(np.int64), source.size - 1)
        self._share = at - self._whole

    def __call__(
        self, flux_BL: np.ndarray, ivar_BL: np.ndarray, mask_BL: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return flux and ivar float32 [B, size]; both 0 where nothing good was measured."""
        flux, ivar = np.asarray(flux_BL, np.float64), np.asarray(ivar_BL, np.float64)
        good = (np.asarray(mask_BL) == 0) & (ivar > 0) & np.isfinite(flux) & np.isfinite(ivar)
        flux, ivar = np.where(good, flux, 0.0), np.where(good, ivar, 0.0)
        if self._copy:
            return flux.astype(np.float32), ivar.astype(np.float32)
        width = self._binned(good.astype(np.float64))
        mean = self._binned(flux) / np.maximum(width, 1e-9)
        total = self._binned(ivar)
        # A pixel of which little was seen tells little, and cumulative sums round.
        seen = (width > 1e-6) & (
            total > 1e-9 * np.maximum(total.max(axis=1, initial=0.0), 0)[:, None]
        )
        return (
            np.where(seen, mean, 0.0).astype(np.float32),
            np.where(seen, total, 0.0).astype(np.float32),
        )

    def _binned(self, values_BL: np.ndarray) -> np.ndarray:
        """Return the sums of values over the wanted pixels, in units of source pixels [B, size]."""
        running = np.zeros((len(values_BL), values_BL.shape[1] + 1))
        np.cumsum(values_BL, axis=1, out=running[:, 1:])
        at_edges = np.take(running, self._whole, axis=1)
        at_edges += self._share * np.take(values_BL, self._whole, axis=1)
        return np.diff(at_edges, axis=1)
