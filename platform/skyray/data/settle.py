"""Before a version is published: files that changed, observations that came twice.

Everything here may be done again, by anybody, at any time: a kill between two steps, or another
ingest that settles at the same moment, changes nothing in the end. A record that loses against
another of its observation gets a refusal that names its address, and only then is it deleted; a
refusal goes only when a newer one says the same, or when its outcome is a record at another
address. So no outcome is ever in neither table.
"""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import lance
import numpy as np
import pandas as pd
import pyarrow as pa

from skyray.data.dataset import QUARANTINE, RECORDS, read_manifest
from skyray.data.outcomes import (
    INGEST_COLUMNS,
    NO_RECORD,
    QUARANTINE_SCHEMA,
    REFUSED_RECORD,
    Job,
)
from skyray.data.sky_keys import BETWEEN_SPLITS, key_changes, write_keys
from skyray.data.tables import (
    commit_append,
    delete_addresses,
    delete_rows,
    fragment_rows,
    open_table,
    quoted,
    rows_at,
    write_fragments,
)
from skyray.runtime import places

DUPLICATE, CONFLICT = "duplicate_observation", "conflicting_observation"
SEEN_TWICE = (DUPLICATE, CONFLICT)
_CLAIM_KEY = "skyray.claim"
_FILES_AT_ONCE = 100
_FAILURES = 40  # to write keys, one after another
_ROWS_IN_MEMORY = 4_000_000  # hashes of names that one task holds
_TWICE = f"reason IN ({quoted(SEEN_TWICE)})"
_OF_RECORDS = f"reason IN ({quoted([*SEEN_TWICE, BETWEEN_SPLITS])})"
UNIT_ROW = ["ingest_file", "ingest_stamp", "ingest_unit", "ingest_row"]


@dataclass(frozen=True)
class Tables:
    """Both tables of a dataset as they were at one moment, and where they lie."""

    out: str
    records: lance.LanceDataset
    quarantine: lance.LanceDataset

    @classmethod
    def open(cls, out: str) -> Tables:
        """Open both; a row on its way between them is seen in one of them at least."""
        records, quarantine = (places.join(out, name) for name in (RECORDS, QUARANTINE))
        refused = open_table(quarantine)
        while True:
            tables = cls(out, open_table(records), refused)
            refused = open_table(quarantine)
            if refused.version == tables.quarantine.version:
                return tables

    @property
    def records_place(self) -> str:
        return places.join(self.out, RECORDS)

    @property
    def quarantine_place(self) -> str:
        return places.join(self.out, QUARANTINE)


def files_seen_twice(out: str) -> list[str]:
    """Return the files of rows that were refused because another had their observation."""
    table = open_table(places.join(out, QUARANTINE))
    found = [t["ingest_file"].to_pylist() for t in fragment_rows(table, ["ingest_file"], _TWICE)]
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


def settle(job: Job) -> tuple[Tables, list[str]]:
    """Leave one row of every observation, the others in the quarantine; and one key of an object.

    A published row stays; among new ones the first by source (then by row) is kept: a rule that
    knows nothing of how files were dealt out.

    Returns
    -------
    Tables
        With nothing left to settle.
    list of str
        Files of refusals whose observation has no record any more: they are to be read again.
    """
    failures = 0
    while True:
        tables = Tables.open(job.out)
        if _drop_repeated(tables):
            continue
        refused = _Refused(tables)
        if refused.condemned:  # by an ingest that was killed, or is at it
            delete_addresses(tables.records_place, refused.condemned)
        elif _refuse_copies(tables):
            continue
        elif back := refused.back():
            delete_addresses(tables.quarantine_place, back)
        else:
            try:
                if not _settle_keys(tables, job):
                    return tables, refused.stranded()
            except OSError:  # another settles the same rows, most likely
                failures += 1
                if failures == _FAILURES:
                    raise
                time.sleep(random.uniform(0.0, 0.02 * failures))


def _drop_repeated(tables: Tables) -> bool:
    """Delete all but the newest refusal of one outcome; return whether there were."""
    twice = repeated_rows(tables.quarantine_place, tables.quarantine, UNIT_ROW)
    twice = twice.sort_values("_rowaddr", ascending=False)
    gone = twice[twice.duplicated(UNIT_ROW)]["_rowaddr"].tolist()
    delete_addresses(tables.quarantine_place, gone)
    return bool(gone)


