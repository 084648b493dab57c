"""What the tests of bounded work have processes do: importable there by name."""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np


def double(number: int) -> int:
    return 2 * number


def arrays(size: int) -> dict[str, np.ndarray]:
    return {
        "zeros": np.zeros(size, np.float32),
        "turned": np.ones((size, 2)).T,
        "few": np.arange(3),
    }


def misbehave(kind: str | int) -> str | int:
    """Do what a library below a reader may do with damaged bytes."""
    if kind == "loop":
        while True:
            pass
    if kind == "wait":
        time.sleep(1000)
    if kind == "memory":
        return str(np.ones(1 << 28).sum())
    if kind == "crash":
        ctypes.string_at(0)
    if kind == "exit":
        os._exit(3)
    if kind == "raise":
        raise ValueError("raised there")
    return kind


def children_of_mine(_: None) -> int:
    return os.getpid()


def not_everything(items: Iterator[int]) -> Iterator[int]:
    yield next(items)


@dataclass(frozen=True)
class Measured:
    """What came of a piece of work, and what it took."""

    result: Any
    seconds: float  # of processor time
    peak_mib: float  # of resident memory beyond what was in use before


def measured(work: Callable[[Any], Any], item: Any) -> Measured:
    """Do a piece of work and measure it (Linux); a refusal is its result."""
    forget_peak()
    before, began = peak_mib(), time.process_time()
    try:
        result = work(item)
    except Exception as error:
        if not hasattr(error, "reason"):
            raise
        result = error
    return Measured(result, time.process_time() - began, peak_mib() - before)


def forget_peak() -> None:
    """Let the peak be what is in use now."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_mib() -> float:
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024
