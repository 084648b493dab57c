"""An MLflow server that dies costs a training nothing, and gets everything in the end."""

from __future__ import annotations

import json

import pytest
import torch
from tests.training.test_loop import LineFamily, line_table, recipe

from skyray.cli import main
from skyray.families.base import DataInfo
from skyray.runtime import outbox, places, tracking
from skyray.training import loop
from skyray.training.graph import StageGraph
from skyray.training.worker import LoneWorker

pytestmark = pytest.mark.slow

EPOCHS = 3  # of each of two stages
DATA = {"name": "c", "digest": "f" * 36, "source": "/d", "profile": {"version": 1}}


@pytest.fixture
def server(mlflow_server, tmp_path, monkeypatch):
    """The server that is to be told, up or not; the home is of this test."""
    monkeypatch.setenv("SKYRAY_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NOTES", str(tmp_path / "notes"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_server.uri)
    return mlflow_server


def steps(run_id: str, metric: str) -> list[int]:
    client = tracking.client(tracking.tracking_uri())
    return [found.step for found in client.get_metric_history(outbox.mlflow_id(run_id), metric)]


def trained(folder, parent: str | None = None, on_epoch=None) -> tuple[str, list[dict]]:
    """Train two small stages; return the run and its history."""
    chosen = recipe()
    tags = {tracking.PARENT: parent} if parent else {}
    run_id = tracking.start_run("line", "line", chosen.snapshot(), tags, DATA)
    worker = LoneWorker(
        rank=0, world_size=1, device=torch.device("cpu"), seed=0, run_uri=str(folder / "run"),
        run_id=run_id, tracking_uri=tracking.tracking_uri(), on_epoch=on_epoch,
    )  # fmt: skip
    family = LineFamily(chosen, DataInfo("c", "spectrum", (), {}, "f"))
    graph = StageGraph(family.stages())
    loop.run_stages(worker, family, line_table(folder / "home"), graph)
    history, _ = worker.files.history(graph.names)
    tracking.finish_run(run_id, failed=False)
    return run_id, history


def test_all_metrics_are_there_after_the_server_was_away(server, tmp_path):
    """It is killed after the second epoch and back after the fourth."""
    seen = []

    def fate(row) -> None:
        seen.append(row)
        if len(seen) == 2:
            server.kill()
        if len(seen) == 4:
            assert len(outbox.runs_waiting()) == 1
            server.start()

    if not outbox.answers(server.uri):
        server.start()
    run_id, history = trained(tmp_path, on_epoch=fate)
    assert len(history) == 2 * EPOCHS
    assert not outbox.runs_waiting()
    for metric in ("whole/train_loss", "head/validation_mae"):
        assert steps(run_id, metric) == list(range(EPOCHS))
    run = tracking.client(server.uri).get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["head/train_loss"] == history[-1]["train_loss"]
    assert not [name for name in run.data.metrics if name.endswith(("_seconds", "_rows"))]


def test_a_server_dead_all_the_time_is_told_by_sync(server, tmp_path):
    server.kill()
    parent = tracking.start_run("line", "parent", {}, {})
    run_id, _ = trained(tmp_path, parent)
    tracking.finish_run(parent, failed=False)
    assert outbox.runs_waiting() == sorted([parent, run_id])
    with pytest.raises(SystemExit) as ended:
        main(["sync"])
    assert ended.value.code == 1
    assert outbox.runs_waiting() == sorted([parent, run_id])

    server.start()
    with pytest.raises(SystemExit) as ended:
        main(["sync", "--json", str(tmp_path / "told.json")])
    assert ended.value.code == 0
    told = json.loads((tmp_path / "told.json").read_text())
    assert (told["runs"], told["waiting"], told["refused"]) == (2, 0, 0)
    assert not outbox.runs_waiting()
    client = tracking.client(server.uri)
    run = client.get_run(outbox.mlflow_id(run_id))
    assert run.info.status == "FINISHED"
    assert run.data.tags[tracking.PARENT] == outbox.mlflow_id(parent)
    assert run.data.params["width"] == "5"
    assert steps(run_id, "whole/train_loss") == list(range(EPOCHS))
    (given,) = run.inputs.dataset_inputs
    assert given.dataset.digest == DATA["digest"]

    # An answer that was lost makes no second run.
    places.remove(places.join(outbox.folder(run_id), "mlflow.json"))
    tags = {"skyray.run_id": run_id}
    about = {"experiment": "line", "name": "again", "tags": tags, "time": 0}
    outbox.post(server.uri, run_id, outbox.OPEN, about)
    assert outbox.send(run_id).sent == 1
    assert outbox.mlflow_id(run_id) == run.info.run_id


def test_what_the_server_refuses_is_set_aside_and_the_rest_is_sent(server):
    if not outbox.answers(server.uri):
        server.start()
    run_id = tracking.start_run("line", "refused", {"a": 1}, {})
    outbox.post(server.uri, run_id, "params", {"values": {"a": "2"}, "config": {}})
    tracking.log_files(run_id, places.home(), ["is-not-there"], "evaluation")
    outbox.post(server.uri, run_id, "metrics", {"values": {"x": 1.0}, "step": 0, "time": 1})
    found = outbox.send(run_id)
    assert found.refused == 2
    assert found.waiting == 0
    kept = places.join(outbox.folder(run_id), "refused")
    aside = [places.read_json(file.uri) for file in places.walk(kept)]
    assert {message["kind"] for message in aside} == {"params", "files"}
    assert steps(run_id, "x") == [0]
