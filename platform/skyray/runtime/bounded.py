"""Work on bytes that strangers wrote, in processes that can be ended.

Libraries below the readers may loop, fill the memory or crash on bytes made (or damaged) to do so,
and nothing within a process can stop them. So such work runs in a process of its own, which is kept
for the next piece, with a limit of memory; whoever waits for it ends it at a deadline of processor
time. A piece of work that was ended is one refusal, and the others go on in a fresh process:

    for result in bounded.each(read_one, files, sizes, bounds):  # a result, or an InvalidRecord
        ...

Work and items are pickled on their way there, results on their way back, between processes of one
user and program. Memory is limited where the system counts private memory (Linux: RLIMIT_DATA).
"""

from __future__ import annotations

import atexit
import contextlib
import os
import pickle
import resource
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from skyray.config import ConfigError
from skyray.records import InvalidRecord

SECONDS_VARIABLE, MEMORY_VARIABLE = "SKYRAY_DECODE_SECONDS", "SKYRAY_DECODE_MEMORY_MIB"
_MIB = 1 << 20
_MEMORY_OF_SIZE = 8  # a file may take so many times its size more
_WALL = 10  # times the processor time: a process that waits for its disk or network, or for a CPU
_START_S = 120  # until a process has imported what it needs
_LOOK_S = 0.2  # between looks at a process that is at work
_PIPE_BYTES, _F_SETPIPE_SZ = _MIB, 1031  # Linux: results that may lie there until they are taken

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Bounds:
    """What one piece of work may take.

    Attributes
    ----------
    seconds : float
        Processor time for small content.
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

    def processor_s(self, size: int) -> float:
        """Return the processor time that content of `size` bytes may take."""
        return self.seconds + self.seconds_per_mib * size / _MIB

    def memory(self, size: int) -> int:
        """Return the bytes of memory that content of `size` bytes may take."""
        return int(self.memory_mib * _MIB) + _MEMORY_OF_SIZE * size


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
        Importable by name (or a `functools.partial` of such); must not raise but what the caller
        wants raised here.
    items : sequence
    sizes : sequence of int
        Bytes of their content, which the bounds grow with.
    bounds : Bounds

    Yields
    ------
    Result or InvalidRecord
        In place of the result of work that was ended: ``decode_timeout``, ``decode_memory`` or
        ``decode_crashed``, without a source.
    """
    done, again = 0, False
    while done < len(items):
        process = _take(fresh=again)
        again = False
        try:
            process.start(work, items[done:], sizes[done:], bounds)
            while done < len(items):
                result = process.result(bounds, sizes[done])
                done += 1
                if isinstance(result, _Raised):
                    raise result.error
                yield result
        except _Ended as ended:
            # What was read before may have left damage, or memory in use: then once more alone.
            again = process.used and ended.reason != "decode_timeout"
            if not again:
                done += 1
                yield InvalidRecord(ended.reason, ended.detail)
        finally:
            _give_back(process)


def warm(processes: int, work: Callable[[None], Any]) -> None:
    """Start processes, and do `work` in each, so that those who come later need not wait for it."""
    started = [_Process() for _ in range(processes)]
    for process in started:
        process.start(work, [None], [0], Bounds())
        process.result(Bounds(), 0)
        _give_back(process)


class _Ended(Exception):
    """A process that was ended, or ended itself, at its work."""

    def __init__(self, reason: str, detail: str):
        super().__init__(reason, detail)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class _Raised:
    """In place of a result: what the work raised."""

    error: Exception


class _OutOfMemory:
    """In place of a result: the memory did not suffice."""


# the processes that wait for work -------------------------------------------------------------
_idle: list[_Process] = []
_lock = threading.Lock()


def _take(fresh: bool) -> _Process:
    with _lock:
        while _idle and not fresh:
            process = _idle.pop()
            if process.alive():
                return process
    return _Process()


def _give_back(process: _Process) -> None:
    if process.busy or not process.alive():
        process.end()
        return
    with _lock:
        _idle.append(process)


@atexit.register
def close() -> None:
    """End all processes that wait for work."""
    with _lock:
        while _idle:
            _idle.pop().end()


