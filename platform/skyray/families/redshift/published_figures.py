"""The figures of Zhong et al. 2024 from our tables: each an image, a caption and its numbers.

Every function takes a table of `metrics.evaluate_table` (the redshift networks' true-class route,
as published), writes one PNG and returns a `Drawn`, or None where the table has nothing to draw.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from scipy.stats import spearmanr

from skyray.analysis import classification, plots
from skyray.families.redshift import metrics as scores
from skyray.families.redshift.published import SNR_LIMIT, Columns, Rows, line, signed

_ROUTE = scores.ROUTES["true_class"]
_SNR_GROUPS = ((0.0, 5.0, plots.RED), (5.0, 10.0, plots.GREEN), (10.0, np.inf, plots.BLUE))
_VDISP_EDGES = (0, 75, 125, 175, 225, 300, 450)  # km/s
_BINS, _FEWEST = 10, 5


@dataclass(frozen=True)
class Drawn:
    """A figure: its file, what it shows in the paper and here, and its numbers."""

    path: Path
    caption: str
    rows: Rows = field(default_factory=list)


@dataclass(frozen=True)
class _Class:
    """The rows of one class that have a true redshift and one of its own networks, [n] each."""

    name: str
    z: np.ndarray
    found: np.ndarray
    sigma: np.ndarray
    snr: np.ndarray
    coarse: str

    @property
    def good(self) -> np.ndarray:
        return scores.good_rows(self.found, self.z, np.full(len(self.z), self.coarse))


def _classes(table: Columns, coarse: Mapping[str, str], only: Sequence[str] = ()) -> list[_Class]:
    label = np.asarray(table["label"], str)
    z, found, sigma, snr = (
        np.asarray(table[name], np.float64) for name in ("redshift", *_ROUTE, "snr")
    )
    used, made = np.isfinite(z) & np.isfinite(found), []
    for name, group in coarse.items():
        here = used & (label == name)
        if group in scores.GOOD_LIMIT and here.any() and (not only or name in only):
            made.append(_Class(name, z[here], found[here], sigma[here], snr[here], group))
    return made


def _by_class(
    classes: Sequence[_Class], draw: Callable[[Axes, _Class], None], title: str, path: Path
) -> Path:
    columns = min(3, len(classes))
    with rc_context(plots.STYLE):
        figure, axes = plots.panels(-(-len(classes) // columns), columns, height=3.1)
        for axis in axes.flat[len(classes) :]:
            axis.set_axis_off()
        for axis, one in zip(axes.flat, classes, strict=False):
            draw(axis, one)
            axis.set_title(one.name)
        figure.suptitle(title, x=0.01, ha="left", weight="bold")
        return plots.save(figure, path)


def redshift_errors_figure(
    table: Columns, coarse: Mapping[str, str], figure: str, paper: str, path: Path,
    only: Sequence[str] = (),
) -> Drawn | None:  # fmt: skip
    """Figures 15, 21, 23 and A3: predicted against true z with σ; above, mean residual in bins."""
    classes = _classes(table, coarse, only)
    if not classes:
        return None
    columns = min(3, len(classes))
    blocks = -(-len(classes) // columns)
    with rc_context(plots.STYLE):
        made, axes = plots.panels(
            2 * blocks, columns, height=2.2, gridspec_kw={"height_ratios": [1, 3] * blocks}
        )
        for axis in axes.flat:
            axis.set_axis_off()
        for number, one in enumerate(classes):
            block, column = divmod(number, columns)
            _draw_with_errors(axes[2 * block, column], axes[2 * block + 1, column], one)
        plots.save(made, path)
    text = ", ".join(f"{one.name} GF {one.good.mean():.2f}" for one in classes)
    return Drawn(path, f"Figure {figure}, mean of the networks ± σ against the true redshift. "
                 f"Paper: {paper} Ours: {text}.")  # fmt: skip


def _draw_with_errors(upper: Axes, lower: Axes, one: _Class) -> None:
    for axis in (upper, lower):
        axis.set_axis_on()
    top = 1.05 * max(float(one.z.max()), 0.05)
    residual = one.z - one.found
    middle, mean, error = [], [], []
    for low, high in _edges(one.z):
        here = (one.z >= low) & (one.z <= high)
        if here.any():
            middle.append(np.mean(one.z[here]))
            mean.append(np.mean(residual[here]))
            error.append(np.mean(one.sigma[here]))
    upper.axhline(0, color=plots.RED, linewidth=0.9)
    upper.errorbar(middle, mean, error, color=plots.BLUE, fmt="o", markersize=3, capsize=2)
    upper.set(xlim=(0, top), ylabel="mean z$_t$−z$_p$", title=one.name, xticklabels=[])
    upper.yaxis.label.set_fontsize(8)
    lower.errorbar(
        one.z, np.clip(one.found, 0, top), np.minimum(one.sigma, top), fmt="o", markersize=2,
        color=plots.BLUE, ecolor=plots.SKY, elinewidth=0.5, alpha=0.7, rasterized=True,
    )  # fmt: skip
    lower.plot([0, top], [0, top], color=plots.RED, linewidth=0.9)
    lower.set(xlim=(0, top), ylim=(-0.02 * top, top), xlabel="true z", ylabel="predicted z")
    delta = np.abs(scores.scaled_residual(one.found, one.z)).mean()
    text = f"MAE {np.abs(residual).mean():.3f}\nΔz {delta:.4f}\nGF {one.good.mean():.2f}"
    lower.text(0.04, 0.96, text, transform=lower.transAxes, va="top", fontsize=8.5)


def _edges(z: np.ndarray) -> list[tuple[float, float]]:
    edges = np.linspace(z.min(), z.max() + 1e-9, _BINS + 1)
    return list(itertools.pairwise(edges))


def bias_figure(
    table: Columns, coarse: Mapping[str, str], path: Path, mae: Mapping[str, float] | None = None
) -> Drawn | None:
    """Figures 14 and 18: bias (eq. 9) against z, by SNR, or by robustness where `mae` is given.

    `mae`: class → MAE on the validation split, below which σ is robust.
    """
    classes = [one for one in _classes(table, coarse) if mae is None or one.name in mae]
    if not classes:
        return None
    number, rows = "14" if mae is None else "18", []

    def parts(one: _Class) -> list[tuple[str, str, np.ndarray]]:
        if mae is None:
            return [
                (
                    f"SNR {low:g}–{high:g}" if np.isfinite(high) else f"SNR > {low:g}",
                    color,
                    (one.snr >= low) & (one.snr < high),
                )
                for low, high, color in _SNR_GROUPS
            ]
        robust = one.sigma < mae[one.name]
        return [("unstable", plots.RED, ~robust), ("robust", plots.BLUE, robust)]  # fmt: skip

    def draw(axis: Axes, one: _Class) -> None:
        bias = np.maximum(scores.log_bias(one.found, one.z), 1e-6)
        for title, color, here in parts(one):
            if here.any():
                share = one.good[here].mean()
                axis.plot(
                    one.z[here], bias[here], ".", color=color, markersize=3, rasterized=True,
                    label=f"{title}: GF {share:.2f} ({here.sum():,})",
                )  # fmt: skip
                rows.append(line(number, f"good fraction, {one.name}, {title}", None, share))
        axis.axhline(scores.GOOD_LIMIT[one.coarse], color=plots.INK, linewidth=0.9, linestyle="--")
        axis.set(yscale="log", xlabel="true z", ylabel="|ln((1+z$_t$)/(1+z$_p$))|")
        axis.legend(fontsize=7, markerscale=2, frameon=True, framealpha=0.8, edgecolor="none")

    _by_class(classes, draw, f"Figure {number}", path)
    if mae is None:
        caption = (
            "Figure 14, bias against redshift by SNR; dashed: the limit of a good redshift. Paper: "
            "more scatter at low SNR and at high z, GALAXY_nan reaches GF ≈ 0.90 at SNR > 10. "
            f"Ours: {_span(rows, 'SNR > 10', 'GF at SNR > 10')}."
        )
    else:
        caption = (
            "Figure 18, robust (σ below the class's validation MAE) and unstable redshifts. Paper: "
            "unstable ones hold the large deviations, found without knowing the truth. Ours: "
            f"{_span(rows, 'robust', 'GF of robust')}, {_span(rows, 'unstable', 'of unstable')}."
        )
    return Drawn(path, caption, rows)


def _span(rows: Rows, end: str, title: str) -> str:
    values = [row["ours"] for row in rows if row["score"].endswith(f", {end}")]
    return f"{title} {min(values):.2f} to {max(values):.2f}" if values else f"no {end}"


def tau_figure(table: Columns, coarse: Mapping[str, str], path: Path) -> Drawn | None:
    """Figure 16: τ = |z_t − z_p| / σ against redshift; the numbers are in `scores_table`."""
    classes = [one for one in _classes(table, coarse) if (one.sigma > 0).any()]
    if not classes:
        return None
    inside = {}

    def draw(axis: Axes, one: _Class) -> None:
        stated = one.sigma > 0
        tau = np.abs(one.z - one.found)[stated] / one.sigma[stated]
        inside[one.name] = share = np.mean(tau < scores.TAU_LIMIT)
        for here, color in ((tau < scores.TAU_LIMIT, plots.BLUE), (tau >= 3, plots.RED)):
            axis.plot(one.z[stated][here], np.minimum(tau[here], 10), ".", color=color,
                      markersize=3, rasterized=True)  # fmt: skip
        axis.axhline(scores.TAU_LIMIT, color=plots.INK, linewidth=0.9, linestyle="--")
        axis.text(0.97, 0.95, f"τ < 3: {share:.3f}", transform=axis.transAxes, ha="right",
                  va="top", fontsize=9)  # fmt: skip
        axis.set(xlabel="true z", ylabel="τ (above 10: at 10)", ylim=(0, 10.3))

    _by_class(classes, draw, "Figure 16", path)
    text = f"{min(inside.values()):.3f} to {max(inside.values()):.3f}"
    return Drawn(path, "Figure 16, redshift errors in units of σ. Paper: 0.96 (QSO_nan) to 1.00 of "
                 f"a class lie below 3. Ours: {text}.")  # fmt: skip


def sigma_snr_figure(
    table: Columns, coarse: Mapping[str, str], path: Path, released: Columns | None = None
) -> Drawn | None:
    """Figure 17: σ of the redshift against SNR, with medians in bins; numbers: rank correlations.

    `released`: columns of `released.read_released`, for their numbers.
    """
    classes = [one for one in _classes(table, coarse) if len(one.z) >= _FEWEST]
    if not classes:
        return None
    theirs = {} if released is None else {
        one.name: _rank(one.snr, one.sigma) for one in _classes(released, coarse)
    }  # fmt: skip
    rows = [
        line("17", f"rank correlation of SNR and σ, {one.name}", "< 0", _rank(one.snr, one.sigma),
             theirs.get(one.name))
        for one in classes
    ]  # fmt: skip

    def draw(axis: Axes, one: _Class) -> None:
        sigma = np.maximum(one.sigma, 1e-6)
        axis.plot(one.snr, sigma, ".", color=plots.SKY, markersize=3, rasterized=True)
        edges = np.quantile(one.snr, np.linspace(0, 1, min(_BINS, len(one.snr) // 4) + 1))
        bins = np.clip(np.searchsorted(edges, one.snr, side="right") - 1, 0, len(edges) - 2)
        middle = [(np.median(one.snr[bins == b]), np.median(sigma[bins == b]))
                  for b in np.unique(bins)]  # fmt: skip
        axis.plot(*np.transpose(middle), "--", color=plots.INK, linewidth=1.4)
        axis.set(xscale="log", yscale="log", xlabel="median SNR per pixel", ylabel="σ$_z$")
        axis.xaxis.set_major_formatter("{x:g}")
        axis.xaxis.set_minor_formatter("")

    _by_class(classes, draw, "Figure 17", path)
    values = [row["ours"] for row in rows if row["ours"] is not None]
    caption = (
        "Figure 17, σ of the redshift against SNR; dashed: median. Paper: σ grows as SNR falls in "
        "every class, quasars have the largest. Ours: rank correlations "
        f"{signed(min(values, default=None))} to {signed(max(values, default=None))}."
    )
    return Drawn(path, caption, rows)


def _rank(a: np.ndarray, b: np.ndarray) -> float:
    with np.errstate(invalid="ignore"):
        return float(spearmanr(a, b).statistic) if np.ptp(a) and np.ptp(b) else float("nan")


def accuracy_snr_figure(bins: Mapping[str, Sequence[float]], path: Path) -> Drawn | None:
    """Figure C1: accuracy in bins of SNR (``classification/by_snr`` of `evaluate_table`)."""
    used = [i for i, rows in enumerate(bins["rows"]) if rows >= _FEWEST and bins["edges"][i] < 50]
    if not used:
        return None
    with rc_context(plots.STYLE):
        figure, axes = plots.panels(width=5.6)
        some = {name: [bins[name][i] for i in used] for name in ("value", "rate", "error")}
        plots.rate_axis(axes[0, 0], some, "ours", plots.BLUE)
        axes[0, 0].axhline(100 * SNR_LIMIT, color=plots.RED, linestyle="--", linewidth=1,
                           label="paper, high SNR")  # fmt: skip
        axes[0, 0].set(xlabel="median SNR per pixel", ylabel="accuracy, %", ylim=(0, 103))
        axes[0, 0].legend(loc="lower right")
        plots.save(figure, path)
    first, best = bins["rate"][used[0]], bins["rate"][used[-1]]
    caption = (
        "Figure C1, accuracy over the 13 classes against SNR (0–50). Paper: it rises and levels "
        f"off at ≈ 96 %. Ours: {100 * first:.0f} % in the lowest bin, {100 * best:.0f} % in the "
        "highest."
    )
    return Drawn(path, caption, [line("C1", "accuracy, highest SNR below 50", SNR_LIMIT, best)])


def dispersion_figure(table: Columns, coarse: Mapping[str, str], path: Path) -> Drawn | None:
    """Figure E1: σ_z and accuracy of galaxies against velocity dispersion, column ``vdisp`` km/s.

    Rows without one (NaN or 0) are left out; None where no galaxy has one.
    """
    label, called = (np.asarray(table[name], str) for name in ("label", "label_pred"))
    vdisp, sigma = np.asarray(table["vdisp"], float), np.asarray(table[_ROUTE[1]], float)
    names = [name for name, group in coarse.items() if group == "GALAXY"]
    used = (vdisp > 0) & (vdisp <= _VDISP_EDGES[-1]) & (sigma > 0) & np.isfinite(sigma)
    used &= np.isin(label, names)
    names = [name for name in names if (used & (label == name)).sum() >= _FEWEST]
    if not names:
        return None
    rows = [line("E1", "rank correlation of σ_z and dispersion, all galaxies", "> 0, slight",
                 _rank(vdisp[used], sigma[used]))]  # fmt: skip
    with rc_context(plots.STYLE):
        figure, axes = plots.panels(1, 2, width=5.2)
        for name, color in zip(names, plots.CYCLE, strict=False):
            here = used & (label == name)
            axes[0, 0].plot(vdisp[here], sigma[here], ".", color=color, markersize=4, label=name)
            rate = classification.fraction_in_bins(
                vdisp[here], called[here] == name, _VDISP_EDGES
            )  # fmt: skip
            plots.rate_axis(axes[0, 1], rate, name, color)
            rows.append(line("E1", f"rank correlation of σ_z and dispersion, {name}", "≈ 0",
                             _rank(vdisp[here], sigma[here])))  # fmt: skip
        axes[0, 0].set(yscale="log", xlabel="velocity dispersion, km/s", ylabel="σ$_z$")
        axes[0, 1].set(xlabel="velocity dispersion, km/s", ylabel="accuracy, %", ylim=(0, 103))
        axes[0, 0].legend(fontsize=8, markerscale=2, frameon=True, framealpha=0.8)
        plots.save(figure, path)
    inside = [row["ours"] for row in rows[1:] if row["ours"] is not None]
    caption = (
        "Figure E1, σ of the redshift and accuracy against velocity dispersion. Paper: σ rises "
        "slightly over all galaxies and hardly within a class, accuracy stays. Ours: rank "
        f"correlation {signed(rows[0]['ours'])} over all, {signed(min(inside, default=None))} to "
        f"{signed(max(inside, default=None))} within the classes."
    )
    return Drawn(path, caption, rows)
