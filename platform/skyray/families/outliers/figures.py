"""Figures of the outliers family, drawn from the scoring table and its metrics.

Every figure leaves out what the table does not hold, rows that are not finite and objects with a
problem, and returns None where nothing is left to draw.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from scipy.stats import chi2 as chi2_distribution

from skyray.analysis import plots
from skyray.families.outliers.latent_figures import corner_figure, latent_redshift_figure
from skyray.families.outliers.reconstructions import reconstruction_figure
from skyray.families.outliers.roc_figures import (
    planted_figure,
    planted_table_figure,
    star_galaxy_figure,
)
from skyray.families.outliers.scoring_table import (
    Columns,
    column,
    is_star,
    normal_rows,
    planted_kinds,
    usable,
)

_MIN_ROWS = 3


def write_figures(table: Columns, metrics: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write the figures that the table allows, as PNG, and return their paths.

    Parameters
    ----------
    table : columns [N]
        ``object_id, redshift, label, snr, latent_0 … latent_{S-1}, neg_log_p, percentile,
        chi2_reduced, chi2_window, isolation, problem`` ('' = fine). Optional: ``neg_log_p_star``,
        ``strangeness``, ``planted`` (kind or ''), ``real`` (bool: real among mocks), ``type``
        (finer than label), ``pixels`` (in χ²), the baselines ``pca_error`` and ``pca_isolation``;
        ``history`` (rows of a training); ``wavelength`` [L] (Å, observed) with ``flux, ivar,
        masked, model`` [N, L].
    metrics : mapping
        Its ``star_galaxy_auc`` and ``planted_auc`` (score → kind, or ``all`` → AUC) are the
        numbers written in the figures; where they are not given, the area under the drawn curve.
    folder : Path
        Made if it is not there.
    """
    pieces: tuple[tuple[str, Callable[[Path], Path | None]], ...] = (
        ("training_losses", lambda p: history_figure(table.get("history", ()), p)),
        ("latents", lambda p: corner_figure(table, p)),
        ("latents_redshift", lambda p: latent_redshift_figure(table, p)),
        ("neg_log_p", lambda p: neg_log_p_figure(table, p)),
        ("chi2", lambda p: chi2_figure(table, p)),
        ("star_galaxy", lambda p: star_galaxy_figure(table, p, metrics.get("star_galaxy_auc"))),
        ("planted_roc", lambda p: planted_figure(table, p, metrics.get("planted_auc"))),
        ("planted_auc", lambda p: planted_table_figure(table, p, metrics.get("planted_auc"))),
        ("reconstructions", lambda p: reconstruction_figure(table, p)),
    )
    paths = [draw(Path(folder) / f"{name}.png") for name, draw in pieces]
    return [path for path in paths if path is not None]


