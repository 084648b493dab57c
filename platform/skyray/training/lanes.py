"""Lanes: groups of workers, each a Ray Train run, that share the stages of one training."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from typing import Any

import ray
import ray.train
from ray.train.torch import TorchConfig, TorchTrainer

from skyray.runtime import places
from skyray.runtime.board import WORKERS
from skyray.runtime.session import cores_for, resources_to_come
from skyray.training import loop
from skyray.training.graph import StageGraph, lanes_that_fit
from skyray.training.group_start import GroupStart
from skyray.training.scale import Scale
from skyray.training.shared_graph import SharedGraph

NODE_DIED = "node has died"  # in Ray's words for the death of an actor
_LOOK_SECONDS = 1.0  # between looks whether all is trained
# Lanes that then still run are not told to stop: they see it by themselves, or have no group yet.
_GRACE_SECONDS = 10.0


class TrainingFailed(RuntimeError):
    """Training ended with an error that retries did not cure."""


def lanes_for(scale: Scale, graph: StageGraph) -> int:
    """Return how many groups to ask for: as many as stages can run at once, and as may ever fit."""
    return groups_that_fit(scale, min(graph.width(), scale.side_by_side or graph.width()))


def groups_that_fit(scale: Scale, limit: int) -> int:
    """Return how many groups of workers the cluster may ever hold at once, at most `limit`."""
    need = dict(scale.per_worker)
    if not scale.gpus:
        need |= cores_for(scale.threads or 1)
    return lanes_that_fit(limit, scale.workers, need, resources_to_come())


class _Lane(threading.Thread):
    """Keeps a lane at work: its group is begun anew after a stage has failed for good.

    Attributes
    ----------
    failed : dict
        Stage → what it died of.
    error : Exception or None
        What the lane itself died of, when it held no stage.
    """

    def __init__(self, lane: int, config: dict[str, Any], scale: Scale, max_failures: int):
        super().__init__(daemon=True)  # an interrupted driver ends
        row = WORKERS if config["lanes"] == 1 else f"{WORKERS} {lane + 1}"
        self._config = {**config, "lane": lane, "row": row}
        self._scale, self._max_failures = scale, max_failures
        self.failed: dict[str, Exception] = {}
        self.error: Exception | None = None

    def run(self) -> None:
        config = self._config
        try:
            while config["graph"].open() and not self._fit():
                pass
        except Exception as error:
            self.error = error
        finally:
            config["board"].end.remote(config["row"])

    def _fit(self) -> bool:
        """Return whether nothing was left for the lane; what ended it else is in `failed`.

        A machine that went away is no failure of its stage, which is taken up again.
        """
        config = self._config
        try:
            fit(config, self._scale, self._max_failures)
        except Exception as error:
            if NODE_DIED in cause(error):
                return False
            stage = config["graph"].fail(config["lane"])
            if stage is None:
                raise
            self.failed[stage] = error
            config["board"].fail.remote(stage, cause(error))
            return False
        return True


def run_lanes(
    config: dict[str, Any],
    graph: StageGraph,
    scale: Scale,
    max_failures: int,
    watch: Callable[[], None] | None = None,
) -> None:
    """Train all unfinished stages; when some fail for good, finish all that do not need them.

    Parameters
    ----------
    watch : callable, optional
        Called every second; what it raises ends all groups.

    Raises
    ------
    TrainingFailed
        It names the stages that failed, each with its cause, and those that are not trained.
    """
    if not graph.unfinished():
        return
    number, shared = lanes_for(scale, graph), SharedGraph(graph)
    config = {
        **config, "graph": shared, "lanes": number, "threads": scale.threads, "gpus": scale.gpus
    }  # fmt: skip
    lanes = [_Lane(lane, config, scale, max_failures) for lane in range(number)]
    for lane in lanes:
        lane.start()
    try:
        _wait(lanes, shared, watch)
    except BaseException:  # of `watch`, or the interrupt of a person: no group outlives it
        with contextlib.suppress(Exception):
            shared.give_up()
            shared.end_groups()
            until = time.monotonic() + _GRACE_SECONDS
            for lane in lanes:
                lane.join(max(0.0, until - time.monotonic()))
            shared.end_groups()  # once more: what a group asked for while it was ended
        raise
    if left := shared.unfinished():
        _raise(left, graph, lanes)


def _wait(lanes: list[_Lane], shared: SharedGraph, watch: Callable[[], None] | None) -> None:
    """Wait until no lane runs; when all is trained, those without a group are not waited for."""
    over, idle = None, False
    while running := [lane for lane in lanes if lane.is_alive()]:
        running[0].join(_LOOK_SECONDS)
        if watch:
            watch()
        if over is None and not shared.open():
            over = time.monotonic()
        if over is not None and time.monotonic() - over > _GRACE_SECONDS:
            shared.end_groups()
            idle = True
    if idle:
        shared.end_groups()  # once more: what a group asked for while it was ended


def _raise(left: list[str], graph: StageGraph, lanes: list[_Lane]) -> None:
    failed = {stage: error for lane in lanes for stage, error in lane.failed.items()}
    errors = [lane.error for lane in lanes if lane.error]
    told = [f"stage {stage} failed: {cause(error)}" for stage, error in failed.items()]
    needing = [name for name in left if not set(failed).isdisjoint(graph.needs(name))]
    others = [name for name in left if name not in failed and name not in needing]
    if needing:
        told.append(f"not trained, for want of what failed: {', '.join(needing)}")
    if others:
        why = cause(errors[0]) if errors else "no group of workers was left"
        told.append(f"not trained: {', '.join(others)}: {why}")
    raise TrainingFailed("; ".join(told)) from next(iter([*failed.values(), *errors]), None)


def cause(error: BaseException) -> str:
    """Return what an error of Ray Train comes from, in the words of whoever raised it first."""
    if failures := getattr(error, "worker_failures", None):
        return " | ".join(dict.fromkeys(cause(failure) for failure in failures.values()))
    for wrapped in ("controller_failure", "health_check_failure", "_base_exc"):
        if isinstance(inner := getattr(error, wrapped, None), BaseException):
            return cause(inner)
    return f"{type(error).__name__}: {error}"


def fit(config: dict[str, Any], scale: Scale, max_failures: int) -> None:
    """Run one lane as a Ray Train run, until no stage is left for it."""
    elastic = scale.min_workers < scale.workers
    filesystem, storage_path = places.resolve(places.join(config["run_uri"], "train"))
    start = GroupStart(config["board"], config["row"], config["graph"], config["lane"], elastic)
    trainer = TorchTrainer(
        loop.train_worker,
        train_loop_config=config,
        scaling_config=ray.train.ScalingConfig(
            num_workers=(scale.min_workers, scale.workers) if elastic else scale.workers,
            use_gpu=scale.gpus > 0,
            resources_per_worker=scale.per_worker,
        ),
        run_config=ray.train.RunConfig(
            name=f"lane-{config['lane']}",
            storage_path=storage_path,
            storage_filesystem=filesystem,
            failure_config=ray.train.FailureConfig(
                max_failures=max_failures,
                controller_failure_limit=start.attempts - 1,  # it would try for ever
                relax_collectives_on_preemption=True,
            ),
            callbacks=[start],
        ),
        torch_config=TorchConfig(backend="nccl" if scale.gpus else "gloo"),
    )
    trainer.fit()
