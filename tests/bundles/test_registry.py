"""Which bundle a message or a name means: never another that lies in its place by now."""

from __future__ import annotations

import pytest
from serve.app import app

from skyray.bundles import registry
from skyray.bundles.bundle import (
    BUNDLE_FILE,
    BUNDLE_VERSION,
    CARD_FILE,
    NotABundle,
    read_bundle,
    write_bundle,
)
from skyray.bundles.named import NoSuchModel, RegistryAway, located, pinned
from skyray.runtime import outbox, places, tracking


def write(place: str, run_id: str) -> str:
    """Write what is read of a bundle to tell it from others."""
    content = {"bundle_version": BUNDLE_VERSION, "run_id": run_id, "family": "f"}
    content["data"] = {"record": "spectrum"}
    places.write_bytes(places.join(place, CARD_FILE), f"# of {run_id}".encode())
    places.write_json(places.join(place, BUNDLE_FILE), content | {"recipe": {"name": "r"}})
    return place


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("SKYRAY_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/a.db")
    return tmp_path


@pytest.mark.parametrize("post", [registry.register, registry.describe])
@pytest.mark.parametrize("opened", [True, False])
def test_a_bundle_of_another_run_is_not_registered(home, post, opened):
    """The folder was trained into again before the message was sent."""
    bundle = write(str(home / "bundle"), "first")
    outbox.given("first", "mlflow-1")
    post(bundle, "first")
    write(bundle, "second")
    if not opened:  # the second run began without a server
        outbox.post(tracking.tracking_uri(), "second", outbox.OPEN, {})
    found = outbox.send("first")
    assert (found.sent, found.waiting, found.refused) == (0, 0, 1)
    assert f"{bundle}: expected the bundle of run mlflow-1, found run second's" in found.refusals[0]


@pytest.mark.parametrize("post", [registry.register, registry.describe])
def test_a_bundle_that_is_gone_is_waited_for_no_longer(home, post):
    bundle = write(str(home / "bundle"), "first")
    post(bundle, "first")
    places.remove(bundle)
    found = outbox.send("first")
    assert (found.waiting, found.refused) == (0, 1)
    assert f"{bundle}: not a bundle" in found.refusals[0]


def made(name: str, bundle: str) -> str:
    """Register a bundle's folder as the next version of a model; return the version."""
    client = tracking.client(tracking.tracking_uri())
    client.create_registered_model(name)
    version = client.create_model_version(name, source=bundle).version
    client.set_registered_model_alias(name, "champion", version)
    return version


@pytest.mark.slow
def test_a_name_means_what_its_registry_says(home, monkeypatch):
    """Names and numbers are alike in two registries, and in one that was set up anew."""
    runs = {}
    for store in ("a", "b"):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{home}/{store}.db")
        assert str(made("m", write(str(home / store), store))) == "1"
        for name in ("models:/m/1", "models:/m@champion"):
            runs[store, name] = read_bundle(name)["run_id"]
    assert all(run == store for (store, _), run in runs.items())
    assert pinned("models:/m@champion") == "models:/m/1"
    assert pinned("models:/m/1") == "models:/m/1"
    assert pinned("folder") == "folder"

    service = app({"bundle": "models:/m@champion"})  # its replicas look up no alias
    _, settings, _, _ = service._bound_deployment.init_args
    assert settings.bundle == "models:/m/1"

    with pytest.raises(ValueError, match=f"run b: expected it in MLflow at sqlite:///{home}/b.db"):
        registry.run_of(read_bundle("models:/m/1"))

    place = located("models:/m/1")
    tracking.client(tracking.tracking_uri()).delete_registered_model("m")
    with pytest.raises(NoSuchModel, match="not in the registry"):
        located("models:/m/1")
    made("m", write(str(home / "again"), "again"))
    assert read_bundle("models:/m/1")["run_id"] == "again"
    assert read_bundle(place)["run_id"] == "b"  # who has it goes on with it

    # What was fetched is there without its registry, but an alias may have moved.
    monkeypatch.setattr(outbox, "answers", lambda uri: False)
    assert read_bundle("models:/m/1")["run_id"] == "again"
    for name in ("models:/m@champion", "models:/m/2", "models:/n/1"):
        with pytest.raises(RegistryAway, match="cannot be asked"):
            located(name)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{home}/c.db")
    with pytest.raises(RegistryAway):
        located("models:/m/1")


class Interrupted:
    """A model on whose weights the writing of a bundle ends."""

    def state_dict(self):
        raise KeyboardInterrupt


def test_a_bundle_that_is_written_again_is_none_until_it_is_whole(tmp_path):
    place = write(str(tmp_path / "bundle"), "first")
    with pytest.raises(KeyboardInterrupt):
        write_bundle(place, None, Interrupted(), {}, {}, {})
    with pytest.raises(NotABundle):
        read_bundle(place)
