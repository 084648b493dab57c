"""From units of survey files to outcomes: every object is a row of the dataset, or a refusal.

Outcomes travel as Arrow blocks from the reader on: the dataset's columns, where each came from, and
for a refusal its reason in place of the pixels. Whatever a unit holds is numbered (``ingest_row``
of ``ingest_rows``), so that a unit is finished when all its numbers are there, in records or in the
quarantine, and work done twice is seen to be.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from skyray.cards import Card
from skyray.data.rows import row_of, schema_of
from skyray.data.sources import RecordSource, Unit
from skyray.records import InvalidRecord, Record, attempt, tensor_array, to_the_end
from skyray.runtime import bounded

INGEST_FIELDS = [
    pa.field("ingest_file", pa.string(), nullable=False),
    pa.field("ingest_stamp", pa.string(), nullable=False),  # changes when the file does
    pa.field("ingest_unit", pa.int32(), nullable=False),
    pa.field("ingest_row", pa.int32(), nullable=False),
    pa.field("ingest_rows", pa.int32(), nullable=False),
]
INGEST_COLUMNS = tuple(field.name for field in INGEST_FIELDS)
DIGEST = pa.field("digest", pa.binary(32), nullable=False)
HIDDEN_COLUMNS = (*INGEST_COLUMNS, DIGEST.name)
REFUSAL_FIELDS = [
    pa.field("source", pa.string(), nullable=False),
    pa.field("observation_id", pa.string(), nullable=False),
    pa.field("object_id", pa.string(), nullable=False),
    pa.field("reason", pa.string(), nullable=False),
    pa.field("detail", pa.string(), nullable=False),
]
# Of a copy: the address (``_rowaddr``) of the record that was refused, and is or will be deleted.
REFUSED_RECORD = pa.field("refused_record", pa.uint64(), nullable=False)
NO_RECORD = 2**64 - 1
QUARANTINE_SCHEMA = pa.schema([*REFUSAL_FIELDS, *INGEST_FIELDS, REFUSED_RECORD])
_DETAIL_CHARACTERS = 1000
# Where a survey's file lies is not what it says, nor is how its values were understood, when they
# are the same: a moved copy is the same data. And whose neighbour an object is depends on what else
# is there.
_NOT_CONTENT = frozenset({"source", "statements", "object_key", "split"})


Pending = tuple[Unit, Collection[int]]  # and which numbers of its outcomes are there already


@dataclass(frozen=True)
class Job:
    """What all tasks of an ingest share; sent to the workers once.

    With `readmit`, rows that were refused since another had their observation are read again. With
    `keys_final`, rows come with the object keys and splits of another dataset, which stay.
    """

    card: Card
    source: RecordSource
    out: str
    apply_cuts: bool
    readmit: bool = False
    keys_final: bool = False

    @property
    def key(self) -> str:
        """Names what decides a row's content besides the sources."""
        text = f"{self.card.digest()}:{self.apply_cuts}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def records_schema(card: Card) -> pa.Schema:
    """Return the schema of the table of records: the dataset's columns and where they came from."""
    schema = schema_of(card)
    return pa.schema([*schema, *INGEST_FIELDS, DIGEST], metadata=schema.metadata)


def outcomes_schema(card: Card) -> pa.Schema:
    """Return the schema of outcomes: `records_schema`, and ``reason``, ``detail``, ``note``.

    ``reason`` is null for a record. A row with a ``note`` (JSON) is none of a unit's outcomes but
    a word to whoever commits them.
    """
    words = [pa.field(name, pa.string()) for name in ("reason", "detail", "note")]
    return pa.schema([*records_schema(card), *words])


def records_of(source: RecordSource, unit: Unit) -> Iterator[Record | InvalidRecord]:
    """Yield what a unit holds; whatever goes wrong in reading is one refusal, never an abort."""
    return to_the_end(lambda: source.read(unit), unit.uri)


def outcome_tables(job: Job, pending: Sequence[Pending], rows: int) -> Iterator[list[pa.Table]]:
    """Yield the outcomes of units, read within the bounds of their source, in tables of `rows`.

    A unit whose reading had to be ended has one: the refusal that says so.
    """
    work, bounds = partial(_tables, job, rows), job.source.bounds
    if bounds is None:
        yield from work(pending)
        return
    sizes = [unit.weight for unit, _ in pending]
    for ((unit, there), *_), found in bounded.stream(work, pending, sizes, bounds):
        if isinstance(found, InvalidRecord):
            ended = _numbered(unit, [_refusal(found)], there)
            found = [outcomes_table(ended, outcomes_schema(job.card))]
        yield found


