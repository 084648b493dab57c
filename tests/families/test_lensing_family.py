"""Lensing family: hidden labels, stages, what each method trains, predictions, switches."""

import copy

import numpy as np
import pytest
import torch
from torch.nn import functional

from skyray.config import ConfigError
from skyray.families.base import DataInfo, load_recipe
from skyray.families.lensing import adaptation, metrics
from skyray.families.lensing.family import LensingFamily
from skyray.families.lensing.recipes import RECIPES

CLASSES = ("NO_SUBSTRUCTURE", "CDM", "AXION")
INFO = DataInfo(
    card="lenses_two_domains", record="cutout", classes=CLASSES, coarse={}, fingerprint="0" * 12,
    bands=("light",), image_size=32,
)  # fmt: skip
TINY = (
    "network.encoder=vision",
    "network.vision.architecture=resnet10t",
    "network.features=12",
    "network.discriminator=[16,16]",
    "serving=float32",
)
METHODS = ("adda", "dann", "coral", "self_ensembling")


def family(*overrides: str) -> LensingFamily:
    return LensingFamily(
        load_recipe("lensing/euclid_to_hst_laptop").override([*TINY, *overrides]), INFO
    )


def rows(count: int = 24, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    index = np.arange(count) % 3
    image = rng.normal(0, 0.3, (count, 1, 32, 32)).astype(np.float32)
    for row, kind in enumerate(index):
        image[row, 0, 4 + 9 * kind : 10 + 9 * kind] += 1.0
    survey = np.array(["euclid", "hst"], dtype=object)[np.arange(count) // 3 % 2]
    image[survey == "hst"] *= 3.0
    label = np.array(CLASSES, dtype=object)[index]
    scale = np.full(count, 5.12 / 32)
    return {"image": image, "survey": survey, "label": label, "pixel_scale_arcsec": scale}


def tensors(made: LensingFamily, count: int = 24, seed: int = 0):
    columns = made.transform(rows(count, seed), training=True)
    return {name: torch.as_tensor(value) for name, value in columns.items()}


def run(made: LensingFamily, epochs: int = 1, lr: float = 1e-3):
    """Train both stages as the engine would, for a few steps; return what each stage moved."""
    torch.manual_seed(0)
    model, batch = made.build_model(), tensors(made)
    moved: list[set[str]] = []
    for stage in made.stages():
        model.eval().requires_grad_(False)
        chosen = torch.as_tensor(stage.rows({k: v.numpy() for k, v in batch.items()}))
        data = {name: value[chosen] for name, value in batch.items()}
        if stage.features:
            with torch.no_grad():
                data = stage.features(model, data)
        if stage.arrange:
            data |= stage.arrange(data)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(stage.trains(name))
        if stage.prepare:
            stage.prepare(model, data)
        before = {k: v.clone() for k, v in model.state_dict().items()}
        optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr)
        for epoch in range(epochs):
            if stage.at_epoch:
                stage.at_epoch(epoch)
            model.train()
            loss, _ = stage.loss(model, data)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        after = model.state_dict()
        moved.append({k for k, v in after.items() if not torch.equal(v, before[k])})
    return model, moved


def test_labels_of_the_target_are_hidden_from_training():
    columns = rows()
    inputs = family().transform(columns, training=True)
    target = columns["survey"] == "hst"
    assert (inputs["domain"] == target).all()
    assert (inputs["label_index"][target] == -1).all()
    assert (inputs["label_index"][~target] >= 0).all()
    assert (inputs["oracle_index"] >= 0).all()
    source = family().stages()[0]
    assert source.rows(inputs).tolist() == (~target).tolist()


@pytest.mark.parametrize("method", METHODS)
def test_training_does_not_depend_on_labels_of_the_target(method):
    made = family(f"method={method}")
    model, batch = made.build_model(), tensors(made)
    model.begin_adaptation()
    stage = made.stages()[1]
    if stage.features:
        with torch.no_grad():
            batch = stage.features(model.eval(), batch)
    batch |= stage.arrange(batch)
    unknown = {**batch, "oracle_index": torch.full_like(batch["oracle_index"], -1)}
    found = []
    for data in (batch, unknown):
        torch.manual_seed(1)
        twin = copy.deepcopy(model)
        loss, _ = stage.loss(twin.train(), data)
        _, validation = stage.loss(twin.eval(), data)
        found.append((loss.item(), validation["selection"].item(), validation["oracle"].item()))
    assert found[0][:2] == found[1][:2]
    assert found[1][2] == 0  # the oracle alone looks at them


def test_images_have_unit_rms_unless_as_published():
    columns = rows()
    inputs = family().transform(columns, training=False)
    assert "label_index" not in inputs
    np.testing.assert_allclose((inputs["image"] ** 2).mean((1, 2, 3)), 1.0, rtol=1e-5)
    published = family("scaling=as_published").transform(columns, training=False)["image"]
    np.testing.assert_array_equal(published, columns["image"])
    alone = family().transform({k: v[3:4] for k, v in columns.items()}, training=False)
    np.testing.assert_array_equal(alone["image"][0], inputs["image"][3])


@pytest.mark.parametrize(
    ("method", "learns"),
    [("adda", ("adapted.encoder", "discriminator")), ("dann", ("adapted", "discriminator")),
     ("coral", ("adapted",)), ("self_ensembling", ("student", "adapted"))],
)  # fmt: skip
def test_each_method_moves_its_own_parts(method, learns):
    made = family(f"method={method}")
    _, (source, adapted) = run(made, epochs=2)
    assert all(name.startswith("source.") for name in source)
    assert all(name.startswith((*learns, "prior")) for name in adapted), adapted
    for part in learns:
        assert any(name.startswith(part) for name in adapted)


def test_adapted_network_starts_as_the_source_network():
    made = family()
    model, _ = run(made, epochs=1, lr=1e-12)
    same = model.source.classifier.state_dict()
    for name, value in model.adapted.classifier.state_dict().items():
        torch.testing.assert_close(value, same[name])


def test_adda_gradients_are_those_of_the_two_losses_apart():
    made = family()
    torch.manual_seed(0)
    model, batch = made.build_model(), tensors(made)
    model.begin_adaptation()
    with torch.no_grad():
        batch = made.stages()[1].features(model.eval(), batch)
    batch |= adaptation.domain_rows(batch)
    target = batch["domain"] == 1
    made.stages()[1].loss(model, batch)[0]  # evaluation: no graph is kept for the metrics
    loss, _, _ = adaptation.AddaLoss(made.recipe).loss(
        model, batch, batch["source_rows"], batch["target_rows"]
    )
    model.zero_grad()
    loss.backward()
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    features = model.adapted.encoder(batch["image"][target])
    seen = torch.cat([batch["source_features"][~target], features.detach()])
    domain = torch.cat([torch.zeros(int((~target).sum())), torch.ones(int(target.sum()))]).long()
    functional.cross_entropy(model.discriminator(seen), domain).backward()
    for name, parameter in model.discriminator.named_parameters():
        torch.testing.assert_close(found[f"discriminator.{name}"], parameter.grad)
    model.zero_grad()
    wanted = torch.zeros(len(features), dtype=torch.long)
    functional.cross_entropy(model.discriminator(features), wanted).backward()
    for name, parameter in model.adapted.encoder.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(found[f"adapted.encoder.{name}"], parameter.grad)
    assert not any(name.startswith(("source.", "adapted.classifier")) for name in found)


def test_published_step_moves_the_norms_twice():
    counts = {}
    for mode in ("corrected", "as_published"):
        model, _ = run(family(f"adda_step={mode}"), epochs=3)
        state = model.adapted.encoder.state_dict()
        counts[mode] = max(int(v) for k, v in state.items() if k.endswith("num_batches_tracked"))
    assert counts == {"corrected": 3 + 3, "as_published": 3 + 2 * 3}  # 3 of the source stage


def test_rates_of_encoder_and_discriminator():
    stage = LensingFamily(load_recipe("lensing/euclid_to_hst").override(TINY), INFO).stages()[1]
    lr = stage.train.optimizer.lr
    assert lr * stage.lr_factor("discriminator.layers.0.weight") == pytest.approx(1e-4)
    assert lr * stage.lr_factor("adapted.encoder.head.weight") == pytest.approx(1e-5)


def test_selection_knows_no_label_of_the_target_unless_as_published():
    assert family().stages()[1].monitor == "selection"
    assert family("selection=as_published").stages()[1].monitor == "oracle"
    assert family("selection=as_published").objective().metric == "selection"


def test_selection_rewards_sure_and_varied_predictions():
    made = family()
    model = made.build_model().eval()
    model.begin_adaptation()
    batch = tensors(made)
    batch |= adaptation.domain_rows(batch)
    source, target = batch["source_rows"], batch["target_rows"]
    loss = adaptation.AddaLoss(made.recipe)

    def score(logits: torch.Tensor) -> float:
        model.prior.copy_(logits.softmax(1).mean(0))
        model.adapted.forward = lambda image: (None, logits)
        return float(loss._choice(model, batch, source, target)["selection"])

    count = len(target)
    varied = 20.0 * functional.one_hot(torch.arange(count) % 3, 3).float()
    one = 20.0 * functional.one_hot(torch.zeros(count, dtype=torch.long), 3).float()
    share = count / len(batch["domain"])
    assert score(varied) == pytest.approx(share, abs=1e-3)
    assert score(one) == pytest.approx(0, abs=1e-3)
    assert score(torch.zeros(count, 3)) == pytest.approx(0, abs=1e-6)


def test_coral_distance():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(50, 4)), rng.normal(size=(40, 4)) * 2
    expected = ((np.cov(a.T) - np.cov(b.T)) ** 2).sum() / (4 * 16)
    found = adaptation.coral_distance(torch.as_tensor(a), torch.as_tensor(b))
    assert float(found) == pytest.approx(expected)


