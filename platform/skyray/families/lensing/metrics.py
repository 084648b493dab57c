"""How lens classes under adaptation are judged: one function for tests, jobs and figures.

``before`` is the network trained on the source alone, ``after`` the one adapted to the target; each
is scored on both surveys. Labels of the target are used here and nowhere else. ROC AUCs are
one-vs-rest, macro-averaged over the classes, as in Alexander et al. 2022.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from skyray.analysis import calibration, classification
from skyray.analysis.classification import roc_auc

Columns = Mapping[str, np.ndarray]
TIMES = ("before", "after")
_FOLDS = 5


def macro_auc(probability_NC: np.ndarray, target_N: np.ndarray) -> float:
    """Return the mean one-vs-rest AUC over the classes that occur; NaN with fewer than two."""
    found = [
        roc_auc(probability_NC[:, index], target_N == index)
        for index in range(probability_NC.shape[1])
    ]
    found = [value for value in found if np.isfinite(value)]
    return float(np.mean(found)) if found else float("nan")


def domain_auc(features_ND: np.ndarray, target_N: np.ndarray, seed: int = 0) -> float:
    """Return the AUC of a logistic regression that tells the target from the source.

    5-fold: every row is scored by a fit without it. 0.5: the features do not tell; 1: they do.
    """
    target = np.asarray(target_N, bool)
    if min(target.sum(), (~target).sum()) < _FOLDS:
        return float("nan")
    from sklearn.linear_model import LogisticRegression  # seconds of import

    features = np.asarray(features_ND, np.float64)
    features = (features - features.mean(0)) / (features.std(0) + 1e-9)
    score = np.empty(len(target))
    order = np.random.default_rng(seed).permutation(len(target))
    for fold in np.array_split(order, _FOLDS):
        rest = np.setdiff1d(order, fold)
        fit = LogisticRegression(max_iter=1000).fit(features[rest], target[rest])
        score[fold] = fit.decision_function(features[fold])
    return roc_auc(score, target)


def axes_of(table: Columns, when: str) -> np.ndarray:
    """Return the main feature axes of a scoring table, float [N, D]."""
    names = sorted(
        (name for name in table if name.startswith(f"{when}_axis_")),
        key=lambda name: int(name.rpartition("_")[2]),
    )
    return np.stack([np.asarray(table[name], np.float64) for name in names], axis=1)


def evaluate_table(
    table: Columns, classes: Sequence[str], source: str, target: str
) -> dict[str, Any]:
    """Return all metrics of a table of predictions joined with the truth, as JSON types.

    Parameters
    ----------
    table : columns [N]
        ``label``, ``survey``, ``label_pred``, ``p_<CLASS>``, ``in_domain``, ``p_target_survey``;
        ``before_<CLASS>``, ``after_<CLASS>`` and the features' ``before_axis_i``,
        ``after_axis_i``.

    Returns
    -------
    dict
        Flat headline numbers and sections ``source``, ``target`` (each ``before``, ``after``,
        ``answer``) and ``domain``. Undefined numbers are None; surveys without rows are left out.
    """
    survey = np.asarray(table["survey"], dtype=str)
    label = np.asarray(table["label"], dtype=str)
    known = np.isin(label, list(classes))
    found: dict[str, Any] = {
        "rows": len(survey),
        "unknown_truth": int((~known).sum()),
        "classes": list(classes),
    }
    for role, name in (("source", source), ("target", target)):
        rows = (survey == name) & known
        if rows.any():
            found[role] = {"survey": name, **_scores(table, rows, classes)}
    found["domain"] = _domain(table, survey, source, target)
    found = _plain(found)
    return {**headline(found), **found}


def headline(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return the few numbers that a tracker and a closing table show; undefined ones out."""
    found: dict[str, Any] = {}
    for role in ("source", "target"):
        for when in (*TIMES, "answer"):
            for name in ("auc", "accuracy"):
                found[f"{role}_{when}_{name}"] = metrics.get(role, {}).get(when, {}).get(name)
    for when in TIMES:
        found[f"domain_auc_{when}"] = metrics["domain"].get(f"auc_{when}")
    return {name: value for name, value in found.items() if value is not None}


def _scores(table: Columns, rows: np.ndarray, classes: Sequence[str]) -> dict[str, Any]:
    label = np.asarray(table["label"], dtype=str)[rows]
    truth = classification.index_of(label, classes)
    found: dict[str, Any] = {"rows": int(rows.sum())}
    for when, prefix in (("before", "before"), ("after", "after"), ("answer", "p")):
        if any(f"{prefix}_{name}" not in table for name in classes):
            continue
        probability = np.stack([np.asarray(table[f"{prefix}_{c}"])[rows] for c in classes], axis=1)
        names = np.array(classes, dtype=object)[probability.argmax(1)]
        matrix = classification.confusion_matrix(label, names, classes)
        found[when] = {
            "auc": macro_auc(probability, truth),
            "accuracy": classification.accuracy(matrix),
            "confusion": matrix,
            "per_class_auc": {
                name: roc_auc(probability[:, i], truth == i) for i, name in enumerate(classes)
            },
            "expected_calibration_error": calibration.expected_calibration_error(
                probability, truth
            ),
            "negative_log_likelihood": calibration.negative_log_likelihood(probability, truth),
        }
    if "in_domain" in table:
        found["inside_fraction"] = float(np.mean(np.asarray(table["in_domain"], bool)[rows]))
    return found


def _domain(table: Columns, survey: np.ndarray, source: str, target: str) -> dict[str, float]:
    rows = np.isin(survey, [source, target])
    of_target = survey[rows] == target
    found: dict[str, float] = {}
    for when in TIMES:
        if f"{when}_axis_0" in table:
            found[f"auc_{when}"] = domain_auc(axes_of(table, when)[rows], of_target)
    if "p_target_survey" in table:
        score = np.asarray(table["p_target_survey"])[rows]
        found["survey_classifier_auc"] = roc_auc(score, of_target)
    return found


def _plain(value: Any) -> Any:
    """Turn arrays and numpy scalars into JSON types, with None for NaN and infinity."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float | np.floating):
        return float(value) if np.isfinite(value) else None
    return int(value) if isinstance(value, np.integer) else value
