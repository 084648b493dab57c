"""Trainings of many that need several workers each: the engine of `train`, in trials and tasks."""

from __future__ import annotations

import time

import pytest
import ray
from ray.util.placement_group import placement_group, placement_group_table

from skyray.bundles.bundle import read_bundle
from skyray.runtime import places, tracking
from skyray.search.ensemble import ensemble
from skyray.search.tune import tune_recipe
from skyray.training.nested import train_member
from skyray.training.scale import Scale
from skyray.training.shared_graph import end_orphans

pytestmark = pytest.mark.slow

TWO = Scale(workers=2, min_workers=2, threads=1, side_by_side=1)


@pytest.fixture
def recipe(tiny_recipe):
    return tiny_recipe.override(["redshift_classes=[]", "train.epochs=3"])


def held_groups() -> list[dict]:
    return [group for group in placement_group_table().values() if group["state"] != "REMOVED"]


def test_a_trial_of_two_workers_reports_every_epoch(mock_dataset, recipe, tmp_path):
    out = str(tmp_path / "sweep")
    found = tune_recipe(recipe, mock_dataset, out, trials=1, workers=2, progress=False)
    assert not found.trials["failed"].any()
    assert found.trials["accuracy"].notna().all()
    assert found.trials["epochs"].tolist() == [3]
    client = tracking.client(tracking.tracking_uri())
    for run_id in found.trials["run_id"]:
        run = client.get_run(run_id)
        assert run.info.status == "FINISHED"
        assert run.data.tags["skyray.workers"] == "2"
        assert run.data.tags[tracking.PARENT] == found.run_id
    assert not held_groups()
    again = tune_recipe(recipe, mock_dataset, out, trials=1, workers=2, progress=False)
    assert again.trials["run_id"].tolist() == found.trials["run_id"].tolist()


def test_a_member_of_two_workers_leaves_a_bundle_and_scores(mock_dataset, recipe, tmp_path):
    scores = ensemble(recipe, mock_dataset, str(tmp_path), members=1, workers=2, progress=False)
    assert 0 <= scores["accuracy"].median <= 1
    found = read_bundle(str(tmp_path / "seed-0" / "bundle"))
    begun = places.read_json(str(tmp_path / "seed-0" / "run" / "run.json"))
    assert (begun["workers"], begun["run_id"]) == (2, found["run_id"])


def test_what_a_scheduler_ends_leaves_nothing_and_goes_on(mock_dataset, recipe, tmp_path):
    recipe = recipe.override(["train.epochs=40", "train.checkpoint_seconds=0"])
    rows = []

    def stop(row):
        rows.append(row)
        if len(rows) == 2:
            raise SystemExit(0)

    with pytest.raises(SystemExit):
        train_member(recipe, mock_dataset, str(tmp_path), TWO, on_epoch=stop)
    assert [row["epoch"] for row in rows] == [0, 1]
    run_id = places.read_json(str(tmp_path / "run.json"))["run_id"]
    status = tracking.client(tracking.tracking_uri()).get_run(run_id).info.status
    assert status == "FINISHED"
    assert not held_groups()
    assert not list(tmp_path.glob("stages/*.safetensors"))
    done = train_member(recipe, mock_dataset, str(tmp_path), TWO, on_epoch=rows.append)
    assert done.run_id == run_id
    assert [row["epoch"] for row in done.history] == list(range(len(done.history)))
    assert rows[2]["epoch"] > 0  # from a checkpoint on


def test_what_a_lost_process_held_is_given_back(ray_cluster):
    @ray.remote(num_cpus=0)
    class Holder:
        def hold(self):
            group = placement_group([{"CPU": 1}])
            ray.get(group.ready())
            return group.id.hex()

    holders = [Holder.remote() for _ in range(2)]
    lost, kept = ray.get([holder.hold.remote() for holder in holders])
    ray.kill(holders[0])
    states = {}
    for _ in range(100):  # until Ray has noticed
        end_orphans()
        states = {name: placement_group_table()[name]["state"] for name in (lost, kept)}
        if states[lost] == "REMOVED":
            break
        time.sleep(0.1)
    assert states == {lost: "REMOVED", kept: "CREATED"}