def _tables(job: Job, rows: int, pending: Iterable[Pending]) -> Iterator[list[pa.Table]]:
    """Yield the outcomes of whole units, some hundred at a time and at the end, in tables."""
    schema, waiting = outcomes_schema(job.card), []
    for unit, there in pending:
        waiting += unit_outcomes(job, unit, there)
        if len(waiting) >= rows:
            yield _in_tables(waiting, schema, rows)
            waiting = []
    yield _in_tables(waiting, schema, rows)


def _in_tables(outcomes: list[dict[str, Any]], schema: pa.Schema, rows: int) -> list[pa.Table]:
    starts = range(0, len(outcomes), rows)
    return [outcomes_table(outcomes[start : start + rows], schema) for start in starts]


def unit_outcomes(job: Job, unit: Unit, there: Collection[int] = ()) -> list[dict[str, Any]]:
    """Read a unit and return its outcomes, without those whose numbers are `there` already."""
    return _numbered(
        unit, [_outcome(job, record) for record in records_of(job.source, unit)], there
    )


def _numbered(
    unit: Unit, rows: list[dict[str, Any]], there: Collection[int]
) -> list[dict[str, Any]]:
    """Say of a unit's outcomes where they came from; leave out those that are `there`."""
    place = {
        "ingest_file": unit.uri, "ingest_stamp": unit.identity, "ingest_unit": unit.number,
        "ingest_rows": len(rows),
    }  # fmt: skip
    for number, row in enumerate(rows):
        row |= place
        row["ingest_row"] = number
        row["source"] = row["source"] or unit.uri
    known = set(there)
    return [row for row in rows if row["ingest_row"] not in known]


def _outcome(job: Job, record: Record | InvalidRecord) -> dict[str, Any]:
    if isinstance(record, InvalidRecord):
        return _refusal(record)

    def row() -> dict[str, Any]:
        row = row_of(job.card, record, job.apply_cuts)
        return {**row, "digest": row_digest(row)}

    made = attempt(row, record.source, record.object_id)
    return _refusal(made, record.observation_id) if isinstance(made, InvalidRecord) else made


def _refusal(error: InvalidRecord, observation_id: str = "") -> dict[str, Any]:
    told = {
        "source": error.source,
        "observation_id": observation_id or error.object_id,
        "object_id": error.object_id,
        "reason": error.reason,
        "detail": error.detail[:_DETAIL_CHARACTERS],
    }
    return {name: _readable(text) for name, text in told.items()}


def _readable(text: Any) -> str:
    """Return text as UTF-8 can hold it: half a surrogate pair is escaped."""
    return str(text).encode("utf-8", "backslashreplace").decode()


def row_digest(row: Mapping[str, Any]) -> bytes:
    """Return the sha256 of a row's content: plain values as sorted JSON, then the arrays' bytes."""
    plain, arrays = {}, []
    for name, value in row.items():
        if isinstance(value, np.ndarray):
            arrays.append((name, value))
        elif name not in _NOT_CONTENT:
            plain[name] = value
    digest = hashlib.sha256(json.dumps(plain, sort_keys=True, default=_number).encode())
    for _, values in sorted(arrays, key=lambda item: item[0]):
        digest.update(np.ascontiguousarray(values).data)
    return digest.digest()


def _number(value: Any) -> Any:
    return value.item()  # numpy's scalars


def outcomes_table(rows: list[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    """Return outcomes as a table; a record whose values its columns cannot hold is refused."""
    try:
        return table_of(rows, schema)
    except Exception:  # of one of them
        return pa.concat_tables([_outcome_table(row, schema) for row in rows])


def _outcome_table(row: dict[str, Any], schema: pa.Schema) -> pa.Table:
    made = attempt(lambda: table_of([row], schema), row["source"], row["object_id"])
    if isinstance(made, pa.Table):
        return made
    place = {name: row[name] for name in INGEST_COLUMNS}
    return table_of([_refusal(made, row["observation_id"]) | place], schema)


def table_of(rows: list[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    """Return rows as a table; what a row does not have is null, zero or empty."""
    columns = [_column(field, [row.get(field.name) for row in rows]) for field in schema]
    return pa.Table.from_arrays(columns, schema=schema)


def _column(field: pa.Field, values: list[Any]) -> pa.Array:
    if isinstance(field.type, pa.FixedShapeTensorType):
        shape, kind = field.type.shape, field.type.value_type
        stacked = np.zeros((len(values), *shape), kind.to_pandas_dtype())
        for row, value in enumerate(values):
            if value is not None:
                stacked[row] = value
        return tensor_array(stacked, kind)
    if not field.nullable:
        nothing = _NOTHING.get(field.type, 0)
        values = [nothing if value is None else value for value in values]
    try:
        return pa.array(values, type=field.type)
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        found = f"{values[0]!r}"[:100] if len(values) == 1 else f"{len(values)} values"
        detail = f"{field.name}: expected {field.type}, found {found}"
        raise InvalidRecord("field_invalid", detail) from None


_NOTHING = {pa.string(): "", pa.binary(32): bytes(32)}
