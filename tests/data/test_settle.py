"""No outcome of an ingest is ever in neither table, whoever else settles or is killed meanwhile."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.data.test_ingest import CARD, write_spec
from tests.processes import together

from skyray.data.dataset import QUARANTINE, RECORDS, Dataset
from skyray.data.ingest import ingest
from skyray.data.operators import WriteOutcomes
from skyray.data.outcomes import Job, outcomes_schema, table_of, unit_outcomes
from skyray.data.publish import Census, _commit, _keep, create_dataset, publish
from skyray.data.settle import settle
from skyray.data.sources import FileSource
from skyray.data.tables import commit_append, delete_rows, open_table
from skyray.runtime import places


def _write(job: Job) -> None:
    """Read, write and commit everything, as an ingest does, in this process."""
    units = [unit for start in job.source.starts() for unit in job.source.units(start)]
    outcomes = [outcome for unit in units for outcome in unit_outcomes(job, unit)]
    written = WriteOutcomes(job)(table_of(outcomes, outcomes_schema(job.card))).to_pylist()[0]
    create_dataset(job)
    commit_append(places.join(job.out, QUARANTINE), written["quarantine"])
    commit_append(places.join(job.out, RECORDS), written["records"])


def _reasons(dataset: Dataset) -> dict[str, str]:
    rows = dataset.quarantine().to_pylist()
    return {"/".join(Path(row["source"]).parts[-2:]): row["reason"] for row in rows}


@pytest.fixture
def twice(tmp_path) -> Job:
    """Two observations, one of them in two files of other content; written, not settled."""
    write_spec(tmp_path / "in" / "a", 1)
    write_spec(tmp_path / "in" / "a", 2)
    write_spec(tmp_path / "in" / "b", 1, seed=5)
    job = Job(CARD, FileSource(CARD, [tmp_path / "in"]), str(tmp_path / "out"), True)
    _write(job)
    return job


def test_a_refusal_stays_when_its_settler_was_killed_before_it_deleted_the_record(twice):
    records = open_table(places.join(twice.out, RECORDS))
    before = records.version
    settled, _ = settle(twice)
    assert (settled.records.count_rows(), settled.quarantine.count_rows()) == (2, 1)
    records.checkout_version(before).restore()  # refused, and not yet deleted
    again, _ = settle(twice)
    assert (again.records.count_rows(), again.quarantine.count_rows()) == (2, 1)
    assert again.quarantine.version == settled.quarantine.version  # never taken back on the way


def test_a_copy_is_taken_up_when_the_record_that_was_kept_is_gone(tmp_path, twice, ray_cluster):
    assert _reasons(publish(twice)) == {"b/spec-0001-50000-0001.fits": "conflicting_observation"}
    delete_rows(places.join(twice.out, RECORDS), "source LIKE '%/a/spec-0001-50000-0001.fits'")
    assert settle(twice)[1] == [str(tmp_path / "in" / "b" / "spec-0001-50000-0001.fits")]
    healed = ingest(CARD, [tmp_path / "in" / "b"], twice.out, progress=False)
    assert healed.to_table(["source"]).num_rows == 2
    assert _reasons(healed) == {}


def test_a_stranded_copy_whose_file_is_gone_does_not_stop_others(tmp_path, twice, ray_cluster):
    publish(twice)
    delete_rows(places.join(twice.out, RECORDS), "source LIKE '%/a/spec-0001-50000-0001.fits'")
    (tmp_path / "in" / "b" / "spec-0001-50000-0001.fits").unlink()
    write_spec(tmp_path / "c", 3)
    grown = ingest(CARD, [tmp_path / "c"], twice.out, progress=False)
    assert (grown.manifest.rows_written, grown.manifest.rows_quarantined) == (2, 1)


def test_a_publisher_killed_before_it_kept_its_version_loses_none(tmp_path, twice):
    first = publish(twice)
    for name in (RECORDS, QUARANTINE):
        table = open_table(places.join(twice.out, name))
        for tag in table.tags.list():
            table.tags.delete(tag)
    write_spec(tmp_path / "c", 3)
    other = Job(CARD, FileSource(CARD, [tmp_path / "c"]), twice.out, True)
    _write(other)
    second = publish(other)
    assert second.versions() == [first.manifest, second.manifest]
    assert Dataset.open(twice.out, version=1).manifest == first.manifest


def test_a_version_is_kept_as_it_was_when_another_came_before_it_was_kept(tmp_path, twice):
    tables, _ = settle(twice)
    census = Census(tables.records, tables.quarantine)
    published = _commit(tables, census.manifest(twice, 1, 0))
    write_spec(tmp_path / "c", 3)
    other = Job(CARD, FileSource(CARD, [tmp_path / "c"]), twice.out, True)
    _write(other)
    assert publish(other).version == 2
    _keep(published, Dataset.open(twice.out).versions()[0])
    assert Dataset.open(twice.out, version=1).manifest.rows_written == 2


def _write_and_publish(out: str, number: int) -> int:
    files = sorted(str(path) for path in (Path(out).parent / "in").rglob("*.fits"))
    job = Job(CARD, FileSource(CARD, files[number::3]), out, True)
    _write(job)
    return publish(job).version


@pytest.mark.slow
def test_three_that_publish_at_once_leave_every_outcome_once(tmp_path):
    for folder, fibers in (("a", range(1, 11)), ("b", range(1, 8)), ("c", range(1, 4))):
        for fiber in fibers:
            write_spec(tmp_path / "in" / folder, fiber, seed=ord(folder) + 10 * fiber)
    write_spec(tmp_path / "in" / "c", 20, zwarning=4)
    outs = [str(tmp_path / f"out{attempt}") for attempt in range(20)]
    for out, versions in zip(outs, together(_write_and_publish, outs, 3), strict=True):
        dataset = Dataset.open(out)
        kept = [manifest.version for manifest in dataset.versions()]
        assert kept == list(range(1, max(versions) + 1))
        assert (dataset.manifest.rows_read, dataset.manifest.rows_unfinished) == (21, 0)
        assert len(_reasons(dataset)) == dataset.manifest.rows_quarantined == 11
        names = dataset.to_table(["observation_id"])["observation_id"].to_pylist()
        assert sorted(names) == [f"0001-50000-{fiber:04d}" for fiber in range(1, 11)]
        job = Job(CARD, FileSource(CARD, [tmp_path / "in"]), out, True)
        assert settle(job)[1] == []
