"""Figures of the outliers family: which are drawn for which table, and what they are drawn from."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

from skyray.families.outliers import figures, latent_figures, reconstructions, roc_figures
from skyray.families.outliers.scoring_table import limits_of, planted_curves, roc

WAVELENGTH = np.linspace(3600.0, 9824.0, 600)
KINDS = ("blend", "wrong_redshift")
FULL = {
    "training_losses.png", "latents.png", "latents_redshift.png", "neg_log_p.png", "chi2.png",
    "star_galaxy.png", "planted_roc.png", "planted_auc.png", "reconstructions.png",
}  # fmt: skip
NEEDED = ("object_id", "redshift", "label", "snr", "latent_0", "latent_1", "neg_log_p",
          "percentile", "chi2_reduced", "chi2_window", "isolation", "problem")  # fmt: skip


def draw_table(rows: int = 400, seed: int = 0) -> dict[str, object]:
    """A table as scoring leaves it: two classes, planted outliers that score high, some NaN."""
    rng = np.random.default_rng(seed)
    star = rng.random(rows) < 0.3
    planted = np.where((rng.random(rows) < 0.08) & ~star, rng.choice(KINDS, rows), "")
    strange = 12.0 * (planted != "")
    redshift = np.where(star, 0.0, rng.uniform(0.01, 0.5, rows))
    flux = 1.0 + 0.1 * rng.normal(size=(rows, WAVELENGTH.size))
    neg_log_p = rng.gamma(4.0, 1.0, rows) + 6.0 * star + strange
    neg_log_p[3] = np.nan
    chi2 = rng.chisquare(700, rows) / 700 + 0.02 * strange
    pair = rng.normal(size=(rows, 2)) + star[:, None]
    history = [
        {"stage": stage, "epoch": e, "train_loss": level / (e + 1), "train_similarity": 0.1,
         "validation_loss": None if e == 2 else 1.1 * level / (e + 1)}
        for stage, level in (("fidelity", 1.0), ("flow", -4.0)) for e in range(6)
    ]  # fmt: skip
    return {
        "object_id": np.arange(rows).astype(str), "redshift": redshift,
        "snr": rng.gamma(3, 2, rows),
        "label": np.where(star, "STAR", "GALAXY").astype(object), "latent_0": pair[:, 0],
        "latent_1": np.where(np.arange(rows) == 5, np.nan, pair[:, 1]), "neg_log_p": neg_log_p,
        "neg_log_p_star": rng.gamma(4.0, 1.0, rows) + 9.0 * ~star, "percentile": neg_log_p,
        "chi2_reduced": chi2, "chi2_window": rng.normal(size=rows), "pca_error": chi2,
        "isolation": rng.normal(size=rows),
        "problem": np.where(np.arange(rows) == 9, "no flux", ""),
        "planted": planted, "real": np.arange(rows) == 11, "pixels": np.full(rows, 700.0),
        "history": [*history, {"stage": "skipped", "skipped": "no rows"}], "flux": flux,
        "wavelength": WAVELENGTH, "ivar": np.full(flux.shape, 100.0), "model": np.ones(flux.shape),
        "masked": np.broadcast_to(np.abs(WAVELENGTH - 5578) < 20, flux.shape),
    }  # fmt: skip


@pytest.fixture(autouse=True)
def small_pictures(monkeypatch):
    monkeypatch.setattr("skyray.analysis.plots.DPI", 50)


@pytest.fixture(scope="module")
def table() -> dict[str, object]:
    return draw_table()


def part(table, rows: slice, names=None) -> dict[str, object]:
    shared = ("history", "wavelength")
    return {n: table[n] if n in shared else table[n][rows] for n in (names or table)}


def write(table, folder, metrics=None) -> set[str]:
    paths = figures.write_figures(table, metrics or {}, folder)
    for path in paths:
        with Image.open(path) as image:
            assert image.format == "PNG"
            pixels = np.asarray(image.convert("L"))
        assert 0.01 < np.mean(pixels < 250) < 0.9, f"{path.name} is blank or full"
    return {path.name for path in paths}


def test_all_figures_of_a_full_table(table, tmp_path):
    assert write(table, tmp_path / "new", {"star_galaxy_auc": 0.5}) == FULL


def test_figures_follow_what_the_table_holds(table, tmp_path):
    found = write(part(table, slice(None), NEEDED), tmp_path)
    assert found == {"latents.png", "latents_redshift.png", "neg_log_p.png", "chi2.png"}


@pytest.mark.parametrize("rows", [0, 4])
def test_tiny_tables(table, tmp_path, rows):
    found = write(part(table, slice(20, 20 + rows)), tmp_path)
    assert "training_losses.png" in found
    assert ("chi2.png" in found) == (rows >= 3)


def test_tables_without_a_finite_number(table, tmp_path):
    dead = {
        name: np.full(np.shape(v), np.nan) if np.asarray(v).dtype.kind == "f" else v
        for name, v in part(table, slice(0, 40)).items()
        if name not in ("history", "wavelength")
    }
    assert write({**dead, "wavelength": WAVELENGTH}, tmp_path) == set()


def texts(path, monkeypatch, draw) -> list[str]:
    """Return all text of the figure that `draw` saves."""
    kept = []
    monkeypatch.setattr("skyray.analysis.plots.save", lambda figure, path: kept.append(figure))
    draw(path)
    return [t.get_text() for t in kept[0].findobj(lambda artist: hasattr(artist, "get_text"))]


def test_numbers_come_from_the_metrics_where_given(table, tmp_path, monkeypatch):
    truth = table["label"] == "STAR"
    score = table["neg_log_p"] - table["neg_log_p_star"]
    rows = (table["planted"] == "") & (table["problem"] == "") & np.isfinite(score)
    expected = f"AUC {roc_auc_score(truth[rows], score[rows]):.4f}"
    draw = roc_figures.star_galaxy_figure
    assert expected in texts(tmp_path, monkeypatch, lambda p: draw(table, p))
    assert "AUC 0.1234" in texts(tmp_path, monkeypatch, lambda p: draw(table, p, 0.1234))
    areas = {"neg_log_p": {"blend": 0.777}}
    shown = texts(
        tmp_path, monkeypatch, lambda p: roc_figures.planted_table_figure(table, p, areas)
    )
    assert "0.777" in shown
    assert "wrong redshift" in shown


def test_planted_curves_are_of_one_kind_among_normal_objects(table):
    curves = planted_curves(table)
    assert list(curves) == ["neg_log_p", "chi2_reduced", "chi2_window", "isolation", "pca_error"]
    fine = table["problem"] == ""
    rows = fine & np.isin(table["planted"], ["", "blend"])
    chi2 = table["chi2_reduced"][rows]
    expected = roc_auc_score(table["planted"][rows] == "blend", chi2)
    assert curves["chi2_reduced"]["blend"][2] == pytest.approx(expected)
    assert curves["neg_log_p"]["all"][2] > 0.95
    assert abs(curves["isolation"]["all"][2] - 0.5) < 0.2


def test_objects_without_a_score_are_never_found():
    table = {"object_id": ["a", "b", "c"], "planted": ["", "", "blend"],
             "neg_log_p": [1.0, 2.0, np.nan]}  # fmt: skip
    assert planted_curves(table)["neg_log_p"]["blend"][2] == 0.0
    assert planted_curves({**table, "planted": ["", "", ""]}) == {}
    assert roc(np.ones(3, bool), np.arange(3.0)) is None


def test_redshift_leakage_is_shown_at_fixed_type(table, tmp_path, monkeypatch):
    z = table["redshift"]
    leaking = {**table, "latent_0": 3.0 * z}
    draw = latent_figures.latent_redshift_figure
    shown = texts(tmp_path, monkeypatch, lambda p: draw(leaking, p))
    assert "GALAXY: ρ = +1.00" in shown
    assert not any(t.startswith("STAR: ρ") for t in shown), "stars have one redshift"


def test_reconstructions_end_with_the_strangest(table, tmp_path, monkeypatch):
    shown = texts(
        tmp_path, monkeypatch, lambda p: reconstructions.reconstruction_figure(table, p, 3)
    )
    titles = [t for t in shown if "z = " in t]
    score = np.where(table["problem"] == "", table["neg_log_p"], np.nan)
    assert titles[-1].startswith(f"{np.nanargmax(score)}   ")
    redshifts = [float(t.split("z = ")[1].split()[0]) for t in titles[:-1]]
    assert len(redshifts) == 2
    assert redshifts == sorted(redshifts)


def test_limits_have_a_width():
    assert limits_of(np.full(5, 2.0)) == (1.5, 2.5)
    low, high = limits_of(np.arange(1001.0))
    assert low < 2 < 998 < high
