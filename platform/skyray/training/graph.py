"""Which stages of a training need which: what may begin now, what runs, what is done.

A lane is one group of workers (or one process) that trains stage after stage. It takes one that is
ready whenever it is free, so stages which need nothing from one another run side by side on as many
lanes as there are.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Literal

from skyray.config import ConfigError

if TYPE_CHECKING:
    from skyray.families.base import Stage

WAIT, END = "wait", "end"


class StageGraph:
    """The stages of one training and how far each is.

    Parameters
    ----------
    stages : sequence of Stage
        In the family's order; `Stage.after` names what each needs.
    done : iterable of str
        Stages that an interrupted training has finished.
    last : str, optional
        Stage to end with: it, and what it needs.

    Raises
    ------
    ConfigError
        If a stage needs one that does not come before it.
    """

    def __init__(self, stages: Sequence[Stage], done: Iterable[str] = (), last: str | None = None):
        needs: dict[str, list[str]] = {}
        for stage in stages:
            direct = list(needs) if stage.after is None else list(stage.after)
            if unknown := [name for name in direct if name not in needs]:
                raise ConfigError(
                    f"stage {stage.name!r}: after: expected stages that come before it, "
                    f"{list(needs)}, found {unknown}"
                )
            whole = set(direct).union(*(needs[name] for name in direct))
            needs[stage.name] = [name for name in needs if name in whole]
        if last is not None:
            needs = {name: needs[name] for name in [*needs[last], last]}
        self._needs = needs
        self._done = {name for name in done if name in needs}
        self._held: dict[int, str] = {}
        self._failed: set[str] = set()

    @property
    def names(self) -> list[str]:
        return list(self._needs)

    def needs(self, name: str) -> list[str]:
        """Return all stages that one builds on, in their order."""
        return self._needs[name]

    def outlives(self, name: str) -> bool:
        """Return whether all stages but those a stage needs build on what it trained."""
        others = set(self._needs) - {name, *self._needs[name]}
        return all(name in self._needs[other] for other in others)

    def take(self, lane: int) -> tuple[Literal["wait", "end", "train"], str]:
        """Return what a lane shall do, and the stage to train: the one it holds, or a ready one."""
        if lane not in self._held:
            free = self.open() - set(self._held.values())
            ready = [n for n in self._needs if n in free and self._done.issuperset(self._needs[n])]
            if not ready:
                return (WAIT if any(self._waits_for_others(n) for n in free) else END), ""
            self._held[lane] = ready[0]
        return "train", self._held[lane]

    def finish(self, lane: int) -> None:
        self._done.add(self._held.pop(lane))

    def fail(self, lane: int) -> str | None:
        """Give up the stage that a lane holds, and with it those that need it; return its name."""
        name = self._held.pop(lane, None)
        if name is not None:
            self._failed.add(name)
        return name

    def give_up(self) -> None:
        """Hand out nothing from now on."""
        self._failed.update(self.unfinished())

    def unfinished(self) -> list[str]:
        return [name for name in self._needs if name not in self._done]

    def width(self) -> int:
        """Return how many of the unfinished stages can run at once, at most.

        Found by running them all in steps of equal length; stages of different lengths may leave a
        lane more or less to do.
        """
        done, width = set(self._done), 0
        while waiting := [name for name in self._needs if name not in done]:
            ready = [name for name in waiting if done.issuperset(self._needs[name])]
            width = max(width, len(ready))
            done.update(ready)
        return width

    def open(self) -> set[str]:
        """Return what may still be trained: not done, not failed, not in need of what failed."""
        return {
            name
            for name, needs in self._needs.items()
            if name not in self._done | self._failed and self._failed.isdisjoint(needs)
        }

    def _waits_for_others(self, name: str) -> bool:
        """Return whether a stage will be ready once what other lanes hold is done."""
        return any(need in self._held.values() for need in self._needs[name])


def lanes_that_fit(
    width: int, workers: int, need: dict[str, float], there_is: dict[str, float]
) -> int:
    """Return how many lanes run at once: no more than `width`, nor than resources hold; at least 1.

    Parameters
    ----------
    need, there_is : dict
        Resources of one worker, and of the cluster.
    """
    held = [there_is.get(kind, 0.0) / (workers * much) for kind, much in need.items() if much > 0]
    return max(1, min(width, math.floor(min(held, default=1.0) + 1e-9)))
