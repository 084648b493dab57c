"""Object keys by position: rows within the card's radius get one key, and so one split.

Workers give each row the key of its own position. Here, before a version is published, all new
rows are looked at together: which are of one object, and which of an object that was published.
Published rows keep their key and split for ever, so two positions that were published apart may
come to have one between them that is near both; where those are of two splits it belongs to
neither, and is refused as `BETWEEN_SPLITS`.

What a new row's key should be follows from the published version and the new rows alone, not from
what keys they have: it may be done again by anybody, and who came too late with a key of former
rows is corrected by the next who looks. Keys are a column of their own in the data files of those
fragments in which one changed; pixels are not written again, and rows keep their addresses.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import lance
import numpy as np
import pyarrow as pa

from skyray.cards import Card
from skyray.data.rows import split_of
from skyray.data.sky_groups import NONE, group_positions
from skyray.data.tables import commit_columns, open_table, rows_of
from skyray.records import SPLITS

BETWEEN_SPLITS = "between_splits"
_POSITION = ["ra", "dec"]
_FRAGMENT = np.uint64(32)  # bits of a row's address below its fragment's number


@dataclass(frozen=True)
class Changes:
    """What has to be done to a table of records: address → key, and address → why refused."""

    keys: Mapping[int, str]
    refused: Mapping[int, str]


def key_changes(
    card: Card, records: lance.LanceDataset, published: lance.LanceDataset | None
) -> Changes:
    """Return the keys that are not as they should be, and the rows that can have none.

    Parameters
    ----------
    records, published : LanceDataset
        The table now, and as it was when a version was last published.
    """
    former = {f.fragment_id: f for f in published.get_fragments()} if published else {}
    fragments = records.get_fragments()
    changed = [f for f in fragments if _files(f) != _files(former.get(f.fragment_id))]
    if card.object_key.by != "sky" or not changed:
        return Changes({}, {})
    keys: dict[int, str] = {}
    for fragment in changed:
        if fragment.fragment_id in former:
            keys |= _restored(former[fragment.fragment_id], fragment)
    groups = _Groups(card, [f for f in changed if f.fragment_id not in former], former.values())
    for fragment in groups.new.fragments:
        keys |= groups.different(fragment)
    refused = groups.refused()
    return Changes({a: key for a, key in keys.items() if a not in refused}, refused)


def write_keys(card: Card, place: str, keys: Mapping[int, str]) -> None:
    """Set keys of a table's rows, by their addresses, and the splits that follow from them.

    Raises
    ------
    OSError
        If another writer changed the same fragments meanwhile: who looks again may find it done.
    """
    addresses, table = np.array(sorted(keys), np.uint64), open_table(place)
    updated, fields = [], set()
    for number in np.unique(addresses >> _FRAGMENT):
        fragment = table.get_fragment(int(number))
        if fragment is None:  # all its rows were deleted meanwhile
            continue
        chosen = addresses[addresses >> _FRAGMENT == number]
        names = [keys[int(address)] for address in chosen]
        splits = [split_of(name, card.split) for name in names]
        columns = pa.table({"_rowaddr": chosen, "object_key": names, "split": splits})
        made, modified = fragment.update_columns(columns, "_rowaddr")
        updated.append(made)
        fields |= set(modified)
    commit_columns(place, table, updated, sorted(fields))


class _Rows:
    """The positions of some fragments' rows, where they have one, sorted by their addresses."""

    def __init__(self, fragments: Iterable[lance.LanceFragment]):
        self.fragments = sorted(fragments, key=lambda fragment: fragment.fragment_id)
        parts = [(np.zeros(0), np.zeros(0), np.zeros(0, np.uint64))]
        for part in rows_of(self.fragments, _POSITION):
            there, ra, dec = _positions(part)
            parts.append((ra, dec, part["_rowaddr"].to_numpy()[there]))
        joined = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        self.ra, self.dec, self.address = joined

    def sides(self) -> np.ndarray:
        """Return the numbers of the rows' splits, int8."""
        found = [np.zeros(0, np.int8)]
        for part in rows_of(self.fragments, [*_POSITION, "split"]):
            split = part["split"].to_numpy()[_positions(part)[0]]
            found.append(sum((split == name) * i for i, name in enumerate(SPLITS)).astype(np.int8))
        return np.concatenate(found)

    def keys(self, rows: np.ndarray) -> dict[int, str]:
        """Return the object keys of some rows, by their numbers."""
        address, found = self.address[rows], {}
        numbers = set((address >> _FRAGMENT).tolist())
        chosen = [f for f in self.fragments if f.fragment_id in numbers]
        for part in rows_of(chosen, ["object_key"]):
            part = part.filter(pa.array(np.isin(part["_rowaddr"].to_numpy(), address)))
            place = np.searchsorted(self.address, part["_rowaddr"].to_numpy())
            found |= dict(zip(place.tolist(), part["object_key"].to_pylist(), strict=True))
        return found


