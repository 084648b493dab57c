"""GaSNet-II as a family: transform, targets, switches, routing."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from skyray.config import ConfigError
from skyray.families.base import DataInfo, load_recipe
from skyray.families.redshift.family import RedshiftFamily
from skyray.families.redshift.networks import (
    ClassifierLoss,
    RedshiftLoss,
    augment,
    decode_redshift,
    encode_redshift,
)
from skyray.families.redshift.recipes import RECIPES
from skyray.records import Grid

GRID = Grid("log10", 3.55, 1e-4, 4700)
INFO = DataInfo(
    card="sdss_coarse",
    record="spectrum",
    classes=("STAR", "GALAXY", "QSO"),
    coarse={"STAR": "STAR", "GALAXY": "GALAXY", "QSO": "QSO"},
    fingerprint="0" * 12,
    grid=GRID,
)


def family(*overrides: str, recipe: str = "redshift/sdss_coarse_laptop") -> RedshiftFamily:
    return RedshiftFamily(load_recipe(recipe).override(overrides), INFO)


def batch(rows: int = 6) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    return {
        "flux": rng.normal(5.0, 1.0, (rows, GRID.size)).astype(np.float32),
        "ivar": np.ones((rows, GRID.size), np.float32),
        "mask": np.zeros((rows, GRID.size), np.uint8),
        "label": np.array(["STAR", "GALAXY", "QSO", "", "GALAXY", "QSO"][:rows], dtype=object),
        "redshift": np.array([0.0, 0.1, 2.5, np.nan, 0.3, 1.0][:rows]),
    }


def test_input_has_unit_rms_and_the_recipes_length():
    inputs = family().transform(batch(), training=True)
    assert inputs["x"].shape == (6, 2001)
    assert inputs["x"].dtype == np.float32
    np.testing.assert_allclose(np.sqrt((inputs["x"].astype(float) ** 2).mean(1)), 1.0, atol=1e-6)
    assert inputs["label_index"].tolist() == [0, 1, 2, -1, 1, 2]


def test_transform_interpolates_as_numpy_does():
    columns = batch(1)
    ours = family("input.step=1.0", "input.pixels=5001").transform(columns, training=False)["x"][0]
    wavelength = 4000.0 + np.arange(5001)
    in_log = np.interp(np.log10(wavelength), np.log10(GRID.wavelength()), columns["flux"][0])
    expected = in_log / np.sqrt((in_log**2).mean())
    np.testing.assert_allclose(ours, expected, rtol=2e-4, atol=2e-4)


def test_rows_do_not_depend_on_their_batch():
    whole = family().transform(batch(), training=False)["x"]
    for row in range(6):
        alone = {k: v[row : row + 1] for k, v in batch().items()}
        np.testing.assert_array_equal(family().transform(alone, training=False)["x"][0], whole[row])


def test_masked_pixels_are_filled_unless_as_published():
    columns = batch(1)
    columns["flux"][:, 2000:2040] = 1e4
    columns["mask"][:, 2000:2040] = 1
    corrected = family().transform(columns, training=False)["x"]
    published = family("masked_pixels=as_published").transform(columns, training=False)["x"]
    assert np.abs(corrected).max() < 3
    assert np.abs(published).max() > 9


def test_coverage_tells_the_measured_share():
    columns = batch(1)
    unmeasured = GRID.wavelength() > 6500
    columns["ivar"][:, unmeasured] = 0
    coverage = family().transform(columns, training=False)["coverage"][0]
    assert coverage == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("target", ["linear", "log"])
def test_redshift_target_round_trip(target):
    recipe = family(f"redshift_target={target}").recipe
    z = torch.linspace(0, 5, 50, dtype=torch.float64)
    torch.testing.assert_close(decode_redshift(encode_redshift(z, recipe), recipe), z)
    np.testing.assert_allclose(decode_redshift(encode_redshift(z, recipe).numpy(), recipe), z)


def test_published_target_is_ten_times_the_clipped_redshift():
    recipe = load_recipe("redshift/sdss_dr16")
    found = encode_redshift(torch.tensor([-0.01, 0.5, 7.0]), recipe)
    torch.testing.assert_close(found, torch.tensor([0.0, 5.0, 50.0]))


def test_losses_are_cross_entropy_and_huber():
    made = family()
    model = made.build_model().eval()
    inputs = made.transform(batch(3), training=True)
    tensors = {k: torch.as_tensor(v) for k, v in inputs.items()}
    loss, metrics = ClassifierLoss(made.recipe)(model.classifier, tensors)
    logits = model.classifier(tensors["x"])
    torch.testing.assert_close(loss, functional.cross_entropy(logits, tensors["label_index"]))
    assert 0 <= metrics["accuracy"] <= 1

    part = model.redshift["QSO"][0]
    loss, _ = RedshiftLoss(made.recipe)(part, tensors)
    error = part(tensors["x"])[:, 0] - encode_redshift(tensors["redshift"].float(), made.recipe)
    small = error.abs() <= 0.1
    expected = torch.where(small, 0.5 * error**2, 0.1 * (error.abs() - 0.05)).mean()
    torch.testing.assert_close(loss, expected)


def test_gradient_of_an_ensemble_is_each_members_own():
    made = family("members=2", "network.dropout=0.0")
    members = made.build_model().redshift["QSO"].eval()
    inputs = {k: torch.as_tensor(v) for k, v in made.transform(batch(3), training=True).items()}
    RedshiftLoss(made.recipe)(members, inputs)[0].backward()
    together = members[1].head.weight.grad.clone()
    members.zero_grad()
    RedshiftLoss(made.recipe)(members[1], inputs)[0].backward()
    torch.testing.assert_close(members[1].head.weight.grad, together)


def test_stages_of_both_modes():
    corrected = [stage.name for stage in family("members=2").stages()]
    assert corrected == [
        "classifier", "redshift/GALAXY/0", "redshift/GALAXY/1", "redshift/QSO/0", "redshift/QSO/1"
    ]  # fmt: skip
    published = [stage.name for stage in family("members=2", "mode=as_published").stages()]
    assert published == ["classifier", "redshift/GALAXY", "redshift/QSO"]


def test_a_redshift_stage_trains_on_its_class_with_known_redshift():
    made = family()
    stage = next(s for s in made.stages() if s.name == "redshift/GALAXY/0")
    inputs = made.transform(batch(), training=True)
    inputs["redshift"][4] = np.nan
    assert stage.rows(inputs).tolist() == [False, True, False, False, False, False]


def test_switches_follow_the_mode_unless_set():
    published = family("mode=as_published", "init=corrected").recipe
    assert published.switch("masked_pixels") == "as_published"
    assert published.switch("init") == "corrected"


def test_calibration_and_prediction_of_both_routings():
    made = family("members=3")
    torch.manual_seed(0)
    model = made.optimise_for_inference(made.build_model().eval())
    rows = {k: np.concatenate([v] * 20) for k, v in batch().items()}
    inputs = made.transform(rows, training=True)
    calibration, tensors = made.calibrate(model, inputs)
    output = made.predict(model, inputs, calibration, tensors)
    probabilities = np.stack([output[f"p_{c}"] for c in INFO.classes], axis=1)
    np.testing.assert_allclose(probabilities.sum(1), 1.0, atol=1e-5)
    assert set(output) >= {column.name for column in made.output_columns()}
    stars = output["label"] == "STAR"
    assert (output["redshift"][stars] == 0).all()
    true_stars = rows["label"] == "STAR"
    assert (output["redshift_true_route"][true_stars] == 0).all()
    assert np.isnan(output["redshift_true_route"][rows["label"] == ""]).all()
    quasars = rows["label"] == "QSO"
    error = np.abs(output["redshift_true_route"] - rows["redshift"])[quasars]
    assert (error <= output["redshift_err_true_route"][quasars]).mean() >= 0.6


def test_published_errors_are_the_plain_spread_of_the_members():
    made = family("members=3", "redshift_errors=as_published", "probabilities=as_published")
    model = made.optimise_for_inference(made.build_model().eval())
    inputs = made.transform(batch(), training=True)
    calibration, tensors = made.calibrate(model, inputs)
    assert calibration["temperature"] == 1.0
    output = made.predict(model, inputs, calibration, tensors)
    with torch.inference_mode():
        x = torch.as_tensor(inputs["x"][[2]])
        outputs = np.array([m(x)[0, 0].double().item() for m in model.redshift["QSO"]])
    z = decode_redshift(outputs, made.recipe)
    assert output["redshift_true_route"][2] == pytest.approx(z.mean(), abs=1e-5)
    assert output["redshift_err_true_route"][2] == pytest.approx(z.std(ddof=0), abs=1e-5)


def test_noise_augmentation_acts_in_training_only():
    x = functional.normalize(torch.randn(4, 900)) * 30
    assert augment(x, 0.5, training=False) is x
    noisy = augment(x, 0.5, training=True)
    assert not torch.equal(noisy, x)
    torch.testing.assert_close(noisy.square().mean(1), torch.ones(4))


def test_refuses_a_grid_outside_the_data():
    with pytest.raises(ConfigError, match="lies outside the dataset's"):
        family("input.start=12000")


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_every_recipe_builds(name):
    recipe = load_recipe(f"redshift/{name}")
    assert recipe.name == name
    assert type(recipe).load(recipe.snapshot()) == recipe


def test_unknown_recipe_lists_the_known_ones():
    with pytest.raises(ConfigError, match="sdss_dr16_laptop"):
        load_recipe("redshift/sdss_dr17")
