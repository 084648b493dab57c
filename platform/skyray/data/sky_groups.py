"""Positions that are of one object on the sky, and which of known objects they belong to.

Two positions within a radius are of one object, and so are their neighbours' neighbours (friends of
friends: Huchra & Geller 1982, ApJ 257, 423). Objects that are known already keep what they are; a
position that would join two of them which must stay apart is refused.

Separations are measured as chords between unit vectors, so that the poles and 0h are nowhere
special. Positions are taken in bands of declination and pairs some millions at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

_AT_ONCE = 250_000  # positions of one band
_PAIRS_AT_ONCE = 4_000_000
NONE = -1


@dataclass(frozen=True)
class Groups:
    """What `group_positions` found for N new positions.

    Attributes
    ----------
    first : int64 [N]
        The new position that names the group: the smallest (ra, dec) of its members.
    known : int64 [N]
        The known object (its index) that the group belongs to, or -1.
    refused : dict
        New position → two known objects of different sides that it would join.
    alone : bool [N]
        True where all of a group are at one position, and no known object is near.
    """

    first: np.ndarray
    known: np.ndarray
    refused: dict[int, tuple[int, int]]
    alone: np.ndarray


def group_positions(
    ra: np.ndarray,
    dec: np.ndarray,
    known_ra: np.ndarray,
    known_dec: np.ndarray,
    known_side: np.ndarray,
    radius_arcsec: float,
) -> Groups:
    """Group new positions [N] with one another and with known objects [M].

    The result depends on the positions and on nothing else, such as their order.

    Parameters
    ----------
    ra, dec, known_ra, known_dec : float64
        Degrees, finite.
    known_side : int [M]
        What must never be joined: two known objects of different numbers.
    radius_arcsec : float
        Positions so near, or nearer, are of one object.
    """
    rows_of, node, firsts = _distinct(ra, dec)
    _, _, known_firsts = _distinct(known_ra, known_dec)
    new = _Sky(ra[firsts], dec[firsts])
    known = _Sky(known_ra[known_firsts], known_dec[known_firsts])
    chord = 2.0 * np.sin(np.radians(radius_arcsec / 3600.0) / 2.0) * (1.0 + 1e-9)
    label = _linked(new, chord)
    touch = _touches(new, known, np.asarray(known_side)[known_firsts], chord)
    first, owner, refused = _owned(new, chord, label, touch)
    sizes = np.bincount(first, minlength=len(first))
    alone = (sizes[first] == 1) & (owner == NONE)
    known_rows = np.append(known_firsts, NONE)  # which is where -1 points to
    pairs = {n: (int(known_rows[a]), int(known_rows[b])) for n, (a, b) in refused.items()}
    spans = np.searchsorted(node[rows_of], np.arange(len(first) + 1))
    return Groups(
        first=firsts[first][node],
        known=known_rows[owner][node],
        refused={
            int(r): pair for n, pair in pairs.items() for r in rows_of[spans[n] : spans[n + 1]]
        },
        alone=alone[node],
    )


def near_positions(ones: pa.Table, others: pa.Table, radius_arcsec: float) -> np.ndarray:
    """Return the rows of `others` that are nearest to a row of `ones`, within a radius.

    Both have ``ra`` and ``dec``, degrees; rows without are near none.
    """
    chord = 2.0 * np.sin(np.radians(radius_arcsec / 3600.0) / 2.0) * (1.0 + 1e-9)
    vectors = [_unit_vectors(*(t[n].to_numpy() for n in ("ra", "dec"))) for t in (ones, others)]
    rows = [np.flatnonzero(np.isfinite(v).all(axis=1)) for v in vectors]
    if not len(rows[0]) or not len(rows[1]):
        return np.zeros(0, np.int64)
    tree = cKDTree(vectors[1][rows[1]])
    _, index = tree.query(vectors[0][rows[0]], distance_upper_bound=chord)
    return rows[1][np.unique(index[index < len(rows[1])])]


def _unit_vectors(ra: np.ndarray, dec: np.ndarray) -> np.ndarray:
    ra, dec = np.radians(ra), np.radians(dec)
    return np.stack([np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)], axis=-1)


def _distinct(ra: np.ndarray, dec: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return rows sorted by (ra, dec), the distinct position of each row, and a row of each."""
    order = np.lexsort((dec, ra))
    if not len(order):
        return order, order, order
    steps = (np.diff(ra[order]) != 0) | (np.diff(dec[order]) != 0)
    number = np.concatenate([[0], np.cumsum(steps)])
    node = np.empty(len(order), np.int64)
    node[order] = number
    return order, node, order[np.searchsorted(number, np.arange(number[-1] + 1))]


class _Sky:
    """Distinct positions in the order of (ra, dec), to be looked through by declination."""

    def __init__(self, ra: np.ndarray, dec: np.ndarray):
        self.ra, self.dec = ra, dec
        self.by_dec = np.argsort(dec, kind="stable")
        self.sorted_dec = dec[self.by_dec]

    def __len__(self) -> int:
        return len(self.ra)

    def vectors(self, chosen: np.ndarray) -> np.ndarray:
        return _unit_vectors(self.ra[chosen], self.dec[chosen])

    def band(self, low: float, high: float) -> np.ndarray:
        first = np.searchsorted(self.sorted_dec, low)
        return self.by_dec[first : np.searchsorted(self.sorted_dec, high, "right")]


