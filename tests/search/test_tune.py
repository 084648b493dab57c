"""Sweeps, ensembles and grids on real Ray Tune, Optuna and MLflow."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import ray
from ray.core.generated.common_pb2 import ActorDiedErrorContext
from ray.exceptions import ActorDiedError, NodeDiedError, WorkerCrashedError
from ray.tune.experiment import Trial
from tests.object_store import object_store

from skyray.config import ConfigError
from skyray.data.prepared_space import prepared_tables
from skyray.families.base import Choice, Range, load_recipe
from skyray.runtime import outbox, places, tracking
from skyray.runtime.session import cores_for
from skyray.search.cells import Cell, _lasting, _tell_rest
from skyray.search.ensemble import Spread, ensemble, spreads
from skyray.search.grid import run_grid, summarise
from skyray.search.tune import _Watch, assignments, to_ray, tune_recipe
from skyray.training.lone import train_alone

ROOT = Path(__file__).resolve().parents[2]
FAST = ("redshift_classes=[]", "train.epochs=2")


def test_search_space_becomes_ray_tunes_words():
    space = {
        "a": Choice((1, 2)),
        "b": Range(1e-4, 1e-2, log=True),
        "c": Range(0.0, 1.0),
        "d": Range(2, 8, step=2),
    }
    words = to_ray(space)
    assert words["a"].sample() in (1, 2)
    drawn = np.array([words["b"].sample() for _ in range(400)])
    assert drawn.min() >= 1e-4
    assert drawn.max() <= 1e-2
    assert 7e-4 < np.median(drawn) < 1.5e-3  # uniform in the logarithm
    assert 0 <= words["c"].sample() <= 1
    assert words["d"].sample() % 2 == 0


def test_every_search_space_names_keys_of_its_recipes():
    for name in ("redshift/sdss_dr16", "outliers/desi_bgs"):
        from skyray.families.base import load_family

        recipe = load_recipe(name)
        space = load_family(recipe.family).search_space(recipe)
        assert space
        settings = {key: domain.sample() for key, domain in to_ray(space).items()}
        changed = recipe.override(assignments(settings))
        assert changed.digest() != recipe.digest()


def test_spread_is_median_and_sample_deviation():
    spread = Spread.of([1.0, 2.0, 6.0])
    assert spread.median == 2.0
    assert spread.std == pytest.approx(np.std([1, 2, 6], ddof=1))
    found = spreads([{"a": 1.0, "b": "x", "c": True}, {"a": 3.0, "d": 2}])
    assert list(found) == ["a"]


def test_summary_of_a_grid():
    table = pd.DataFrame(
        {"recipe": ["r"] * 4, "fraction": [0.1, 0.1, 1.0, 1.0], "auc": [0.6, 0.8, 0.9, 0.9]}
    )
    found = summarise(table, ["recipe", "fraction"], "auc")
    assert found["median"].tolist() == pytest.approx([0.7, 0.9])
    assert found["std"].tolist() == pytest.approx([np.std([0.6, 0.8], ddof=1), 0.0])


@pytest.mark.slow
def test_killed_sweep_goes_on_and_counts_every_trial_once(
    mock_dataset, tiny_recipe, tmp_path_factory, capsys
):
    """A process of its own is killed after some trials; the same call then finishes the sweep."""
    folder = tmp_path_factory.mktemp("sweep")
    out, trials = folder / "sweep", 14
    recipe = tiny_recipe.override(FAST)
    with (folder / "log").open("w") as log:
        process = _sweep(recipe, mock_dataset, str(out), trials, log)
        deadline = time.monotonic() + 240
        while _finished(out) < 3 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        done = _finished(out)
        assert process.poll() is None, (folder / "log").read_text()[-3000:]
        os.killpg(process.pid, signal.SIGKILL)  # the driver, and Ray that it started
        process.wait()
    assert 3 <= done < trials
    lost = _run_without_a_trial(places.read_json(out / "sweep.json")["run_id"])
    found = tune_recipe(recipe, mock_dataset, str(out), trials=trials)
    assert f"{trials}/{trials}" in capsys.readouterr().err
    assert len(found.trials) == trials
    assert found.trials["trial"].is_unique
    assert not found.trials["failed"].any()
    assert found.trials["accuracy"].notna().all()
    assert found.value == found.trials["accuracy"].max()
    runs = _children(found.run_id)
    assert lost not in runs
    assert sorted(runs) == sorted(found.trials["run_id"])
    assert set(runs.values()) == {"FINISHED"}
    assert (out / "figures" / "sweep.png").stat().st_size > 10_000
    assert places.read_json(out / "best.json")["changes"] == found.best
    recipe.override(found.best)
    with pytest.raises(ConfigError, match="another recipe"):
        tune_recipe(recipe.override(["seed=9"]), mock_dataset, str(out), trials=trials)


@pytest.mark.slow
def test_transform_runs_once_for_a_sweep_and_an_ensemble(mock_dataset, tiny_recipe, tmp_path):
    before = {info.uri for info in prepared_tables()}
    recipe = tiny_recipe.override([*FAST, "input.pixels=901"])  # a transform of this test alone
    tune_recipe(recipe, mock_dataset, str(tmp_path / "sweep"), trials=3, progress=False)
    ensemble(recipe, mock_dataset, str(tmp_path / "seeds"), members=2, progress=False)
    runs = [*tmp_path.glob("sweep/runs/*/run.json"), *tmp_path.glob("seeds/*/run/run.json")]
    assert len(runs) == 5
    (made,) = {info.uri for info in prepared_tables()} - before
    written = [path for path in Path(made).rglob("*") if path.is_file()]
    begun = min(run.stat().st_mtime for run in runs)
    assert max(path.stat().st_mtime for path in written) < begun  # nobody wrote to it afterwards


def _sweep(recipe, data: str, out: str, trials: int, log) -> subprocess.Popen:
    """Start a sweep with a Ray of its own in a process of its own."""
    script = (
        "import json, sys\n"
        "from skyray.runtime.session import ray_session\n"
        "from skyray.search.tune import tune_recipe\n"
        "from skyray.families.redshift.recipes import RedshiftRecipe\n"
        "recipe = RedshiftRecipe.load(json.loads(sys.argv[1]))\n"
        "with ray_session(num_cpus=2):\n"
        "    tune_recipe(recipe, sys.argv[2], sys.argv[3], trials=int(sys.argv[4]))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "platform"),
                   "SKYRAY_OBJECT_STORE": "200000000"}  # fmt: skip
    environment.pop("RAY_AUTH_TOKEN_PATH", None)
    command = [sys.executable, "-c", script, json.dumps(recipe.snapshot()), data, out, str(trials)]
    return subprocess.Popen(
        command, env=environment, stdout=log, stderr=log, start_new_session=True
    )


@pytest.mark.slow
def test_a_sweep_in_an_object_store_leaves_all_there(mock_dataset, tiny_recipe, tmp_path):
    """Through a proxy that fails one call in twenty; nobody notices."""
    with object_store(20, seed=1) as store, (tmp_path / "log").open("w") as log:
        out = places.join(store.uri, "sweep")
        process = _sweep(tiny_recipe.override(FAST), mock_dataset, out, 2, log)
        assert process.wait(timeout=240) == 0, (tmp_path / "log").read_text()[-3000:]
        assert len(places.read_bytes(places.join(out, "figures", "sweep.png"))) > 10_000
        with places.read_stream(places.join(out, "trials.parquet")) as stream:
            table = pd.read_parquet(stream)
        assert len(table) == 2
        assert not table["failed"].any()
        assert places.read_json(places.join(out, "best.json"))["value"] == table["accuracy"].max()
        assert sum(store.proxy.made.values()) > 0


def _finished(out: Path) -> int:
    """Return how many trials of a sweep have reported their last epoch."""
    return sum('"epoch": 2' in path.read_text() for path in out.glob("ray/*/result.json"))


def _run_without_a_trial(parent: str) -> str:
    """Leave what a kill leaves that comes between a run's beginning and the note of its id."""
    client = tracking.client(tracking.tracking_uri())
    experiment = client.get_run(parent).info.experiment_id
    return client.create_run(experiment, tags={"mlflow.parentRunId": parent}).info.run_id


