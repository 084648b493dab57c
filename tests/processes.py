"""Several processes that do the same thing at the same moment."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from typing import Any


def together(work: Callable[[str, int], Any], outs: list[str], count: int) -> list[list[Any]]:
    """Run `work(out, number)` in so many processes at once, `out` by `out`; return the answers."""
    context = multiprocessing.get_context("spawn")
    barrier, answers = context.Barrier(count), context.Queue()
    running = [
        context.Process(target=_in_step, args=(work, outs, number, barrier, answers))
        for number in range(count)
    ]
    for process in running:
        process.start()
    found = [[answers.get(timeout=120) for _ in running] for _ in outs]
    for process in running:
        process.join()
    return found


def _in_step(work, outs, number, barrier, answers) -> None:
    for out in outs:
        barrier.wait()
        answer = work(out, number)
        barrier.wait()
        answers.put(answer)
