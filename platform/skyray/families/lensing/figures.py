"""Figures of the lensing family: ROC before and after, maps of both domains, confusion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes

from skyray.analysis import calibration, classification, plots
from skyray.families.lensing.metrics import TIMES, axes_of, macro_auc

Columns = Mapping[str, Any]
_LEVELS = np.linspace(0.0, 1.0, 201)
_MAP_ROWS = 3000
_COLORS = (plots.BLUE, plots.RED, plots.GREEN, plots.ORANGE, plots.PURPLE)
_LINES = {"before": "--", "after": "-"}


def write_figures(
    table: Columns,
    metrics: Mapping[str, Any],
    folder: Path,
    classes: Sequence[str],
    surveys: Mapping[str, str],
) -> list[Path]:
    """Write the figures that the table allows, as PNG, and return their paths.

    Parameters
    ----------
    table : columns [N]
        As for `metrics.evaluate_table`; with ``history`` (rows of a training) also its losses.
    metrics : mapping
        What `evaluate_table` returned for it.
    surveys : mapping
        ``source`` and ``target`` → the survey's name.
    """
    paths = [
        roc_figure(table, classes, surveys, folder / "roc.png"),
        map_figure(table, surveys, folder / "features.png"),
        reliability_figure(table, classes, surveys, folder / "reliability.png"),
    ]
    for role in ("source", "target"):
        scores = metrics.get(role, {}).get("answer")
        if scores:
            path = folder / f"confusion_{role}.png"
            paths.append(plots.confusion_figure(scores["confusion"], classes, path))
    if "history" in table:
        paths.append(plots.loss_figure(table["history"], folder / "training_losses.png"))
        paths.append(selection_figure(table["history"], folder / "selection.png"))
    return [path for path in paths if path is not None]


def macro_roc(probability_NC: np.ndarray, target_N: np.ndarray) -> np.ndarray:
    """Return the true positive rate at `_LEVELS` of false positives, averaged over the classes."""
    curves = []
    for index in range(probability_NC.shape[1]):
        positive = target_N == index
        if positive.any() and not positive.all():
            order = np.argsort(-probability_NC[:, index], kind="stable")
            hits = np.concatenate([[0], np.cumsum(positive[order])]) / positive.sum()
            misses = np.concatenate([[0], np.cumsum(~positive[order])]) / (~positive).sum()
            curves.append(np.interp(_LEVELS, misses, hits))
    return np.mean(curves, axis=0) if curves else np.full(len(_LEVELS), np.nan)


def roc_figure(
    table: Columns, classes: Sequence[str], surveys: Mapping[str, str], path: Path
) -> Path | None:
    """Draw macro-averaged ROC curves, dashed before and solid after adaptation."""
    found = list(_groups(table, classes, surveys))
    if not found:
        return None
    with rc_context(plots.STYLE):
        figure, axes = plots.panels(1, len(found), width=4.4, height=4.0)
        for axis, (role, survey, rows, truth) in zip(axes[0], found, strict=True):
            for when in TIMES:
                probability = _probability(table, when, classes, rows)
                if probability is not None:
                    area = macro_auc(probability, truth)
                    axis.plot(
                        _LEVELS, macro_roc(probability, truth), _LINES[when], color=plots.BLUE,
                        linewidth=1.6, label=f"{when} adaptation: AUC {area:.3f}",
                    )  # fmt: skip
            axis.plot([0, 1], [0, 1], color=plots.SOFT, linewidth=0.8)
            axis.set(xlabel="false positive rate", ylabel="true positive rate")
            axis.set_title(f"{survey} ({role}), macro average")
            axis.legend(loc="lower right", fontsize=9)
        return plots.save(figure, path)


def map_figure(table: Columns, surveys: Mapping[str, str], path: Path) -> Path | None:
    """Draw features of both surveys before and after: classes by colour, surveys by marker."""
    if any(f"{when}_axis_0" not in table for when in TIMES):
        return None
    from skyray.analysis.embedding import MIN_ROWS, umap_2d

    survey = np.asarray(table["survey"], dtype=str)
    rows = np.flatnonzero(np.isin(survey, list(surveys.values())))
    rows = np.random.default_rng(0).permutation(rows)[:_MAP_ROWS]
    if len(rows) < MIN_ROWS:
        return None
    label = np.asarray(table["label"], dtype=str)[rows]
    with rc_context({**plots.STYLE, "axes.grid": False}):
        figure, axes = plots.panels(1, 2, width=5.0, height=4.4)
        for axis, when in zip(axes[0], TIMES, strict=True):
            place = umap_2d(axes_of(table, when)[rows])
            _draw_map(axis, place, label, survey[rows], surveys)
            axis.set_title(f"Features {when} adaptation (UMAP)")
        axes[0, 1].legend(fontsize=8, markerscale=2, loc="best")
        return plots.save(figure, path)


def _draw_map(axis: Axes, place, label, survey, surveys: Mapping[str, str]) -> None:
    for color, name in zip(_COLORS, sorted(set(label)), strict=False):
        for role, marker in (("source", "o"), ("target", "x")):
            chosen = (label == name) & (survey == surveys[role])
            axis.scatter(
                *place[chosen].T, s=8 if role == "source" else 12, marker=marker, color=color,
                alpha=0.6, linewidths=0 if role == "source" else 0.7,
                label=f"{name or 'unknown'}, {surveys[role]}",
            )  # fmt: skip
    axis.set(xticks=[], yticks=[])


def reliability_figure(
    table: Columns, classes: Sequence[str], surveys: Mapping[str, str], path: Path
) -> Path | None:
    """Draw stated against observed probability of the answers on each survey."""
    found = list(_groups(table, classes, surveys))
    if not found:
        return None
    with rc_context(plots.STYLE):
        figure, axes = plots.panels(1, len(found), width=4.6, height=4.0)
        for axis, (role, survey, rows, truth) in zip(axes[0], found, strict=True):
            probability = _probability(table, "p", classes, rows)
            right = probability.argmax(axis=1) == truth
            curve = calibration.reliability_curve(probability.max(axis=1), right)
            error = calibration.expected_calibration_error(probability, truth)
            title = f"{survey} ({role}): calibration error {100 * error:.1f} %"
            plots.reliability_axis(axis, curve, title)
        return plots.save(figure, path)


def selection_figure(history: Sequence[Mapping[str, Any]], path: Path) -> Path | None:
    """Draw what chose the epoch of adaptation beside the oracle that must not; None without."""
    rows = [row for row in history if row.get("validation_target_share")]
    if not rows:
        return None
    epochs = [row["epoch"] + 1 for row in rows]
    with rc_context(plots.STYLE):
        figure, axes = plots.panels(1, 1, width=5.2)
        axis = axes[0, 0]
        chosen = [row["validation_selection"] for row in rows]
        oracle = [row["validation_oracle"] / row["validation_target_share"] for row in rows]
        axis.plot(epochs, chosen, color=plots.BLUE, marker="o", markersize=3,
                  label="selection score (no label of the target)")  # fmt: skip
        axis.plot(epochs, oracle, color=plots.SOFT, linestyle="--", marker="x", markersize=4,
                  label="oracle: accuracy on the target (not used)")  # fmt: skip
        axis.axvline(epochs[int(np.argmax(chosen))], color=plots.BLUE, linewidth=0.8)
        axis.set(xlabel="epoch of adaptation", title="Choice of the epoch")
        axis.legend(fontsize=8)
        return plots.save(figure, path)


def _groups(table: Columns, classes: Sequence[str], surveys: Mapping[str, str]):
    """Yield role, survey, rows and true class index of each survey with known labels."""
    survey, label = (np.asarray(table[name], dtype=str) for name in ("survey", "label"))
    for role, name in surveys.items():
        rows = (survey == name) & np.isin(label, list(classes))
        if rows.any():
            yield role, name, rows, classification.index_of(label[rows], classes)


def _probability(table: Columns, prefix: str, classes: Sequence[str], rows) -> np.ndarray | None:
    if any(f"{prefix}_{name}" not in table for name in classes):
        return None
    return np.stack([np.asarray(table[f"{prefix}_{name}"])[rows] for name in classes], axis=1)
