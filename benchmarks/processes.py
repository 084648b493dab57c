"""What processes take, seen from outside: CPU time, and peaks of their private memory."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence

import psutil

_SECONDS_BETWEEN_LOOKS = 0.1
_MIB = 1 << 20
TOGETHER = "driver, workers and decoders"


def tree(pid: int) -> list[psutil.Process]:
    """Return a process and all that it has started and that still run."""
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def cpu_seconds(pids: Sequence[int]) -> float:
    """Return the CPU time that these processes and what they started have used up to now.

    Also that of processes which have ended, once whoever started them has taken note of it.
    """
    used = 0.0
    for process in {found.pid: found for pid in pids for found in tree(pid)}.values():
        try:
            times = process.cpu_times()
            used += times.user + times.system + times.children_user + times.children_system
        except psutil.NoSuchProcess:
            continue
    return used


class PeakMemory:
    """Watches a driver and its Ray for the time of a block, ten times a second.

    `peaks` (MiB): ``driver``, ``worker`` (the largest of Ray's workers) and ``decoder`` (the
    largest process in which a worker reads what strangers wrote) as unique set size, the private
    pages of a process; ``driver, workers and decoders`` together at one moment; ``object store``,
    the shared memory of the raylet.
    """

    def __init__(self, pid: int):
        self._pid, self._over = pid, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.peaks: Counter[str] = Counter()

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(_SECONDS_BETWEEN_LOOKS):
            private = 0
            for process in tree(self._pid):
                try:
                    private += self._look(process)
                except (psutil.NoSuchProcess, psutil.ZombieProcess, psutil.AccessDenied):
                    continue
            self._note(TOGETHER, private)

    def _look(self, process: psutil.Process) -> int:
        """Note what a process takes; return its private bytes where it is one of ours."""
        command = process.cmdline()
        if process.pid == self._pid:
            kind = "driver"
        elif command and command[0].startswith("ray::"):
            kind = "worker"
        elif any("skyray.runtime.bounded_process" in word for word in command):
            kind = "decoder"
        else:
            if process.name() == "raylet":
                self._note("object store", process.memory_info().shared)
            return 0
        size = process.memory_full_info().uss
        self._note(kind, size)
        return size

    def _note(self, kind: str, size: int) -> None:
        self.peaks[kind] = max(self.peaks[kind], size / _MIB)
