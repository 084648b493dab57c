"""Recursive training end to end on tiny mock surveys: what is added, judged, kept and repeated."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from skyray.config import ConfigError
from skyray.data.dataset import Dataset
from skyray.families.base import load_recipe
from skyray.inference.results import Results
from skyray.runtime import places
from skyray.workflows import recursion
from skyray.workflows.des_galaxies import mock_cards
from skyray.workflows.pseudo_labels import (
    join_pseudo_labels,
    predict_unlabelled,
    surest,
    surest_rows,
)
from skyray.workflows.recursion import (
    Recursion,
    Resources,
    Round,
    Settings,
    before_and_after,
    recurse,
    recurse_seeds,
)

SIZE = 32
TINY = (
    "network.architecture=resnet10t", "network.weights=''", "network.input_size=null",
    "train_norms=true", "train_head=null", "train_middle=null", "train.epochs=2",
    "train.batch_size=16",
)  # fmt: skip
SETTINGS = Settings(per_class=6, unlabelled_split="train", tolerance=1.0)


@pytest.fixture(scope="module")
def surveys(ray_cluster, tmp_path_factory) -> dict[str, str]:
    from skyray.data.simulate import simulate

    folder = tmp_path_factory.mktemp("galaxies")
    cards = mock_cards(SIZE)
    for name, seed in (("sdss", 1), ("des_overlap", 2)):
        simulate(cards[name], 100, seed, str(folder / name), progress=False)
    return {name: str(folder / name) for name in ("sdss", "des_overlap")}


@pytest.fixture(scope="module")
def recipe():
    return load_recipe("morphology/mock_sdss_laptop").override(TINY)


@pytest.fixture(scope="module")
def done(surveys, recipe, tmp_path_factory) -> tuple[str, Recursion]:
    out = str(tmp_path_factory.mktemp("recursion"))
    found = recurse_seeds(
        recipe, surveys["sdss"], surveys["des_overlap"], out, seeds=[3],
        tests={"DES": surveys["des_overlap"]}, settings=SETTINGS,
    )  # fmt: skip
    return out, found[0]


def test_surest_takes_the_most_probable_of_each_class():
    names = np.array(["a", "b", "a", "a", "b"])
    probability = np.array([0.9, 0.6, 0.99, 0.9, 0.7])
    assert surest(names, probability, ["a", "b"], 2).tolist() == [0, 1, 2, 4]
    assert surest(names, probability, ["a", "b", "c"], 1).tolist() == [2, 4]


def test_joined_dataset_adds_training_rows_only(done, surveys):
    out, found = done
    base, joined = Dataset.open(surveys["sdss"]), Dataset.open(f"{out}/seed-3/round-1/dataset")
    added = sum(found.rounds[1].added.values())
    assert 6 <= added <= 12
    assert joined.count("train") == base.count("train") + added
    for split in ("validation", "test"):
        assert joined.count(split) == base.count(split)
    assert joined.manifest.fingerprint != base.manifest.fingerprint
    names = ["object_id", "label", "survey", "extra", "image"]
    rows = joined.to_table(names, "train").to_pandas()
    pseudo = rows[rows.object_id.str.startswith("pseudo/")]
    assert len(pseudo) == added
    assert set(pseudo.survey) == {"des"}
    assert all(json.loads(text)["pseudo_label"] for text in pseudo.extra)
    counts = pseudo.label.value_counts().to_dict()
    assert counts == {k: v for k, v in found.rounds[1].added.items() if v}
    unlabelled = Dataset.open(surveys["des_overlap"])
    known = set(unlabelled.to_table(["object_id"], "train")["object_id"].to_pylist())
    assert set(pseudo.object_id.str.removeprefix("pseudo/")) <= known


def test_both_rounds_are_scored_and_written(done):
    out, found = done
    assert [r.number for r in found.rounds] == [0, 1]
    assert found.kept == 1
    assert found.stopped == "all rounds done"
    for made in found.rounds:
        assert 0 <= made.scores["DES"]["accuracy"] <= 1
        assert 0 <= made.held_out <= 1
    assert 0 <= found.rounds[1].purity <= 1
    page = (Path(out) / "index.html").read_text()
    assert "Before and after" in page


def test_finished_steps_are_not_repeated(done, surveys, recipe, monkeypatch):
    out, found = done
    for name in ("train_alone", "train", "evaluate", "join_pseudo_labels"):
        monkeypatch.setattr(recursion, name, lambda *a, **k: pytest.fail("done again"))
    again = recurse(
        recipe.override(["seed=3"]), surveys["sdss"], surveys["des_overlap"], f"{out}/seed-3",
        tests={"DES": surveys["des_overlap"]}, settings=SETTINGS,
    )  # fmt: skip
    assert again == found


def test_guard_keeps_the_round_before_a_fall(monkeypatch, recipe, surveys, tmp_path):
    held_out = iter([0.9, 0.91, 0.8])
    monkeypatch.setattr(
        recursion, "_train_and_score", lambda *a: (next(held_out), {"DES": {"accuracy": 0.5}})
    )
    monkeypatch.setattr(recursion, "_label", lambda *a: ({"spiral": 1}, None))
    found = recurse(
        recipe, surveys["sdss"], surveys["des_overlap"], str(tmp_path),
        tests={}, settings=Settings(rounds=3, tolerance=0.02),
    )  # fmt: skip
    assert len(found.rounds) == 3  # the fourth training never happens
    assert found.kept == 1
    assert found.bundle.endswith("round-1/bundle")
    assert "round 2: held-out accuracy fell by 0.1100; round 1 kept" in found.stopped


def test_published_pseudo_labels_are_of_augmented_images(done, surveys, tmp_path):
    data = Dataset.open(surveys["des_overlap"])
    bundle, published = done[1].rounds[0].bundle, str(tmp_path / "published")
    shutil.copytree(bundle, published)
    content = places.read_json(f"{published}/bundle.json")
    content["recipe"]["pseudo_labels"] = "as_published"
    places.write_json(f"{published}/bundle.json", content)
    plain, first, second = (
        predict_unlabelled(uri, data, "test", str(tmp_path / out), workers=1, use_gpu=False)
        .columns(["object_id", "p_spiral"])
        for uri, out in ((bundle, "plain"), (published, "first"), (published, "second"))
    )  # fmt: skip
    assert first["object_id"].tolist() == plain["object_id"].tolist()
    np.testing.assert_array_equal(first["p_spiral"], second["p_spiral"])
    assert np.abs(first["p_spiral"] - plain["p_spiral"]).max() > 1e-3


def test_surest_rows_piece_by_piece_are_those_of_the_whole_table(tmp_path):
    random = np.random.default_rng(4)
    names = random.choice(["a", "b", "c"], 103)
    probability = random.integers(0, 20, 103) / 20  # with ties
    results = Results.claim(str(tmp_path), {}, 103, 8)
    for number in range(results.count):
        at = slice(number * 8, number * 8 + 8)
        results.write(number, {"label_pred": names[at], "probability": probability[at]})
    found = surest_rows(results, ["a", "b", "missing"], 7)
    assert found.tolist() == surest(names, probability, ["a", "b", "missing"], 7).tolist()


def test_objects_that_judge_are_refused(surveys, tmp_path):
    base = Dataset.open(surveys["sdss"])
    row = base.to_table(["observation_id"], "test")["observation_id"].to_pylist()[0]
    with pytest.raises(ConfigError, match="are in validation or test of the labelled ones"):
        join_pseudo_labels(base, base, {row: "spiral"}, str(tmp_path / "joined"))


def test_table_of_before_and_after():
    def one(seed: int, *accuracies: float, kept: int) -> Recursion:
        rounds = tuple(
            Round(n, "b", 0.9, {"DES": {"accuracy": a}}) for n, a in enumerate(accuracies)
        )
        return Recursion(seed, rounds, kept, "")

    (row,) = before_and_after([one(0, 0.90, 0.94, kept=1), one(1, 0.92, 0.80, kept=0)])
    assert row["before"] == pytest.approx(0.91)
    assert row["after"] == pytest.approx(0.93)
    assert row["seeds that gained"] == "1 of 2"


def test_settings_are_checked(recipe, tmp_path):
    with pytest.raises(ConfigError, match="expected per_class and rounds ≥ 1"):
        Settings(rounds=0)
    with pytest.raises(ConfigError, match="expected a recipe of 'morphology'"):
        recurse(
            load_recipe("redshift/sdss_coarse_laptop"), "a", "b", str(tmp_path),
            tests={}, resources=Resources(),
        )  # fmt: skip
