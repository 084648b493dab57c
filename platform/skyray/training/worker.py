"""What a training worker knows about itself and its run, and how it saves where it stands.

The loop runs in two settings: as one rank of a Ray Train group, or alone in a process (trials of a
sweep, members of an ensemble), where starting a group would cost more than the training.
"""

from __future__ import annotations

import io
import math
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
import torch
import torch.distributed as dist

from skyray.runtime import places, tracking

_STATE_FILE = "state.pt"


@dataclass
class Position:
    """Where a run stands; everything here is saved and restored."""

    stage: int = 0
    epoch: int = 0
    step: int = 0
    best_value: float = math.nan
    best_epoch: int = -1
    history: list[dict[str, Any]] = field(default_factory=list)
    epoch_sums: dict[str, float] = field(default_factory=dict)
    resumed: int = 0


class SavingPace:
    """Says when the next checkpoint is due: epochs of small stages are shorter than a save."""

    def __init__(self):
        self._last = time.monotonic()

    def due(self, seconds: float) -> bool:
        return time.monotonic() - self._last >= seconds

    def saved(self) -> None:
        self._last = time.monotonic()


@dataclass(frozen=True)
class Worker(ABC):
    """One rank of a training."""

    rank: int
    world_size: int
    device: torch.device
    seed: int
    run_uri: str
    run_id: str
    tracking_uri: str
    pace: SavingPace = field(default_factory=SavingPace)

    @abstractmethod
    def restore(self) -> tuple[Position, dict[str, Any] | None]:
        """Return where the run stands and, inside a stage, its tensors (else None)."""

    @abstractmethod
    def save(self, position: Position, tensors: dict[str, Any] | None) -> None:
        """Save a checkpoint from rank 0; a barrier for all ranks."""

    @abstractmethod
    def wait(self, stage: str, what: str, done: int = 0, epochs: int | None = None) -> None:
        """Tell whoever watches what a stage waits for (rank 0 only)."""

    @abstractmethod
    def end(self, stage: str) -> None:
        """Tell whoever watches that a stage is over (rank 0 only)."""

    @abstractmethod
    def show(self, row: dict[str, Any], epochs: int, note: str) -> None:
        """Tell whoever watches that an epoch of a stage is over (rank 0 only)."""

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def sum(self, values: dict[str, float]) -> dict[str, float]:
        """Sum a dict of numbers over all workers; one that lacks a key counts as 0."""
        total: dict[str, float] = {}
        for found in self.gather(values):
            for name, value in found.items():
                total[name] = total.get(name, 0.0) + value
        return total

    def largest(self, value: int) -> int:
        total = torch.tensor(value, device=self.device)
        if self.world_size > 1:
            dist.all_reduce(total, op=dist.ReduceOp.MAX)
        return int(total)

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all workers, by rank."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values

    def agree(self, tensors: Iterable[torch.Tensor]) -> None:
        """Give all workers the tensors of rank 0, in place."""
        if self.world_size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, 0)


def _restored(content: bytes, device: torch.device) -> tuple[Position, dict[str, Any] | None]:
    saved = torch.load(io.BytesIO(content), map_location=device, weights_only=True)
    position = Position(**saved["position"])
    position.resumed += 1
    return position, saved if "part" in saved else None


@dataclass(frozen=True)
class GroupWorker(Worker):
    """One rank of a Ray Train group; Ray Train keeps its checkpoints."""

    board: Any = None

    @classmethod
    def of_this_process(cls, config: dict[str, Any]) -> GroupWorker:
        """Return this rank of the running group; `config` comes from `training.train`."""
        context = ray.train.get_context()
        torch.set_num_threads(config["threads"])
        worker = cls(
            rank=context.get_world_rank(), world_size=context.get_world_size(),
            device=ray.train.torch.get_device(), seed=config["seed"], run_uri=config["run_uri"],
            run_id=config["run_id"], tracking_uri=config["tracking_uri"], board=config["board"],
        )  # fmt: skip
        if worker.leads:
            tracking.client(worker.tracking_uri)  # seconds of import, better here than in an epoch
        return worker

    def restore(self) -> tuple[Position, dict[str, Any] | None]:
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            return Position(), None
        with checkpoint.as_directory() as folder:
            return _restored((Path(folder) / _STATE_FILE).read_bytes(), self.device)

    def save(self, position: Position, tensors: dict[str, Any] | None) -> None:
        metrics = {"stage": position.stage, "epoch": position.epoch, "step": position.step}
        if not self.leads:
            ray.train.report(metrics)
            return
        with tempfile.TemporaryDirectory() as folder:
            state = {"position": vars(position), **(tensors or {})}
            torch.save(state, Path(folder) / _STATE_FILE)
            ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))
        self.pace.saved()

    def wait(self, stage: str, what: str, done: int = 0, epochs: int | None = None) -> None:
        self.board.wait.remote(stage, what, done, epochs)

    def end(self, stage: str) -> None:
        self.board.end.remote(stage)

    def show(self, row: dict[str, Any], epochs: int, note: str) -> None:
        self.board.update.remote(row["stage"], row["epoch"] + 1, epochs, note)


@dataclass(frozen=True)
class LoneWorker(Worker):
    """A training in one process; its checkpoint is a file beside the finished stages."""

    on_epoch: Callable[[dict[str, Any]], None] | None = None

    def restore(self) -> tuple[Position, dict[str, Any] | None]:
        if not places.exists(self._place):
            return Position(), None
        return _restored(places.read_bytes(self._place), self.device)

    def save(self, position: Position, tensors: dict[str, Any] | None) -> None:
        content = io.BytesIO()
        torch.save({"position": vars(position), **(tensors or {})}, content)
        places.write_bytes(self._place, content.getvalue())
        self.pace.saved()

    def wait(self, stage: str, what: str, done: int = 0, epochs: int | None = None) -> None:
        """Nobody watches one process of many."""

    def end(self, stage: str) -> None:
        """Nobody watches one process of many."""

    def show(self, row: dict[str, Any], epochs: int, note: str) -> None:
        if self.on_epoch:
            self.on_epoch(row)

    @property
    def _place(self) -> str:
        return places.join(self.run_uri, _STATE_FILE)


def final_position(checkpoint: ray.train.Checkpoint) -> Position:
    """Return the position a finished run ended at, with its whole history."""
    with checkpoint.as_directory() as folder:
        state = torch.load(Path(folder) / _STATE_FILE, weights_only=True)
    return Position(**state["position"])
