"""A grid of trainings as one job: recipes × data sets × changes × seeds, with one result table.

Every cell is a training of its own (see `skyray.search.cells`), spread over the cluster; cells
that are done are never repeated.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from skyray.config import ConfigError
from skyray.data.dataset import Dataset
from skyray.families.base import load_recipe
from skyray.runtime import places, tracking
from skyray.search.cells import Cell, train_cells
from skyray.search.ensemble import Spread

TABLE_FILE = "grid.parquet"


def run_grid(
    recipes: Sequence[str],
    data: Mapping[str, str],
    out: str,
    *,
    vary: Mapping[str, Sequence[Any]] | None = None,
    seeds: int = 5,
    changes: Sequence[str] = (),
    threads: int = 1,
    use_gpu: bool = False,
    workers: int = 1,
    progress: bool = True,
) -> pd.DataFrame:
    """Train every combination and return one row a cell with its scores.

    Parameters
    ----------
    recipes : sequence of str
        ``FAMILY/NAME``; of one family, so that their scores can be compared.
    data : mapping
        Name → dataset.
    vary : mapping
        Recipe key → the values it takes, e.g. ``{"fraction": [0.05, 0.1, 0.5, 1.0]}``.
    seeds : int
        Trainings of each combination, from the recipe's seed on.
    changes : sequence of str
        ``key=value`` changes of all recipes.
    threads, use_gpu, workers
        Of a training; see `train_cells`.

    Raises
    ------
    ConfigError
        If nothing is to be trained, or a name occurs twice.
    """
    if not recipes or not data:
        raise ConfigError("grid: expected at least one recipe and one dataset")
    if len({name.partition("/")[0] for name in recipes}) > 1:
        raise ConfigError(f"grid: expected recipes of one family, found {list(recipes)}")
    out = places.absolute(out)
    rows = _combinations(recipes, data, vary or {}, seeds, changes, out)
    names = [cell.name for cell, _ in rows]
    if len(set(names)) < len(names):
        raise ConfigError("grid: the same combination occurs twice")
    parent = _parent(recipes[0].partition("/")[0], out)
    failed = True
    try:
        metrics = train_cells(
            [cell for cell, _ in rows], threads=threads, use_gpu=use_gpu, workers=workers,
            parent=parent, progress=progress,
        )  # fmt: skip
        failed = False
    finally:
        tracking.finish_run(parent, failed)
    table = pd.DataFrame([{**about, **_numbers(metrics[cell.name])} for cell, about in rows])
    places.write_bytes(places.join(out, TABLE_FILE), table.to_parquet())
    return table


def _combinations(recipes, data, vary, seeds, changes, out) -> list[tuple[Cell, dict[str, Any]]]:
    rows = []
    for name, (label, uri) in itertools.product(recipes, data.items()):
        base = load_recipe(name).override(changes)
        Dataset.open(uri)  # refused now, not after hours
        for values in itertools.product(*vary.values()):
            settings = dict(zip(vary, values, strict=True))
            chosen = base.override([f"{key}={value}" for key, value in settings.items()])
            for seed in range(base.seed, base.seed + seeds):
                recipe = chosen.override([f"seed={seed}"])
                parts = [name, label, *(f"{k}={v}" for k, v in settings.items()), f"seed={seed}"]
                folder = re.sub(r"[^A-Za-z0-9._=-]+", "_", "-".join(parts))
                cell = Cell(folder, recipe, places.absolute(uri), places.join(out, "cells", folder))
                rows.append((cell, {"recipe": name, "data": label, **settings, "seed": seed}))
    return rows


def _parent(family: str, out: str) -> str:
    place = places.join(out, "grid.json")
    if places.exists(place):
        return places.read_json(place)["run_id"]
    run_id = tracking.start_run(family, f"grid-{places.name(out)}", {}, {})
    places.write_json(place, {"run_id": run_id})
    return run_id


def _numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    return {k: v for k, v in metrics.items() if isinstance(v, int | float)}


def summarise(table: pd.DataFrame, by: Sequence[str], metric: str) -> pd.DataFrame:
    """Return median, standard deviation and number of seeds of `metric` for every combination."""
    rows = []
    for values, group in table.groupby(list(by), sort=False):
        spread = Spread.of(group[metric].tolist())
        about = dict(zip(by, values, strict=True))
        rows.append({**about, "median": spread.median, "std": spread.std, "seeds": len(group)})
    return pd.DataFrame(rows)


def grid_figure(
    table: pd.DataFrame, x: str, metric: str, place: Path, compare: Sequence[str]
) -> Path:
    """Draw `metric` against `x`: one line with error bars for every combination of `compare`."""
    import matplotlib.pyplot as plt

    found = summarise(table, [*compare, x], metric)
    figure, axis = plt.subplots(figsize=(7, 4.5))
    for number, (values, group) in enumerate(found.groupby(list(compare), sort=False)):
        group = group.sort_values(x)
        shift = 1 + 0.02 * number  # side by side, so that no error bar hides another
        axis.errorbar(
            group[x] * shift, group["median"], yerr=group["std"], marker="o", capsize=3,
            label=", ".join(map(str, values)),
        )  # fmt: skip
    if (table[x] > 0).all() and table[x].max() > 5 * table[x].min():
        axis.set_xscale("log")
    axis.set_xlabel(x)
    axis.set_ylabel(f"{metric} (median ± std over seeds)")
    axis.legend(fontsize=8)
    figure.tight_layout()
    place.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(place, dpi=130)
    plt.close(figure)
    return place
