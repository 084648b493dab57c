"""What goes wrong with one record ends at the boundary, with its name."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from skyray.records import Cutout, InvalidRecord, attempt, each_or_all, refusal_of, to_the_end


def record(number: int) -> Cutout:
    image = np.full((1, 2, 2), number, np.float32)
    return Cutout(object_id=f"o{number}", image=image, bands=("g",), source=f"f{number}")


def test_a_fault_has_type_message_and_a_logged_traceback(caplog):
    with caplog.at_level(logging.WARNING, "skyray"):
        found = attempt(lambda: {}["fid"], "a.avro#3", "17")
    assert (found.reason, found.source, found.object_id) == ("reader_fault", "a.avro#3", "17")
    assert found.detail == "KeyError: 'fid'"
    assert caplog.records[0].exc_info[0] is KeyError
    assert attempt(lambda: 5) == 5


def test_a_refusal_stays_what_it_is_and_learns_what_it_does_not_say(caplog):
    known = InvalidRecord("flux_empty", "expected a flux", "b.fits", "")
    found = refusal_of(known, "a.fits", "17")
    assert (found.reason, found.source, found.object_id) == ("flux_empty", "b.fits", "17")
    assert not caplog.records


def test_a_file_that_breaks_off_gives_what_came_before():
    def broken() -> Iterator[int]:
        yield 1
        yield 2
        raise OverflowError("cannot convert float infinity to integer")

    *good, bad = to_the_end(broken, "a.fits")
    assert good == [1, 2]
    assert (bad.reason, bad.source) == ("unreadable", "a.fits")
    assert [r.reason for r in to_the_end(lambda: [], "a.fits")] == ["no_objects"]


@given(st.lists(st.booleans(), min_size=1, max_size=40))
def test_only_the_records_that_fail_have_no_answer(bad):
    def work(some: list[Cutout]) -> list[float]:
        if any(bad[int(one.object_id[1:])] for one in some):
            raise RuntimeError("the network's own words")
        return [float(one.image[0, 0, 0]) for one in some]

    found = each_or_all(work, [record(number) for number in range(len(bad))])
    for number, (answer, fails) in enumerate(zip(found, bad, strict=True)):
        if fails:
            assert (answer.source, answer.object_id) == (f"f{number}", f"o{number}")
        else:
            assert answer == number
