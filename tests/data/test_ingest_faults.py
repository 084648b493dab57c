"""Ingest of damaged and of real files, and of a survey whose ingest was killed half-way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from tests.damaged_fits import DAMAGED, spec_file
from tests.hostile_arrow import pickled, write_parquet

from skyray.cards import load_card
from skyray.data.dataset import Dataset
from skyray.data.ingest import ingest
from skyray.simulate.spectra import MockSurvey
from skyray.simulate.survey_files import write_survey_files

SCRIPT = """
import sys
from skyray.cards import load_card
from skyray.data.ingest import ingest
from skyray.runtime.session import ray_session
with ray_session("local", num_cpus=1):
    ingest(load_card("sdss_coarse"), [sys.argv[1]], sys.argv[2], progress=False, rows_per_part=2)
"""


def test_every_damage_has_its_reason_and_good_files_are_written(tmp_path, ray_cluster):
    good = spec_file()
    for number, (damage, _) in enumerate(DAMAGED.values()):
        (tmp_path / f"spec-0001-50000-{number:04d}.fits").write_bytes(damage(good))
    (tmp_path / "spec-0002-50000-0001.fits").write_bytes(good)
    dataset = ingest(load_card("sdss_coarse"), [tmp_path], tmp_path / "out", progress=False,
                     apply_cuts=False)  # fmt: skip
    assert dataset.manifest.rows_written == 1
    assert dataset.manifest.quarantine_reasons == Counter(reason for _, reason in DAMAGED.values())
    assert len(dataset.manifest.quarantine_reasons) == len(DAMAGED) >= 20


def test_a_table_that_carries_code_runs_nothing_in_the_workers(tmp_path, ray_cluster):
    wave = pa.array([np.linspace(4000.0, 8000.0, 500)])
    flux, noise = pa.array([np.linspace(1.0, 2.0, 500)]), pa.array([np.ones(500)])
    good = {"w": wave, "flux": flux, "ivar": noise, "name": pa.array(["a"])}
    write_parquet(tmp_path / "good.parquet", good)
    bad = {**good, "name": pickled(1, tmp_path / "marker")}
    write_parquet(tmp_path / "bad.parquet", bad)
    options = {"medium": "vacuum", "wavelength": {"column": "w"}, "flux": "flux", "ivar": "ivar",
               "fields": {"object_id": "name"}}  # fmt: skip
    card = load_card("sdss_coarse")
    card = card.model_copy(update={"reader": "spectrum_table", "reader_options": options})
    out = tmp_path / "out"
    dataset = ingest(card, [tmp_path / "bad.parquet", tmp_path / "good.parquet"], out,
                     progress=False, apply_cuts=False)  # fmt: skip
    assert dataset.manifest.quarantine_reasons["extension_type"] == 1
    (row,) = [r for r in dataset.quarantine().to_pylist() if r["reason"] == "extension_type"]
    assert row["source"].endswith("bad.parquet")
    assert "column name" in row["detail"]
    assert not (tmp_path / "marker").exists()


@pytest.mark.slow
def test_an_ingest_killed_half_way_ends_as_if_it_had_not_been(tmp_path, ray_cluster):
    card = load_card("sdss_coarse")
    survey = MockSurvey(card, seed=2)
    spectra = [survey.spectrum(label, i) for label in survey.classes for i in range(40)]
    write_survey_files(card, spectra, tmp_path / "files")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "files"), str(tmp_path / "killed")]
    child = subprocess.Popen(command, env=environment, start_new_session=True)
    done = tmp_path / "killed" / "tasks"
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and child.poll() is None:
        if done.exists() and len(list(done.glob("*.json"))) >= 3:
            break
        time.sleep(0.01)
    os.killpg(child.pid, signal.SIGKILL)  # driver, and what it started in its session
    child.wait()
    time.sleep(2)  # Ray's workers notice and end
    committed = len(list(done.glob("*.json")))
    assert 3 <= committed < 60
    assert not (tmp_path / "killed" / "manifest.json").exists()
    resumed = ingest(card, [tmp_path / "files"], tmp_path / "killed", progress=False)
    whole = ingest(card, [tmp_path / "files"], tmp_path / "whole", progress=False)
    assert resumed.manifest.fingerprint == whole.manifest.fingerprint
    assert resumed.manifest.rows_written == whole.manifest.rows_written == 120
    assert len(resumed.manifest.parts) > len(whole.manifest.parts)  # what was done stayed


def one_split_an_object(dataset: Dataset) -> bool:
    table = dataset.to_table(["object_key", "split"])
    keys = table["object_key"].to_pylist()
    pairs = set(zip(keys, table["split"].to_pylist(), strict=True))
    return len(pairs) == len(set(keys))


@pytest.mark.parametrize(
    ("card", "folder", "least"),
    [("sdss_coarse", "spectra_sdss/raw_fits", 6), ("desi_edr", "spectra_desi/raw_fits", 2)],
)
def test_raw_survey_files_ingest(survey_data: Path, tmp_path, ray_cluster, card, folder, least):
    dataset = ingest(load_card(card), [survey_data / folder], tmp_path / "out", progress=False,
                     apply_cuts=False)  # fmt: skip
    manifest = dataset.manifest
    assert manifest.rows_read == manifest.rows_written + manifest.rows_quarantined
    assert manifest.rows_written >= least
    assert not {"unreadable", "not_processed"} & set(manifest.quarantine_reasons)
    assert one_split_an_object(dataset)


def test_packed_sdss_spectra_ingest(survey_data: Path, tmp_path, ray_cluster):
    packed = survey_data / "spectra_sdss" / "spectra.parquet"
    dataset = ingest(load_card("sdss_table"), [packed], tmp_path / "out", progress=False)
    manifest = dataset.manifest
    assert manifest.rows_read == 180 == manifest.rows_written + manifest.rows_quarantined
    assert manifest.rows_written >= 150
    assert one_split_an_object(dataset)
