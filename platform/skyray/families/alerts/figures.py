"""Figures of alert classifiers, drawn from the scoring table and its metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes

from skyray.analysis import calibration, plots
from skyray.analysis.classification import roc_curve

Columns = Mapping[str, Any]
_PANELS = ("science", "template", "difference")


def write_figures(
    table: Columns, metrics: Mapping[str, Any], folder: Path, positive: str
) -> list[Path]:
    """Write the figures that the table allows, as PNG, and return their paths.

    Parameters
    ----------
    table : columns [N]
        As for `metrics.evaluate_table`; with ``thumbnail`` uint8 [N, C, T, T] also the worst
        mistakes, with ``history`` (rows of a training) also its losses.
    metrics : mapping
        What `evaluate_table` returned for it.
    """
    label = np.asarray(table["label"], dtype=str)
    known = label != ""
    target = (label[known] == positive).astype(np.int64)
    score = np.asarray(table["score"], np.float64)[known]
    probability = np.asarray(table["probability"], np.float64)[known]
    paths: list[Path | None] = []
    if target.any() and not target.all():
        paths.append(roc_figure(score, target, metrics, positive, folder / "roc.png"))
        paths.append(
            probability_figure(score, probability, target, positive, folder / "probability.png")
        )
    paths.append(magnitude_figure(metrics, folder / "scores_by_magnitude.png"))
    paths.append(policy_figure(metrics, folder / "policies.png"))
    paths.append(subset_figure(metrics, folder / "subsets.png"))
    if "thumbnail" in table:
        paths.append(mistakes_figure(table, positive, folder / "worst_mistakes.png"))
    if "history" in table:
        paths.append(plots.loss_figure(table["history"], folder / "training_losses.png"))
    return [path for path in paths if path is not None]


def roc_figure(
    score_N: np.ndarray, target_N: np.ndarray, metrics: Mapping[str, Any], positive: str, path: Path
) -> Path:
    """Draw the ROC curve, whole and where few false positives are allowed."""
    false, true = roc_curve(score_N, target_N)
    with rc_context(plots.STYLE):
        figure, axes = plots.panels(1, 2)
        for axis in axes.flat:
            axis.plot(false, true, color=plots.BLUE, linewidth=1.8)
            axis.plot([0, 1], [0, 1], color=plots.SOFT, linestyle="--", linewidth=1)
            axis.set(xlabel="false positive rate", ylabel="true positive rate", ylim=(0, 1.02))
        axes[0, 0].set_title(f"{positive}: AUC {metrics['auc']:.4f}")
        axes[0, 1].set(xscale="log", xlim=(max(1e-4, 1 / len(score_N)), 1))
        axes[0, 1].set_title(f"{metrics['positives']:,} of {metrics['rows']:,} alerts")
        return plots.save(figure, path)


def probability_figure(
    score_N: np.ndarray, probability_N: np.ndarray, target_N: np.ndarray, positive: str, path: Path
) -> Path:
    """Draw the scores of both classes, and how true the calibrated probabilities are."""
    curve = calibration.reliability_curve(probability_N, target_N == 1, bins=10)
    with rc_context(plots.STYLE):
        figure, axes = plots.panels(1, 2)
        bins = np.linspace(0, 1, 31)
        for value, color, name in ((0, plots.SOFT, "other"), (1, plots.RED, positive)):
            axes[0, 0].hist(
                score_N[target_N == value], bins, histtype="stepfilled", alpha=0.55, color=color,
                label=name,
            )  # fmt: skip
        axes[0, 0].set(xlabel="score", ylabel="alerts", yscale="log", title="Scores")
        axes[0, 0].legend(fontsize=8)
        plots.reliability_axis(axes[0, 1], curve, "Calibrated probability")
        axes[0, 1].set_ylabel(f"fraction {positive}")
        return plots.save(figure, path)


def magnitude_figure(metrics: Mapping[str, Any], path: Path) -> Path | None:
    """Draw AUC and accuracy against magnitude, with the alerts of each bin."""
    bins = metrics.get("by_magnitude") or []
    if not bins:
        return None
    middle = [0.5 * (one["low"] + one["high"]) for one in bins]
    with rc_context(plots.STYLE):
        figure, axes = plots.panels(width=5.2)
        axis = axes[0, 0]
        for name, color in (("auc", plots.BLUE), ("accuracy", plots.ORANGE)):
            values = [np.nan if one[name] is None else one[name] for one in bins]
            axis.plot(middle, values, "o-", color=color, label=name.replace("_", " "), markersize=4)
        for at, one in zip(middle, bins, strict=True):
            axis.annotate(
                f"{one['rows']}", (at, 0.02), xycoords=("data", "axes fraction"), fontsize=7,
                ha="center", color=plots.SOFT,
            )  # fmt: skip
        axis.set(xlabel="magpsf (mag); number of alerts below", ylim=(None, 1.02))
        axis.set_title("Scores by magnitude")
        axis.legend(fontsize=8)
        return plots.save(figure, path)


def policy_figure(metrics: Mapping[str, Any], path: Path) -> Path | None:
    """Draw purity, completeness and F1 per source of every policy."""
    policies = metrics.get("policies") or {}
    if not policies:
        return None
    names = list(policies)
    with rc_context(plots.STYLE):
        figure, axes = plots.panels(width=max(4.8, 1.5 * len(names)))
        axis = axes[0, 0]
        kinds = (("purity", plots.BLUE), ("completeness", plots.GREEN), ("f1", plots.RED))
        for offset, (kind, color) in zip((-0.26, 0.0, 0.26), kinds, strict=True):
            values = [policies[name][kind] or 0.0 for name in names]
            bars = axis.bar(
                np.arange(len(names)) + offset, values, 0.24, color=color, label=kind.title()
            )
            axis.bar_label(bars, [f"{100 * value:.0f}" for value in values], fontsize=7)
        lines = [f"{name}\n{policies[name]['sources']} sources" for name in names]
        axis.set_xticks(range(len(names)), lines)
        axis.set(ylim=(0, 1.18), ylabel="per source")
        axis.set_title("Policies")
        axis.legend(ncols=3, fontsize=8, loc="upper center")
        return plots.save(figure, path)


def subset_figure(metrics: Mapping[str, Any], path: Path) -> Path | None:
    """Draw what share of each subset is called positive."""
    subsets = metrics.get("by_subset") or {}
    if not subsets:
        return None
    names = list(subsets)
    with rc_context(plots.STYLE):
        figure, axes = plots.panels(width=max(4.2, 1.2 * len(names)))
        axis = axes[0, 0]
        for at, name in enumerate(names):
            one = subsets[name]
            color = plots.RED if 2 * one["positives"] > one["rows"] else plots.SOFT
            axis.bar(at, one["called_positive"], 0.6, color=color)
            auc = "" if one["auc"] is None else f"AUC {one['auc']:.3f}"
            axis.text(at, one["called_positive"] + 0.02, auc, ha="center", fontsize=8)
        lines = [f"{name}\n{subsets[name]['rows']} alerts" for name in names]
        axis.set_xticks(range(len(names)), lines)
        axis.set(ylabel="share called positive", ylim=(0, 1.12))
        axis.set_title("Subsets (AUC against the other class)")
        return plots.save(figure, path)


def mistakes_figure(table: Columns, positive: str, path: Path, rows: int = 5) -> Path | None:
    """Draw the most confident mistakes: missed ones to the left, false ones to the right."""
    label, score = np.asarray(table["label"], dtype=str), np.asarray(table["score"], np.float64)
    wanted = label == positive
    missed = np.flatnonzero(wanted & (score < 0.5))
    false = np.flatnonzero((label != "") & ~wanted & (score >= 0.5))
    missed, false = (
        missed[np.argsort(score[missed])][:rows],
        false[np.argsort(-score[false])][:rows],
    )
    height = max(len(missed), len(false))
    if not height:
        return None
    with rc_context({**plots.STYLE, "axes.grid": False}):
        figure, axes = plots.panels(height, 6, width=1.25, height=1.45)
        for axis in axes.flat:
            axis.set_axis_off()
        for column, (chosen, title) in ((0, (missed, "missed")), (3, (false, "false"))):
            for row, at in enumerate(chosen):
                draw_triplet(axes[row, column : column + 3], np.asarray(table["thumbnail"][at]))
                about = f"{title}: {score[at]:.3f}  {table['object_id'][at]}"
                axes[row, column].set_title(about, fontsize=6.5, weight="normal")
        return plots.save(figure, path)


def draw_triplet(axes: Sequence[Axes], thumbnail_CTT: np.ndarray) -> None:
    """Draw the planes of a thumbnail side by side."""
    for axis, plane in zip(axes, thumbnail_CTT, strict=False):
        axis.imshow(plane, cmap="gray", vmin=0, vmax=255, origin="lower", interpolation="nearest")
