"""What a group of workers waits for until it trains: how long, and told on the board meanwhile."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import ray
from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerGroupCallback

# How long Ray waits for what a group asks, and how often it asks in all. Machines of a cloud take
# minutes to boot. An elastic group asks for what it has seen, and is asked anew with what there is:
# Ray sees a lost machine for up to 40 s more.
_TIMEOUT, _SECONDS, _ATTEMPTS = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", 600, 4
_ELASTIC_SECONDS, _ELASTIC_ATTEMPTS = 15, 8


class GroupStart(ControllerCallback, WorkerGroupCallback):
    """Runs in Ray Train's controller.

    Parameters
    ----------
    board : actor handle
        A `skyray.runtime.board.Board`.
    row : str
        The name under which the group reports there.
    graph : SharedGraph
        Hears who controls the group of the lane.
    """

    def __init__(self, board: Any, row: str, graph: Any, lane: int, elastic: bool):
        self._board, self._row, self._graph, self._lane = board, row, graph, lane
        self._seconds = _ELASTIC_SECONDS if elastic else _SECONDS
        self.attempts = _ELASTIC_ATTEMPTS if elastic else _ATTEMPTS

    def _tell(self, what: str) -> None:
        self._board.group.remote(self._row, what)

    def after_controller_start(self, train_run_context: Any) -> None:
        os.environ.setdefault(_TIMEOUT, str(self._seconds))  # of this process, which has one group
        self._graph.is_controlled(self._lane, ray.get_runtime_context().current_actor)

    def before_worker_group_start(self, worker_group_context: Any) -> None:
        asked = worker_group_context.resources_per_worker
        each = " + ".join(f"{amount:g} {kind}" for kind, amount in asked.items() if amount)
        self._tell(f"nodes with {worker_group_context.num_workers} × {each}")

    def before_init_train_context(self, workers: Sequence[Any]) -> dict[str, list[Any]]:
        self._tell(f"imports of {len(workers)} processes")
        return {}

    def after_worker_group_start(self, worker_group: Any) -> None:
        self._tell("them to find each other")

    def after_worker_group_training_start(self, worker_group: Any) -> None:
        self._board.end.remote(self._row)
