"""Sweeps: a Bayesian search over a family's hyper-parameters on Ray Tune.

Optuna's TPE proposes, ASHA ends what falls behind, every trial is an MLflow run nested in the
sweep's. A sweep that was interrupted goes on when the same command is given again: finished trials
stay, those that were running go on from their own checkpoints, and each counts once.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from ray import tune
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.optuna import OptunaSearch

from skyray.config import ConfigError
from skyray.data.dataset import Dataset
from skyray.data.prepared import prepare
from skyray.families.base import Choice, Family, Objective, Range, Recipe, load_family
from skyray.runtime import outbox, places, tracking
from skyray.runtime.progress import Row, task
from skyray.runtime.session import cores_for
from skyray.search.tune_figures import sweep_figures
from skyray.training.lanes import NODE_DIED, groups_that_fit
from skyray.training.nested import train_member
from skyray.training.scale import Scale

SWEEP_FILE = "sweep.json"
TRIALS_FILE = "trials.parquet"
BEST_FILE = "best.json"
_RUNS, _RAY = "runs", "ray"
# How often Ray Tune saves the state of search and trials, s: a killed sweep repeats no more.
os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "5")
# How long the process of an ended trial may take before the next one, s: MLflow is told the rest.
os.environ.setdefault("TUNE_FUNCTION_THREAD_TIMEOUT_S", "120")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # its tables; ours is a row of the display


@dataclass(frozen=True)
class SweepResult:
    """What a sweep left.

    Attributes
    ----------
    trials : pandas.DataFrame
        One row a trial: its number, state, epochs, best objective, settings and MLflow run.
    best : list of str
        ``key=value`` changes of the recipe that gave the best trial.
    value : float
        Its objective.
    """

    out: str
    run_id: str
    trials: pd.DataFrame
    best: list[str]
    value: float
    objective: Objective


def tune_recipe(
    recipe: Recipe,
    data: str,
    out: str,
    *,
    trials: int = 20,
    concurrent: int | None = None,
    threads: int = 1,
    use_gpu: bool = False,
    workers: int = 1,
    grace_epochs: int = 2,
    progress: bool = True,
) -> SweepResult:
    """Search a recipe's hyper-parameters; Ray must have been started.

    Parameters
    ----------
    recipe : Recipe
        Its family's `search_space` says what varies; the rest stays as it is here. Its seed seeds
        the search too.
    out : str
        Folder (or URI) of the sweep: new, or interrupted, which is then finished.
    concurrent : int, optional
        Trials at once; default: as many as the cluster's CPUs (GPUs) hold.
    threads : int
        CPU threads, and logical CPUs, of a trial.
    workers : int
        Of a trial; more than one are a Ray Train group, each with its threads, a logical CPU and,
        with `use_gpu`, a GPU.
    grace_epochs : int
        Epochs (of the objective's stage) that every trial gets before ASHA may end it.

    Raises
    ------
    ConfigError
        If the family declares no search space, or `out` holds a sweep of something else.
    """
    out, data = places.absolute(out), places.absolute(data)
    begun = _begun(out)
    dataset = Dataset.open(data, begun["version"] if begun.get("data") == data else None)
    family = load_family(recipe.family)(recipe, dataset.info())
    space = family.search_space(recipe)
    if not space:
        raise ConfigError(f"family {recipe.family!r}: declares no search space for {recipe.name!r}")
    run_id, objective = _open_sweep(recipe, family, out, data), family.objective()
    prepare(dataset, family, progress=progress)  # once for all trials but those that change it
    scale = Scale(workers, workers, float(use_gpu), threads, side_by_side=1)
    trial = _Trial(
        recipe.family, recipe.snapshot(), data, dataset.version, out, run_id, objective, scale
    )
    resources = {"cpu": threads, **({"gpu": 1} if use_gpu else {}), **cores_for(threads)}
    if workers > 1:  # which a trial's group takes for itself: no more trials than groups that fit
        resources = {"cpu": 0, "memory": 1}  # a byte: Ray Tune starts no trial that asks nothing
        concurrent = groups_that_fit(scale, min(trials, concurrent or trials))
    trainable = tune.with_resources(lambda settings: trial.run(settings), resources)
    epochs = next(s.train.epochs for s in family.stages() if s.name == objective.stage)
    failed = True
    try:
        with task("tune", trials, "trial", show=progress) as shown:
            shown.wait("the first trial")
            _rows[out] = shown
            found = _tuner(
                trainable, space, objective, out, trials, concurrent, recipe.seed, epochs,
                grace_epochs,
            ).fit()  # fmt: skip
        table = _table(found, out, objective, list(space))
        tracking.delete_other_children(run_id, set(table["run_id"]))
        failed = False
    finally:
        _rows.pop(out, None)
        tracking.finish_run(run_id, failed)
    return _conclude(out, run_id, table, objective, list(space))


def to_ray(space: dict[str, Choice | Range]) -> dict[str, Any]:
    """Return a family's search space in Ray Tune's words."""
    words: dict[str, Any] = {}
    for key, domain in space.items():
        if isinstance(domain, Choice):
            words[key] = tune.choice(list(domain.values))
        elif domain.step:
            make = tune.qloguniform if domain.log else tune.quniform
            words[key] = make(domain.low, domain.high, domain.step)
        else:
            words[key] = (tune.loguniform if domain.log else tune.uniform)(domain.low, domain.high)
    return words


def assignments(settings: dict[str, Any]) -> list[str]:
    """Return a trial's settings as changes of a recipe (`Config.override`)."""
    return [f"{key}={list(v) if isinstance(v, tuple) else v}" for key, v in settings.items()]


def _open_sweep(recipe: Recipe, family: Family, out: str, data: str) -> str:
    """Return the sweep's MLflow run; refuse a folder that holds another sweep."""
    about = {"recipe": recipe.snapshot(), "data": data, "fingerprint": family.data.fingerprint}
    if found := _begun(out):
        for key, value in about.items():
            if found.get(key) != value:
                raise ConfigError(f"{out}: holds a sweep with another {key}; name another --out")
        return found["run_id"]
    run_id = tracking.start_run(
        recipe.family, f"sweep-{recipe.name}", recipe.snapshot(), {"skyray.data": data}
    )
    told = {**about, "version": family.data.version, "run_id": run_id}
    places.write_json(places.join(out, SWEEP_FILE), told)
    return run_id


def _begun(out: str) -> dict[str, Any]:
    """Return what the sweep in a folder is of; nothing where none was begun."""
    place = places.join(out, SWEEP_FILE)
    return places.read_json(place) if places.exists(place) else {}


@dataclass(frozen=True)
class _Trial:
    """What every trial does, made of plain values."""

    family: str
    recipe: dict[str, Any]
    data: str
    version: int
    out: str
    parent: str
    objective: Objective
    scale: Scale

    def run(self, settings: dict[str, Any]) -> None:
        recipe = load_family(self.family).recipe_type.load(self.recipe)
        recipe = recipe.override(assignments(settings))
        sign = 1.0 if self.objective.better == "max" else -1.0
        best = -math.inf

        def report(row: dict[str, Any]) -> None:
            nonlocal best
            value = row.get(f"validation_{self.objective.metric}")
            if row["stage"] != self.objective.stage or value is None or math.isnan(value):
                return
            best = max(best, sign * value)
            tune.report({"objective": value, "best": sign * best, "epoch": row["epoch"] + 1})

        name = tune.get_context().get_trial_id()
        train_member(
            recipe, self.data, places.join(self.out, _RUNS, name), self.scale,
            version=self.version, parent=self.parent, last_stage=self.objective.stage,
            on_epoch=report,
        )  # fmt: skip


_rows: dict[str, Row] = {}  # of the sweeps this process drives, by their folder


class _Watch(tune.Callback):
    """Moves the sweep's row of the display as trials end.

    Ray Tune keeps its callbacks in the sweep's folder for a restored sweep, so this one knows the
    folder and not the row.
    """

    def __init__(self, out: str, better: str):
        self._out, self._better = out, better

    def on_trial_recover(self, iteration, trials, trial, **info) -> None:
        """Forgive a trial that its machine went away: that is no failure of the trial's."""
        if NODE_DIED in str(trial.get_error()):
            trial.run_metadata.num_failures -= 1

    def on_trial_complete(self, iteration, trials, trial, **info) -> None:
        values = [t.last_result.get("best", math.nan) for t in trials if t.last_result]
        values = [value for value in values if not math.isnan(value)]
        row = _rows.get(self._out)
        if row is None:
            return
        ended = {t.trial_id for t in trials if t.is_finished()} | {trial.trial_id}
        best = max if self._better == "max" else min
        row.update(len(ended), f"best {best(values):.4g}" if values else None)


def _tuner(trainable, space, objective, out, trials, concurrent, seed, epochs, grace) -> tune.Tuner:
    filesystem, path = places.resolve(out)
    place = f"{path}/{_RAY}"
    if tune.Tuner.can_restore(place, storage_filesystem=filesystem):
        return tune.Tuner.restore(
            place, trainable, storage_filesystem=filesystem, resume_unfinished=True,
            restart_errored=True,
        )  # fmt: skip
    scheduler = ASHAScheduler(
        time_attr="epoch", max_t=epochs, grace_period=min(grace, epochs), reduction_factor=3
    )
    return tune.Tuner(
        trainable,
        param_space=to_ray(space),
        tune_config=tune.TuneConfig(
            metric="best",
            mode=objective.better,
            search_alg=OptunaSearch(seed=seed),
            scheduler=scheduler,
            num_samples=trials,
            max_concurrent_trials=concurrent,
            reuse_actors=True,  # a new process spends seconds on imports
        ),
        run_config=tune.RunConfig(
            name=_RAY, storage_path=path, storage_filesystem=filesystem, verbose=0,
            callbacks=[_Watch(out, objective.better)],
            failure_config=tune.FailureConfig(max_failures=1),
        ),
    )  # fmt: skip


def _table(found: tune.ResultGrid, out: str, objective: Objective, keys: list[str]) -> pd.DataFrame:
    """Return one row a trial and close the runs of those that were ended early."""
    rows = []
    for result in found:
        metrics = result.metrics or {}
        name = places.name(result.path).split("_")[1] if result.path else ""
        run = places.join(out, _RUNS, metrics.get("trial_id", name), "run.json")
        run_id = places.read_json(run)["run_id"] if places.exists(run) else ""
        if run_id:
            tracking.finish_run(run_id, failed=result.error is not None)
        settings = {key: (result.config or {}).get(key) for key in keys}
        rows.append(
            {
                "trial": metrics.get("trial_id", name),
                objective.metric: metrics.get("best", math.nan),
                "epochs": metrics.get("epoch", 0),
                "seconds": metrics.get("time_total_s", math.nan),
                "failed": result.error is not None,
                **settings,
                "run_id": run_id,
            }
        )
    table = pd.DataFrame(rows)
    ascending = objective.better == "min"
    return table.sort_values(objective.metric, ascending=ascending, ignore_index=True)


def _conclude(
    out: str, run_id: str, table: pd.DataFrame, objective: Objective, keys: Sequence[str]
) -> SweepResult:
    finished = table[table[objective.metric].notna() & ~table["failed"]]
    if finished.empty:
        raise RuntimeError(f"{out}: none of {len(table)} trials gave a {objective.metric}")
    first = finished.iloc[0]
    best = assignments({key: _plain(first[key]) for key in keys})
    value = float(first[objective.metric])
    shown = table.assign(**{key: table[key].map(str) for key in keys if table[key].dtype == object})
    places.write_bytes(places.join(out, TRIALS_FILE), shown.to_parquet())
    places.write_json(
        places.join(out, BEST_FILE), {"changes": best, "metric": objective.metric, "value": value}
    )
    with places.local_folder(places.join(out, "figures")) as folder:
        sweep_figures(table, objective, list(keys), folder)
    uri = tracking.tracking_uri()
    tracking.log_metrics(uri, run_id, {f"best/{objective.metric}": value}, step=len(table))
    outbox.send_or_say(uri, run_id)
    return SweepResult(out, run_id, table, best, value, objective)


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value
