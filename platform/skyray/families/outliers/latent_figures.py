"""Figures of the latents: their densities against each other and against redshift."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from scipy.stats import spearmanr

from skyray.analysis import plots
from skyray.families.outliers.scoring_table import (
    Columns,
    column,
    latents,
    limits_of,
    normal_rows,
    planted_kinds,
    usable,
)

_MIN_ROWS, _MIN_DENSITY_ROWS, _MIN_CORRELATION_ROWS = 3, 400, 30
_TOP = 100


def corner_figure(table: Columns, path: Path) -> Path | None:
    """Draw the density of every pair of latents, with the planted objects or the top 100 on it."""
    latent, fine = latents(table), usable(table)
    if latent is None:
        return None
    fine &= np.isfinite(latent).all(axis=1)
    if fine.sum() < _MIN_ROWS or latent.shape[1] < 2:
        return None
    marked = _marked_groups(table, fine)
    size = latent.shape[1]
    limits = [limits_of(latent[fine, s]) for s in range(size)]
    with rc_context({**plots.STYLE, "axes.grid": False}):
        figure, axes = plots.panels(size, size, width=1.75, height=1.6)
        for i in range(size):
            for j in range(size):
                axis = axes[i, j]
                if j > i:
                    axis.set_axis_off()
                    continue
                _draw_corner(axis, latent[fine], i, j, limits)
                for name, rows, color in marked:
                    _mark_corner(axis, latent[rows], i, j, limits, name, color)
                axis.set(xlim=limits[j])
                axis.tick_params(labelsize=7, labelbottom=i == size - 1, labelleft=j == 0 and i > 0)
                if i == size - 1:
                    axis.set_xlabel(f"$s_{j}$")
                if j == 0 and i > 0:
                    axis.set_ylabel(f"$s_{i}$")
        if marked:
            handles, names = axes[1, 0].get_legend_handles_labels()
            figure.legend(handles, names, loc="upper right", fontsize=9, markerscale=2)
        figure.suptitle(f"Latents of {int(fine.sum()):,} objects", x=0.01, ha="left", weight="bold")
        return plots.save(figure, path)


def _draw_corner(axis: Axes, latent: np.ndarray, i: int, j: int, limits: list) -> None:
    if i == j:
        axis.hist(latent[:, i], bins=50, range=limits[i], color="#B8C0CA")
        axis.set_yticks([])
    elif len(latent) >= _MIN_DENSITY_ROWS:
        axis.hist2d(
            latent[:, j], latent[:, i], bins=45, range=(limits[j], limits[i]), cmap="Greys",
            norm=LogNorm(), rasterized=True,
        )  # fmt: skip
    else:
        axis.scatter(latent[:, j], latent[:, i], s=5, color=plots.SOFT, linewidths=0)
    if i != j:
        axis.set_ylim(limits[i])


def _mark_corner(axis: Axes, rows: np.ndarray, i: int, j: int, limits, name, color) -> None:
    x, y = np.clip(rows[:, j], *limits[j]), np.clip(rows[:, i], *limits[i])  # beyond: at the edge
    if i != j:
        axis.scatter(
            x, y, s=9, color=color, edgecolors="white", linewidths=0.3, alpha=0.9, label=name
        )


def _marked_groups(table: Columns, fine: np.ndarray) -> list[tuple[str, np.ndarray, str]]:
    planted = planted_kinds(table)
    if (fine & (planted != "")).any():
        kinds = sorted(set(planted[fine]) - {""})
        return [
            (kind, np.flatnonzero(fine & (planted == kind)), plots.CYCLE[(n + 1) % 7])
            for n, kind in enumerate(kinds)
        ]
    score = column(table, "neg_log_p")
    if score is None:
        return []
    order = np.argsort(np.where(fine & np.isfinite(score), -score, np.inf))
    top = order[: min(_TOP, int((fine & np.isfinite(score)).sum()) // 10)]
    return [(f"top {len(top)} by −log p", top, plots.RED)] if top.size else []


def latent_redshift_figure(table: Columns, path: Path) -> Path | None:
    """Draw every latent against redshift, its median and 16–84 % for each type, with Spearman's ρ.

    A latent that follows z at fixed type means the encoder does not see the rest frame only.
    """
    latent, redshift = latents(table), column(table, "redshift")
    names = table.get("type", table.get("label"))
    if latent is None or redshift is None or names is None:
        return None
    names = np.asarray(names, dtype=str)
    fine = normal_rows(table) & np.isfinite(redshift) & np.isfinite(latent).all(axis=1)
    groups = sorted(set(names[fine]), key=lambda n: -int((fine & (names == n)).sum()))
    groups = [n for n in groups if (fine & (names == n)).sum() >= _MIN_ROWS][:4]
    if not groups:
        return None
    size = latent.shape[1]
    columns = min(3, size)
    with rc_context(plots.STYLE):
        figure, axes = plots.panels(-(-size // columns), columns, width=4.4, height=3.0)
        for axis in axes.flat[size:]:
            axis.set_axis_off()
        for s, axis in zip(range(size), axes.flat, strict=False):
            for group, color in zip(groups, plots.CYCLE, strict=False):
                rows = fine & (names == group)
                _draw_trend(axis, redshift[rows], latent[rows, s], group, color)
            axis.set(xlabel="redshift", ylabel=f"$s_{s}$", ylim=limits_of(latent[fine, s]))
            axis.legend(fontsize=7.5, loc="upper right")
        figure.suptitle("Latents against redshift", x=0.01, ha="left", weight="bold")
        return plots.save(figure, path)


def _draw_trend(axis: Axes, z: np.ndarray, latent: np.ndarray, name: str, color: str) -> None:
    name = name or "all"
    if len(z) >= _MIN_CORRELATION_ROWS and np.ptp(z) > 0 and np.ptp(latent) > 0:
        name += f": ρ = {spearmanr(z, latent).statistic:+.2f}"
    axis.scatter(z[:2000], latent[:2000], s=3, color=color, alpha=0.25, linewidths=0)
    order = np.argsort(z)
    parts = np.array_split(order, max(1, min(12, len(z) // 15)))
    middle = [np.median(z[part]) for part in parts]
    low, half, high = np.transpose([np.percentile(latent[part], (16, 50, 84)) for part in parts])
    axis.plot(middle, half, color=color, linewidth=1.6, label=name)
    axis.fill_between(middle, low, high, color=color, alpha=0.12, linewidth=0)
