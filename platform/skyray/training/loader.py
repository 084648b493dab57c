"""The rows of a stage as batches: one order, whatever holds the rows and however many workers.

The order of an epoch is a seeded permutation of the stage's rows, cut into global batches; a rank
takes its share of every one of them by row number. So the batches of a step are a pure function of
(seed, stage, epoch, step): a run goes on in the middle of an epoch, also with another number of
workers. Rows that fit into memory stay there; others are read from their table batch by batch, a
few batches ahead.
"""

from __future__ import annotations

import hashlib
import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from skyray.data.prepared_tables import LazyColumns, PreparedTable
from skyray.families.base import Columns, Stage, Tensors

_AHEAD = 3  # batches read before they are asked for
_LOAD_ROWS = 1024


def stream_seed(*parts: int | str) -> int:
    """Return a 63-bit seed, a pure function of its parts (seed, stage, epoch, step, rank)."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def to_tensors(columns: Columns) -> Tensors:
    """Turn the numeric columns into tensors; text columns are left out."""
    return {
        name: torch.from_numpy(np.require(values, requirements=["C", "W"]))
        for name, values in columns.items()
        if values.dtype.kind in "fiub"
    }


def batch_bounds(rows: int, batch_size: int) -> np.ndarray:
    """Return where the global batches of an epoch begin and end, int64 [steps + 1].

    All hold `batch_size` rows but the last two, which share what is left evenly: a batch of a row
    or two would be a step of noise, and norms cannot use it.
    """
    bounds = np.append(np.arange(0, rows, batch_size), rows)
    if len(bounds) > 2:
        bounds[-2] = (bounds[-3] + rows + 1) // 2
    return bounds


def share_of(start: int, stop: int, rank: int, world_size: int) -> tuple[int, int]:
    """Return a rank's part of the rows [start, stop): sizes differ by one, rank 0 has most."""
    least, more = divmod(stop - start, world_size)
    first = start + rank * least + min(rank, more)
    return first, first + least + (rank < more)


@dataclass(frozen=True)
class Batch:
    """A rank's share of a global batch.

    A rank that none of the rows fall to holds one of another's, so that it can take part in the
    step; `rows` is 0 then, and the loss counts for nothing.
    """

    tensors: Tensors
    rows: int
    whole: int

    def to(self, device: torch.device) -> Batch:
        moved = {k: v.to(device, non_blocking=True) for k, v in self.tensors.items()}
        return Batch(moved, self.rows, self.whole)


class Source(Protocol):
    """Where rows are read from, by their number in a prepared table."""

    columns: list[str]

    def read(self, rows: np.ndarray, columns: Sequence[str] | None = None) -> Tensors:
        """Return rows as tensors [N, ...], in the order asked for."""


class Stored:
    """Rows read from the table each time."""

    def __init__(self, table: PreparedTable, columns: list[str]):
        self.table, self.columns = table, columns

    def read(self, rows: np.ndarray, columns: Sequence[str] | None = None) -> Tensors:
        return to_tensors(self.table.take(rows, columns or self.columns))


class InMemory:
    """Rows of a table held in memory once; `rows` ascending."""

    def __init__(self, table: PreparedTable, columns: list[str], rows: np.ndarray):
        self.columns, self._rows = columns, rows
        self._tensors: Tensors = {}
        for start in range(0, len(rows), _LOAD_ROWS):
            part = to_tensors(table.take(rows[start : start + _LOAD_ROWS], columns))
            for name, values in part.items():
                if name not in self._tensors:
                    shape = (len(rows), *values.shape[1:])
                    self._tensors[name] = torch.empty(shape, dtype=values.dtype)
                self._tensors[name][start : start + len(values)] = values

    def only(self, columns: list[str]) -> InMemory:
        """Return the same rows, and the same memory, with some of the columns."""
        found = copy(self)
        found.columns = columns
        return found

    def read(self, rows: np.ndarray, columns: Sequence[str] | None = None) -> Tensors:
        place = torch.from_numpy(np.searchsorted(self._rows, rows))
        return {name: self._tensors[name][place] for name in columns or self.columns}


