"""Work on foreign bytes is ended at its deadline and its limit of memory, and the rest goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from tests import bounded_work as work

from skyray.config import ConfigError
from skyray.records import InvalidRecord
from skyray.runtime import bounded
from skyray.runtime.bounded import Bounds, each, stream

TIGHT = Bounds(seconds=0.5, memory_mib=256, seconds_per_mib=0)


def results(kinds, bounds=TIGHT):
    found = each(work.misbehave, kinds, [0] * len(kinds), bounds)
    return [item.reason if isinstance(item, InvalidRecord) else item for item in found]


def test_results_come_in_order_and_arrays_as_they_were():
    assert list(each(work.double, range(5), [0] * 5, TIGHT)) == [0, 2, 4, 6, 8]
    sizes = [0, 5, 100_000, 1_000_000]
    for size, found in zip(sizes, each(work.arrays, sizes, sizes, TIGHT), strict=True):
        for name, expected in work.arrays(size).items():
            np.testing.assert_array_equal(found[name], expected)
            assert found[name].dtype == expected.dtype


@pytest.mark.parametrize(
    ("kind", "reason"),
    [("loop", "decode_timeout"), ("memory", "decode_memory"), ("crash", "decode_crashed"),
     ("exit", "decode_crashed")],
)  # fmt: skip
def test_what_misbehaves_is_refused_and_the_rest_goes_on(kind, reason):
    assert results([1, kind, 2, 3]) == [1, reason, 2, 3]


def test_several_in_a_row_and_at_both_ends():
    kinds = ["crash", "memory", 1, "exit", "crash"]
    refused = ["decode_crashed", "decode_memory", 1, "decode_crashed", "decode_crashed"]
    assert results(kinds) == refused


def test_what_waits_for_ever_is_ended_too():
    began = time.monotonic()
    assert results(["wait", 1], Bounds(0.3, 256)) == ["decode_timeout", 1]
    assert time.monotonic() - began > 2.9


def test_a_process_that_waits_takes_no_processor_time_from_the_next():
    assert results([1]) == [1]
    time.sleep(0.7)  # more than the limit
    assert results([2]) == [2]


def test_processes_are_kept_and_those_at_work_are_ended_where_it_is_given_up():
    (first,) = each(work.children_of_mine, [None], [0], TIGHT)
    (second,) = each(work.children_of_mine, [None], [0], TIGHT)
    assert first == second
    given_up = each(work.misbehave, [1, "loop"], [0, 0], TIGHT)
    assert next(given_up) == 1
    given_up.close()
    with pytest.raises(ProcessLookupError):
        os.kill(first, 0)


def test_what_the_work_raises_is_raised_here():
    with pytest.raises(ValueError, match="raised there"):
        results([1, "raise"])
    assert results([1]) == [1]


def test_work_that_leaves_items_out_is_an_error():
    with pytest.raises(RuntimeError, match="expected results of 3 items, found 1"):
        list(stream(work.not_everything, [1, 2, 3], [0] * 3, TIGHT))


def test_what_a_process_cannot_import_is_an_error_and_no_refusal():
    def local(item):
        return item

    with pytest.raises((AttributeError, RuntimeError)):
        list(each(local, [1], [0], TIGHT))
    assert results([1]) == [1]


def test_an_idle_process_that_was_killed_is_replaced():
    (idle,) = each(work.children_of_mine, [None], [0], TIGHT)
    os.kill(idle, signal.SIGKILL)
    assert results([1, 2]) == [1, 2]


def test_processes_end_with_the_one_they_work_for():
    code = (
        "import os\nfrom skyray.runtime.bounded import Bounds, each\n"
        "from tests import bounded_work as work\n"
        "print(*each(work.children_of_mine, [None], [0], Bounds()), flush=True)\n"
        "os._exit(0)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    pid = int(done.stdout)
    deadline = time.monotonic() + 10
    while os.path.exists(f"/proc/{pid}") and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not os.path.exists(f"/proc/{pid}")


def test_a_forked_process_takes_its_own():
    (ours,) = each(work.children_of_mine, [None], [0], TIGHT)
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        (its,) = each(work.children_of_mine, [None], [0], TIGHT)
        os.write(writing, str(its).encode())
        bounded.close()
        os._exit(0)
    os.waitpid(pid, 0)
    assert int(os.read(reading, 20)) != ours
    assert list(each(work.children_of_mine, [None], [0], TIGHT)) == [ours]


def test_bounds_grow_with_the_content():
    seconds, memory = Bounds(10, 100, 0.5).of(4 << 20)
    assert seconds == 12
    assert memory == (100 + 8 * 4) << 20


def test_bounds_of_the_environment(monkeypatch):
    monkeypatch.setenv(bounded.SECONDS_VARIABLE, "7.5")
    monkeypatch.setenv(bounded.MEMORY_VARIABLE, "300")
    assert Bounds.of_environment() == Bounds(7.5, 300)
    for bad in ("0", "-1", "nan", "inf", "much"):
        monkeypatch.setenv(bounded.SECONDS_VARIABLE, bad)
        with pytest.raises(ConfigError, match=r"SKYRAY_DECODE_SECONDS: expected a number > 0"):
            Bounds.of_environment()
