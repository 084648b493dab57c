"""Files whose reading hangs, fills the memory or crashes are quarantined; all others are read."""

from __future__ import annotations

import gzip
import shutil
from collections import Counter
from pathlib import Path

import pytest
from tests.data.test_ingest import CARD, write_spec
from tests.misbehaving_files import MisbehavingFiles

from skyray.data.dataset import Dataset
from skyray.data.ingest import ingest_source
from skyray.data.outcomes import Job, outcome_tables
from skyray.data.sources import FileSource, Unclaimed
from skyray.runtime.bounded import Bounds

BOUNDS = Bounds(seconds=0.5, memory_mib=256)
KINDS = {"loop": "decode_timeout", "memory": "decode_memory", "crash": "decode_crashed"}


@pytest.fixture(scope="module")
def survey(tmp_path_factory) -> Path:
    """Twelve good files, and between them three that do what hostile ones would."""
    folder = tmp_path_factory.mktemp("survey")
    for fiber in range(1, 13):
        write_spec(folder, fiber)
    for number, kind in enumerate(KINDS):
        name = f"spec-0001-50000-{2 + 4 * number:04d}"
        shutil.copy(folder / f"{name}.fits", folder / f"{name}-{kind}.fits")
    return folder


def source_of(folder: Path, kind: type[FileSource] = MisbehavingFiles) -> FileSource:
    source = kind(CARD, [folder])
    source.bounds = BOUNDS
    return source


def rows_of(source: FileSource) -> list[dict]:
    job = Job(CARD, source, "nowhere", apply_cuts=True)
    units = [unit for start in source.starts() for unit in source.units(start)]
    pending = [(unit, ()) for unit in units if not isinstance(unit, Unclaimed)]
    tables = [table for some in outcome_tables(job, pending, rows=4) for table in some]
    columns = ["ingest_file", "ingest_row", "ingest_rows", "source", "reason", "detail"]
    return [row for table in tables for row in table.select(columns).to_pylist()]


def test_the_others_are_read(survey):
    rows = rows_of(source_of(survey))
    assert Counter(row["reason"] for row in rows) == {None: 12, **dict.fromkeys(KINDS.values(), 1)}
    assert len({row["ingest_file"] for row in rows}) == 15
    for row in rows:
        assert (row["ingest_row"], row["ingest_rows"]) == (0, 1)
        kind = next((kind for kind in KINDS if kind in row["ingest_file"]), None)
        assert row["reason"] == KINDS.get(kind)
        if kind:
            assert row["source"] == row["ingest_file"]
            assert "expected" in row["detail"] or "ended with SIGSEGV" in row["detail"]


def test_no_outcome_is_lost_or_doubled_that_is_there_already(survey):
    source = source_of(survey)
    job = Job(CARD, source, "nowhere", apply_cuts=True)
    units = [unit for start in source.starts() for unit in source.units(start)]
    there = [(unit, (0,) if number % 2 else ()) for number, unit in enumerate(units)]
    found = [t for some in outcome_tables(job, there, rows=4) for t in some]
    assert sum(table.num_rows for table in found) == 8


def test_a_file_that_unpacks_to_too_much_is_refused(tmp_path):
    write_spec(tmp_path, 1)
    with gzip.open(tmp_path / "spec-0001-50000-0002.fits.gz", "wb") as stream:
        stream.write(next(tmp_path.glob("*.fits")).read_bytes())
        for _ in range(600):  # MiB, of which some hundred kB are written
            stream.write(bytes(1 << 20))
    reasons = Counter(row["reason"] for row in rows_of(source_of(tmp_path, FileSource)))
    assert reasons.pop(None) in (1, 2)  # what follows the last HDU need not be looked at
    assert set(reasons) <= {"decode_memory", "unpacked_too_large"}


def test_an_ingest_goes_on(ray_cluster, survey, tmp_path):
    out = tmp_path / "dataset"
    ingest_source(CARD, source_of(survey), out, progress=False)
    manifest = Dataset.open(out).manifest
    assert manifest.rows_read == 15
    assert manifest.rows_written == 12
    assert manifest.quarantine_reasons == dict.fromkeys(KINDS.values(), 1)
