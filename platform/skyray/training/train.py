"""Train a recipe on a dataset with Ray Train, on any number of workers, and leave a bundle."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from skyray.bundles import registry
from skyray.bundles.bundle import bundle_version
from skyray.config import ConfigError
from skyray.data.prepared import prepare
from skyray.data.prepared_tables import PreparedTable
from skyray.families.base import Family, Recipe, load_family
from skyray.runtime import places, provenance, tracking
from skyray.runtime.board import ProgressBars
from skyray.runtime.progress import waiting
from skyray.training.calibration import Trained, finish
from skyray.training.graph import StageGraph
from skyray.training.lanes import TrainingFailed, lanes_for, run_lanes
from skyray.training.run_file import (
    RUN_FILE,
    data_of_run,
    folder_of_run,
    record_run,
    run_to_resume,
)
from skyray.training.scale import Scale
from skyray.training.worker import StageFiles

__all__ = ["TrainResult", "TrainingFailed", "train"]


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
    gpus: float | None = None,
    min_workers: int | None = None,
    side_by_side: int | None = None,
) -> TrainResult:
    """Train all stages of `recipe` on the dataset at `data` and write the bundle to `out`.

    Ray must have been started (`skyray.runtime.session`). Stages that need nothing from one another
    run side by side, each on so many workers, as far as the cluster goes.

    Parameters
    ----------
    workers : int
        Data-parallel workers; what they do to batch and learning rate is the recipe's
        (`TrainConfig.batch_rule`), by the number that the run was begun with.
    use_gpu : bool
        GPUs (NCCL); else CPUs (gloo).
    max_failures : int
        Restarts from the last checkpoint after a lost worker; a machine that went away is no
        failure.
    resume : str, optional
        MLflow run id of an interrupted training to go on with.
    threads : int, optional
        CPU threads a worker; default: its machine's cores shared among the workers there.
    gpus : float, optional
        GPUs a worker with `use_gpu`, 1 by default; .25 lets four stages of one worker each share a
        GPU.
    min_workers : int, optional
        Elastic: go on with so many where `workers` are not to be had, and with more when they come.
    side_by_side : int, optional
        Stages at once, at most; 1 for one after another.

    Raises
    ------
    ConfigError
        If the run to go on with is unknown, was begun with another recipe or on another dataset, or
        the numbers above do not fit together.
    TrainingFailed
        When a stage fails for good, once all that do not need it are trained; the message holds its
        cause.
    """
    scale = Scale.asked(workers, min_workers, use_gpu, gpus, threads, side_by_side)
    if max_failures < 0:
        raise ConfigError(f"max_failures: expected 0 or more, found {max_failures}")
    run_uri = None if resume is None else run_to_resume(resume, recipe)
    dataset = data_of_run(data, run_uri)
    family = load_family(recipe.family)(recipe, dataset.info())
    table = prepare(dataset, family, progress=progress)
    run_id = resume or start_run(recipe, family, data, scale.workers)
    if run_uri is None:
        run_uri = folder_of_run(run_id)
        record_run(run_uri, run_id, family, workers)
    planned = places.read_json(places.join(run_uri, RUN_FILE)).get("workers", workers)
    files, stages = StageFiles(run_uri), family.stages()
    graph = StageGraph(stages, [s.name for s in stages if files.finished(s.name)])
    failed = True
    try:
        with ProgressBars(disable=not progress) as bars:
            config = worker_config(family, table, run_id, run_uri, planned, bars.board)
            run_lanes(config, graph, scale, max_failures)
        history, restarts = files.history(graph.names)
        with waiting("bundle", "calibration and writing", show=progress):
            finish(
                Trained.of(family, table, run_uri), out, run_provenance(family, run_id), history,
                scale, lanes_for(scale, StageGraph(stages)),
            )  # fmt: skip
        registry.register(out, run_id)
        failed = False
    finally:
        tracking.finish_run(run_id, failed)
    version = bundle_version(recipe.digest(), family.data.fingerprint, run_id)
    return TrainResult(out, run_id, version, history, restarts)


def start_run(
    recipe: Recipe, family: Family, data: str, workers: int = 1, parent: str | None = None
) -> str:
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
        tags[tracking.PARENT] = parent
    name = f"{recipe.name}-{uuid.uuid4().hex[:6]}"
    return tracking.start_run(recipe.family, name, recipe.snapshot(), tags, _input(family, data))


def _input(family: Family, data: str) -> dict[str, Any]:
    """Return the dataset as MLflow lists it; its digests have at most 36 characters."""
    about = family.data
    told = {"version": about.version, "fingerprint": about.fingerprint, "objects": about.counts}
    return {
        "name": about.card, "digest": about.fingerprint[:36], "source": places.absolute(data),
        "profile": told,
    }  # fmt: skip


def worker_config(
    family: Family, table: PreparedTable, run_id: str, run_uri: str, planned: int, board: Any
) -> dict[str, Any]:
    """Return what `skyray.training.loop.train_worker` is told, but for what is its lane's."""
    return {
        "family": family.recipe.family,
        "recipe": family.recipe.snapshot(),
        "data": family.data.to_dict(),
        "table": table,
        "seed": family.recipe.seed,
        "run_uri": run_uri,
        "run_id": run_id,
        "tracking_uri": tracking.tracking_uri(),
        "planned": planned,
        "board": board,
    }


def run_provenance(family: Family, run_id: str) -> dict[str, Any]:
    """Return what a bundle says about where it came from."""
    return {
        "version": bundle_version(family.recipe.digest(), family.data.fingerprint, run_id),
        "run_id": run_id,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "git_commit": provenance.git_commit(),
        "versions": provenance.versions(),
    }
