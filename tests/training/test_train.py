"""Training on real Ray: bundle, tracking, registry, repeatability, and what survives a kill."""

import contextlib
import json
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from ray.util.placement_group import (
    placement_group,
    placement_group_table,
    remove_placement_group,
)

from skyray.bundles.bundle import Predictor, history_rows, read_bundle
from skyray.config import ConfigError
from skyray.data.dataset import Dataset, table_to_columns
from skyray.families.base import DataInfo
from skyray.runtime import places, tracking
from skyray.training.graph import WAIT, StageGraph
from skyray.training.lone import train_alone
from skyray.training.run_file import RUN_FILE, data_of_run
from skyray.training.train import TrainingFailed, train
from skyray.training.worker import StageFiles

pytestmark = pytest.mark.slow

WORKER = "ray::RayTrainWorker"


def losses(history) -> list[tuple]:
    names = ("stage", "epoch", "train_loss", "validation_loss", "lr")
    return [tuple(row.get(name) for name in names) for row in history]


def classifier_only(recipe, epochs: int, *more: str):
    return recipe.override([f"train.epochs={epochs}", "redshift_classes=[]", *more])


class Assassin(threading.Thread):
    """Kills the training worker of the next run once `after` checkpoints have been written.

    A checkpoint is written over the one before it, whole.
    """

    def __init__(self, after: int):
        super().__init__(daemon=True)
        self.after, self.killed = after, False
        self.before = set(self._runs())

    @staticmethod
    def _runs():
        root = Path(places.home()) / "runs"
        return {path.name for path in root.iterdir()} if root.exists() else set()

    def run(self):
        root = Path(places.home()) / "runs"
        seen: set[int] = set()
        for _ in range(60000):
            for name in self._runs() - self.before:
                for path in (root / name).glob("stages/*.state"):
                    with contextlib.suppress(FileNotFoundError):
                        seen.add(path.stat().st_mtime_ns)
            if len(seen) >= self.after:
                break
            time.sleep(0.002)
        for process in psutil.Process().children(recursive=True):  # of this session's Ray only
            if any(part.startswith(WORKER) for part in process.cmdline()):
                process.kill()  # idle workers of an earlier run may be among them
                self.killed = True


@pytest.fixture(scope="module")
def undisturbed(mock_dataset, tiny_recipe, tmp_path_factory):
    recipe = classifier_only(tiny_recipe, 4)
    out = str(tmp_path_factory.mktemp("undisturbed"))
    return recipe, train(recipe, mock_dataset, out, progress=False)


def test_bundle_holds_what_made_it(tiny_bundle, mock_dataset, tiny_recipe):
    content = read_bundle(tiny_bundle)
    assert content["recipe"] == json.loads(json.dumps(tiny_recipe.snapshot()))
    assert content["data"]["fingerprint"] == Dataset.open(mock_dataset).manifest.fingerprint
    assert content["git_commit"]
    assert content["versions"]["torch"]
    stages = {row["stage"] for row in history_rows(tiny_bundle)}
    assert stages == {
        "classifier", "redshift/GALAXY/0", "redshift/GALAXY/1", "redshift/QSO/0", "redshift/QSO/1"
    }  # fmt: skip
    card = places.read_bytes(places.join(tiny_bundle, "MODEL_CARD.md")).decode()
    assert content["version"] in card


def card_of(bundle: str) -> str:
    return places.read_bytes(places.join(bundle, "MODEL_CARD.md")).decode()[:5000]


