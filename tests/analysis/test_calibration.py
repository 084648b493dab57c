"""Calibration against scikit-learn, independent fits and distributions with known answers."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from sklearn.calibration import calibration_curve
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from skyray.analysis import calibration


def draw_logits(rows: int, temperature: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits whose true class is drawn from softmax(logits / temperature)."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(rows, 4)) * 3
    probability = calibration.apply_temperature(logits, temperature)
    target = (probability.cumsum(axis=1) < rng.random((rows, 1))).sum(axis=1)
    return logits, target


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_temperature_is_recovered(temperature):
    logits, target = draw_logits(20_000, temperature)
    assert calibration.fit_temperature(logits, target) == pytest.approx(temperature, rel=0.05)


def test_temperature_agrees_with_logistic_regression():
    # For two classes, softmax(z / T) is a logistic regression of z1 - z0 without intercept: 1/T.
    rng = np.random.default_rng(1)
    margin = rng.normal(size=5000) * 4
    target = (rng.random(5000) < 1 / (1 + np.exp(-margin / 2.5))).astype(int)
    model = LogisticRegression(C=1e10, fit_intercept=False).fit(margin[:, None], target)
    logits = np.stack([np.zeros(5000), margin], axis=1)
    fitted = calibration.fit_temperature(logits, target)
    assert fitted == pytest.approx(1 / model.coef_[0, 0], rel=0.01)


def test_faultless_validation_set_does_not_claim_certainty():
    target = np.arange(100) % 3
    logits = np.eye(3)[target] * 2.0
    temperature = calibration.fit_temperature(logits, target)
    top = calibration.apply_temperature(logits, temperature).max(axis=1)
    assert top.min() > 0.95
    assert top.max() < 0.999


def test_few_rows_leave_probabilities_alone():
    logits, target = draw_logits(calibration.MIN_ROWS - 1, 4.0)
    assert calibration.fit_temperature(logits, target) == 1.0


def test_temperature_keeps_the_predicted_class_and_lowers_the_error():
    logits, target = draw_logits(4000, 3.0)
    raw = calibration.apply_temperature(logits, 1.0)
    calibrated = calibration.apply_temperature(logits, calibration.fit_temperature(logits, target))
    np.testing.assert_array_equal(raw.argmax(1), calibrated.argmax(1))
    np.testing.assert_allclose(calibrated.sum(1), 1.0)
    assert calibration.expected_calibration_error(raw, target) > 0.15
    assert calibration.expected_calibration_error(calibrated, target) < 0.03


def test_temperature_must_be_positive():
    with pytest.raises(ValueError, match="temperature"):
        calibration.apply_temperature(np.zeros((1, 2)), 0.0)


def test_targets_out_of_range_are_refused():
    with pytest.raises(ValueError, match="target"):
        calibration.fit_temperature(np.zeros((2, 2)), np.array([0, 2]))


@pytest.mark.parametrize("errors", [stats.norm, stats.laplace, stats.t(2)])
@pytest.mark.parametrize("factor", [0.2, 5.0])
def test_sigma_scale_covers_new_rows_whatever_the_distribution(errors, factor):
    rng = np.random.default_rng(2)
    truth_sigma = rng.lognormal(-6, 1, 6000)
    residual = errors.rvs(size=6000, random_state=rng) * truth_sigma
    sigma = truth_sigma * factor
    fit = calibration.fit_sigma_scale(residual[:3000], sigma[:3000])
    new = calibration.apply_sigma_scale(sigma[3000:], *fit)
    assert np.mean(np.abs(residual[3000:]) <= new) == pytest.approx(0.6827, abs=0.03)


def test_gaussian_errors_scale_by_the_inverse_of_the_overstatement():
    rng = np.random.default_rng(3)
    sigma = rng.uniform(0.5, 2.0, 20_000)
    fit = calibration.fit_sigma_scale(rng.normal(size=20_000) * sigma, sigma * 4, floor=0.0)
    assert fit.scale == pytest.approx(0.25, rel=0.02)
    assert fit.floor == 0.0


def test_collapsed_ensemble_does_not_claim_zero():
    rng = np.random.default_rng(4)
    residual = rng.normal(0, 1e-3, 2000)
    fit = calibration.fit_sigma_scale(residual, np.zeros(2000))
    claimed = calibration.apply_sigma_scale(np.zeros(1), *fit)
    assert claimed[0] == pytest.approx(1e-3, rel=0.1)


def test_floor_follows_the_scatter_that_sigma_does_not_know():
    rng = np.random.default_rng(5)
    sigma = rng.lognormal(-4, 2, 5000)
    residual = rng.laplace(size=5000) * np.sqrt(sigma**2 + 0.01**2)
    free = calibration.fit_sigma_scale(residual, sigma)
    assert 0.003 < free.floor < 0.03


def test_few_rows_only_widen():
    residual = np.array([0.1, -0.2, 0.3, 0.05])
    sigma = np.full(4, 0.01)
    fit = calibration.fit_sigma_scale(residual, sigma)
    assert fit == (1.0, 0.3)
    assert calibration.fit_sigma_scale(residual[:0], sigma[:0]) == (1.0, 0.0)


def test_exact_predictions_give_a_positive_finite_sigma():
    fit = calibration.fit_sigma_scale(np.zeros(50), np.zeros(50))
    assert np.isfinite(fit).all()
    assert fit.floor > 0


def test_unfinished_rows_are_left_out():
    residual = np.r_[np.random.default_rng(6).normal(size=500), np.nan, 1.0]
    sigma = np.r_[np.ones(501), np.inf]
    assert calibration.fit_sigma_scale(residual, sigma) == calibration.fit_sigma_scale(
        residual[:500], sigma[:500]
    )


def test_negative_sigma_is_refused():
    with pytest.raises(ValueError, match="sigma"):
        calibration.fit_sigma_scale(np.zeros(30), np.full(30, -1.0))


def test_reliability_curve_matches_scikit_learn():
    rng = np.random.default_rng(7)
    confidence = rng.uniform(0.01, 0.99, 3000)
    correct = rng.random(3000) < confidence**2
    curve = calibration.reliability_curve(confidence, correct, bins=10)
    accuracy, mean = calibration_curve(correct, confidence, n_bins=10)
    used = curve.count > 0
    np.testing.assert_allclose(curve.accuracy[used], accuracy)
    np.testing.assert_allclose(curve.confidence[used], mean)


def test_calibration_error_of_a_constant_claim():
    probability = np.tile([0.9, 0.1], (100, 1))
    target = (np.arange(100) >= 60).astype(int)  # right in 60 of 100
    error = calibration.expected_calibration_error(probability, target)
    assert error == pytest.approx(0.3)


def test_scores_match_scikit_learn():
    logits, target = draw_logits(500, 2.0)
    probability = calibration.apply_temperature(logits, 2.0)
    expected = log_loss(target, probability, labels=range(4))
    assert calibration.negative_log_likelihood(probability, target) == pytest.approx(expected)
    one_hot = np.eye(4)[target]
    expected = ((probability - one_hot) ** 2).sum(axis=1).mean()
    assert calibration.brier_score(probability, target) == pytest.approx(expected)
    assert np.isnan(calibration.brier_score(probability[:0], target[:0]))


def test_transform_is_uniform_for_calibrated_errors_only():
    rng = np.random.default_rng(8)
    sigma = rng.uniform(0.1, 3.0, 5000)
    truth = rng.normal(size=5000) * sigma
    values = calibration.probability_integral_transform(truth, np.zeros(5000), sigma)
    assert stats.kstest(values, "uniform").pvalue > 0.01
    wide = calibration.probability_integral_transform(truth, np.zeros(5000), sigma * 2)
    assert stats.kstest(wide, "uniform").pvalue < 1e-6
    assert np.isnan(calibration.probability_integral_transform([0.0], [0.0], [0.0])).all()


def test_coverage_of_gaussian_errors_is_the_level():
    rng = np.random.default_rng(9)
    sigma = rng.uniform(0.1, 3.0, 20_000)
    levels = [0.1, 0.5, 0.6827, 0.9545, 0.9973]
    found = calibration.coverage(rng.normal(size=20_000) * sigma, sigma, levels)
    np.testing.assert_allclose(found, levels, atol=0.01)
