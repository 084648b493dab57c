"""Class and redshift of spectra from templates: candidates, χ² differences, σ and models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import itemgetter

import numpy as np
from scipy.ndimage import uniform_filter1d

from skyray.families.redshift.density import density
from skyray.families.redshift.evidence import Evidence, another_redshift, competing
from skyray.families.redshift.recipes import FitConfig
from skyray.models.redshift_minima import Minimum, best_minima, refined
from skyray.models.redshift_scan import RedshiftScan
from skyray.models.template_bases import GALAXY, LIGHT_KMS, LOG_STEP, QSO, STAR, TemplateBasis

SPECTYPES = (GALAXY, QSO, STAR)
_CHUNK, _CHUNK_CUDA = 4, 64
_RUNNING = (
    200.0  # of χ², in units of the best fit's a pixel: candidates nearer are looked at closely
)
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

    def penalty(self, row: int, spectype: str, redshift, share: float):
        """Return −2 ln of the prior of a class at redshifts, 0 where it is most welcome.

        `share` of the prior is uniform: networks never outweigh more than −2 ln `share` in class
        and in redshift, so that a doubtful network cannot overrule a good fit.
        """
        if not self.trusted[row]:
            return np.zeros(np.shape(redshift))
        chance = self.probability[row] / max(self.probability[row].max(), 1e-9)
        total = -2.0 * np.log((1 - share) * chance[SPECTYPES.index(spectype)] + share)
        if spectype == STAR or not np.isfinite(self.redshift[row]):
            return np.full(np.shape(redshift), total)
        pull = (np.asarray(redshift) - self.redshift[row]) / max(self.sigma[row], 1e-4)
        return total - 2.0 * np.log((1 - share) * np.exp(-0.5 * pull**2) + share)


@dataclass(frozen=True)
class Fit:
    """The answer for one spectrum; `best` is None where nothing could be fitted.

    Differences of χ² are of likelihoods alone, from `best` on: below 0 where the networks' prior
    chose against them. `classes` has those of each class's best candidate, 0 for that of `best`.
    `delta_chi2_hidden` is Δχ² to the best other redshift without the strongest narrow feature;
    `untried` tells of a galaxy at a redshift that no quasar template was tried at; `features` and
    `features_prior` say how many of the class's main features were measured at the redshift found,
    and at the prior's.
    """

    best: Minimum | None
    second: Minimum | None = None
    delta_chi2: float = np.nan
    delta_chi2_class: float = np.nan
    classes: Mapping[str, float] = field(default_factory=dict)
    chi2_reduced: float = np.nan
    delta_chi2_hidden: float = np.nan
    sigma: float = np.nan
    covered: float = np.nan
    features: int = 0
    features_prior: int = 0
    negative: bool = False
    untried: bool = False
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
                if prior is not None:
                    kind = SPECTYPES[int(prior.probability[start + row].argmax())]
                    z = float(prior.redshift[start + row])
                    seen = self.features_measured(kind, z, weight[row] > 0)
                    fits[-1] = replace(fits[-1], features_prior=seen)
        return fits

    def model(
        self, flux_L: np.ndarray, ivar_L: np.ndarray, basis: int, redshift: float
    ) -> np.ndarray:
        """Return the best model of one spectrum by a basis at a redshift, float64 [L]."""
        weight, forest = self.weights(flux_L[None], ivar_L[None])
        return self.scan.fit(basis, redshift, flux_L, weight[0], forest[0]).model

    def _answer(self, curves, row: int, data, prior: Prior | None, place: int) -> Fit:
        evidence = Evidence(self.scan, self.bases, *data)
        changes: dict[Minimum, float] = {}  # of what the scan has for χ²

        def revise(minima: list[Minimum]) -> list[Minimum]:
            tried = {one: evidence.excess(one) for one in competing(minima, self.bases)}
            revised = {replace(one, chi2=one.chi2 + tried.get(one, 0.0)): one for one in minima}
            changes.update({new: tried[one] for new, one in revised.items() if tried.get(one)})
            return list(revised)

        found = best_minima(curves, row, revise=revise)
        if not found:
            return Fit(None)
        lowest = evidence.polished(found[0])
        spread = max(self._reduced(evidence, lowest), 1.0)
        gain = lowest.chi2 + changes.get(found[0], 0.0) - found[0].chi2
        minima = []
        for one in found:  # those that are clearly worse keep the scan's difference
            excess, polished = changes.get(one, 0.0), replace(one, chi2=one.chi2 + gain)
            if one.chi2 - found[0].chi2 < _RUNNING * spread:
                polished = lowest if one is found[0] else evidence.polished(one)
                polished = replace(polished, chi2=polished.chi2 + excess)
            minima.append(polished)
            changes[one] = polished.chi2 - (one.chi2 - excess)

        def extra(spectype: str, redshift):
            share = self.settings.prior_share
            return prior.penalty(place, spectype, redshift, share) if prior else 0.0 * redshift

        best, *rest = sorted(
            minima, key=lambda one: one.chi2 / spread + float(extra(one.spectype, one.redshift))
        )
        others = [(one.chi2 - best.chi2, one) for one in rest]
        distinct = [(more, one) for more, one in others if another_redshift(best, one)]
        falling = sorted(others, key=itemgetter(0), reverse=True)
        classes = {one.spectype: more for more, one in falling} | {best.spectype: 0.0}
        fit = Fit(
            best, rest[0] if rest else None,
            delta_chi2=min((more for more, _ in distinct), default=np.inf),
            delta_chi2_class=min(
                (more for kind, more in classes.items() if kind != best.spectype), default=np.inf
            ),
            classes=classes,
        )  # fmt: skip
        fit = self._judged(evidence, fit, distinct)
        return replace(fit, pdf=density(curves, row, spread, extra, changes, self.settings))

    def _reduced(self, evidence: Evidence, one: Minimum, model: np.ndarray | None = None) -> float:
        """Return χ² a degree of freedom of a candidate's model."""
        model = evidence.model(one) if model is None else model
        weight = np.where(evidence.absorbed(one), evidence.forest, evidence.weight)
        free = np.count_nonzero(evidence.weight) - len(self.bases[one.basis].variance) - 1
        return float(np.sum(weight * np.square(evidence.flux - model)) / max(free, 1))

    def _judged(self, evidence: Evidence, fit: Fit, distinct) -> Fit:
        flux, weight, forest = evidence.flux, evidence.weight, evidence.forest
        near = self.scan.around(fit.best.basis, fit.best.redshift, flux, weight, forest)
        best = fit.best
        if near is not None:
            best = replace(evidence.polished(refined(best, near)), chi2=best.chi2)
        model = evidence.model(best)
        basis, used = self.bases[best.basis], weight > 0
        rest = self.pixels - np.log10(1.0 + best.redshift) / LOG_STEP
        weight = np.where(evidence.absorbed(best), forest, weight)
        reduced = self._reduced(evidence, best, model)
        inside = rest < basis.first + basis.vectors.shape[1]
        if not basis.forest:  # where the forest ends nothing shines: no light is the template
            inside &= rest >= basis.first
        systematic = (1.0 + best.redshift) * self.settings.systematic_kms(best.spectype) / LIGHT_KMS
        return replace(
            fit,
            best=best,
            delta_chi2_hidden=evidence.without_strongest_feature(best, model, distinct),
            chi2_reduced=reduced,
            sigma=float(np.hypot(best.sigma * np.sqrt(max(reduced, 1.0)), systematic)),
            covered=float(inside[used].mean()) if used.any() else 0.0,
            features=self.features_measured(best.spectype, best.redshift, used),
            negative=bool(np.sum(weight * model) < 0),
            untried=best.spectype == GALAXY and self._no_quasar_at(best.redshift),
        )

    def _no_quasar_at(self, redshift: float) -> bool:
        ranges = [basis.redshift for basis in self.bases if basis.spectype == QSO]
        return bool(ranges) and not any(low <= redshift <= high for low, high in ranges)

    def features_measured(self, spectype: str, redshift: float, used: np.ndarray) -> int:
        """Return how many of a class's `FEATURES` lie on good pixels; `used` is bool [L].

        A star has none to miss: 2 where anything was measured.
        """
        if spectype == STAR:
            return int(used.any()) * 2
        if not np.isfinite(redshift):
            return 0
        rest = np.array(FEATURES[spectype])
        at = np.rint(np.log10(rest * (1.0 + redshift)) / LOG_STEP).astype(int)
        at -= self.pixels[0]
        reach = 8  # pixels each way, most of them good
        return sum(
            bool(reach <= i < len(used) - reach and used[i - reach : i + reach + 1].mean() > 0.7)
            for i in at
        )
