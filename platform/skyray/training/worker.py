"""What a training worker knows about itself and its run, and how it saves where a stage stands.

The loop runs in two settings: as one rank of a Ray Train group, or alone in a process (trials of a
sweep, members of an ensemble), where starting a group would cost more than the training.
Checkpoints are files of the run, one a stage: whoever takes up a stage goes on from it, whatever
lane, number of workers or setting it was begun in.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from skyray.runtime import places, tracking


@dataclass
class Position:
    """Where a stage stands; everything here is saved and restored."""

    epoch: int = 0
    step: int = 0
    best_value: float = math.nan
    best_epoch: int = -1
    history: list[dict[str, Any]] = field(default_factory=list)
    epoch_sums: dict[str, float] = field(default_factory=dict)
    resumed: int = 0


@dataclass(frozen=True)
class StageFiles:
    """What a run keeps of its stages: checkpoints, finished parts and their histories."""

    run_uri: str

    def _place(self, stage: str, suffix: str) -> str:
        return places.join(self.run_uri, "stages", stage.replace("/", "--") + suffix)

    def part_place(self, stage: str) -> str:
        """Return where the finished part of a stage is kept."""
        return self._place(stage, ".safetensors")

    def finished(self, stage: str) -> bool:
        return places.exists(self.part_place(stage))

    def part(self, stage: str) -> dict[str, torch.Tensor]:
        return load_tensors(places.read_bytes(self.part_place(stage)))

    def finish(self, stage: str, part: dict[str, torch.Tensor], position: Position) -> None:
        """Keep a finished part; from then on the stage counts as done."""
        told = {"history": position.history, "resumed": position.resumed}
        places.write_bytes(self._place(stage, ".json"), json.dumps(told).encode())
        tensors = {k: v.detach().cpu().contiguous() for k, v in part.items()}
        places.write_bytes(self.part_place(stage), save_tensors(tensors))
        with contextlib.suppress(FileNotFoundError):
            places.remove(self._place(stage, ".state"))

    def history(self, stages: Iterable[str]) -> tuple[list[dict[str, Any]], int]:
        """Return the rows of all epochs, stage by stage, and how often any was taken up again."""
        told = [json.loads(places.read_bytes(self._place(stage, ".json"))) for stage in stages]
        return [row for one in told for row in one["history"]], sum(one["resumed"] for one in told)

    def save(self, stage: str, position: Position, tensors: dict[str, Any]) -> None:
        """Keep where a stage stands, in place of what was kept before."""
        content = io.BytesIO()
        torch.save({"position": vars(position), **tensors}, content)
        places.write_bytes(self._place(stage, ".state"), content.getvalue())

    def restore(self, stage: str, device: torch.device) -> tuple[Position, dict[str, Any] | None]:
        """Return where a stage stands, and its tensors if it was begun."""
        place = self._place(stage, ".state")
        if not places.exists(place):
            return Position(), None
        saved = torch.load(
            io.BytesIO(places.read_bytes(place)), map_location=device, weights_only=True
        )
        position = Position(**saved.pop("position"))
        position.resumed += 1
        return position, saved


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
    planned: int = 1  # workers that the run was begun for: decides batch and learning rate
    pace: SavingPace = field(default_factory=SavingPace)

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
    def files(self) -> StageFiles:
        return StageFiles(self.run_uri)

    def restore(self, stage: str) -> tuple[Position, dict[str, Any] | None]:
        """Return where a stage stands and, if it was begun, its tensors; the same on all ranks."""
        position, saved = self.files.restore(stage, self.device)
        if len(set(self.gather((position.epoch, position.step)))) > 1:
            raise RuntimeError(f"stage {stage}: ranks found different checkpoints; once more")
        return position, saved

    def save(self, stage: str, position: Position, tensors: dict[str, Any] | None) -> None:
        """Save a checkpoint (rank 0, which alone has `tensors`)."""
        if self.leads:
            self.files.save(stage, position, tensors or {})
            self.pace.saved()

    def is_leaving(self) -> bool:
        """Return whether a machine of this group is about to be taken away; a barrier."""
        return False

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


@dataclass(frozen=True)
class GroupWorker(Worker):
    """One rank of a Ray Train group."""

    board: Any = None
    epochs: Any = None  # a `ray.util.queue.Queue` that takes the row of every epoch, if one is read

    @classmethod
    def of_this_process(cls, config: dict[str, Any]) -> GroupWorker:
        """Return this rank of the running group; `config` comes from `training.train`."""
        context = ray.train.get_context()
        torch.set_num_threads(
            config["threads"] or own_threads(context.get_local_world_size(), config)
        )
        worker = cls(
            rank=context.get_world_rank(), world_size=context.get_world_size(),
            device=ray.train.torch.get_device(), seed=config["seed"], run_uri=config["run_uri"],
            run_id=config["run_id"], tracking_uri=config["tracking_uri"],
            planned=config["planned"], board=config["board"], epochs=config.get("epochs"),
        )  # fmt: skip
        if worker.leads:
            tracking.client(worker.tracking_uri)  # seconds of import, better here than in an epoch
        return worker

    def is_leaving(self) -> bool:
        return ray.train.get_preemption_info() is not None

    def wait(self, stage: str, what: str, done: int = 0, epochs: int | None = None) -> None:
        self.board.wait.remote(stage, what, done, epochs)

    def end(self, stage: str) -> None:
        self.board.end.remote(stage)

    def show(self, row: dict[str, Any], epochs: int, note: str) -> None:
        self.board.update.remote(row["stage"], row["epoch"] + 1, epochs, note)
        if self.epochs is not None:  # one without rows is false
            self.epochs.put_nowait(row)


def own_threads(local_workers: int, config: dict[str, Any]) -> int:
    """Return a worker's share of the cores of its machine.

    Parameters
    ----------
    local_workers : int
        Of its own group, on this machine; other lanes of the run have as many as there is room for.
    """
    cores = len(os.sched_getaffinity(0))
    if config["lanes"] == 1:
        return max(1, cores // local_workers)
    here = ray.get_runtime_context().get_node_id()
    found = next(node["Resources"] for node in ray.nodes() if node["NodeID"] == here)
    room = found.get("GPU", 1.0) / config["gpus"] if config["gpus"] else cores
    return max(1, cores // max(1, min(int(room), config["lanes"] * local_workers)))


@dataclass(frozen=True)
class LoneWorker(Worker):
    """A training in one process."""

    on_epoch: Callable[[dict[str, Any]], None] | None = None

    def wait(self, stage: str, what: str, done: int = 0, epochs: int | None = None) -> None:
        """Nobody watches one process of many."""

    def end(self, stage: str) -> None:
        """Nobody watches one process of many."""

    def show(self, row: dict[str, Any], epochs: int, note: str) -> None:
        if self.on_epoch:
            self.on_epoch(row)
