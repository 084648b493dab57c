"""Removing what nobody needs any more: old versions, and data files that no commit has named.

Never a side effect of anything else: only an explicit `skyray vacuum` deletes files.
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass

import lance

from skyray.data.dataset import QUARANTINE, RECORDS, Dataset, version_tag
from skyray.data.tables import open_table
from skyray.runtime import places

# An ingest that is at work has data files that no commit names yet.
LEFTOVERS_DAYS = 7.0


@dataclass(frozen=True)
class Vacuumed:
    """What a vacuum removed: bytes, Lance versions, and the numbers of published versions."""

    bytes_removed: int
    table_versions: int
    versions: list[int]


def vacuum_dataset(uri: str, keep_days: float, *, dry_run: bool = False) -> Vacuumed:
    """Remove published versions older than `keep_days`, and what only they needed.

    The newest version always stays. Data files that no commit has named, such as a killed ingest
    leaves, go when they are older than `keep_days` and `LEFTOVERS_DAYS`.

    Raises
    ------
    NotADataset
        If there is none.
    ValueError
        If `keep_days` is negative.
    """
    if keep_days < 0:
        raise ValueError(f"vacuum: keep: expected days ≥ 0, found {keep_days}")
    dataset = Dataset.open(uri)
    limit = datetime.timedelta(days=keep_days)
    now = datetime.datetime.now(datetime.UTC)
    old = [
        manifest.version
        for manifest in dataset.versions()
        if manifest.version != dataset.version
        and now - datetime.datetime.fromisoformat(manifest.created) >= limit
    ]
    if dry_run:
        return Vacuumed(0, 0, old)
    removed = versions = 0
    for name in (RECORDS, QUARANTINE):
        table = open_table(places.join(dataset.uri, name))
        for version in old:
            _untag(table, version)
        stats = table.cleanup_old_versions(
            older_than=limit, delete_unverified=False, error_if_tagged_old_versions=False
        )
        removed, versions = removed + stats.bytes_removed, versions + stats.old_versions
    return Vacuumed(removed, versions, old)


def _untag(table: lance.LanceDataset, version: int) -> None:
    tag = version_tag(version)
    for name in (tag, f"{tag}-rows"):
        if name in table.tags.list():
            table.tags.delete(name)
