"""One process of `skyray.runtime.bounded`, seen from both of its ends.

What is to be done and the results are pickled, between processes of one user and one program; large
arrays and Arrow buffers pass the pipe as they lie in memory. Where the process is in its work
stands in memory that both ends see.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import pickle
import resource
import select
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import pyarrow as pa

_MIB = 1 << 20
_WALL = 10  # times the processor time: a process that waits for its disk or network
_STARTED = b"+"
_GRACE_S = 5
_START_S = 120  # on the clock, until a process has imported what its work needs
_LOOK_S = 0.2  # between looks at a process that is at work
_PIPE_BYTES, _F_SETPIPE_SZ = _MIB, 1031  # Linux: results that may lie there until they are taken
_IN_PLACE = 4096  # bytes of an array from which on it is not copied
_AT_ONCE = 256  # buffers that one system call writes

Limits = tuple[float, int]  # seconds of processor time, bytes of memory


class Ended(Exception):
    """A process that was ended, or ended itself, at an item of its work."""

    def __init__(self, reason: str, detail: str, item: int):
        super().__init__(reason, detail, item)
        self.reason, self.detail, self.item = reason, detail, item


@dataclass(frozen=True)
class Raised:
    """In place of a result: what the work raised."""

    error: Exception


class _OutOfMemory:
    """In place of a result: the memory did not suffice."""


class _Place:
    """Where a process is in its work: which item, and its processor time when it took that."""

    _FORM = struct.Struct("<qd")

    def __init__(self, descriptor: int | None = None):
        self._file = None
        if descriptor is None:
            self._file = tempfile.TemporaryFile()  # noqa: SIM115 (closed in `close`)
            self._file.truncate(mmap.PAGESIZE)
            descriptor = self._file.fileno()
        self.descriptor = descriptor
        self._shared = mmap.mmap(descriptor, mmap.PAGESIZE)

    def set(self, item: int, began_s: float) -> None:
        self._FORM.pack_into(self._shared, 0, item, began_s)

    def get(self) -> tuple[int, float]:
        return self._FORM.unpack_from(self._shared, 0)

    def close(self) -> None:
        self._shared.close()
        if self._file is not None:
            self._file.close()


class Process:
    """One process, seen by whoever gives it work."""

    def __init__(self):
        down, to_child = os.pipe()
        self._results, up = os.pipe()
        self._place = _Place()
        with contextlib.suppress(OSError):
            fcntl.fcntl(up, _F_SETPIPE_SZ, _PIPE_BYTES)
        ends = f"{down}, {up}, {self._place.descriptor}, {os.getpid()}"
        paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", f"from {__name__} import main; main({ends})"],
            pass_fds=(down, up, self._place.descriptor), stdin=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        os.close(down)
        os.close(up)
        self._work = Connection(to_child, readable=False)
        self._ready = select.poll()
        self._ready.register(self._results, select.POLLIN | select.POLLHUP)
        self._limits: Sequence[Limits] = ()
        self._done = 0  # of the items of this piece of work
        self.used = False  # whether it has ever given a result

    @property
    def busy(self) -> bool:
        return self._done < len(self._limits)

    def alive(self) -> bool:
        return self._process.poll() is None

    def start(self, work: Callable, items: Sequence, limits: Sequence[Limits]) -> None:
        """Give the process its work.

        Raises
        ------
        RuntimeError
            If it cannot take it, as where a module that the work needs is not there.
        """
        self._limits, self._done = limits, 0
        content = pickle.dumps((work, list(items), list(limits)), protocol=5)
        with contextlib.suppress(OSError):  # a broken pipe
            self._work.send_bytes(content)
            if self._starts() and os.read(self._results, 1) == _STARTED:
                return
        self.end()
        code = self._process.returncode
        raise RuntimeError(f"a process that decodes did not start its work: exit status {code}")

    def _starts(self) -> bool:
        """Return whether the process has said something, or ended, within `_START_S`."""
        until = self._clock() + _START_S
        while not (said := self._ready.poll(1000 * _LOOK_S)) and self._clock() < until:
            pass
        return bool(said)

    def result(self) -> tuple[int, Any]:
        """Return how many items are done, and the result of those that were not.

        Raises
        ------
        Ended
            If there will be none.
        """
        self._wait()
        most = max(memory for _, memory in self._limits[self._done :]) + _MIB
        try:
            done, found = _receive(self._results, most)
        except EOFError:
            raise self._gone() from None
        except MemoryError:
            found = _OutOfMemory()
        if isinstance(found, _OutOfMemory):
            raise self._ended("decode_memory", f"{self._limits[self._at()][1] / _MIB:,.0f} MiB")
        self._done, self.used = done, True
        return done, found

    def _at(self) -> int:
        """Return the item at work: one that is not done, whatever the process says."""
        return min(max(self._place.get()[0], self._done), len(self._limits) - 1)

    def _wait(self) -> None:
        """Return when a result is there, or the process has ended; end it at the deadline."""
        began = self._place.get(), self._clock()
        while not self._ready.poll(1000 * min(_LOOK_S, self._limits[self._at()][0] / 4)):
            place = self._place.get()
            if place != began[0]:
                began = place, self._clock()
                continue
            seconds = self._limits[self._at()][0]
            if self._processor_s() - place[1] > seconds:
                raise self._ended("decode_timeout", f"{seconds:.3g} s of processor time")
            if self._clock() - began[1] > _WALL * seconds:
                raise self._ended("decode_timeout", f"{_WALL * seconds:.3g} s")

    def _clock(self) -> float:
        """Return the time on the clock, s, less what the process has waited for a CPU (Linux).

        So what a busy machine does not let run is not taken for what hangs.
        """
        now = time.monotonic()
        try:
            with open(f"/proc/{self._process.pid}/schedstat", encoding="ascii") as stream:
                return now - int(stream.read().split()[1]) / 1e9
        except (OSError, LookupError):
            return now

    def _processor_s(self) -> float:
        try:  # the clock that clock_getcpuclockid(3) names
            return time.clock_gettime((~self._process.pid << 3) | 2)
        except OSError:
            return 0.0

    def _ended(self, reason: str, limit: str) -> Ended:
        ended = Ended(reason, f"expected to be read within {limit}, was not", self._at())
        self.end()
        return ended

    def _gone(self) -> Ended:
        code = self._process.wait()
        if code == -signal.SIGXCPU:
            return self._ended("decode_timeout", f"{self._limits[self._at()][0]:.3g} s")
        if code == -signal.SIGKILL:  # not by us: by a system whose memory ran out
            return self._ended("decode_memory", "the memory of this machine")
        what = signal.Signals(-code).name if code < 0 else f"exit status {code}"
        return Ended("decode_crashed", f"the process that read it ended with {what}", self._at())

    def end(self) -> None:
        """End the process, whatever it is at."""
        if self.alive():
            self._process.kill()
        self._process.wait()
        with contextlib.suppress(OSError):
            self._work.close()
        if self._results is not None:
            os.close(self._results)
            self._results = None
            self._place.close()


# the pipe -------------------------------------------------------------------------------------
def _send(pipe: int, done: int, result: Any) -> None:
    """Write a result: its pickle, and the large buffers beside it."""
    beside: list[memoryview] = []

    def in_pickle(buffer: pickle.PickleBuffer) -> bool:
        try:
            view = buffer.raw()
        except BufferError:  # not in one piece
            return True
        if view.nbytes >= _IN_PLACE:
            beside.append(view)
        return view.nbytes < _IN_PLACE

    content = pickle.dumps(result, protocol=5, buffer_callback=in_pickle)
    parts = [memoryview(content), *beside]
    sizes = struct.pack(f"<qq{len(parts)}q", done, len(parts), *(part.nbytes for part in parts))
    waiting = [memoryview(sizes), *parts]
    while waiting:
        try:
            written = os.writev(pipe, waiting[:_AT_ONCE])
        except BrokenPipeError:  # nobody waits for it any more
            os._exit(0)
        while waiting and written >= waiting[0].nbytes:
            written -= waiting.pop(0).nbytes
        if written:
            waiting[0] = waiting[0][written:]


def _receive(pipe: int, most: int) -> tuple[int, Any]:
    """Read what `_send` wrote.

    Raises
    ------
    EOFError
        If the other end was closed before its end.
    MemoryError
        If it is more than `most` bytes.
    """
    done, count = struct.unpack("<qq", _read(pipe, 16))
    if not 1 <= count <= most // 8:
        raise MemoryError
    sizes = struct.unpack(f"<{count}q", _read(pipe, 8 * count))
    if min(sizes) < 0 or sum(sizes) > most:
        raise MemoryError
    content, *beside = (_read(pipe, size) for size in sizes)
    return done, pickle.loads(content, buffers=beside)


def _read(pipe: int, size: int) -> memoryview:
    content = memoryview(pa.allocate_buffer(size))  # of a pool that keeps memory for the next
    at = 0
    while at < size:
        count = os.readv(pipe, [content[at:]])
        if not count:
            raise EOFError
        at += count
    return content


# in the process -------------------------------------------------------------------------------
def main(down: int, up: int, place: int, parent: int) -> None:
    """Work until the other end of the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for whoever gives the work
    threading.Thread(target=_follow, args=(parent,), daemon=True).start()
    works, idle = Connection(down, writable=False), 0
    told = _Place(place)
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            work, items, limits = pickle.loads(works.recv_bytes())
            idle = idle or _data_bytes()
            os.write(up, _STARTED)
            _work(up, work, _Taken(items, limits, idle, told))
            _limit(resource.RLIMIT_DATA, None)


