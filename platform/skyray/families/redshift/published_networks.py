"""Figures of Zhong et al. 2024 on networks: 11 (training), 12, 19, 22, A1, A2, B1 (confusion)."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes

from skyray.analysis import classification, plots
from skyray.families.redshift.contamination import contamination_effect
from skyray.families.redshift.published import CLASSIFIER_ACCURACY, VALIDATION_MAE, line
from skyray.families.redshift.published_figures import Drawn


def learning_figure(history: Sequence[Mapping[str, Any]], path: Path) -> Drawn | None:
    """Figure 11: loss, and accuracy or MAE, of training and validation against the epoch."""
    stages: dict[str, dict[str, list[Mapping[str, Any]]]] = {}
    for row in history:
        if "train_loss" in row:
            name = str(row["stage"])
            group = name.split("/")[1] if "/" in name else name
            stages.setdefault(group, {}).setdefault(name, []).append(row)
    if not stages:
        return None
    networks = {group: members for group, members in stages.items() if group != "classifier"}
    with rc_context(plots.STYLE):
        figure, axes = plots.panels(1, 3, width=4.4, height=3.8)
        first, loss, mae = axes[0]
        if "classifier" in stages:
            second = first.twinx()
            second.spines["right"].set_visible(True)
            second.grid(False)
            second.set(ylabel="accuracy", ylim=(0, 1))
            _draw_learning(first, stages["classifier"], "loss", plots.BLUE, "loss")
            _draw_learning(second, stages["classifier"], "accuracy", plots.RED, "accuracy")
            first.plot([], [], color=plots.RED, label="accuracy")
            first.legend(fontsize=8, loc="center right")
        for (group, members), color in zip(networks.items(), plots.CYCLE, strict=False):
            _draw_learning(loss, members, "loss", color, group)
            _draw_learning(mae, members, "mae", color, group)
        for axis, name in ((first, "loss"), (loss, "loss"), (mae, "MAE of z")):
            axis.set(xlabel="epoch", ylabel=name, title="redshift networks", yscale="log")
        first.set_title("classifier")
        if networks:
            mae.legend(loc="upper right", fontsize=7, frameon=True, framealpha=0.8)
        plots.save(figure, path)
    last, ratio = [], []
    for group, members in stages.items():
        better, unit = (max, "accuracy") if group == "classifier" else (min, "mae")
        found = [[r[f"validation_{unit}"] for r in rows if f"validation_{unit}" in r]
                 for rows in members.values()]  # fmt: skip
        if best := [better(values) for values in found if values]:
            paper = CLASSIFIER_ACCURACY if group == "classifier" else VALIDATION_MAE.get(group)
            title = f"best validation {unit}, {group}"
            last.append(line("11", title, paper, float(np.mean(best))))
        ratio += [rows[-1]["validation_loss"] / rows[-1]["train_loss"] for rows in members.values()
                  if "validation_loss" in rows[-1] and rows[-1]["train_loss"] > 0]  # fmt: skip
    middle = f"{np.median(ratio):.1f}" if ratio else "unknown"
    caption = (
        "Figure 11, learning curves (dashed: training), means of the members. Paper: rough in "
        "the first 20 while the rate is high, then flat; dropout makes the training set look worse "
        "in the redshift networks. Ours: validation loss is, in the median network, "
        f"{middle} × the training loss at the last epoch."
    )
    return Drawn(path, caption, last)


def _draw_learning(
    axis: Axes, members: Mapping[str, Sequence[Mapping[str, Any]]], kind: str, color: str, name: str
) -> None:
    """Draw the mean of the members against the epoch, training dashed as in the paper."""
    for part, dash in (("train", "--"), ("validation", "-")):
        found: dict[int, list[float]] = {}
        for row in itertools.chain(*members.values()):
            if f"{part}_{kind}" in row:
                found.setdefault(row["epoch"] + 1, []).append(row[f"{part}_{kind}"])
        axis.plot(
            list(found), [np.mean(values) for values in found.values()], dash, color=color,
            linewidth=1.2, marker="o" if len(found) < 3 else None, markersize=3,
            label=name if part == "validation" else None,
        )  # fmt: skip


def confusions_figure(
    panels: Mapping[str, Mapping[str, Any]], caption: str, path: Path, rows: Sequence[dict] = ()
) -> Drawn | None:
    """Draw confusion matrices side by side; `panels`: title → ``confusion`` and ``classes``."""
    panels = {name: one for name, one in panels.items() if np.sum(one["confusion"])}
    if not panels:
        return None
    size = max(len(one["classes"]) for one in panels.values())
    width, height = max(4.8, 2.6 + 0.56 * size), max(4.0, 1.9 + 0.5 * size)
    with rc_context({**plots.STYLE, "axes.grid": False}):
        figure, axes = plots.panels(1, len(panels), width=width, height=height)
        for axis, (title, one) in zip(axes[0], panels.items(), strict=True):
            image = plots.confusion_axis(axis, one["confusion"], one["classes"])
            axis.set_title(f"{title}: {axis.get_title(loc='left')}")
        figure.colorbar(image, ax=axes[0, -1], label="% of the true class", fraction=0.04)
        plots.save(figure, path)
    return Drawn(path, caption, list(rows))


def recall_of(section: Mapping[str, Any], name: str) -> float | None:
    """Return the recall of a class from a section of `evaluate_table`."""
    found = section["per_class"].get(name)
    return found["recall"] if found else None


def called(section: Mapping[str, Any], true: str, predicted: str) -> float | None:
    """Return the share of a true class that is called another one."""
    classes, counts = list(section["classes"]), np.asarray(section["confusion"], float)
    row = counts[classes.index(true)]
    return float(row[classes.index(predicted)] / row.sum()) if row.sum() else None


def contamination_rows(
    scored: Mapping[float, Mapping[str, Any]], figure: str, among: Sequence[str],
    published: Sequence[float], score: str,
) -> list[dict[str, Any]]:  # fmt: skip
    """Return what wrong labels cost, in points of `score`, paper beside ours (A1–A3).

    Parameters
    ----------
    scored : mapping
        Share of wrong labels → `evaluate_table` on clean labels, with 0 for none.
    published : the paper's change at 5 % and 10 %.
    """
    rows = []
    for share, paper in zip((0.05, 0.10), published, strict=True):
        if 0.0 in scored and share in scored:
            ours = contamination_effect(scored[0.0], scored[share], among)[score]
            title = f"{score.replace('_', ' ')}, points, {100 * share:.0f} % wrong labels"
            rows.append(line(figure, title, paper, ours))
    return rows


def coarse_rows(section: Mapping[str, Any], survey: str, published: tuple) -> list[dict[str, Any]]:
    """Return the numbers of Figure B1 for one survey."""
    accuracy, recalls = published
    rows = [line("B1", f"accuracy, {survey}", accuracy, classification.balanced_accuracy(
        np.asarray(section["confusion"])))]  # fmt: skip
    return rows + [
        line("B1", f"recall of {name}, {survey}", recalls.get(name), recall_of(section, name))
        for name in section["classes"]
    ]
