"""Train in this process, without a Ray Train group: trials of a sweep, members of an ensemble.

The loop, the checkpoints, the tracking and the bundle are those of `skyray.training.train`; only
the group of workers is left out, whose start costs more than a small training.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from skyray.data.dataset import Dataset
from skyray.data.prepared import prepare
from skyray.data.prepared_tables import PreparedTable
from skyray.families.base import Family, Recipe, load_family
from skyray.runtime import places, tracking
from skyray.training import loop
from skyray.training.calibration import Trained, assemble_bundle, outputs_of_share
from skyray.training.graph import StageGraph
from skyray.training.run_file import (
    RUN_FILE,
    check_data,
    check_recipe,
    data_of_run,
    record_run,
)
from skyray.training.train import run_provenance, start_run
from skyray.training.worker import LoneWorker, StageFiles


@dataclass(frozen=True)
class MemberResult:
    """What a training of many left: its MLflow run and the rows of its epochs."""

    run_id: str
    history: list[dict[str, Any]]


def train_alone(
    recipe: Recipe,
    data: str,
    run_uri: str,
    *,
    out: str | None = None,
    version: int | None = None,
    spread: bool = False,
    parent: str | None = None,
    threads: int | None = 1,
    use_gpu: bool = False,
    last_stage: str | None = None,
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
) -> MemberResult:
    """Train all stages of `recipe` in this process; called again, it goes on where it stopped.

    Parameters
    ----------
    run_uri : str
        Folder or URI of checkpoints, finished stages and the MLflow run's id.
    out : str, optional
        Bundle to write; a trial of a sweep needs none. It is not registered: one of many is no
        candidate before somebody says so (`skyray promote`).
    version : int, optional
        Of the dataset; default: the newest, or the one that this training began with.
    spread : bool
        Whether the cluster may help when the transform is still to be run; not in a task that holds
        the CPUs it would wait for.
    threads : int, optional
        CPU threads; None: all of this machine.
    parent : str, optional
        MLflow run that this one is nested in.
    last_stage : str, optional
        Stage to stop after; then no bundle can be written.
    on_epoch : callable, optional
        Gets the row of the history after every epoch; what it raises ends the training, and
        ``SystemExit(0)`` without calling it failed.

    Raises
    ------
    ConfigError
        If `run_uri` holds another training.
    """
    threads = threads or len(os.sched_getaffinity(0))
    torch.set_num_threads(threads)
    with begun(recipe, data, run_uri, version, parent, last_stage, spread=spread) as run:
        worker = LoneWorker(
            rank=0, world_size=1, device=torch.device("cuda" if use_gpu else "cpu"),
            seed=recipe.seed, run_uri=run_uri, run_id=run.run_id,
            tracking_uri=tracking.tracking_uri(), on_epoch=on_epoch,
        )  # fmt: skip
        loop.run_stages(worker, run.family, run.table, run.graph)
        history, _ = StageFiles(run_uri).history(run.graph.names)
        if out:
            trained = Trained.of(run.family, run.table, run_uri)
            found = outputs_of_share(trained, use_gpu=use_gpu, threads=threads)
            assemble_bundle(trained, out, run_provenance(run.family, run.run_id), history, found)
    return MemberResult(run.run_id, history)


@dataclass(frozen=True)
class Begun:
    """A training of many that is begun, or taken up again where it stopped."""

    family: Family
    table: PreparedTable
    run_id: str
    graph: StageGraph


@contextmanager
def begun(
    recipe: Recipe,
    data: str,
    run_uri: str,
    version: int | None,
    parent: str | None,
    last_stage: str | None,
    *,
    spread: bool = False,
    workers: int = 1,
) -> Iterator[Begun]:
    """Hold the MLflow run of a training of many; for its arguments see `train_alone`."""
    dataset = Dataset.open(data, version) if version else data_of_run(data, run_uri)
    family = load_family(recipe.family)(recipe, dataset.info())
    table = prepare(dataset, family, progress=False, on_ray=None if spread else False)
    run_id = _run(run_uri, recipe, family, data, parent, workers)
    failed = True
    try:
        files, stages = StageFiles(run_uri), family.stages()
        done = [stage.name for stage in stages if files.finished(stage.name)]
        yield Begun(family, table, run_id, StageGraph(stages, done, last_stage))
        failed = False
    except SystemExit as end:  # so a sweep's scheduler ends a trial that falls behind
        failed = bool(end.code)
        raise
    finally:
        tracking.finish_run(run_id, failed)


def _run(
    run_uri: str, recipe: Recipe, family: Family, data: str, parent: str | None, workers: int
) -> str:
    """Return the MLflow run of this folder, opened the first time; refuse another training's."""
    place = places.join(run_uri, RUN_FILE)
    if places.exists(place):
        found = places.read_json(place)
        check_recipe(run_uri, found["recipe"], recipe)
        check_data(f"{data}, the run in {run_uri}", found, family.data.fingerprint)
        return found["run_id"]
    run_id = start_run(recipe, family, data, workers, parent)
    record_run(run_uri, run_id, family, workers)
    return run_id