class StageRows:
    """One split of one stage: its rows, from one table or side by side from several.

    Parameters
    ----------
    sources : sequence of (Source, int array)
        Each with the numbers, in its own table, of the stage's rows.
    tables : sequence of PreparedTable
        Tables that the training still needs, marked as used while it goes on.
    arrange : callable, optional
        `Stage.arrange`: adds tensors to every batch before it goes to the device.
    """

    def __init__(
        self,
        sources: Sequence[tuple[Source, np.ndarray]],
        tables: Sequence[PreparedTable] = (),
        arrange: Callable[[Tensors], Tensors] | None = None,
    ):
        self._sources, self._tables, self._arrange = sources, tables, arrange

    def __len__(self) -> int:
        return len(self._sources[0][1]) if self._sources else 0

    def read(self, index: np.ndarray) -> Tensors:
        """Return rows by their number among the stage's."""
        for table in self._tables:
            table.touch()
        tensors: Tensors = {}
        for source, rows in self._sources:
            tensors |= source.read(rows[index])
        return tensors

    def batches(
        self, batch_size: int, rank: int, world_size: int, device: torch.device, *,
        seed: int | None = None, start: int = 0,
    ) -> Iterator[Batch]:  # fmt: skip
        """Yield a rank's share of the global batches, from step `start` on.

        Every row comes once: in an order drawn with the epoch's `seed`, the same on all ranks, or
        without one in the rows' own.
        """
        order = np.arange(len(self))
        if seed is not None:
            order = np.random.default_rng(seed).permutation(len(self))
        pinned = device.type == "cuda"

        def read(first: int, last: int) -> Batch:
            low, high = share_of(first, last, rank, world_size)
            tensors = self.read(order[low:high] if high > low else order[first : first + 1])
            if self._arrange:
                tensors |= self._arrange(tensors)
            if pinned:
                tensors = {name: values.pin_memory() for name, values in tensors.items()}
            return Batch(tensors, high - low, last - first)

        spans = itertools.pairwise(batch_bounds(len(self), batch_size)[start:].tolist())
        ahead = pinned or any(isinstance(source, Stored) for source, _ in self._sources)
        for batch in _ahead(read, spans) if ahead else itertools.starmap(read, spans):
            yield batch.to(device)

    def sample(self, limit: int, seed: int) -> Mapping[str, torch.Tensor]:
        """Return columns of all rows, or of `limit` random ones, each read when asked for."""
        index = np.arange(len(self))
        if len(self) > limit:
            index = np.sort(np.random.default_rng(seed).choice(len(self), limit, replace=False))
        return _Sample([(source, rows[index]) for source, rows in self._sources])


def _ahead(read: Callable[..., Batch], parts: Iterable[tuple]) -> Iterator[Batch]:
    """Yield what `read` makes of each part, in order, a thread being a few parts ahead."""
    pool = ThreadPoolExecutor(1, thread_name_prefix="loader")
    waiting: deque = deque()
    try:
        for part in parts:
            waiting.append(pool.submit(read, *part))
            if len(waiting) > _AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


class _Sample(Mapping):
    """Columns of some rows as tensors; each is read when it is asked for."""

    def __init__(self, sources: Sequence[tuple[Source, np.ndarray]]):
        self._rows = {name: (source, rows) for source, rows in sources for name in source.columns}

    def __getitem__(self, name: str) -> torch.Tensor:
        source, rows = self._rows[name]
        return source.read(rows, [name])[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)


class Rows:
    """The rows of a training on one worker: which of them a stage uses, and what holds them."""

    SPLITS = ("train", "validation")

    def __init__(self, table: PreparedTable):
        self.table = table
        self._narrow = {split: LazyColumns(table, table.rows(split)) for split in self.SPLITS}
        self._whole: InMemory | None = None

    def chosen(self, stage: Stage) -> dict[str, np.ndarray]:
        """Return the numbers of the rows a stage uses, by split, ascending."""
        found = {}
        for split in self.SPLITS:
            rows = np.asarray(self.table.rows(split), dtype=np.int64)
            if stage.rows is not None and len(rows):
                rows = rows[np.asarray(stage.rows(self._narrow[split]), dtype=bool)]
            found[split] = rows
        return found

    def source(
        self, table: PreparedTable, columns: list[str], rows: np.ndarray, memory_bytes: int
    ) -> Source:
        """Return what reads `rows` from: memory of all stages, of this one, or disk."""
        if table is self.table:
            both = np.arange(table.rows(self.SPLITS[-1]).stop)
            if len(both) * table.bytes_per_row(table.numbers) <= memory_bytes:
                if self._whole is None:
                    self._whole = InMemory(table, table.numbers, both)
                return self._whole.only(columns)
        if len(rows) * table.bytes_per_row(columns) <= memory_bytes:
            return InMemory(table, columns, rows)
        return Stored(table, columns)

    def of(self, stage: Stage) -> dict[str, StageRows]:
        """Return both splits of a stage that trains on the table's own columns."""
        chosen = self.chosen(stage)
        source = self.source(
            self.table, self.table.numbers, joined(chosen), stage.train.memory_bytes
        )
        return {
            split: StageRows([(source, rows)], [self.table], stage.arrange)
            for split, rows in chosen.items()
        }


def joined(chosen: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return the rows of all splits, ascending as the splits follow one another in the table."""
    return np.concatenate(list(chosen.values()))
