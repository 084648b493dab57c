"""From finished stages to a bundle: what the networks say of validation, then one small fit.

The rows are cut into blocks that no number of workers changes, and each block is one call of
`Family.raw_outputs`: so many GPUs or one give the same bundle, and none holds more than its blocks.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
import torch
from torch import nn

from skyray.bundles.bundle import write_bundle
from skyray.config import ConfigError
from skyray.data.prepared import KEY
from skyray.data.prepared_tables import PreparedTable
from skyray.families.base import Columns, DataInfo, Family, load_family
from skyray.training import loop
from skyray.training.loader import share_of
from skyray.training.scale import Scale
from skyray.training.worker import StageFiles

CALIBRATION_ROWS = 20_000
BLOCK_ROWS = 512


@dataclass(frozen=True)
class Trained:
    """A training whose stages are finished, as any process can take it up."""

    family_name: str
    recipe: dict[str, Any]
    data: dict[str, Any]
    table: PreparedTable
    run_uri: str

    @classmethod
    def of(cls, family: Family, table: PreparedTable, run_uri: str) -> Trained:
        recipe = family.recipe
        return cls(recipe.family, recipe.snapshot(), family.data.to_dict(), table, run_uri)

    def family(self) -> Family:
        kind = load_family(self.family_name)
        return kind(kind.recipe_type.load(self.recipe), DataInfo.from_dict(self.data))

    def model(self, family: Family) -> nn.Module:
        """Return the model with the part that each stage has left."""
        model = family.build_model()
        family.initialise(model)  # parts that no stage trains
        files = StageFiles(self.run_uri)
        for stage in family.stages():
            stage.part(model).load_state_dict(files.part(stage.name))
        return model.eval()


def calibration_rows(table: PreparedTable, seed: int) -> np.ndarray:
    """Return the rows of validation (of train if that is empty), ascending, int64 [N].

    Of more than CALIBRATION_ROWS, so many are drawn at random.

    Raises
    ------
    ConfigError
        If there are none.
    """
    rows = np.asarray(table.rows("validation") or table.rows("train"))
    if not len(rows):
        raise ConfigError(f"{table.uri}: expected rows to calibrate on, found none")
    if len(rows) > CALIBRATION_ROWS:
        rows = np.sort(np.random.default_rng(seed).choice(rows, CALIBRATION_ROWS, replace=False))
    return rows


def outputs_of_share(
    trained: Trained,
    rank: int = 0,
    of: int = 1,
    *,
    use_gpu: bool = False,
    threads: int = 1,
    block: int = BLOCK_ROWS,
) -> Columns:
    """Return what `Family.raw_outputs` gives for one of `of` shares of the rows, in their order.

    Shares are whole blocks of `block` rows, and no more than there are blocks.
    """
    torch.set_num_threads(threads)
    family, table = trained.family(), trained.table
    model = family.optimise_for_inference(trained.model(family)).to("cuda" if use_gpu else "cpu")
    names = [name for name in table.columns if name not in (KEY, "split")]
    rows = calibration_rows(table, family.recipe.seed)
    found = []
    for number in range(*share_of(0, math.ceil(len(rows) / block), rank, of)):
        chosen = rows[number * block : (number + 1) * block]
        found.append(family.raw_outputs(model, table.take(chosen, names)))
    return _joined(found)


def assemble_bundle(
    trained: Trained,
    out: str,
    provenance: dict[str, Any],
    history: list[dict[str, Any]],
    *shares: Columns,
) -> None:
    """Fit the calibration to the outputs of all shares, in their order, and write the bundle."""
    family = trained.family()
    calibration, tensors = family.fit_calibration(_joined(shares))
    content = loop.history_json(history)
    model = trained.model(family)
    write_bundle(out, family, model, calibration, tensors, provenance, content)


def finish(
    trained: Trained,
    out: str,
    provenance: dict[str, Any],
    history: list[dict[str, Any]],
    scale: Scale,
    lanes: int,
    block: int = BLOCK_ROWS,
) -> None:
    """Calibrate on as many workers as have trained, each with what it had, and write the bundle.

    Parameters
    ----------
    lanes : int
        Groups of workers that trained side by side.
    """
    rows = calibration_rows(trained.table, trained.recipe["seed"])
    shares = min(lanes * scale.workers, math.ceil(len(rows) / block))
    nodes = sum(node["Alive"] for node in ray.nodes())
    at_node = math.ceil(shares / nodes)
    worker = ray.remote(
        num_cpus=1, num_gpus=min(scale.gpus, 1.0), scheduling_strategy="SPREAD"
    )(_share)  # fmt: skip
    found = [
        worker.remote(trained, rank, shares, scale.gpus > 0, scale.threads, at_node, block)
        for rank in range(shares)
    ]
    writer = ray.remote(num_cpus=1)(assemble_bundle)
    ray.get(writer.remote(trained, out, provenance, history, *found))


def _share(
    trained: Trained, rank: int, of: int, use_gpu: bool, threads: int | None, at_node: int,
    block: int,
) -> Columns:  # fmt: skip
    threads = threads or max(1, len(os.sched_getaffinity(0)) // at_node)
    return outputs_of_share(trained, rank, of, use_gpu=use_gpu, threads=threads, block=block)


def _joined(parts: list[Columns] | tuple[Columns, ...]) -> Columns:
    """Return parts one after the other; a worker holds its own and what they are joined to."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