def _pairs(new: _Sky, other: _Sky, chord: float) -> Iterator[tuple[np.ndarray, ...]]:
    """Yield pairs within a chord: positions of `new` and of `other`, and the chords between."""
    margin = np.degrees(chord) * 1.01 + 1e-9
    for start in range(0, len(new), _AT_ONCE):
        chosen = new.by_dec[start : start + _AT_ONCE]
        near = other.band(new.dec[chosen[0]] - margin, new.dec[chosen[-1]] + margin)
        if not len(near):
            continue
        tree, vectors = cKDTree(other.vectors(near)), new.vectors(chosen)
        many = np.cumsum(tree.query_ball_point(vectors, chord, return_length=True))
        begin = 0
        while begin < len(chosen):
            before = many[begin - 1] if begin else 0
            end = max(begin + 1, int(np.searchsorted(many, before + _PAIRS_AT_ONCE, "right")))
            piece = cKDTree(vectors[begin:end])
            found = piece.sparse_distance_matrix(tree, chord, output_type="ndarray")
            yield chosen[begin:end][found["i"]], near[found["j"]], found["v"]
            begin = end


def _linked(new: _Sky, chord: float) -> np.ndarray:
    """Return the smallest member of each position's group of friends, int64 [n]."""
    label, waiting, count = np.arange(len(new)), [], 0
    for one, two, _ in _pairs(new, new, chord):
        waiting.append(np.stack([one, two])[:, one < two])
        count += waiting[-1].shape[1]
        if count > _PAIRS_AT_ONCE:
            label, waiting, count = _joined(label, waiting), [], 0
    return _joined(label, waiting) if count else label


def _joined(label: np.ndarray, pairs: list[np.ndarray]) -> np.ndarray:
    rows = np.arange(len(label))
    edges = tuple(np.concatenate([*pairs, [rows, label]], axis=1))
    graph = coo_array((np.ones(len(edges[0]), bool), edges), shape=(len(label),) * 2)
    count, part = connected_components(graph, directed=False)
    smallest = np.full(count, len(label))
    np.minimum.at(smallest, part, rows)
    return smallest[part]


@dataclass(frozen=True)
class _Touches:
    """Of new positions the nearest known object of each side, sorted by position."""

    node: np.ndarray
    side: np.ndarray
    known: np.ndarray
    chord: np.ndarray


def _touches(new: _Sky, known: _Sky, side: np.ndarray, chord: float) -> _Touches:
    kept = [(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))]
    for one, two, apart in _pairs(new, known, chord):
        order = np.lexsort((two, apart, side[two], one))
        one, two, apart = one[order], two[order], apart[order]
        nearest = np.ones(len(one), bool)
        nearest[1:] = (np.diff(one) != 0) | (np.diff(side[two]) != 0)
        kept.append((one[nearest], side[two[nearest]], two[nearest], apart[nearest]))
    node, sides, owner, apart = (np.concatenate(arrays) for arrays in zip(*kept, strict=True))
    order = np.argsort(node, kind="stable")
    return _Touches(node[order], sides[order], owner[order], apart[order])


def _owned(new: _Sky, chord: float, label: np.ndarray, touch: _Touches):
    """Return each position's first member and known object, and what is refused."""
    group = label[touch.node]
    owner = np.full(len(label), NONE)
    order = np.lexsort((touch.known, touch.chord, group))
    nearest = order[np.concatenate([[True], np.diff(group[order]) != 0])] if len(order) else order
    owner[group[nearest]] = touch.known[nearest]
    sides = np.unique(np.stack([group, touch.side]), axis=1)
    torn, counts = np.unique(sides[0], return_counts=True)
    torn = torn[counts > 1]
    first, owner = label.copy(), owner[label]
    if not len(torn):
        return first, owner, {}
    members = np.flatnonzero(np.isin(label, torn))
    refused = _divide(_Sky(new.ra[members], new.dec[members]), members, chord, touch, first, owner)
    return first, owner, refused


def _divide(
    sky: _Sky, members: np.ndarray, chord: float, touch: _Touches,
    first: np.ndarray, owner: np.ndarray,
) -> dict[int, tuple[int, int]]:  # fmt: skip
    """Group again, one by one, members of groups that touch several sides; return the refused.

    Who would join two sides is refused; so what stays is apart.
    """
    friends: dict[int, list[int]] = {}
    for one, two, _ in _pairs(sky, sky, chord):
        for a, b in zip(*np.stack([one, two])[:, one > two].tolist(), strict=True):
            friends.setdefault(a, []).append(b)
    root: dict[int, int] = {}
    nearest: dict[int, dict[int, tuple[float, int]]] = {}  # of a root: side → (chord, known)
    refused: dict[int, tuple[int, int]] = {}
    ends = np.searchsorted(touch.node, np.stack([members, members + 1]))
    for number, node in enumerate(members.tolist()):
        rows = range(ends[0, number], ends[1, number])
        own = {int(touch.side[r]): (float(touch.chord[r]), int(touch.known[r])) for r in rows}
        roots = {_root(root, f) for f in friends.get(number, ()) if f in root}
        for other in roots:
            for side, found in nearest[other].items():
                own[side] = min(own.get(side, found), found)
        if len(own) > 1:
            refused[node] = tuple(known for _, known in sorted(own.values())[:2])
            continue
        smallest = min(roots | {number})
        root[number] = number
        for other in roots | {number}:
            root[other] = smallest
        nearest[smallest] = own
    for number, node in enumerate(members.tolist()):
        top = _root(root, number) if number in root else number
        first[node] = members[top]
        found = nearest.get(top, {}) if number in root else {}
        owner[node] = min(found.values())[1] if found else NONE
    return refused


def _root(root: dict[int, int], number: int) -> int:
    while root[number] != number:
        root[number] = root[root[number]]
        number = root[number]
    return number
