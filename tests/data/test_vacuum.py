"""Only what nobody needs any more goes."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.data.test_dataset import CARD, _rows

from skyray.data.dataset import RECORDS, Dataset, NotADataset
from skyray.data.derive import append_rows, commit_rows, derived_job
from skyray.data.tables import delete_rows
from skyray.data.vacuum import vacuum_dataset


@pytest.fixture
def grown(tmp_path) -> Dataset:
    """Three versions; the second replaced rows of the first."""
    job = derived_job(CARD, str(tmp_path / "data"))
    commit_rows(job, append_rows(job, _rows(0, "train", 4)))
    delete_rows(f"{job.out}/{RECORDS}", "object_id LIKE '0-%'")
    commit_rows(job, append_rows(job, _rows(1, "train", 3)))
    return commit_rows(job, append_rows(job, _rows(2, "test", 2)))


def _files(dataset: Dataset) -> int:
    return len(list((Path(dataset.uri) / RECORDS / "data").iterdir()))


def test_young_versions_stay(grown):
    assert vacuum_dataset(grown.uri, keep_days=1).versions == []
    assert [m.version for m in grown.versions()] == [1, 2, 3]
    assert Dataset.open(grown.uri, version=1).to_table().num_rows == 4


def test_old_versions_go_with_the_files_that_only_they_needed(grown):
    assert _files(grown) == 3
    assert vacuum_dataset(grown.uri, keep_days=0, dry_run=True).versions == [1, 2]
    assert _files(grown) == 3
    done = vacuum_dataset(grown.uri, keep_days=0)
    assert done.versions == [1, 2]
    assert done.bytes_removed > 0
    assert _files(grown) == 2
    kept = Dataset.open(grown.uri)
    assert kept.manifest == grown.manifest
    assert kept.to_table().num_rows == 5
    with pytest.raises(NotADataset, match="no version 1"):
        Dataset.open(grown.uri, version=1)


def test_files_that_an_ingest_at_work_has_not_yet_committed_stay(grown):
    job = derived_job(CARD, grown.uri)
    waiting = append_rows(job, _rows(3, "test", 2))
    vacuum_dataset(grown.uri, keep_days=0)
    assert commit_rows(job, waiting).to_table().num_rows == 7


def test_negative_days_are_refused(grown):
    with pytest.raises(ValueError, match="days ≥ 0"):
        vacuum_dataset(grown.uri, keep_days=-1)
