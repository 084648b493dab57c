"""Train a recipe on a dataset with Ray Train, on any number of workers, and leave a bundle."""

from __future__ import annotations

import os
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import ray
import ray.train
from ray.train.torch import TorchConfig, TorchTrainer
from safetensors.torch import load as load_tensors

from skyray.bundles import registry
from skyray.bundles.bundle import bundle_version, write_bundle
from skyray.config import ConfigError
from skyray.data.dataset import Dataset
from skyray.data.prepared import KEY, prepare
from skyray.data.prepared_tables import PreparedTable
from skyray.families.base import Columns, DataInfo, Family, Recipe, load_family
from skyray.runtime import places, provenance, tracking
from skyray.runtime.board import ProgressBars
from skyray.runtime.progress import waiting
from skyray.training import loop
from skyray.training.group_start import TellStart
from skyray.training.worker import final_position

CALIBRATION_ROWS = 20_000
RUN_FILE = "run.json"
# Ray retries a training group that cannot start for ever; say no after some attempts.
os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "120")


class TrainingFailed(RuntimeError):
    """Training ended with an error that retries did not cure."""


@dataclass(frozen=True)
class TrainResult:
    """What a training left: the bundle's place, the MLflow run, versions and the history."""

    bundle: str
    run_id: str
    version: str
    history: list[dict[str, Any]]
    restarts: int


