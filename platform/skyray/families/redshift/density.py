"""The probability of the redshift of one spectrum: what templates and networks say, multiplied.

Templates' likelihood is a profile: at each redshift that of the best coefficients. Its mode is the
template fit's redshift, to a bin's width, for both follow the same costs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from scipy.ndimage import gaussian_filter1d

from skyray.families.base import OutputColumn
from skyray.families.redshift.recipes import FitConfig
from skyray.models.redshift_minima import Minimum
from skyray.models.redshift_scan import Curve
from skyray.models.template_bases import LIGHT_KMS

PDF_STEP, PDF_SIZE = 1e-3, 2080  # in ln (1 + z), from 0 on: up to z = 7

COLUMN = OutputColumn(
    "redshift_pdf", "float32", "",
    f"probability, templates times networks, in {PDF_SIZE} bins: bin i is ln(1+z) from "
    f"{PDF_STEP:g} i to {PDF_STEP:g} (i+1); the first holds all below, too",
)  # fmt: skip


def bin_redshifts() -> np.ndarray:
    """Return the redshifts in the middle of the bins, float64 [PDF_SIZE]."""
    return np.expm1(PDF_STEP * (np.arange(PDF_SIZE) + 0.5))


def density(
    curves: Sequence[Curve],
    row: int,
    spread: float,
    prior: Callable[[str, np.ndarray], np.ndarray],
    changes: Mapping[Minimum, float],
    settings: FitConfig,
) -> np.ndarray:
    """Return the probability in bins of ln (1 + z), float32 [PDF_SIZE], sum 1.

    Redshifts below 0, of stars and neighbours, count in the first bin.

    Parameters
    ----------
    spread : float
        Differences of χ² are divided by it, as errors are widened by its root.
    prior : callable
        (class, redshifts) → −2 ln of the networks' prior.
    changes : mapping
        Minima → what χ² of the model itself is more or less than the scan's; it holds for redshifts
        to which no other minimum of that basis is nearer.
    settings : FitConfig
        Its systematic σ a class widens what that class contributes.
    """
    costs = []
    for number, curve in enumerate(curves):
        cost = (curve.chi2_BS[row] + curve.basis.rarity) / spread
        own = {one: more for one, more in changes.items() if one.basis == number}
        if own:
            at = np.log1p([one.redshift for one in own])
            nearest = np.abs(np.log1p(curve.redshift)[:, None] - at).argmin(axis=1)
            cost = cost + np.array(list(own.values()))[nearest] / spread
        costs.append(cost + prior(curve.basis.spectype, curve.redshift))
    lowest = min(float(cost.min()) for cost in costs)
    total = np.zeros(PDF_SIZE)
    for curve, cost in zip(curves, costs, strict=True):
        at = np.clip(np.log1p(curve.redshift) / PDF_STEP, 0, PDF_SIZE - 1).astype(int)
        chance = np.exp(-0.5 * np.clip(cost - lowest, 0.0, 80.0)) * curve.basis.stride
        width = settings.systematic_kms(curve.basis.spectype) / LIGHT_KMS / PDF_STEP
        total += gaussian_filter1d(np.bincount(at, chance, PDF_SIZE), width, mode="reflect")
    return (total / total.sum()).astype(np.float32)
