"""What one ingest task does on a worker: read, check, select, label, split, write one part.

A task leaves a part, its refusals and, last, a sidecar ``tasks/ID.json``: the commit marker. Work
without a sidecar did not happen; work with one is never repeated.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa

from skyray.cards import Card
from skyray.config import Config
from skyray.data.dataset import QUARANTINE_SCHEMA, Part
from skyray.data.parts import PartWriter, write_table
from skyray.data.rows import row_of, schema_of
from skyray.data.sources import RecordSource, Unit
from skyray.records import InvalidRecord, Record
from skyray.runtime import places


class Sidecar(Config):
    """What a task read and wrote; `units` are (uri, number, identity, weight)."""

    task: str
    job: str
    units: list[tuple[str, int, str, int]]
    part: Part | None
    quarantine: str | None
    reasons: dict[str, int]
    rows_read: int
    duplicates: int = 0

    @property
    def rows_quarantined(self) -> int:
        return sum(self.reasons.values())

    @property
    def rows_written(self) -> int:
        return self.part.rows if self.part else 0


@dataclass(frozen=True)
class Job:
    """What all tasks of an ingest share; sent to the workers once."""

    card: Card
    source: RecordSource
    out: str
    apply_cuts: bool

    @property
    def key(self) -> str:
        """Names what decides a row's content besides the sources."""
        text = f"{self.card.digest()}:{self.apply_cuts}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Task:
    """Units that one worker reads into one part."""

    units: tuple[Unit, ...]

    def name(self, job_key: str) -> str:
        """Return an identifier that follows from what the task reads."""
        text = json.dumps([job_key, [asdict(unit) for unit in self.units]])
        return hashlib.sha256(text.encode()).hexdigest()[:20]

    def to_json(self) -> str:
        return json.dumps([[u.uri, u.number, u.identity, u.weight] for u in self.units])

    @classmethod
    def from_json(cls, text: str) -> Task:
        return cls(tuple(Unit(*values) for values in json.loads(text)))


@dataclass
class Refusals:
    """Rows for the quarantine."""

    rows: list[dict[str, str]] = field(default_factory=list)

    def add(self, unit: Unit, error: InvalidRecord) -> None:
        self.rows.append(
            {
                "source": error.source or unit.uri,
                "object_id": error.object_id,
                "reason": error.reason,
                "detail": error.detail[:1000],
            }
        )

    def table(self) -> pa.Table:
        return pa.Table.from_pylist(self.rows, schema=QUARANTINE_SCHEMA)

    def reasons(self) -> dict[str, int]:
        return dict(Counter(row["reason"] for row in self.rows))


def records_of(source: RecordSource, unit: Unit) -> Iterator[Record | InvalidRecord]:
    """Yield what a unit holds; whatever goes wrong in reading is one refusal, never an abort."""
    try:
        yield from source.read(unit)
    except InvalidRecord as error:
        yield error
    except Exception as error:  # any damage of a survey file, in any library below the reader
        yield InvalidRecord("unreadable", f"{type(error).__name__}: {error}", unit.uri)


def _row_or_refusal(job: Job, record: Record | InvalidRecord) -> dict[str, Any] | InvalidRecord:
    if isinstance(record, InvalidRecord):
        return record
    try:
        return row_of(job.card, record, job.apply_cuts)
    except InvalidRecord as error:
        return error
    except Exception as error:  # one strange record must not end the ingest of all the others
        detail = f"{type(error).__name__}: {error}"
        return InvalidRecord("not_processed", detail, record.source, record.object_id)


def run_task(job: Job, task: Task) -> Sidecar:
    """Read the units of a task and write its part, refusals and sidecar."""
    name = task.name(job.key)
    writer = PartWriter(places.join(job.out, f"parts/{name}.parquet"),
                        schema_of(job.card))  # fmt: skip
    refusals = Refusals()
    rows_read = 0
    for unit in task.units:
        for record in records_of(job.source, unit):
            rows_read += 1
            row = _row_or_refusal(job, record)
            if isinstance(row, InvalidRecord):
                refusals.add(unit, row)
            else:
                writer.add(row)
    written = writer.close()
    quarantine = f"refused/{name}.parquet" if refusals.rows else None
    if quarantine:
        write_table(places.join(job.out, quarantine), refusals.table())
    sidecar = Sidecar(
        task=name,
        job=job.key,
        units=[(u.uri, u.number, u.identity, u.weight) for u in task.units],
        part=writer.part(f"parts/{name}.parquet") if written else None,
        quarantine=quarantine,
        reasons=refusals.reasons(),
        rows_read=rows_read,
    )
    write_sidecar(job.out, sidecar)
    return sidecar


def sidecar_uri(out: str, task: str) -> str:
    return places.join(out, "tasks", f"{task}.json")


def write_sidecar(out: str, sidecar: Sidecar) -> None:
    places.write_json(sidecar_uri(out, sidecar.task), sidecar.snapshot())