def test_run_is_tracked_and_registered(tiny_bundle, mock_dataset):
    import mlflow

    content = read_bundle(tiny_bundle)
    client = tracking.client(tracking.tracking_uri())
    run = client.get_run(content["run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.tags["skyray.fingerprint"] == content["data"]["fingerprint"]
    assert run.data.params["seed"] == "0"
    history = client.get_metric_history(content["run_id"], "classifier/train_loss")
    assert [metric.step for metric in history] == [0, 1]

    mlflow.set_tracking_uri(tracking.tracking_uri())
    name = "skyray-redshift-sdss_coarse_laptop"
    assert client.get_model_version_by_alias(name, "candidate").version
    # Other tests train this recipe too, and the candidate is the newest.
    (ours,) = client.search_model_versions(f"run_id='{content['run_id']}'")
    assert ours.description == card_of(tiny_bundle)
    # Curves of stages; other tests evaluate this bundle, whose scores hold counts of rows too.
    stages = {row["stage"] for row in history_rows(tiny_bundle)}
    curves = {name for name in run.data.metrics if name.rpartition("/")[0] in stages}
    assert {name.rpartition("/")[0] for name in curves} == stages
    assert "classifier/validation_accuracy" in curves
    assert not [name for name in curves if name.endswith(("_seconds", "_rows"))]
    (given,) = run.inputs.dataset_inputs
    assert content["data"]["fingerprint"].startswith(given.dataset.digest)
    assert json.loads(given.dataset.profile)["version"] == content["data"]["version"]
    model = mlflow.pyfunc.load_model(f"models:/{name}/{ours.version}")
    table = Dataset.open(mock_dataset).to_table(content["input_columns"], "test")
    columns = {name: values[:4] for name, values in table_to_columns(table).items()}
    frame = {name: list(values) for name, values in columns.items()}
    import pandas as pd

    signature = model.metadata.signature
    assert signature.inputs.input_names() == content["input_columns"]
    assert "redshift" in signature.outputs.input_names()
    registered = model.predict(pd.DataFrame(frame))
    direct = Predictor.from_bundle(tiny_bundle).predict(columns)
    np.testing.assert_allclose(registered["redshift"], direct["redshift"], atol=1e-6)
    assert registered["label"].tolist() == direct["label"].tolist()


def test_same_seed_gives_the_same_result(undisturbed, mock_dataset, tmp_path):
    """Without a group of workers, whose repeatability the tests below show."""
    recipe, group = undisturbed
    first, again, other = (
        losses(train_alone(chosen, mock_dataset, str(tmp_path / name)).history)
        for name, chosen in (("a", recipe), ("b", recipe), ("c", recipe.override(["seed=1"])))
    )
    assert first == again
    assert first != other
    ours = [row["train_loss"] for row in group.history]  # another number of threads
    np.testing.assert_allclose([row[2] for row in first], ours, atol=1e-3)


def test_killed_worker_resumes_inside_its_epoch(undisturbed, mock_dataset, tmp_path):
    recipe, first = undisturbed
    often = recipe.override(["train.checkpoint_every_steps=3", "train.checkpoint_seconds=1e9"])
    assassin = Assassin(after=3)  # all of them in the middle of an epoch
    assassin.start()
    again = train(often, mock_dataset, str(tmp_path), progress=False)
    assert assassin.killed
    assert again.restarts == 1
    ours = [row["train_loss"] for row in again.history]
    np.testing.assert_allclose(ours, [row["train_loss"] for row in first.history], atol=1e-5)


def test_failed_run_goes_on_when_resumed(undisturbed, mock_dataset, tmp_path):
    recipe, first = undisturbed
    recipe = recipe.override(["train.checkpoint_seconds=0"])
    before = Assassin(after=3)
    before.start()
    with pytest.raises(TrainingFailed):
        train(recipe, mock_dataset, str(tmp_path), progress=False, max_failures=0)
    assert before.killed
    (run_id,) = before._runs() - before.before
    assert tracking.client(tracking.tracking_uri()).get_run(run_id).info.status == "FAILED"
    with pytest.raises(ConfigError, match=r"train\.epochs: begun with 4, found 5"):
        train(recipe.override(["train.epochs=5"]), mock_dataset, str(tmp_path), resume=run_id)
    again = train(recipe, mock_dataset, str(tmp_path), progress=False, resume=run_id)
    assert losses(again.history) == losses(first.history)
    assert again.restarts >= 1


def test_run_goes_on_with_the_data_it_began_with(undisturbed, mock_dataset, tmp_path):
    """Also with more workers; a run of other data is refused."""
    recipe, first = undisturbed
    run_uri = places.join(places.home(), "runs", first.run_id)
    begun = places.read_json(places.join(run_uri, RUN_FILE))
    dataset = Dataset.open(mock_dataset)
    assert begun["version"] == dataset.version
    again = train(recipe, mock_dataset, str(tmp_path), workers=2, progress=False,
                  resume=first.run_id)  # fmt: skip
    assert losses(again.history) == losses(first.history)  # nothing was left to do
    other = places.join(tmp_path, "other")
    places.write_json(places.join(other, RUN_FILE), begun | {"fingerprint": "0" * 64})
    with pytest.raises(ConfigError, match="of another dataset"):
        data_of_run(mock_dataset, other)


def test_group_reads_from_disk_what_it_would_hold_in_memory(mock_dataset, tiny_recipe, tmp_path):
    recipes = [classifier_only(tiny_recipe, 2, f"train.memory_bytes={size}") for size in (0, 1e9)]
    disk, memory = (
        losses(train_alone(recipe, mock_dataset, str(tmp_path / f"{number}")).history)
        for number, recipe in enumerate(recipes)
    )
    assert disk == memory
    (first, _) = train(recipes[0], mock_dataset, str(tmp_path), workers=2, progress=False).history
    assert first["train_rows"] == Dataset.open(mock_dataset).count("train")
    assert first["validation_rows"] == Dataset.open(mock_dataset).count("validation")


def test_stages_side_by_side_train_as_one_after_another(
    tiny_bundle, mock_dataset, tiny_recipe, tmp_path, monkeypatch
):
    """The classifier and the networks of two classes, on the two lanes that the machine holds."""
    at_once = tmp_path / "at-once"

    class Meeting(StageGraph):
        """Hands out the first stage when two lanes have asked, or none came for two minutes."""

        def take(self, lane):
            self.asked = {lane} | getattr(self, "asked", set())
            self.until = getattr(self, "until", time.monotonic() + 120)
            if len(self.asked) < 2 and time.monotonic() < self.until:
                return WAIT, ""
            told = super().take(lane)
            if len(self._held) == 2:
                at_once.write_text(" and ".join(sorted(self._held.values())))
            return told

    monkeypatch.setattr("skyray.training.train.StageGraph", Meeting)
    made = train(tiny_recipe, mock_dataset, str(tmp_path), threads=1, side_by_side=2,
                 progress=False)  # fmt: skip
    assert at_once.exists()
    assert losses(made.history) == losses(history_rows(tiny_bundle))
    runs = [made.run_id, read_bundle(tiny_bundle)["run_id"]]
    ours, theirs = (StageFiles(places.join(places.home(), "runs", run)) for run in runs)
    stages = sorted({row["stage"] for row in made.history})
    assert len(stages) == 5
    for name in stages:
        part, other = ours.part(name), theirs.part(name)
        assert all(torch.equal(other[key], value) for key, value in part.items())


def test_published_mode_trains_members_together(mock_dataset, tiny_recipe, tmp_path):
    recipe = tiny_recipe.override(["mode=as_published", "redshift_target=linear"])
    result = train_alone(recipe, mock_dataset, str(tmp_path))
    assert [row["stage"] for row in result.history if row["epoch"] == 0] == [
        "classifier", "redshift/GALAXY", "redshift/QSO"
    ]  # fmt: skip


def test_diverged_stage_says_so_when_the_others_are_trained(mock_dataset, tiny_recipe, tmp_path):
    """They are trained by the one lane that there is."""
    recipe = tiny_recipe.override([
        "train.optimizer.lr=1e30", "train.optimizer.schedule=constant", "train.clip_norm=null",
        "train.optimizer.name=sgd", "members=1", "train_redshift.epochs=1",
    ])  # fmt: skip
    before = Assassin._runs()
    with pytest.raises(TrainingFailed) as failed:
        train(recipe, mock_dataset, str(tmp_path), progress=False, max_failures=0, side_by_side=1)
    told = str(failed.value)
    assert told.startswith("stage classifier failed: FloatingPointError: stage classifier, epoch 0")
    assert "lower the learning rate" in told
    assert "not trained" not in told
    (run_id,) = Assassin._runs() - before
    files = StageFiles(places.join(places.home(), "runs", run_id))
    assert not files.finished("classifier")
    assert all(files.finished(f"redshift/{name}/0") for name in ("GALAXY", "QSO"))


def test_training_ends_without_the_lane_that_found_no_room(
    mock_dataset, tiny_recipe, tmp_path, monkeypatch
):
    """Of four CPUs three are taken: one lane trains all, and nothing is left of the other."""
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "60")  # else ten minutes, 4 times
    taken = placement_group([{"CPU": 1}] * 3)
    assert taken.wait(60)
    try:
        made = train(tiny_recipe, mock_dataset, str(tmp_path), threads=1, side_by_side=2,
                     progress=False)  # fmt: skip
    finally:
        remove_placement_group(taken)
    stages = (Path(places.home()) / "runs" / made.run_id).glob("stages/*.safetensors")
    assert time.time() - max(path.stat().st_mtime for path in stages) < 100
    assert not [g for g in placement_group_table().values() if g["state"] == "PENDING"]


def test_data_info_survives_its_json(mock_dataset):
    info = Dataset.open(mock_dataset).info()
    assert DataInfo.from_dict(json.loads(json.dumps(info.to_dict()))) == info
