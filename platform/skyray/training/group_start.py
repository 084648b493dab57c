"""What a group of workers waits for until it trains, told on the board while Ray starts it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ray.train.v2._internal.execution.callback import WorkerGroupCallback

from skyray.runtime.board import WORKERS


class TellStart(WorkerGroupCallback):
    """Runs in Ray Train's controller; `board` is a `skyray.runtime.board.Board`."""

    def __init__(self, board: Any):
        self._board = board

    def before_worker_group_start(self, worker_group_context: Any) -> None:
        asked = worker_group_context.resources_per_worker
        each = " + ".join(f"{amount:g} {kind}" for kind, amount in asked.items() if amount)
        workers = worker_group_context.num_workers
        self._board.wait.remote(WORKERS, f"nodes with {workers} × {each}")

    def before_init_train_context(self, workers: Sequence[Any]) -> dict[str, list[Any]]:
        self._board.wait.remote(WORKERS, f"imports of {len(workers)} processes")
        return {}

    def after_worker_group_start(self, worker_group: Any) -> None:
        self._board.wait.remote(WORKERS, "them to find each other")

    def after_worker_group_training_start(self, worker_group: Any) -> None:
        self._board.end.remote(WORKERS)
