"""Ingest of damaged and of real files, and of a survey whose ingest was killed half-way."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from tests.damaged_fits import DAMAGED, spec_file

from skyray.cards import load_card
from skyray.engine.dataset import Dataset
from skyray.engine.ingest import ingest


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
