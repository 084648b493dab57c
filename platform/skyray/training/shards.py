"""Training data on the workers: deterministic shards and seeded, resumable epochs.

The default holds each worker's transformed shard in memory: order then is a pure function of
(seed, stage, epoch, rank), so a run resumes in the middle of an epoch and repeats itself exactly.
With ``cache=False`` batches stream from Ray Data at every epoch for data larger than memory. Order
is then Ray's, a resumed run starts its epoch anew, and Ray leaves out the rows (fewer than there
are workers) that do not divide evenly among the workers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from ray.train import DataConfig
from torch import nn

from skyray.families.base import Columns, Stage, Tensors

_FETCH_ROWS = 2048
_FEATURE_ROWS = 256


class DeterministicShards(DataConfig):
    """Split datasets by row order, so that the same data give every rank the same rows each time.

    Ray's own splitter hands out blocks as workers ask for them. Shards differ by at most one row
    and no row is dropped.
    """

    def configure(self, datasets, world_size, worker_handles, worker_node_ids, **kwargs):
        shards: list[dict[str, Any]] = [{} for _ in range(world_size)]
        for name, dataset in datasets.items():
            dataset = dataset.materialize()
            bounds = shard_bounds(dataset.count(), world_size)
            pieces = dataset.split_at_indices(bounds[1:-1]) if world_size > 1 else [dataset]
            for shard, piece in zip(shards, pieces, strict=True):
                shard[name] = piece.iterator()
        return shards


def shard_bounds(rows: int, world_size: int) -> list[int]:
    """Return world_size + 1 row indices that split `rows` as evenly as whole rows allow."""
    return [rows * rank // world_size for rank in range(world_size + 1)]


def stream_seed(*parts: int | str) -> int:
    """Return a 63-bit seed, a pure function of its parts (seed, stage, epoch, step, rank)."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def fetch(shard) -> Columns:
    """Collect a Ray Data shard into memory, one array a column."""
    batches = list(shard.iter_batches(batch_size=_FETCH_ROWS, batch_format="numpy"))
    if not batches:
        return {}
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def to_tensors(columns: Columns, device: torch.device | str = "cpu") -> Tensors:
    """Turn the numeric columns into tensors; text columns are left out."""
    return {
        name: torch.as_tensor(np.ascontiguousarray(values)).to(device, non_blocking=True)
        for name, values in columns.items()
        if values.dtype.kind in "fiub"
    }


def stage_rows(stage: Stage, columns: Columns) -> np.ndarray:
    """Return the indices of the rows a stage uses."""
    rows = len(next(iter(columns.values()), ()))
    if stage.rows is None or rows == 0:
        return np.arange(rows)
    return np.flatnonzero(stage.rows(columns))


@torch.no_grad()
def frozen_features(stage: Stage, model: nn.Module, batch: Tensors) -> Tensors:
    """Return what a stage trains on, made from a batch by the frozen rest of the model."""
    return stage.features(model, batch)


class CachedShard:
    """One rank's rows of one stage, in memory.

    Parameters
    ----------
    tensors : dict of tensor [N, ...]
        The rank's transformed rows.
    rows : int array
        Which of them the stage uses.
    """

    def __init__(self, tensors: Tensors, rows: np.ndarray):
        self.tensors = tensors
        self.rows = torch.as_tensor(rows)

    def __len__(self) -> int:
        return len(self.rows)

    def selected(self) -> Tensors:
        """Return all rows of the stage."""
        return {k: v[self.rows] for k, v in self.tensors.items()}

    def with_features(self, stage: Stage, model: nn.Module, device: torch.device) -> CachedShard:
        """Return the shard with the stage's frozen features in place of the inputs, made once."""
        chunks = [
            {k: v.cpu() for k, v in frozen_features(stage, model, batch).items()}
            for batch in self.in_order(_FEATURE_ROWS, device)
        ]
        names = chunks[0] if chunks else ()
        features = {name: torch.cat([chunk[name] for chunk in chunks]) for name in names}
        return CachedShard(features, np.arange(len(self)))

    def batch(self, index: torch.Tensor, device: torch.device) -> Tensors:
        rows = self.rows[index]
        return {k: v[rows].to(device, non_blocking=True) for k, v in self.tensors.items()}

    def epoch(
        self, seed: int, batch_size: int, steps: int, start: int, device: torch.device
    ) -> Iterator[Tensors]:
        """Yield the batches of one epoch from step `start` on.

        Every row comes once; a rank with fewer rows than others repeats some to make `steps`
        batches, so that all ranks take part in every gradient exchange.
        """
        order = torch.as_tensor(np.random.default_rng(seed).permutation(len(self)))
        sizes = shard_bounds(max(len(self), steps), steps)
        for step in range(start, steps):
            yield self.batch(order[torch.arange(sizes[step], sizes[step + 1]) % len(self)], device)

    def in_order(self, batch_size: int, device: torch.device) -> Iterator[Tensors]:
        """Yield all rows once, in order, for validation."""
        for start in range(0, len(self), batch_size):
            yield self.batch(torch.arange(start, min(start + batch_size, len(self))), device)


class StreamedShard:
    """One rank's rows of one stage, streamed from Ray Data anew at every pass."""

    def __init__(self, shard, stage: Stage, model: nn.Module):
        self.shard, self.stage, self.model = shard, stage, model

    def passes(self, batch_size: int, device: torch.device, shuffle_seed: int | None = None):
        """Yield the batches of one pass; shuffled within a window of 16 batches if seeded."""
        options: dict[str, Any] = {"batch_size": batch_size, "batch_format": "numpy"}
        if shuffle_seed is not None:
            options |= {
                "local_shuffle_buffer_size": 16 * batch_size,
                "local_shuffle_seed": shuffle_seed % 2**31,
            }
        for columns in self.shard.iter_batches(**options):
            rows = stage_rows(self.stage, columns)
            if len(rows):
                batch = to_tensors({k: v[rows] for k, v in columns.items()}, device)
                made = self.stage.features is not None
                yield frozen_features(self.stage, self.model, batch) if made else batch
