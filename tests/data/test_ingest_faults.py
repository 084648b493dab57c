"""Ingest of damaged and of real files, by several at once, killed, and into a store that fails."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from tests.damaged_fits import DAMAGED, spec_file
from tests.data.test_ingest import CARD, write_spec
from tests.hostile_arrow import pickled, write_parquet
from tests.ingest_driver import ingest_killed, ingest_together, outcomes
from tests.object_store import FAULTS, LATE_FAULTS, object_store

from skyray.cards import load_card
from skyray.data.dataset import Dataset
from skyray.data.ingest import ingest
from skyray.runtime import places


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


def write_survey(folder: Path, enlarged: bool = True) -> None:
    """Write 40 observations, of which 6 are there again, 4 outside the cuts and 2 damaged ones."""
    for fiber in range(1, 41):
        write_spec(folder / "a", fiber)
    for fiber in (1, 2, 3, 25, 26, 27):
        write_spec(folder / "b", fiber, seed=0 if fiber % 2 else None)
    for fiber in range(50, 54):
        write_spec(folder / "b", fiber, zwarning=4)
    for fiber in (60, 61):
        write_spec(folder / "c", fiber).write_bytes(b"SIMPLE  = not a survey file")
    if enlarged:
        enlarge(folder)


def enlarge(folder: Path) -> None:
    """Give files a size of which few are read at once; the bytes take no space on the disk."""
    for path in folder.rglob("*.fits"):
        os.truncate(path, 3 << 20)


def change(folder: Path) -> None:
    """Change an observation, damage two that have a second file, repair one, and add some."""
    write_spec(folder / "a", 5, seed=0)
    for fiber in (1, 2):
        (folder / "a" / f"spec-0001-50000-{fiber:04d}.fits").write_bytes(b"no longer a spectrum")
    write_spec(folder / "c", 60)
    for fiber in range(70, 90):
        write_spec(folder / "d", fiber)
    enlarge(folder)


@pytest.mark.slow
def test_two_drivers_at_once_lose_nothing(tmp_path, ray_cluster):
    for fiber in range(1, 61):
        write_spec(tmp_path / "in", fiber, zwarning=4 * (fiber > 55))
    enlarge(tmp_path / "in")
    ingest(CARD, [tmp_path / "in"], tmp_path / "whole", progress=False)
    files = sorted(str(path) for path in (tmp_path / "in").glob("*.fits"))
    ingest_together([files[:45], files[15:]], str(tmp_path / "out"))
    assert outcomes(str(tmp_path / "out")) == outcomes(str(tmp_path / "whole"))


@pytest.mark.slow
def test_a_killed_ingest_ends_as_if_it_had_not_been(tmp_path, ray_cluster):
    write_survey(tmp_path / "in")
    ingest(CARD, [tmp_path / "in"], tmp_path / "whole", progress=False)
    killed = ingest_killed([tmp_path / "in"], str(tmp_path / "killed"), 2, 52, seed=1)
    assert any(kill["at_work"] for kill in killed)
    assert outcomes(str(tmp_path / "killed")) == outcomes(str(tmp_path / "whole"))
    change(tmp_path / "in")
    ingest(CARD, [tmp_path / "in"], tmp_path / "whole", progress=False)
    killed = ingest_killed([tmp_path / "in"], str(tmp_path / "killed"), 1, 72, seed=2)
    assert any(kill["at_work"] for kill in killed)
    assert outcomes(str(tmp_path / "killed")) == outcomes(str(tmp_path / "whole"))
    assert Dataset.open(tmp_path / "killed").manifest.rows_written == 61


@pytest.mark.slow
def test_a_store_that_fails_now_and_then_costs_nothing(tmp_path, ray_cluster):
    write_survey(tmp_path / "in", enlarged=False)
    ingest(CARD, [tmp_path / "in"], tmp_path / "whole", progress=False)
    with object_store(one_in=20, faults=(*FAULTS, *LATE_FAULTS), seed=3) as store:
        files, out = f"{store.uri}/in", f"{store.uri}/data"
        for path in (tmp_path / "in").rglob("*.fits"):
            places.copy(path, places.join(files, path.parent.name, path.name))
        ingest_together([[files], [files]], out)
        killed = ingest_killed([files], f"{out}-killed", 1, 52, seed=5)
        assert store.proxy.made.total() >= 20
        assert outcomes(out) == outcomes(str(tmp_path / "whole"))
        assert outcomes(f"{out}-killed") == outcomes(out)
    assert killed[0]["at_work"]


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
    assert not {"unreadable", "reader_fault"} & set(manifest.quarantine_reasons)
    assert one_split_an_object(dataset)


def test_packed_sdss_spectra_ingest(survey_data: Path, tmp_path, ray_cluster):
    packed = survey_data / "spectra_sdss" / "spectra.parquet"
    dataset = ingest(load_card("sdss_table"), [packed], tmp_path / "out", progress=False)
    manifest = dataset.manifest
    assert manifest.rows_read == 180 == manifest.rows_written + manifest.rows_quarantined
    assert manifest.rows_written >= 150
    assert one_split_an_object(dataset)
