"""From finished tasks to a published dataset: duplicates, quarantine, sums, manifest.

The manifest is written last, so that a dataset appears whole or stays as it was.
"""

from __future__ import annotations

import datetime
import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

import skyray
from skyray.data.dataset import (
    MANIFEST,
    QUARANTINE,
    QUARANTINE_SCHEMA,
    Dataset,
    Manifest,
    read_part,
)
from skyray.data.parts import PartWriter, add_digests, write_table
from skyray.data.tasks import Job, Sidecar, write_sidecar
from skyray.records import SCHEMA_VERSION, SPLITS
from skyray.runtime import places
from skyray.runtime.provenance import git_commit

_READING_THREADS = 8


class RowsLost(RuntimeError):
    """Rows read are not rows written plus rows quarantined; nothing was published."""


def load_sidecars(out: str) -> list[Sidecar]:
    """Return what finished tasks left in a folder, in the order of their names."""
    folder = places.join(out, "tasks")
    if not places.exists(folder):
        return []
    names = [path.rpartition("/")[2] for path, _ in places.list_files(folder)]
    uris = [places.join(folder, name) for name in names if name.endswith(".json")]
    with ThreadPoolExecutor(_READING_THREADS) as pool:
        return [Sidecar.load(content) for content in pool.map(places.read_json, uris)]


def publish(job: Job, sidecars: Sequence[Sidecar], before: Dataset | None) -> Dataset:
    """Settle duplicates, write quarantine and manifest, remove what no longer belongs.

    Parameters
    ----------
    before : Dataset, optional
        What was published so far: its rows win over duplicates that come later.
    """
    known = {part.path for part in before.manifest.parts} if before else set()
    current = settle_duplicates(job, sidecars, known)
    _write_quarantine(job.out, current)
    manifest = _manifest(job, current)
    places.write_json(places.join(job.out, MANIFEST), manifest.snapshot())
    _remove_leftovers(job.out, current)
    return Dataset(job.out, manifest)


# duplicates ----------------------------------------------------------------------------------


@dataclass(frozen=True, order=True)
class _Copy:
    """One of several rows with the same object_id; the smallest is kept."""

    later: bool  # not yet published
    source: str
    row: int
    task: str
    object_id: str


def settle_duplicates(job: Job, sidecars: Sequence[Sidecar], known: set[str]) -> list[Sidecar]:
    """Move all but one row of every object_id to the quarantine (reason ``duplicate_object``).

    A published row stays; among new ones the first by source (then by row) is kept: a rule that
    knows nothing of how rows were dealt out to tasks.
    """
    dropped: dict[str, dict[int, _Copy]] = defaultdict(dict)
    winners: dict[str, _Copy] = {}
    for copy in sorted(_copies(job.out, sidecars, known)):
        if winners.setdefault(copy.object_id, copy) is not copy:
            dropped[copy.task][copy.row] = copy
    return [
        _without(job, sidecar, dropped[sidecar.task], winners)
        if sidecar.task in dropped
        else sidecar
        for sidecar in sidecars
    ]


def _copies(out: str, sidecars: Sequence[Sidecar], known: set[str]) -> Iterable[_Copy]:
    """Yield the rows whose object_id occurs more than once; checks every part's row count."""
    written = [sidecar for sidecar in sidecars if sidecar.part]
    with ThreadPoolExecutor(_READING_THREADS) as pool:
        hashes = list(pool.map(lambda sidecar: _hashes(out, sidecar), written))
    if not hashes:
        return
    values, counts = np.unique(np.concatenate(hashes), return_counts=True)
    repeated = values[counts > 1]
    if not repeated.size:
        return
    for sidecar, found in zip(written, hashes, strict=True):
        rows = np.flatnonzero(np.isin(found, repeated))
        if rows.size:
            table = _read(out, sidecar.part.path, ["object_id", "source"]).take(rows)
            for row, item in zip(rows.tolist(), table.to_pylist(), strict=True):
                later = sidecar.part.path not in known
                yield _Copy(later, item["source"], row, sidecar.task, item["object_id"])


def _hashes(out: str, sidecar: Sidecar) -> np.ndarray:
    names = _read(out, sidecar.part.path, ["object_id"])["object_id"]
    if len(names) != sidecar.part.rows:
        raise RowsLost(
            f"{out}/{sidecar.part.path}: expected {sidecar.part.rows} rows, found {len(names)}"
        )
    return pd.util.hash_array(names.to_numpy(zero_copy_only=False).astype(object))


def _read(out: str, path: str, columns: list[str]) -> pa.Table:
    filesystem, place = places.resolve(places.join(out, path))
    return pq.read_table(place, columns=columns, filesystem=filesystem, use_threads=False)


