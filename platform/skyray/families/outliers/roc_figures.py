"""ROC figures: star or galaxy, and planted outliers of every kind against the baselines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes

from skyray.analysis import plots
from skyray.families.outliers.scoring_table import (
    BASELINES,
    SCORES,
    Columns,
    Roc,
    column,
    is_star,
    normal_rows,
    planted_curves,
    roc,
)


def star_galaxy_figure(table: Columns, path: Path, area: float | None = None) -> Path | None:
    """Draw the ROC of the star/galaxy decision, log p star − log p galaxy; None without both."""
    galaxy, star = column(table, "neg_log_p"), column(table, "neg_log_p_star")
    if galaxy is None or star is None:
        return None
    fine = normal_rows(table) & np.isfinite(galaxy) & np.isfinite(star)
    curve = roc(is_star(table)[fine], (galaxy - star)[fine])
    if curve is None:
        return None
    with rc_context(plots.STYLE):
        figure, axes = plots.panels(width=4.6, height=4.2)
        shown = curve[2] if area is None else area
        _roc_axis(axes[0, 0], [(curve, f"AUC {shown:.4f}", plots.BLUE, "-")])
        axes[0, 0].set(xlabel="galaxies called stars", ylabel="stars found")
        axes[0, 0].set_title("Star or galaxy")
        axes[0, 0].legend(loc="lower right")
        return plots.save(figure, path)


def planted_figure(
    table: Columns, path: Path, areas: Mapping[str, Mapping[str, float]] | None = None
) -> Path | None:
    """Draw the ROC of planted outliers, all and kind by kind, for every score and baseline."""
    curves = planted_curves(table)
    if not curves:
        return None
    kinds = list(next(iter(curves.values())))
    columns = min(4, len(kinds))
    with rc_context(plots.STYLE):
        figure, axes = plots.panels(-(-len(kinds) // columns), columns, width=3.9, height=3.7)
        for axis in axes.flat[len(kinds) :]:
            axis.set_axis_off()
        for axis, kind in zip(axes.flat, kinds, strict=False):
            lines = []
            for (name, by_kind), color in zip(curves.items(), plots.CYCLE, strict=False):
                style = "--" if name in BASELINES else "-"
                area = _area(areas, name, "all", by_kind["all"][2])
                lines.append((by_kind[kind], f"{SCORES[name]}: {area:.3f}", color, style))
            _roc_axis(axis, lines)
            axis.set(xlabel="normal objects called strange", ylabel="found")
            axis.set_xscale("symlog", linthresh=0.01, linscale=0.4)
            axis.set_xticks([0, 0.01, 0.1, 1], ["0", "1 %", "10 %", "100 %"])
            axis.set_title(kind.replace("_", " "))
        handles, names = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=4, fontsize=9,
                      title="area under the curve, all kinds")  # fmt: skip
        return plots.save(figure, path)


def planted_table_figure(
    table: Columns, path: Path, areas: Mapping[str, Mapping[str, float]] | None = None
) -> Path | None:
    """Draw the AUC of every score for every kind of planted outlier as a table in colours."""
    curves = planted_curves(table)
    if not curves:
        return None
    kinds = list(next(iter(curves.values())))
    values = np.array(
        [[_area(areas, n, k, by_kind[k][2]) for k in kinds] for n, by_kind in curves.items()]
    )
    with rc_context({**plots.STYLE, "axes.grid": False}):
        figure, axes = plots.panels(width=3.2 + 0.85 * len(kinds), height=1.5 + 0.36 * len(values))
        axis = axes[0, 0]
        image = axis.imshow(values, cmap="cividis", vmin=0.5, vmax=1.0, aspect="auto")
        for (i, j), value in np.ndenumerate(values):
            best = value >= values[:, j].max() - 5e-4
            axis.text(
                j, i, f"{value:.3f}", ha="center", va="center", fontsize=8.5,
                color=plots.INK if value > 0.78 else "white", weight="bold" if best else None,
            )  # fmt: skip
        axis.set_yticks(range(len(values)), [SCORES[name] for name in curves])
        names = [kind.replace("_", " ") for kind in kinds]
        axis.set_xticks(range(len(kinds)), names, rotation=30, ha="right", rotation_mode="anchor")
        axis.tick_params(length=0)
        axis.set_title("ROC AUC of planted outliers (bold: best)")
        figure.colorbar(image, ax=axis, fraction=0.04)
        return plots.save(figure, path)


def _area(areas: Mapping | None, score: str, kind: str, drawn: float) -> float:
    given = (areas or {}).get(score, {}).get(kind)
    return drawn if given is None else float(given)


def _roc_axis(axis: Axes, lines: Sequence[tuple[Roc, str, str, str]]) -> None:
    chance = np.linspace(0.0, 1.0, 200)  # no straight line where the axis is logarithmic
    axis.plot(chance, chance, color=plots.SOFT, linewidth=0.8, linestyle=":")
    for (wrong, found, _), label, color, style in lines:
        axis.plot(wrong, found, style, color=color, linewidth=1.5, label=label)
    axis.set(xlim=(0, 1), ylim=(0, 1.02))
