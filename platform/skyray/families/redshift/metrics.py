"""How the redshift family is judged: one function for tests, jobs, tracking and figures.

Two routings are always reported. ``end_to_end`` is what a user gets: the classifier chooses the
redshift network. ``true_class`` scores the network of the object's true class whatever the
classifier said; the published GaSNet-II figures are of that kind.

Definitions follow GaSNet-II §4.1 (eq. 9–12): good fraction |ln((1+z_t)/(1+z_p))| < 0.0015 for
galaxies and < 0.015 for quasars, Δz = |z_p − z_t|/(1+z_t), MAE = mean |z_p − z_t|; NMAD as in
Brammer et al. 2008: 1.4826 · median |Δ − median Δ| with the signed Δ = (z_p − z_t)/(1+z_t).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from skyray.analysis import calibration, classification
from skyray.families.redshift.quality import SURVEY_DISAGREES

Columns = Mapping[str, np.ndarray]

GOOD_LIMIT = {"GALAXY": 0.0015, "QSO": 0.015}
SAME_LIMIT = GOOD_LIMIT | {"STAR": 0.0015}  # within it two redshifts of a class are the same
WRONG_LIMIT = 0.015  # of |Δ ln (1+z)|: beyond it a redshift without a warning is catastrophic
NO_ANSWER = "none"
CATASTROPHIC = 0.01
CATASTROPHIC_PHOTOMETRIC = 0.15
TAU_LIMIT = 3.0
# 14 bins over SNR 0–50 as in the paper's figure C1, then all that is brighter.
SNR_EDGES = (0, 1, 2, 3, 4, 5, 7, 10, 15, 20, 25, 30, 35, 40, 50, np.inf)
ROUTES = {
    "end_to_end": ("redshift_pred", "redshift_err_pred"),
    "networks_alone": ("redshift_network", "redshift_network_err"),
    "true_class": ("redshift_true_route", "redshift_err_true_route"),
}


def scaled_residual(predicted_N: np.ndarray, truth_N: np.ndarray) -> np.ndarray:
    """Return the signed Δ = (z_p − z_t) / (1 + z_t), float64 [N]."""
    truth = np.asarray(truth_N, dtype=np.float64)
    return (np.asarray(predicted_N, dtype=np.float64) - truth) / (1.0 + truth)


def nmad(scaled_N: np.ndarray) -> float:
    """Return 1.4826 · median |Δ − median Δ|: σ of a Gaussian, deaf to outliers. NaN if empty."""
    if not len(scaled_N):
        return float("nan")
    return float(1.4826 * np.median(np.abs(scaled_N - np.median(scaled_N))))


def log_bias(predicted_N: np.ndarray, truth_N: np.ndarray) -> np.ndarray:
    """Return |ln((1+z_t)/(1+z_p))| (eq. 9), float64 [N]; inf where z_p ≤ −1."""
    truth = np.asarray(truth_N, dtype=np.float64)
    predicted = np.asarray(predicted_N, dtype=np.float64)
    ratio = np.divide(1.0 + truth, 1.0 + predicted, out=np.full(truth.shape, np.inf),
                      where=~(predicted <= -1.0))  # fmt: skip
    return np.abs(np.log(ratio))


def good_rows(predicted_N: np.ndarray, truth_N: np.ndarray, coarse_N: np.ndarray) -> np.ndarray:
    """Return whether each redshift is good (eq. 10), bool [N]; a missing prediction is not."""
    limit = np.array([GOOD_LIMIT.get(str(name), np.nan) for name in coarse_N], dtype=np.float64)
    return log_bias(predicted_N, truth_N) < limit


def redshift_scores(
    predicted_N: np.ndarray,
    truth_N: np.ndarray,
    sigma_N: np.ndarray,
    coarse_N: np.ndarray,
    robust_limit_N: np.ndarray | None = None,
) -> dict[str, float | int]:
    """Return every redshift score of one group of objects.

    Parameters
    ----------
    predicted_N, sigma_N : float [N]
        Predicted redshift and its σ; NaN where the object got none (called a star).
    truth_N : float [N]
        Known redshifts, all finite.
    coarse_N : str [N]
        GALAXY or QSO, which decides the limit of a good redshift.
    robust_limit_N : float [N], optional
        The class's validation MAE; σ below it makes a redshift "robust". Default: the MAE here.

    Returns
    -------
    dict
        Fractions whose name ends in ``fraction`` are of all N rows: a missing prediction is never
        good and always catastrophic. Means and medians are of the rows with a prediction.
    """
    predicted, truth, sigma = (np.asarray(a, np.float64) for a in (predicted_N, truth_N, sigma_N))
    given = np.isfinite(predicted)
    distance = np.abs(scaled_residual(predicted, truth))
    delta = scaled_residual(predicted[given], truth[given])
    error = np.abs(predicted - truth)
    good = good_rows(predicted, truth, np.asarray(coarse_N))
    scores = {
        "rows": len(truth),
        "missing": int((~given).sum()),
        "delta_z_mean": _mean(np.abs(delta)),
        "delta_z_median": _median(np.abs(delta)),
        "bias_mean": _mean(delta),
        "bias_median": _median(delta),
        "nmad": nmad(delta),
        "mae": _mean(error[given]),
        "good_fraction": _mean(good),
        "catastrophic_fraction": _mean(~(distance <= CATASTROPHIC)),
        "catastrophic_015_fraction": _mean(~(distance <= CATASTROPHIC_PHOTOMETRIC)),
    }
    limit = scores["mae"] if robust_limit_N is None else robust_limit_N
    return {**scores, **_error_scores(error, sigma, good, limit)}


def _error_scores(
    error: np.ndarray, sigma: np.ndarray, good: np.ndarray, robust_limit: np.ndarray | float
) -> dict[str, float]:
    """Return what the stated σ are worth, and the scores of the robust subset."""
    stated = np.isfinite(error) & np.isfinite(sigma)
    robust = np.isfinite(error) & (sigma < robust_limit)
    inside_1, inside_2 = calibration.coverage(error[stated], sigma[stated], [0.6827, 0.9545])
    return {
        "tau_below_3": _mean(error[stated] < TAU_LIMIT * sigma[stated]),
        "coverage_1sigma": float(inside_1),
        "coverage_2sigma": float(inside_2),
        "sigma_median": _median(sigma[stated]),
        "robust_fraction": _mean(robust),
        "robust_good_fraction": _mean(good[robust]),
        "robust_mae": _mean(error[robust]),
    }


def _mean(values: np.ndarray) -> float:
    return float(np.mean(values)) if len(values) else float("nan")


def _median(values: np.ndarray) -> float:
    return float(np.median(values)) if len(values) else float("nan")


def coarse_truth(table: Columns, coarse: Mapping[str, str]) -> np.ndarray:
    """Return STAR, GALAXY or QSO of each row, '' where unknown, str [N].

    Taken from the label, which may itself be coarse (a 13-class model scored on a 3-class
    dataset); where it says nothing, from the survey's own ``spectype``.
    """
    known = {**{group: group for group in coarse.values()}, **coarse}
    label = np.asarray(table["label"], dtype=str)
    spectype = np.asarray(table.get("spectype", np.full(len(label), "")), dtype=str)
    return np.array(
        [known.get(a) or known.get(b, "") for a, b in zip(label, spectype, strict=True)], dtype=str
    )


def evaluate_table(
    table: Columns,
    classes: Sequence[str],
    coarse: Mapping[str, str],
    validation_mae: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """Return all metrics of a table of predictions joined with the truth, as JSON types.

    Parameters
    ----------
    table : columns [N]
        Truth: ``label`` ('' unknown), ``spectype``, ``redshift`` (NaN unknown), ``snr``.
        Predictions: ``label_pred``, ``p_<CLASS>``, ``redshift_pred``, ``redshift_err_pred``,
        ``redshift_true_route``, ``redshift_err_true_route``, ``in_domain``. Probabilities, the
        true-class columns, ``spectype``, ``snr`` and ``in_domain`` may be absent; what needs them
        is then left out.
    classes : sequence of str
        The classifier's classes, in order.
    coarse : mapping
        Class → STAR, GALAXY or QSO; an empty mapping where classes are coarse already.
    validation_mae : mapping, optional
        Class → MAE on the validation split, the limit of "robust". Default: each group's own MAE.

    Returns
    -------
    dict
        The flat numbers of `headline`, ``rows``, and the sections ``classification``, ``coarse``,
        ``redshift`` (by routing, then ``all``, ``GALAXY``, ``QSO`` and ``per_class``) and
        ``domain``. Undefined numbers are None. Rows whose truth is unknown, or is not a class of
        this model, are left out and counted as ``unknown_truth``.
    """
    coarse = complete_coarse(classes, coarse)
    _require(table, ["label", "label_pred", "redshift", "redshift_pred", "redshift_err_pred"])
    truth = coarse_truth(table, coarse)
    metrics = {
        "rows": len(truth),
        "classification": _classification(table, table["label"], table["label_pred"], classes),
        "coarse": _coarse_classification(table, truth, coarse),
        "redshift": {
            route: _redshift(table, truth, classes, coarse, columns, validation_mae)
            for route, columns in ROUTES.items()
            if columns[0] in table
        },
    }
    if "quality" in table:
        metrics["quality"] = _quality(table, truth, coarse)
    if "in_domain" in table:
        metrics["domain"] = _domain(np.asarray(table["in_domain"], bool), truth)
    metrics = _plain(metrics)
    return {**headline(metrics), **metrics}


def _quality(table: Columns, truth: np.ndarray, coarse: Mapping[str, str]) -> dict[str, Any]:
    """Return how many rows carry no warning, and how many of those are right.

    The survey's disagreement does not count: the truth is the survey's own. A row is catastrophic
    where the class chosen is wrong or |Δ ln (1+z)| > `WRONG_LIMIT`.
    """
    clean = (np.asarray(table["quality"]) & ~SURVEY_DISAGREES) == 0
    found, known = np.asarray(table["redshift_pred"]), np.isfinite(table["redshift"])
    with np.errstate(invalid="ignore"):
        far = log_bias(found, table["redshift"]) > WRONG_LIMIT
    wrong = (far & known) | ~np.isfinite(found)
    wrong |= (_coarse_answer(table, coarse) != truth) & (truth != "")
    rows = clean & (truth != "") & known
    return {
        "clean_fraction": float(clean.mean()) if len(clean) else None,
        "clean_rows": int(rows.sum()),
        "clean_catastrophic": float(wrong[rows].mean()) if rows.any() else None,
        "all_catastrophic": float(wrong[known].mean()) if known.any() else None,
    }


def complete_coarse(classes: Sequence[str], coarse: Mapping[str, str]) -> dict[str, str]:
    """Return class → STAR, GALAXY or QSO for every class, in order; itself where not given."""
    return {name: coarse.get(name, name) for name in classes}


def headline(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return the few numbers that a tracker and a closing table show, flat; undefined ones out."""
    found = {
        "accuracy": metrics["classification"]["accuracy"],
        "balanced_accuracy": metrics["classification"]["balanced_accuracy"],
        "coarse_accuracy": metrics["coarse"]["accuracy"],
        "coarse_balanced_accuracy": metrics["coarse"]["balanced_accuracy"],
    }
    for route, groups in metrics["redshift"].items():
        for group in ("GALAXY", "QSO"):
            if group in groups:
                for name in ("delta_z_mean", "delta_z_median", "nmad", "good_fraction"):
                    found[f"{route}_{group.lower()}_{name}"] = groups[group][name]
        found[f"{route}_coverage_1sigma"] = groups["all"]["coverage_1sigma"]
    found |= metrics.get("quality", {})
    if "domain" in metrics:
        found["inside_fraction"] = metrics["domain"]["inside_fraction"]
    return {name: value for name, value in found.items() if value is not None}


