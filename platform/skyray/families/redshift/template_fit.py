"""Class and redshift of spectra from templates: candidates, χ² differences, σ and models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import uniform_filter1d

from skyray.families.redshift.recipes import FitConfig
from skyray.models.redshift_minima import Minimum, apart, best_minima, refined
from skyray.models.redshift_scan import Curve, RedshiftScan
from skyray.models.template_bases import GALAXY, LIGHT_KMS, LOG_STEP, QSO, STAR, TemplateBasis

SPECTYPES = (GALAXY, QSO, STAR)
PDF_STEP, PDF_SIZE = 1e-3, 2080  # in ln (1 + z), from 0 on: up to z = 7
_CHUNK, _CHUNK_CUDA = 4, 64
_SMOOTH = 51  # pixels; of the running mean that finds the level of the light, taken twice
# What an eye looks for: vacuum Å in the rest frame.
FEATURES = {
    GALAXY: (3728.5, 3934.8, 3969.6, 4305.6, 4862.7, 5008.2, 5176.7, 5894.6, 6564.6, 6725.5,
             8544.4),
    QSO: (1215.7, 1240.1, 1398.3, 1549.1, 1908.7, 2799.1, 4341.7, 4862.7, 5008.2, 6564.6),
    STAR: (),
}  # fmt: skip


@dataclass(frozen=True)
class Prior:
    """What networks think of B spectra, for `TemplateFit`.

    Attributes
    ----------
    probability : float64 [B, 3]
        Of `SPECTYPES`.
    redshift, sigma : float64 [B]
        NaN where there is none.
    trusted : bool [B]
        Where False the prior says nothing.
    """

    probability: np.ndarray
    redshift: np.ndarray
    sigma: np.ndarray
    trusted: np.ndarray

    def penalty(self, row: int, one: Minimum, share: float) -> float:
        """Return −2 ln of the prior at a candidate, 0 where it is most welcome.

        `share` of the prior is uniform: networks never outweigh more than −2 ln `share` in class
        and in redshift, so that a doubtful network cannot overrule a good fit.
        """
        if not self.trusted[row]:
            return 0.0
        chance = self.probability[row] / max(self.probability[row].max(), 1e-9)
        total = -2.0 * np.log((1 - share) * chance[SPECTYPES.index(one.spectype)] + share)
        if one.spectype != STAR and np.isfinite(self.redshift[row]):
            pull = (one.redshift - self.redshift[row]) / max(self.sigma[row], 1e-4)
            total -= 2.0 * np.log((1 - share) * np.exp(-0.5 * pull**2) + share)
        return float(total)


@dataclass(frozen=True)
class Fit:
    """The answer for one spectrum; `best` is None where nothing could be fitted."""

    best: Minimum | None
    second: Minimum | None = None
    delta_chi2: float = np.nan
    delta_chi2_class: float = np.nan
    chi2_reduced: float = np.nan
    sigma: float = np.nan
    covered: float = np.nan
    features: int = 0
    negative: bool = False
    pdf: np.ndarray | None = None


class TemplateFit:
    """Templates and settings, ready for spectra on pixels ``10 ** (i · LOG_STEP)`` Å.

    Parameters
    ----------
    bases : sequence of TemplateBasis
    first, size : int
        Pixels of the spectra.
    settings : FitConfig
    device : str
    """

    def __init__(
        self,
        bases: Sequence[TemplateBasis],
        first: int,
        size: int,
        settings: FitConfig,
        device: str = "cpu",
    ):
        self.bases = [basis.broadened(settings.lsf_kms) for basis in bases]
        self.settings, self.device = settings, device
        self.scan = RedshiftScan(self.bases, first, size, device)
        self.pixels = first + np.arange(size)

    def wavelength(self) -> np.ndarray:
        """Return the observed wavelengths of the spectra fitted, vacuum Å, float64 [L]."""
        return 10.0 ** (LOG_STEP * self.pixels)

    def weights(self, flux_BL: np.ndarray, ivar_BL: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the ivar used, and the one used behind the Lyα forest, float64 [B, L].

        Templates are not perfect to better than a share of the light (`error_floor`), and the
        forest scatters about its mean by a larger one (`forest_scatter`); both count as noise.
        The latter is a share of the mean light at least: damped and Lyman-limit systems, too, are
        absent from templates, and where they absorb no light is left to take a share of.
        """
        flux, ivar = np.asarray(flux_BL, np.float64), np.asarray(ivar_BL, np.float64)
        both = np.stack([ivar, flux * ivar])
        for _ in range(2):
            both = uniform_filter1d(both, _SMOOTH, axis=2, mode="nearest")
        weight, light = both
        level = np.divide(light, weight, out=np.zeros_like(light), where=ivar > 0)
        used = ivar > 0
        variance = np.divide(1.0, ivar, out=np.zeros_like(ivar), where=used)

        mean = np.sum(level, axis=1, keepdims=True) / np.maximum(used.sum(axis=1), 1)[:, None]

        def with_scatter(scatter: np.ndarray) -> np.ndarray:
            total = variance + np.square(scatter)
            return np.divide(1.0, total, out=np.zeros_like(total), where=used)

        return (
            with_scatter(self.settings.error_floor * level),
            with_scatter(self.settings.forest_scatter * np.maximum(level, mean)),
        )

    def __call__(
        self, flux_BL: np.ndarray, ivar_BL: np.ndarray, prior: Prior | None = None
    ) -> list[Fit]:
        """Return the fits of spectra, in their order; ivar 0 where nothing was measured."""
        chunk = _CHUNK_CUDA if self.device.startswith("cuda") else _CHUNK
        fits = []
        for start in range(0, len(flux_BL), chunk):
            flux = np.asarray(flux_BL[start : start + chunk], np.float64)
            weight, forest = self.weights(flux, ivar_BL[start : start + chunk])
            curves = self.scan.curves(flux, weight, forest)
            for row in range(len(flux)):
                data = flux[row], weight[row], forest[row]
                fits.append(self._answer(curves, row, data, prior, start + row))
        return fits

    def model(
        self, flux_L: np.ndarray, ivar_L: np.ndarray, basis: int, redshift: float
    ) -> np.ndarray:
        """Return the best model of one spectrum by a basis at a redshift, float64 [L]."""
        weight, forest = self.weights(flux_L[None], ivar_L[None])
        return self.scan.fit(basis, np.array([redshift]), flux_L[None], weight, forest)[1][0]

    def _answer(self, curves, row: int, data, prior: Prior | None, place: int) -> Fit:
        minima = best_minima(curves, row)
        if not minima:
            return Fit(None)
        share = self.settings.prior_share
        extra = [prior.penalty(place, one, share) if prior else 0.0 for one in minima]
        order = np.argsort([one.chi2 + more for one, more in zip(minima, extra, strict=True)])
        minima = [minima[i] for i in order]
        chi2 = [minima[n].chi2 + extra[i] for n, i in enumerate(order)]
        best = minima[0]
        others = list(zip(minima, chi2, strict=True))[1:]
        distinct = [(c, one) for one, c in others if _another_redshift(best, one)]
        classes = [c for one, c in others if one.spectype != best.spectype]
        second = min(others, key=lambda pair: pair[1])[0] if others else None
        return self._judged(curves, row, data, best, second, Fit(
            best, second,
            delta_chi2=min((c for c, _ in distinct), default=np.inf) - chi2[0],
            delta_chi2_class=min(classes, default=np.inf) - chi2[0],
        ))  # fmt: skip

    def _judged(self, curves, row: int, data, best: Minimum, second, fit: Fit) -> Fit:
        flux, weight, forest = data
        near = self.scan.around(best.basis, best.redshift, flux, weight, forest)
        best = refined(best, near)
        at = np.array([best.redshift])
        model = self.scan.fit(best.basis, at, flux[None], weight[None], forest[None])[1][0]
        basis, used = self.bases[best.basis], weight > 0
        rest = self.pixels - np.log10(1.0 + best.redshift) / LOG_STEP
        weight = np.where(basis.absorbed(10.0 ** (LOG_STEP * rest)), forest, weight)
        residual = np.sum(weight * np.square(flux - model))
        reduced = residual / max(used.sum() - len(basis.variance) - 1, 1)
        inside = rest < basis.first + basis.vectors.shape[1]
        if not basis.forest:  # where the forest ends nothing shines: no light is the template
            inside &= rest >= basis.first
        spread = max(reduced, 1.0)
        systematic = (1.0 + best.redshift) * self.settings.systematic_kms(best.spectype) / LIGHT_KMS
        return Fit(
            best, second, fit.delta_chi2, fit.delta_chi2_class, float(reduced),
            float(np.hypot(best.sigma * np.sqrt(spread), systematic)),
            float(inside[used].mean()) if used.any() else 0.0,
            self._features(best, used),
            bool(np.sum(weight * model) < 0),
            _density(curves, row, spread),
        )  # fmt: skip

    def _features(self, best: Minimum, used: np.ndarray) -> int:
        """Return how many of the class's features lie on good pixels."""
        if best.spectype == STAR:
            return int(used.any()) * 2
        rest = np.array(FEATURES[best.spectype])
        at = np.rint(np.log10(rest * (1.0 + best.redshift)) / LOG_STEP).astype(int)
        at -= self.pixels[0]
        reach = 8  # pixels each way, most of them good
        return sum(
            bool(reach <= i < len(used) - reach and used[i - reach : i + reach + 1].mean() > 0.7)
            for i in at
        )


def _another_redshift(best: Minimum, other: Minimum) -> bool:
    if STAR in (best.spectype, other.spectype) and best.spectype != other.spectype:
        return True
    return apart(best.redshift, other.redshift)


def _density(curves: Sequence[Curve], row: int, spread: float) -> np.ndarray:
    """Return the probability of the redshift in bins of ln (1 + z), float32 [PDF_SIZE], sum 1.

    χ² is divided by its value a pixel where that is above 1, as errors are widened.
    """
    lowest = min(float(curve.chi2_BS[row].min()) for curve in curves)
    total = np.zeros(PDF_SIZE)
    for curve in curves:
        delta = np.clip((curve.chi2_BS[row] - lowest) / spread, 0.0, 80.0)
        at = np.clip(np.log1p(curve.redshift) / PDF_STEP, 0, PDF_SIZE - 1).astype(int)
        total += np.bincount(at, np.exp(-0.5 * delta) * curve.basis.stride, PDF_SIZE)
    return (total / total.sum()).astype(np.float32)
