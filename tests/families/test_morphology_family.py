"""Morphology as a family: transform, stages, switches, calibrated predictions."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from skyray.config import ConfigError
from skyray.families.base import DataInfo, load_recipe
from skyray.families.morphology.family import (
    MorphologyFamily,
    MorphologyLoss,
    base_features,
    forward,
    unit,
)
from skyray.families.morphology.recipes import RECIPES, MorphologyRecipe
from skyray.transforms.augment import NO_AUGMENTATION, AugmentConfig
from skyray.transforms.images import ColourMapping, published_mapping, to_colour

SIZE = 64
TINY = (
    "network.weights=''",
    "train_norms=true",
    "network.input_size=null",
    "network.architecture=resnet10t",
)


def info(bands=("g", "r", "i", "z"), **changes) -> DataInfo:
    values = {
        "card": "sdss_galaxies", "record": "cutout", "classes": ("elliptical", "spiral"),
        "coarse": {}, "fingerprint": "0" * 12, "bands": tuple(bands), "image_size": SIZE,
    }  # fmt: skip
    return DataInfo(**{**values, **changes})


def family(*overrides: str, recipe="morphology/mock_sdss_laptop", data=None) -> MorphologyFamily:
    return MorphologyFamily(load_recipe(recipe).override([*TINY, *overrides]), data or info())


def batch(rows: int = 6, bands: int = 4) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    y, x = np.mgrid[:SIZE, :SIZE] - SIZE / 2
    light = 40 * np.exp(-np.hypot(x, y) / 6)
    labels = ["spiral", "elliptical", "spiral", "", "elliptical", "spiral"]
    return {
        "image": (light + rng.normal(size=(rows, bands, SIZE, SIZE))).astype(np.float32),
        "survey": np.array(["sdss", "des"] * rows, dtype=object)[:rows],
        "label": np.array((labels * rows)[:rows], dtype=object),
        "split": np.array(["train"] * (rows - 1) + ["validation"], dtype=object),
        "object_key": np.array([f"k{n}" for n in range(rows)], dtype=object),
    }


def tensors(inputs: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    return {name: torch.as_tensor(values) for name, values in inputs.items()}


def test_transform_colours_in_8_bits():
    columns = batch()
    inputs = family().transform(columns, training=True)
    assert inputs["image"].shape == (6, 3, SIZE, SIZE)
    assert inputs["image"].dtype == np.uint8
    assert inputs["label_index"].tolist() == [1, 0, 1, -1, 0, 1]
    expected = to_colour(columns["image"][1], ("g", "r", "i", "z"), ColourMapping())
    np.testing.assert_array_equal(inputs["image"][1], np.rint(255 * expected))


def test_published_colours_follow_the_survey_of_each_row():
    columns = batch(2)
    found = family("mode=as_published").transform(columns, training=False)["image"]
    for row, survey in enumerate(("sdss", "des")):
        expected = to_colour(
            columns["image"][row], tuple("griz"), published_mapping(survey), "as_published"
        )
        np.testing.assert_array_equal(found[row], np.rint(255 * expected))


def test_display_images_are_taken_as_they_are():
    made = family(data=info(("red", "green", "blue")))
    columns = batch(2, 3)
    columns["image"] = np.random.default_rng(0).integers(0, 256, (2, 3, SIZE, SIZE)).astype("f4")
    np.testing.assert_array_equal(made.transform(columns, False)["image"], columns["image"])


def test_rows_do_not_depend_on_their_batch():
    made, columns = family(), batch()
    whole = made.transform(columns, training=False)["image"]
    for row in range(6):
        alone = {k: v[row : row + 1] for k, v in columns.items()}
        np.testing.assert_array_equal(made.transform(alone, False)["image"][0], whole[row])


def test_wrong_data_are_refused():
    with pytest.raises(ConfigError, match=r"missing: \['z'\]"):
        family("mode=as_published", data=info("gri"))
    with pytest.raises(ConfigError, match="expected a dataset of cutouts"):
        family(data=info(record="spectrum"))
    with pytest.raises(ConfigError, match="cutouts carry no metadata"):
        family("network.metadata=25")


def test_stages_unfreeze_from_the_head_down():
    made = family("middle_frozen=0.5", "train_norms=true")
    model = made.build_model()
    names = [name for name, _ in model.named_parameters()]
    learning = {s.name: {n for n in names if s.trains(n)} for s in made.stages()}
    assert list(learning) == ["head", "middle", "whole"]
    assert learning["head"] == {n for n in names if not n.startswith("backbone.")}
    assert learning["head"] < learning["middle"] < learning["whole"] == set(names)
    first = next(n for n in names if n.startswith("backbone."))
    assert first not in learning["middle"]


def test_published_stages_are_those_of_the_paper():
    recipe = load_recipe("morphology/sdss_xception")
    assert (recipe.middle_frozen, recipe.whole_frozen) == (40 / 132, 2 / 132)
    assert (recipe.train_head.epochs, recipe.train.early_stopping) == (1, 3)
    assert recipe.network.head == (1024, 1024)
    assert recipe.network.dropout == 0.7
    optimizer = recipe.train_middle.optimizer
    assert (optimizer.lr, optimizer.step_factor, optimizer.patience) == (1e-4, 0.5, 2)
    assert recipe.vision().normalise == "model"
    published = load_recipe("morphology/sdss_xception_as_published")
    assert published.vision().normalise == "none"
    made = MorphologyFamily(published, info(image_size=200))
    assert [stage.features for stage in made.stages()] == [None, None, None]
    frozen = [n for n in _names(made) if not made.stages()[2].trains(n)]
    assert frozen == ["backbone.conv1.weight", "backbone.bn1.weight", "backbone.bn1.bias"]


def _names(made: MorphologyFamily) -> list[str]:
    return [name for name, _ in made._skeleton.named_parameters()]


def test_frozen_norms_keep_their_running_statistics():
    made = family("middle_frozen=0.5", "train_norms=true")
    model = made.build_model()
    stage = made.stages()[1]
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(stage.trains(name))
    model.train()
    before = {n: b.clone() for n, b in model.named_buffers() if n.endswith("running_mean")}
    inputs = tensors(made.transform(batch(), True))
    inputs = {k: v[inputs["label_index"] >= 0] for k, v in inputs.items()}
    stage.loss(model, inputs)[0].backward()
    moved = {n for n, b in model.named_buffers() if n in before and not torch.equal(b, before[n])}
    frozen = {n for n in before if not stage.trains(n.replace("running_mean", "weight"))}
    assert frozen
    assert moved == set(before) - frozen
    gradients = {n for n, p in model.named_parameters() if p.grad is not None}
    assert gradients == {n for n, _ in model.named_parameters() if stage.trains(n)}


def test_norms_can_stay_as_pre_trained_in_every_stage():
    made = family("train_norms=false", "network.weights=imagenet")
    model = made.build_model()
    stage = made.stages()[-1]
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(stage.trains(name))
    model.train()
    norms = {n: m for n, m in model.named_modules() if isinstance(m, torch.nn.BatchNorm2d)}
    assert norms
    assert not any(norm.training for norm in norms.values())
    frozen = {n for n, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {f"{n}.{part}" for n in norms for part in ("weight", "bias")}


def test_norms_without_pre_training_are_refused():
    with pytest.raises(ConfigError, match=r"train_norms.*from scratch"):
        family("train_norms=false")


def test_cached_features_give_the_heads_own_loss():
    made = family("augment.flip_vertical=true")
    model = made.build_model().eval()
    inputs = tensors(made.transform(batch(3), True))
    stage = made.stages()[0]
    cached, _ = stage.loss(model, base_features(model, inputs))
    logits = model(unit(inputs["image"]))
    torch.testing.assert_close(cached, functional.cross_entropy(logits, inputs["label_index"]))


def test_loss_augments_and_smooths_in_training_only():
    made = family()
    model = made.build_model().eval()
    inputs = tensors(made.transform(batch(3), True))
    loss = MorphologyLoss(AugmentConfig(), 0.1)
    plain, metrics = loss(model, inputs)
    torch.testing.assert_close(loss(model, inputs)[0], plain)
    assert 0 <= metrics["accuracy"] <= 1
    model.train()
    torch.manual_seed(0)
    first = loss(model, inputs)[0]
    assert not torch.isclose(first, loss(model, inputs)[0])


def test_smaller_share_is_part_of_the_larger():
    inputs = family().transform(batch(200), training=True)
    quarter, half = (family(f"fraction={f}").training_rows(inputs) for f in (0.25, 0.5))
    assert (half | ~quarter).all()
    assert 0.15 < quarter.mean() / (inputs["label_index"] >= 0).mean() < 0.35
    assert half[-1]  # validation is never thinned
    assert not half[inputs["label_index"] < 0].any()


def test_calibrated_predictions_of_unlabelled_and_labelled_rows():
    made = family()
    torch.manual_seed(0)
    model = made.optimise_for_inference(made.build_model())
    inputs = made.transform(batch(60), training=True)
    calibration, kept = made.calibrate(model, inputs)
    output = made.predict(model, inputs, calibration, kept)
    probability = np.stack([output["p_elliptical"], output["p_spiral"]], axis=1)
    np.testing.assert_allclose(probability.sum(axis=1), 1, atol=1e-6)
    logits, features = forward(model, inputs["image"])
    scaled = torch.softmax(torch.as_tensor(logits / calibration["temperature"]), dim=1)
    np.testing.assert_allclose(probability, scaled, atol=1e-6)
    np.testing.assert_array_equal(output["features"], features)
    assert output["in_domain"].mean() > 0.8
    assert set(output) >= {column.name for column in made.output_columns()}
    assert output["thumbnail"].shape == (60, 48, 48, 3)
    served = made.predict(model, {"image": inputs["image"]}, calibration, kept)
    np.testing.assert_array_equal(served["p_spiral"], output["p_spiral"])
    assert "embedding" not in served


def test_eight_views_make_predictions_blind_to_orientation():
    made = family()
    model = made.optimise_for_inference(made.build_model())
    image = made.transform(batch(3), False)["image"]
    turned = np.ascontiguousarray(np.rot90(image, 1, (2, 3))[..., ::-1])
    for of_one, of_other in zip(forward(model, image, 8), forward(model, turned, 8), strict=True):
        np.testing.assert_allclose(of_one, of_other, rtol=1e-4, atol=1e-5)
    assert np.abs(forward(model, image)[1] - forward(model, turned)[1]).max() > 1e-3


def test_noise_lies_outside_the_domain():
    made = family()
    torch.manual_seed(1)
    model = made.optimise_for_inference(made.build_model())
    calibration, kept = made.calibrate(model, made.transform(batch(60), training=True))
    noise = np.random.default_rng(0).integers(0, 256, (20, 3, SIZE, SIZE), dtype=np.uint8)
    output = made.predict(model, {"image": noise}, calibration, kept)
    assert output["in_domain"].mean() < 0.1


def test_published_probabilities_are_the_plain_softmax():
    made = family("probabilities=as_published")
    model = made.optimise_for_inference(made.build_model())
    inputs = made.transform(batch(30), training=True)
    assert made.calibrate(model, inputs)[0] == {"temperature": 1.0}


def test_thumbnails_have_the_top_of_the_sky_on_top():
    made = family()
    image = np.zeros((1, 3, SIZE, SIZE), np.uint8)
    image[0, :, -8:] = 255  # last rows of a FITS image: north
    model = made.build_model().eval()
    inputs = {**made.transform(batch(12), True)}
    calibration, kept = made.calibrate(model, inputs)
    truth = {"image": image, "label_index": np.array([1])}
    found = made.predict(model, truth, calibration, kept)["thumbnail"][0]
    assert found[0].min() > 200
    assert found[-1].max() == 0


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_every_recipe_builds(name):
    recipe = load_recipe(f"morphology/{name}")
    assert recipe.name == name
    assert MorphologyRecipe.load(recipe.snapshot()) == recipe


def test_search_space_names_keys_of_the_recipe():
    recipe = load_recipe("morphology/mock_sdss_laptop")
    for key in MorphologyFamily.search_space(recipe):
        recipe.override([f"{key}=null"] if key == "network.input_size" else [f"{key}={_one(key)}"])
    assert not NO_AUGMENTATION.active


def _one(key: str) -> str:
    return {"network.head": "[256]"}.get(key, "0.1")
