"""What a dataset already holds of a source, so that no finished work is done again."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

import lance

from skyray.data.dataset import QUARANTINE, RECORDS
from skyray.data.outcomes import INGEST_COLUMNS, Job
from skyray.data.settle import SEEN_TWICE
from skyray.data.sources import Unit
from skyray.data.tables import open_table, quoted, table_exists
from skyray.runtime import places

_UNITS_AT_ONCE = 5000


@dataclass(frozen=True, slots=True)
class Pending:
    """A unit that has to be read, and the numbers of its outcomes that are there already."""

    unit: Unit
    there: tuple[int, ...] = ()


@dataclass(slots=True)
class _Known:
    """What is held of one file: stamp → unit → (numbers there, how many there should be)."""

    stamps: dict[str, dict[int, tuple[set[int], int]]] = field(default_factory=dict)

    def add(self, stamp: str, unit: int, row: int, rows: int) -> None:
        numbers, _ = self.stamps.setdefault(stamp, {}).setdefault(unit, (set(), rows))
        numbers.add(row)


def pending_units(job: Job, units: Iterable[Unit], changed: dict[str, str]) -> Iterator[Pending]:
    """Yield the units of which something is neither in the records nor in the quarantine.

    Parameters
    ----------
    changed : dict
        Gets every file that is known with another stamp, and its stamp now.
    """
    tables = _tables(job)
    units = iter(units)
    while group := list(islice(units, _UNITS_AT_ONCE)):
        known = _known(tables, sorted({unit.uri for unit in group}))
        for uri, stamp in {unit.uri: unit.identity for unit in group}.items():
            if uri in known and set(known[uri].stamps) - {stamp}:
                changed[uri] = stamp
        for unit in group:
            found = known[unit.uri].stamps.get(unit.identity, {}) if unit.uri in known else {}
            numbers, rows = found.get(unit.number, (set(), -1))
            if len(numbers) != rows:
                yield Pending(unit, tuple(sorted(numbers)))


def _tables(job: Job) -> list[tuple[lance.LanceDataset, str]]:
    """Return the tables to look in, each with a filter."""
    if not table_exists(places.join(job.out, RECORDS)):
        return []
    refusals = f" AND reason NOT IN ({quoted(SEEN_TWICE)})" if job.readmit else ""
    return [
        (open_table(places.join(job.out, RECORDS)), ""),
        (open_table(places.join(job.out, QUARANTINE)), refusals),
    ]


def _known(
    tables: Sequence[tuple[lance.LanceDataset, str]], files: Sequence[str]
) -> dict[str, _Known]:
    known: dict[str, _Known] = defaultdict(_Known)
    for table, only in tables:
        scanner = table.scanner(
            columns=list(INGEST_COLUMNS), filter=f"ingest_file IN ({quoted(files)}){only}"
        )
        for batch in scanner.to_batches():
            columns = [batch.column(name).to_pylist() for name in INGEST_COLUMNS]
            for file, *place in zip(*columns, strict=True):
                known[file].add(*place)
    return known
