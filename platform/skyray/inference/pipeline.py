"""Prediction as a stream: read → transform → network → post-processing → write, on workers.

Each arrow is a border between operators of Ray Data. Only the network has actors and the device;
the other steps are tasks on processors (Ray runs neighbouring ones of them as one). The driver sees
the number of each piece and how many rows it has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import ray
import ray.data

from skyray.bundles.bundle import Predictor
from skyray.data.dataset import Dataset, table_to_columns
from skyray.families.base import Columns
from skyray.inference.results import Results

Change = Callable[[int, Columns], Columns]
_INPUT, _FOUND, _KEPT, _PIECE = "input/", "found/", "kept/", "piece"
# Pieces of one run of the stream: what Ray Data keeps of each on the driver stays bounded.
_PIECES_A_RUN = 4096
_THREADS = 1  # of a network: pieces side by side use processors better


@dataclass(frozen=True)
class Job:
    """What the workers of a prediction need to know.

    Attributes
    ----------
    bundle, digest : str
        The bundle's place, and what it answers with (see `bundle_digest`).
    dataset, version, fingerprint : str, int, str
        The snapshot whose rows are read.
    keep : tuple of str
        Columns of the dataset that stand beside the predictions; an output column of the same name
        as one of them gets the suffix ``_pred``.
    training : bool
        Whether families add what scoring needs, and reduce the table to it.
    detail : bool
        Whether the arrays of `Family.detail_columns` come too.
    results : Results
    change : callable, optional
        (number of the piece, the network's inputs) → the inputs to use in their place.
    """

    bundle: str
    digest: str
    dataset: str
    version: int
    fingerprint: str
    keep: tuple[str, ...]
    training: bool
    detail: bool
    results: Results
    change: Change | None = None

    def read(self, batch: Columns, rows: np.ndarray, missing: np.ndarray) -> Columns:
        """Return the rows of one piece as numpy columns; the last one filled with its last row.

        Blocks of one length pass the network's operator one by one: Ray wants a number of rows for
        every batch of a GPU, and puts blocks together that have fewer.
        """
        number, size = int(missing[batch["id"][0]]), self.results.size
        chosen = rows[number * size : (number + 1) * size]
        dataset = _dataset(self.dataset, self.version, self.fingerprint)
        family = _without_network(self.bundle, self.digest).family
        names = list(dict.fromkeys([*self.keep, *family.columns(self.training)]))
        table = dataset.take(np.pad(chosen, (0, size - len(chosen)), mode="edge"), names)
        return {**table_to_columns(table), _PIECE: np.full(table.num_rows, number)}

    def transform(self, columns: Columns) -> Columns:
        """Return the network's input, and the columns kept."""
        inputs = _without_network(self.bundle, self.digest).inputs(columns, self.training)
        if self.change is not None:
            inputs = self.change(int(columns[_PIECE][0]), inputs)
        kept = {f"{_KEPT}{name}": columns[name] for name in self.keep}
        return _named(_INPUT, inputs) | kept | {_PIECE: columns[_PIECE]}

    def finish(self, columns: Columns) -> Columns:
        """Return predictions beside the columns kept."""
        predictor = _without_network(self.bundle, self.digest)
        output = predictor.finish(_of(_FOUND, columns), self.detail)
        kept = _of(_KEPT, columns)
        table = kept | {f"{n}_pred" if n in kept else n: v for n, v in output.items()}
        if self.training:
            table = predictor.family.scoring_table(table)
        return {**table, _PIECE: columns[_PIECE]}

    def write(self, columns: Columns) -> Columns:
        """Write the piece; return its number and rows."""
        numbers = columns.pop(_PIECE)
        number, rows = int(numbers[0]), self.results.rows_of(numbers[0])
        if len(numbers) != self.results.size or (numbers != number).any():
            raise RuntimeError(f"{self.results.piece(number)}: expected {self.results.size} rows of"
                               f" one piece, found {len(numbers)} of {set(numbers)}")  # fmt: skip
        self.results.write(number, {name: values[:rows] for name, values in columns.items()})
        return {_PIECE: np.array([number]), "rows": np.array([rows])}


class Network:
    """One actor of the pool: holds the network on the device Ray gave it."""

    def __init__(self, bundle: str, threads: int):
        import torch

        torch.set_num_threads(threads)
        device = "cuda" if ray.get_runtime_context().get_accelerator_ids().get("GPU") else "cpu"
        self.predictor = Predictor.from_bundle(bundle, device=device)

    def __call__(self, columns: Columns) -> Columns:
        rest = {name: v for name, v in columns.items() if not name.startswith(_INPUT)}
        return rest | _named(_FOUND, self.predictor.infer(_of(_INPUT, columns)))


def _named(prefix: str, columns: Columns) -> Columns:
    return {f"{prefix}{name}": values for name, values in columns.items()}


def _of(prefix: str, columns: Columns) -> Columns:
    return {n.removeprefix(prefix): v for n, v in columns.items() if n.startswith(prefix)}


@lru_cache(maxsize=2)
def _without_network(bundle: str, digest: str) -> Predictor:
    return Predictor.without_network(bundle)  # once a worker process, as long as it is this bundle


@lru_cache(maxsize=2)
def _dataset(uri: str, version: int, fingerprint: str) -> Dataset:
    return Dataset.open(uri, version)


def stream(
    job: Job, rows: np.ndarray, missing: Sequence[int], workers: int, use_gpu: bool
) -> ray.data.Dataset:
    """Return the lazy Ray dataset that writes some pieces: their numbers and rows.

    Parameters
    ----------
    rows : int64 [N]
        Row ids of all rows of the results table, in its order.
    workers : int
        The pool of networks grows from one to so many.
    """
    ids, wanted = ray.put(rows), ray.put(np.asarray(missing))

    def read(batch: Columns) -> Columns:
        return job.read(batch, ray.get(ids), ray.get(wanted))

    listing = ray.data.range(len(missing), override_num_blocks=len(missing))
    listing.context.target_max_block_size = None  # a piece stays one block from read to write
    return (
        listing.map_batches(read, batch_size=1, batch_format="numpy")
        .map_batches(job.transform, batch_size=None, batch_format="numpy")
        .map_batches(
            Network,
            fn_constructor_args=(job.bundle, _THREADS),
            batch_size=job.results.size,
            batch_format="numpy",
            zero_copy_batch=False,
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=workers),
            num_cpus=1,
            num_gpus=1 if use_gpu else 0,
            # Also keeps Ray from running the transform in these actors, on their one CPU.
            runtime_env={"env_vars": {"OMP_NUM_THREADS": str(_THREADS)}},
        )
        .map_batches(job.finish, batch_size=None, batch_format="numpy")
        .map_batches(job.write, batch_size=None, batch_format="numpy")
    )


def run(job: Job, rows: np.ndarray, workers: int | None, use_gpu: bool) -> Iterator[int]:
    """Write all pieces that are missing; yield the rows of each as it is done."""
    kind = "GPU" if use_gpu else "CPU"
    available = int(ray.cluster_resources().get(kind, 1))
    pool = workers or max(1, available if use_gpu else available // 2)
    missing = job.results.missing()
    for start in range(0, len(missing), _PIECES_A_RUN):
        written = stream(job, rows, missing[start : start + _PIECES_A_RUN], pool, use_gpu)
        for batch in written.iter_batches(batch_size=None, batch_format="numpy"):
            yield from map(int, batch["rows"])
