"""Who becomes champion: conditions on scores of the same rows."""

from __future__ import annotations

import json

import pytest

from skyray.bundles import registry
from skyray.bundles.bundle import NotABundle, Predictor, add_metrics, bundle_digest, read_bundle
from skyray.bundles.named import NoSuchModel, RegistryAway, located
from skyray.config import ConfigError
from skyray.inference import promote as module
from skyray.inference.promote import Condition, promote
from skyray.runtime import places, tracking


@pytest.mark.parametrize(
    ("text", "score", "champion", "holds"),
    [
        ("accuracy>0.9", 0.91, None, True),
        ("accuracy > 0.9", 0.9, None, False),
        ("accuracy>=0.9", 0.9, None, True),
        ("accuracy<1e-3", 0.9, 0.0, False),
        ("accuracy>champion", 0.9, 0.8, True),
        ("accuracy>champion", 0.9, 0.9, False),
        ("accuracy<=champion", 0.9, 0.9, True),
        ("accuracy>champion", 0.0, None, True),  # there is none to beat
        ("accuracy>0.9", float("nan"), None, False),
    ],
)
def test_condition(text, score, champion, holds):
    rival = None if champion is None else {"accuracy": champion}
    assert Condition.parse(text).holds({"accuracy": score}, rival) is holds


@pytest.mark.parametrize("text", ["", "accuracy", "accuracy>", "accuracy=1", "accuracy>best", ">1"])
def test_what_is_no_condition_is_refused(text):
    with pytest.raises(ConfigError, match="expected SCORE>NUMBER"):
        Condition.parse(text)


@pytest.mark.parametrize(
    "name", ["models:/a", "models:/a@", "models:/a/b", "models:/a@b/1", "models://a/1"]
)
def test_a_name_that_is_none_is_refused(name):
    with pytest.raises(NoSuchModel, match="models:/NAME@ALIAS"):
        located(name)


def test_what_is_no_name_is_a_place():
    assert located("s3://bucket/models/a") == "s3://bucket/models/a"


@pytest.mark.parametrize("uri", ["http://127.0.0.1:9", "unknown://registry"])
def test_a_registry_that_is_away_is_not_one_without_the_model(uri, tmp_path, monkeypatch):
    """Else the first who is scored while it is away would be champion."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("SKYRAY_HOME", str(tmp_path))
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(RegistryAway, match="cannot be asked"):
        located("models:/skyray-a-b@champion")


@pytest.fixture(scope="module")
def candidate(tiny_bundle) -> str:
    """The bundle as it was registered: other tests add scores to it."""
    content = read_bundle(tiny_bundle)
    uri = tracking.tracking_uri()
    version = registry.version_of(uri, content, content["run_id"])
    return f"models:/{registry.model_name(content)}/{version}"


@pytest.mark.slow
def test_a_registered_name_is_the_bundle_wherever_one_is_asked_for(candidate, tiny_bundle):
    content = read_bundle(candidate)
    assert bundle_digest(content) == bundle_digest(read_bundle(tiny_bundle))
    place = located(candidate)
    assert place.startswith(places.absolute(places.home()))
    add_metrics(place, "mine", {"kept": 1.0})  # fetched once, not again
    assert read_bundle(candidate)["metrics"]["mine"] == {"kept": 1.0}
    assert Predictor.from_bundle(candidate, "cpu").version == content["version"]
    name = candidate.rpartition("/")[0]
    with pytest.raises(NoSuchModel, match="not in the registry"):
        located(f"{name}@nobody")
    with pytest.raises(NoSuchModel, match="not in the registry"):
        located(f"{name}/999")
    with pytest.raises(NotABundle):
        read_bundle("models-that-are-none")


@pytest.mark.slow
def test_champion_moves_when_all_conditions_hold(
    candidate, tiny_bundle, mock_dataset, tmp_path, monkeypatch
):
    name = candidate.rpartition("/")[0]
    scores = {"accuracy": 0.8, "outlier_share": 0.1}
    with pytest.raises(ConfigError, match="at least one condition"):
        promote(tiny_bundle, mock_dataset, str(tmp_path), [], scores=scores)
    with pytest.raises(ConfigError, match=r"expected a score of \['accuracy', 'outlier_share'\]"):
        promote(tiny_bundle, mock_dataset, str(tmp_path), ["acuracy>0"], scores=scores)

    asked = ["accuracy>champion", "outlier_share<0.05"]
    no = promote(tiny_bundle, mock_dataset, str(tmp_path), asked, scores=scores)
    assert (no.promoted, no.unmet, no.champion) == (False, ["outlier_share<0.05"], None)
    with pytest.raises(NoSuchModel):
        located(f"{name}@champion")

    yes = promote(candidate, mock_dataset, str(tmp_path), ["accuracy>champion"], scores=scores)
    assert yes.promoted
    assert read_bundle(f"{name}@champion")["version"] == read_bundle(tiny_bundle)["version"]
    client = tracking.client(tracking.tracking_uri())
    told = client.get_model_version(yes.model, yes.version).tags
    assert told["skyray.promoted_if"] == "accuracy>champion"
    assert json.loads(told["skyray.promoted"])["scores"] == {"accuracy": 0.8}

    # A rival is scored on the same rows; this one is the same network, so it is no better.
    monkeypatch.setattr(module, "_champion", lambda name, content: tiny_bundle)
    again = promote(tiny_bundle, mock_dataset, str(tmp_path), ["accuracy>champion"])
    assert not again.promoted
    assert again.scores == again.champion
    assert (tmp_path / "candidate" / "metrics.json").exists()
    assert (tmp_path / "champion" / "metrics.json").exists()
