"""What a set of lens images looks like, and whether they are what was asked for."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from scipy.ndimage import gaussian_filter

from skyray.analysis import plots
from skyray.simulate.lens_cameras import CAMERAS, arc_snr

Columns = Mapping[str, Any]
_NAMES = {"hst": "HST WFC3 F160W", "euclid": "Euclid VIS"}
_ARC_SIGMA = 3.0
_FAINTEST = 80.0  # of the brightest pixel: where the stretch turns linear in images without noise


def sample_figure(
    table: Columns, classes: Sequence[str], path: Path, count: int = 4
) -> Path | None:
    """Draw `count` images of every class and survey in one asinh stretch, with a 1″ bar.

    Parameters
    ----------
    table : columns [N]
        ``image`` [N, 1, S, S], ``label``, ``survey``, ``pixel_scale_arcsec``.
    """
    label, survey = (np.asarray(table[name], dtype=str) for name in ("label", "survey"))
    kinds = [(name, of) for name in classes for of in sorted(set(survey))]
    chosen = [np.flatnonzero((label == name) & (survey == of))[:count] for name, of in kinds]
    if not any(len(rows) for rows in chosen):
        return None
    with rc_context({**plots.STYLE, "axes.grid": False}):
        figure, axes = plots.panels(len(kinds), count, width=1.9, height=1.95)
        for line, (name, of), rows in zip(axes, kinds, chosen, strict=True):
            for axis in line:
                axis.set_axis_off()
            for axis, row in zip(line, rows, strict=False):
                scale = float(table["pixel_scale_arcsec"][row])
                _draw_lens(axis, np.asarray(table["image"][row])[0], scale)
            title = f"{name.lower().replace('_', ' ')}, {_NAMES.get(of, of)}"
            line[0].set_title(title, fontsize=9)
        return plots.save(figure, path)


def _draw_lens(axis, image: np.ndarray, scale: float) -> None:
    noise = max(_background(image), float(image.max()) / _FAINTEST)
    half = 0.5 * len(image) * scale
    shown = np.arcsinh(image / (2.0 * noise))
    axis.imshow(
        shown, origin="lower", cmap="magma", extent=(-half, half, -half, half),
        vmin=-1.0, vmax=max(float(np.quantile(shown, 0.999)), 2.0), interpolation="nearest",
    )  # fmt: skip
    left = -half + 0.3
    axis.plot([left, left + 1.0], [0.3 - half] * 2, color="white", linewidth=1.5)
    axis.text(left + 0.5, 0.4 - half, "1″", color="white", ha="center", fontsize=7)


def measure(image_SS: np.ndarray, scale_arcsec: float, survey: str) -> dict[str, float]:
    """Return what the noisy image itself says of SNR and ring radius; NaN without arcs.

    ``snr`` is `arc_snr` over the pixels of the arcs with the noise's share taken out;
    ``ring_arcsec`` their mean distance from the centre, weighted by light, which is near the
    Einstein radius for a source near the axis.
    """
    background = _background(image_SS)
    arcs = gaussian_filter(image_SS, 1.0) > _ARC_SIGMA * background / 3.5  # noise after smoothing
    if arcs.sum() < 10:
        return {"snr": float("nan"), "ring_arcsec": float("nan")}
    light = np.where(arcs, image_SS, 0.0)
    poisson = np.maximum(light, 0.0) / CAMERAS[survey].seconds if survey in CAMERAS else 0.0
    sigma = np.sqrt(background**2 + poisson)
    noise_share = float(np.sum(sigma[arcs]) / np.sum(light))
    axis = (np.arange(len(image_SS)) - 0.5 * (len(image_SS) - 1)) * scale_arcsec
    radius = np.hypot(axis[:, None], axis[None, :])
    return {
        "snr": arc_snr(light, sigma) - noise_share,
        "ring_arcsec": float(np.sum(light * radius) / np.sum(light)),
    }


def statistics(table: Columns) -> list[dict[str, Any]]:
    """Return mean and scatter of SNR and θ_E, asked and found, one row a survey and class."""
    label, survey = (np.asarray(table[name], dtype=str) for name in ("label", "survey"))
    drawn = [json.loads(text) for text in table["extra"]]
    found = [
        measure(np.asarray(table["image"][i])[0], float(table["pixel_scale_arcsec"][i]), survey[i])
        for i in range(len(label))
    ]
    rows = []
    for of in sorted(set(survey)):
        for name in sorted(set(label)):
            chosen = np.flatnonzero((survey == of) & (label == name))
            if len(chosen):
                rows.append(_row(of, name, [drawn[i] for i in chosen], [found[i] for i in chosen]))
    return rows


def _row(survey: str, label: str, drawn: list[dict], found: list[dict]) -> dict[str, Any]:
    def spread(values: list[float]) -> str:
        kept = np.array([v for v in values if v is not None], float)
        return f"{np.nanmean(kept):.3f} ± {np.nanstd(kept):.3f}" if kept.size else ""

    return {
        "survey": survey,
        "class": label,
        "images": len(drawn),
        "SNR asked": spread([d.get("snr_asked") for d in drawn]),
        "SNR in the image": spread([f["snr"] for f in found]),
        "θ_E of the galaxy, ″": spread([d.get("theta_e_arcsec") for d in drawn]),
        "θ_E of all mass, ″": spread([d.get("theta_e_found_arcsec") for d in drawn]),
        "ring in the image, ″": spread([f["ring_arcsec"] for f in found]),
    }


def _background(image: np.ndarray) -> float:
    edge = np.concatenate([image[:3].ravel(), image[-3:].ravel(), image[:, :3].ravel(),
                           image[:, -3:].ravel()])  # fmt: skip
    spread = 1.4826 * np.median(np.abs(edge - np.median(edge)))
    return float(max(spread, 1e-12))
