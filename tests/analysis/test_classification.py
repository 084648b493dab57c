"""Classification scores against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
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