def train(
    recipe: Recipe,
    data: str,
    out: str,
    *,
    workers: int = 1,
    use_gpu: bool = False,
    max_failures: int = 2,
    resume: str | None = None,
    progress: bool = True,
    threads: int | None = None,
) -> TrainResult:
    """Train all stages of `recipe` on the dataset at `data` and write the bundle to `out`.

    Ray must have been started (`skyray.runtime.session`).

    Parameters
    ----------
    workers : int
        Data-parallel workers; the global batch size is the recipe's whatever their number.
    use_gpu : bool
        One GPU a worker (NCCL); else CPU (gloo).
    max_failures : int
        Restarts from the last checkpoint after a lost worker or node.
    resume : str, optional
        MLflow run id of an interrupted training to go on with.
    threads : int, optional
        CPU threads a worker; default: this machine's cores shared among the workers.

    Raises
    ------
    ConfigError
        If the run to go on with was of another dataset.
    TrainingFailed
        When a stage fails for good; the message holds its cause.
    """
    dataset = data_of_run(data, places.join(places.home(), "runs", resume) if resume else None)
    family = load_family(recipe.family)(recipe, dataset.info())
    table = prepare(dataset, family, progress=progress)
    run_id = resume or start_run(recipe, family, workers)
    run_uri = places.join(places.home(), "runs", run_id)
    if not resume:
        record_run(run_uri, run_id, family)
    threads = threads or max(1, (os.cpu_count() or 1) // workers)
    failed = True
    try:
        with ProgressBars(disable=not progress) as bars:
            config = _worker_config(family, table, run_id, run_uri, threads, bars.board)
            result = _fit(config, run_uri, workers, use_gpu, max_failures)
        history, restarts = _history(result)
        with waiting("bundle", "calibration and writing", show=progress):
            _finish(family, table, run_uri, run_id, out, history)
        registry.register(out, run_id)
        failed = False
    finally:
        tracking.finish_run(run_id, failed)
    version = bundle_version(recipe.digest(), family.data.fingerprint, run_id)
    return TrainResult(out, run_id, version, history, restarts)


def data_of_run(data: str, run_uri: str | None) -> Dataset:
    """Return the dataset at the version a run began with; the newest for a run that begins now.

    Raises
    ------
    ConfigError
        If the run was of another dataset.
    """
    place = places.join(run_uri, RUN_FILE) if run_uri else None
    if place is None or not places.exists(place):
        return Dataset.open(data)
    begun = places.read_json(place)
    dataset = Dataset.open(data, begun["version"])
    if dataset.manifest.fingerprint != begun["fingerprint"]:
        raise ConfigError(f"{data}: the run in {run_uri} is of another dataset")
    return dataset


def record_run(run_uri: str, run_id: str, family: Family) -> None:
    """Keep what a run is of beside its checkpoints, for going on with it."""
    about = {"recipe": family.recipe.snapshot(), "fingerprint": family.data.fingerprint}
    places.write_json(
        places.join(run_uri, RUN_FILE), {"run_id": run_id, "version": family.data.version, **about}
    )


def start_run(recipe: Recipe, family: Family, workers: int = 1, parent: str | None = None) -> str:
    """Open the MLflow run of a training, nested in the run `parent` if one is given."""
    tags = {
        "skyray.fingerprint": family.data.fingerprint,
        "skyray.dataset_version": str(family.data.version),
        "skyray.card": family.data.card,
        "skyray.workers": str(workers),
        "skyray.git_commit": provenance.git_commit(),
        **{f"version.{k}": v for k, v in provenance.versions().items()},
    }
    if parent:
        tags["mlflow.parentRunId"] = parent
    name = f"{recipe.name}-{uuid.uuid4().hex[:6]}"
    return tracking.start_run(recipe.family, name, recipe.snapshot(), tags)


def _worker_config(
    family: Family, table: PreparedTable, run_id, run_uri, threads: int, board
) -> dict[str, Any]:
    return {
        "family": family.recipe.family,
        "recipe": family.recipe.snapshot(),
        "data": family.data.to_dict(),
        "table": table,
        "seed": family.recipe.seed,
        "run_uri": run_uri,
        "run_id": run_id,
        "tracking_uri": tracking.tracking_uri(),
        "threads": threads,
        "board": board,
    }


def _fit(config, run_uri, workers, use_gpu, max_failures):
    scaling = ray.train.ScalingConfig(
        num_workers=workers, use_gpu=use_gpu, resources_per_worker=None if use_gpu else {"CPU": 1}
    )
    filesystem, storage_path = places.resolve(places.join(run_uri, "train"))
    run_config = ray.train.RunConfig(
        name="checkpoints",
        storage_path=storage_path,
        storage_filesystem=filesystem,
        failure_config=ray.train.FailureConfig(
            max_failures=max_failures, controller_failure_limit=3
        ),
        checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
        callbacks=[TellStart(config["board"])],
    )
    trainer = TorchTrainer(
        loop.train_worker,
        train_loop_config=config,
        scaling_config=scaling,
        run_config=run_config,
        torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo"),
    )
    try:
        return trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise TrainingFailed(str(error)) from error


def _history(result) -> tuple[list[dict[str, Any]], int]:
    position = final_position(result.checkpoint)
    return position.history, position.resumed


def run_provenance(family: Family, run_id: str) -> dict[str, Any]:
    """Return what a bundle says about where it came from."""
    return {
        "version": bundle_version(family.recipe.digest(), family.data.fingerprint, run_id),
        "run_id": run_id,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "git_commit": provenance.git_commit(),
        "versions": provenance.versions(),
    }


def _finish(family: Family, table: PreparedTable, run_uri, run_id, out, history) -> None:
    """Assemble the best parts, calibrate on validation and write the bundle, as one Ray task."""
    recipe = family.recipe
    finish = ray.remote(num_cpus=1)(assemble_bundle)
    ray.get(
        finish.remote(
            recipe.family, recipe.snapshot(), family.data.to_dict(), table, run_uri, out,
            run_provenance(family, run_id), history,
        )
    )  # fmt: skip


def assemble_bundle(
    family_name: str,
    recipe: dict[str, Any],
    data: dict[str, Any],
    table: PreparedTable,
    run_uri: str,
    out: str,
    provenance_of_run: dict[str, Any],
    history: list[dict[str, Any]],
) -> None:
    """Build the model from the finished stages, calibrate it and write the bundle."""
    family_type = load_family(family_name)
    family = family_type(family_type.recipe_type.load(recipe), DataInfo.from_dict(data))
    model = family.build_model()
    family.initialise(model)  # parts that no stage trains
    for stage in family.stages():
        part = load_tensors(places.read_bytes(loop.stage_file(run_uri, stage)))
        stage.part(model).load_state_dict(part)
    ready = family.optimise_for_inference(model.eval())
    calibration, tensors = family.calibrate(ready, calibration_inputs(family, table))
    content = loop.history_json(history)
    write_bundle(out, family, model, calibration, tensors, provenance_of_run, content)


def calibration_inputs(family: Family, table: PreparedTable) -> Columns:
    """Return the transformed rows of validation (of train if that is empty), in their order.

    Of more than CALIBRATION_ROWS, so many are drawn at random with the recipe's seed.
    """
    rows = np.asarray(table.rows("validation") or table.rows("train"))
    if len(rows) > CALIBRATION_ROWS:
        drawn = np.random.default_rng(family.recipe.seed)
        rows = np.sort(drawn.choice(rows, CALIBRATION_ROWS, replace=False))
    return table.take(rows, [name for name in table.columns if name not in (KEY, "split")])