def _classification(
    table: Columns, truth: np.ndarray, predicted: np.ndarray, classes: Sequence[str]
) -> dict[str, Any]:
    truth, predicted = np.asarray(truth, dtype=str), np.asarray(predicted, dtype=str)
    known, probable = np.isin(truth, list(classes)), [f"p_{name}" for name in classes]
    if (predicted[known] == "").any():  # nothing was fitted: wrong, and a column of its own
        predicted, classes = np.where(predicted == "", NO_ANSWER, predicted), [*classes, NO_ANSWER]
    matrix = classification.confusion_matrix(truth[known], predicted[known], classes)
    found = {
        "rows": int(known.sum()),
        "unknown_truth": int((~known).sum()),
        "classes": list(classes),
        "accuracy": classification.accuracy(matrix),
        "balanced_accuracy": classification.balanced_accuracy(matrix),
        "confusion": matrix,
        "per_class": classification.per_class(matrix, classes),
    }
    if "snr" in table:
        snr, right = np.asarray(table["snr"])[known], (truth == predicted)[known]
        found["by_snr"] = classification.fraction_in_bins(snr, right, SNR_EDGES)
    if all(name in table for name in probable):
        probability = np.stack([table[name] for name in probable], axis=1)
        stated = known & np.isfinite(probability).all(axis=1)
        target = classification.index_of(truth[stated], classes)
        found["probability"] = _probability(probability[stated], target)
    return found


