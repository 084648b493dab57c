"""The alerts family: input, targets, choice of training rows, loss, calibration, refusals."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from skyray.cards import load_card
from skyray.config import ConfigError
from skyray.families.alerts.family import AlertLoss, AlertsFamily, thumbnails
from skyray.families.alerts.recipes import FRACTIONS, RECIPES, grid
from skyray.families.base import DataInfo, load_recipe
from skyray.transforms.alerts import FEATURES, triplet_input

INFO = DataInfo(
    card="ztf_bts", record="alert", classes=("OTHER", "BRIGHT_TRANSIENT"), coarse={},
    fingerprint="0" * 12, bands=("science", "template", "difference"), image_size=63,
    features=FEATURES, counts={"train": {"OTHER": 300, "BRIGHT_TRANSIENT": 100}},
)  # fmt: skip
SKY = DataInfo(
    card="legacy_survey_cutouts", record="cutout", classes=("OTHER", "BRIGHT_TRANSIENT"), coarse={},
    fingerprint="0" * 12, bands=("g", "r", "z"), image_size=63,
)  # fmt: skip


def family(*overrides: str, recipe: str = "ztf_laptop_multimodal", info=INFO) -> AlertsFamily:
    return AlertsFamily(load_recipe(f"alerts/{recipe}").override(overrides), info)


def batch(rows: int = 12, seed: int = 3) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    label = np.array(["OTHER", "BRIGHT_TRANSIENT", ""], dtype=object)[np.arange(rows) % 3]
    triplet = rng.normal(100, 10, (rows, 3, 63, 63)).astype(np.float32)
    triplet[label == "BRIGHT_TRANSIENT", :, 30:33, 30:33] += 300
    metadata = rng.normal(0, 1, (rows, 25)).astype(np.float32)
    metadata[:, FEATURES.index("magpsf")] = rng.uniform(17, 20, rows)
    metadata[0, 3] = np.nan
    return {
        "triplet": triplet, "metadata": metadata,
        "stamp_box": np.full((rows, 3, 4), (0, 0, 63, 63), np.int32),
        "label": label, "split": np.full(rows, "train", dtype=object),
        "object_key": np.array([f"ZTF{n // 4}" for n in range(rows)], dtype=object),
        "object_id": np.array([str(n) for n in range(rows)], dtype=object),
    }  # fmt: skip


def tensors(inputs) -> dict[str, torch.Tensor]:
    return {name: torch.as_tensor(values) for name, values in inputs.items()}


def test_input_is_the_shared_transform_and_targets_follow_the_label():
    columns = batch()
    inputs = family(recipe="ztf_cnn_multimodal").transform(columns, training=True)
    expected = triplet_input(columns["triplet"], columns["stamp_box"])
    np.testing.assert_array_equal(inputs["image"], expected)
    np.testing.assert_array_equal(inputs["metadata"], columns["metadata"])
    assert inputs["target"][:4].tolist() == [0, 1, -1, 0]
    scaled = family().transform(columns, training=False)["image"]
    np.testing.assert_allclose(np.square(scaled).mean((2, 3)), 1.0, rtol=1e-4)
    swapped = family("positive=OTHER").transform(columns, training=True)["target"]
    assert swapped[:4].tolist() == [1, 0, -1, 1]
    assert set(family().transform(columns, training=False)) == {"image", "metadata"}
    images = family(recipe="ztf_laptop")
    assert "metadata" not in images.columns(True)
    assert "metadata" not in images.transform(columns, training=False)


def test_rows_do_not_depend_on_their_batch():
    whole = family().transform(batch(), training=True)
    for row in range(4):
        alone = family().transform({k: v[row : row + 1] for k, v in batch().items()}, True)
        for name, values in alone.items():
            np.testing.assert_array_equal(values[0], whole[name][row])


def test_swapped_features_are_refused():
    swapped = (FEATURES[1], FEATURES[0], *FEATURES[2:])
    with pytest.raises(ConfigError, match="position 0: expected 'sgscore1', found 'distpsnr1'"):
        family(info=DataInfo(**{**INFO.__dict__, "features": swapped}))
    family(recipe="ztf_laptop", info=DataInfo(**{**INFO.__dict__, "features": swapped}))


def test_what_does_not_fit_is_refused():
    with pytest.raises(ConfigError, match="two classes"):
        family(info=DataInfo(**{**INFO.__dict__, "classes": ("A",)}))
    with pytest.raises(ConfigError, match="found 'spectrum'"):
        family(info=DataInfo(**{**INFO.__dict__, "record": "spectrum"}))
    with pytest.raises(ConfigError, match="positive: expected one of"):
        family("positive=SUPERNOVA")
    with pytest.raises(ConfigError, match="cutouts carry no metadata"):
        family(info=SKY)
    with pytest.raises(ConfigError, match="crop: expected at most 63"):
        family("crop=64")
    with pytest.raises(ConfigError, match="expected 25"):
        family("network.metadata=24")
    one = DataInfo(**{**INFO.__dict__, "counts": {"train": {"OTHER": 5}}})
    with pytest.raises(ConfigError, match="0 BRIGHT_TRANSIENT and 5 OTHER"):
        family(info=one).stages()


def test_loss_is_weighted_cross_entropy_of_logits():
    made = family("augment=false")
    assert made.positive_weight == 3.0
    model = made.build_model().eval()
    inputs = tensors(made.transform({k: v[:2] for k, v in batch().items()}, True))
    loss, found = AlertLoss(made.recipe, made.positive_weight)(model, inputs)
    logit = model(inputs["image"], inputs["metadata"])[:, 0]
    p = torch.sigmoid(logit)
    expected = (-torch.log(1 - p[0]) - 3 * torch.log(p[1])) / 2
    torch.testing.assert_close(loss, expected)
    assert 0 <= found["accuracy"] <= 1


def test_augmentation_flips_and_turns_in_training_only():
    made = family(recipe="ztf_laptop")
    seen = []

    class Eye(torch.nn.Module):
        def forward(self, image, metadata=None):
            seen.append(image.clone())
            return image.mean((1, 2, 3)).unsqueeze(1)

    image = torch.randn(64, 3, 9, 9)
    inputs = {"image": image, "target": torch.zeros(64)}
    AlertLoss(made.recipe, 1.0)(Eye().eval(), inputs)
    torch.testing.assert_close(seen[-1], image)
    torch.manual_seed(1)
    AlertLoss(made.recipe, 1.0)(Eye().train(), inputs)
    turned = [torch.rot90(f, k, (-2, -1)) for f in (image, image.flip(-1)) for k in range(4)]
    found = torch.stack([(seen[-1] == one).flatten(1).all(1) for one in turned])
    assert found.any(0).all()  # each is one of the eight
    assert (found.sum(1) > 0).all()  # and all eight occur


def many(rows: int = 4000) -> dict[str, np.ndarray]:
    """Inputs of 400 objects with 10 alerts each, a tenth of them of validation."""
    made = family()
    keys = np.array([f"ZTF{n // 10}" for n in range(rows)], dtype=object)
    columns = {k: np.repeat(v[:1], rows, axis=0) for k, v in batch(1).items() if k != "triplet"}
    columns |= {"object_key": keys, "object_id": np.arange(rows).astype(str).astype(object)}
    columns["split"] = np.where(np.arange(rows) % 100 < 90, "train", "validation").astype(object)
    columns["triplet"] = np.ones((rows, 3, 2, 2), np.float32)
    return made.transform(columns, training=True)


def test_smaller_fractions_are_parts_of_larger_ones():
    inputs = many()
    before = np.zeros(len(inputs["target"]), bool)
    for fraction in FRACTIONS:
        chosen = family(f"fraction={fraction}").training_rows(inputs)
        assert chosen[~inputs["is_train"]].all()  # validation is never thinned
        assert (chosen | ~before).all()
        share = chosen[inputs["is_train"]].mean()
        assert share == pytest.approx(fraction, abs=0.05)
        objects = inputs["object_hash"][chosen & inputs["is_train"]]
        assert (np.unique(objects, return_counts=True)[1] == 10).all()  # whole objects
        before = chosen


def test_published_fractions_take_single_alerts():
    inputs = many()
    chosen = family("fraction=0.5", "fractions=as_published").training_rows(inputs)
    chosen &= inputs["is_train"]
    counts = np.unique(inputs["object_hash"][chosen], return_counts=True)[1]
    assert counts.min() < 10
    assert chosen.sum() / inputs["is_train"].sum() == pytest.approx(0.5, abs=0.03)


def test_objects_with_many_alerts_are_capped_in_training_only():
    inputs = many()
    inputs["target"][:5] = -1
    chosen = family("alerts_per_object=3").training_rows(inputs)
    train = inputs["is_train"]
    counts = np.unique(inputs["object_hash"][chosen & train], return_counts=True)[1]
    assert (counts == 3).all()
    assert chosen[~train].all()
    assert not chosen[:5].any()
    order = np.random.default_rng(0).permutation(len(train))  # the choice ignores the rows' order
    shuffled = {name: values[order] for name, values in inputs.items()}
    again = family("alerts_per_object=3").training_rows(shuffled)
    np.testing.assert_array_equal(again, chosen[order])
    assert family("alerts_per_object=null").training_rows(inputs)[5:].all()


def test_probabilities_are_honest_where_positives_were_weighted():
    made = family("augment=false", recipe="ztf_laptop")
    rng = np.random.default_rng(0)
    true_logit = rng.normal(-1.1, 1.5, 4000)
    target = (rng.random(4000) < 1 / (1 + np.exp(-true_logit))).astype(np.int64)

    class Weighted(torch.nn.Module):  # what training with weight 3 converges to
        def __init__(self):
            super().__init__()
            self.output = torch.nn.Linear(1, 1)
            self.output.weight.data[:], self.output.bias.data[:] = 1.0, np.log(3.0)

        def features(self, image, metadata=None):
            return image[:, 0, 0, :1]

    image = np.zeros((4000, 3, 2, 2), np.float32)
    image[:, 0, 0, 0] = true_logit
    inputs = {"image": image, "target": target}
    calibration, gate = made.calibrate(Weighted(), inputs)
    assert calibration["offset"] == pytest.approx(np.log(3))
    assert calibration["temperature"] == pytest.approx(1.0, abs=0.1)
    output = made.predict(Weighted(), {"image": image}, calibration, gate)
    assert output["probability"].mean() == pytest.approx(target.mean(), abs=0.01)
    assert output["score"].mean() > target.mean() + 0.1
    published = family("probabilities=as_published", recipe="ztf_laptop")
    calibration, _ = published.calibrate(Weighted(), inputs)
    assert calibration == {"offset": 0.0, "temperature": 1.0}


def test_outputs_of_a_trained_shape():
    made = family()
    model = made.optimise_for_inference(made.build_model())
    columns = batch(36)
    inputs = made.transform(columns, training=True)
    output = made.predict(model, inputs, *made.calibrate(model, inputs))
    assert {column.name for column in made.output_columns()} <= set(output)
    assert output["features"].shape == (36, 32)
    assert output["thumbnail"].shape == (36, 3, 42, 42)
    assert output["in_domain"].mean() > 0.8
    assert set(output["label"]) <= set(INFO.classes)
    strange = {**columns, "triplet": columns["triplet"][:, :, ::-1] ** 3}
    far = made.predict(model, made.transform(strange, False), *made.calibrate(model, inputs))
    assert "thumbnail" not in far
    assert far["domain_distance"].mean() != output["domain_distance"].mean()


def test_the_loss_falls_when_trained():
    made = family(
        "augment=false", "network.architecture=test_resnet", "network.dropout=0", "input_scale=rms",
        "crop=31", "network.metadata_dropout=0",
    )  # fmt: skip
    torch.manual_seed(0)
    model = made.build_model().train()
    inputs = made.transform(batch(24), training=True)
    data = tensors({k: v[made.training_rows(inputs)] for k, v in inputs.items()})
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    losses = []
    for _ in range(15):
        optimizer.zero_grad()
        loss, _ = made.stages()[0].loss(model, data)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


def test_scoring_table_takes_photometry_from_the_metadata(tmp_path):
    made = family()
    columns = batch(30)
    model = made.optimise_for_inference(made.build_model())
    inputs = made.transform(columns, training=True)
    output = made.predict(model, inputs, *made.calibrate(model, inputs))
    output["label_pred"] = output.pop("label")
    extra = [json.dumps({"subset": "vars" if n % 2 else "trues"}) for n in range(30)]
    table = {**output, **{k: columns[k] for k in ("label", "object_key", "metadata", "object_id")},
             "jd": np.arange(30.0), "extra": np.array(extra, dtype=object)}  # fmt: skip
    found = made.evaluate(table, {})
    assert found["unknown_truth"] == 10
    assert set(found["policies"]) == {"bts_p1", "bts_p2", "prod_p1", "prod_p2"}
    assert set(found["by_subset"]) == {"vars", "trues"}
    json.dumps(found, allow_nan=False)
    table["history"] = [
        {"stage": "classifier", "epoch": n, "train_loss": 1 / (n + 1), "validation_loss": 1.0}
        for n in range(3)
    ]
    paths = made.figures(table, found, tmp_path)
    assert {path.stem for path in paths} == {
        "roc", "probability", "scores_by_magnitude", "policies", "subsets", "worst_mistakes",
        "training_losses",
    }  # fmt: skip


def test_colour_cutouts_train_the_same_family():
    made = family(recipe="legacy_laptop", info=SKY)
    rng = np.random.default_rng(0)
    image = rng.normal(0, 0.1, (6, 3, 63, 63)).astype(np.float32)
    image[:, :, 31, 31] = 50
    image[:, :, 0, 0] = np.nan
    inputs = made.transform({"image": image}, training=False)
    assert np.isfinite(inputs["image"]).all()
    assert inputs["image"].max() < 4
    np.testing.assert_allclose(inputs["image"].std(), 0.11, atol=0.03)  # asinh(1/3) / 3 a sigma
    assert made.build_model()(torch.as_tensor(inputs["image"])).shape == (6, 1)
    raw = family("cutout_stretch=none", recipe="legacy_laptop", info=SKY)
    kept = raw.transform({"image": image}, training=False)["image"]
    np.testing.assert_array_equal(kept, np.nan_to_num(image))


def test_thumbnails_show_the_middle():
    image = np.random.default_rng(0).normal(0, 1, (2, 3, 63, 63)).astype(np.float32)
    image[:, :, 31, 31] = 100
    found = thumbnails(image)
    assert found.shape == (2, 3, 42, 42)
    assert (found.reshape(6, -1).argmax(1) == 21 * 42 + 21).all()
    assert thumbnails(image[..., :20, :20]).shape == (2, 3, 20, 20)


def test_grid_of_the_paper_is_whole():
    names = set(grid())
    assert len(names) == 3 * 7
    assert {"ztf_cnn", "ztf_maxvit_galaxyzoo_multimodal", "legacy_convnext_imagenet"} <= names
    assert names <= set(RECIPES)


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_every_recipe_is_itself(name):
    recipe = load_recipe(f"alerts/{name}")
    assert recipe.name == name
    assert type(recipe).load(recipe.snapshot()) == recipe
    assert recipe.train.optimizer.weight_decay == 0.01
    for key in AlertsFamily.search_space(recipe):
        section = recipe.snapshot()
        for part in key.split("."):
            section = section[part]  # every key of the search space exists


def test_own_policies_by_configuration():
    recipe = family("policies={mine: {alerts: 3, score: 0.7}}").recipe
    assert list(recipe.policies) == ["mine"]
    assert (recipe.policies["mine"].alerts, recipe.policies["mine"].magnitude) == (3, 19.0)
    with pytest.raises(ConfigError, match="policies"):
        family("policies={mine: {scores: 0.7}}")


def test_search_space_is_table_1():
    space = AlertsFamily.search_space(load_recipe("alerts/ztf_convnext_galaxyzoo"))
    assert space["train.optimizer.lr"].values == (1e-6, 5e-6, 1e-7, 5e-7)
    assert len(space["network.head"].values) == 9
    assert (space["network.dropout"].low, space["network.dropout"].high) == (0.3, 0.9)


def test_of_several_classes_one_is_sought_and_the_others_are_the_rest():
    classes = ("AGN", "SN", "BOGUS")
    counts = {"train": {"AGN": 10, "SN": 20, "BOGUS": 70}}
    info = DataInfo(**{**INFO.__dict__, "classes": classes, "counts": counts})
    made = family("positive=SN", info=info)
    assert (made.positive, made.negative, made.positive_weight) == ("SN", "not SN", 4.0)
    columns = batch()
    columns["label"] = np.array(["AGN", "SN", "BOGUS", ""] * 3, dtype=object)
    assert made.transform(columns, training=True)["target"].tolist() == [0, 1, 0, -1] * 3


def test_a_survey_has_its_own_features():
    names = ("snr", "reliability", "magpsf")
    info = DataInfo(**{**INFO.__dict__, "features": names})
    made = family("network.metadata=3", "features=null", info=info)
    columns = batch() | {"metadata": np.arange(36, dtype=np.float32).reshape(12, 3)}
    np.testing.assert_array_equal(
        made.transform(columns, training=False)["metadata"], columns["metadata"]
    )
    assert made.scoring_table(columns)["magpsf"].tolist() == columns["metadata"][:, 2].tolist()
    with pytest.raises(ConfigError, match=r"network\.metadata: expected 3"):
        family("features=null", info=info)
    with pytest.raises(ConfigError, match="missing"):
        family("network.metadata=25", info=info)
    rubin = load_card("lsst_alerts")
    chosen = DataInfo(**{**INFO.__dict__, "features": tuple(rubin.features)})
    assert family(recipe="lsst_laptop_multimodal", info=chosen).features == tuple(rubin.features)
