"""No mutation of a survey file crashes, hangs, fills the memory or passes ingest's boundary."""

from __future__ import annotations

import pytest
from tests.fuzzing import FILES, MUTATIONS, fuzz, mutated, table


@pytest.mark.parametrize("name", FILES)
def test_mutated_files_are_read_or_refused(name):
    tally = fuzz(name)
    print("\n" + table({name: tally}))
    assert tally.mutations == MUTATIONS
    assert not tally.broken()


def test_a_mutation_is_the_same_every_time():
    for name in FILES:
        assert mutated(name, 5) == mutated(name, 5)
        assert mutated(name, 5) != mutated(name, 6)
