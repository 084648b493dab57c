"""The verbs that train many times: sweeps, ensembles, grids."""

from __future__ import annotations

import itertools
from typing import Annotated

import typer

from skyray.cli.verb import (
    Address,
    Changes,
    Json,
    Progress,
    RecipeName,
    TrainingData,
    cluster,
    devices,
    verb,
)

Threads = Annotated[int, typer.Option(min=1, help="CPU threads of a training.")]
Gpu = Annotated[bool, typer.Option("--gpu", help="One GPU a worker.")]
Workers = Annotated[
    int, typer.Option(min=1, help="Data-parallel workers of a training; 1: alone in a process.")
]


@verb
def tune(
    recipe: RecipeName,
    data: TrainingData,
    out: Annotated[str, typer.Option(help="Folder of the sweep; an interrupted one is finished.")],
    trials: Annotated[int, typer.Option(min=1, help="Trials in all.")] = 20,
    concurrent: Annotated[
        int | None, typer.Option(help="Trials at once; default: what the cluster holds.")
    ] = None,
    seeds: Annotated[
        int, typer.Option(min=0, help="Then train the best settings with so many seeds.")
    ] = 0,
    threads: Threads = 1,
    gpu: Gpu = False,
    workers: Workers = 1,
    set_: Changes = None,
    progress: Progress = True,
    address: Address = None,
    json: Json = None,
):
    """Search a family's hyper-parameters (Bayesian, early stopping); every trial is an MLflow run.

    Example: skyray tune redshift/sdss_coarse_laptop --data mock --trials 20 --out sweep --seeds 5
    """
    gpus = workers if gpu else 0
    devices(address, gpus, max(threads, workers))
    from skyray.cli.beforehand import check_training, check_writable
    from skyray.families.base import load_recipe
    from skyray.runtime import places

    chosen = load_recipe(recipe).override(set_ or [])
    check_writable(out)
    check_training(chosen, data)
    with cluster("tune", address, gpus):
        from skyray.search.ensemble import ensemble as run_ensemble
        from skyray.search.tune import tune_recipe

        done = tune_recipe(
            chosen, data, out, trials=trials, concurrent=concurrent, threads=threads, use_gpu=gpu,
            workers=workers, progress=progress,
        )  # fmt: skip
        result = {
            "trials": len(done.trials),
            "failed trials": int(done.trials["failed"].sum()),
            f"best {done.objective.metric}": done.value,
            "best settings": done.best,
            "table": places.join(out, "trials.parquet"),
            "figure": places.join(out, "figures", "sweep.png"),
        }
        if seeds:
            scores = run_ensemble(
                chosen.override(done.best), data, places.join(out, "best"), members=seeds,
                threads=threads, use_gpu=gpu, workers=workers, progress=progress,
            )  # fmt: skip
            result |= {name: str(spread) for name, spread in scores.items()}
    return result


@verb
def ensemble(
    recipe: RecipeName,
    data: TrainingData,
    out: Annotated[str, typer.Option(help="Folder of the bundles and their scores.")],
    members: Annotated[int, typer.Option(min=1, help="Seeds.")] = 5,
    threads: Threads = 1,
    gpu: Gpu = False,
    workers: Workers = 1,
    set_: Changes = None,
    progress: Progress = True,
    address: Address = None,
    json: Json = None,
):
    """Train a recipe with several seeds: median ± standard deviation of every score.

    Example: skyray ensemble redshift/sdss_coarse_laptop --data mock --members 5 --out ensemble
    """
    gpus = workers if gpu else 0
    devices(address, gpus, max(threads, workers))
    from skyray.cli.beforehand import check_training, check_writable
    from skyray.families.base import load_recipe

    chosen = load_recipe(recipe).override(set_ or [])
    check_writable(out)
    check_training(chosen, data)
    with cluster("ensemble", address, gpus):
        from skyray.search.ensemble import ensemble as run

        scores = run(
            chosen, data, out, members=members, threads=threads, use_gpu=gpu, workers=workers,
            progress=progress,
        )  # fmt: skip
    return {name: str(spread) for name, spread in scores.items()}


@verb
def grid(
    recipes: Annotated[list[str], typer.Argument(help="Recipes of one family: FAMILY/NAME …")],
    data: Annotated[list[str], typer.Option(help="Dataset, or NAME=DATASET. Repeat for several.")],
    out: Annotated[str, typer.Option(help="Folder of all cells; an interrupted grid is finished.")],
    vary: Annotated[
        list[str] | None, typer.Option(help="key=[value, …] over which to vary. Repeat.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Trainings of each combination.")] = 5,
    metric: Annotated[str, typer.Option(help="Score of table and figure.")] = "auc",
    threads: Threads = 1,
    gpu: Gpu = False,
    workers: Workers = 1,
    set_: Changes = None,
    progress: Progress = True,
    address: Address = None,
    json: Json = None,
):
    """Train recipes × datasets × settings × seeds; one table, one figure with error bars.

    Example: skyray grid alerts/ztf_cnn alerts/ztf_convnext --data mock
    --vary "fraction=[0.05, 0.1, 0.5, 1.0]" --out grid
    """
    gpus = workers if gpu else 0
    devices(address, gpus, max(threads, workers))
    from skyray.cli.beforehand import check_training, check_writable
    from skyray.families.base import load_recipe
    from skyray.runtime import places

    varied = _varied(vary or [])
    check_writable(out)
    named = _named(data)
    for recipe, place in itertools.product(recipes, named.values()):
        check_training(load_recipe(recipe).override(set_ or []), place)
    with cluster("grid", address, gpus):
        from skyray.search.grid import grid_figure, run_grid, summarise

        table = run_grid(
            recipes, named, out, vary=varied, seeds=seeds, changes=set_ or [],
            threads=threads, use_gpu=gpu, workers=workers, progress=progress,
        )  # fmt: skip
        found = summarise(table, ["recipe", "data", *varied], metric)
        result = {
            ", ".join(str(row[key]) for key in ("recipe", "data", *varied)):
            f"{row['median']:.4g} ± {row['std']:.2g} ({row['seeds']} seeds)"
            for row in found.to_dict("records")
        }  # fmt: skip
        if varied:
            x = next(iter(varied))
            compare = ["recipe", "data", *list(varied)[1:]]
            place = places.join(out, "figures")
            with places.local_folder(place) as folder:
                grid_figure(table, x, metric, folder / f"{metric}.png", compare)
            result["figure"] = places.join(place, f"{metric}.png")
    return {**result, "table": places.join(out, "grid.parquet")}


def _named(items: list[str]) -> dict[str, str]:
    """Return name → dataset of ``NAME=DATASET``, or of datasets, which may hold a ``=`` too."""
    from skyray.runtime import places

    named = {}
    for item in items:
        name, equals, place = item.partition("=")
        given = equals and "/" not in name
        named[name if given else places.name(item)] = place if given else item
    return named


def _varied(items: list[str]) -> dict[str, list]:
    import yaml

    from skyray.config import ConfigError

    varied = {}
    for item in items:
        key, _, text = item.partition("=")
        values = yaml.safe_load(text) if text else None
        if not isinstance(values, list) or not values:
            raise ConfigError(f"--vary {item!r}: expected key=[value, …]")
        varied[key.strip()] = values
    return varied
