"""What Zhong et al. 2024 (GaSNet-II, arXiv:2311.04146) publish, and tables of ours beside it.

`RELEASED` are the authors' released redshifts through our metrics (`benchmarks/released_table.py`
measures them anew).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

Columns = Mapping[str, Any]
Rows = list[dict[str, Any]]

# (mean z, lowest z, highest z, mean of the median SNR); None: stars.
TABLE_1 = {
    "STAR_A0": (None, None, None, 26.2), "STAR_F5": (None, None, None, 30.5),
    "STAR_F9": (None, None, None, 34.9), "STAR_G2": (None, None, None, 33.7),
    "STAR_K1": (None, None, None, 32.8), "STAR_K3": (None, None, None, 31.1),
    "STAR_K5": (None, None, None, 31.0), "GALAXY_nan": (0.46, 0.0, 1.86, 5.82),
    "GALAXY_AGN": (0.21, 0.0, 0.57, 14.3), "GALAXY_STARBURST": (0.15, 0.0, 0.57, 9.78),
    "GALAXY_STARFORMING": (0.11, 0.0, 0.56, 12.4), "QSO_nan": (1.68, 0.01, 7.04, 2.64),
    "QSO_BROADLINE": (1.78, 0.03, 5.29, 6.54),
}  # fmt: skip
TABLE_2 = {
    "Dyn": (None, None, None, 74.5), "GalHR": (None, None, None, 39.9),
    "ESN": (None, None, None, 12.8), "GalDiskLR": (None, None, None, 140.4),
    "MCsn": (None, None, None, 72.3), "COSMO_AGN": (2.2, 0.9, 4.0, 6.3),
    "ClusB": (0.52, 0.3, 1.0, 5.8), "WAVES": (0.32, 0.0, 0.8, 1.6),
    "RedGAL": (0.33, 0.0, 1.1, 8.7), "tides_host": (0.11, 0.0, 0.6, 19.7),
}  # fmt: skip
TABLE_3 = {
    "STAR": (None, None, None, 19.1), "QSO": (1.59, 0.06, 4.27, 6.54),
    "GALAXY": (0.196, 0.0, 1.69, 7.53),
}  # fmt: skip
DATASETS = {"Table 1: SDSS": TABLE_1, "Table 2: 4MOST mock": TABLE_2, "Table 3: DESI": TABLE_3}
MILLION_PARAMETERS, CLASSIFIER_ACCURACY = 4.16, 0.919  # Table 4
VALIDATION_MAE = {
    "GALAXY_nan": 0.011, "GALAXY_AGN": 0.003, "GALAXY_STARBURST": 0.001,
    "GALAXY_STARFORMING": 0.002, "QSO_nan": 0.107, "QSO_BROADLINE": 0.027,
}  # fmt: skip
TEST_ACCURACY = 0.924  # Figure 12
DELTA_Z = {"GALAXY": 0.0023, "QSO": 0.021}
GOOD = {"GALAXY_nan": 0.63, "GALAXY_AGN": 0.85, "GALAXY_STARBURST": 0.94,
        "GALAXY_STARFORMING": 0.91, "QSO_BROADLINE": 0.93}  # fmt: skip
TAU_BELOW_3 = {"GALAXY_AGN": 1.0, "GALAXY_nan": 0.99, "GALAXY_STARBURST": 1.0,
               "GALAXY_STARFORMING": 1.0, "QSO_BROADLINE": 1.0, "QSO_nan": 0.96}  # fmt: skip
FOURMOST = {  # Figures 19 and 21
    "accuracy": 0.934, "recall": {"COSMO_AGN": 1.0, "RedGAL": 0.66}, "RedGAL as ClusB": 0.29,
    "delta_z": {"GALAXY": 0.0055, "QSO": 0.003, "WAVES": 0.014},
    "good": {"GALAXY": 0.68, "QSO": 0.71},
}  # fmt: skip
DESI = {"accuracy": 0.96, "delta_z": {"GALAXY": 0.028, "QSO": 0.048}}  # Figures 22 and 23
COARSE = {  # Figure B1: networks of three classes, accuracy and the classes' recall
    "SDSS": (0.99, {"STAR": 1.0, "QSO": 0.98}), "4MOST": (0.98, {}),
}  # fmt: skip
SNR_LIMIT = 0.96  # Figure C1: accuracy at the highest SNR
# Figures A1, A2 (accuracy) and A3 (good fraction): points lost at 5 % and at 10 % wrong labels.
CONTAMINATED = {
    "SDSS": {"accuracy": (-3.3, -7.7), "good_fraction": (-2.0, -3.3)},
    "4MOST": {"accuracy": (-5.7, -9.0)},
}
RELEASED: dict[tuple[str, str], float] = {
    ("GALAXY", "delta_z_mean"): 0.00231, ("QSO", "delta_z_mean"): 0.02064,
    ("GALAXY_AGN", "good_fraction"): 0.854, ("GALAXY_STARBURST", "good_fraction"): 0.942,
    ("GALAXY_STARFORMING", "good_fraction"): 0.913, ("QSO_BROADLINE", "good_fraction"): 0.926,
    ("GALAXY_AGN", "nmad"): 0.0006, ("GALAXY_STARBURST", "nmad"): 0.0003,
    ("GALAXY_STARFORMING", "nmad"): 0.0003, ("GALAXY_nan", "nmad"): 0.0014,
    ("QSO_BROADLINE", "nmad"): 0.0030, ("QSO_nan", "nmad"): 0.0087,
    ("GALAXY", "coverage_1sigma"): 0.87, ("QSO", "coverage_1sigma"): 0.78,
}  # fmt: skip


def line(
    figure: str, score: str, paper: Any, ours: Any, released: Any = None, end_to_end: Any = None
) -> dict[str, Any]:
    """Return one number of a figure: the paper's, the released redshifts', ours; NaN is None."""
    found = {"paper": paper, "released": released, "ours": ours, "ours, end to end": end_to_end}
    return {"figure": figure, "score": score} | {k: _plain(v) for k, v in found.items()}


def signed(value: float | None, digits: int = 2) -> str:
    """Return a number with its sign for a caption; "unknown" for None."""
    return "unknown" if value is None else f"{value:+.{digits}f}".replace("-", "−")


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, str):
        return value
    return float(value) if np.isfinite(value) else None


def of_group(route: Mapping[str, Any], group: str, score: str) -> float | None:
    """Return a score of GALAXY, QSO or a class, from a route of `metrics.evaluate_table`."""
    found = route.get(group) or route["per_class"].get(group)
    return found[score] if found else None


def dataset_table(columns: Columns, published: Mapping[str, tuple]) -> Rows:
    """Return one row a class: mean z, range and mean SNR, paper beside ours."""
    label, z = np.asarray(columns["label"], str), np.asarray(columns["redshift"], float)
    snr, rows = np.asarray(columns["snr"], float), []
    for name, (mean, low, high, brightness) in published.items():
        here = label == name
        row: dict[str, Any] = {"class": name, "objects": int(here.sum())}
        redshifts = z[here & np.isfinite(z)] if mean is not None else np.zeros(0)
        some = len(redshifts) > 0
        row |= {
            "z, paper": mean, "z, ours": float(redshifts.mean()) if some else None,
            "range, paper": None if mean is None else f"{low:g}–{high:g}",
            "range, ours": f"{redshifts.min():.2f}–{redshifts.max():.2f}" if some else None,
            "SNR, paper": brightness,
            "SNR, ours": float(np.nanmean(snr[here])) if here.any() else None,
        }  # fmt: skip
        rows.append(row)
    return rows


def networks_table(
    parameters: Mapping[str, int], trained_on: Mapping[str, int], accuracy: float,
    mae: Mapping[str, float],
) -> Rows:  # fmt: skip
    """Return Table 4: size, training rows, and the best validation accuracy or MAE."""

    def row(name: str, part: str, paper: float, ours: float | None) -> dict[str, Any]:
        return {
            "network": name, "parameters/10⁶, paper": MILLION_PARAMETERS,
            "parameters/10⁶, ours": parameters[part] / 1e6, "training spectra": trained_on[name],
            "accuracy or MAE, paper": paper, "accuracy or MAE, ours": ours,
        }  # fmt: skip

    rows = [row("classifier", "classifier", CLASSIFIER_ACCURACY, accuracy)]
    return rows + [
        row(name, "redshift", paper, mae.get(name)) for name, paper in VALIDATION_MAE.items()
    ]


def scores_table(metrics: Mapping[str, Any], released: Mapping[str, Any] | None = None) -> Rows:
    """Return the numbers of Figures 12–16 and 18; `metrics` as `evaluate` returns them.

    `released`: what `released.released_scores` gave for the authors' table; without it the few
    numbers of `RELEASED` stand in its column.
    """
    routes = metrics["redshift"]  # beside templates the networks' answers have a route of their own
    routed, whole = routes["true_class"], routes.get("networks_alone", routes["end_to_end"])

    def row(figure: str, title: str, group: str, score: str, paper: float | None):
        theirs = RELEASED.get((group, score)) if released is None else of_group(
            released, group, score
        )  # fmt: skip
        return line(figure, f"{title}, {group}", paper, of_group(routed, group, score), theirs,
                    of_group(whole, group, score))  # fmt: skip

    recall = metrics["classification"]["balanced_accuracy"]
    rows = [
        line("12", "mean accuracy of the classes", TEST_ACCURACY, recall),
        line("12", "accuracy, collapsed to three classes", None, metrics["coarse"]["accuracy"]),
    ]
    rows += [row("13, 15", "mean Δz/(1+z)", g, "delta_z_mean", v) for g, v in DELTA_Z.items()]
    for name in VALIDATION_MAE:
        rows += [
            row("14", "median bias Δz/(1+z)", name, "bias_median", None),
            row("15", "good fraction", name, "good_fraction", GOOD.get(name)),
            row("15", "NMAD", name, "nmad", None),
            row("16", "τ < 3", name, "tau_below_3", TAU_BELOW_3[name]),
            row("18", "robust share", name, "robust_fraction", None),
        ]
    rows += [row("16", "within 1 σ (68 % if right)", g, "coverage_1sigma", None) for g in DELTA_Z]
    return rows
