"""What frozen parts of a model make of a stage's rows: computed once, kept as a prepared table.

The table is named by the rows, the stage and all that decides the features: the weights that do not
learn in this stage, the recipe's settings and the sources. So workers share the work, and restarts,
seeds and trials with the same frozen parts find it done.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator

import numpy as np
import torch
from torch import nn

from skyray.data.prepared import KEY, sources_digest
from skyray.data.prepared_space import keep_within_bound
from skyray.data.prepared_tables import PreparedTable, Written, publish, write_batches
from skyray.families.base import Columns, Family, Stage, Tensors, TrainConfig
from skyray.runtime import places
from skyray.training.loader import Rows, Source, StageRows, joined
from skyray.training.worker import Worker

_BATCH_ROWS = 256
_BLOCK_BATCHES = 16
_SHARED_SOURCES = ("models", "transforms")


def stage_rows(
    rows: Rows, family: Family, stage: Stage, model: nn.Module, worker: Worker
) -> dict[str, StageRows]:
    """Return both splits of a stage, with its features where it has any.

    Every rank computes a part of features that are not there yet. Inputs that `Stage.features`
    passes on unchanged are not stored again but read beside them.
    """
    if stage.features is None:
        return rows.of(stage)
    chosen = rows.chosen(stage)
    if not len(chosen["train"]):
        return {split: StageRows([]) for split in chosen}
    limit = stage.train.memory_bytes
    inputs = rows.source(rows.table, rows.table.numbers, joined(chosen), 0)
    made = PreparedTable(feature_place(rows.table, family, stage, model, chosen, worker))
    if worker.largest(int(worker.leads and made.exists())) == 0:
        _make(made.uri, inputs, rows.table, family, stage, model, chosen, worker)
    source = rows.source(made, made.numbers, joined(chosen), limit)
    passed = made.about["passed"]
    found = {}
    for split, numbers in chosen.items():
        sources: list[tuple[Source, np.ndarray]] = [(source, np.asarray(made.rows(split)))]
        if passed:
            beside = rows.source(rows.table, passed, joined(chosen), limit)
            sources.append((beside, numbers))
        found[split] = StageRows(sources, [rows.table, made], stage.arrange)
    return found


def feature_place(
    table: PreparedTable,
    family: Family,
    stage: Stage,
    model: nn.Module,
    chosen: dict[str, np.ndarray],
    worker: Worker,
) -> str:
    """Return where the features of a stage lie."""
    digest = hashlib.sha256()
    settings = {
        name: value
        for name, value in family.recipe.snapshot().items()
        if name not in ("name", "seed")
        and not isinstance(getattr(family.recipe, name), TrainConfig)
    }
    told = {
        "settings": settings,
        "classes": family.data.classes,
        "sources": sources_digest(type(family), _SHARED_SOURCES),
        "device": worker.device.type,
    }
    digest.update(json.dumps(told, sort_keys=True).encode())
    for split, numbers in chosen.items():
        digest.update(split.encode() + numbers.tobytes())
    for name, value in sorted(frozen_state(stage, model).items()):
        digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    name = places.name(table.uri).removesuffix(".lance")
    part = stage.name.replace("/", "--")
    return places.join(places.parent(table.uri), f"{name}-{part}-{digest.hexdigest()[:16]}.lance")


def frozen_state(stage: Stage, model: nn.Module) -> Tensors:
    """Return the parameters and buffers of a model that a stage does not train."""
    part = stage.part(model)
    learning = {
        id(parameter)
        for name, parameter in part.named_parameters()
        if stage.trains is None or stage.trains(name)
    }
    state = {name: p for name, p in model.named_parameters() if id(p) not in learning}
    return {**state, **dict(model.named_buffers())}


def _make(
    uri: str,
    inputs: Source,
    table: PreparedTable,
    family: Family,
    stage: Stage,
    model: nn.Module,
    chosen: dict[str, np.ndarray],
    worker: Worker,
) -> None:
    """Compute the features, block by block shared among the ranks, and publish them."""
    numbers, passed = joined(chosen), set()
    size = _BATCH_ROWS * _BLOCK_BATCHES
    ours: list[tuple[int, Written]] = []
    for block in range(worker.rank, -(-len(numbers) // size), worker.world_size):
        rows = numbers[block * size : (block + 1) * size]

        def batches(rows: np.ndarray = rows) -> Iterator[Columns]:
            names = table.take(rows, [KEY])[KEY]
            read = StageRows([(inputs, rows)], [table])
            for batch in read.batches(_BATCH_ROWS, 0, 1, worker.device):
                made = _features(stage, model, batch.tensors)
                passed.update(k for k, v in made.items() if v is batch.tensors.get(k))
                kept = {k: _plain(v) for k, v in made.items() if k not in passed}
                yield {KEY: names[: batch.rows], **kept}
                names = names[batch.rows :]

        ours.append((block, write_batches(uri, batches, len(rows))))
    parts = dict(part for found in worker.gather(ours) for part in found)
    if worker.leads:
        splits, stop = {}, 0
        for split, found in chosen.items():
            splits[split] = [stop, stop := stop + len(found)]
        about = {name: table.about[name] for name in ("card", "data", "fingerprint", "version")}
        about |= {"recipe": f"{family.recipe.family}/{family.recipe.name}", "stage": stage.name,
                  "splits": splits, "passed": sorted(passed)}  # fmt: skip
        publish(uri, [parts[block] for block in sorted(parts)], about)
        keep_within_bound()
    worker.largest(0)  # nobody reads before it is published


@torch.no_grad()
def _features(stage: Stage, model: nn.Module, batch: Tensors) -> Tensors:
    return stage.features(model, batch)


def _plain(values: torch.Tensor) -> np.ndarray:
    values = values.detach().cpu()
    return (values.float() if values.dtype == torch.bfloat16 else values).numpy()
