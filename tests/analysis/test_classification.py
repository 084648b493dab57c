"""Classification scores against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as reference

from skyray.analysis import classification

CLASSES = ("STAR", "GALAXY", "QSO", "NEVER")


@pytest.fixture(scope="module")
def answers() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    truth = rng.choice(CLASSES[:3], 400, p=[0.6, 0.3, 0.1])
    return truth, np.where(rng.random(400) < 0.8, truth, rng.choice(CLASSES[:3], 400))


def test_scores_match_scikit_learn(answers):
    truth, predicted = answers
    found = classification.confusion_matrix(truth, predicted, CLASSES)
    np.testing.assert_array_equal(
        found, reference.confusion_matrix(truth, predicted, labels=CLASSES)
    )
    assert classification.accuracy(found) == reference.accuracy_score(truth, predicted)
    assert classification.balanced_accuracy(found) == pytest.approx(
        reference.balanced_accuracy_score(truth, predicted)
    )


def test_per_class_matches_scikit_learn(answers):
    truth, predicted = answers
    matrix = classification.confusion_matrix(truth, predicted, CLASSES)
    found = classification.per_class(matrix, CLASSES)
    expected = reference.precision_recall_fscore_support(truth, predicted, labels=CLASSES[:3])
    for i, name in enumerate(CLASSES[:3]):
        row = [found[name][key] for key in ("precision", "recall", "f1", "rows")]
        np.testing.assert_allclose(row, [column[i] for column in expected])
    assert np.isnan(found["NEVER"]["recall"])
    assert found["NEVER"]["rows"] == 0


def test_unknown_labels_are_named():
    with pytest.raises(ValueError, match="BLAZAR"):
        classification.confusion_matrix(np.array(["BLAZAR"]), np.array(["STAR"]), CLASSES)


def test_no_rows_give_nan():
    empty = classification.confusion_matrix(np.array([]), np.array([]), CLASSES)
    assert np.isnan(classification.accuracy(empty))
    assert np.isnan(classification.balanced_accuracy(empty))


def test_rates_in_bins():
    value = np.array([0.5, 1.5, 1.6, 1.9, 9.0, np.nan])
    success = np.array([True, True, False, True, True, True])
    found = classification.fraction_in_bins(value, success, [0, 1, 2, 3])
    assert found["rows"] == [1, 3, 0]
    assert found["rate"][:2] == [1.0, pytest.approx(2 / 3)]
    assert np.isnan(found["rate"][2])
    assert found["error"][0] > 0, "one success of one is not certainty"


def test_roc_agrees_with_scikit_learn_with_ties():
    rng = np.random.default_rng(2)
    target, score = rng.random(300) < 0.3, rng.integers(0, 12, 300) / 11
    for values in (score, np.where(score == 1, np.inf, score)):  # infinite scores are ranked
        false, true = classification.roc_curve(values, target)
        expected = reference.roc_curve(target, score, drop_intermediate=False)
        np.testing.assert_allclose(false, expected[0])
        np.testing.assert_allclose(true, expected[1])
        area = reference.roc_auc_score(target, score)
        assert classification.roc_auc(values, target) == pytest.approx(area)


def test_roc_auc_needs_both_classes_and_numbers():
    assert np.isnan(classification.roc_auc(np.ones(3), np.ones(3)))
    assert np.isnan(classification.roc_auc(np.zeros(0), np.zeros(0)))
    assert classification.roc_auc(np.ones(4), np.array([0, 1, 0, 1])) == 0.5
    with pytest.raises(ValueError, match="1 NaN"):
        classification.roc_auc(np.array([0.1, np.nan]), np.array([0, 1]))


@pytest.mark.parametrize(("failures", "trials"), [(0, 148), (3, 70), (69, 70), (70, 70)])
def test_upper_limit_is_scipys_exact_one(failures, trials):
    exact = stats.binomtest(failures, trials, alternative="less").proportion_ci(0.95, "exact")
    assert classification.upper_limit(failures, trials) == pytest.approx(exact.high)
    assert np.isnan(classification.upper_limit(0, 0))
    with pytest.raises(ValueError, match="failures"):
        classification.upper_limit(trials + 1, trials)
