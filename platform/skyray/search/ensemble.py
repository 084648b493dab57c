"""The same recipe over many seeds: medians with their scatter instead of one lucky number.

Every seed is one training in one process, spread over the cluster as Ray tasks, with a folder of
its own; finished ones are never repeated, so an interrupted ensemble goes on where it stopped.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray

from skyray.bundles.bundle import BUNDLE_FILE, read_bundle
from skyray.config import ConfigError
from skyray.data.dataset import Dataset
from skyray.data.prepared import prepare
from skyray.families.base import Recipe, load_family
from skyray.inference.evaluate import evaluate
from skyray.runtime import places, tracking
from skyray.runtime.session import cores_for
from skyray.training.lone import train_alone

METRICS_FILE = "metrics.json"
_BUNDLE, _SCORES, _RUN = "bundle", "scores", "run"


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
    parent: str | None = None,
    figures: bool = False,
    progress: bool = True,
) -> dict[str, dict[str, Any]]:
    """Train and score all cells on the cluster; return the metrics of each by its name.

    Parameters
    ----------
    threads : int
        CPU threads, and logical CPUs, of a training; as many run at once as the cluster (on a
        private Ray: the machine) has.
    parent : str, optional
        MLflow run that the trainings are nested in.
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
    task = ray.remote(
        num_cpus=threads, num_gpus=1 if use_gpu else 0, resources=cores_for(threads), max_retries=2
    )(_train)
    running = {
        task.remote(
            cell.recipe.family, cell.recipe.snapshot(), cell.data, datasets[cell.data].version,
            cell.out, parent, threads, use_gpu,
        ): cell
        for cell in waiting
    }  # fmt: skip
    failed: dict[str, str] = {}
    there = len(cells) - len(waiting)
    with task("train", len(cells), "model", done=there, show=progress) as shown:
        shown.wait("the first model")
        while running:
            (done,), _ = ray.wait(list(running), num_returns=1)
            cell = running.pop(done)
            try:
                ray.get(done)
            except ray.exceptions.RayError as error:
                failed[cell.name] = str(getattr(error, "cause", None) or error)
            shown.advance(note=f"{len(failed)} failed" if failed else "")
    trained = [cell for cell in cells if cell.name not in failed]
    metrics = {}
    with task("evaluate", len(trained), "model", show=progress) as shown:
        for cell in trained:
            metrics[cell.name] = _score(cell, figures)
            shown.advance()
    if failed:
        reasons = "; ".join(f"{name}: {cause}" for name, cause in failed.items())
        raise RuntimeError(f"{len(failed)} of {len(cells)} trainings failed: {reasons}")
    return metrics


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


def _train(family, recipe, data, version, out, parent, threads, use_gpu) -> None:
    loaded = load_family(family).recipe_type.load(recipe)
    train_alone(
        loaded, data, places.join(out, _RUN), out=places.join(out, _BUNDLE), version=version,
        parent=parent, threads=threads, use_gpu=use_gpu,
    )  # fmt: skip


def _score(cell: Cell, figures: bool) -> dict[str, Any]:
    if not places.exists(cell.scores):
        evaluate(cell.bundle, cell.data, places.join(cell.out, _SCORES), figures=figures)
    return places.read_json(cell.scores)


@dataclass(frozen=True)
class Spread:
    """A metric over seeds."""

    median: float
    std: float
    values: list[float]

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Return median and sample standard deviation (0 for one value)."""
        values = [float(value) for value in values]
        std = statistics.stdev(values) if len(values) > 1 else 0.0
        return cls(statistics.median(values), std, values)

    def __str__(self) -> str:
        return f"{self.median:.4g} ± {self.std:.2g}"


def spreads(metrics: Sequence[dict[str, Any]]) -> dict[str, Spread]:
    """Return the spread of every number that all of `metrics` have."""
    numbers = [
        {k for k, v in row.items() if isinstance(v, int | float) and not isinstance(v, bool)}
        for row in metrics
    ]
    names = sorted(set.intersection(*numbers)) if numbers else []
    return {name: Spread.of([row[name] for row in metrics]) for name in names}


def ensemble(
    recipe: Recipe,
    data: str,
    out: str,
    *,
    members: int = 5,
    threads: int = 1,
    use_gpu: bool = False,
    progress: bool = True,
) -> dict[str, Spread]:
    """Train a recipe with `members` seeds (its own, and those after it); return every score.

    ``OUT/seed-N/bundle`` and ``OUT/seed-N/scores`` hold each member, ``OUT/ensemble.json`` medians,
    standard deviations and values. Ray must have been started.
    """
    out, data = places.absolute(out), places.absolute(data)
    seeds = range(recipe.seed, recipe.seed + members)
    cells = [
        Cell(f"seed-{s}", recipe.override([f"seed={s}"]), data, places.join(out, f"seed-{s}"))
        for s in seeds
    ]
    metrics = train_cells(cells, threads=threads, use_gpu=use_gpu, figures=True, progress=progress)
    found = spreads(list(metrics.values()))
    summary = {name: vars(spread) for name, spread in found.items()}
    places.write_json(
        places.join(out, "ensemble.json"),
        {"recipe": recipe.snapshot(), "data": data, "seeds": list(seeds), "scores": summary},
    )
    return found
