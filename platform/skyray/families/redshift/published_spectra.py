"""Figures of Zhong et al. 2024 that show spectra: 20 (two classes alike) and D1 (gradients)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib import rc_context
from scipy.ndimage import uniform_filter1d

from skyray.analysis import plots
from skyray.families.redshift.networks import GasNetPipeline, decode_redshift
from skyray.families.redshift.published import Columns, line
from skyray.families.redshift.published_figures import Drawn
from skyray.families.redshift.recipes import RedshiftRecipe
from skyray.pages.spectrum_plot import LINES

_LIGHT_KMS = 299_792.458
_NEAR_KMS = {"GALAXY": 1000.0, "QSO": 4000.0}  # of a line; quasars' lines are broad
_SMOOTH = 9
_REST = np.arange(1000.0, 9000.0, 5.0)  # Å, grid of the class means
_LEVEL_AT = 6000.0  # Å, where the paper's Figure 20 brings spectra to one level


def twins_figure(
    table: Columns, classes: tuple[str, str], redshifts: Sequence[float], path: Path
) -> Drawn | None:
    """Figure 20: a spectrum of each of two classes at about the same redshift, at one level.

    Parameters
    ----------
    table : columns [N]
        ``label``, ``redshift``, ``snr``, ``flux`` [N, L] and ``wavelength`` [L] (Å).
    """
    label, z = np.asarray(table["label"], str), np.asarray(table["redshift"], float)
    if any(not (label == name).any() for name in classes):
        return None
    wavelength, rows = np.asarray(table["wavelength"]), []
    with rc_context(plots.STYLE):
        figure, axes = plots.panels(len(redshifts), 1, width=10.0, height=2.6)
        for axis, wanted in zip(axes[:, 0], redshifts, strict=True):
            pair = []
            for name, color in zip(classes, (plots.BLUE, plots.RED), strict=True):
                row = _best_near(label == name, z, np.asarray(table["snr"]), wanted)
                flux = uniform_filter1d(np.asarray(table["flux"])[row].astype(float), _SMOOTH)
                pair.append(flux / _level(wavelength, flux))
                title = f"{name}, z = {z[row]:.2f}, SNR {table['snr'][row]:.1f}"
                axis.plot(wavelength, pair[-1], color=color, linewidth=0.8, label=title)
            axis.set(ylabel=f"flux / flux at {_LEVEL_AT:.0f} Å", xlim=(4000, 9000))
            shown = np.concatenate(pair)[np.tile((wavelength > 4000) & (wavelength < 9000), 2)]
            low, high = np.percentile(shown, [0.3, 99.7])
            axis.set_ylim(low - 0.1 * (high - low), high + 0.25 * (high - low))
            axis.legend(fontsize=8, ncols=2)
            likeness = float(np.corrcoef(*pair)[0, 1])
            title = f"correlation of {' and '.join(classes)}, z ≈ {wanted:g}"
            rows.append(line("20", title, None, likeness))
        axes[-1, 0].set_xlabel("observed wavelength, Å")
        plots.save(figure, path)
    text = ", ".join(f"{row['ours']:.2f}" for row in rows)
    return Drawn(path, f"Figure 20, {classes[0]} and {classes[1]} at the same redshifts, smoothed "
                 "over 9 pixels. Paper: nearly indistinguishable but for emission lines of ClusB. "
                 f"Ours: the two correlate with {text}.", rows)  # fmt: skip


def _best_near(mine: np.ndarray, z: np.ndarray, snr: np.ndarray, wanted: float) -> int:
    """Return the brightest of the ten rows of a class nearest to a redshift."""
    rows = np.flatnonzero(mine & np.isfinite(z))
    near = rows[np.argsort(np.abs(z[rows] - wanted), kind="stable")[:10]]
    return int(near[np.argmax(snr[near])])


def _level(wavelength: np.ndarray, flux: np.ndarray) -> float:
    level = float(np.mean(flux[np.abs(wavelength - _LEVEL_AT) < 50]))
    return level if abs(level) > 0 else 1.0


def input_gradients(
    model: GasNetPipeline, recipe: RedshiftRecipe, x_BP: np.ndarray, index: int, name: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return |∂P/∂x| of class number `index`, and |∂z/∂x| of the ensemble of `name`, [B, P] each.

    x is the networks' input, flux at unit rms; z the mean of the members, P the softmax.
    """
    classifier, members = model.classifier, list(model.redshift[name])
    with torch.enable_grad():
        x = torch.as_tensor(x_BP).clone().requires_grad_(True)
        probability = classifier(x).softmax(dim=1)[:, index]
        (by_class,) = torch.autograd.grad(probability.sum(), x)
        z = torch.stack([decode_redshift(one(x)[:, 0], recipe) for one in members]).mean(dim=0)
        (by_redshift,) = torch.autograd.grad(z.sum(), x)
    return by_class.abs().numpy(), by_redshift.abs().numpy()


