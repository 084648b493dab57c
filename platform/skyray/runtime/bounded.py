"""Work on bytes that strangers wrote, in processes that can be ended.

Libraries below the readers may loop, fill the memory or crash on bytes made (or damaged) to do so,
and nothing within a process can stop them. So such work runs in a process of its own, which is kept
for the next piece, with a limit of memory; whoever waits for it ends it at a deadline of processor
time. A piece of work that was ended is one refusal, and the others go on in a fresh process:

    for result in bounded.each(read_one, files, sizes, bounds):  # a result, or an InvalidRecord
        ...

Memory is limited where the system counts private memory (Linux: RLIMIT_DATA).
"""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from skyray.config import ConfigError
from skyray.records import InvalidRecord
from skyray.runtime.bounded_process import Ended, Process, Raised

SECONDS_VARIABLE, MEMORY_VARIABLE = "SKYRAY_DECODE_SECONDS", "SKYRAY_DECODE_MEMORY_MIB"
_MIB = 1 << 20
_MEMORY_OF_SIZE = 8  # content may take so many times its size more

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Bounds:
    """What one piece of work may take.

    Attributes
    ----------
    seconds : float
        Processor time for small content; ten times as much may pass on the clock while it waits,
        except for a CPU.
    memory_mib : float
        Private memory beyond that of an idle process, MiB; 8 times the size of the content is
        added.
    seconds_per_mib : float
        Processor time added for each MiB of the content.
    """

    seconds: float = 30.0
    memory_mib: float = 2048.0
    seconds_per_mib: float = 1.0

    @classmethod
    def of_environment(cls) -> Bounds:
        """Return the bounds of batch work, which ``SKYRAY_DECODE_…`` may set.

        Raises
        ------
        ConfigError
            If a variable is not a number above 0.
        """
        return cls(_variable(SECONDS_VARIABLE, cls.seconds),
                   _variable(MEMORY_VARIABLE, cls.memory_mib))  # fmt: skip

    def of(self, size: int) -> tuple[float, int]:
        """Return the seconds and the bytes that content of `size` bytes may take."""
        seconds = self.seconds + self.seconds_per_mib * size / _MIB
        return seconds, int(self.memory_mib * _MIB) + _MEMORY_OF_SIZE * size


def _variable(name: str, default: float) -> float:
    text = os.environ.get(name) or str(default)
    with contextlib.suppress(ValueError):
        if 0 < float(text) < float("inf"):
            return float(text)
    raise ConfigError(f"{name}: expected a number > 0, found {text!r}")


def each(
    work: Callable[[Item], Result], items: Sequence[Item], sizes: Sequence[int], bounds: Bounds
) -> Iterator[Result | InvalidRecord]:
    """Yield ``work(item)`` for every item, in their order, worked out in another process.

    Parameters
    ----------
    work : callable
        Importable by name (or a `functools.partial` of such). What it raises is raised here.
    items : sequence
    sizes : sequence of int
        Bytes of their content, which the bounds grow with.
    bounds : Bounds

    Yields
    ------
    Result or InvalidRecord
        In place of the result of work that was ended: ``decode_timeout``, ``decode_memory`` or
        ``decode_crashed``, without a source.

    Raises
    ------
    RuntimeError
        If no process can be started.
    """
    for _, result in stream(partial(_each, work), items, sizes, bounds):
        yield result


def _each(work: Callable[[Item], Result], items: Iterator[Item]) -> Iterator[Result]:
    for item in items:
        yield work(item)


def stream(
    work: Callable[[Iterator[Item]], Iterator[Result]],
    items: Sequence[Item],
    sizes: Sequence[int],
    bounds: Bounds,
) -> Iterator[tuple[Sequence[Item], Result | InvalidRecord]]:
    """Yield what `work` makes of items as they come, in another process: see `each`.

    Whenever `work` yields, it has yielded all of the items that it has taken so far: so it is known
    what has to be done again where it is ended.

    Yields
    ------
    items : sequence
        Those that the result is of; one where it is the refusal of an item.
    result : Result or InvalidRecord
    """
    limits = [bounds.of(size) for size in sizes]
    parts = deque([_Part(0, len(items))])
    while parts:
        part = parts.popleft()
        if part.refusal is not None:
            yield items[part.first : part.stop], part.refusal
            continue
        done, those = part.first, slice(part.first, part.stop)
        process = _at_work(work, items[those], limits[those], part.alone)
        try:
            while done < part.stop:
                taken, result = process.result()
                if isinstance(result, Raised):
                    raise result.error
                yield items[done : part.first + taken], result
                done = part.first + taken
        except Ended as ended:
            parts.extendleft(reversed(_left(part, done, ended, process.used)))
        finally:
            _give_back(process)


@dataclass(frozen=True)
class _Part:
    """Items that are to be worked on, `alone` in a fresh process; or the refusal of one."""

    first: int
    stop: int
    alone: bool = False
    refusal: InvalidRecord | None = None


def _left(part: _Part, done: int, ended: Ended, used: bool) -> list[_Part]:
    """Return what is left to do where a process ended at an item, before and after it."""
    at = part.first + ended.item
    # What was read before may have left damage, or memory in use: then once more, alone.
    again = (used or at > done) and not part.alone and ended.reason != "decode_timeout"
    refusal = None if again else InvalidRecord(ended.reason, ended.detail)
    left = [_Part(done, at), _Part(at, at + 1, again, refusal), _Part(at + 1, part.stop)]
    return [one for one in left if one.first < one.stop]


def warm(processes: int, work: Callable[[None], Any]) -> None:
    """Start processes, and do `work` in each, so that those who come later need not wait for it."""
    started = [Process() for _ in range(processes)]
    for process in started:
        process.start(partial(_each, work), [None], [Bounds().of(0)])
        process.result()
        _give_back(process)


# the processes that wait for work
_idle: list[Process] = []
_lock = threading.Lock()


def _at_work(work: Callable, items: Sequence, limits: Sequence, fresh: bool) -> Process:
    process = _take(fresh)
    try:
        process.start(work, items, limits)
    except RuntimeError:
        if not process.used:
            raise
        process = _take(fresh=True)  # that one died while it had nothing to do
        process.start(work, items, limits)
    return process


def _take(fresh: bool) -> Process:
    with _lock:
        while _idle and not fresh:
            process = _idle.pop()
            if process.alive():
                return process
            process.end()
    return Process()


def _give_back(process: Process) -> None:
    if process.busy or not process.alive():
        process.end()
        return
    with _lock:
        _idle.append(process)


def _forget() -> None:
    """In a forked process: those that wait work for the one it was forked from."""
    global _idle, _lock
    _idle, _lock = [], threading.Lock()


os.register_at_fork(after_in_child=_forget)


@atexit.register
def close() -> None:
    """End all processes that wait for work."""
    with _lock:
        while _idle:
            _idle.pop().end()
