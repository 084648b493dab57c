"""χ² of spectra against rest-frame templates at every redshift at once.

On a grid of equal steps in log λ a redshift is a shift by whole pixels. With weights w, flux f and
templates t_k the normal equations of the best combination at shift s are correlations,

    A_jk(s) = Σ_i w_i t_j(i−s) t_k(i−s),    b_k(s) = Σ_i w_i f_i t_k(i−s),

computed for all s together by FFT; χ²(s) = Σ w f² − bᵀ(A + Λ)⁻¹b, where Λ is the inverse prior
variance of the coefficients (a Gaussian prior about 0 in units of the spectrum's own rms), and an
LDLᵀ unrolled over k serves all s side by side. Intergalactic absorption depends on the observed
wavelength alone except for its edge at rest-frame Lyα: templates are split there and the blue part
sees weights times the transmission, which is exact.

All is done in float64: χ² is a small difference of large sums, and in float32 it is off by tens.

Shape suffixes: B spectra, L pixels, S shifts, K templates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from skyray.analysis.template_bases import LOG_STEP, TemplateBasis

LYMAN_ALPHA = 1215.67
_TINY = 1e-12


def forest_transmission(wavelength: np.ndarray) -> np.ndarray:
    """Return the mean transmission of the Lyα forest at observed wavelengths, Å.

    Kamble et al. (2020, ApJ 892, 70): τ_eff = 0.00554 (1+z)^3.182, z of the absorber.
    """
    return np.exp(-0.00554 * (np.asarray(wavelength) / LYMAN_ALPHA) ** 3.182)


@dataclass(frozen=True)
class Curve:
    """χ² of B spectra along redshift for one basis.

    Attributes
    ----------
    basis : TemplateBasis
    redshift : float64 [S]
        Ascending.
    chi2_BS : float64 [B, S]
        With the prior's share where the basis has a prior.
    """

    basis: TemplateBasis
    redshift: np.ndarray
    chi2_BS: np.ndarray


class RedshiftScan:
    """Templates prepared for spectra on one stretch of the log grid.

    Parameters
    ----------
    bases : sequence of TemplateBasis
        Already as wide as the spectrograph's line spread.
    first, size : int
        The spectra's first pixel on the log grid, and how many they have.
    device : str
        Where the work is done; needs float64.
    """

    def __init__(
        self, bases: Sequence[TemplateBasis], first: int, size: int, device: str = "cpu"
    ):
        self.first, self.size, self.device = first, size, torch.device(device)
        wavelength = 10.0 ** (LOG_STEP * (first + np.arange(size)))
        self.transmission = self._tensor(forest_transmission(wavelength))
        self.parts = [_Part(basis, self) for basis in bases]

    def _tensor(self, values: np.ndarray) -> torch.Tensor:
        return torch.as_tensor(np.asarray(values, np.float64), device=self.device)

    @torch.inference_mode()
    def curves(self, flux_BL: np.ndarray, ivar_BL: np.ndarray) -> list[Curve]:
        """Return χ² against every basis.

        Parameters
        ----------
        flux_BL, ivar_BL : float [B, L]
            Finite; ivar 0 where nothing was measured.
        """
        flux, weight = self._tensor(flux_BL), self._tensor(ivar_BL)
        if flux.shape[1:] != (self.size,) or weight.shape != flux.shape:
            raise ValueError(
                f"curves: expected flux and ivar [B, {self.size}], found {tuple(flux.shape)} and "
                f"{tuple(weight.shape)}"
            )
        power = (weight * flux * flux).sum(dim=1)
        scale = amplitude(flux, weight)
        return [
            Curve(part.basis, part.redshift, part.chi2(flux, weight, power, scale).cpu().numpy())
            for part in self.parts
        ]

    @torch.inference_mode()
    def coefficients(
        self, number: int, redshift_B: np.ndarray, flux_BL: np.ndarray, ivar_BL: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the best coefficients [B, K] and models [B, L] of basis `number` at redshifts."""
        flux, weight = self._tensor(flux_BL), self._tensor(ivar_BL)
        return self.parts[number].fit(flux, weight, amplitude(flux, weight), redshift_B)


def amplitude(flux_BL: torch.Tensor, weight_BL: torch.Tensor) -> torch.Tensor:
    """Return each spectrum's rms [B] with the noise's share taken out, for the prior's scale."""
    total = weight_BL.sum(dim=1).clamp_min(_TINY)
    power = (weight_BL * flux_BL * flux_BL).sum(dim=1)
    pixels = (weight_BL > 0).sum(dim=1)
    signal = torch.maximum(power - pixels, 0.05 * power) / total
    return signal.clamp_min(_TINY).sqrt()


