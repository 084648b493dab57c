"""χ² of spectra against rest-frame templates at every redshift at once.

On a grid of equal steps in log λ a redshift is a shift by whole pixels. With weights w, flux f and
templates t_k the normal equations of the best combination at shift s are correlations,

    A_jk(s) = Σ_i w_i t_j(i−s) t_k(i−s),    b_k(s) = Σ_i w_i f_i t_k(i−s),

computed for all s together by FFT, or for the few shifts of stars by a matrix product;
χ²(s) = Σ w f² − bᵀ(A + Λ)⁻¹b, where Λ is the inverse prior variance of the coefficients (a Gaussian
prior about 0 in units of the spectrum's own rms), and an LDLᵀ unrolled over k serves all s side by
side. Intergalactic absorption depends on the observed wavelength alone except for its edge at
rest-frame Lyα: templates are split there and the blue part sees weights times the transmission,
which is exact. The forest's own fluctuations are no noise of the detector: there the weights may be
others (`forest_ivar`), and −2 ln likelihood then has the weights' logarithm too, so that hypotheses
with and without forest compare fairly.

All is done in float64: χ² is a small difference of large sums, and in float32 it is off by tens.

Shape suffixes: B spectra, L pixels, S shifts, K templates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from skyray.models.template_bases import LOG_STEP, LYMAN_ALPHA, TemplateBasis
from skyray.models.template_model import Solution, TemplateModel, forest_transmission

_FEW = 64  # shifts: a matrix product beats the FFT


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

    def __init__(self, bases: Sequence[TemplateBasis], first: int, size: int, device: str = "cpu"):
        self.first, self.size, self.device = first, size, torch.device(device)
        self.parts = [_Part(basis, first, size, self.device) for basis in bases]
        self.models = [TemplateModel(basis, first, size) for basis in bases]

    @torch.inference_mode()
    def curves(
        self, flux_BL: np.ndarray, ivar_BL: np.ndarray, forest_ivar_BL: np.ndarray | None = None
    ) -> list[Curve]:
        """Return χ² against every basis.

        Parameters
        ----------
        flux_BL, ivar_BL : float [B, L]
            Finite; ivar 0 where nothing was measured.
        forest_ivar_BL : float [B, L], optional
            Weights where a template is seen through the Lyα forest; 0 where ivar is 0.
        """
        data = self._data(flux_BL, ivar_BL, forest_ivar_BL)
        binned = {part.stride: _binned(data, part.stride) for part in self.parts}
        return [
            Curve(part.basis, part.redshift, part.chi2(binned[part.stride]).cpu().numpy())
            for part in self.parts
        ]

    def fit(
        self,
        number: int,
        redshift: float,
        flux_L: np.ndarray,
        ivar_L: np.ndarray,
        forest_ivar_L: np.ndarray | None = None,
    ) -> Solution:
        """Return the best combination of basis `number` at a redshift, between pixels too."""
        forest = ivar_L if forest_ivar_L is None else forest_ivar_L
        scale = self.scale(flux_L, ivar_L)
        return self.models[number].solve(redshift, flux_L, ivar_L, forest, scale)

    @staticmethod
    def scale(flux_L: np.ndarray, ivar_L: np.ndarray) -> float:
        """Return a spectrum's rms, in units of which coefficients have their prior."""
        flux, weight = (torch.as_tensor(v, dtype=torch.float64)[None] for v in (flux_L, ivar_L))
        return float(amplitude(flux, weight))

    @torch.inference_mode()
    def around(
        self,
        number: int,
        redshift: float,
        flux_L: np.ndarray,
        ivar_L: np.ndarray,
        forest_ivar_L: np.ndarray,
        reach: int = 15,
    ) -> Curve | None:
        """Return χ² of one spectrum near a redshift, each pixel keeping the weight it has there.

        In `curves` a step in redshift moves pixels into the forest or out of it, and the logarithm
        of their weights with them: right for the choice between far redshifts, but it pulls at the
        minimum. None where nothing is absorbed, and the curve is as good.
        """
        part = self.parts[number]
        if not part.absorbed:
            return None
        data = self._data(flux_L[None], ivar_L[None], forest_ivar_L[None])
        return part.around(_binned(data, part.stride), redshift, reach)

    def _data(self, flux_BL, ivar_BL, forest_ivar_BL) -> _Data:
        def tensor(values):
            return torch.as_tensor(np.asarray(values, np.float64), device=self.device)

        flux, weight = tensor(flux_BL), tensor(ivar_BL)
        forest = weight if forest_ivar_BL is None else tensor(forest_ivar_BL)
        if flux.shape[1:] != (self.size,) or not flux.shape == weight.shape == forest.shape:
            raise ValueError(
                f"spectra: expected flux and ivar [B, {self.size}], found {tuple(flux.shape)}, "
                f"{tuple(weight.shape)} and {tuple(forest.shape)}"
            )
        red, blue = weight * flux, forest * flux
        ones = torch.ones_like(weight)
        ratio = torch.where(weight > 0, weight, ones) / torch.where(forest > 0, forest, ones)
        power = red * flux
        change = blue * flux - power + ratio.log()
        return _Data(weight, red, forest, blue, power, change, amplitude(flux, weight))


