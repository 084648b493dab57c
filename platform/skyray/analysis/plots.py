"""The house style of figures, and the figures that several families share.

Figures are made with matplotlib's object interface (no pyplot): nothing global changes, so they can
be drawn in any process or thread. Colours are those of Okabe & Ito (2008), told apart by
colour-blind readers, and of ``cividis`` for densities.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from skyray.analysis.calibration import ReliabilityCurve

BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PURPLE, SKY, YELLOW, INK, SOFT = "#CC79A7", "#56B4E9", "#F0E442", "#1B2430", "#7A8694"
CYCLE = (BLUE, RED, GREEN, ORANGE, PURPLE, SKY, INK)
DENSITY = "cividis"
DPI = 130
STYLE = {
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": SOFT,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#E3E7EC",
    "grid.linewidth": 0.7,
    "axes.axisbelow": True,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
}


def panels(
    rows: int = 1, columns: int = 1, width: float = 4.2, height: float = 3.6, **options: Any
) -> tuple[Figure, np.ndarray]:
    """Return a figure and its axes [rows, columns]; each panel `width` × `height` inches.

    Call inside ``with rc_context(STYLE)``; `options` go to ``Figure.subplots``.
    """
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def save(figure: Figure, path: Path) -> Path:
    """Write a figure as PNG, making its folder, and return the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI)
    return path


def confusion_figure(confusion_CC: np.ndarray, classes: Sequence[str], path: Path) -> Path:
    """Draw a confusion matrix in per cent of each true class, with the rows of each class."""
    size = len(classes)
    with rc_context({**STYLE, "axes.grid": False}):
        figure, axes = panels(width=max(4.6, 2.4 + 0.56 * size), height=max(3.8, 1.7 + 0.5 * size))
        image = confusion_axis(axes[0, 0], confusion_CC, classes)
        figure.colorbar(image, ax=axes[0, 0], label="% of the true class", fraction=0.04)
        return save(figure, path)


def confusion_axis(axis: Axes, confusion_CC: np.ndarray, classes: Sequence[str]) -> AxesImage:
    """Draw a confusion matrix into one panel; the title is the share of objects that are right."""
    counts = np.asarray(confusion_CC, dtype=np.float64)
    support = counts.sum(axis=1, keepdims=True)
    share = np.divide(100 * counts, support, out=np.zeros_like(counts), where=support > 0)
    image = axis.imshow(share, cmap="Blues", vmin=0, vmax=100, aspect="auto")
    for i, j in zip(*np.nonzero(counts), strict=True):
        text = f"{share[i, j]:.0f}" if share[i, j] >= 0.5 else "<1"
        axis.text(
            j, i, text, ha="center", va="center", fontsize=9,
            color="white" if share[i, j] > 55 else INK, weight="bold" if i == j else None,
        )  # fmt: skip
    size = len(classes)
    axis.set_xticks(range(size), classes, rotation=40, ha="right", rotation_mode="anchor")
    names = [f"{c}  ({int(n):,})" for c, n in zip(classes, support[:, 0], strict=True)]
    axis.set_yticks(range(size), names)
    axis.tick_params(length=0)
    total = counts.sum()
    right = 100 * np.trace(counts) / total if total else 0.0
    axis.set(xlabel="predicted class", ylabel="true class (objects)")
    axis.set_title(f"{right:.1f} % of {int(total):,} right")
    return image


def rate_axis(axis: Axes, bins: Mapping[str, Sequence[float]], label: str, color: str) -> None:
    """Draw rates in bins (`classification.fraction_in_bins`) with their 68 % errors."""
    columns = [
        [np.nan if v is None else v for v in bins[name]] for name in ("value", "rate", "error")
    ]
    value, rate, error = (np.array(column, dtype=np.float64) for column in columns)
    used = np.isfinite(rate) & np.isfinite(value)
    axis.errorbar(
        value[used], 100 * rate[used], 100 * error[used], color=color, label=label,
        marker="o", markersize=4, linewidth=1.4, elinewidth=1, capsize=2,
    )  # fmt: skip


def reliability_axis(axis: Axes, curve: ReliabilityCurve, title: str) -> None:
    """Draw observed against stated probability, with the share of objects in each bin."""
    used = curve.count > 0
    middle = 0.5 * (curve.edges[1:] + curve.edges[:-1])
    share = curve.count / max(curve.count.sum(), 1)
    axis.bar(
        middle, share, width=0.9 * np.diff(curve.edges), color=SKY, alpha=0.35,
        label="share of objects",
    )  # fmt: skip
    axis.plot([0, 1], [0, 1], color=SOFT, linestyle="--", linewidth=1, label="perfect")
    accuracy, count = curve.accuracy[used], curve.count[used]
    error = np.sqrt(accuracy * (1 - accuracy) / count + 0.25 / count**2)
    axis.errorbar(
        curve.confidence[used], accuracy, error, color=BLUE, marker="o", markersize=4,
        linewidth=1.4, elinewidth=1, capsize=2, label="observed",
    )  # fmt: skip
    axis.set(xlabel="stated probability", ylabel="fraction right", xlim=(0, 1), ylim=(0, 1.02))
    axis.set_title(title)
    axis.legend(loc="upper left", fontsize=8)


def loss_figure(history: Sequence[Mapping[str, Any]], path: Path) -> Path | None:
    """Draw training and validation loss of every stage against the epoch.

    Parameters
    ----------
    history : rows
        With ``stage``, ``epoch``, ``train_loss`` and ``validation_loss``; a stage named
        ``group/name/member`` shares the panel of ``group/name``. Rows without a loss (skipped
        stages) are left out.

    Returns
    -------
    Path or None
        None where no row holds a loss.
    """
    stages: dict[str, dict[str, list[Mapping[str, Any]]]] = {}
    for row in history:
        if "train_loss" in row:
            name = str(row["stage"])
            panel, _, member = name.rpartition("/")
            panel = panel if member.isdigit() else name
            stages.setdefault(panel, {}).setdefault(name, []).append(row)
    if not stages:
        return None
    columns = min(3, len(stages))
    with rc_context(STYLE):
        figure, axes = panels(-(-len(stages) // columns), columns, height=3.0)
        for axis, (panel, members) in zip(axes.flat, stages.items(), strict=False):
            _draw_losses(axis, panel, members)
        for axis in axes.flat[len(stages) :]:
            axis.set_axis_off()
        axes[0, 0].legend(fontsize=8)
        return save(figure, path)


def _draw_losses(
    axis: Axes, panel: str, members: Mapping[str, Sequence[Mapping[str, Any]]]
) -> None:
    for number, rows in enumerate(members.values()):
        epochs = [row["epoch"] + 1 for row in rows]
        for kind, color in (("train", SOFT), ("validation", BLUE)):
            losses = [row.get(f"{kind}_loss", np.nan) for row in rows]
            axis.plot(
                epochs, losses, color=color, linewidth=1.3, alpha=1.0 if len(members) == 1 else 0.6,
                marker="o" if len(rows) < 3 else None, markersize=3,
                label={"train": "training"}.get(kind, kind) if number == 0 else None,
            )  # fmt: skip
    count = f", {len(members)} members" if len(members) > 1 else ""
    axis.set(xlabel="epoch", ylabel="loss", yscale="log", title=f"{panel}{count}")