class _Taken:
    """Items as the work takes them, each within its limits from then on."""

    def __init__(self, items: Sequence, limits: Sequence[Limits], idle: int, told: _Place):
        self._items, self._limits, self._idle, self._told = items, limits, idle, told
        self.count = 0
        self._memory, self._until = 0, 0.0  # what the limits are set to

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Any]:
        for item, (seconds, memory) in zip(self._items, self._limits, strict=True):
            now = time.process_time()
            self._told.set(self.count, now)
            self.count += 1
            if memory != self._memory:
                self._memory = memory
                _limit(resource.RLIMIT_DATA, self._idle + memory)
            if now + seconds + _GRACE_S > self._until:  # should nobody end this process
                self._until = now + 2 * (seconds + _GRACE_S)
                _limit(resource.RLIMIT_CPU, self._until)
            yield item


def _work(pipe: int, work: Callable, taken: _Taken) -> None:
    try:
        given = 0
        for result in work(iter(taken)):
            given = taken.count
            _send(pipe, given, result)
        if given < len(taken):
            raise RuntimeError(f"expected results of {len(taken)} items, found {given}")
    except MemoryError:
        _send(pipe, taken.count, _OutOfMemory())
    except Exception as error:
        _send(pipe, taken.count, Raised(_that_travels(error)))


def _that_travels(error: Exception) -> Exception:
    """Return an exception that can be pickled: itself, or what it says."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # whatever an exception's author did not think of
        return RuntimeError(f"{type(error).__name__}: {error}"[:1000])
    return error


def _limit(kind: int, most: float | None) -> None:
    """Limit what this process may take from now on; None: as much as it may at most."""
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