def _probability(probability_NC: np.ndarray, target_N: np.ndarray) -> dict[str, float]:
    return {
        "expected_calibration_error": calibration.expected_calibration_error(
            probability_NC, target_N
        ),
        "negative_log_likelihood": calibration.negative_log_likelihood(probability_NC, target_N),
        "brier_score": calibration.brier_score(probability_NC, target_N),
    }


def _coarse_classification(
    table: Columns, truth: np.ndarray, coarse: Mapping[str, str]
) -> dict[str, Any]:
    groups = sorted(set(coarse.values()), key=list(coarse.values()).index)
    predicted = _coarse_answer(table, coarse)
    summed = {
        f"p_{group}": np.sum([table[f"p_{name}"] for name in coarse if coarse[name] == group], 0)
        for group in groups
        if all(f"p_{name}" in table for name in coarse)
    }
    snr = {"snr": table["snr"]} if "snr" in table else {}
    return _classification({**snr, **summed}, truth, predicted, groups)


def _coarse_answer(table: Columns, coarse: Mapping[str, str]) -> np.ndarray:
    """Return STAR, GALAXY or QSO of each row's predicted label, '' where it has none, str [N]."""
    known = {**coarse, "": ""}
    return np.array([known[str(name)] for name in table["label_pred"]], dtype=str)