def _positions(part: pa.Table) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return which rows have a position, and their ra (0 to 360) and dec, degrees."""
    ra, dec = (part[name].to_numpy().astype(np.float64) for name in _POSITION)  # a null is NaN
    there = np.isfinite(ra) & np.isfinite(dec)
    return there, ra[there] % 360.0, dec[there]


def _files(fragment: lance.LanceFragment | None) -> list[str]:
    return [] if fragment is None else [file.path for file in fragment.metadata.files]


def _restored(before: lance.LanceFragment, now: lance.LanceFragment) -> dict[int, str]:
    """Return the keys of published rows that somebody changed since."""
    old, new = (next(rows_of([f], ["object_key"]), None) for f in (before, now))
    if new is None:
        return {}
    place = np.searchsorted(old["_rowaddr"].to_numpy(), new["_rowaddr"].to_numpy())
    was, found = old["object_key"].to_numpy()[place], new["object_key"].to_numpy()
    differs = np.flatnonzero(was != found)
    return dict(zip(new["_rowaddr"].to_numpy()[differs].tolist(), was[differs], strict=True))


class _Groups:
    """New rows, published ones, and which of them are of one object."""

    def __init__(
        self,
        card: Card,
        new: Iterable[lance.LanceFragment],
        published: Iterable[lance.LanceFragment],
    ):
        self._card, self.new, self._known = card, _Rows(new), _Rows(published)
        self._found = group_positions(
            self.new.ra, self.new.dec, self._known.ra, self._known.dec, self._known.sides(),
            card.object_key.radius_arcsec,
        )  # fmt: skip

    def different(self, fragment: lance.LanceFragment) -> dict[int, str]:
        """Return the keys of a fragment's rows that are to be changed.

        As a worker wrote them, all rows have the keys of their own positions.
        """
        first, end = (
            np.uint64(fragment.fragment_id << 32),
            np.uint64(fragment.fragment_id + 1 << 32),
        )
        rows = slice(*np.searchsorted(self.new.address, [first, end]))
        if len(_files(fragment)) == 1 and self._found.alone[rows].all():
            return {}
        part = next(rows_of([fragment], [*_POSITION, "object_key"]), None)
        if part is None:
            return {}
        found = part["object_key"].to_numpy()[_positions(part)[0]]
        expected = self._keys(np.arange(rows.start, rows.stop))
        addresses = self.new.address[rows].tolist()
        together = zip(addresses, expected, found, strict=True)
        return {address: key for address, key, has in together if key != has}

    def _keys(self, rows: np.ndarray) -> list[str]:
        known = self._found.known[rows]
        names = self._known.keys(np.unique(known[known != NONE]))
        first, at = self._found.first[rows], self._card.object_key.at
        return [
            names[owner] if owner != NONE else at(ra, dec)
            for owner, ra, dec in zip(
                known.tolist(), self.new.ra[first].tolist(), self.new.dec[first].tolist(),
                strict=True,
            )
        ]  # fmt: skip

    def refused(self) -> dict[int, str]:
        """Return the addresses of rows between objects of different splits, and why."""
        pairs = self._found.refused
        names = self._known.keys(
            np.unique([i for pair in pairs.values() for i in pair]).astype(int)
        )
        found, near = {}, f"{self._card.object_key.radius_arcsec:g} arcsec"
        for row, pair in pairs.items():
            one, two = (f"{names[i]} ({split_of(names[i], self._card.split)})" for i in pair)
            found[int(self.new.address[row])] = (
                f"expected objects of one split within {near}, or linked through others within "
                f"{near}; found {one} and {two}, which were published apart"
            )
        return found