def _children(parent: str) -> dict[str, str]:
    client = tracking.client(tracking.tracking_uri())
    experiment = client.get_run(parent).info.experiment_id
    found = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{parent}'")
    return {run.info.run_id: run.info.status for run in found}


def test_a_machine_that_goes_away_does_not_use_up_a_trial():
    watch = _Watch("out", "max")
    trial = Trial("__fake", stub=True)
    message = "The actor died because its node has died. Node Id: 0a1b."
    lost = ActorDiedError(ActorDiedErrorContext(error_message=message, actor_id=bytes(16)))
    for error, failures in ((lost, 0), (ValueError("no"), 1)):
        trial.run_metadata.num_failures = 1
        trial.get_error = lambda error=error: error
        watch.on_trial_recover(0, [trial], trial)
        assert trial.run_metadata.num_failures == failures


def test_a_lost_machine_is_no_fault_of_a_cell_and_a_crash_is_one():
    def run():
        if end := ends.pop(0):
            raise end

    ends = [*[NodeDiedError("gone")] * 5, WorkerCrashedError(), None]
    _lasting(run)
    assert not ends
    ends = [WorkerCrashedError()] * 4
    with pytest.raises(WorkerCrashedError):
        _lasting(run)
    assert len(ends) == 1


def test_what_tasks_could_not_tell_mlflow_is_said_by_who_started_them(tmp_path, monkeypatch):
    monkeypatch.setenv("SKYRAY_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri := "http://127.0.0.1:9")
    cells = [Cell(name, None, "data", str(tmp_path / name)) for name in ("a", "b", "not-begun")]
    for cell in cells[:2]:
        places.write_json(places.join(cell.out, "run", "run.json"), {"run_id": cell.name})
        outbox.post(uri, cell.name, "params", {"values": {}, "config": {}})
    outbox.untold()
    _tell_rest(cells)
    assert outbox.untold() == [
        f"MLflow has not taken 2 messages of 2 runs ({uri}: no answer); to send what waits: "
        "skyray sync"
    ]


@pytest.mark.slow
def test_ensemble_is_repeatable_and_resumes(mock_dataset, tiny_recipe, tmp_path_factory):
    out = str(tmp_path_factory.mktemp("ensemble") / "ensemble")
    recipe = tiny_recipe.override(FAST)
    scores = ensemble(recipe, mock_dataset, out, members=2, progress=False)
    assert len(scores["accuracy"].values) == 2
    written = places.read_json(places.join(out, "ensemble.json"))
    assert written["scores"]["accuracy"]["values"] == scores["accuracy"].values
    stamp = os.stat(f"{out}/seed-0/bundle/bundle.json").st_mtime_ns
    again = ensemble(recipe, mock_dataset, out, members=2, progress=False)
    assert again == scores
    assert os.stat(f"{out}/seed-0/bundle/bundle.json").st_mtime_ns == stamp
    with pytest.raises(ConfigError, match="another recipe"):  # never the old numbers for it
        ensemble(recipe.override(["network.dropout=0.1"]), mock_dataset, out, members=2)


@pytest.mark.parametrize(
    ("end", "status"), [(SystemExit(0), "FINISHED"), (ValueError("no"), "FAILED")]
)
def test_training_ended_by_a_scheduler_is_not_called_failed(
    end, status, mock_dataset, tiny_recipe, tmp_path
):
    def stop(row):
        raise end

    with pytest.raises(type(end)):
        train_alone(tiny_recipe.override(FAST), mock_dataset, str(tmp_path), on_epoch=stop)
    run_id = places.read_json(str(tmp_path / "run.json"))["run_id"]
    run = tracking.client(tracking.tracking_uri()).get_run(run_id)
    assert run.info.status == status


@pytest.mark.slow
def test_grid_has_a_row_for_every_cell(mock_dataset, tmp_path_factory):
    out = str(tmp_path_factory.mktemp("grid") / "grid")
    small = ["network.widths=[4,8,8,16,16]", "network.dense=16", "input.step=5.0",
             "input.pixels=1001", *FAST]  # fmt: skip
    table = run_grid(
        ["redshift/sdss_coarse_laptop"], {"mock": mock_dataset}, out, seeds=1, changes=small,
        vary={"network.dropout": [0.0, 0.3]}, progress=False,
    )  # fmt: skip
    assert table["network.dropout"].tolist() == [0.0, 0.3]
    assert table["accuracy"].between(0, 1).all()
    with pytest.raises(ConfigError, match="one family"):
        run_grid(["redshift/sdss_dr16", "outliers/desi_bgs"], {"mock": mock_dataset}, out)


def test_no_more_trainings_at_once_than_the_machine_has_cores(ray_cluster):
    """The test cluster has four logical CPUs, whatever the machine."""
    cores = len(os.sched_getaffinity(0))
    assert cores_for(1) == {"cores": 1}
    assert cores_for(10_000) == {"cores": cores}

    @ray.remote(num_cpus=0, resources=cores_for(1))
    def busy() -> tuple[float, float]:
        started = time.monotonic()
        time.sleep(0.3)
        return started, time.monotonic()

    spans = ray.get([busy.remote() for _ in range(2 * cores)])
    assert max(sum(a <= start < b for a, b in spans) for start, _ in spans) <= cores
