"""Groups on the sky against pairs that astropy measures, at the poles and at 0h too."""

from __future__ import annotations

import astropy.units as u
import numpy as np
import pyarrow as pa
import pytest
from astropy.coordinates import SkyCoord, search_around_sky
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from skyray.data import sky_groups
from skyray.data.sky_groups import Groups, group_positions, near_positions

RADIUS = 2.0
NOTHING = np.zeros(0)
PLACES = [(0.0, 0.0), (359.99999, -12.0), (10.0, 90.0), (213.35, 53.09), (77.0, -90.0)]


def clumps(seed: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Return clumped positions some arcsec wide: steps of a fraction of the radius up to five."""
    random = np.random.default_rng(seed)
    centre = SkyCoord(*np.transpose([PLACES[i] for i in random.integers(0, 5, count)]), unit="deg")
    angle, far = random.uniform(0, 360, count), RADIUS * random.uniform(0, 5, count)
    moved = centre.directional_offset_by(angle * u.deg, far * u.arcsec)
    again = random.integers(0, count, count)  # some positions come twice
    chosen = np.where(random.random(count) < 0.2, again, np.arange(count))
    return moved.ra.deg[chosen], moved.dec.deg[chosen]


def pairs(ra, dec, radius=RADIUS) -> tuple[np.ndarray, np.ndarray]:
    sky = SkyCoord(ra, dec, unit="deg")
    one, two, _, _ = search_around_sky(sky, sky, radius * u.arcsec)
    return one, two


def group(ra, dec, known_ra=NOTHING, known_dec=NOTHING, side=NOTHING) -> Groups:
    return group_positions(ra, dec, known_ra, known_dec, side, RADIUS)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 120), st.sampled_from([3, 250_000]))
def test_groups_are_the_connected_components_of_near_pairs(seed, count, at_once):
    ra, dec = clumps(seed, count)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sky_groups, "_AT_ONCE", at_once)
        patch.setattr(sky_groups, "_PAIRS_AT_ONCE", 4 * at_once)
        found = group(ra, dec)
    one, two = pairs(ra, dec)
    graph = coo_array((np.ones(len(one)), (one, two)), shape=(count, count))
    _, part = connected_components(graph, directed=False)
    assert not found.refused
    assert (found.known == -1).all()
    for number in range(count):
        members = np.flatnonzero(part == part[number])
        assert (np.flatnonzero(found.first == found.first[number]) == members).all()
        smallest = min((ra[m], dec[m]) for m in members)
        assert (ra[found.first[number]], dec[found.first[number]]) == smallest
        assert found.alone[number] == (len({(ra[m], dec[m]) for m in members}) == 1)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(4, 120))
def test_no_near_pair_is_of_two_sides(seed, count):
    ra, dec = clumps(seed, count)
    old = count // 2
    first = group(ra[:old], dec[:old])
    side = np.array([hash((s, seed)) % 3 for s in first.first.tolist()])  # one of each group
    found = group(ra[old:], dec[old:], ra[:old], dec[:old], side)
    new = np.where(found.known >= 0, side[found.known], 10 + found.first)
    sides = np.concatenate([side, new])
    kept = np.ones(count, bool)
    kept[[old + row for row in found.refused]] = False
    for a, b in zip(*pairs(ra, dec), strict=True):
        if kept[a] and kept[b] and max(a, b) >= old:
            assert sides[a] == sides[b]
    for row, (one, two) in found.refused.items():
        assert side[one] != side[two], row
    order = np.random.default_rng(seed).permutation(count - old)
    again = group(ra[old:][order], dec[old:][order], ra[:old], dec[:old], side)
    refused = {(ra[old + row], dec[old + row]) for row in found.refused}
    assert refused == {(ra[old:][order][r], dec[old:][order][r]) for r in again.refused}
    assert (again.known == found.known[order])[kept[old:][order]].all()


def test_who_is_near_two_sides_is_refused_and_his_neighbours_are_not():
    known = np.array([0.0, 3.5 / 3600])
    dec = np.zeros(2)
    new = np.array([-1.0, 1.7, 4.5]) / 3600
    found = group(new, np.zeros(3), known, dec, np.array([0, 2]))
    assert found.refused == {1: (1, 0)} or found.refused == {1: (0, 1)}
    assert found.known[[0, 2]].tolist() == [0, 1]
    same = group(new, np.zeros(3), known, dec, np.array([2, 2]))
    assert same.refused == {}


def test_a_crowd_at_one_place_takes_little_memory(monkeypatch):
    monkeypatch.setattr(sky_groups, "_PAIRS_AT_ONCE", 10_000)
    random = np.random.default_rng(1)
    ra, dec = 10 + random.normal(0, 1e-5, 3000), 10 + random.normal(0, 1e-5, 3000)
    assert len(set(group(ra, dec).first.tolist())) == 1


def test_near_positions_leaves_out_what_has_none():
    ones = pa.table({"ra": [10.0, None, 359.9999], "dec": [0.0, 0.0, 5.0]})
    others = pa.table({"ra": [50.0, 0.0001, None, 10.0001], "dec": [0.0, 5.0, 0.0, 0.0]})
    assert near_positions(ones, others, 1.0).tolist() == [1, 3]
    assert near_positions(ones, others, 0.1).tolist() == []
