"""Reconstructions of a few objects: whole spectrum and zooms, as figure 2 of the paper."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes

from skyray.analysis import plots
from skyray.families.outliers.scoring_table import Columns, column, rows_of, usable
from skyray.pages.spectrum_plot import LINES, MAIN_LINES, ZOOM_LINES, ZOOMS
from skyray.pages.svg import robust_limits

_NEEDED = ("wavelength", "flux", "ivar", "masked", "model")


def reconstruction_figure(table: Columns, path: Path, count: int = 4) -> Path | None:
    """Draw `count` objects in the rest frame, the last the strangest; None without spectra.

    The others are typical ones, in the order of redshift. Black: flux; orange: model; grey:
    masked pixels, which are not used.
    """
    if any(name not in table for name in _NEEDED):
        return None
    rows = _choose(table, count)
    if not rows:
        return None
    with rc_context({**plots.STYLE, "axes.grid": False}):
        figure, axes = plots.panels(
            len(rows), 1 + len(ZOOMS), width=4.0, height=2.2,
            gridspec_kw={"width_ratios": [3, 1, 1, 1]},
        )  # fmt: skip
        for line, row in zip(axes, rows, strict=True):
            _draw_object(line, table, row)
        for axis, title in zip(axes[0, 1:], ZOOMS, strict=True):
            axis.set_title(title, fontsize=10)
        for axis in axes[-1]:
            axis.set_xlabel("rest wavelength, Å (vacuum)")
        return plots.save(figure, path)


def _choose(table: Columns, count: int) -> list[int]:
    redshift = np.asarray(table["redshift"], np.float64)
    seen = (np.asarray(table["ivar"]) > 0).sum(axis=1) > 10
    fine = usable(table) & seen & np.isfinite(redshift)
    score = column(table, "neg_log_p")
    score = np.zeros(rows_of(table)) if score is None else score
    fine &= np.isfinite(score)
    order = [int(row) for row in np.argsort(score, kind="stable") if fine[row]]
    if len(order) <= count:
        return order
    typical = order[: max(len(order) // 2, count - 1)]  # the denser half
    by_redshift = sorted(typical, key=lambda row: redshift[row])
    at = np.linspace(0.1, 0.9, count - 1) * (len(by_redshift) - 1)
    return [*(by_redshift[int(i)] for i in at.round()), order[-1]]


def _draw_object(axes: np.ndarray, table: Columns, row: int) -> None:
    z = float(table["redshift"][row])
    rest = np.asarray(table["wavelength"], np.float64) / (1.0 + z)
    flux, ivar, model = (
        np.asarray(table[n][row], np.float64).copy() for n in ("flux", "ivar", "model")
    )
    measured = (ivar > 0) & np.isfinite(flux)
    used = measured & ~np.asarray(table["masked"][row], bool)
    flux[~measured] = np.nan
    limits = [(rest[measured][0], rest[measured][-1]), *ZOOMS.values()]
    for axis, (left, right) in zip(axes, limits, strict=True):
        inside = (rest >= left) & (rest <= right)
        whole = axis is axes[0]
        if (inside & measured).sum() < 10:
            axis.text(0.5, 0.5, "not covered", transform=axis.transAxes, ha="center",
                      color=plots.SOFT)  # fmt: skip
            axis.set(xlim=(left, right), yticks=[])
            continue
        seen = inside & (used if (inside & used).any() else measured)
        low, high = robust_limits(flux[seen], model[inside], share=0.3 if whole else 0.0)
        axis.fill_between(rest, 0, 1, where=inside & ~used, transform=axis.get_xaxis_transform(),
                          color="#E3E7EC", linewidth=0, step="mid")  # fmt: skip
        axis.plot(rest[inside], flux[inside], color=plots.INK, linewidth=0.4 if whole else 0.7)
        axis.plot(rest[inside], model[inside], color=plots.RED, linewidth=0.9 if whole else 1.2)
        axis.set(xlim=(left, right), ylim=(low, high + 0.15 * (high - low)))
        _mark_lines(axis, list(LINES.items())[:MAIN_LINES] if whole else list(ZOOM_LINES.items()))
    axes[0].set_title(_title(table, row, z), fontsize=10)


def _title(table: Columns, row: int, z: float) -> str:
    parts = [str(table["object_id"][row]), f"z = {z:.4f}"]
    for name, title in (("chi2_reduced", "χ²"), ("neg_log_p", "−log p")):
        values = column(table, name)
        if values is not None and np.isfinite(values[row]):
            parts.append(f"{title} = {values[row]:.2f}")
    return "   ".join(parts)


def _mark_lines(axis: Axes, lines: list[tuple[str, float]]) -> None:
    """Mark the lines in the panel; names that would touch go lower."""
    left, right = axis.get_xlim()
    right_end = np.full(3, -np.inf)  # of the last name on each level
    size = 0.008 if right - left > 1000 else 0.026  # a letter's share of the panel
    for name, at in sorted(lines, key=lambda line: line[1]):
        if not left < at < right:
            continue
        axis.axvline(at, color=plots.ORANGE, linewidth=0.7, linestyle=":")
        start = min(at, right - size * len(name) * (right - left))
        level = int(np.argmax(right_end <= start)) if (right_end <= start).any() else 2
        right_end[level] = start + size * (len(name) + 1) * (right - left)
        axis.text(start, 0.99 - 0.09 * level, f" {name}", transform=axis.get_xaxis_transform(),
                  fontsize=6.5, color=plots.RED, va="top")  # fmt: skip