def near_lines(wavelength_P: np.ndarray, z: float, group: str) -> np.ndarray:
    """Return which pixels lie near a line of `LINES` at redshift z, bool [P]."""
    rest = np.asarray(wavelength_P)[:, None] / (1 + z)
    centre = np.array(list(LINES.values()))
    return (np.abs(rest / centre - 1) < _NEAR_KMS[group] / _LIGHT_KMS).any(axis=1)


def contrast(gradient_BP: np.ndarray, near_BP: np.ndarray) -> float:
    """Return the mean gradient near lines over that elsewhere, mean of the spectra with both."""
    found = [g[n].mean() / g[~n].mean() for g, n in zip(gradient_BP, near_BP, strict=True)
             if n.any() and (~n).any() and g[~n].mean() > 0]  # fmt: skip
    return float(np.mean(found)) if found else float("nan")


def gradients_figure(
    found: Mapping[str, Mapping[str, Any]], wavelength_P: np.ndarray, path: Path
) -> Drawn | None:
    """Figure D1: a spectrum of each class with its gradients, and the class's mean at rest.

    Parameters
    ----------
    found : mapping
        Class → ``group`` (GALAXY or QSO), ``z`` [B], ``x``, ``P`` and ``dz`` [B, P]: inputs and
        `input_gradients`; the first row is drawn, all rows are averaged in the rest frame.
    """
    if not found:
        return None
    rows = []
    with rc_context(plots.STYLE):
        figure, axes = plots.panels(
            len(found), 2, width=6.4, height=2.1, gridspec_kw={"width_ratios": [3, 2]}
        )
        for (left, right), (name, one) in zip(axes, found.items(), strict=True):
            z = float(one["z"][0])
            left.plot(wavelength_P, _unit(one["x"][0]), color=plots.INK, linewidth=0.5)
            for kind, color, shift in (("dz", plots.RED, 1), ("P", plots.GREEN, 2)):
                left.plot(wavelength_P, _unit(one[kind][0]) - shift, color=color, linewidth=0.6)
                mean = _rest_mean(wavelength_P, one[kind], np.asarray(one["z"]))
                right.plot(_REST, _unit(mean) - shift, color=color, linewidth=0.8,
                           label={"dz": "|∂z/∂flux|", "P": "|∂P/∂flux|"}[kind])  # fmt: skip
            for rest in LINES.values():
                if wavelength_P[0] < rest * (1 + z) < wavelength_P[-1]:
                    left.axvline(rest * (1 + z), color=plots.ORANGE, linewidth=0.6, linestyle=":")
                right.axvline(rest, color=plots.ORANGE, linewidth=0.6, linestyle=":")
            left.set(title=f"{name}, z = {z:.3f}", yticks=[], xlim=wavelength_P[[0, -1]])
            mean_seen = np.isfinite(_rest_mean(wavelength_P, one["dz"], np.asarray(one["z"])))
            right.set(title=f"mean of {len(one['z'])} spectra at rest", yticks=[])
            right.set_xlim(_REST[mean_seen][[0, -1]])
            near = np.array([near_lines(wavelength_P, v, one["group"]) for v in one["z"]])
            for kind, title in (("P", "∂P/∂flux"), ("dz", "∂z/∂flux")):
                rows.append(line("D1", f"|{title}| at lines over elsewhere, {name}", "> 1",
                                 contrast(one[kind], near)))  # fmt: skip
        axes[0, 1].legend(fontsize=7, loc="upper right")
        axes[-1, 0].set_xlabel("observed wavelength, Å")
        axes[-1, 1].set_xlabel("rest wavelength, Å")
        plots.save(figure, path)
    values = [row["ours"] for row in rows if row["ours"] is not None]
    span = f"{min(values):.2f} to {max(values):.2f}" if values else "unknown"
    caption = (
        "Figure D1, input (black) with |∂z/∂flux| (red) and |∂P/∂flux| (green), each scaled to its "
        "largest and shifted down; dotted: lines. Paper: gradients rise at emission lines of "
        "star-forming galaxies and at the 4000 Å break, less at quasars' broad lines. Ours: "
        f"near lines they are {span} × those elsewhere."
    )
    return Drawn(path, caption, rows)


def _unit(values: np.ndarray) -> np.ndarray:
    top = np.nanmax(np.abs(values))
    return values / top if top > 0 else values


def _rest_mean(wavelength: np.ndarray, gradient_BP: np.ndarray, z_B: np.ndarray) -> np.ndarray:
    """Return the mean over spectra on the rest grid, each at unit mean; NaN where none reaches."""
    total, count = np.zeros(len(_REST)), np.zeros(len(_REST))
    for gradient, z in zip(gradient_BP, z_B, strict=True):
        at = np.interp(_REST, wavelength / (1 + z), uniform_filter1d(gradient.astype(float), 5),
                       left=np.nan, right=np.nan)  # fmt: skip
        seen = np.isfinite(at)
        if gradient.mean() > 0:
            total[seen] += at[seen] / gradient.mean()
            count[seen] += 1
    return np.divide(total, count, out=np.full(len(_REST), np.nan), where=count > 0)
