"""Making stated uncertainties true: temperatures, conformal error scales and their checks.

Pure numpy and scipy. Shape suffixes: N rows, C classes. Residuals and sigmas carry the unit of
the quantity they belong to (for redshifts: dimensionless).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import log_softmax, ndtr, ndtri, softmax

ONE_SIGMA = 0.6827
MIN_ROWS = 20
TEMPERATURE_BOUNDS = (0.05, 20.0)


class ReliabilityCurve(NamedTuple):
    """Stated against observed probability in bins; empty bins hold NaN and count 0."""

    edges: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray
    count: np.ndarray


class SigmaScale(NamedTuple):
    """σ_cal = scale · √(σ² + floor²)."""

    scale: float
    floor: float


def fit_temperature(logits_NC: np.ndarray, target_N: np.ndarray) -> float:
    """Return the temperature T that minimises the negative log-likelihood of softmax(logits / T).

    Targets are softened by 1 / (N + 2), as in Platt (1999): a validation set without a single
    error would otherwise drive T to 0 and claim certainty that N rows cannot support. The effect
    vanishes with N. T is kept within `TEMPERATURE_BOUNDS`.

    Parameters
    ----------
    logits_NC : float [N, C]
    target_N : int [N]
        Index of the true class. Rows with non-finite logits are left out.

    Returns
    -------
    float
        1.0 (no change) with fewer than `MIN_ROWS` rows.

    References
    ----------
    Guo et al. 2017, "On calibration of modern neural networks", ICML.
    """
    logits, target = _check_scores(logits_NC, target_N)
    finite = np.isfinite(logits).all(axis=1)
    logits, target = logits[finite], target[finite]
    if len(logits) < MIN_ROWS:
        return 1.0
    rows, classes = logits.shape
    soft = np.full((rows, classes), 1.0 / (rows + 2) / classes)
    soft[np.arange(rows), target] += 1.0 - 1.0 / (rows + 2)

    def loss(log_temperature: float) -> float:
        return -np.mean((soft * log_softmax(logits / np.exp(log_temperature), axis=1)).sum(1))

    low, high = np.log(TEMPERATURE_BOUNDS)
    # Imported where used: it takes a second, and every training worker imports this module.
    from scipy.optimize import minimize_scalar

    best = minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-5})
    return float(np.exp(best.x))


def apply_temperature(logits_NC: np.ndarray, temperature: float) -> np.ndarray:
    """Return class probabilities softmax(logits / T), float64 [N, C]."""
    if not temperature > 0:
        raise ValueError(f"temperature: expected > 0, found {temperature}")
    return softmax(np.asarray(logits_NC, dtype=np.float64) / temperature, axis=1)


def fit_sigma_scale(
    residual_N: np.ndarray,
    sigma_N: np.ndarray,
    level: float = ONE_SIGMA,
    floor: float | None = None,
) -> SigmaScale:
    """Fit σ_cal = scale · √(σ² + floor²) so that |residual| ≤ σ_cal holds for `level` of the rows.

    The scale is the split-conformal quantile: the ⌈(n+1)·level⌉-th smallest of
    |residual| / √(σ² + floor²), so a new row of the same distribution is covered with probability
    ≥ `level` whatever the shape of the errors. The floor keeps an ensemble whose members agree by
    chance from claiming σ = 0; unless given it is the one, among 25 between 1 % and 10 times the
    typical residual, with the highest Laplace likelihood (heavy tails: catastrophic redshifts must
    not decide it).

    Parameters
    ----------
    residual_N, sigma_N : float [N]
        Prediction − truth, and the uncalibrated σ ≥ 0. Rows with non-finite values are left out.
    level : float
        Coverage wanted for one σ_cal.
    floor : float, optional
        Fixed floor, in the residual's unit.

    Returns
    -------
    SigmaScale
        With fewer than `MIN_ROWS` rows a quantile is too noisy to shrink anything: scale 1 and
        floor = the conformal quantile of |residual| itself, which only widens. With no row at all:
        scale 1 and the given floor (or 0), that is, σ unchanged.

    References
    ----------
    Lei et al. 2018, JASA 113, 1094 (split conformal, locally weighted residuals).
    """
    if not 0 < level < 1:
        raise ValueError(f"level: expected 0 < level < 1, found {level}")
    size, sigma = _check_errors(residual_N, sigma_N)
    if size.size == 0:
        return SigmaScale(1.0, float(floor or 0.0))
    typical = _conformal_quantile(size, level)
    if size.size < MIN_ROWS:
        return SigmaScale(1.0, float(max(floor or 0.0, typical)))
    if floor is None:
        floor = _likeliest_floor(size, sigma, level, typical)
    width = np.sqrt(sigma**2 + floor**2)
    score = np.divide(size, width, out=np.where(size > 0, np.inf, 0.0), where=width > 0)
    scale = _conformal_quantile(score, level)
    return SigmaScale(float(scale) if np.isfinite(scale) else 1.0, float(floor))


def apply_sigma_scale(sigma_N: np.ndarray, scale: float, floor: float) -> np.ndarray:
    """Return σ_cal = scale · √(σ² + floor²), float64 [N]."""
    return scale * np.sqrt(np.square(np.asarray(sigma_N, dtype=np.float64)) + floor**2)


def reliability_curve(
    confidence_N: np.ndarray, correct_N: np.ndarray, bins: int = 15
) -> ReliabilityCurve:
    """Return mean confidence and accuracy in `bins` equal bins of confidence over [0, 1]."""
    confidence = np.asarray(confidence_N, dtype=np.float64)
    correct = np.asarray(correct_N, dtype=np.float64)
    edges = np.linspace(0.0, 1.0, bins + 1)
    index = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)
    count = np.bincount(index, minlength=bins)
    with np.errstate(invalid="ignore"):
        mean = np.bincount(index, weights=confidence, minlength=bins) / count
        hits = np.bincount(index, weights=correct, minlength=bins) / count
    return ReliabilityCurve(edges, mean, hits, count)


def expected_calibration_error(
    probability_NC: np.ndarray, target_N: np.ndarray, bins: int = 15
) -> float:
    """Return Σ_bins n_b/N · |accuracy_b − confidence_b| of the top class (Guo et al. 2017, eq. 3).

    NaN without rows.
    """
    probability, target = _check_scores(probability_NC, target_N)
    if not len(target):
        return float("nan")
    top = probability.argmax(axis=1)
    curve = reliability_curve(probability.max(axis=1), top == target, bins)
    used = curve.count > 0
    gap = np.abs(curve.accuracy[used] - curve.confidence[used])
    return float(np.sum(gap * curve.count[used]) / len(target))


def negative_log_likelihood(probability_NC: np.ndarray, target_N: np.ndarray) -> float:
    """Return the mean −ln p of the true class; p is clipped at 1e-12. NaN without rows."""
    probability, target = _check_scores(probability_NC, target_N)
    if not len(target):
        return float("nan")
    chosen = probability[np.arange(len(target)), target]
    return float(-np.mean(np.log(np.clip(chosen, 1e-12, 1.0))))


def brier_score(probability_NC: np.ndarray, target_N: np.ndarray) -> float:
    """Return the mean Σ_classes (p − one-hot)², between 0 and 2 (Brier 1950). NaN without rows."""
    probability, target = _check_scores(probability_NC, target_N)
    if not len(target):
        return float("nan")
    return float(np.mean(np.sum((probability - np.eye(probability.shape[1])[target]) ** 2, axis=1)))


def probability_integral_transform(
    truth_N: np.ndarray, mean_N: np.ndarray, sigma_N: np.ndarray
) -> np.ndarray:
    """Return Φ((truth − mean)/σ) [N]: uniform on [0, 1] where Gaussian errors are calibrated.

    NaN where σ is 0 or any value is not finite.
    """
    sigma = np.asarray(sigma_N, dtype=np.float64)
    distance = np.asarray(truth_N, dtype=np.float64) - np.asarray(mean_N, dtype=np.float64)
    score = np.divide(distance, sigma, out=np.full(sigma.shape, np.nan), where=sigma > 0)
    return ndtr(score)


def coverage(residual_N: np.ndarray, sigma_N: np.ndarray, levels: Sequence[float]) -> np.ndarray:
    """Return the fraction of rows inside the central Gaussian interval of each level, float64.

    The interval of level p is ± Φ⁻¹((1+p)/2) · σ; 0.6827 is ± 1 σ. NaN without rows.
    """
    size, sigma = _check_errors(residual_N, sigma_N)
    if not size.size:
        return np.full(len(levels), np.nan)
    half_width = ndtri(0.5 * (1.0 + np.asarray(levels, dtype=np.float64)))
    return np.array([np.mean(size <= factor * sigma) for factor in half_width])


def _conformal_quantile(score: np.ndarray, level: float) -> float:
    rank = min(int(np.ceil((score.size + 1) * level)), score.size)
    return float(np.partition(score, rank - 1)[rank - 1])


def _likeliest_floor(size: np.ndarray, sigma: np.ndarray, level: float, typical: float) -> float:
    if typical == 0.0:  # nearly every prediction is exact: stay above 0 at float32's resolution
        return float(np.finfo(np.float32).eps)
    best, best_score = typical, np.inf
    for floor in np.geomspace(0.01 * typical, 10.0 * typical, 25):
        width = np.sqrt(sigma**2 + floor**2)
        width = width * _conformal_quantile(size / width, level)
        score = np.mean(np.log(width) + size / width)
        if score < best_score:
            best, best_score = floor, score
    return float(best)


def _check_scores(values_NC: np.ndarray, target_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    values = np.asarray(values_NC, dtype=np.float64)
    target = np.asarray(target_N)
    if values.ndim != 2 or target.shape != values.shape[:1]:
        raise ValueError(f"expected [N, C] and [N], found {values.shape} and {target.shape}")
    if target.size and (target.min() < 0 or target.max() >= values.shape[1]):
        raise ValueError(f"target: expected 0 … {values.shape[1] - 1}, found {target.max()}")
    return values, target.astype(np.int64)


def _check_errors(residual_N: np.ndarray, sigma_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    residual = np.abs(np.asarray(residual_N, dtype=np.float64))
    sigma = np.asarray(sigma_N, dtype=np.float64)
    if residual.ndim != 1 or residual.shape != sigma.shape:
        raise ValueError(f"expected [N] and [N], found {residual.shape} and {sigma.shape}")
    used = np.isfinite(residual) & np.isfinite(sigma)
    if (sigma[used] < 0).any():
        raise ValueError(f"sigma: expected ≥ 0, found {sigma[used].min()}")
    return residual[used], sigma[used]