class _Part:
    """One basis, transformed once."""

    def __init__(self, basis: TemplateBasis, scan: RedshiftScan):
        self.basis, self.scan = basis, scan
        low, high = basis.redshift
        self.low = int(np.ceil(np.log10(1.0 + low) / LOG_STEP - 1e-9))
        high = int(np.floor(np.log10(1.0 + high) / LOG_STEP + 1e-9))
        self.shifts = high - self.low + 1
        self.redshift = 10.0 ** (LOG_STEP * (self.low + np.arange(self.shifts))) - 1.0
        begin, size = scan.first - high, scan.size + self.shifts - 1
        templates = self._placed(begin, size)
        self.pairs = [(j, k) for j in range(len(templates)) for k in range(j, len(templates))]
        products = np.stack([templates[j] * templates[k] for j, k in self.pairs])
        both = torch.as_tensor(np.concatenate([products, templates]), device=scan.device)
        blue = 10.0 ** (LOG_STEP * (begin + np.arange(size))) < LYMAN_ALPHA
        self.forest = basis.forest and bool(blue.any())
        self.length = fast_length(size)
        if self.forest:
            blue = torch.as_tensor(blue, device=scan.device)
            self.blue = torch.fft.rfft(both * blue, self.length)
            self.red = torch.fft.rfft(both * ~blue, self.length)
        else:
            self.red = torch.fft.rfft(both, self.length)
        self.prior = torch.as_tensor(1.0 / basis.variance, device=scan.device)

    def _placed(self, begin: int, size: int) -> np.ndarray:
        """Return the vectors on rest-frame pixels from `begin` on, 0 outside their range."""
        vectors = self.basis.vectors
        placed = np.zeros((len(vectors), size))
        left = max(begin, self.basis.first)
        right = min(begin + size, self.basis.first + vectors.shape[1])
        if left < right:
            source = slice(left - self.basis.first, right - self.basis.first)
            placed[:, left - begin : right - begin] = vectors[:, source]
        return placed

    def chi2(self, flux, weight, power, scale) -> torch.Tensor:
        """Return χ² [B, S], redshift ascending."""
        products = len(self.pairs)
        weighted = weight * flux
        matrix = self._correlate(weight, products, slice(0, products), 2)
        vector = self._correlate(weighted, products, slice(products, None), 1)
        prior = self.prior[None, :] / scale[:, None].square()
        explained = _quadratic(matrix, vector, self.pairs, prior)
        return (power[:, None] - explained).flip(1)

    def _correlate(self, signal_BL, products: int, rows: slice, times: int) -> torch.Tensor:
        """Return correlations [B, rows, S] of signals with the templates or their products.

        The blue side of Lyα sees the forest's transmission to the power `times`.
        """
        spectrum = torch.fft.rfft(signal_BL, self.length).conj()[:, None]
        total = spectrum * self.red[rows]
        if self.forest:
            dimmed = signal_BL * self.scan.transmission**times
            total += torch.fft.rfft(dimmed, self.length).conj()[:, None] * self.blue[rows]
        return torch.fft.irfft(total, self.length)[..., : self.shifts]

    def fit(self, flux, weight, scale, redshift_B) -> tuple[np.ndarray, np.ndarray]:
        """Return coefficients [B, K] and models [B, L] at redshifts between pixels too."""
        shift = np.log10(1.0 + np.asarray(redshift_B, np.float64)) / LOG_STEP
        pixels = self.scan.first + np.arange(self.scan.size)
        grid = self.basis.first + np.arange(self.basis.vectors.shape[1])
        coefficients, models = [], []
        for row, own in enumerate(shift):
            at = np.stack(
                [np.interp(pixels - own, grid, v, left=0, right=0) for v in self.basis.vectors]
            )
            template = torch.as_tensor(at, device=self.scan.device)
            if self.forest:
                blue = torch.as_tensor(10.0 ** (LOG_STEP * (pixels - own)) < LYMAN_ALPHA)
                blue = blue.to(self.scan.device)
                template = torch.where(blue, template * self.scan.transmission, template)
            matrix = (template * weight[row]) @ template.T
            ridge = self.prior / scale[row] ** 2 + _TINY * matrix.diagonal().max()
            found = torch.linalg.solve(
                matrix + torch.diag(ridge), template @ (weight[row] * flux[row])
            )
            coefficients.append(found.cpu().numpy())
            models.append((found @ template).cpu().numpy())
        return np.stack(coefficients), np.stack(models)


def fast_length(size: int) -> int:
    """Return the shortest length of 2^a 3^b 5^c, at least `size`, that FFTs are fast for."""
    best = 1 << (size - 1).bit_length()
    five = 1
    while five < best:
        three = five
        while three < best:
            length = three
            while length < size:
                length *= 2
            best = min(best, length)
            three *= 3
        five *= 5
    return best


def _quadratic(matrix, vector, pairs, prior) -> torch.Tensor:
    """Return bᵀ(A + Λ)⁻¹b [B, S] by LDLᵀ, unrolled over the templates.

    A template without weight at a shift (its pivot vanishes) is left out there.
    """
    count = vector.shape[1]
    entry = {pair: matrix[:, row] for row, pair in enumerate(pairs)}
    lower, pivots, solved = {}, [], []
    total = torch.zeros_like(vector[:, 0])
    for j in range(count):
        diagonal = entry[j, j] + prior[:, j, None]
        pivot = diagonal
        for k in range(j):
            pivot = pivot - lower[j, k].square() * pivots[k]
        usable = pivot > 1e-10 * diagonal + 1e-300
        inverse = torch.where(usable, 1.0 / pivot, 0.0)
        for i in range(j + 1, count):
            value = entry[j, i]
            for k in range(j):
                value = value - lower[i, k] * lower[j, k] * pivots[k]
            lower[i, j] = value * inverse
        value = vector[:, j]
        for k in range(j):
            value = value - lower[j, k] * solved[k]
        pivots.append(torch.where(usable, pivot, 0.0))
        solved.append(value)
        total = total + value.square() * inverse
    return total
