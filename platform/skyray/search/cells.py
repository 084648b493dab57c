"""Cells: trainings of many, each with a folder of its own, as tasks of the cluster.

A cell's network is scored as soon as it is trained, while others still train. Finished cells are
never repeated, so whatever was interrupted goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from threading import BoundedSemaphore
from typing import Any

import ray
from ray.exceptions import NodeDiedError, OutOfMemoryError, RayError, WorkerCrashedError

from skyray.bundles.bundle import BUNDLE_FILE, read_bundle
from skyray.config import ConfigError
from skyray.data.dataset import Dataset
from skyray.data.prepared import prepare
from skyray.families.base import Recipe, load_family
from skyray.inference.evaluate import evaluate
from skyray.runtime import outbox, places, tracking
from skyray.runtime.progress import task
from skyray.runtime.session import cores_for, quiet_data
from skyray.training.lanes import groups_that_fit
from skyray.training.nested import train_member
from skyray.training.scale import Scale
from skyray.training.train import RUN_FILE

METRICS_FILE = "metrics.json"
_BUNDLE, _SCORES, _RUN = "bundle", "scores", "run"
_CRASHES = 2  # of its process that a cell is forgiven; a machine that went away never counts
_SCORED_AT_ONCE = 8  # each holds a process
_THREADS = 512


@dataclass(frozen=True)
class Cell:
    """One training of many: a recipe on a dataset, in a folder of its own."""

    name: str
    recipe: Recipe
    data: str
    out: str

    @property
    def bundle(self) -> str:
        return places.join(self.out, _BUNDLE)

    @property
    def scores(self) -> str:
        return places.join(self.out, _SCORES, METRICS_FILE)


def train_cells(
    cells: Sequence[Cell],
    *,
    threads: int = 1,
    use_gpu: bool = False,
    gpus: float = 1.0,
    workers: int = 1,
    parent: str | None = None,
    score: bool = True,
    figures: bool = False,
    progress: bool = True,
) -> dict[str, dict[str, Any]]:
    """Train and score all cells on the cluster; return the metrics of each by its name.

    Parameters
    ----------
    threads : int
        CPU threads, and logical CPUs, of a training; as many run at once as the cluster (on a
        private Ray: the machine) has.
    gpus : float
        GPUs of a training, with `use_gpu`; .25 lets four share one.
    workers : int
        Of a training; more than one are a Ray Train group, each with its threads, a logical CPU and
        `gpus`.
    parent : str, optional
        MLflow run that the trainings are nested in.
    score : bool
        Whether to score them; else the metrics are empty.
    figures : bool
        Whether every cell also gets its figures and page.

    Raises
    ------
    ConfigError
        If a cell's folder holds a bundle of another recipe or of other data.
    RuntimeError
        If trainings failed, after all others have finished; it names each with its cause.
    """
    datasets = {place: Dataset.open(place) for place in {cell.data for cell in cells}}
    waiting = [cell for cell in cells if not _done(cell, datasets[cell.data])]
    for cell in waiting:  # those with the same transform find the table of the first
        dataset, recipe = datasets[cell.data], cell.recipe
        prepare(dataset, load_family(recipe.family)(recipe, dataset.info()), progress=progress)
    for family in {cell.recipe.family for cell in waiting}:
        tracking.open_experiment(family)
    scale = Scale(workers, workers, gpus if use_gpu else 0.0, threads, side_by_side=1)
    trainer = ray.remote(max_retries=0, **_held(scale))(_train)
    groups = groups_that_fit(scale, len(cells)) if workers > 1 else max(len(cells), 1)
    # Scoring is a job of Ray Data, whose tasks need the CPUs; what starts it only waits for them.
    scorer, room = ray.remote(num_cpus=0, max_retries=0)(_score), BoundedSemaphore(_SCORED_AT_ONCE)
    at_once = BoundedSemaphore(groups)
    untrained = {cell.name for cell in waiting}

    def finish(cell: Cell) -> dict[str, Any]:
        if cell.name in untrained:
            version = datasets[cell.data].version
            with at_once:
                _lasting(lambda: ray.get(trainer.remote(cell, version, parent, scale)))
        if not score:
            return {}
        if not places.exists(cell.scores):
            with room:
                _lasting(lambda: ray.get(scorer.remote(cell, figures)))
        return places.read_json(cell.scores)

    try:
        metrics, failed = _all(finish, cells, progress)
    finally:
        _tell_rest(cells)
    if failed:
        reasons = "; ".join(f"{name}: {cause}" for name, cause in failed.items())
        raise RuntimeError(f"{len(failed)} of {len(cells)} trainings failed: {reasons}")
    return {cell.name: metrics[cell.name] for cell in cells}


def _all(
    finish: Callable[[Cell], dict[str, Any]], cells: Sequence[Cell], progress: bool
) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Finish all cells; return metrics, and causes of failures, by name.

    A thread waits for each; how many run at once is up to the cluster.
    """
    metrics: dict[str, dict[str, Any]] = {}
    failed: dict[str, str] = {}
    pool = ThreadPoolExecutor(min(len(cells), _THREADS) or 1, thread_name_prefix="cells")
    try:
        futures = {pool.submit(finish, cell): cell.name for cell in cells}
        with task("train", len(cells), "model", show=progress) as shown:
            shown.wait("the first model")
            for done in as_completed(futures):
                try:
                    metrics[futures[done]] = done.result()
                except RayError as error:
                    failed[futures[done]] = str(getattr(error, "cause", None) or error)
                shown.advance(note=f"{len(failed)} failed" if failed else "")
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    return metrics, failed


def _tell_rest(cells: Sequence[Cell]) -> None:
    """Send MLflow what the tasks of the cells could not; who started them is told what is left."""
    for run in (places.join(cell.out, _RUN, RUN_FILE) for cell in cells):
        if places.exists(run):
            outbox.send_or_say(tracking.tracking_uri(), places.read_json(run)["run_id"])


def _lasting(run: Callable[[], Any]) -> None:
    """Run a task until it ends by itself; a machine that went away is no fault of its own."""
    crashes = 0
    while True:
        try:
            run()
            return
        except NodeDiedError:
            continue
        except (WorkerCrashedError, OutOfMemoryError):
            crashes += 1
            if crashes > _CRASHES:
                raise


def _done(cell: Cell, dataset: Dataset) -> bool:
    """Return whether a cell has its bundle; refuse one that is not what the cell asks for."""
    if not places.exists(places.join(cell.bundle, BUNDLE_FILE)):
        return False
    found = read_bundle(cell.bundle)
    fingerprint = dataset.manifest.fingerprint
    if found["recipe"] != cell.recipe.snapshot() or found["data"]["fingerprint"] != fingerprint:
        raise ConfigError(
            f"{cell.bundle}: was trained with another recipe or on other data than asked for now; "
            "name another --out"
        )
    return True


def _held(scale: Scale) -> dict[str, Any]:
    """Return what the task of a training asks for; groups ask for their workers themselves."""
    if scale.workers > 1:
        return {"num_cpus": 0}
    threads = scale.threads or 1
    return {"num_cpus": threads, "num_gpus": scale.gpus, "resources": cores_for(threads)}


def _train(cell: Cell, version: int, parent: str | None, scale: Scale) -> None:
    train_member(
        cell.recipe, cell.data, places.join(cell.out, _RUN), scale, out=cell.bundle,
        version=version, parent=parent,
    )  # fmt: skip


def _score(cell: Cell, figures: bool) -> None:
    quiet_data()
    evaluate(cell.bundle, cell.data, places.join(cell.out, _SCORES), figures=figures)
