"""Pictures of a sweep: how it went, and what each hyper-parameter did to the objective."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd

from skyray.families.base import Objective


def sweep_figures(
    table: pd.DataFrame, objective: Objective, keys: list[str], folder: Path
) -> list[Path]:
    """Write ``sweep.png``: the objective against every hyper-parameter, one panel each.

    Trials that ASHA ended early are drawn small: their objective is of fewer epochs.
    """
    import matplotlib.pyplot as plt

    folder.mkdir(parents=True, exist_ok=True)
    columns = min(3, len(keys))
    rows = math.ceil(len(keys) / columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(4 * columns, 3.2 * rows), squeeze=False, sharey=True
    )
    size = 12 + 60 * table["epochs"].to_numpy() / max(1, table["epochs"].max())
    values = table[objective.metric].to_numpy(dtype=float)
    best = np.nanargmax(values) if objective.better == "max" else np.nanargmin(values)
    for axis, key in zip(axes.flat, keys, strict=False):
        x, ticks = _positions(table[key])
        axis.scatter(x, values, s=size, c="tab:blue", alpha=0.6, edgecolor="none")
        axis.scatter(x[best], values[best], s=110, marker="*", c="tab:red", zorder=3)
        if ticks:
            axis.set_xticks(range(len(ticks)), ticks)
        elif (x > 0).all() and x.max() > 20 * x.min():
            axis.set_xscale("log")
        axis.set_xlabel(key)
    for axis in axes.flat[len(keys) :]:
        axis.axis("off")
    for axis in axes[:, 0]:
        axis.set_ylabel(objective.metric.replace("_", " "))
    figure.suptitle(f"{len(table)} trials; size: epochs; star: best")
    figure.tight_layout()
    place = folder / "sweep.png"
    figure.savefig(place, dpi=130)
    plt.close(figure)
    return [place]


def _positions(values: pd.Series) -> tuple[np.ndarray, list[str]]:
    """Return numbers to plot, and names of the positions where the values are not numbers."""
    try:
        return values.to_numpy(dtype=float), []
    except (TypeError, ValueError):
        texts = values.map(str)
        names = sorted(texts.unique())
        return texts.map(names.index).to_numpy(dtype=float), names
