"""The operators of an ingest, as they run on the workers: list, read, write.

The stream between them is Arrow: rows of units to read, then outcomes (`skyray.data.outcomes`).
Each operator adds notes of what it did, from which the driver sees that nothing was lost between
them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from skyray.data.dataset import QUARANTINE, RECORDS
from skyray.data.outcomes import (
    NO_RECORD,
    QUARANTINE_SCHEMA,
    REFUSED_RECORD,
    Job,
    outcomes_schema,
    records_schema,
    table_of,
    unit_outcomes,
)
from skyray.data.pending import Pending, pending_units
from skyray.data.sources import Unclaimed, Unit
from skyray.data.tables import write_fragments
from skyray.runtime import places

_UNITS_AT_ONCE, _BYTES_AT_ONCE = 64, 8 << 20  # what one task reads, and no more
_ROWS_AT_ONCE = 256
_UNIT = pa.struct(
    [
        ("uri", pa.string()),
        ("number", pa.int32()),
        ("identity", pa.string()),
        ("weight", pa.int64()),
        ("there", pa.list_(pa.int32())),
    ]
)
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

        for group in _grouped(pending_units(self._job, units(), told["changed"])):
            told["listed"] += len(group)
            yield pa.Table.from_pylist([{"units": group}], schema=_LISTED)
        yield pa.Table.from_pylist([{"note": json.dumps(told)}], schema=_LISTED)


def _grouped(pending: Iterator[Pending]) -> Iterator[list[dict[str, Any]]]:
    """Put units together that are neither many nor large."""
    group: list[dict[str, Any]] = []
    weight = 0
    for one in pending:
        unit = one.unit
        if group and (len(group) == _UNITS_AT_ONCE or weight + unit.weight > _BYTES_AT_ONCE):
            yield group
            group, weight = [], 0
        group.append({**asdict(unit), "there": list(one.there)})
        weight += unit.weight
    if group:
        yield group


class ReadUnits:
    """Groups of units → outcomes, some hundred rows at a time."""

    def __init__(self, job: Job):
        self._job, self._schema = job, outcomes_schema(job.card)

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        waiting: list[dict[str, Any]] = []
        for row in batch.to_pylist():
            if row["note"] is not None:
                waiting.append({"note": row["note"]})
                continue
            outcomes = 0
            for about in row["units"]:
                there = about.pop("there")
                found = unit_outcomes(self._job, Unit(**about), there)
                outcomes += len(found)
                waiting += found
                while len(waiting) >= _ROWS_AT_ONCE:
                    yield table_of(waiting[:_ROWS_AT_ONCE], self._schema)
                    waiting = waiting[_ROWS_AT_ONCE:]
            told = {"read": len(row["units"]), "outcomes": outcomes}
            waiting.append({"note": json.dumps(told)})
        yield table_of(waiting, self._schema)


class WriteOutcomes:
    """Outcomes → data files of records and quarantine, and what the driver has to know of them."""

    def __init__(self, job: Job):
        self._job, self._schema = job, records_schema(job.card)

    def __call__(self, outcomes: pa.Table) -> pa.Table:
        told = pc.is_valid(outcomes["note"])
        refused = pc.is_valid(outcomes["reason"])
        good = outcomes.filter(pc.invert(pc.or_(told, refused))).select(self._schema.names)
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
