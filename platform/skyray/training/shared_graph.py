"""One `StageGraph` for lanes on any node: an actor beside the driver.

Whatever is imported here its process imports before a training can begin: no torch, no Ray Train.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ray
from ray import JobID, PlacementGroupID
from ray._private.state import state
from ray.core.generated import gcs_pb2
from ray.util.placement_group import PlacementGroup, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from skyray.training.graph import StageGraph


class SharedGraph:
    """A `StageGraph` that lanes on any node ask; it lives on the node of the driver.

    It also knows who controls the group of each lane, so that one without work can be ended.
    """

    def __init__(self, graph: StageGraph):
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        holder = ray.remote(num_cpus=0, scheduling_strategy=here)(_Holder)
        self._holder = holder.remote(graph)

    def take(self, lane: int) -> tuple[str, str]:
        return ray.get(self._holder.call.remote("take", lane))

    def finish(self, lane: int) -> None:
        ray.get(self._holder.call.remote("finish", lane))

    def fail(self, lane: int) -> str | None:
        return ray.get(self._holder.call.remote("fail", lane))

    def open(self) -> set[str]:
        return ray.get(self._holder.call.remote("open"))

    def unfinished(self) -> list[str]:
        return ray.get(self._holder.call.remote("unfinished"))

    def give_up(self) -> None:
        ray.get(self._holder.call.remote("give_up"))

    def is_controlled(self, lane: int, controller: Any) -> None:
        """Note the actor that holds the group of a lane."""
        self._holder.is_controlled.remote(lane, controller)

    def end_groups(self) -> None:
        """End the groups of all lanes, whatever they wait for."""
        ray.get(self._holder.end_groups.remote())


class _Holder:
    def __init__(self, graph: StageGraph):
        self._graph = graph
        self._controllers: dict[int, Any] = {}

    def call(self, what: str, *arguments: Any) -> Any:
        return getattr(self._graph, what)(*arguments)

    def is_controlled(self, lane: int, controller: Any) -> None:
        self._controllers[lane] = controller

    def end_groups(self) -> None:
        """End the controllers, and give back what they hold: Ray keeps it as long as the job."""
        for controller in self._controllers.values():
            ray.kill(controller)
        owners = {controller._actor_id.binary() for controller in self._controllers.values()}
        _give_back(owners.__contains__)


def end_orphans() -> None:
    """Give back what groups of this job hold whose controller died, as with a lost process."""
    job = JobID.from_hex(ray.get_runtime_context().get_job_id())
    dead = state.actor_table(None, job, "DEAD")
    _give_back(lambda owner: owner.hex() in dead)


def _give_back(chosen: Callable[[bytes], bool]) -> None:
    """Remove the placement groups that an actor has made, if `chosen` says so of its id."""
    for content in state._connect_and_get_accessor().get_placement_group_table():
        group = gcs_pb2.PlacementGroupTableData.FromString(content)
        if group.state != group.REMOVED and chosen(group.creator_actor_id):
            remove_placement_group(PlacementGroup(PlacementGroupID(group.placement_group_id)))
