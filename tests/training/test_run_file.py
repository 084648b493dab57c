"""A run goes on as what it was begun as, or is refused by the name of what differs."""

from __future__ import annotations

import pytest

from skyray.config import ConfigError
from skyray.families.base import load_recipe
from skyray.runtime import places
from skyray.training.run_file import RUN_FILE, check_data, folder_of_run, run_to_resume

RECIPE = load_recipe("redshift/sdss_coarse_laptop")


@pytest.fixture
def begun(tmp_path, monkeypatch) -> dict:
    """What is kept of a run with the id "old"."""
    monkeypatch.setenv("SKYRAY_HOME", str(tmp_path))
    about = {"run_id": "old", "recipe": RECIPE.snapshot(), "fingerprint": "f" * 64}
    places.write_json(places.join(folder_of_run("old"), RUN_FILE), about)
    return about


def test_a_run_of_the_same_recipe_is_found(begun):
    assert run_to_resume("old", RECIPE) == folder_of_run("old")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("seed=3", "seed: begun with 0, found 3"),
        ("train.epochs=71", f"train.epochs: begun with {RECIPE.train.epochs}, found 71"),
        ("network.widths=[4,8]", r"network.widths: begun with \[.*\], found \[4, 8\]"),
        ("train.clip_norm=null", "train.clip_norm: begun with .*, found None"),
    ],
)
def test_changed_settings_are_refused_by_name_with_both_values(begun, change, named):
    with pytest.raises(ConfigError, match=f"resume old: .*recipe: {named}"):
        run_to_resume("old", RECIPE.override([change]))
    with pytest.raises(ConfigError, match=r"name: begun.*; seed: begun with 0, found 9"):
        run_to_resume("old", RECIPE.override(["seed=9", "name=other"]))


def test_a_setting_that_one_recipe_lacks_is_a_difference(begun):
    del begun["recipe"]["train"]["batch_size"]
    begun["recipe"]["gone"] = 1
    places.write_json(places.join(folder_of_run("old"), RUN_FILE), begun)
    with pytest.raises(ConfigError) as refused:
        run_to_resume("old", RECIPE)
    assert "gone: begun with 1, found 'nothing'; " in str(refused.value)
    size = RECIPE.train.batch_size
    assert f"train.batch_size: begun with 'nothing', found {size}" in str(refused.value)


@pytest.mark.parametrize("run_id", ["new", "", ".", "..", "../runs/old", "old/"])
def test_what_is_no_run_is_refused(begun, run_id):
    with pytest.raises(ConfigError, match=f"resume: expected the id .*, found '{run_id}'"):
        run_to_resume(run_id, RECIPE)


def test_other_data_are_refused(begun):
    check_data("x", begun, "f" * 64)
    with pytest.raises(ConfigError, match="expected fingerprint ffffffffffff, found 000000000000"):
        check_data("x", begun, "0" * 64)
