"""Scores of alert classifiers: per alert, by magnitude and subset, and per source under policies.

Pure functions. Shape suffixes: N alerts. ``target`` is 1 for the class that is sought, else 0.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from skyray.analysis import calibration
from skyray.analysis.classification import checked_scores, roc_auc
from skyray.families.alerts.recipes import Policy
from skyray.families.base import Columns, Mode

MAGNITUDE_EDGES = (10.0, 15.0, 16.0, 17.0, 17.5, 18.0, 18.5, 19.0, 19.5, 20.0, 21.5)
THINNED_PEAK = 18.5
HEADLINE = ("auc", "average_precision", "accuracy", "f1", "expected_calibration_error")


def average_precision(score_N: np.ndarray, target_N: np.ndarray) -> float:
    """Return Σ (completeness gained) · purity over falling thresholds; NaN without positives."""
    score, target = checked_scores(score_N, target_N)
    if not target.any():
        return float("nan")
    order = np.argsort(-score, kind="stable")
    ranked = score[order]
    last = np.append(np.flatnonzero(ranked[1:] != ranked[:-1]), len(score) - 1)
    hits = np.cumsum(target[order])[last]
    gained = np.diff(np.append(0, hits)) / hits[-1]
    return float(np.sum(gained * hits / (last + 1)))


def decision_scores(decision_N: np.ndarray, target_N: np.ndarray) -> dict[str, float]:
    """Return accuracy, purity (precision), completeness (recall), F1 and the four counts.

    Purity is NaN where nothing was chosen, completeness without positives. F1 is 0 where nothing
    chosen was right, NaN where there was nothing to find and nothing was chosen.
    """
    chosen, target = np.asarray(decision_N, bool), np.asarray(target_N).astype(bool)
    right, wrong = int((chosen & target).sum()), int((chosen & ~target).sum())
    missed, left = int((~chosen & target).sum()), int((~chosen & ~target).sum())
    return {
        "accuracy": _share(right + left, len(target)),
        "purity": _share(right, right + wrong),
        "completeness": _share(right, right + missed),
        "f1": _share(2 * right, 2 * right + wrong + missed),
        "true_positives": right, "false_positives": wrong,
        "false_negatives": missed, "true_negatives": left,
    }  # fmt: skip


def trigger(
    policy: Policy, score_N: np.ndarray, magnitude_N: np.ndarray, jd_N: np.ndarray
) -> int | None:
    """Return the alert (row) of one source at which a policy acts, or None if it never does.

    A policy looks at the alerts up to each moment only.
    """
    order = np.argsort(jd_N, kind="stable")
    score, magnitude = np.asarray(score_N)[order], np.asarray(magnitude_N)[order]
    high = score > policy.score if policy.strict else score >= policy.score
    with np.errstate(invalid="ignore"):
        met = np.cumsum(high & (magnitude < policy.magnitude)) >= policy.alerts
        if policy.peak is not None:
            met &= np.fmin.accumulate(magnitude) <= policy.peak
    return int(order[np.argmax(met)]) if met.any() else None


def policy_scores(
    table: Columns, target_N: np.ndarray, policy: Policy, mode: Mode = "corrected"
) -> dict[str, float]:
    """Return purity, completeness and F1 per source, and how soon the policy acts.

    Parameters
    ----------
    table : columns [N]
        ``object_key``, ``score``, ``magpsf``, ``jd``.
    mode : str
        ``corrected`` counts every source. ``as_published`` leaves out sources of fewer than two
        alerts and positive ones whose alerts all are fainter than 18.5 mag, which flatters.

    Returns
    -------
    dict
        As `decision_scores`; ``sources``; ``days_to_trigger`` (median, from the first alert) and
        ``trigger_magnitude`` of the sources rightly acted upon.
    """
    decisions, truths, days, magnitudes = [], [], [], []
    for rows in sources_of(table["object_key"]):
        truth = bool(target_N[rows[0]])
        mag, jd = table["magpsf"][rows], table["jd"][rows]
        thinned = truth and not np.nanmin(mag) <= THINNED_PEAK
        if mode == "as_published" and (len(rows) < 2 or thinned):
            continue
        at = trigger(policy, table["score"][rows], mag, jd)
        decisions.append(at is not None)
        truths.append(truth)
        if truth and at is not None:
            days.append(jd[at] - jd.min())
            magnitudes.append(mag[at])
    found = decision_scores(np.array(decisions, bool), np.array(truths, bool))
    return {
        **found, "sources": len(truths),
        "days_to_trigger": float(np.median(days)) if days else float("nan"),
        "trigger_magnitude": float(np.median(magnitudes)) if magnitudes else float("nan"),
    }  # fmt: skip


def sources_of(object_key_N: np.ndarray) -> list[np.ndarray]:
    """Return the rows of each source."""
    keys = np.asarray(object_key_N, dtype=str)
    order = np.argsort(keys, kind="stable")
    if not len(keys):
        return []
    return np.split(order, np.flatnonzero(keys[order][1:] != keys[order][:-1]) + 1)


def by_magnitude(
    score_N: np.ndarray, target_N: np.ndarray, magnitude_N: np.ndarray,
    edges: Sequence[float] = MAGNITUDE_EDGES,
) -> list[dict[str, float]]:  # fmt: skip
    """Return AUC, accuracy at .5 and rows in bins of magnitude [low, high); empty bins left out."""
    found = []
    for low, high in itertools.pairwise(edges):
        inside = (magnitude_N >= low) & (magnitude_N < high)
        if inside.any():
            score, target = score_N[inside], target_N[inside]
            found.append({
                "low": low, "high": high, "rows": int(inside.sum()),
                "positives": int(target.sum()), "auc": roc_auc(score, target),
                "accuracy": float(((score >= 0.5) == target).mean()),
            })  # fmt: skip
    return found


def by_subset(
    score_N: np.ndarray, target_N: np.ndarray, subset_N: np.ndarray
) -> dict[str, dict[str, float]]:
    """Return rows, the share called positive, and the AUC against all alerts of the other class."""
    found = {}
    for name in sorted(set(subset_N) - {""}):
        inside = subset_N == name
        other = target_N != np.round(target_N[inside].mean())
        used = inside | other
        found[str(name)] = {
            "rows": int(inside.sum()), "positives": int(target_N[inside].sum()),
            "called_positive": float((score_N[inside] >= 0.5).mean()),
            "auc": roc_auc(score_N[used], target_N[used]),
        }  # fmt: skip
    return found


def evaluate_table(
    table: Columns, classes: Sequence[str], positive: str, policies: Mapping[str, Policy],
    mode: Mode = "corrected",
) -> dict[str, Any]:  # fmt: skip
    """Return all metrics of scored alerts joined with the truth, as JSON types.

    Parameters
    ----------
    table : columns [N]
        ``label`` ('' unknown: left out and counted), ``score``, ``probability``, and where known
        ``object_key``, ``jd``, ``magpsf``, ``subset``, ``in_domain``.
    """
    table = {name: np.asarray(values) for name, values in table.items()}
    known = np.isin(table["label"].astype(str), list(classes))
    used = {name: values[known] for name, values in table.items() if len(values) == len(known)}
    target = (used["label"].astype(str) == positive).astype(np.int64)
    score, probability = used["score"].astype(np.float64), used["probability"].astype(np.float64)
    found: dict[str, Any] = {
        "rows": int(known.sum()), "unknown_truth": int((~known).sum()), "positive": positive,
        "positives": int(target.sum()),
        "auc": roc_auc(score, target), "average_precision": average_precision(score, target),
        **{k: v for k, v in decision_scores(score >= 0.5, target).items()},
        **calibration_scores(probability, target),
    }  # fmt: skip
    if "magpsf" in used and np.isfinite(used["magpsf"]).any():
        found["by_magnitude"] = by_magnitude(score, target, used["magpsf"])
        if "object_key" in used and "jd" in used:
            found["policies"] = {
                name: policy_scores(used, target, policy, mode) for name, policy in policies.items()
            }
            for name, scores in found["policies"].items():
                found[f"{name}_f1"] = scores["f1"]
    if "subset" in used:
        found["by_subset"] = by_subset(score, target, used["subset"].astype(str))
    if "in_domain" in used:
        found["inside_fraction"] = float(used["in_domain"].mean()) if len(target) else float("nan")
    return _plain(found)


def calibration_scores(probability_N: np.ndarray, target_N: np.ndarray) -> dict[str, float]:
    """Return calibration error, negative log-likelihood and Brier score of p(positive)."""
    both = np.stack([1 - probability_N, probability_N], axis=1)
    return {
        "expected_calibration_error": calibration.expected_calibration_error(both, target_N),
        "negative_log_likelihood": calibration.negative_log_likelihood(both, target_N),
        "brier_score": calibration.brier_score(both, target_N),
    }


def subset_of(extra_N: Sequence[str]) -> np.ndarray:
    """Return the ``subset`` that JSON texts hold, '' where there is none, str [N]."""
    return np.array([str(json.loads(text or "{}").get("subset") or "") for text in extra_N])


def _share(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")


def _plain(value: Any) -> Any:
    """Turn numpy scalars into JSON types, with None for NaN."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float | np.floating):
        return float(value) if np.isfinite(value) else None
    return int(value) if isinstance(value, np.integer) else value