def _without(
    job: Job, sidecar: Sidecar, dropped: dict[int, _Copy], winners: dict[str, _Copy]
) -> Sidecar:
    """Write a task's part again without the dropped rows, and its sidecar with their refusals."""
    out, name = job.out, _variant(sidecar.task, dropped)
    filesystem, place = places.resolve(places.join(out, sidecar.part.path))
    schema = pq.read_schema(place, filesystem=filesystem)
    writer = PartWriter(places.join(out, f"parts/{name}.parquet"), schema)
    start = 0
    for table in read_part(places.join(out, sidecar.part.path), schema.names):
        keep = np.array([start + i not in dropped for i in range(table.num_rows)])
        writer.add_table(table.filter(pa.array(keep)))
        start += table.num_rows
    written = writer.close()
    refused = [
        {
            "source": copy.source,
            "object_id": copy.object_id,
            "reason": "duplicate_object",
            "detail": f"kept the one of {winners[copy.object_id].source}",
        }
        for _, copy in sorted(dropped.items())
    ]
    tables = [pa.Table.from_pylist(refused, schema=QUARANTINE_SCHEMA)]
    if sidecar.quarantine:
        tables.insert(0, _read(out, sidecar.quarantine, QUARANTINE_SCHEMA.names))
    write_table(places.join(out, f"refused/{name}.parquet"), pa.concat_tables(tables))
    changed = sidecar.model_copy(
        update={
            "part": writer.part(f"parts/{name}.parquet") if written else None,
            "quarantine": f"refused/{name}.parquet",
            "reasons": dict(Counter(sidecar.reasons) + Counter(duplicate_object=len(refused))),
            "duplicates": sidecar.duplicates + len(refused),
        }
    )
    write_sidecar(out, changed)
    return changed


def _variant(task: str, dropped: Iterable[int]) -> str:
    text = ",".join(map(str, sorted(dropped)))
    return f"{task}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


# quarantine, manifest ------------------------------------------------------------------------


def _write_quarantine(out: str, sidecars: Sequence[Sidecar]) -> None:
    paths = [sidecar.quarantine for sidecar in sidecars if sidecar.quarantine]
    tables = [_read(out, path, QUARANTINE_SCHEMA.names) for path in paths]
    table = pa.concat_tables(tables) if tables else QUARANTINE_SCHEMA.empty_table()
    order = pc.sort_indices(table, [(name, "ascending") for name in ("source", "object_id")])
    write_table(places.join(out, QUARANTINE), table.take(order))


def _manifest(job: Job, sidecars: Sequence[Sidecar]) -> Manifest:
    read = sum(sidecar.rows_read for sidecar in sidecars)
    written = sum(sidecar.rows_written for sidecar in sidecars)
    reasons = sum((Counter(sidecar.reasons) for sidecar in sidecars), Counter())
    quarantined = _rows(job.out, QUARANTINE)
    if read != written + quarantined or quarantined != reasons.total():
        raise RowsLost(
            f"{job.out}: rows read {read} ≠ written {written} + quarantined {quarantined} "
            f"(by reason {dict(reasons)}); nothing was published"
        )
    parts = [sidecar.part for sidecar in sidecars if sidecar.part]
    content = add_digests(*(part.content_digest for part in parts))
    text = f"{SCHEMA_VERSION}:{job.card.digest()}:{content}"
    return Manifest(
        schema_version=SCHEMA_VERSION,
        skyray_version=skyray.__version__,
        git_commit=git_commit(),
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        card=job.card.snapshot(),
        record=job.card.record,
        grid=job.card.grid.snapshot() if job.card.grid else None,
        classes=job.card.classes,
        counts=_counts(sidecars),
        apply_cuts=job.apply_cuts,
        rows_read=read,
        rows_written=written,
        rows_quarantined=quarantined,
        quarantine_reasons=dict(sorted(reasons.items())),
        files_read=len({unit[0] for sidecar in sidecars for unit in sidecar.units}),
        files_unclaimed=job.source.unclaimed,
        fingerprint=hashlib.sha256(text.encode()).hexdigest(),
        parts=parts,
    )


def _rows(out: str, name: str) -> int:
    filesystem, path = places.resolve(places.join(out, name))
    return pq.read_metadata(path, filesystem=filesystem).num_rows


def _counts(sidecars: Sequence[Sidecar]) -> dict[str, dict[str, int]]:
    total: dict[str, Counter] = {split: Counter() for split in SPLITS}
    for sidecar in sidecars:
        for split, counts in (sidecar.part.counts if sidecar.part else {}).items():
            total[split].update(counts)
    return {split: dict(sorted(counts.items())) for split, counts in total.items()}


def _remove_leftovers(out: str, sidecars: Sequence[Sidecar]) -> None:
    """Delete parts, refusals and sidecars that the published dataset does not name."""
    kept = {f"tasks/{sidecar.task}.json" for sidecar in sidecars}
    kept |= {sidecar.part.path for sidecar in sidecars if sidecar.part}
    kept |= {sidecar.quarantine for sidecar in sidecars if sidecar.quarantine}
    filesystem, _ = places.resolve(out)
    for folder in ("parts", "refused", "tasks"):
        if places.exists(places.join(out, folder)):
            for path, _ in places.list_files(places.join(out, folder)):
                if f"{folder}/{path.rpartition('/')[2]}" not in kept:
                    filesystem.delete_file(path)
