"""Lanes: what fails takes nothing with it that does not need it, and nobody waits for the idle."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest
import ray
from ray.core.generated.common_pb2 import ActorDiedErrorContext
from ray.exceptions import ActorDiedError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError
from ray.train.v2.api.exceptions import WorkerGroupError
from ray.util.placement_group import placement_group, placement_group_table

from skyray.config import ConfigError
from skyray.families.base import Stage, TrainConfig
from skyray.runtime.session import require_cluster_gpus, resources_to_come
from skyray.training import lanes
from skyray.training.graph import END, StageGraph
from skyray.training.lanes import SharedGraph, TrainingFailed, lanes_for, run_lanes
from skyray.training.scale import Scale


def graph(**needs: str) -> StageGraph:
    """Return the stages `needs`, each after those whose names are the letters of its value."""
    return StageGraph(
        [Stage(name, None, None, TrainConfig(), after=tuple(of)) for name, of in needs.items()]
    )


class Here:
    """A `SharedGraph` and a `Board` of this process, for lanes that are functions."""

    def __init__(self, stages: StageGraph):
        self._stages, self.lock, self.killed = stages, threading.Lock(), threading.Event()
        self.told: list[tuple] = []

    def __getattr__(self, name: str) -> Callable:
        def locked(*arguments):
            with self.lock:
                return getattr(self._stages, name)(*arguments)

        return locked

    def end_groups(self) -> None:
        self.killed.set()


class Told:
    """A `Board` that writes down what it is told."""

    def __init__(self, told: list[tuple], what: str = ""):
        self._told, self._what = told, what

    def __getattr__(self, name: str) -> Told:
        return Told(self._told, name)

    def remote(self, *arguments) -> None:
        self._told.append((self._what, *arguments))


@pytest.fixture
def run(monkeypatch) -> Callable:
    """Run lanes whose groups are a function of (graph, lane); return what the board was told."""

    def run(
        stages: StageGraph, number: int, group: Callable[[Here, int], None], watch=None
    ) -> list[tuple]:
        here = Here(stages)
        monkeypatch.setattr(lanes, "SharedGraph", lambda _: here)
        monkeypatch.setattr(lanes, "lanes_for", lambda *_: number)
        monkeypatch.setattr(lanes, "_LOOK_SECONDS", 0.01)
        monkeypatch.setattr(lanes, "_GRACE_SECONDS", 0.1)
        monkeypatch.setattr(lanes, "fit", lambda config, *_: group(here, config["lane"]))
        run_lanes({"board": Told(here.told)}, stages, Scale(), 0, watch)
        return here.told

    return run


def training(*bad: str) -> Callable[[Here, int], None]:
    """Return a group that trains what it is handed and dies of the stages `bad`."""

    def group(here: Here, lane: int) -> None:
        while (told := here.take(lane))[0] != END:
            if told[1] in bad:
                raise FloatingPointError(f"{told[1]} is NaN")
            if told[1]:
                here.finish(lane)

    return group


@pytest.mark.parametrize("number", [1, 2, 5])
def test_a_failed_stage_takes_only_those_with_it_that_need_it(run, number):
    stages = graph(a="", b="", c="a", d="b", e="ac", f="", g="f")
    with pytest.raises(TrainingFailed) as failed:
        run(stages, number, training("a", "f"))
    assert sorted(str(failed.value).split("; ")) == [
        "not trained, for want of what failed: c, e, g",
        "stage a failed: FloatingPointError: a is NaN",
        "stage f failed: FloatingPointError: f is NaN",
    ]
    assert stages.unfinished() == ["a", "c", "e", "f", "g"]


def test_the_board_hears_of_a_failed_stage_and_of_each_lane(run):
    told = []
    stages = graph(a="", b="")

    def group(here: Here, lane: int) -> None:
        told.append(here.told)
        training("a")(here, lane)

    with pytest.raises(TrainingFailed):
        run(stages, 2, group)
    assert sorted(told[0]) == [
        ("end", "workers 1"), ("end", "workers 2"), ("fail", "a", "FloatingPointError: a is NaN")
    ]  # fmt: skip


def test_lost_machines_are_no_failure_of_a_stage_and_a_lost_process_is_one(run):
    def dies_of(message: str) -> Exception:
        lost = ActorDiedError(ActorDiedErrorContext(error_message=message, actor_id=bytes(16)))
        beside = RuntimeError("Connection closed by peer")
        return WorkerGroupError("", {0: WorkerHealthCheckFailedError("", lost), 1: beside})

    def group(here: Here, lane: int) -> None:
        told = here.take(lane)
        while told[0] != END:
            if ends and told[1]:
                raise dies_of(ends.pop(0))
            here.finish(lane)
            told = here.take(lane)

    stages = graph(a="", b="a")
    ends = ["The actor died because its node has died. Node Id: 0a1b."] * 5
    run(stages, 1, group)
    assert not stages.unfinished()
    ends = ["Worker unexpectedly exits."]
    with pytest.raises(TrainingFailed, match="Worker unexpectedly exits"):
        run(graph(a=""), 1, group)


def test_what_the_watch_raises_ends_all_groups_and_none_begins_anew(run):
    begun = []

    def group(here: Here, lane: int) -> None:
        begun.append((lane, here.take(lane)[1]))
        assert here.killed.wait(10)
        raise RuntimeError("killed")

    def watch() -> None:
        if len(begun) == 2:
            raise SystemExit(0)

    with pytest.raises(SystemExit):
        run(graph(a="", b="", c="", d=""), 2, group, watch)
    time.sleep(0.2)
    assert sorted(begun) == [(0, "a"), (1, "b")] or sorted(begun) == [(0, "b"), (1, "a")]


@pytest.mark.parametrize("idle", [0, 1])
def test_lanes_that_never_start_are_not_waited_for(run, idle):
    """Whichever it is; their groups are ended."""

    def group(here: Here, lane: int) -> None:
        if lane != idle:
            return training()(here, lane)
        assert here.killed.wait(60)
        raise ray.exceptions.ActorDiedError

    stages = graph(a="", b="")
    run(stages, 2, group)
    assert not stages.unfinished()


def test_a_training_without_any_group_says_why(run):
    def group(here: Here, lane: int) -> None:
        raise TimeoutError("no nodes")

    with pytest.raises(TrainingFailed, match="not trained: a, b: TimeoutError: no nodes"):
        run(graph(a="", b="a"), 2, group)


def test_an_interrupted_training_leaves_no_group(run, monkeypatch):
    ended = []

    def group(here: Here, lane: int) -> None:
        here.killed.wait(60)
        ended.append(lane)

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(lanes, "_wait", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(graph(a=""), 1, group)
    for thread in threading.enumerate():
        if isinstance(thread, lanes._Lane):
            thread.join(60)
    assert ended == [0]


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ({"workers": 2, "gpus": 0.5}, "NCCL"),
        ({"gpus": 1.5}, "gpus-per-worker: expected a share of one, or whole ones, found 1.5"),
        ({"gpus": float("nan")}, "gpus-per-worker: .*found nan"),
        ({"gpus": float("inf")}, "gpus-per-worker: .*found inf"),
        ({"gpus": 0.0}, "gpus-per-worker: expected a number above 0 with --gpu, found 0"),
        ({"gpus": -1.0}, "gpus-per-worker: expected a number above 0 with --gpu, found -1"),
        ({"use_gpu": False, "gpus": 2.0}, "gpus-per-worker: expected --gpu beside it, found 2"),
        ({"workers": 0}, "workers: expected 1 or more, found 0"),
        ({"workers": 2, "min_workers": 3}, r"min_workers: expected 1 to 2 \(workers\), found 3"),
        ({"min_workers": 0}, "min_workers: .*found 0"),
        ({"threads": 0}, "threads: expected 1 or more, found 0"),
        ({"side_by_side": 0}, "side_by_side: expected 1 or more, found 0"),
    ],
)
def test_a_scale_that_cannot_be_is_refused(asked, named):
    usual = {"workers": 1, "min_workers": None, "use_gpu": True, "gpus": None}
    with pytest.raises(ConfigError, match=named):
        Scale.asked(**usual | asked)


def test_a_scale_is_what_was_asked():
    assert Scale.asked(4, None, True, None) == Scale(4, 4, 1.0)
    assert Scale.asked(4, 2, False, None) == Scale(4, 2, 0.0)
    assert Scale.asked(1, None, True, 0.25).least_gpus == 1
    assert Scale.asked(4, 3, True, 2).least_gpus == 6


def test_lanes_ask_for_what_the_autoscaler_may_add(ray_cluster, monkeypatch):
    """The limits are those of a cluster's configuration, as Ray's own state reads it."""
    from ray._private.state import state
    from ray.core.generated import autoscaler_pb2

    group = autoscaler_pb2.NodeGroupConfig(resources={"CPU": 16, "GPU": 2}, max_count=3)
    config = autoscaler_pb2.ClusterConfig(node_group_configs=[group])
    stages = graph(**dict.fromkeys("abcdefgh", ""))
    assert lanes_for(Scale(gpus=1.0), stages) == 1
    monkeypatch.setattr(state, "get_cluster_config", lambda: config)
    assert resources_to_come()["GPU"] == 6
    assert resources_to_come()["CPU"] == 48
    assert lanes_for(Scale(gpus=1.0), stages) == 6
    assert lanes_for(Scale(gpus=0.5, side_by_side=7), stages) == 7
    assert lanes_for(Scale(workers=2, gpus=1.0), stages) == 3
    require_cluster_gpus(6)
    with pytest.raises(ConfigError, match=r"expected 7 GPUs, found 0 .* no more than 6"):
        require_cluster_gpus(7)


def test_an_ended_group_gives_back_what_it_asked_for(ray_cluster):
    """Ray itself keeps a placement group until its job ends, whoever asked for it."""

    @ray.remote(num_cpus=0)
    class Controller:
        def __init__(self, shared):
            shared.is_controlled(0, ray.get_runtime_context().current_actor)

        def start(self) -> None:
            placement_group([{"CPU": 99}]).wait(600)

    def asked() -> list[str]:
        return [
            g["state"] for g in placement_group_table().values() if g["bundles"][0].get("CPU") == 99
        ]

    def become(state: str) -> bool:
        until = time.monotonic() + 240  # imports of a busy machine
        while asked() != [state] and time.monotonic() < until:
            time.sleep(0.05)
        return asked() == [state]

    shared = SharedGraph(graph(a=""))
    started = Controller.remote(shared).start.remote()
    assert become("PENDING")
    shared.end_groups()
    with pytest.raises(ray.exceptions.RayActorError):
        ray.get(started, timeout=60)
    assert become("REMOVED")