def _redshift(
    table: Columns,
    truth: np.ndarray,
    classes: Sequence[str],
    coarse: Mapping[str, str],
    columns: tuple[str, str],
    validation_mae: Mapping[str, float] | None,
) -> dict[str, Any]:
    redshift, label = np.asarray(table["redshift"], np.float64), np.asarray(table["label"], str)
    extragalactic = np.isin(truth, list(GOOD_LIMIT))
    known = extragalactic & np.isfinite(redshift)
    if columns == ROUTES["true_class"]:  # there is no such network where the class is unknown
        known &= np.isfinite(np.asarray(table[columns[0]], np.float64))
    limit = None
    if validation_mae is not None:
        limit = np.array([validation_mae.get(str(name), np.nan) for name in label])

    def score(chosen: np.ndarray) -> dict[str, float | int]:
        return redshift_scores(
            np.asarray(table[columns[0]])[chosen], redshift[chosen],
            np.asarray(table[columns[1]])[chosen], truth[chosen],
            None if limit is None else limit[chosen],
        )  # fmt: skip

    found = {"unknown_truth": int((extragalactic & ~known).sum()), "all": score(known)}
    for group in GOOD_LIMIT:
        if (known & (truth == group)).any():
            found[group] = score(known & (truth == group))
    found["per_class"] = {
        name: score(known & (label == name))
        for name in classes
        if coarse[name] in GOOD_LIMIT and (known & (label == name)).any()
    }
    if "snr" in table:
        good = good_rows(np.asarray(table[columns[0]]), redshift, truth)[known]
        found["good_by_snr"] = classification.fraction_in_bins(
            np.asarray(table["snr"])[known], good, SNR_EDGES
        )
    return found


def _domain(inside: np.ndarray, truth: np.ndarray) -> dict[str, Any]:
    groups = [name for name in np.unique(truth) if name]
    return {
        "inside_fraction": _mean(inside),
        "by_class": {str(name): _mean(inside[truth == name]) for name in groups},
    }


def _require(table: Columns, names: Sequence[str]) -> None:
    missing = [name for name in names if name not in table]
    if missing:
        raise ValueError(f"evaluation table: columns {missing} are missing; found {sorted(table)}")
    rows = {name: len(table[name]) for name in names}
    if len(set(rows.values())) > 1:
        raise ValueError(f"evaluation table: expected columns of one length, found {rows}")


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