@dataclass(frozen=True)
class _Data:
    """Sums over pixels (or bins of pixels) that the scan needs, [B, L]; `scale` is [B].

    `change` is what −2 ln likelihood of no light gains when a pixel is seen through the forest.
    """

    weight: torch.Tensor
    weighted: torch.Tensor
    forest: torch.Tensor
    forest_weighted: torch.Tensor
    power: torch.Tensor
    change: torch.Tensor
    scale: torch.Tensor


def _binned(data: _Data, stride: int) -> _Data:
    """Return the sums over bins of `stride` pixels; the last bin is filled up with nothing."""
    if stride == 1:
        return data

    def together(values):
        padded = functional.pad(values, (0, -values.shape[1] % stride))
        return padded.unflatten(1, (-1, stride)).sum(dim=2)

    summed = [together(v) for v in list(vars(data).values())[:-1]]
    return _Data(*summed, data.scale)


def amplitude(flux_BL: torch.Tensor, weight_BL: torch.Tensor) -> torch.Tensor:
    """Return each spectrum's rms [B] with the noise's share taken out, for the prior's scale."""
    total = weight_BL.sum(dim=1)
    power = (weight_BL * flux_BL * flux_BL).sum(dim=1)
    pixels = (weight_BL > 0).sum(dim=1)
    total = torch.where(total > 0, total, 1.0)
    signal = torch.maximum(power - pixels, 0.05 * power) / total
    return torch.where(signal > 0, signal, 1.0).sqrt()


