"""Survey files (or a simulation) → dataset, on Ray Data.

Sources are listed, cut into tasks and run by Ray Data; every task writes its own part and commits
it with a sidecar, so that an interrupted ingest goes on where it stopped, and the same ingest run
again does nothing. The manifest is published last.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any

from tqdm import tqdm

from skyray.cards import Card
from skyray.config import ConfigError
from skyray.data.dataset import MANIFEST, Dataset
from skyray.data.publish import load_sidecars, publish
from skyray.data.sources import FileSource, RecordSource, Unit
from skyray.data.tasks import Job, Sidecar, Task, run_task
from skyray.runtime import places

ROWS_PER_PART = 1024
# A task takes about a quarter of a CPU's share, so that all are busy to the end, but neither so
# little that its part is a crumb nor so much that an interruption costs minutes.
_TASKS_PER_CPU = 4
_LEAST_BYTES, _MOST_BYTES = 2 << 20, 64 << 20


def ingest(
    card: Card,
    sources: Sequence[str | os.PathLike],
    out: str | os.PathLike,
    *,
    apply_cuts: bool = True,
    progress: bool = True,
    rows_per_part: int = ROWS_PER_PART,
) -> Dataset:
    """Read survey files into a dataset; Ray must have been started.

    Parameters
    ----------
    card : Card
        Names the reader, grid, classes, cuts and object key.
    sources : sequence of str
        Files, folders or URIs. In folders the card's reader chooses by name; a file named here is
        always taken.
    out : str
        The dataset: new, interrupted (it is finished) or existing (new sources are added).
    apply_cuts : bool
        Whether records outside the card's selection go to the quarantine.
    progress : bool
        Whether a progress bar is shown on stderr.
    rows_per_part : int
        At most so many files go into one part; a large table's unit is a part of its own.

    Raises
    ------
    ConfigError
        If `out` was made with another card or other cuts, or no file was found.
    FileNotFoundError
        If a source does not exist.
    """
    source = FileSource(card, sources)
    return ingest_source(
        card, source, out, apply_cuts=apply_cuts, progress=progress, rows_per_part=rows_per_part
    )


def ingest_source(
    card: Card,
    source: RecordSource,
    out: str | os.PathLike,
    *,
    apply_cuts: bool = True,
    progress: bool = True,
    rows_per_part: int = ROWS_PER_PART,
) -> Dataset:
    """Read any `RecordSource` into a dataset: see `ingest`."""
    job = Job(card, source, places.absolute(out), apply_cuts)
    before = _published(job)
    units = source.units()
    if not units:
        raise ConfigError(
            f"card {card.name}: no file for reader {card.reader!r} among the sources "
            f"({source.unclaimed} files of other names)"
        )
    kept, pending = pending_units(units, load_sidecars(job.out), job.key)
    if before and not pending and _same_parts(before, kept):
        return before
    tasks = group_units(pending, rows_per_part, _bytes_per_task(pending))
    for sidecar in _run(job, tasks, len(pending), progress):
        kept.append(sidecar)
    kept.sort(key=lambda sidecar: sidecar.units[0])
    return publish(job, kept, before)


def _published(job: Job) -> Dataset | None:
    if not places.exists(places.join(job.out, MANIFEST)):
        return None
    before = Dataset.open(job.out)
    found = Job(before.card, job.source, job.out, before.manifest.apply_cuts)
    if found.key != job.key:
        raise ConfigError(
            f"{job.out}: was ingested from card {before.card.name!r} ({before.card.digest()}, "
            f"apply_cuts={found.apply_cuts}); found card {job.card.name!r} ({job.card.digest()}, "
            f"apply_cuts={job.apply_cuts}). Name another dataset with --out"
        )
    return before


def _same_parts(before: Dataset, sidecars: Iterable[Sidecar]) -> bool:
    parts = {sidecar.part.path for sidecar in sidecars if sidecar.part}
    return parts == {part.path for part in before.manifest.parts}


def pending_units(
    units: Sequence[Unit], sidecars: Sequence[Sidecar], job_key: str
) -> tuple[list[Sidecar], list[Unit]]:
    """Return the finished tasks that still hold, and the units that have to be read.

    A task no longer holds when one of its files has changed; its other files are read again with
    it. So are then all tasks that gave up duplicates, for the one that was kept may have changed.
    """
    identities: dict[str, set[str]] = {}
    for unit in units:
        identities.setdefault(unit.uri, set()).add(unit.identity)

    def changed(sidecar: Sidecar) -> bool:
        return any(
            uri in identities and identity not in identities[uri]
            for uri, _, identity, _ in sidecar.units
        )

    ours = [sidecar for sidecar in sidecars if sidecar.job == job_key]
    stale = [sidecar for sidecar in ours if changed(sidecar)]
    if stale:
        stale += [s for s in ours if s.duplicates and s not in stale]
    again = {sidecar.task for sidecar in stale}
    kept = [sidecar for sidecar in ours if sidecar.task not in again]
    done = {(uri, number) for sidecar in kept for uri, number, _, _ in sidecar.units}
    wanted = {(unit.uri, unit.number): unit for unit in units}
    for sidecar in stale:  # files of a stale task that this call does not name
        for values in sidecar.units:
            unit = Unit(*values)
            if unit.uri not in identities:
                wanted.setdefault((unit.uri, unit.number), unit)
    return kept, [unit for key, unit in sorted(wanted.items()) if key not in done]


def group_units(units: Sequence[Unit], most_units: int, most_bytes: int) -> list[Task]:
    """Put units in order into tasks that exceed neither limit (but hold at least one unit)."""
    tasks: list[Task] = []
    group: list[Unit] = []
    weight = 0
    for unit in units:
        if group and (len(group) == most_units or weight + unit.weight > most_bytes):
            tasks.append(Task(tuple(group)))
            group, weight = [], 0
        group.append(unit)
        weight += unit.weight
    if group:
        tasks.append(Task(tuple(group)))
    return tasks


def _bytes_per_task(units: Sequence[Unit]) -> int:
    import ray

    cpus = int(ray.cluster_resources().get("CPU", 1))
    share = sum(unit.weight for unit in units) // (cpus * _TASKS_PER_CPU) + 1
    return min(max(share, _LEAST_BYTES), _MOST_BYTES)


def _run(job: Job, tasks: Sequence[Task], units: int, progress: bool) -> Iterable[Sidecar]:
    """Run the tasks by Ray Data and yield what they did as they finish."""
    import ray.data

    if not tasks:
        return

    def run(row: dict[str, Any]) -> dict[str, Any]:
        return {"sidecar": run_task(job, Task.from_json(row["task"])).model_dump_json()}

    listing = ray.data.from_items(
        [{"task": task.to_json()} for task in tasks], override_num_blocks=len(tasks)
    )
    rows = refused = 0
    with tqdm(total=units, unit="file", desc="ingest", disable=not progress) as bar:
        for row in listing.map(run).iter_rows():
            sidecar = Sidecar.model_validate_json(row["sidecar"])
            rows += sidecar.rows_written
            refused += sidecar.rows_quarantined
            bar.update(len(sidecar.units))
            bar.set_postfix(rows=rows, quarantined=refused)
            yield sidecar
