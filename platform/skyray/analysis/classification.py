"""Scores of a classifier, from class names or from the score of one class; for all families.

Pure numpy. A confusion matrix counts rows of the truth against columns of the prediction, in the
order of `classes`.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from scipy.special import betaincinv


def confusion_matrix(
    label_N: np.ndarray, predicted_N: np.ndarray, classes: Sequence[str]
) -> np.ndarray:
    """Return counts int64 [C, C]: truth down, prediction across.

    Raises
    ------
    ValueError
        If a true label is not among `classes`, or a prediction is not.
    """
    size = len(classes)
    cell = index_of(label_N, classes) * size + index_of(predicted_N, classes)
    return np.bincount(cell, minlength=size * size).reshape(size, size)


def index_of(labels_N: np.ndarray, classes: Sequence[str]) -> np.ndarray:
    """Return each label's index in `classes`, int64 [N].

    Raises
    ------
    ValueError
        Naming the labels that are not among `classes`.
    """
    order = {name: i for i, name in enumerate(classes)}
    names, inverse = np.unique(np.asarray(labels_N, dtype=str), return_inverse=True)
    strange = [str(name) for name in names if name not in order]
    if strange:
        raise ValueError(f"labels: expected some of {list(classes)}, found {strange}")
    return np.array([order[name] for name in names], dtype=np.int64)[inverse.reshape(-1)]


def accuracy(confusion_CC: np.ndarray) -> float:
    """Return the fraction of rows on the diagonal; NaN without rows."""
    total = confusion_CC.sum()
    return float(np.trace(confusion_CC) / total) if total else float("nan")


def balanced_accuracy(confusion_CC: np.ndarray) -> float:
    """Return the mean recall over the classes that occur in the truth; NaN without rows."""
    support = confusion_CC.sum(axis=1)
    used = support > 0
    return float(np.mean(np.diag(confusion_CC)[used] / support[used])) if used.any() else np.nan


def per_class(confusion_CC: np.ndarray, classes: Sequence[str]) -> dict[str, dict[str, float]]:
    """Return recall (completeness), precision (purity), F1 and rows of every class.

    Precision is NaN for a class never predicted, recall for one that never occurs.
    """
    hits = np.diag(confusion_CC).astype(np.float64)
    support, called = confusion_CC.sum(axis=1), confusion_CC.sum(axis=0)
    undefined = np.full(len(classes), np.nan)
    recall = np.divide(hits, support, out=undefined.copy(), where=support > 0)
    precision = np.divide(hits, called, out=undefined.copy(), where=called > 0)
    f1 = np.divide(2 * hits, support + called, out=undefined.copy(), where=support + called > 0)
    return {
        name: {
            "recall": float(recall[i]),
            "precision": float(precision[i]),
            "f1": float(f1[i]),
            "rows": int(support[i]),
        }
        for i, name in enumerate(classes)
    }


def upper_limit(failures: int, trials: int, level: float = 0.95) -> float:
    """Return the one-sided upper limit of a failure rate (Clopper & Pearson 1934); NaN of none.

    Were the true rate at the limit, so few failures or fewer had a probability of 1 − `level`: of
    "0 of 100" the rate is below .030 at 95 %.
    """
    if not 0 <= failures <= trials:
        raise ValueError(f"failures: expected 0 … {trials}, found {failures}")
    if failures == trials:
        return 1.0 if trials else float("nan")
    return float(betaincinv(failures + 1, trials - failures, level))


def fraction_in_bins(
    value_N: np.ndarray, success_N: np.ndarray, edges: Sequence[float]
) -> dict[str, list[float]]:
    """Return the success rate in bins of `value`: edges, median value, rate, error and rows.

    The error is half the width of the 68 % Wilson interval. Values outside the edges or NaN are
    left out; empty bins hold NaN. Bins are [low, high).
    """
    value, success = np.asarray(value_N, np.float64), np.asarray(success_N, bool)
    rows, rate, error, middle = [], [], [], []
    for low, high in itertools.pairwise(edges):
        chosen = (value >= low) & (value < high)
        count = int(chosen.sum())
        rows.append(count)
        fraction = float(success[chosen].mean()) if count else float("nan")
        rate.append(fraction)
        middle.append(float(np.median(value[chosen])) if count else float("nan"))
        error.append(
            float(np.sqrt(fraction * (1 - fraction) / count + 0.25 / count**2) / (1 + 1 / count))
            if count
            else float("nan")
        )
    return {
        "edges": [float(edge) for edge in edges],
        "value": middle,
        "rate": rate,
        "error": error,
        "rows": rows,
    }


def roc_curve(score_N: np.ndarray, target_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return false and true positive rates of falling thresholds, from (0, 0) to (1, 1).

    Larger scores speak for the class with target 1; equal ones pass a threshold together. Errors
    are those of `checked_scores`.
    """
    score, target = checked_scores(score_N, target_N)
    order = np.argsort(-score, kind="stable")
    ranked = score[order]
    last = np.append(np.flatnonzero(ranked[1:] != ranked[:-1]), len(score) - 1)  # ties together
    hits = np.cumsum(target[order])[last]
    misses = last + 1 - hits
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.append(0, misses / misses[-1]), np.append(0, hits / hits[-1])


def roc_auc(score_N: np.ndarray, target_N: np.ndarray) -> float:
    """Return the area under the ROC curve; ties count half, NaN without both classes."""
    score, target = checked_scores(score_N, target_N)
    if target.all() or not target.any():
        return float("nan")
    false, true = roc_curve(score, target)
    return float(np.trapezoid(true, false))


def checked_scores(score_N: np.ndarray, target_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return scores float64 [N] and targets int64 [N], 1 for the class that is sought, else 0.

    Raises
    ------
    ValueError
        If their shapes differ, or a score is NaN.
    """
    score, target = np.asarray(score_N, np.float64), np.asarray(target_N).astype(np.int64)
    if score.shape != target.shape or score.ndim != 1:
        raise ValueError(f"expected [N] and [N], found {score.shape} and {target.shape}")
    if np.isnan(score).any():
        raise ValueError(f"score: expected numbers, found {int(np.isnan(score).sum())} NaN")
    return score, target