class _Part:
    """One basis, transformed once."""

    def __init__(self, basis: TemplateBasis, first: int, size: int, device: torch.device):
        self.basis, self.first, self.device, self.stride = basis, first, device, basis.stride
        step = LOG_STEP * self.stride
        self.size = -(-size // self.stride)
        low, high = (np.log10(1.0 + z) / step for z in basis.redshift)
        lowest, highest = int(np.ceil(low - 1e-9)), int(np.floor(high + 1e-9))
        self.shifts = highest - lowest + 1
        self.redshift = 10.0 ** (step * (lowest + np.arange(self.shifts))) - 1.0
        self.transmission = self._tensor(forest_transmission(self._wavelength(first, self.size)))
        begin, length = first - highest * self.stride, self.size + self.shifts - 1
        templates = self._placed(begin, length)
        self.pairs = [(j, k) for j in range(len(templates)) for k in range(j, len(templates))]
        products = np.stack([templates[j] * templates[k] for j, k in self.pairs])
        both = self._tensor(np.concatenate([products, templates]))
        blue, troughs = self._absorbed(self._wavelength(begin, length))
        self.absorbed = bool((blue | troughs).any())
        self.length = 0 if self.shifts <= _FEW and not self.absorbed else fast_length(length)

        def transformed(values: torch.Tensor) -> torch.Tensor:
            return torch.fft.rfft(values, self.length) if self.length else values

        self.clear = transformed(both * ~(blue | troughs))
        if self.absorbed:
            self.blue, self.troughs = transformed(both * blue), None
            self.where = transformed((blue | troughs).double())
            self.plain, self.blue_pixels, self.absorbed_pixels = both, blue, blue | troughs
            if troughs.any():
                self.troughs = transformed(both * troughs)
        self.prior = self._tensor(1.0 / basis.variance)

    def _absorbed(self, rest: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Return where rest wavelengths lie behind the forest, and else in troughs; bool each."""
        blue = (rest < LYMAN_ALPHA) & self.basis.forest
        troughs = self.basis.absorbed(rest) & ~blue
        return tuple(torch.as_tensor(mask, device=self.device) for mask in (blue, troughs))

    def _tensor(self, values: np.ndarray) -> torch.Tensor:
        return torch.as_tensor(np.asarray(values, np.float64), device=self.device)

    def _wavelength(self, begin: int, count: int) -> np.ndarray:
        """Return the centres of bins whose first pixel is begin + stride · i, Å."""
        centre = begin + 0.5 * (self.stride - 1) + self.stride * np.arange(count)
        return 10.0 ** (LOG_STEP * centre)

    def _placed(self, begin: int, count: int) -> np.ndarray:
        """Return the vectors' means in bins from rest pixel `begin` on, 0 outside their range."""
        vectors, size = self.basis.vectors, count * self.stride
        placed = np.zeros((len(vectors), size))
        left = max(begin, self.basis.first)
        right = min(begin + size, self.basis.first + vectors.shape[1])
        if left < right:
            source = slice(left - self.basis.first, right - self.basis.first)
            placed[:, left - begin : right - begin] = vectors[:, source]
        return placed.reshape(len(vectors), count, self.stride).mean(axis=2)

    def chi2(self, data: _Data) -> torch.Tensor:
        """Return χ² [B, S], redshift ascending."""
        products = len(self.pairs)
        matrix = self._correlate(data.weight, data.forest, slice(0, products), 2)
        vector = self._correlate(data.weighted, data.forest_weighted, slice(products, None), 1)
        prior = self.prior[None, :] / data.scale[:, None].square()
        explained = _quadratic(matrix, vector, self.pairs, prior)
        power = data.power.sum(dim=1, keepdim=True)
        if self.absorbed:
            change = torch.fft.rfft(data.change, self.length).conj() * self.where
            power = power + torch.fft.irfft(change, self.length)[:, : self.shifts]
        return (power - explained).flip(1)

    def around(self, data: _Data, redshift: float, reach: int) -> Curve | None:
        """Return χ² [1, steps] about a redshift with the weights of its own absorbed pixels."""
        centre = int(np.argmin(np.abs(np.log1p(self.redshift) - np.log1p(redshift))))
        first, last = max(centre - reach, 0), min(centre + reach, self.shifts - 1)
        lag = self.shifts - 1 - centre  # of the spectrum's pixel 0 in the templates' pixels
        absorbed = self.absorbed_pixels[lag : lag + self.size]
        if not absorbed.any():
            return None
        begin, lags = self.shifts - 1 - last, last - first + 1
        templates = self.plain[:, begin : begin + self.size + lags - 1]
        blue = self.blue_pixels[begin : begin + self.size + lags - 1]
        products = len(self.pairs)

        def correlated(clear, behind, rows: slice, times: int) -> torch.Tensor:
            signal = torch.where(absorbed, behind, clear)
            dimmed = signal * self.transmission**times
            return (templates[rows] * ~blue) @ self._lagged(signal, lags) + (
                templates[rows] * blue
            ) @ self._lagged(dimmed, lags)

        matrix = correlated(data.weight, data.forest, slice(0, products), 2)
        vector = correlated(data.weighted, data.forest_weighted, slice(products, None), 1)
        prior = self.prior[None, :] / data.scale[:, None].square()
        chi2 = -_quadratic(matrix, vector, self.pairs, prior).flip(1)
        return Curve(self.basis, self.redshift[first : last + 1], chi2.cpu().numpy())

    def _correlate(self, clear_BL, absorbed_BL, rows: slice, times: int) -> torch.Tensor:
        """Return correlations [B, rows, S] of signals with the templates or their products.

        `absorbed_BL` counts where the templates are absorbed: in troughs as it is, behind the
        forest after the transmission to the power `times`.
        """
        if not self.length:
            return self.clear[rows] @ self._lagged(clear_BL, self.shifts)
        signals = [(clear_BL, self.clear)]
        if self.absorbed:
            signals.append((absorbed_BL * self.transmission**times, self.blue))
            if self.troughs is not None:
                signals.append((absorbed_BL, self.troughs))
        spectra = [torch.fft.rfft(signal, self.length).conj_physical() for signal, _ in signals]
        found = []
        for row in range(len(clear_BL)):  # one by one: what a spectrum needs stays in the cache
            total = spectra[0][row] * signals[0][1][rows]
            for spectrum, (_, templates) in zip(spectra[1:], signals[1:], strict=True):
                total.addcmul_(spectrum[row], templates[rows])
            found.append(torch.fft.irfft(total, self.length)[..., : self.shifts])
        return torch.stack(found)

    def _lagged(self, signal_BL: torch.Tensor, lags: int) -> torch.Tensor:
        """Return [B, L + lags − 1, lags]: column s holds the signal from row s on."""
        lagged = signal_BL.new_zeros(len(signal_BL), lags, self.size + lags - 1)
        for lag in range(lags):
            lagged[:, lag, lag : lag + self.size] = signal_BL
        return lagged.transpose(1, 2)


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
    entry = {pair: matrix[:, row] for row, pair in enumerate(pairs)}
    lower, scaled, solved = {}, {}, []  # scaled = lower · pivot
    total = torch.zeros_like(vector[:, 0])
    for j in range(vector.shape[1]):
        diagonal = entry[j, j] + prior[:, j, None]
        pivot = diagonal.clone()
        for k in range(j):
            pivot.addcmul_(lower[j, k], scaled[j, k], value=-1)
        usable = pivot > 1e-10 * diagonal + 1e-300
        inverse = torch.where(usable, 1.0 / pivot, 0.0)
        for i in range(j + 1, vector.shape[1]):
            value = entry[j, i].clone()
            for k in range(j):
                value.addcmul_(lower[i, k], scaled[j, k], value=-1)
            lower[i, j], scaled[i, j] = value * inverse, value
        value = vector[:, j].clone()
        for k in range(j):
            value.addcmul_(lower[j, k], solved[k], value=-1)
        solved.append(value)
        total.addcmul_(value * value, inverse)
    return total
