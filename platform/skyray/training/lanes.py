"""Lanes: groups of workers, each a Ray Train run, that share the stages of one training."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from typing import Any

import ray
import ray.train
from ray.train.torch import TorchConfig, TorchTrainer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from skyray.config import ConfigError
from skyray.runtime import places
from skyray.runtime.session import cores_for
from skyray.training import loop
from skyray.training.graph import StageGraph, lanes_that_fit
from skyray.training.group_start import TellStart

# How long Ray waits for the workers of a group: machines of a cloud take minutes to boot.
os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "600")


class TrainingFailed(RuntimeError):
    """Training ended with an error that retries did not cure."""


@dataclass(frozen=True)
class Scale:
    """How much of a cluster a training takes; see `skyray.training.train.train`."""

    workers: int = 1
    min_workers: int = 1
    gpus: float = 0.0
    threads: int | None = None
    side_by_side: int | None = None

    def check(self) -> None:
        """Raise ConfigError where the numbers do not fit together."""
        if not 1 <= self.min_workers <= self.workers:
            raise ConfigError(
                f"min_workers: expected 1 to {self.workers} (workers), found {self.min_workers}"
            )
        if self.gpus < 0 or (self.gpus > 1 and self.gpus != int(self.gpus)):
            raise ConfigError(f"gpus: expected a share of one, or whole ones, found {self.gpus}")
        if 0 < self.gpus < 1 < self.workers:
            raise ConfigError(
                f"gpus: expected whole GPUs for {self.workers} workers of one group, found "
                f"{self.gpus}: NCCL lets no two of them share one"
            )

    @property
    def per_worker(self) -> dict[str, float]:
        """Resources that Ray keeps for a worker."""
        return {"CPU": 1, **({"GPU": self.gpus} if self.gpus else {})}

    def lanes(self, graph: StageGraph) -> int:
        """Return how many groups to start for the unfinished stages of a training."""
        need = dict(self.per_worker)
        if not self.gpus:
            need |= cores_for(self.threads or 1)
        limit = min(graph.width(), self.side_by_side or graph.width())
        return lanes_that_fit(limit, self.workers, need, ray.cluster_resources())


class SharedGraph:
    """A `StageGraph` that lanes on any node ask; it lives on the node of the driver."""

    def __init__(self, graph: StageGraph):
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        holder = ray.remote(num_cpus=0, scheduling_strategy=here)(_Holder)
        self._holder = holder.remote(graph)

    def take(self, lane: int) -> tuple[str, str]:
        return ray.get(self._holder.call.remote("take", lane))

    def finish(self, lane: int) -> None:
        ray.get(self._holder.call.remote("finish", lane))

    def fail(self, lane: int) -> None:
        ray.get(self._holder.call.remote("fail", lane))

    def unfinished(self) -> list[str]:
        return ray.get(self._holder.call.remote("unfinished"))


class _Holder:
    def __init__(self, graph: StageGraph):
        self._graph = graph

    def call(self, what: str, *arguments: Any) -> Any:
        return getattr(self._graph, what)(*arguments)


def run_lanes(config: dict[str, Any], graph: StageGraph, scale: Scale, max_failures: int) -> None:
    """Train all unfinished stages; when some fail for good, finish all others first.

    Raises
    ------
    TrainingFailed
        It names the stages that are not trained, and the first cause.
    """
    if not graph.unfinished():
        return
    lanes, shared = scale.lanes(graph), SharedGraph(graph)
    config = {
        **config, "graph": shared, "lanes": lanes, "threads": scale.threads, "gpus": scale.gpus
    }  # fmt: skip
    errors: list[Exception] = []

    def run(lane: int) -> None:
        try:
            _fit({**config, "lane": lane}, scale, max_failures)
        except Exception as error:
            errors.append(error)
            shared.fail(lane)

    # Daemons, so that an interrupted driver ends; the first lane stays in this thread, where Ray
    # Train listens for the interrupt.
    others = [threading.Thread(target=run, args=(n,), daemon=True) for n in range(1, lanes)]
    for thread in others:
        thread.start()
    run(0)
    for thread in others:
        thread.join()
    if left := shared.unfinished():
        cause = errors[0] if errors else "no lane was left to train them"
        raise TrainingFailed(f"stages {left} are not trained: {cause}") from (errors or [None])[0]


def _fit(config: dict[str, Any], scale: Scale, max_failures: int) -> None:
    """Run one lane as a Ray Train run, until no stage is left for it."""
    elastic = scale.min_workers < scale.workers
    filesystem, storage_path = places.resolve(places.join(config["run_uri"], "train"))
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
                controller_failure_limit=3,  # it would try to start a group for ever
                relax_collectives_on_preemption=True,
            ),
            callbacks=[TellStart(config["board"])],
        ),
        torch_config=TorchConfig(backend="nccl" if scale.gpus else "gloo"),
    )
    trainer.fit()
