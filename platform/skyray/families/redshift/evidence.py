"""What a candidate's fit is worth: between the scan's steps, and what it rests on.

The scan knows steps of whole pixels, of two for some bases: its χ² is too large by where between
them a redshift falls. It lets pixels in the troughs of broad absorption differ from the model as
the Lyα forest does, in both directions; a trough takes light away and adds none. And it adds up all
pixels, so that one line, a remnant of the sky or a cosmic ray may outweigh the rest of a spectrum.
All this is looked at here, at the few candidates that compete.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy.ndimage import uniform_filter1d

from skyray.models.redshift_minima import Minimum, apart
from skyray.models.redshift_scan import RedshiftScan
from skyray.models.template_bases import LOG_STEP, LYMAN_ALPHA, STAR, TemplateBasis

_PIXEL = LOG_STEP * float(np.log(10.0))  # in ln (1 + z)
_CLEAR = 100.0  # of χ²: candidates so much worse than the best compete no more
_NARROW = 31  # pixels of a narrow feature: 2100 km/s
_SMOOTH = 301  # pixels of what is no feature


class Evidence:
    """The pixels of one spectrum, and what hypotheses make of them.

    Parameters
    ----------
    scan : RedshiftScan
    bases : sequence of TemplateBasis
        Those of the scan.
    flux, weight, forest : float64 [L]
        Weights are those of clear pixels and of pixels behind the forest.
    """

    def __init__(self, scan: RedshiftScan, bases: Sequence[TemplateBasis], flux, weight, forest):
        self.scan, self.bases = scan, bases
        self.flux, self.weight, self.forest = flux, weight, forest
        self.pixels = scan.first + np.arange(scan.size)

    def rest(self, one: Minimum) -> np.ndarray:
        """Return the rest wavelengths of the pixels at a candidate's redshift, Å [L]."""
        return 10.0 ** (LOG_STEP * self.pixels) / (1.0 + one.redshift)

    def absorbed(self, one: Minimum) -> np.ndarray:
        """Return which pixels are behind the forest or in troughs at a candidate's redshift."""
        return self.bases[one.basis].absorbed(self.rest(one))

    def model(self, one: Minimum, weight=None, forest=None) -> np.ndarray:
        """Return a candidate's best model, [L]; weights default to the spectrum's."""
        weight = self.weight if weight is None else weight
        forest = self.forest if forest is None else forest
        return self.scan.fit(one.basis, one.redshift, self.flux, weight, forest).model

    def cost(self, one: Minimum, model: np.ndarray) -> np.ndarray:
        """Return −2 ln likelihood of each pixel but for a constant, [L]; 0 where not measured."""
        absorbed = self.absorbed(one)
        weight = np.where(absorbed, self.forest, self.weight)
        logarithm = np.log(weight, where=weight > 0, out=np.zeros_like(weight))
        return weight * np.square(self.flux - model) - logarithm

    def excess(self, one: Minimum) -> float:
        """Return what −2 ln likelihood gains where light in troughs is above the model, ≥ 0.

        Such a pixel counts as a clear one where that is worse. The model may adapt to them once.
        """
        rest = self.rest(one)
        inside = self.bases[one.basis].absorbed(rest) & (rest >= LYMAN_ALPHA) & (self.weight > 0)
        if not inside.any():
            return 0.0
        ratio = np.log(np.where(inside, self.weight, 1.0) / np.where(inside, self.forest, 1.0))

        def total(model: np.ndarray, one_sided: bool) -> float:
            cost = self.cost(one, model)
            if one_sided:
                above = inside & (self.flux > model)
                clear = (self.weight - self.forest) * np.square(self.flux - model) - ratio
                cost = cost + np.where(above, np.maximum(clear, 0.0), 0.0)
            return float(cost.sum())

        first = self.model(one)
        weight = np.where(inside & (self.flux > first), self.weight, self.forest)
        adapted = self.model(one, forest=weight)
        return max(min(total(first, True), total(adapted, True)) - total(first, False), 0.0)

    def polished(self, one: Minimum) -> Minimum:
        """Return a minimum with the redshift, σ and χ² (and rarity) of the model itself.

        Parabolas through redshifts about 1 σ apart lead there, each pixel keeping the weight it has
        at the minimum given. An end of a basis's range keeps its redshift.
        """
        scale, absorbed = self.scan.scale(self.flux, self.weight), self.absorbed(one)

        def chi2(x: float) -> float:
            model = self.scan.models[one.basis]
            z = float(np.expm1(x))
            return model.solve(z, self.flux, self.weight, self.forest, scale, absorbed).chi2

        x, rarity = float(np.log1p(one.redshift)), self.bases[one.basis].rarity
        middle = chi2(x)
        if one.at_edge:
            return replace(one, chi2=middle + rarity)
        step = float(np.clip(one.sigma / (1.0 + one.redshift), 0.5 * _PIXEL, 3.0 * _PIXEL))
        for _ in range(4):
            left, right = chi2(x - step), chi2(x + step)
            curvature = left - 2.0 * middle + right
            if not curvature > 0:
                return replace(one, chi2=middle + rarity)
            offset = float(np.clip(0.5 * (left - right) / curvature, -1.0, 1.0))
            x += offset * step
            middle = chi2(x)
            if abs(offset) < 0.25:
                break
        sigma = (1.0 + np.expm1(x)) * step * np.sqrt(2.0 / curvature)
        z = float(np.expm1(x))
        return replace(one, chi2=middle + rarity, redshift=z, sigma=float(sigma))

    def without_strongest_feature(
        self, best: Minimum, model: np.ndarray, others: Sequence[tuple[float, Minimum]]
    ) -> float:
        """Return Δχ² to the best other redshift without the narrow feature that counts most.

        Parameters
        ----------
        model : float64 [L]
            Of the best candidate.
        others : sequence of (float, Minimum)
            Candidates and by how much their χ² is above the best one's.

        Returns
        -------
        float
            Infinite where no candidate comes near.
        """
        smooth = uniform_filter1d(model, _SMOOTH)
        gain = self.weight * (np.square(self.flux - smooth) - np.square(self.flux - model))
        sums = np.convolve(gain, np.ones(_NARROW), "same")
        centre = int(np.argmax(sums))
        hidden = slice(max(centre - _NARROW // 2, 0), centre + _NARROW // 2 + 1)
        near = [(more, one) for more, one in others if more < _CLEAR + 2.0 * max(sums[centre], 0.0)]
        if not near:
            return np.inf
        weight, forest = self.weight.copy(), self.forest.copy()
        weight[hidden] = forest[hidden] = 0.0
        kept = Evidence(self.scan, self.bases, self.flux, weight, forest)

        def change(one: Minimum, seen: np.ndarray) -> float:
            return float(kept.cost(one, kept.model(one)).sum() - self.cost(one, seen).sum())

        own = change(best, model)
        return min(more + change(one, self.model(one)) - own for more, one in near)


def another_redshift(best: Minimum, other: Minimum) -> bool:
    """Return whether two candidates are different answers: other redshifts, or one is a star."""
    if STAR in (best.spectype, other.spectype) and best.spectype != other.spectype:
        return True
    return apart(best.redshift, other.redshift)


def competing(minima: Sequence[Minimum], bases: Sequence[TemplateBasis]) -> list[Minimum]:
    """Return the candidates with troughs that are not clearly worse than all without."""
    plain = [one.chi2 for one in minima if not bases[one.basis].troughs]
    limit = min(plain, default=np.inf) + _CLEAR
    return [one for one in minima if bases[one.basis].troughs and one.chi2 < limit]
