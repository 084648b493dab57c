"""Figures of the redshift family, drawn from the scoring table and its metrics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from scipy.ndimage import uniform_filter1d

from skyray.analysis import calibration, classification, plots
from skyray.families.redshift import metrics as scores
from skyray.pages.spectrum_plot import LINES

Columns = Mapping[str, Any]

_MIN_DENSITY_ROWS = 400
_TITLES = {
    "end_to_end": "end to end (as the catalogue states them)",
    "networks_alone": "networks alone (of the predicted class)",
    "true_class": "network of the true class (as published)",
}


def write_figures(
    table: Columns,
    metrics: Mapping[str, Any],
    folder: Path,
    classes: Sequence[str],
    coarse: Mapping[str, str],
) -> list[Path]:
    """Write the figures that the table allows, as PNG, and return their paths.

    Parameters
    ----------
    table : columns [N]
        As for `metrics.evaluate_table`; with ``flux`` [N, L] and ``wavelength`` [L] (Å) also
        example spectra, with ``history`` (rows of a training) also its losses.
    metrics : mapping
        What `evaluate_table` returned for it.
    folder : Path
        Made if it is not there.
    """
    coarse = scores.complete_coarse(classes, coarse)
    truth = scores.coarse_truth(table, coarse)
    paths: list[Path | None] = []
    for section, name in (("classification", "confusion"), ("coarse", "confusion_coarse")):
        if metrics[section]["rows"] and (name == "confusion" or len(set(coarse.values())) > 1):
            paths.append(
                plots.confusion_figure(
                    metrics[section]["confusion"], metrics[section]["classes"],
                    folder / f"{name}.png",
                )
            )  # fmt: skip
    for route in metrics["redshift"]:
        paths.append(
            redshift_figure(table, truth, classes, route, folder / f"redshift_{route}.png")
        )
    paths.append(snr_figure(metrics, folder / "scores_by_snr.png"))
    paths.append(errors_figure(table, truth, folder / "redshift_errors.png"))
    paths.append(reliability_figure(table, truth, classes, coarse, folder / "reliability.png"))
    if "flux" in table and "wavelength" in table:
        paths.append(examples_figure(table, folder / "example_spectra.png"))
    if "history" in table:
        paths.append(plots.loss_figure(table["history"], folder / "training_losses.png"))
    return [path for path in paths if path is not None]


def redshift_figure(
    table: Columns, truth: np.ndarray, classes: Sequence[str], route: str, path: Path
) -> Path | None:
    """Draw predicted against true redshift and Δz, one panel a class; None without redshifts.

    `truth` holds STAR, GALAXY or QSO; objects of unknown subclass share a panel of that name.
    """
    redshift = np.asarray(table["redshift"], np.float64)
    predicted = np.asarray(table[scores.ROUTES[route][0]], np.float64)
    label = np.asarray(table["label"], dtype=str)
    group = np.where(np.isin(label, list(classes)), label, truth)
    used = np.isin(truth, list(scores.GOOD_LIMIT)) & np.isfinite(redshift) & np.isfinite(predicted)
    names = [
        n for n in dict.fromkeys([*classes, *scores.GOOD_LIMIT]) if (used & (group == n)).any()
    ]
    if not names:
        return None
    columns = min(3, len(names))
    blocks = -(-len(names) // columns)
    with rc_context(plots.STYLE):
        figure, axes = plots.panels(
            2 * blocks, columns, height=2.35, width=4.0,
            gridspec_kw={"height_ratios": [3, 1] * blocks},
        )  # fmt: skip
        for axis in axes.flat:
            axis.set_axis_off()
        for number, name in enumerate(names):
            block, column = divmod(number, columns)
            rows = used & (group == name)
            pair = axes[2 * block, column], axes[2 * block + 1, column]
            _draw_redshifts(*pair, redshift[rows], predicted[rows], truth[rows], name)
        figure.suptitle(f"Redshifts, {_TITLES[route]}", x=0.01, ha="left", weight="bold")
        return plots.save(figure, path)


def _draw_redshifts(
    upper: Axes, lower: Axes, truth: np.ndarray, predicted: np.ndarray, kind: np.ndarray, name: str
) -> None:
    top = 1.05 * max(float(truth.max()), 0.05)
    delta = scores.scaled_residual(predicted, truth)
    shown = np.clip(predicted, 0.0, top)  # what lies beyond is drawn at the edge, not dropped
    limit = max(4 * scores.nmad(delta), 2 * scores.GOOD_LIMIT[kind[0]], 1e-4)
    for axis, y, low, high in (
        (upper, shown, 0.0, top),
        (lower, np.clip(delta, -limit, limit), -limit, limit),
    ):
        axis.set_axis_on()
        if len(truth) >= _MIN_DENSITY_ROWS:
            axis.hist2d(
                truth, y, bins=(90, 90 if axis is upper else 40), cmap=plots.DENSITY,
                range=((0, top), (low, high)), norm=LogNorm(), rasterized=True,
            )  # fmt: skip
        else:
            axis.scatter(truth, y, s=10, color=plots.BLUE, alpha=0.6, linewidths=0)
        pad = 0.02 * (high - low)
        axis.set(xlim=(0, top), ylim=(low - pad, high + pad))
    upper.plot([0, top], [0, top], color=plots.RED, linewidth=0.9)
    lower.axhline(0, color=plots.RED, linewidth=0.9)
    good = scores.good_rows(predicted, truth, kind).mean()
    far = np.mean(np.abs(delta) > scores.CATASTROPHIC)
    text = (
        f"N {len(truth):,}\nNMAD {scores.nmad(delta):.5f}\nmean Δz {np.abs(delta).mean():.4f}\n"
        f"GF {good:.2f}\nΔz > 0.01  {100 * far:.1f} %"
    )
    box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 2}
    upper.text(0.03, 0.97, text, transform=upper.transAxes, va="top", fontsize=8.5, bbox=box)
    upper.set(title=name, ylabel="predicted z", xticklabels=[])
    lower.set(xlabel="true z", ylabel="(z$_p$−z$_t$)/(1+z$_t$)")
    lower.yaxis.label.set_fontsize(8)


def snr_figure(metrics: Mapping[str, Any], path: Path) -> Path | None:
    """Draw accuracy and good fraction against the median SNR; None where SNR is not known."""
    accuracy = [
        (metrics[section]["by_snr"], label, color)
        for section, label, color in (
            ("classification", "all classes", plots.BLUE),
            ("coarse", "STAR / GALAXY / QSO", plots.ORANGE),
        )
        if sum(metrics[section].get("by_snr", {}).get("rows", ()))
    ]
    good = [
        (groups["good_by_snr"], _TITLES[route].split(" (")[0], color)
        for (route, groups), color in zip(
            metrics["redshift"].items(), (plots.BLUE, plots.ORANGE, plots.GREEN), strict=False
        )
        if sum(groups.get("good_by_snr", {}).get("rows", ()))
    ]
    if not accuracy and not good:
        return None
    with rc_context(plots.STYLE):
        figure, axes = plots.panels(1, 2, width=4.8)
        for axis, curves, title in (
            (axes[0, 0], accuracy, "Classification accuracy"),
            (axes[0, 1], good, "Good redshifts of galaxies and quasars"),
        ):
            for bins, label, color in curves:
                plots.rate_axis(axis, bins, label, color)
            axis.set(xscale="log", ylim=(0, 103), xlabel="median SNR per pixel", ylabel="%")
            axis.set_title(title)
            axis.xaxis.set_major_formatter("{x:g}")
            if curves:
                axis.legend(loc="lower right", fontsize=9)
        return plots.save(figure, path)


def errors_figure(table: Columns, truth: np.ndarray, path: Path) -> Path | None:
    """Draw what the redshift errors are worth: τ, coverage and PIT, by group; None without any.

    Uses the network of the true class where the table has it, else the end-to-end redshifts.
    """
    route = "true_class" if scores.ROUTES["true_class"][0] in table else "end_to_end"
    predicted, sigma = (np.asarray(table[name], np.float64) for name in scores.ROUTES[route])
    redshift = np.asarray(table["redshift"], np.float64)
    stated = np.isfinite(predicted) & np.isfinite(redshift) & (sigma > 0)
    groups = [g for g in scores.GOOD_LIMIT if (stated & (truth == g)).any()]
    if not groups:
        return None
    levels = np.linspace(0.02, 0.98, 49)
    with rc_context(plots.STYLE):
        figure, axes = plots.panels(1, 3, width=4.0)
        for group, color in zip(groups, (plots.BLUE, plots.RED), strict=False):
            rows = stated & (truth == group)
            residual, width = predicted[rows] - redshift[rows], sigma[rows]
            _draw_tau(axes[0, 0], np.abs(residual) / width, group, color)
            covered = calibration.coverage(residual, width, levels)
            one = calibration.coverage(residual, width, [0.6827])[0]
            axes[0, 1].plot(levels, covered, color=color, label=f"{group}: {100 * one:.0f} % in 1σ")
            pit = calibration.probability_integral_transform(redshift[rows], predicted[rows], width)
            axes[0, 2].hist(
                pit, bins=20, range=(0, 1), density=True, histtype="step", color=color,
                linewidth=1.5, label=group,
            )  # fmt: skip
        _finish_errors(axes, levels)
        figure.suptitle(f"Redshift errors, {_TITLES[route]}", x=0.01, ha="left", weight="bold")
        return plots.save(figure, path)


def _draw_tau(axis: Axes, tau: np.ndarray, group: str, color: str) -> None:
    inside = np.mean(tau < scores.TAU_LIMIT)
    axis.hist(
        np.clip(tau, 0, 5.999), bins=30, range=(0, 6), density=True, histtype="step", color=color,
        linewidth=1.5, label=f"{group}: {100 * inside:.1f} % below 3",
    )  # fmt: skip


def _finish_errors(axes: np.ndarray, levels: np.ndarray) -> None:
    tau, cover, pit = axes[0]
    grid = np.linspace(0, 6, 200)
    gauss = np.sqrt(2 / np.pi) * np.exp(-0.5 * grid**2)
    tau.plot(grid, gauss, color=plots.SOFT, linestyle="--", linewidth=1, label="Gaussian")
    tau.set(xlabel="τ = |z$_t$ − z$_p$| / σ$_z$  (last bin: beyond)", ylabel="density")
    tau.set_title("Errors in units of σ")
    cover.plot([0, 1], [0, 1], color=plots.SOFT, linestyle="--", linewidth=1, label="perfect")
    cover.axvline(0.6827, color=plots.SOFT, linewidth=0.8, linestyle=":")
    cover.set(xlabel="stated level", ylabel="fraction inside", xlim=(0, 1), ylim=(0, 1))
    cover.set_title("Coverage")
    pit.axhline(1, color=plots.SOFT, linestyle="--", linewidth=1, label="calibrated Gaussian")
    pit.set(xlabel="PIT = Φ((z$_t$ − z$_p$) / σ$_z$)", ylabel="density", xlim=(0, 1))
    pit.set_title("Probability integral transform")
    for axis in axes[0]:
        axis.legend(fontsize=8)


def reliability_figure(
    table: Columns,
    truth: np.ndarray,
    classes: Sequence[str],
    coarse: Mapping[str, str],
    path: Path,
) -> Path | None:
    """Draw stated against observed probability, all classes and coarse; None without any."""
    if any(f"p_{name}" not in table for name in classes):
        return None
    fine = np.stack([np.asarray(table[f"p_{name}"]) for name in classes], axis=1)
    groups = list(dict.fromkeys(coarse[name] for name in classes))
    member = np.array([[coarse[name] == group for group in groups] for name in classes])
    label, stated = np.asarray(table["label"], dtype=str), np.isfinite(fine).all(axis=1)
    known, grouped = stated & np.isin(label, list(classes)), stated & (truth != "")
    panels = [
        (fine[known], label[known], classes, "All classes"),
        (fine[grouped] @ member, truth[grouped], groups, " / ".join(groups)),
    ]
    panels = [panel for panel in panels if len(panel[1])]
    if len(panels) == 2 and list(classes) == groups:
        panels = panels[:1]
    if not panels:
        return None
    with rc_context(plots.STYLE):
        figure, axes = plots.panels(1, len(panels), width=4.6, height=4.0)
        for axis, (probability, label, names, title) in zip(axes[0], panels, strict=True):
            target = classification.index_of(label, names)
            right = probability.argmax(axis=1) == target
            curve = calibration.reliability_curve(probability.max(axis=1), right)
            error = calibration.expected_calibration_error(probability, target)
            plots.reliability_axis(axis, curve, f"{title}: calibration error {100 * error:.1f} %")
        return plots.save(figure, path)


def examples_figure(table: Columns, path: Path, count: int = 8, seed: int = 0) -> Path | None:
    """Draw example spectra with predicted class, z ± σ and the lines expected there.

    Predicted classes take turns, so that rare ones are seen. Grey: the pixels; blue: smoothed.
    """
    label = np.asarray(table["label_pred"], dtype=str)
    order = np.random.default_rng(seed).permutation(len(label))
    turns = {name: list(order[label[order] == name]) for name in sorted(set(label))}
    chosen: list[int] = []
    while len(chosen) < count and any(turns.values()):
        chosen += [rows.pop() for rows in turns.values() if rows]
    chosen = chosen[:count]
    if not chosen:
        return None
    with rc_context(plots.STYLE):
        figure, axes = plots.panels(-(-len(chosen) // 2), 2, width=6.4, height=2.3)
        for axis in axes.flat[len(chosen) :]:
            axis.set_axis_off()
        for axis, row in zip(axes.flat, chosen, strict=False):
            _draw_example(axis, table, int(row))
        for axis in axes[-1]:
            axis.set_xlabel("observed wavelength, Å (vacuum)")
        return plots.save(figure, path)


def _draw_example(axis: Axes, table: Columns, row: int) -> None:
    wavelength, flux = np.asarray(table["wavelength"]), np.asarray(table["flux"])[row]
    measured = np.flatnonzero(flux)
    if measured.size:  # ingest writes 0 outside the spectrum
        part = slice(measured[0], measured[-1] + 1)
        wavelength, flux = wavelength[part], flux[part]
    smooth = uniform_filter1d(np.asarray(flux, dtype=np.float64), 9)
    axis.plot(wavelength, flux, color="#C9D0D8", linewidth=0.5)
    axis.plot(wavelength, smooth, color=plots.BLUE, linewidth=0.9)
    low, high = np.percentile(smooth, [0.5, 99.7])
    pad = 0.25 * max(high - low, 1e-6)
    axis.set(xlim=(wavelength[0], wavelength[-1]), ylim=(low - 0.4 * pad, high + 1.6 * pad))
    z, sigma = float(table["redshift_pred"][row]), float(table["redshift_err_pred"][row])
    if np.isfinite(z):
        _mark_lines(axis, z, wavelength)
    right = str(table["label"][row]) in ("", str(table["label_pred"][row]))
    axis.set_title(
        f"{table['label_pred'][row]}   z = {z:.4f} ± {sigma:.4f}",
        color=plots.INK if right else plots.RED, fontsize=10,
    )  # fmt: skip
    truth = f"{table['label'][row] or '?'}  z = {float(table['redshift'][row]):.4f}"
    axis.set_title(f"survey: {truth}", loc="right", fontsize=8, color=plots.SOFT, weight="normal")


def _mark_lines(axis: Axes, z: float, wavelength: np.ndarray) -> None:
    """Mark the lines of `LINES` at z; names that would touch go to a lower level."""
    low, high = wavelength[0], wavelength[-1]
    taken = np.full(3, -np.inf)  # right end of the last name on each level
    for name, rest in sorted(LINES.items(), key=itemgetter(1)):
        at = rest * (1 + z)
        if not low < at < high:
            continue
        axis.axvline(at, color=plots.ORANGE, linewidth=0.8, linestyle=":")
        width = (0.012 + 0.0105 * len(name)) * (high - low)
        left = min(at, high - width)
        level = int(np.argmax(taken <= left)) if (taken <= left).any() else int(taken.argmin())
        taken[level] = left + width
        axis.text(
            left, 0.99 - 0.09 * level, f" {name}", transform=axis.get_xaxis_transform(),
            fontsize=7.5, color=plots.RED, va="top",
        )  # fmt: skip
