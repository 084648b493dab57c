"""The outliers family: transform, problems, switches, stages, and what predict returns."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from skyray.cards import load_card
from skyray.config import ConfigError
from skyray.families.base import DataInfo, load_recipe
from skyray.families.outliers.family import PROBLEMS, OutliersFamily
from skyray.families.outliers.metrics import SCORES, evaluate_table
from skyray.families.outliers.recipes import RECIPES
from skyray.simulate.spectra import MockSurvey
from skyray.transforms.spectra import place_on_grid

TINY = (
    "network.widths=[4,6,8]", "network.encoder_hidden=[8]", "network.decoder_hidden=[8,16]",
    "network.latents=3", "network.rest_pixels=1200", "network.subpixels=1", "input.rebin=8",
    "flow.hidden=8", "flow.layers=2",
)  # fmt: skip
CARD = load_card("desi_bgs")
INFO = DataInfo(
    card="desi_bgs", record="spectrum", classes=("GALAXY",), coarse={"GALAXY": "GALAXY"},
    fingerprint="0" * 12, grid=CARD.grid.grid(),
)  # fmt: skip


def family(*changes: str, recipe: str = "outliers/desi_bgs_laptop") -> OutliersFamily:
    return OutliersFamily(load_recipe(recipe).override((*TINY, *changes)), INFO)


@pytest.fixture(scope="module")
def columns() -> dict[str, np.ndarray]:
    survey = MockSurvey(CARD, seed=4)
    spectra = [survey.spectrum("GALAXY", index) for index in range(48)]
    placed = [place_on_grid(spectrum, INFO.grid) for spectrum in spectra]
    flux, ivar, mask = (np.stack(arrays) for arrays in zip(*placed, strict=True))
    return {
        "flux": flux, "ivar": ivar, "mask": mask,
        "redshift": np.array([spectrum.redshift for spectrum in spectra]),
    }  # fmt: skip


@pytest.fixture(scope="module")
def answered(columns):
    """A tiny family whose model has its flow standardised and is calibrated, and its answers."""
    tiny = family()
    torch.manual_seed(0)
    model = tiny.build_model()
    inputs = tiny.transform(columns, training=True)
    with torch.no_grad():
        model.flow.set_standardisation(model.autoencoder.encoder(torch.as_tensor(inputs["y"])))
    model = tiny.optimise_for_inference(model)
    calibration, tensors = tiny.calibrate(model, inputs)
    return tiny, model, calibration, tensors


def test_normalised_by_the_rest_frame_median_at_full_resolution(columns):
    """Against the definition: median of the unmasked flux in 5300–5850 Å (1 + z)."""
    plain = family("input.rebin=1", "masked_pixels=as_published")
    inputs = plain.transform(columns, training=False)
    wavelength = INFO.grid.wavelength()
    for row in range(5):
        z = columns["redshift"][row]
        good = (columns["mask"][row] == 0) & (columns["ivar"][row] > 0) & ~plain.sky_L
        window = good & (wavelength > 5300 * (1 + z)) & (wavelength < 5850 * (1 + z))
        norm = np.median(columns["flux"][row][window])
        np.testing.assert_allclose(inputs["norm"][row], norm, rtol=1e-5)
        np.testing.assert_allclose(inputs["y"][row], columns["flux"][row] / norm, rtol=1e-4)
        expected = np.where(good, columns["ivar"][row] * norm**2, 0.0)
        np.testing.assert_allclose(inputs["w"][row], expected, rtol=1e-4)


def test_rebinned_noise_is_what_the_weights_say():
    """Flat spectra with unit noise: (y − 1) √w stays standard normal after co-adding."""
    rng = np.random.default_rng(0)
    rows = {
        "flux": (20 + rng.normal(size=(40, INFO.grid.size))).astype(np.float32),
        "ivar": np.ones((40, INFO.grid.size), np.float32),
        "mask": np.zeros((40, INFO.grid.size), np.uint8),
        "redshift": np.full(40, 0.1),
    }
    inputs = family().transform(rows, training=False)
    pull = ((inputs["y"] * inputs["norm"][:, None] - 20) * np.sqrt(inputs["w"])
            / inputs["norm"][:, None])[inputs["w"] > 0]  # fmt: skip
    assert pull.std() == pytest.approx(1.0, abs=0.02)


def test_sky_lines_carry_no_weight(columns):
    tiny = family("input.rebin=1")
    share = tiny.sky_L.mean()
    assert 0.2 < share < 0.3  # the paper: about 25 %
    assert (tiny.transform(columns, training=False)["w"][:, tiny.sky_L] == 0).all()
    assert not family("input.sky_mask=false").sky_L.any()
    own = family("input.sky_lines=[[5578.9, 100.0]]", "input.rebin=1")
    wavelength = INFO.grid.wavelength()
    assert own.sky_L.any()
    assert np.abs(wavelength[own.sky_L] - 5578.9).max() < 5 * (1 + np.log10(100 / 0.5))


def test_each_problem_has_its_name_and_no_scores(columns, answered):
    rows = {name: values[:5].copy() for name, values in columns.items()}
    wavelength, z = INFO.grid.wavelength(), columns["redshift"]
    rows["redshift"][1] = np.nan
    window = (wavelength > 5200 * (1 + z[2])) & (wavelength < 6000 * (1 + z[2]))
    rows["ivar"][2][window] = 0
    rows["flux"][3] *= -1
    tiny, model, calibration, tensors = answered
    inputs = tiny.transform(rows, training=False)
    assert inputs["problem"].tolist() == [0, 1, 2, 3, 0]
    output = tiny.predict(model, inputs, calibration, tensors)
    assert output["problem"].tolist() == [PROBLEMS[i] for i in (0, 1, 2, 3, 0)]
    for name in ("neg_log_p", "chi2_reduced", "strangeness", "latent_0"):
        assert np.isfinite(output[name]).tolist() == [True, False, False, False, True], name
    assert output["in_domain"][1:4].tolist() == [False] * 3
    published = family("negative_norm=as_published").transform(rows, training=False)
    assert published["problem"].tolist() == [0, 1, 2, 0, 0]
    assert published["norm"][3] < 0


def test_stars_have_no_cosmological_redshift(columns):
    rows = {name: values[:3] for name, values in columns.items()} | {
        "redshift": np.array([0.4, 0.001, np.nan])
    }
    stars = family(recipe="outliers/desi_mws_laptop").transform(rows, training=False)
    np.testing.assert_allclose(stars["z"], [0.0, 0.001, 0.0])
    assert (stars["problem"] == 0).all()


def test_rows_do_not_depend_on_their_neighbours(columns, answered):
    tiny, model, calibration, tensors = answered
    whole = tiny.predict(model, tiny.transform(columns, False), calibration, tensors)
    for row in (0, 17, 47):
        single = {name: values[row : row + 1] for name, values in columns.items()}
        alone = tiny.predict(model, tiny.transform(single, False), calibration, tensors)
        for name in ("latent_0", "neg_log_p", "chi2_reduced", "chi2_window"):
            np.testing.assert_allclose(alone[name][0], whole[name][row], rtol=2e-4, atol=1e-5)


def test_answers_have_the_documented_columns_and_ranks(columns, answered):
    tiny, model, calibration, tensors = answered
    output = tiny.predict(model, tiny.transform(columns, False), calibration, tensors)
    documented = {column.name for column in tiny.output_columns()}
    assert documented | set(tiny.detail_columns()) == set(output)
    assert output["model"].shape == (48, tiny.grid.size)
    # these rows are the population themselves: percentiles are spread evenly over 0–100
    assert output["percentile"].mean() == pytest.approx(50, abs=2)
    assert set(SCORES) < documented


def test_faster_model_leaves_the_trained_one_as_it_is(columns):
    tiny = family()
    model = tiny.build_model()
    names = list(model.state_dict())
    fast = tiny.optimise_for_inference(model)
    assert list(model.state_dict()) == names
    y = torch.as_tensor(tiny.transform(columns, False)["y"])
    with torch.no_grad():
        plain, quick = model.autoencoder.encoder(y), fast.autoencoder.encoder(y)
    torch.testing.assert_close(quick, plain, rtol=1e-3, atol=1e-4 * float(plain.std()))


def test_a_strange_spectrum_is_out_of_domain(columns, answered):
    tiny, model, calibration, tensors = answered
    rows = {name: values[:1].copy() for name, values in columns.items()}
    rows["flux"][0, 5000:5400] += 300 * rows["flux"][0].std()
    output = tiny.predict(model, tiny.transform(rows, False), calibration, tensors)
    assert not output["in_domain"][0]
    assert output["strangeness"][0] > np.log10(48)


def test_scoring_adds_latents_at_another_redshift_and_evaluates(columns, answered):
    tiny, model, calibration, tensors = answered
    output = tiny.predict(model, tiny.transform(columns, True), calibration, tensors)
    again = tiny.predict(model, tiny.transform(columns, True), calibration, tensors)
    np.testing.assert_array_equal(output["moved_latent_1"], again["moved_latent_1"])
    kinds = ['{"planted": "blend"}'] * 8 + ['{"mock_type": "agn"}'] * 40
    table = {**output, "label": np.full(48, "GALAXY"), "redshift": columns["redshift"],
             "extra": np.array(kinds, dtype=object)}  # fmt: skip
    found = evaluate_table(table)
    assert found["invariance_ratio"] > 0
    assert list(found["redshift_correlation_by_type"]) == ["agn"]
    assert set(found["planted_auc"]) == {"strangeness", *SCORES}
    assert found["planted_auc"]["neg_log_p"]["planted"] == 8


@pytest.mark.parametrize("mode", ["corrected", "as_published"])
def test_stages_reduce_their_losses(columns, mode):
    tiny = family(f"mode={mode}")
    inputs = {k: torch.as_tensor(v) for k, v in tiny.transform(columns, True).items()}
    torch.manual_seed(1)
    model = tiny.build_model()
    fidelity, invariance, flow = tiny.stages()
    assert fidelity.rows({"problem": np.array([0, 1])}).tolist() == [True, False]
    for stage in (fidelity, invariance):
        if stage.at_epoch:
            stage.at_epoch(3)
        part = stage.part(model)
        optimizer = torch.optim.Adam(part.parameters(), lr=3e-3)
        seen = []
        for _ in range(12):
            torch.manual_seed(2)
            loss, metrics = stage.loss(part, inputs)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            seen.append(loss.item())
        assert seen[-1] < 0.95 * seen[0]
        assert {"fidelity", "chi2"} <= set(metrics)
    latents = flow.features(model, inputs)
    flow.prepare(model.flow, latents)
    before, _ = flow.loss(model.flow, latents)
    assert np.isfinite(before.item())


def test_slope_of_the_similarity_loss_follows_the_epoch():
    published = family("mode=as_published", "train_invariance.epochs=30").stages()[1]
    published.at_epoch(13)
    assert published.loss.k == pytest.approx(1.3)
    published.at_epoch(25)
    assert published.loss.k == 0
    corrected = family("train_invariance.epochs=10").stages()[1]
    corrected.at_epoch(9)
    assert corrected.loss.k == pytest.approx(5.0)


def test_the_papers_size():
    full = OutliersFamily(load_recipe("outliers/desi_bgs"), INFO).build_model()
    assert sum(p.numel() for p in full.autoencoder.parameters()) == 13_463_802


def test_wrong_data_are_refused():
    with pytest.raises(ConfigError, match="spectra"):
        OutliersFamily(load_recipe("outliers/desi_bgs"), DataInfo(
            "x", "cutout", ("A",), {}, "0" * 12))  # fmt: skip
    with pytest.raises(ConfigError, match="do not meet"):
        family("network.rest_start=50000.0", "network.rest_stop=60000.0")


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_survives_a_snapshot(name):
    recipe = load_recipe(f"outliers/{name}")
    assert type(recipe).load(recipe.snapshot()) == recipe