class _Refused:
    """Refusals of what was a record, as hashes and addresses, and what the records hold of them."""

    def __init__(self, tables: Tables):
        self._table = tables.quarantine
        columns = [*UNIT_ROW, "observation_id", REFUSED_RECORD.name, "reason"]
        parts = [
            (
                part["_rowaddr"].to_numpy(),
                part[REFUSED_RECORD.name].to_numpy(),
                _hashes(part, UNIT_ROW),
                _hashes(part, ["observation_id"]),
                part["reason"].to_numpy() == BETWEEN_SPLITS,
            )
            for part in fragment_rows(self._table, columns, _OF_RECORDS)
        ]
        parts.append((*(np.zeros(0, np.uint64),) * 4, np.zeros(0, bool)))
        joined = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        self._address, record, self._unit_row, self._observation, self._kept = joined
        self._record = record[record != NO_RECORD]
        self._units: list[pa.Table] = []
        self.condemned: list[int] = []  # addresses of records
        if len(self._address):
            self._look_for(tables.records)

    def _look_for(self, records: lance.LanceDataset) -> None:
        """Find the records that were refused, those of the same outcomes, and those kept."""
        for part in fragment_rows(records, [*UNIT_ROW, "observation_id"]):
            address = part["_rowaddr"].to_numpy()
            self.condemned += address[np.isin(address, self._record)].tolist()
            same = np.isin(_hashes(part, UNIT_ROW), self._unit_row)
            self._units.append(part.filter(pa.array(same)).select(UNIT_ROW))
            self._kept |= np.isin(self._observation, _hashes(part, ["observation_id"]))

    def back(self) -> list[int]:
        """Return the addresses of refusals whose outcomes were read again and are records now."""
        there = [part.to_pandas() for part in self._units if part.num_rows]
        if not there:
            return []
        frame = pd.concat(there)
        hashes = pd.util.hash_pandas_object(frame, index=False, categorize=False)
        chosen = self._address[np.isin(self._unit_row, hashes.to_numpy(np.uint64))]
        refusals = rows_at(self._table, chosen, UNIT_ROW).to_pandas()
        return refusals.merge(frame, on=UNIT_ROW)["_rowaddr"].tolist()

    def stranded(self) -> list[str]:
        """Return the files of refusals whose observation has no record."""
        found = rows_at(self._table, self._address[~self._kept], ["ingest_file"])
        return sorted(set(found["ingest_file"].to_pylist()))


def _refuse_copies(tables: Tables) -> bool:
    """Refuse and delete all records but one of every observation; return whether there were."""
    records, quarantine = tables.records_place, tables.quarantine_place
    more = ["object_id", "source", "digest"]
    copies = repeated_rows(records, tables.records, ["observation_id"], more)
    if copies.empty:
        return False
    if not claim(tables.records):
        return True  # a version was published meanwhile: another record may have to stay
    fragment = (copies["_rowaddr"].to_numpy(np.uint64) >> np.uint64(32)).astype(np.int64)
    published = _published(tables)
    known = [f.fragment_id for f in published.get_fragments()] if published else []
    copies["later"] = ~np.isin(fragment, known)
    copies = copies.sort_values(
        ["observation_id", "later", "source", "ingest_unit", "ingest_row", "_rowaddr"]
    )
    commit_append(quarantine, write_fragments(quarantine, _refusals(copies)))
    lost = copies.duplicated("observation_id")
    delete_addresses(records, copies[lost]["_rowaddr"].tolist())
    return True


def claim(records: lance.LanceDataset, **entries: str) -> bool:
    """Set entries of the table, unless another has claimed it since `records` was opened.

    Who settles or publishes does so before anything else, so that all decide alike.
    """
    try:
        records.update_config({_CLAIM_KEY: uuid.uuid4().hex, **entries})
    except OSError:  # a conflict, or an answer that was lost
        return False
    return True


def _settle_keys(tables: Tables, job: Job) -> bool:
    """Give rows of one object on the sky one key, or refuse them; return whether there were."""
    if job.keys_final:
        return False
    changes = key_changes(job.card, tables.records, _published(tables))
    if not changes.keys and not changes.refused:
        return False
    if not claim(tables.records):
        return True
    if changes.refused:
        addresses = sorted(changes.refused)
        columns = ["source", "observation_id", "object_id", *INGEST_COLUMNS]
        rows = rows_at(tables.records, addresses, columns).to_pandas()
        rows = rows.assign(
            reason=BETWEEN_SPLITS,
            detail=[changes.refused[int(address)] for address in rows["_rowaddr"]],
            **{REFUSED_RECORD.name: rows["_rowaddr"].astype(np.uint64)},
        )
        written = write_fragments(tables.quarantine_place, _as_refusals(rows))
        commit_append(tables.quarantine_place, written)
        delete_addresses(tables.records_place, addresses)
    elif changes.keys:  # else they are looked at again, without the refused
        write_keys(job.card, tables.records_place, changes.keys)
    return True


def _published(tables: Tables) -> lance.LanceDataset | None:
    """Return the table of records of the version published last, if any was."""
    manifest = read_manifest(tables.records)
    if manifest is None:
        return None
    return open_table(tables.records_place, manifest.records_version)


def _refusals(copies: pd.DataFrame) -> pa.Table:
    """Return the refusals of all copies but the first of each observation.

    An outcome that was written twice needs none: it is the first.
    """
    about = [*UNIT_ROW, "source", "digest"]
    first = copies.groupby("observation_id", sort=False)[about].transform("first")
    again = (copies[UNIT_ROW] == first[UNIT_ROW]).all(axis=1)
    same = copies["digest"] == first["digest"]
    copies = copies.assign(
        reason=np.where(same, DUPLICATE, CONFLICT),
        detail=np.where(same, "kept the one of ", "the same name with other content; kept that of ")
        + first["source"],
        **{REFUSED_RECORD.name: copies["_rowaddr"].astype(np.uint64)},
    )
    return _as_refusals(copies[~again])


def _as_refusals(rows: pd.DataFrame) -> pa.Table:
    return pa.Table.from_pandas(
        rows[QUARANTINE_SCHEMA.names], schema=QUARANTINE_SCHEMA, preserve_index=False
    )


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