def history_figure(history: Sequence[Mapping[str, Any]], path: Path) -> Path | None:
    """Draw the loss and its parts against the epoch, one panel a stage; None without a loss.

    `history` holds rows with ``stage``, ``epoch`` and any ``train_NAME``, ``validation_NAME``.
    Dotted: training; full: validation. The scale is logarithmic where every value is positive.
    """
    stages: dict[str, list[Mapping[str, Any]]] = {}
    for row in history:
        if any(name.startswith(("train_", "validation_")) for name in row):
            stages.setdefault(str(row["stage"]), []).append(row)
    if not stages:
        return None
    columns = min(3, len(stages))
    with rc_context(plots.STYLE):
        figure, axes = plots.panels(-(-len(stages) // columns), columns, width=4.6, height=3.2)
        for axis in axes.flat[len(stages) :]:
            axis.set_axis_off()
        for axis, (stage, rows) in zip(axes.flat, stages.items(), strict=False):
            _draw_history(axis, rows)
            axis.set(xlabel="epoch", title=stage)
        axes[0, 0].set_ylabel("loss (dotted: training)")
        return plots.save(figure, path)


def _draw_history(axis: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    epochs = [row["epoch"] + 1 for row in rows]
    keys = dict.fromkeys(key for row in rows for key in row)
    names = dict.fromkeys(k.partition("_")[2] for k in keys if k.startswith(("train_", "validat")))
    drawn = []
    for name, color in zip(sorted(names, key=lambda n: n != "loss"), plots.CYCLE, strict=False):
        for kind, line, width in (("validation", "-", 1.5), ("train", ":", 1.2)):
            values = np.array([_number(row.get(f"{kind}_{name}")) for row in rows])
            if np.isfinite(values).any():
                axis.plot(
                    epochs, values, line, color=color, linewidth=width,
                    marker="o" if len(rows) < 3 else None, markersize=3,
                    label=name.replace("_", " ") if name not in drawn else None,
                )  # fmt: skip
                drawn.append(name)
        drawn.append(name)
    values = np.concatenate([line.get_ydata() for line in axis.lines] or [[np.nan]])
    if (values[np.isfinite(values)] > 0).all():
        axis.set_yscale("log")
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.legend(fontsize=8, loc="upper right")


def _number(value: Any) -> float:
    return float("nan") if value is None else float(value)


def neg_log_p_figure(table: Columns, path: Path) -> Path | None:
    """Draw −log p of galaxies and stars under the galaxy flow, and the decision of two flows."""
    score, star = column(table, "neg_log_p"), column(table, "neg_log_p_star")
    if score is None or (usable(table) & np.isfinite(score)).sum() < _MIN_ROWS:
        return None
    fine = usable(table) & np.isfinite(score)
    both = star is not None and (fine & np.isfinite(star)).any()
    with rc_context(plots.STYLE):
        figure, axes = plots.panels(1, 2 if both else 1, width=6.0, height=3.9)
        _draw_neg_log_p(axes[0, 0], table, score, fine)
        if both:
            _draw_decision(axes[0, 1], table, score, star, fine & np.isfinite(star))
        return plots.save(figure, path)


def _draw_neg_log_p(axis: Axes, table: Columns, score: np.ndarray, fine: np.ndarray) -> None:
    planted, stars = planted_kinds(table), is_star(table)
    normal = fine & normal_rows(table)
    low, high = np.percentile(score[fine], (0.2, 99.0))
    high += 0.35 * max(high - low, 1e-6)
    bins = np.linspace(low, high, 60)
    for rows, name, color in (
        (normal & ~stars, "galaxies", plots.BLUE),
        (normal & stars, "stars", plots.ORANGE),
    ):
        if rows.any():
            axis.hist(
                np.clip(score[rows], low, high), bins=bins, histtype="stepfilled", alpha=0.35,
                color=color, edgecolor=color, label=f"{name} ({int(rows.sum()):,})",
            )  # fmt: skip
    axis.set_yscale("log")
    axis.set_ylim(bottom=0.7)
    marks = [(kind, fine & (planted == kind)) for kind in sorted({*planted} - {""})]
    if "real" in table:
        marks.append(("real spectra", fine & np.asarray(table["real"], bool)))
    for level, (name, rows) in enumerate([mark for mark in marks if mark[1].any()]):
        at = np.clip(score[rows], low, high)
        axis.plot(
            at, np.full(at.size, 0.97 - 0.045 * level), "|", markersize=9, label=name,
            color=plots.CYCLE[(level + 1) % 7], transform=axis.get_xaxis_transform(),
        )  # fmt: skip
    axis.set(xlabel="−log p under the galaxy flow (last bin: beyond)", ylabel="objects")
    axis.set_title("How rare an object is")
    axis.legend(fontsize=8, bbox_to_anchor=(1.01, 1.0), loc="upper left")


def _draw_decision(axis: Axes, table: Columns, score, star, fine: np.ndarray) -> None:
    stars = is_star(table)
    limits = [np.percentile(v[fine], (0.2, 99.0)) for v in (score, star)]
    limits = [(a - 0.05 * (b - a), b + 0.3 * max(b - a, 1e-6)) for a, b in limits]
    for rows, name, color in (
        (fine & ~stars, "galaxies", plots.BLUE),
        (fine & stars, "stars", plots.ORANGE),
    ):
        axis.scatter(
            np.clip(score[rows], *limits[0]), np.clip(star[rows], *limits[1]), s=6, color=color,
            alpha=0.5, linewidths=0, label=name if rows.any() else None, rasterized=True,
        )  # fmt: skip
    low, high = max(limits[0][0], limits[1][0]), min(limits[0][1], limits[1][1])
    if high > low:
        axis.plot([low, high], [low, high], color=plots.SOFT, linewidth=1, linestyle="--")
    axis.set(xlabel="−log p galaxy", ylabel="−log p star", xlim=limits[0], ylim=limits[1])
    axis.set_title("Galaxy above, star below the line")
    axis.legend(fontsize=8, markerscale=2, loc="upper right")


def chi2_figure(table: Columns, path: Path) -> Path | None:
    """Draw the reduced χ² of the reconstruction against what noise alone gives.

    The expected curve needs ``pixels``, the number in each χ²; without it a line marks 1.
    """
    value, pixels = column(table, "chi2_reduced"), column(table, "pixels")
    if value is None:
        return None
    fine = normal_rows(table) & np.isfinite(value)
    if fine.sum() < _MIN_ROWS:
        return None
    shown = value[fine]
    low, high = np.percentile(shown, (0.2, 98.0))
    low, high = min(low, 0.85), max(high + 0.2 * (high - low), 1.2)
    with rc_context(plots.STYLE):
        figure, axes = plots.panels(1, 2, width=4.8)
        left, right = axes[0]
        left.hist(
            np.clip(shown, low, high), bins=70, range=(low, high), density=True, color=plots.SKY,
            label=f"{len(shown):,} objects, median {np.median(shown):.3f}",
        )  # fmt: skip
        grid = np.linspace(low, high, 500)
        good = fine & (pixels > 0) if pixels is not None else np.zeros(fine.size, bool)
        if good.any():
            counts = np.percentile(pixels[good], np.linspace(2, 98, 25))[:, None]
            expected = (counts * chi2_distribution.pdf(grid * counts, counts)).mean(axis=0)
            left.plot(grid, expected, color=plots.RED, linewidth=1.4, label="noise alone")
        left.axvline(1.0, color=plots.SOFT, linestyle="--", linewidth=1)
        left.set(xlabel="reduced χ² (last bin: beyond)", ylabel="density")
        left.set_title("Reconstruction")
        left.legend(fontsize=8, loc="upper right")
        _draw_chi2_snr(right, column(table, "snr"), value, fine)
        return plots.save(figure, path)


def _draw_chi2_snr(axis: Axes, snr: np.ndarray | None, value: np.ndarray, fine: np.ndarray) -> None:
    rows = fine & (snr > 0) if snr is not None else np.zeros(fine.size, bool)
    if not rows.any():
        axis.set_axis_off()
        return
    shown = np.maximum(value[rows], 1e-3)
    axis.scatter(snr[rows], shown, s=4, color=plots.BLUE, alpha=0.4,
                 linewidths=0, rasterized=True)  # fmt: skip
    axis.axhline(1.0, color=plots.SOFT, linestyle="--", linewidth=1)
    axis.set(xscale="log", yscale="log" if np.ptp(np.log(shown)) > 1.5 else "linear")
    axis.set(xlabel="median SNR per pixel", ylabel="reduced χ²")
    axis.set_title("What bright objects show")
