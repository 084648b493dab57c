"""Pictures of a mock survey: one figure per class, to look at before anything is trained on it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from skyray.records import Spectrum
from skyray.simulate.lines import LIGHT_KMS
from skyray.simulate.planted import KINDS, PlantedSurvey
from skyray.simulate.spectra import MockSurvey

# Vacuum Å of what an eye looks for, by kind.
MARKS = {
    "star": [("Ca K", 3934.8), ("Hδ", 4102.9), ("G band", 4305.6), ("Hγ", 4341.7), ("Hβ", 4862.7),
             ("Mg b", 5176.6), ("Na D", 5894.6), ("Hα", 6564.6), ("Ca II", 8544.4)],
    "galaxy": [("[O II]", 3728.5), ("Ca K", 3934.8), ("Hδ", 4102.9), ("G", 4305.6), ("Hβ", 4862.7),
               ("[O III]", 5008.2), ("Mg b", 5176.6), ("Na D", 5894.6), ("Hα", 6564.6),
               ("[S II]", 6725.5)],
    "qso": [("Lyβ", 1025.7), ("Lyα", 1215.7), ("Si IV", 1398.3), ("C IV", 1549.1),
            ("C III]", 1908.7), ("Mg II", 2799.1), ("[O II]", 3728.5), ("Hγ", 4341.7),
            ("Hβ", 4862.7), ("[O III]", 5008.2), ("Hα", 6564.6)],
}  # fmt: skip
_ROWS = 4


def class_figure(survey: MockSurvey, folder: Path, candidates: int = 24) -> list[Path]:
    """Draw one figure per class of a mock survey and return the PNG files.

    Each shows four spectra spread over the class's redshifts (for stars over SNR): the delivered
    flux, smoothed over five pixels, its σ, the noiseless flux, and lines at their redshift.

    Parameters
    ----------
    candidates : int
        Spectra drawn to choose the four from.
    """
    folder.mkdir(parents=True, exist_ok=True)
    return [_draw_class(survey, label, folder, candidates) for label in survey.classes]


def planted_figure(survey: PlantedSurvey, path: Path, indices: Sequence[int] = (0,)) -> Path:
    """Draw planted outliers, one row per kind and `indices`, as `class_figure` draws spectra.

    Lines are marked where the catalogued redshift puts them. Returns `path` (PNG).
    """
    rows = [(kind, index) for kind in KINDS for index in indices]
    figure, axes = plt.subplots(
        len(rows), 1, figsize=(11, 2.6 * len(rows)), sharex=True, layout="constrained"
    )
    for axis, (kind, index) in zip(axes, rows, strict=True):
        planted, spectrum = survey.planted(kind, index), survey.spectrum(kind, index)
        _draw_spectrum(axis, spectrum, planted.mock.exposure.truth, "galaxy")
        name = kind.replace("_", " ")
        axis.set_title(f"{name}: {planted.note}   ({axis.get_title('left')})", fontsize=9)
        axis.set_title("", loc="left")
    axes[-1].set_xlabel("wavelength, vacuum (Å)")
    figure.supylabel("flux (10⁻¹⁷ erg s⁻¹ cm⁻² Å⁻¹)")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path


def _draw_class(survey: MockSurvey, label: str, folder: Path, candidates: int) -> Path:
    kind = survey.options.classes[label].kind
    order = sorted(range(candidates), key=lambda index: _rank(survey, label, index, kind))
    chosen = [order[i] for i in np.linspace(1, candidates - 2, _ROWS).round().astype(int)]
    figure, axes = plt.subplots(_ROWS, 1, figsize=(11, 11), sharex=True, layout="constrained")
    for axis, index in zip(axes, chosen, strict=True):
        truth = survey.mock_object(label, index).exposure.truth
        _draw_spectrum(axis, survey.spectrum(label, index), truth, kind)
    axes[-1].set_xlabel("wavelength, vacuum (Å)")
    figure.supylabel("flux (10⁻¹⁷ erg s⁻¹ cm⁻² Å⁻¹)")
    figure.suptitle(f"{survey.card.title}: mock {label}", fontsize=13)
    path = folder / f"{label}.png"
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path


def _rank(survey: MockSurvey, label: str, index: int, kind: str) -> float:
    spectrum = survey.spectrum(label, index)
    return spectrum.snr if kind == "star" else spectrum.redshift


def _draw_spectrum(axis, spectrum: Spectrum, truth: np.ndarray, kind: str) -> None:
    wavelength, good = spectrum.wavelength, spectrum.ivar > 0
    smooth = _smooth(spectrum.flux, spectrum.ivar)
    sigma = np.full_like(smooth, np.nan)
    sigma[good] = 1.0 / np.sqrt(spectrum.ivar[good])
    smooth[~good] = np.nan
    axis.plot(wavelength, sigma, color="0.72", lw=0.6, label="σ")
    axis.plot(wavelength, smooth, color="#4477aa", lw=0.7, label="flux (5 pixels)")
    axis.plot(wavelength, truth, color="#222222", lw=0.8, label="noiseless")
    low, high = np.nanpercentile(smooth, [0.5, 99.7])
    top = max(high, float(np.percentile(truth, 99.7)))
    axis.set_ylim(min(0.0, low), top * 1.28)
    axis.set_xlim(wavelength[0], wavelength[-1])
    for name, rest in MARKS[kind]:
        at = rest * (1.0 + spectrum.redshift)
        if wavelength[0] < at < wavelength[-1]:
            axis.axvline(at, ymax=0.86, color="#cc6677", lw=0.6, ls=":")
            axis.text(at, top * 1.15, name, fontsize=7.5, ha="center", color="#aa3344")
    speed = f"{spectrum.redshift * LIGHT_KMS:+.0f} km/s"
    where = speed if kind == "star" else f"z = {spectrum.redshift:.3f}"
    title = f"{spectrum.object_id}   {where}   SNR {spectrum.snr:.1f}"
    axis.set_title(title, fontsize=9, loc="left")
    axis.legend(loc="upper right", fontsize=7, ncols=3, frameon=False)


def _smooth(flux: np.ndarray, ivar: np.ndarray) -> np.ndarray:
    kernel = np.ones(5)
    weight = np.convolve(ivar.astype(np.float64), kernel, mode="same")
    total = np.convolve(ivar.astype(np.float64) * flux, kernel, mode="same")
    return np.divide(total, weight, out=np.zeros_like(total), where=weight > 0)
