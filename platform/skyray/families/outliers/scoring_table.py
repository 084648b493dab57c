"""Reading the scoring table: columns that may be missing, rows that count, ROC of what is known."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from sklearn.metrics import auc, roc_curve

Columns = Mapping[str, Any]
Roc = tuple[np.ndarray, np.ndarray, float]  # false and true positive rate, area

# Scores in which higher means stranger: the family's own, then the baselines.
SCORES = {
    "strangeness": "combined rank", "neg_log_p": "−log p", "chi2_reduced": "reduced χ²",
    "chi2_whitened": "whitened χ²",
    "chi2_window": "windowed χ²", "isolation": "isolation forest on latents",
    "pca_error": "PCA: reconstruction error", "pca_isolation": "PCA: isolation forest",
}  # fmt: skip
# What a person calls the columns of a search, in galleries and maps.
TITLES = {
    "neg_log_p": "−log p galaxy", "neg_log_p_star": "−log p star", "chi2_reduced": "reduced χ²",
    "chi2_whitened": "whitened χ²", "chi2_window": "windowed χ²",
    "chi2_reduced_star": "reduced χ² of the star model", "log_ratio": "log p galaxy / star",
    "log_likelihood_ratio": "log-likelihood galaxy / star", "strangeness": "combined rank",
    "missing": "share without weight", "snr": "SNR",
}  # fmt: skip
BASELINES = ("pca_error", "pca_isolation")


def column(table: Columns, name: str) -> np.ndarray | None:
    """Return a column as float64 [N]; None where the table has none or no value is finite."""
    if name not in table:
        return None
    values = np.asarray(table[name], np.float64)
    return values if np.isfinite(values).any() else None


def latents(table: Columns) -> np.ndarray | None:
    """Return ``latent_0`` … as float64 [N, S]; None where the table has none."""
    names = []
    while f"latent_{len(names)}" in table:
        names.append(f"latent_{len(names)}")
    if not names:
        return None
    return np.stack([np.asarray(table[name], np.float64) for name in names], axis=1)


def rows_of(table: Columns) -> int:
    """Return the number of objects."""
    return len(table["object_id"])


def usable(table: Columns) -> np.ndarray:
    """Return which objects have no problem, bool [N]."""
    if "problem" not in table:
        return np.ones(rows_of(table), bool)
    return np.asarray(table["problem"], dtype=str) == ""


def planted_kinds(table: Columns) -> np.ndarray:
    """Return the kind of planted outlier, '' for the others, str [N]."""
    return np.asarray(table.get("planted", np.full(rows_of(table), "")), dtype=str)


def normal_rows(table: Columns) -> np.ndarray:
    """Return which objects have no problem and were not planted, bool [N]."""
    return usable(table) & (planted_kinds(table) == "")


def is_star(table: Columns) -> np.ndarray:
    """Return which objects have a label that begins with STAR, bool [N]."""
    labels = np.asarray(table.get("label", np.full(rows_of(table), "")), dtype=str)
    return np.char.startswith(np.char.upper(labels), "STAR")


def limits_of(values: np.ndarray) -> tuple[float, float]:
    """Return limits that hold 99.6 % of finite values and some room; never of zero width."""
    low, high = np.percentile(values, (0.2, 99.8))
    pad = 0.12 * (high - low) if high > low else 0.5
    return float(low - pad), float(high + pad)


def roc(truth: np.ndarray, score: np.ndarray) -> Roc | None:
    """Return the ROC curve and its area; None where only one of the two sorts is there."""
    if truth.all() or not truth.any():
        return None
    wrong, found, _ = roc_curve(truth, score)
    return wrong, found, float(auc(wrong, found))


def planted_curves(table: Columns) -> dict[str, dict[str, Roc]]:
    """Return score → kind → ROC of the planted outliers of that kind among normal objects.

    The kind ``all`` comes first. An object without a score is never found: it ranks last.
    """
    planted, fine, normal = planted_kinds(table), usable(table), normal_rows(table)
    kinds = ["all", *sorted(set(planted[fine]) - {""})]
    if len(kinds) < 2 or not normal.any():
        return {}
    curves: dict[str, dict[str, Roc]] = {}
    for name in SCORES:
        values = column(table, name)
        if values is None:
            continue
        values = np.where(np.isfinite(values), values, np.nanmin(values) - 1.0)
        curves[name] = {}
        for kind in kinds:
            rows = normal | (fine & ((planted != "") if kind == "all" else (planted == kind)))
            curve = roc(planted[rows] != "", values[rows])
            assert curve is not None  # both sorts are there: `kinds` and `normal` say so
            curves[name][kind] = curve
    return curves
