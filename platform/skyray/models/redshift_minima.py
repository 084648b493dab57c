"""Distinct minima of χ² along redshift, between the steps and with what curvature says of σ."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from skyray.models.redshift_scan import Curve
from skyray.models.template_bases import LIGHT_KMS

APART_KMS = 1000.0  # redshifts nearer than this are one


@dataclass(frozen=True)
class Minimum:
    """A place where a basis fits best.

    Attributes
    ----------
    chi2 : float
        At the vertex of the parabola through the lowest step and its neighbours, with the basis's
        `rarity`.
    redshift, sigma : float
        The vertex, and the 1 σ of χ² + 1.
    basis : int
        Which of the bases.
    spectype, subtype : str
    at_edge : bool
        Whether it is the end of the basis's range: χ² falls on beyond.
    """

    chi2: float
    redshift: float
    sigma: float
    basis: int
    spectype: str
    subtype: str
    at_edge: bool = False


def apart(a: float, b: float, kms: float = APART_KMS) -> bool:
    """Return whether two redshifts differ by more than a velocity."""
    return abs(np.log1p(a) - np.log1p(b)) * LIGHT_KMS > kms


def best_minima(
    curves: Sequence[Curve],
    row: int,
    most: int = 3,
    revise: Callable[[list[Minimum]], list[Minimum]] = list,
) -> list[Minimum]:
    """Return the best distinct minima of each class for one spectrum, best first.

    `revise` sees the minima of all bases, `most` of each (more of those with troughs, many of which
    it may refuse), before the best of each class are chosen.
    """
    minima: list[Minimum] = []
    for number, curve in enumerate(curves):
        count = 2 * most if curve.basis.troughs else most
        minima += _minima(number, curve, curve.chi2_BS[row] + curve.basis.rarity, count)
    found: dict[str, list[Minimum]] = {}
    for one in revise(minima):
        found.setdefault(one.spectype, []).append(one)
    kept = [one for some in found.values() for one in _distinct(some, most)]
    return sorted(kept, key=lambda one: one.chi2)


def refined(one: Minimum, curve: Curve | None) -> Minimum:
    """Return a minimum moved to the nearest one of a better curve of its basis, where it has one.

    χ² stays that of the scan: that of the curve is up to a constant.
    """
    if curve is None:
        return one
    chi2 = curve.chi2_BS[0]
    inner = np.flatnonzero((chi2[1:-1] < chi2[:-2]) & (chi2[1:-1] <= chi2[2:])) + 1
    if not len(inner):
        return one
    at = int(inner[np.argmin(chi2[inner])])
    vertex = _vertex(one.basis, curve, chi2, at)
    return replace(one, redshift=vertex.redshift, sigma=vertex.sigma)


def _distinct(minima: list[Minimum], most: int) -> list[Minimum]:
    kept: list[Minimum] = []
    for one in sorted(minima, key=lambda one: (one.at_edge, one.chi2)):
        if len(kept) < most and all(apart(one.redshift, other.redshift) for other in kept):
            kept.append(one)
    return kept


def _minima(number: int, curve: Curve, chi2: np.ndarray, most: int) -> list[Minimum]:
    inner = np.flatnonzero((chi2[1:-1] < chi2[:-2]) & (chi2[1:-1] <= chi2[2:])) + 1
    # Neighbours crowd about a good minimum: of some more than wanted the distinct ones are taken.
    if len(inner) > 8 * most:
        inner = inner[np.argpartition(chi2[inner], 8 * most)[: 8 * most]]
    found = [_vertex(number, curve, chi2, int(at)) for at in inner]
    if not found and len(chi2) and np.ptp(chi2) > 0:
        at, basis = int(np.argmin(chi2)), curve.basis
        z = float(curve.redshift[at])
        edge = Minimum(float(chi2[at]), z, np.nan, number, basis.spectype, basis.subtype, True)
        found = [edge]
    return _distinct(found, most)


def _vertex(number: int, curve: Curve, chi2: np.ndarray, at: int) -> Minimum:
    """Return the vertex of the parabola in ln (1 + z) through three steps."""
    left, middle, right = chi2[at - 1 : at + 2]
    x = np.log1p(curve.redshift[at - 1 : at + 2])
    curvature = left - 2.0 * middle + right  # > 0 at a minimum
    offset = 0.5 * (left - right) / curvature
    z = float(np.expm1(x[1] + offset * (x[2] - x[1])))
    sigma = (1.0 + z) * (x[2] - x[1]) * np.sqrt(2.0 / curvature)
    lowest = float(middle - 0.25 * (left - right) * offset)
    basis = curve.basis
    return Minimum(lowest, z, float(sigma), number, basis.spectype, basis.subtype)
