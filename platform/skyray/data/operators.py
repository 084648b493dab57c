"""The operators of an ingest, as they run on the workers: list, read, write.

The stream between them is Arrow: rows of units to read, then outcomes (`skyray.data.outcomes`).
Each operator adds notes of what it did, from which the driver sees that nothing was lost between
them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import fields
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from skyray.data.dataset import QUARANTINE, RECORDS
from skyray.data.outcomes import (
    NO_RECORD,
    QUARANTINE_SCHEMA,
    REFUSED_RECORD,
    Job,
    outcome_tables,
    outcomes_schema,
    outcomes_table,
    records_schema,
)
from skyray.data.pending import Pending, pending_units
from skyray.data.sources import Unclaimed, Unit
from skyray.data.tables import write_fragments
from skyray.runtime import places

# A task costs Ray some 20 ms of the driver's time, so it reads many units: a share of those that
# are known of, so that all workers have some, but no more than some bytes.
_KNOWN_AT_ONCE, _SHARES, _FEW_UNITS = 5000, 8, 32
_BYTES_AT_ONCE = 256 << 20
_ROWS_AT_ONCE = 256
_FILE_BYTES = 128 << 20  # of rows that wait to be written
_UNIT = pa.struct(
    [
        ("uri", pa.string()),
        ("number", pa.int32()),
        ("identity", pa.string()),
        ("weight", pa.int64()),
        ("there", pa.list_(pa.int32())),
    ]
)
_UNIT_FIELDS = [field.name for field in fields(Unit)]
_LISTED = pa.schema([("units", pa.list_(_UNIT)), ("note", pa.string())])
_TEXTS = pa.list_(pa.string())
_WRITTEN = pa.schema(
    [
        ("records", _TEXTS),
        ("quarantine", _TEXTS),
        ("rows", pa.int64()),
        ("refused", pa.int64()),
        ("notes", _TEXTS),
    ]
)


class ListUnits:
    """Where listing starts → groups of units that have to be read, one a row."""

    def __init__(self, job: Job):
        self._job = job

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        starts = batch["start"].to_pylist()
        told: dict[str, Any] = {"starts": len(starts), "listed": 0, "unclaimed": 0, "changed": {}}

        def units() -> Iterator[Unit]:
            for start in starts:
                for found in self._job.source.units(start):
                    if isinstance(found, Unclaimed):
                        told["unclaimed"] += found.count
                    else:
                        yield found

        pending = pending_units(self._job, units(), told["changed"])
        while known := list(islice(pending, _KNOWN_AT_ONCE)):
            told["listed"] += len(known)
            groups = [{"units": group} for group in _grouped(known)]
            yield pa.Table.from_pylist(groups, schema=_LISTED)
        yield pa.Table.from_pylist([{"note": json.dumps(told)}], schema=_LISTED)


def _grouped(known: Sequence[Pending]) -> Iterator[list[dict[str, Any]]]:
    """Put units together that one task reads."""
    most = max(_FEW_UNITS, -(-len(known) // _SHARES))
    group: list[dict[str, Any]] = []
    weight = 0
    for one in known:
        unit = one.unit
        if group and (len(group) == most or weight + unit.weight > _BYTES_AT_ONCE):
            yield group
            group, weight = [], 0
        about = {name: getattr(unit, name) for name in _UNIT_FIELDS}
        group.append({**about, "there": list(one.there)})
        weight += unit.weight
    yield group


class ReadUnits:
    """Groups of units → outcomes, at most `rows_per_file` at a time, and a note of each group."""

    def __init__(self, job: Job, rows_per_file: int):
        self._job, self._schema = job, outcomes_schema(job.card)
        self._rows = max(1, min(rows_per_file, _FILE_BYTES // _row_bytes(self._schema)))

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        for row in batch.to_pylist():
            if row["note"] is None:
                yield from self._read(row["units"])
            else:
                yield self._table([{"note": row["note"]}])

    def _read(self, units: list[dict[str, Any]]) -> Iterator[pa.Table]:
        told = {"read": len(units), "outcomes": 0}
        waiting: list[pa.Table] = []
        rows = 0
        for outcomes in self._outcomes(units):
            told["outcomes"] += outcomes.num_rows
            waiting.append(outcomes)
            rows += outcomes.num_rows
            if rows + self._at_once > self._rows:
                yield pa.concat_tables(waiting)
                waiting, rows = [], 0
        if waiting:
            yield pa.concat_tables(waiting)
        yield self._table([{"note": json.dumps(told)}])

    def _outcomes(self, units: list[dict[str, Any]]) -> Iterator[pa.Table]:
        pending = [(Unit(**{n: about[n] for n in _UNIT_FIELDS}), about["there"]) for about in units]
        for tables in outcome_tables(self._job, pending, self._at_once):
            yield from tables

    @property
    def _at_once(self) -> int:
        return min(_ROWS_AT_ONCE, self._rows)

    def _table(self, outcomes: list[dict[str, Any]]) -> pa.Table:
        return outcomes_table(outcomes, self._schema)


def _row_bytes(schema: pa.Schema) -> int:
    """Return the bytes of a row's tensors, at least 1."""
    tensors = (kind for kind in schema.types if isinstance(kind, pa.FixedShapeTensorType))
    return max(1, sum(math.prod(t.shape) * t.value_type.bit_width // 8 for t in tensors))


class WriteOutcomes:
    """Outcomes → data files of records and quarantine, and what the driver has to know of them."""

    def __init__(self, job: Job):
        self._job, self._schema = job, records_schema(job.card)

    def __call__(self, outcomes: pa.Table) -> pa.Table:
        told = pc.is_valid(outcomes["note"])
        refused = pc.is_valid(outcomes["reason"])
        good, other = outcomes.select(self._schema.names), pc.or_(told, refused)
        if pc.any(other).as_py():
            good = good.filter(pc.invert(other))
        bad = outcomes.filter(refused)
        bad = bad.append_column(REFUSED_RECORD, pa.array([NO_RECORD] * bad.num_rows, pa.uint64()))
        bad = bad.select(QUARANTINE_SCHEMA.names)
        return pa.table({
            "records": [self._write(RECORDS, good.cast(self._schema))],
            "quarantine": [self._write(QUARANTINE, bad.cast(QUARANTINE_SCHEMA))],
            "rows": [good.num_rows],
            "refused": [bad.num_rows],
            "notes": [outcomes["note"].drop_null().to_pylist()],
        }, schema=_WRITTEN)  # fmt: skip

    def _write(self, name: str, rows: pa.Table) -> list[str]:
        return write_fragments(places.join(self._job.out, name), rows)


class ReadAndWrite:
    """Groups of units → data files, of at most `rows_per_file` rows each.

    One operator, since rows that went through the object store would cost more than writing them,
    and a part of them is in memory at a time.
    """

    def __init__(self, job: Job, rows_per_file: int):
        self._read, self._write = ReadUnits(job, rows_per_file), WriteOutcomes(job)

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        for outcomes in self._read(batch):
            yield self._write(outcomes)
