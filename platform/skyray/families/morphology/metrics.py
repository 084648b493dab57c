"""Scores of a morphology catalogue against known labels.

One function for tests, jobs, tracking and figures. N objects. Precision, recall, F1, false-positive
rate and ROC speak of one class, the positive one (``spiral``; Khan et al. 2019, Table II).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from skyray.analysis.calibration import (
    brier_score,
    expected_calibration_error,
    negative_log_likelihood,
)
from skyray.analysis.classification import (
    balanced_accuracy,
    confusion_matrix,
    fraction_in_bins,
    index_of,
    per_class,
    roc_auc,
)
from skyray.families.base import Columns
from skyray.transforms.cutting import ELLIPTICAL_THRESHOLD, SPIRAL_THRESHOLD

VOTE_COLUMNS = {"spiral": "P_CS_DEBIASED", "elliptical": "P_EL_DEBIASED"}
VOTE_EDGES = (0.0, 0.5, 0.6, 0.7, 0.8, 0.9, 0.98, 1.0001)
CURVE_POINTS = 50
_CLUSTER_ROWS = 3000
_NEIGHBOURS = 10


def evaluate_table(table: Columns, classes: Sequence[str], positive: str) -> dict[str, Any]:
    """Return the scores of predictions joined with labels; rows without a label are left out.

    Keys: ``objects`` and `binary_scores` of all; the same with ``half_`` of the most confident
    half; ``classes``, ``confusion``; calibration; ``hp_…`` of the objects with safe votes and
    ``votes`` (accuracy by vote share) where votes are known; ``silhouette`` and ``knn_accuracy``
    of the features where they are given.
    """
    rows = labelled(table, classes)
    if not len(rows["label"]):
        return {"objects": 0}
    found: dict[str, Any] = {"objects": len(rows["label"]), **_scores(rows, classes, positive)}
    half = most_confident(rows["probability"], 0.5)
    found |= {f"half_{k}": v for k, v in _scores(_take(rows, half), classes, positive).items()}
    confusion = confusion_matrix(rows["label"], rows["label_pred"], classes)
    found |= {
        "balanced_accuracy": balanced_accuracy(confusion),
        "in_domain": float(np.mean(rows["in_domain"])) if "in_domain" in rows else np.nan,
        "classes": per_class(confusion, classes),
        "confusion": confusion.tolist(),
        **_calibration(rows, classes),
    }
    votes = vote_shares(rows)
    if votes is not None:
        found |= _by_votes(rows, votes, classes, positive)
    if "embedding" in rows:
        found |= cluster_agreement(rows["embedding"], rows["label"])
    return {name: _plain(value) for name, value in found.items()}


def labelled(table: Columns, classes: Sequence[str]) -> Columns:
    """Return the rows whose true label is among `classes`."""
    known = np.isin(np.asarray(table["label"], dtype=str), list(classes))
    rows = len(known)
    return {k: v[known] for k, v in table.items() if len(np.atleast_1d(v)) == rows}


def binary_scores(
    truth_N: np.ndarray, score_N: np.ndarray, called_N: np.ndarray
) -> dict[str, float]:
    """Return precision, recall, false-positive rate, F1 and ROC AUC of a yes/no decision.

    Parameters
    ----------
    truth_N, called_N : bool [N]
    score_N : float [N]
        Probability of yes.

    Returns
    -------
    dict
        NaN where a score is not defined (no positives, none called).
    """
    truth, called = np.asarray(truth_N, bool), np.asarray(called_N, bool)
    hits, false = int((truth & called).sum()), int((~truth & called).sum())
    precision = hits / called.sum() if called.any() else np.nan
    recall = hits / truth.sum() if truth.any() else np.nan
    total = int(called.sum() + truth.sum())
    return {
        "precision": float(precision),
        "recall": float(recall),
        "fpr": float(false / (~truth).sum()) if (~truth).any() else np.nan,
        "f1": float(2 * hits / total) if total else np.nan,
        "auc": roc_auc(score_N, truth),
    }


def most_confident(probability_N: np.ndarray, share: float) -> np.ndarray:
    """Return the rows of the most confident `share` (at least one), in order of confidence."""
    order = np.argsort(-np.asarray(probability_N, np.float64), kind="stable")
    return order[: max(1, round(share * len(order)))]


def confidence_curve(
    rows: Columns, classes: Sequence[str], positive: str, points: int = CURVE_POINTS
) -> dict[str, list[float]]:
    """Return accuracy and F1 of the most confident share, for shares up to 1 (paper, Fig. 6)."""
    order = most_confident(rows["probability"], 1.0)
    truth = np.asarray(rows["label"], str)[order]
    called = np.asarray(rows["label_pred"], str)[order]
    counts = np.unique(np.linspace(1, len(order), min(points, len(order))).round().astype(int))
    right = np.cumsum(truth == called)
    hits = np.cumsum((truth == positive) & (called == positive))
    named = np.cumsum(truth == positive) + np.cumsum(called == positive)
    with np.errstate(invalid="ignore", divide="ignore"):
        f1 = 2 * hits / named
    return {
        "share": (counts / len(order)).tolist(),
        "accuracy": (right[counts - 1] / counts).tolist(),
        "f1": f1[counts - 1].tolist(),
    }


def vote_shares(rows: Columns) -> np.ndarray | None:
    """Return each object's vote share for its own label, NaN where unknown; None without votes.

    From ``vote_share``, or the survey's own columns in ``extra``.
    """
    if "vote_share" in rows:
        shares = rows["vote_share"]
        return shares if np.isfinite(shares).any() else None
    if "extra" not in rows:
        return None
    shares = np.full(len(rows["label"]), np.nan)
    for row, (text, label) in enumerate(zip(rows["extra"], rows["label"], strict=True)):
        name = VOTE_COLUMNS.get(str(label))
        value = json.loads(text).get(name) if text and name else None
        if isinstance(value, int | float):
            shares[row] = value
    return shares if np.isfinite(shares).any() else None


def cluster_agreement(features_NP: np.ndarray, labels_N: np.ndarray) -> dict[str, float]:
    """Return how far classes are apart among features: silhouette and k-nearest-neighbour accuracy.

    Features are divided by their standard deviations; of more than 3,000 objects a random part is
    used. k = 10, the object itself left out. NaN with fewer than 2 classes of 2 objects.
    """
    labels = np.asarray(labels_N, str)
    names, counts = np.unique(labels, return_counts=True)
    if len(names) < 2 or counts.min() < 2 or len(labels) <= _NEIGHBOURS:
        return {"silhouette": np.nan, "knn_accuracy": np.nan}
    from sklearn.metrics import silhouette_score
    from sklearn.neighbors import NearestNeighbors

    chosen = np.sort(np.random.default_rng(0).permutation(len(labels))[:_CLUSTER_ROWS])
    features, labels = np.asarray(features_NP, np.float64)[chosen], labels[chosen]
    spread = features.std(axis=0)
    features = features / np.where(spread > 0, spread, 1.0)
    near = NearestNeighbors(n_neighbors=_NEIGHBOURS).fit(features).kneighbors(return_distance=False)
    codes = index_of(labels, names.tolist())
    votes = np.eye(len(names))[codes[near]].sum(axis=1)
    return {
        "silhouette": float(silhouette_score(features, labels)),
        "knn_accuracy": float(np.mean(votes.argmax(axis=1) == codes)),
    }


def _scores(rows: Columns, classes: Sequence[str], positive: str) -> dict[str, float]:
    truth, called = np.asarray(rows["label"], str), np.asarray(rows["label_pred"], str)
    return {
        "accuracy": float(np.mean(truth == called)),
        **binary_scores(truth == positive, rows[f"p_{positive}"], called == positive),
    }


def _calibration(rows: Columns, classes: Sequence[str]) -> dict[str, float]:
    probability = np.stack([rows[f"p_{name}"] for name in classes], axis=1)
    target = index_of(rows["label"], classes)
    return {
        "expected_calibration_error": expected_calibration_error(probability, target),
        "negative_log_likelihood": negative_log_likelihood(probability, target),
        "brier_score": brier_score(probability, target),
    }


def _by_votes(rows: Columns, votes: np.ndarray, classes, positive: str) -> dict[str, Any]:
    right = np.asarray(rows["label"], str) == np.asarray(rows["label_pred"], str)
    found: dict[str, Any] = {"votes": fraction_in_bins(votes, right, VOTE_EDGES)}
    limits = {"spiral": SPIRAL_THRESHOLD, "elliptical": ELLIPTICAL_THRESHOLD}
    needed = np.array([limits.get(str(label), np.inf) for label in rows["label"]])
    safe = np.flatnonzero(votes >= needed - 1e-9)
    if len(safe):
        found["hp_objects"] = len(safe)
        scores = _scores(_take(rows, safe), classes, positive)
        found |= {f"hp_{name}": value for name, value in scores.items()}
    return found


def _take(rows: Mapping[str, np.ndarray], chosen: np.ndarray) -> Columns:
    return {name: values[chosen] for name, values in rows.items()}


def _plain(value: Any) -> Any:
    """Return NaN as None (JSON has none), through dicts and lists."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and np.isnan(value) else value