class _Process:
    """One process, seen by whoever gives it work."""

    def __init__(self):
        down, to_child = os.pipe()
        from_child, up = os.pipe()
        with contextlib.suppress(ImportError, OSError):
            import fcntl

            fcntl.fcntl(up, _F_SETPIPE_SZ, _PIPE_BYTES)
        code = f"from skyray.runtime.bounded import _main; _main({down}, {up}, {os.getpid()})"
        paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", code], pass_fds=(down, up), stdin=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        os.close(down)
        os.close(up)
        self._send = Connection(to_child, readable=False)
        self._receive = Connection(from_child, writable=False)
        self._ready = select.poll()
        self._ready.register(from_child, select.POLLIN | select.POLLHUP)
        self._waiting = 0  # results that are to come
        self.used = False  # whether it has given any

    @property
    def busy(self) -> bool:
        return self._waiting > 0

    def alive(self) -> bool:
        return self._process.poll() is None

    def start(self, work: Callable, items: Sequence, sizes: Sequence[int], bounds: Bounds) -> None:
        """Give the process its work.

        Raises
        ------
        RuntimeError
            If it cannot take it, as where a module that the work needs is not there.
        """
        self._waiting = len(items)
        content = pickle.dumps((work, list(items), list(sizes), bounds), protocol=5)
        try:
            self._send.send_bytes(content)
            if self._ready.poll(1000 * _START_S):
                self._receive.recv_bytes(0)
                return
            self.end()
        except (OSError, EOFError):
            pass
        code = self._process.wait()
        raise RuntimeError(f"a process that decodes did not start its work: exit status {code}")

    def result(self, bounds: Bounds, size: int) -> Any:
        """Return the next result.

        Raises
        ------
        _Ended
            If there will be none.
        """
        self._wait(bounds.processor_s(size))
        try:
            content = self._receive.recv_bytes(bounds.memory(size) + _MIB)
        except EOFError:
            raise self._gone() from None
        except OSError:
            raise self._out_of_memory(bounds, size) from None
        self._waiting -= 1
        found = pickle.loads(content)
        if isinstance(found, _OutOfMemory):
            self._waiting = max(self._waiting, 1)  # not to be used again
            raise self._out_of_memory(bounds, size)
        self.used = True
        return found

    def _wait(self, seconds: float) -> None:
        """Return when a result is there, or the process has ended; end it at the deadline."""
        began, used = time.monotonic(), self._processor_s()
        look_ms = 1000 * min(_LOOK_S, seconds / 4)
        while not self._ready.poll(look_ms):
            if self._processor_s() - used > seconds:
                what = f"{seconds:.3g} s of processor time"
            elif time.monotonic() - began > _WALL * seconds:
                what = f"{_WALL * seconds:.3g} s"
            else:
                continue
            self.end()
            raise _Ended("decode_timeout", f"expected to be read within {what}, was not")

    def _processor_s(self) -> float:
        try:  # the clock that clock_getcpuclockid(3) names
            return time.clock_gettime((~self._process.pid << 3) | 2)
        except OSError:
            return 0.0

    def _out_of_memory(self, bounds: Bounds, size: int) -> _Ended:
        limit = bounds.memory(size) / _MIB
        return _Ended("decode_memory", f"expected to be read within {limit:,.0f} MiB, was not")

    def _gone(self) -> _Ended:
        self._receive.close()
        code = self._process.wait()
        if code == -signal.SIGXCPU:
            return _Ended("decode_timeout", "expected to be read in time, was not")
        if code == -signal.SIGKILL:  # not by us: by a system whose memory ran out
            return _Ended("decode_memory", "the process that read was killed by the system")
        what = signal.Signals(-code).name if code < 0 else f"exit status {code}"
        return _Ended("decode_crashed", f"the process that read ended with {what}")

    def end(self) -> None:
        """End the process, whatever it is at."""
        if self.alive():
            self._process.kill()
        self._process.wait()
        for pipe in (self._send, self._receive):
            with contextlib.suppress(OSError):
                pipe.close()


# in the process -------------------------------------------------------------------------------
def _main(down: int, up: int, parent: int) -> None:
    """Work until the other end of the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for whoever gives the work
    threading.Thread(target=_follow, args=(parent,), daemon=True).start()
    receive, send = Connection(down, writable=False), Connection(up, readable=False)
    idle = 0
    while True:
        try:
            content = receive.recv_bytes()
        except EOFError:
            return
        work, items, sizes, bounds = pickle.loads(content)
        del content
        idle = idle or _data_bytes()
        send.send_bytes(b"")
        for item, size in zip(items, sizes, strict=True):
            _limit(idle + bounds.memory(size), bounds.processor_s(size))
            answer = _answer(work, item)
            _limit(None, None)
            try:
                send.send_bytes(answer)
            except BrokenPipeError:
                return


def _answer(work: Callable, item: Any) -> bytes:
    try:
        return pickle.dumps(work(item), protocol=5)
    except MemoryError:
        return pickle.dumps(_OutOfMemory())
    except Exception as error:
        return pickle.dumps(_Raised(error))


def _limit(memory: int | None, processor_s: float | None) -> None:
    """Limit what this process may take from now on; None: as it may at most."""
    spent = None if processor_s is None else time.process_time() + 2 * processor_s + 5
    for kind, most in ((resource.RLIMIT_DATA, memory), (resource.RLIMIT_CPU, spent)):
        hard = resource.getrlimit(kind)[1]
        soft = hard if most is None else int(most)
        if hard != resource.RLIM_INFINITY:
            soft = min(soft, hard)
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(kind, (soft, hard))


def _data_bytes() -> int:
    """Return the private memory of this process as its limit counts it; 0 where unknown."""
    try:
        with open("/proc/self/statm", encoding="ascii") as stream:
            return int(stream.read().split()[5]) * resource.getpagesize()
    except OSError:
        return 0


def _follow(parent: int) -> None:
    """End this process when the one it works for has ended."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)
