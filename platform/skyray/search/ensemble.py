"""The same recipe over many seeds: medians with their scatter instead of one lucky number.

Finished seeds are never repeated, so an interrupted ensemble goes on where it stopped.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from skyray.families.base import Recipe
from skyray.runtime import places
from skyray.search.cells import Cell, train_cells


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
    workers: int = 1,
    progress: bool = True,
) -> dict[str, Spread]:
    """Train a recipe with `members` seeds (its own, and those after it); return every score.

    For `threads`, `use_gpu` and `workers` see `train_cells`.

    ``OUT/seed-N/bundle`` and ``OUT/seed-N/scores`` hold each member, ``OUT/ensemble.json`` medians,
    standard deviations and values. Ray must have been started.
    """
    out, data = places.absolute(out), places.absolute(data)
    seeds = range(recipe.seed, recipe.seed + members)
    cells = [
        Cell(f"seed-{s}", recipe.override([f"seed={s}"]), data, places.join(out, f"seed-{s}"))
        for s in seeds
    ]
    metrics = train_cells(
        cells, threads=threads, use_gpu=use_gpu, workers=workers, figures=True, progress=progress
    )
    found = spreads(list(metrics.values()))
    summary = {name: vars(spread) for name, spread in found.items()}
    places.write_json(
        places.join(out, "ensemble.json"),
        {"recipe": recipe.snapshot(), "data": data, "seeds": list(seeds), "scores": summary},
    )
    return found
