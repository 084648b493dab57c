"""How well the model can describe ordinary spectra, wavelength by wavelength.

No autoencoder follows bright emission lines to the noise, so the reduced χ² of its reconstructions
ranks bright ordinary galaxies before faint strange ones. The error the model itself makes, as a
share of its flux in each rest-frame bin, is measured on the population and added to the noise;
what is left is strange.

Shape suffixes: B batch, L observed pixels, R rest-frame bins.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

_MOST_BINS, _LEAST_BINS, _PIXELS_A_BIN = 3000, 20, 500
_FLOOR = 0.05  # of the normalised flux: the error of a model near 0 is no share of it
_BEYOND = 12.0  # σ: such residuals are defects of data, not of the model
_SATURATION = 0.02  # beyond this SNR² a pixel tells no more about the model than others do


@dataclass(frozen=True)
class ModelError:
    """Relative variance of the model in bins of ln(rest wavelength).

    Attributes
    ----------
    edges_R : float64 [R]
        Lower edges of the bins, ln Å, evenly spaced.
    variance_R : float32 [R]
        (error / flux)² of the model.
    """

    edges_R: np.ndarray
    variance_R: np.ndarray

    @classmethod
    def fit(
        cls,
        y_BL: np.ndarray,
        w_BL: np.ndarray,
        model_BL: np.ndarray,
        z_B: np.ndarray,
        wavelength_L: np.ndarray,
    ) -> ModelError:
        """Measure the error on spectra y with inverse variance w (0 = not used).

        In each bin the mean of (residual² − noise²) / flux², weighted by how precisely a pixel
        measures it; 0 where the noise explains all. Few spectra make wide bins.
        """
        rest_BL = _rest(wavelength_L, z_B)
        used = w_BL > 0
        count = int(np.clip(used.sum() / _PIXELS_A_BIN, _LEAST_BINS, _MOST_BINS))
        edges = np.linspace(rest_BL.min(), rest_BL.max() + 1e-9, count + 1)[:-1]
        w = np.where(used, w_BL, 1.0).astype(np.float64)
        scale = np.maximum(np.abs(model_BL), _FLOOR)
        residual = y_BL - model_BL
        used &= np.abs(residual) * np.sqrt(w) < _BEYOND
        excess = (residual**2 - 1.0 / w) / scale**2
        snr2 = w * scale**2
        weight = (snr2 / (1.0 + _SATURATION * snr2)) ** 2
        bins = np.searchsorted(edges, rest_BL[used], side="right") - 1
        total = np.bincount(bins, weight[used], count)
        summed = np.bincount(bins, (weight * excess)[used], count)
        variance = np.maximum(summed / np.where(total > 0, total, 1.0), 0.0)
        return cls(edges, variance.astype(np.float32))

    def whitened(
        self, w_BL: np.ndarray, model_BL: np.ndarray, z_B: np.ndarray, wavelength_L: np.ndarray
    ) -> np.ndarray:
        """Return the inverse variance of noise and model together, 0 where w is 0."""
        bins = np.searchsorted(self.edges_R, _rest(wavelength_L, z_B), side="right") - 1
        scale = np.maximum(np.abs(model_BL), _FLOOR)
        added = self.variance_R[np.clip(bins, 0, len(self.edges_R) - 1)] * scale**2
        return w_BL / (1.0 + w_BL * added)

    def to_tensors(self) -> dict[str, np.ndarray]:
        """Return plain arrays for a bundle."""
        return {"model_error_edges": self.edges_R, "model_error_variance": self.variance_R}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, np.ndarray]) -> ModelError:
        """Return what `to_tensors` gave."""
        return cls(tensors["model_error_edges"], tensors["model_error_variance"])


def _rest(wavelength_L: np.ndarray, z_B: np.ndarray) -> np.ndarray:
    return np.log(wavelength_L)[None, :] - np.log1p(z_B)[:, None]
