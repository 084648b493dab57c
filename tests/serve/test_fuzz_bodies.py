"""No mutation of a request's body crashes, hangs, fills the memory or is a server error."""

from __future__ import annotations

import pytest
from tests.fuzzing import BODIES, MUTATIONS, fuzz, table


@pytest.mark.parametrize("name", BODIES)
def test_mutated_bodies_are_read_or_refused(name):
    tally = fuzz(name)
    print("\n" + table({name: tally}))
    assert tally.mutations == MUTATIONS
    assert not tally.broken()
