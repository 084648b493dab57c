"""A simulation is reproducible, and its files read back as what was simulated."""

from __future__ import annotations

import numpy as np
import pytest

from skyray.cards import load_card
from skyray.config import ConfigError
from skyray.data.dataset import Dataset
from skyray.data.ingest import ingest
from skyray.data.simulate import objects_per_class, simulate
from skyray.records import tensor_values
from skyray.simulate.spectra import MockSurvey

CARD = load_card("sdss_dr16")


@pytest.fixture(scope="module")
def straight(tmp_path_factory, ray_cluster) -> Dataset:
    out = tmp_path_factory.mktemp("mock") / "data"
    simulate(CARD, 30, 7, out, progress=False)
    return Dataset.open(out)


def test_objects_are_shared_evenly():
    counts = objects_per_class(CARD, 30)
    assert sum(counts.values()) == 30
    assert set(counts.values()) == {2, 3}


def test_every_class_is_labelled_as_it_was_asked_for(straight):
    found: dict[str, int] = {}
    for label in straight.to_table(["label"])["label"].to_pylist():
        found[label] = found.get(label, 0) + 1
    refused = straight.manifest.rows_quarantined
    assert sum(found.values()) + refused == 30
    assert refused == 0
    assert found == objects_per_class(CARD, 30)


def test_the_rows_are_the_simulators_spectra(straight):
    table = straight.to_table(["object_id", "flux", "redshift"])
    expected = MockSurvey(CARD, 7).spectrum("QSO_BROADLINE", 1)
    row = table["object_id"].to_pylist().index(expected.object_id)
    assert table["redshift"][row].as_py() == pytest.approx(expected.redshift)
    flux = tensor_values(table["flux"])[row]
    grid = CARD.grid.grid().wavelength()
    pixel = int(np.argmin(np.abs(grid - expected.wavelength[2000])))
    assert flux[pixel] == pytest.approx(float(expected.flux[2000]), rel=1e-6)


def test_the_survey_files_ingest_to_the_same_objects(straight, tmp_path):
    made = simulate(CARD, 30, 7, as_files=tmp_path / "files", progress=False)
    assert made["files"] == 30
    read = ingest(CARD, [tmp_path / "files"], tmp_path / "out", progress=False)
    columns = ["object_id", "label", "split", "redshift"]
    ours, theirs = (
        {row["object_id"]: row for row in d.to_table(columns).to_pylist()} for d in (straight, read)
    )
    assert ours.keys() == theirs.keys()
    for name, row in ours.items():
        assert row["label"] == theirs[name]["label"]
        assert row["split"] == theirs[name]["split"]
        assert row["redshift"] == pytest.approx(theirs[name]["redshift"], abs=1e-6)


def test_more_objects_of_a_seed_extend_the_survey(straight, tmp_path, ray_cluster):
    simulate(CARD, 13, 7, tmp_path / "out", progress=False)
    first = Dataset.open(tmp_path / "out").to_table(["object_id"])["object_id"].to_pylist()
    simulate(CARD, 30, 7, tmp_path / "out", progress=False)
    grown = Dataset.open(tmp_path / "out")
    assert set(first) < set(grown.to_table(["object_id"])["object_id"].to_pylist())
    assert grown.manifest.fingerprint == straight.manifest.fingerprint


def test_one_of_the_two_targets_is_needed(tmp_path):
    with pytest.raises(ConfigError, match="found neither"):
        simulate(CARD, 5, 1)
    with pytest.raises(ConfigError, match="objects"):
        simulate(CARD, 0, 1, tmp_path)
