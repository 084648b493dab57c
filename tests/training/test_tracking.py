"""An MLflow server that dies costs a training nothing, and gets everything in the end."""

from __future__ import annotations

import json

import pytest

from skyray.bundles.bundle import read_bundle
from skyray.cli import main
from skyray.runtime import outbox, places, tracking
from skyray.training.lone import train_alone

pytestmark = pytest.mark.slow

EPOCHS = 6


@pytest.fixture
def server(mlflow_server, ray_cluster, tmp_path, monkeypatch):
    """The server, stopped, as the one that is to be told; the home is of this test."""
    prepared = places.home()
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "prepared").symlink_to(f"{prepared}/prepared")
    monkeypatch.setenv("SKYRAY_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server.uri)
    return mlflow_server


def steps(run_id: str, metric: str) -> list[int]:
    client = tracking.client(tracking.tracking_uri())
    return [found.step for found in client.get_metric_history(outbox.mlflow_id(run_id), metric)]


def test_all_metrics_are_there_after_the_server_was_away(
    server, mock_dataset, tiny_recipe, tmp_path
):
    """It is killed after epoch 2 and back after epoch 4."""
    recipe = tiny_recipe.override([f"train.epochs={EPOCHS}", "redshift_classes=[]"])
    told = {}

    def fate(row) -> None:
        if row["epoch"] == 2:
            server.kill()
        if row["epoch"] == 4:
            (told["run"],) = outbox.runs_waiting()
            server.start()

    server.start()
    found = train_alone(recipe, mock_dataset, str(tmp_path / "run"), on_epoch=fate)
    assert told["run"] == found.run_id
    assert not outbox.runs_waiting()
    for metric in ("classifier/train_loss", "classifier/validation_accuracy"):
        assert steps(found.run_id, metric) == list(range(EPOCHS))
    run = tracking.client(server.uri).get_run(found.run_id)
    assert run.info.status == "FINISHED"
    values = [row["train_loss"] for row in found.history]
    assert run.data.metrics["classifier/train_loss"] == values[-1]
    server.kill()


def test_a_server_dead_all_the_time_is_told_by_sync(server, mock_dataset, tiny_recipe, tmp_path):
    server.kill()
    recipe = tiny_recipe.override(["redshift_classes=[]"])
    parent = tracking.start_run("redshift", "parent", {}, {})
    out = str(tmp_path / "bundle")
    found = train_alone(recipe, mock_dataset, str(tmp_path / "run"), out=out, parent=parent)
    tracking.finish_run(parent, failed=False)
    assert read_bundle(out)["run_id"] == found.run_id
    assert outbox.runs_waiting() == sorted([parent, found.run_id])
    with pytest.raises(SystemExit) as ended:
        main(["sync"])
    assert ended.value.code == 1
    assert outbox.runs_waiting() == sorted([parent, found.run_id])

    server.start()
    with pytest.raises(SystemExit) as ended:
        main(["sync", "--json", str(tmp_path / "told.json")])
    assert ended.value.code == 0
    told = json.loads((tmp_path / "told.json").read_text())
    assert told["runs"] == 2
    assert told["waiting"] == told["refused"] == 0
    assert not outbox.runs_waiting()
    client = tracking.client(server.uri)
    run = client.get_run(outbox.mlflow_id(found.run_id))
    assert run.info.status == "FINISHED"
    assert run.data.tags["mlflow.parentRunId"] == outbox.mlflow_id(parent)
    assert run.data.params["seed"] == "0"
    assert steps(found.run_id, "classifier/train_loss") == [0, 1]
    assert len(run.inputs.dataset_inputs) == 1
    assert not client.search_registered_models()  # one of many is no candidate

    # The same again changes nothing: an answer that was lost makes no second run.
    again = places.join(outbox.folder(found.run_id), "mlflow.json")
    places.remove(again)
    tags = {"skyray.run_id": found.run_id, "mlflow.parentRunId": parent}
    about = {"experiment": "redshift", "name": "again", "tags": tags, "time": 0}
    outbox.post(server.uri, found.run_id, outbox.OPEN, about)
    assert outbox.send(found.run_id).sent == 1
    assert outbox.mlflow_id(found.run_id) == run.info.run_id


def test_what_the_server_refuses_is_set_aside_and_the_rest_is_sent(server):
    server.start() if not outbox.answers(server.uri) else None
    run_id = tracking.start_run("redshift", "refused", {"a": 1}, {})
    outbox.post(server.uri, run_id, "params", {"values": {"a": "2"}, "config": {}})
    tracking.log_files(run_id, places.home(), ["is-not-there"], "evaluation")
    outbox.post(server.uri, run_id, "metrics", {"values": {"x": 1.0}, "step": 0, "time": 1})
    found = outbox.send(run_id)
    assert found.refused == 2
    assert found.waiting == 0
    aside = [places.read_json(file.uri) for file in places.walk(
        places.join(outbox.folder(run_id), "refused"))]  # fmt: skip
    assert {message["kind"] for message in aside} == {"params", "files"}
    assert steps(run_id, "x") == [0]
