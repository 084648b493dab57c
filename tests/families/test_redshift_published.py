"""Tables and figures of GaSNet-II beside the paper's: they show the data they are given."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from skyray.cards import load_card
from skyray.families.redshift import (
    metrics,
    published,
    published_figures,
    published_networks,
    published_spectra,
)
from skyray.families.redshift.networks import GasNetPipeline, decode_redshift
from skyray.families.redshift.recipes import sdss_dr16_laptop
from skyray.families.redshift.released import released_scores

CARD = load_card("sdss_dr16")
GALAXIES = [name for name, group in CARD.coarse.items() if group == "GALAXY"]


@pytest.fixture(scope="module")
def table():
    rng = np.random.default_rng(2)
    label = np.repeat(CARD.classes, 40)
    coarse = np.array([CARD.coarse[name] for name in label])
    z = np.where(coarse == "STAR", 0.0, rng.uniform(0.1, 0.5, len(label)))
    own = z + np.where(coarse == "STAR", 0.0, 0.002 * (1 + z))
    snr = rng.uniform(5, 20, len(label))
    return {
        "label": label, "label_pred": label, "spectype": coarse, "redshift": z, "snr": snr,
        "in_domain": np.ones(len(label), bool), "vdisp": rng.uniform(60, 350, len(label)),
        "redshift_pred": own + 0.1 * (coarse != "STAR"), "redshift_err_pred": np.full(len(z), 0.01),
        "redshift_true_route": np.where(coarse == "STAR", np.nan, own),
        "redshift_err_true_route": 0.05 / snr,
        **{f"p_{name}": (label == name).astype(float) for name in CARD.classes},
    }  # fmt: skip


@pytest.fixture(scope="module")
def scored(table):
    return metrics.evaluate_table(table, CARD.classes, CARD.coarse, published.VALIDATION_MAE)


def seen(drawn) -> dict[str, dict]:
    """Check a figure and return its numbers by name."""
    with Image.open(drawn.path) as image:
        assert 0.01 < np.mean(np.asarray(image.convert("L")) < 250) < 0.9, "blank or full"
    assert "Paper: " in drawn.caption
    assert "Ours: " in drawn.caption
    assert "nan" not in drawn.caption.replace("_nan", "")
    return {row["score"]: row for row in drawn.rows}


def test_dataset_table_counts_what_is_there(table):
    rows = {row["class"]: row for row in published.dataset_table(table, published.TABLE_1)}
    galaxies, stars = rows["GALAXY_AGN"], rows["STAR_A0"]
    here = table["label"] == "GALAXY_AGN"
    assert galaxies["objects"] == 40
    assert galaxies["z, ours"] == pytest.approx(table["redshift"][here].mean())
    assert (galaxies["z, paper"], stars["z, ours"]) == (0.21, None)
    assert stars["SNR, ours"] == pytest.approx(table["snr"][table["label"] == "STAR_A0"].mean())


def test_scores_are_those_of_the_true_class_with_end_to_end_beside(scored):
    rows = {row["score"]: row for row in published.scores_table(scored)}
    delta = rows["mean Δz/(1+z), GALAXY"]
    assert (delta["paper"], delta["ours"]) == (0.0023, pytest.approx(0.002))
    assert delta["ours, end to end"] > 0.05
    assert delta["released"] == 0.00231
    assert rows["good fraction, GALAXY_AGN"]["ours"] == 0.0  # off by 0.002
    assert rows["good fraction, QSO_BROADLINE"]["ours"] == 1.0
    assert rows["mean accuracy of the classes"]["ours"] == 1.0


def test_a_released_table_fills_its_column(table, scored):
    here = np.isin(table["label"], list(published.VALIDATION_MAE))
    theirs = released_scores({name: values[here] for name, values in table.items()})
    rows = published.scores_table(scored, theirs)
    both = [(r["released"], r["ours"]) for r in rows if r["figure"] in ("13, 15", "14", "15", "16")]
    assert all(released == ours for released, ours in both)


def test_scores_are_the_networks_own_where_templates_stand_beside(table):
    own = {"redshift_network": table["redshift_pred"]}
    own["redshift_network_err"] = table["redshift_err_pred"]
    fitted = {**table, **own, "redshift_pred": table["redshift"]}
    found = metrics.evaluate_table(fitted, CARD.classes, CARD.coarse, published.VALIDATION_MAE)
    rows = {row["score"]: row for row in published.scores_table(found)}
    assert rows["mean Δz/(1+z), GALAXY"]["ours, end to end"] > 0.05


def test_networks_table():
    sizes, counts = {"classifier": 4_160_000, "redshift": 4_156_209}, dict.fromkeys(
        ["classifier", *published.VALIDATION_MAE], 7
    )  # fmt: skip
    rows = published.networks_table(sizes, counts, 0.9, {"QSO_nan": 0.1})
    assert [row["network"] for row in rows] == ["classifier", *published.VALIDATION_MAE]
    assert rows[0]["accuracy or MAE, ours"] == 0.9
    assert rows[5]["accuracy or MAE, ours"] == 0.1
    assert rows[1]["accuracy or MAE, ours"] is None  # a class without validation rows


def test_learning_curves_keep_the_best_of_each_network(tmp_path):
    history = [
        {"stage": stage, "epoch": e, "train_loss": 2 / (e + 1), "validation_loss": 4 / (e + 1),
         f"train_{unit}": 0.5, f"validation_{unit}": value + abs(e - 3) / 100 * sign}
        for stage, unit, value, sign in (("classifier", "accuracy", 0.9, -1),
                                         ("redshift/QSO_nan/0", "mae", 0.1, 1),
                                         ("redshift/QSO_nan/1", "mae", 0.2, 1))
        for e in range(6)
    ]  # fmt: skip
    drawn = published_networks.learning_figure(history, tmp_path / "11.png")
    rows = seen(drawn)
    assert rows["best validation accuracy, classifier"]["ours"] == 0.9
    assert rows["best validation mae, QSO_nan"]["ours"] == pytest.approx(0.15)  # mean of members
    assert rows["best validation mae, QSO_nan"]["paper"] == 0.107
    assert "2.0 ×" in drawn.caption
    assert published_networks.learning_figure([{"stage": "a", "skipped": "b"}], tmp_path) is None


def test_figures_of_redshifts(table, scored, tmp_path):
    coarse, some = CARD.coarse, dict.fromkeys(published.VALIDATION_MAE, 0.005)
    found = published_figures.bias_figure(table, coarse, tmp_path / "14.png")
    high = (table["label"] == "QSO_nan") & (table["snr"] >= 10)
    assert seen(found)["good fraction, QSO_nan, SNR > 10"]["ours"] == 1.0
    robust = published_figures.bias_figure(table, coarse, tmp_path / "18.png", some)
    counts = [row for row in seen(robust) if row.endswith(", robust")]
    assert len(counts) == 6
    assert high.any()
    drawn = published_figures.redshift_errors_figure(table, coarse, "15", "x.", tmp_path / "15.png")
    assert "QSO_nan GF 1.00" in drawn.caption
    assert seen(drawn) == {}
    assert "0." in published_figures.tau_figure(table, coarse, tmp_path / "16.png").caption
    rows = seen(published_figures.sigma_snr_figure(table, coarse, tmp_path / "17.png", table))
    one = rows["rank correlation of SNR and σ, GALAXY_AGN"]
    assert one["ours"] == pytest.approx(-1.0)  # σ = .05 / SNR
    assert one["released"] == pytest.approx(-1.0)
    by_snr = scored["classification"]["by_snr"]
    accuracy = seen(published_figures.accuracy_snr_figure(by_snr, tmp_path / "C1.png"))
    assert accuracy["accuracy, highest SNR below 50"]["ours"] == 1.0


def test_dispersion_is_drawn_of_galaxies_that_have_one(table, tmp_path):
    sigma = table["vdisp"] / 1e4
    drawn = published_figures.dispersion_figure(
        {**table, "redshift_err_true_route": sigma}, CARD.coarse, tmp_path / "E1.png"
    )
    rows = seen(drawn)
    assert len(rows) == 1 + len(GALAXIES)
    assert all(row["ours"] == pytest.approx(1.0) for row in rows.values())
    none = {**table, "vdisp": np.full(len(table["label"]), np.nan)}
    assert published_figures.dispersion_figure(none, CARD.coarse, tmp_path / "none.png") is None
    assert not (tmp_path / "none.png").exists()


def test_classes_without_redshifts_draw_nothing(table, tmp_path):
    stars = {name: values[table["spectype"] == "STAR"] for name, values in table.items()}
    for draw in (published_figures.bias_figure, published_figures.tau_figure,
                 published_figures.sigma_snr_figure):  # fmt: skip
        assert draw(stars, CARD.coarse, tmp_path / "a.png") is None


def test_twins_are_near_the_redshift_asked_for(tmp_path):
    rng, wavelength = np.random.default_rng(0), np.linspace(3700, 9500, 900)
    z = np.tile(np.linspace(0.1, 1.0, 30), 2)
    shape = np.sin(wavelength / 300 / (1 + z[:, None])) + 3
    table = {"label": np.repeat(["A", "B"], 30), "redshift": z, "snr": rng.uniform(5, 9, 60),
             "flux": shape, "wavelength": wavelength}  # fmt: skip
    drawn = published_spectra.twins_figure(table, ("A", "B"), (0.3, 0.9), tmp_path / "20.png")
    assert set(seen(drawn)) == {
        "correlation of A and B, z ≈ 0.3",
        "correlation of A and B, z ≈ 0.9",
    }
    assert published_spectra.twins_figure(table, ("A", "C"), (0.3,), tmp_path / "none.png") is None


@pytest.fixture(scope="module")
def pipeline():
    torch.manual_seed(1)
    recipe = sdss_dr16_laptop().override(
        ["network.widths=[4,4]", "network.dense=8", "members=2", "input.pixels=200"]
    )
    return GasNetPipeline(recipe, 3, ["GALAXY_AGN"]).eval(), recipe


def test_gradients_are_those_of_finite_differences(pipeline):
    model, recipe = pipeline
    x = np.random.default_rng(0).normal(size=(2, 200)).astype(np.float32)
    by_class, by_z = published_spectra.input_gradients(model, recipe, x, 1, "GALAXY_AGN")
    model = model.double()

    def outputs(values):
        values = torch.as_tensor(values)
        p = model.classifier(values).softmax(1)[:, 1]
        z = torch.stack([decode_redshift(m(values)[:, 0], recipe)
                         for m in model.redshift["GALAXY_AGN"]])  # fmt: skip
        return p.detach().numpy(), z.mean(0).detach().numpy()

    step = 1e-5
    for pixel in (3, 77, 180):
        moved = np.zeros((2, 200))
        moved[:, pixel] = step
        high, low = outputs(x.astype(float) + moved), outputs(x.astype(float) - moved)
        for found, up, down in zip((by_class, by_z), high, low, strict=True):
            expected = np.abs(up - down) / (2 * step)
            np.testing.assert_allclose(found[:, pixel], expected, rtol=2e-2, atol=1e-8)
    model.float()


def test_gradients_figure_tells_lines_from_the_rest(tmp_path):
    wavelength, z = np.linspace(4000, 9000, 2001), np.array([0.1, 0.3])
    near = np.array([published_spectra.near_lines(wavelength, v, "GALAXY") for v in z])
    assert near[0][np.argmin(np.abs(wavelength - 6564.61 * 1.1))]
    assert 0.02 < near.mean() < 0.3
    one = {"group": "GALAXY", "z": z, "x": np.ones((2, 2001)) + near,
           "P": 1.0 + 2 * near, "dz": 1.0 + 4 * near}  # fmt: skip
    drawn = published_spectra.gradients_figure({"GALAXY_AGN": one}, wavelength, tmp_path / "D1.png")
    found = [row["ours"] for row in seen(drawn).values()]
    assert found == [pytest.approx(3.0), pytest.approx(5.0)]


def test_confusions_and_their_numbers(scored, tmp_path):
    section = {"classes": ["STAR", "GALAXY"], "confusion": np.array([[9, 1], [5, 5]]),
               "per_class": {"STAR": {"recall": 0.9}, "GALAXY": {"recall": 0.5}}}  # fmt: skip
    assert published_networks.called(section, "GALAXY", "STAR") == 0.5
    rows = published_networks.coarse_rows(section, "SDSS", published.COARSE["SDSS"])
    assert [row["ours"] for row in rows] == [pytest.approx(0.7), 0.9, 0.5]
    drawn = published_networks.confusions_figure(
        {"one": section, "none": {"classes": ["A"], "confusion": [[0]]}}, "Paper: a. Ours: b.",
        tmp_path / "B1.png", rows,
    )  # fmt: skip
    assert len(seen(drawn)) == 3
    worse = {**scored, "classification": {**scored["classification"], "per_class": {
        name: {**one, "recall": one["recall"] - 0.05}
        for name, one in scored["classification"]["per_class"].items()}}}  # fmt: skip
    lost = published_networks.contamination_rows(
        {0.0: scored, 0.05: worse}, "A1", GALAXIES, (-3.3, -7.7), "accuracy"
    )
    assert [(row["paper"], row["ours"]) for row in lost] == [(-3.3, pytest.approx(-5.0))]