def test_reversed_gradient():
    x = torch.ones(3, requires_grad=True)
    (adaptation._Reversed.apply(x, 0.5) * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
    torch.testing.assert_close(x.grad, torch.tensor([-0.5, -1.0, -1.5]))


def test_both_surveys_are_brought_to_one_field():
    axis = np.arange(32) - 15.5
    image = np.exp(-0.5 * (axis[:, None] ** 2 + axis**2) / 5.0**2)[None, None]
    columns = {"image": image, "survey": np.array(["hst"]), "pixel_scale_arcsec": np.array([0.2])}
    found = family().transform(columns, training=False)["image"][0, 0]
    wide = np.exp(-0.5 * (axis[:, None] ** 2 + axis**2) / (5.0 * 0.2 / 0.16) ** 2)
    np.testing.assert_allclose(found / found.max(), wide / wide.max(), atol=0.02)
    plain = family("field_arcsec=null", "scaling=as_published").transform(columns, training=False)
    np.testing.assert_allclose(plain["image"], image.astype(np.float32))


def test_adaptation_needs_both_surveys():
    made = family("target=lsst")
    with pytest.raises(ConfigError, match="'lsst'"):
        run(made)


def test_a_batch_of_one_domain_gives_a_loss_that_moves_nothing():
    made = family("method=coral")
    model, batch = made.build_model(), tensors(made)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(made.stages()[1].trains(name))
    source = batch["domain"] == 0
    alone = {k: v[source] for k, v in batch.items()}
    loss, _ = made.stages()[1].loss(model.train(), alone | adaptation.domain_rows(alone))
    loss.backward()
    assert loss.item() == 0
    assert all((p.grad == 0).all() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("method", ["source_only", "adda"])
def test_predictions_route_by_survey(method):
    made = family(f"method={method}")
    model, _ = run(made, epochs=4)
    ready = made.optimise_for_inference(model)
    calibration, kept = made.calibrate(ready, made.transform(rows(60, seed=2), training=True))
    columns = rows(12, seed=3)
    columns["survey"][5] = ""
    scored = made.predict(ready, made.transform(columns, training=True), calibration, kept)
    answer = made.predict(ready, made.transform(columns, training=False), calibration, kept)
    assert {c.name for c in made.output_columns()} == set(answer)
    assert set(answer) < set(scored)
    source = columns["survey"] == "euclid"
    assert (answer["network"] == np.where(source, "source", "adapted")).all()
    for name in CLASSES:
        wanted = np.where(source, scored[f"before_{name}"], scored[f"after_{name}"])
        np.testing.assert_allclose(answer[f"p_{name}"], wanted, atol=1e-6)
    np.testing.assert_allclose(sum(answer[f"p_{c}"] for c in CLASSES), 1.0, atol=1e-6)
    foreign = {**columns, "image": np.random.default_rng(1).normal(size=(12, 1, 32, 32)) ** 3}
    strange = made.predict(ready, made.transform(foreign, training=False), calibration, kept)
    assert strange["domain_distance"].mean() > answer["domain_distance"].mean()


def test_evaluation_table_and_figures(tmp_path):
    rng = np.random.default_rng(0)
    count = 90
    truth = rng.integers(0, 3, count)
    label = np.array(CLASSES, dtype=object)[truth]
    table = {"label": label, "survey": np.where(np.arange(count) % 2, "hst", "euclid")}
    for prefix, noise in (("before", 2.0), ("after", 0.05), ("p", 0.05)):
        score = np.eye(3)[truth] + noise * rng.random((count, 3))
        score /= score.sum(1, keepdims=True)
        table |= {f"{prefix}_{c}": score[:, i] for i, c in enumerate(CLASSES)}
    table["label_pred"] = label
    for axis in range(2):
        table[f"before_axis_{axis}"] = rng.normal(size=count) + 3 * (table["survey"] == "hst")
        table[f"after_axis_{axis}"] = rng.normal(size=count)
    made = family()
    found = made.evaluate(table, {})
    assert found["target_after_auc"] == 1.0
    assert found["target_before_auc"] < 0.95
    assert found["domain_auc_before"] > 0.95
    assert 0.3 < found["domain_auc_after"] < 0.7
    from skyray.families.lensing import figures

    history = [{"stage": "adda", "epoch": e, "train_loss": 1.0, "validation_loss": 1.0,
                "validation_selection": 0.2, "validation_oracle": 0.3,
                "validation_target_share": 0.5} for e in range(3)]  # fmt: skip
    kept = {k: v for k, v in table.items() if "axis" not in k} | {"history": history}
    surveys = {"source": "euclid", "target": "hst"}
    paths = figures.write_figures(kept, found, tmp_path, CLASSES, surveys)
    assert {p.stem for p in paths} == {
        "roc", "reliability", "confusion_source", "confusion_target", "training_losses", "selection"
    }  # fmt: skip


def test_auc_is_sklearns():
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(1)
    truth = rng.integers(0, 3, 80)
    score = rng.random((80, 3)).round(1)
    score /= score.sum(1, keepdims=True)
    expected = roc_auc_score(truth, score, multi_class="ovr", average="macro")
    assert metrics.macro_auc(score, truth) == pytest.approx(expected)


def test_macro_roc_integrates_to_the_macro_auc():
    from skyray.families.lensing.figures import _LEVELS, macro_roc

    rng = np.random.default_rng(2)
    truth = rng.integers(0, 3, 300)
    score = np.eye(3)[truth] + 1.5 * rng.random((300, 3))
    area = np.trapezoid(macro_roc(score, truth), _LEVELS)
    assert area == pytest.approx(metrics.macro_auc(score, truth), abs=0.01)


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_every_recipe_is_valid(name):
    recipe = load_recipe(f"lensing/{name}")
    assert recipe.name == name
    assert type(recipe).load(recipe.snapshot()) == recipe


def test_refuses_one_survey_twice():
    with pytest.raises(ConfigError, match="two surveys"):
        load_recipe("lensing/euclid_to_hst").override(["target=euclid"])


def test_equivariant_network_through_both_stages():
    made = family("network.encoder=equivariant", "network.equivariant.fields=[2,2,2,3,3,2]")
    model, (source, adapted) = run(made, epochs=2)
    assert all(name.startswith("source.") for name in source)
    assert any(name.startswith("adapted.encoder") for name in adapted)
    other = made.build_model()
    other.load_state_dict(model.eval().state_dict())
    image = torch.as_tensor(made.transform(rows(6), training=False)["image"])
    with torch.no_grad():
        exported = made.optimise_for_inference(other)
        torch.testing.assert_close(
            exported.adapted(image)[1], model.adapted(image)[1], atol=1e-4, rtol=1e-4
        )


@pytest.mark.parametrize("method", METHODS)
def test_no_step_of_adaptation_waits_for_the_device(method):
    """Traced without numbers, where nothing can be counted: an answer for the host would fail."""
    made = family(f"method={method}")
    model, batch = made.build_model(), tensors(made)
    model.begin_adaptation()
    stage = made.stages()[1]
    if stage.features:
        with torch.no_grad():
            batch = stage.features(model.eval(), batch)
    batch |= stage.arrange(batch)
    meta = {name: values.to("meta") for name, values in batch.items()}
    for training in (True, False):
        loss, metrics = stage.loss(model.to("meta").train(training), meta)
        assert loss.is_meta
        assert all(value.is_meta for value in metrics.values())
