"""Train in groups of workers from inside a task or a trial: one of many that needs several GPUs.

The engine is that of `skyray.training.train`; who asked for the training gets the row of every
epoch, and may end it by what it raises then.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ray
from ray.util.queue import Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from skyray.families.base import Recipe
from skyray.runtime import places
from skyray.runtime.board import Board
from skyray.training.calibration import Trained, finish
from skyray.training.lanes import run_lanes
from skyray.training.lone import MemberResult, begun, train_alone
from skyray.training.run_file import RUN_FILE
from skyray.training.scale import Scale
from skyray.training.shared_graph import end_orphans
from skyray.training.train import run_provenance, worker_config
from skyray.training.worker import StageFiles

_RESTARTS = 2  # of a group that lost a worker


def train_member(
    recipe: Recipe,
    data: str,
    run_uri: str,
    scale: Scale,
    *,
    out: str | None = None,
    version: int | None = None,
    parent: str | None = None,
    last_stage: str | None = None,
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
) -> MemberResult:
    """Train one of many: alone in this process, or by a group of the `scale.workers` it asks for.

    Called again, it goes on where it stopped. A group takes its own resources: who calls this holds
    none. For the other arguments see `train_alone`.
    """
    about = {"version": version, "parent": parent, "last_stage": last_stage}
    if scale.workers == 1:
        return train_alone(
            recipe, data, run_uri, out=out, threads=scale.threads, use_gpu=scale.gpus > 0,
            on_epoch=on_epoch, **about,
        )  # fmt: skip
    with begun(recipe, data, run_uri, workers=scale.workers, **about) as run:
        end_orphans()  # of an earlier attempt, whose process was lost
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        beside = {"num_cpus": 0, "scheduling_strategy": here}
        epochs, board = Queue(actor_options=beside), Board.options(**beside).remote()
        planned = places.read_json(places.join(run_uri, RUN_FILE))["workers"]
        config = worker_config(run.family, run.table, run.run_id, run_uri, planned, board)
        known: set[tuple[str, int]] = set()  # a group that is begun anew repeats some

        def watch() -> None:
            for row in epochs.get_nowait_batch(epochs.qsize()):
                if on_epoch and (row["stage"], row["epoch"]) not in known:
                    known.add((row["stage"], row["epoch"]))
                    on_epoch(row)

        run_lanes({**config, "epochs": epochs}, run.graph, scale, _RESTARTS, watch)
        watch()
        history, _ = StageFiles(run_uri).history(run.graph.names)
        if out:
            trained = Trained.of(run.family, run.table, run_uri)
            finish(trained, out, run_provenance(run.family, run.run_id), history, scale, lanes=1)
    return MemberResult(run.run_id, history)
