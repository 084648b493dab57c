"""Before a version is published: files that changed, observations that came twice.

Everything here may be done again, by anybody, at any time: a kill between two steps, or another
ingest that does the same, changes nothing in the end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import lance
import numpy as np
import pandas as pd
import pyarrow as pa

from skyray.data.dataset import QUARANTINE, RECORDS, Manifest
from skyray.data.outcomes import INGEST_COLUMNS, QUARANTINE_SCHEMA
from skyray.data.tables import (
    commit_append,
    delete_addresses,
    delete_rows,
    fragment_rows,
    open_table,
    quoted,
    write_fragments,
)
from skyray.runtime import places

DUPLICATE, CONFLICT = "duplicate_observation", "conflicting_observation"
SEEN_TWICE = (DUPLICATE, CONFLICT)
_FILES_AT_ONCE = 100
_ROWS_IN_MEMORY = 4_000_000  # hashes of names that one task holds
UNIT_ROW = ["ingest_file", "ingest_stamp", "ingest_unit", "ingest_row"]


def files_seen_twice(out: str) -> list[str]:
    """Return the files of rows that were refused because another had their observation."""
    only = f"reason IN ({quoted(SEEN_TWICE)})"
    table = open_table(places.join(out, QUARANTINE))
    found = [t["ingest_file"].to_pylist() for t in fragment_rows(table, ["ingest_file"], only)]
    return sorted({name for names in found for name in names})


def drop_superseded(out: str, changed: Mapping[str, str]) -> None:
    """Delete what was read from files that have changed since (file → its stamp now)."""
    files = sorted(changed)
    for start in range(0, len(files), _FILES_AT_ONCE):
        which = " OR ".join(
            f"(ingest_file = {quoted([f])} AND ingest_stamp != {quoted([changed[f]])})"
            for f in files[start : start + _FILES_AT_ONCE]
        )
        for name in (RECORDS, QUARANTINE):
            delete_rows(places.join(out, name), which)


@dataclass(frozen=True)
class Tables:
    """Both tables of a dataset as they were when they were opened, and where they lie."""

    out: str
    records: lance.LanceDataset
    quarantine: lance.LanceDataset

    @classmethod
    def open(cls, out: str) -> Tables:
        return cls(out, *(open_table(places.join(out, name)) for name in (RECORDS, QUARANTINE)))

    @property
    def records_place(self) -> str:
        return places.join(self.out, RECORDS)

    @property
    def quarantine_place(self) -> str:
        return places.join(self.out, QUARANTINE)


def settle(out: str, published: Manifest | None) -> Tables:
    """Leave one row of every observation, the others in the quarantine; return the tables so.

    A published row stays; among new ones the first by source (then by row) is kept: a rule that
    knows nothing of how files were dealt out.
    """
    while True:  # until a snapshot of both has nothing left to settle
        tables = Tables.open(out)
        if not (_settle_refusals(tables) or _settle_records(tables, published)):
            return tables


def _settle_refusals(tables: Tables) -> bool:
    """Delete refusals that came twice, or whose row was read again; return whether there were."""
    twice = repeated_rows(tables.quarantine_place, tables.quarantine, UNIT_ROW)
    gone = twice[twice.duplicated(UNIT_ROW)]["_rowaddr"].tolist()
    gone += _readmitted(tables.records, tables.quarantine)
    delete_addresses(tables.quarantine_place, gone)
    return bool(gone)


def _settle_records(tables: Tables, published: Manifest | None) -> bool:
    """Leave one row of every observation; return whether one came more than once."""
    records, quarantine = tables.records_place, tables.quarantine_place
    more = ["object_id", "source", "digest"]
    copies = repeated_rows(records, tables.records, ["observation_id"], more)
    if copies.empty:
        return False
    fragment = (copies["_rowaddr"].to_numpy(np.uint64) >> np.uint64(32)).astype(np.int64)
    copies["later"] = ~np.isin(fragment, _fragments(records, published))
    copies = copies.sort_values(
        ["observation_id", "later", "source", "ingest_unit", "ingest_row", "_rowaddr"]
    )
    again = copies.duplicated(["observation_id", *UNIT_ROW])  # one outcome, written twice
    refused = _refusals(copies[~again])
    commit_append(quarantine, write_fragments(quarantine, refused))
    lost = copies.duplicated("observation_id") | again
    delete_addresses(records, copies[lost]["_rowaddr"].tolist())
    return True


def _fragments(records: str, published: Manifest | None) -> list[int]:
    if published is None:
        return []
    table = open_table(records, published.records_version)
    return [fragment.fragment_id for fragment in table.get_fragments()]


def _refusals(copies: pd.DataFrame) -> pa.Table:
    """Return the refusals of all copies but the first of each observation."""
    first = copies.groupby("observation_id", sort=False)[["source", "digest"]].transform("first")
    same = copies["digest"] == first["digest"]
    copies = copies.assign(
        reason=np.where(same, DUPLICATE, CONFLICT),
        detail=np.where(same, "kept the one of ", "the same name with other content; kept that of ")
        + first["source"],
    )
    refused = copies[copies.duplicated("observation_id")]
    return pa.Table.from_pandas(
        refused[QUARANTINE_SCHEMA.names], schema=QUARANTINE_SCHEMA, preserve_index=False
    )


def _readmitted(records: lance.LanceDataset, quarantine: lance.LanceDataset) -> list[int]:
    """Return the addresses of refusals of rows that were read again and are records now."""
    only = f"reason IN ({quoted(SEEN_TWICE)})"
    found = []
    for part in fragment_rows(quarantine, UNIT_ROW, only):
        refused = part.to_pandas()
        files = sorted(set(refused["ingest_file"]))
        for start in range(0, len(files), _FILES_AT_ONCE):
            those = f"ingest_file IN ({quoted(files[start : start + _FILES_AT_ONCE])})"
            there = records.to_table(columns=UNIT_ROW, filter=those).to_pandas()
            found += refused.merge(there, on=UNIT_ROW)["_rowaddr"].tolist()
    return found


def repeated_rows(
    place: str, table: lance.LanceDataset, keys: Sequence[str], more: Sequence[str] = ()
) -> pd.DataFrame:
    """Return the rows of a table whose `keys` occur more than once, with where they came from."""
    hashes = _repeated_hashes(place, table.version, table.count_rows(), keys)
    columns = list(dict.fromkeys([*keys, *more, *INGEST_COLUMNS]))
    pieces = [pa.schema([table.schema.field(name) for name in columns]).empty_table().to_pandas()]
    if len(hashes):
        for part in fragment_rows(table, columns):
            pieces.append(part.filter(pa.array(np.isin(_hashes(part, keys), hashes))).to_pandas())
    frame = pd.concat(pieces, ignore_index=True) if len(pieces) > 1 else pieces[0]
    return frame if "_rowaddr" in frame else frame.assign(_rowaddr=np.zeros(0, np.uint64))


def _repeated_hashes(uri: str, version: int, rows: int, keys: Sequence[str]) -> np.ndarray:
    """Return the hashes of keys that occur more than once, a share of all hashes at a time."""
    shares = rows // _ROWS_IN_MEMORY + 1
    if shares == 1:
        return _repeated_share(uri, version, keys, 0, 1)
    import ray

    task = ray.remote(_repeated_share)
    return np.concatenate(
        ray.get([task.remote(uri, version, keys, share, shares) for share in range(shares)])
    )


def _repeated_share(
    uri: str, version: int, keys: Sequence[str], share: int, shares: int
) -> np.ndarray:
    pieces = [np.zeros(0, np.uint64)]
    for part in fragment_rows(open_table(uri, version), keys):
        hashes = _hashes(part, keys)
        pieces.append(hashes[hashes % np.uint64(shares) == share])
    values, counts = np.unique(np.concatenate(pieces), return_counts=True)
    return values[counts > 1]


def _hashes(table: pa.Table, keys: Sequence[str]) -> np.ndarray:
    frame = table.select(list(keys)).to_pandas()
    return pd.util.hash_pandas_object(frame, index=False, categorize=False).to_numpy(np.uint64)
