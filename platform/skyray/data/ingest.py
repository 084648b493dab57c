"""Survey files (or a simulation) → dataset, as one stream of Ray Data.

    list units → read, check, cut, label, split → Arrow blocks → Lance data files → commits

Every operator runs on the workers; the driver sees the names of data files and commits them every
few seconds. What is committed is never read again: an interrupted ingest goes on where it stopped,
the same ingest run again does nothing, and any number may write into one dataset at once. Readers
see nothing of it until `skyray.data.publish` says that there is a new version.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from skyray.cards import Card
from skyray.config import ConfigError
from skyray.data.dataset import QUARANTINE, RECORDS, Dataset
from skyray.data.operators import ListUnits, ReadAndWrite
from skyray.data.outcomes import Job
from skyray.data.publish import RowsLost, create_dataset, open_job, publish
from skyray.data.settle import files_seen_twice
from skyray.data.sources import FileSource, RecordSource
from skyray.data.tables import commit_append
from skyray.runtime import places
from skyray.runtime.progress import Row, task

ROWS_PER_FILE = 2048
_SECONDS_BETWEEN_COMMITS = 5.0
_LISTERS = 16  # tasks that list, at most
_PASSES = 3  # of reading, until every unit that was listed is there


def ingest(
    card: Card,
    sources: Sequence[str | os.PathLike],
    out: str | os.PathLike,
    *,
    apply_cuts: bool = True,
    progress: bool = True,
    rows_per_file: int = ROWS_PER_FILE,
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
    rows_per_file : int
        Rows of one data file, at most.

    Raises
    ------
    ConfigError
        If `out` was made with another card or other cuts, or no file was found.
    FileNotFoundError
        If a source does not exist.
    """
    source = FileSource(card, sources)
    return ingest_source(
        card, source, out, apply_cuts=apply_cuts, progress=progress, rows_per_file=rows_per_file
    )


def ingest_source(
    card: Card,
    source: RecordSource,
    out: str | os.PathLike,
    *,
    apply_cuts: bool = True,
    progress: bool = True,
    rows_per_file: int = ROWS_PER_FILE,
) -> Dataset:
    """Read any `RecordSource` into a dataset: see `ingest`."""
    job = Job(card, source, places.absolute(out), apply_cuts)
    starts = source.starts()
    open_job(job)
    with task("ingest", unit="piece", show=progress) as shown:
        tally = _read_all(job, starts, rows_per_file, shown)
        if not Dataset.started(job.out):
            raise ConfigError(
                f"card {card.name}: no file for reader {card.reader!r} among the sources "
                f"({tally.unclaimed} files of other names)"
            )

        def read_again(files: Sequence[str]) -> None:
            twice = source.only(files)
            again = Job(card, twice, job.out, apply_cuts, readmit=True)
            _read_all(again, twice.starts(), rows_per_file, shown)

        if tally.changed:  # of an observation seen twice, the copy that was kept may be gone
            read_again(files_seen_twice(job.out))
        return publish(job, tally.unclaimed, tally.changed, read_again)


@dataclass
class _Tally:
    """What one pass over the sources came upon, told by the workers."""

    starts: int = 0
    listed: int = 0  # units that had to be read
    read: int = 0  # units that were
    outcomes: int = 0  # rows and refusals in them
    written: int = 0  # rows and refusals in data files
    unclaimed: int = 0
    changed: dict[str, str] = field(default_factory=dict)

    def note(self, text: str) -> None:
        for name, value in json.loads(text).items():
            if name == "changed":
                self.changed.update(value)
            else:
                setattr(self, name, getattr(self, name) + value)

    def complete(self, starts: int) -> bool:
        """Return whether nothing was lost on the way."""
        stated = (starts, self.listed, self.outcomes)
        return stated == (self.starts, self.read, self.written)


def _read_all(job: Job, starts: Sequence[str], rows_per_file: int, shown: Row) -> _Tally:
    """Read until all that is listed is committed."""
    if not starts:
        return _Tally()
    first = tally = _read(job, starts, rows_per_file, shown)
    for _ in range(_PASSES):
        if tally.complete(len(starts)):
            return first
        tally = _read(job, starts, rows_per_file, shown)
    raise RowsLost(f"{job.out}: something was lost on the way: {tally}; nothing was published")


def _read(job: Job, starts: Sequence[str], rows_per_file: int, shown: Row) -> _Tally:
    """Stream everything that is pending from `starts` into the dataset's tables."""
    import ray.data

    listing = ray.data.from_items(
        [{"start": start} for start in starts], override_num_blocks=min(len(starts), _LISTERS)
    )
    # Shares of a CPU that differ keep Ray from joining the operators into one.
    written = (
        listing.map_batches(ListUnits(job), batch_size=None, batch_format="pyarrow", num_cpus=0.25)
        .repartition(target_num_rows_per_block=1)
        .map_batches(
            ReadAndWrite(job, rows_per_file), batch_size=None, batch_format="pyarrow", num_cpus=1
        )
    )
    tally, commits = _Tally(), _Commits(job)
    refused, before = 0, shown.done
    shown.wait("the first files" if not before else "files that are read again")
    for row in written.iter_rows():
        for text in row["notes"]:
            tally.note(text)
        tally.written += row["rows"] + row["refused"]
        refused += row["refused"]
        commits.add(row["records"], row["quarantine"])
        rows = f"{tally.written - refused:,} rows, {refused:,} quarantined"
        shown.update(before + tally.read, rows, total=before + tally.listed or None)
    commits.now()
    return tally


class _Commits:
    """Makes written data files part of the dataset every few seconds."""

    def __init__(self, job: Job):
        self._waiting: tuple[list[str], list[str]] = ([], [])
        self._job = job
        self._last = time.monotonic()

    def add(self, records: Sequence[str], quarantine: Sequence[str]) -> None:
        self._waiting[0].extend(records)
        self._waiting[1].extend(quarantine)
        if time.monotonic() - self._last >= _SECONDS_BETWEEN_COMMITS:
            self.now()

    def now(self) -> None:
        records, quarantine = self._waiting
        if records or quarantine:
            create_dataset(self._job)
            commit_append(places.join(self._job.out, QUARANTINE), quarantine)
            commit_append(places.join(self._job.out, RECORDS), records)
        self._waiting = ([], [])
        self._last = time.monotonic()
