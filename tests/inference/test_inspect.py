"""`inspect` tells people what they have."""

from __future__ import annotations

import numpy as np
import pytest

from skyray.data.dataset import Dataset, Manifest
from skyray.data.parts import PartWriter, write_table
from skyray.data.rows import row_of
from skyray.data.tasks import Refusals
from skyray.families.base import OutputColumn
from skyray.inference.catalogue import write_catalogue
from skyray.inference.inspect import describe_numbers, inspect
from skyray.records import InvalidRecord, Spectrum, spectrum_schema
from skyray.runtime.places import write_json


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Dataset:
    """Two rows and one refusal, written without Ray."""
    from skyray.cards import Card
    from skyray.data.sources import Unit

    folder = tmp_path_factory.mktemp("data")
    card = Card(
        name="two", title="Two stars", record="spectrum", reader="none", classes=["STAR"],
        grid={"kind": "linear", "start": 4000.0, "step": 1.0, "size": 200},
        labels=[{"label": "STAR", "where": [{"field": "spectype", "value": "STAR"}]}],
        citation="none", licence="none",
    )  # fmt: skip
    writer = PartWriter(folder / "parts" / "a.parquet", spectrum_schema(card.grid.grid()))
    for name, redshift in (("a", 0.5), ("b", float("nan"))):
        pixels = np.ones(200, dtype=np.float32)
        spectrum = Spectrum(
            name, 4000.0 + np.arange(200), pixels, pixels, pixels < 0,
            spectype="STAR", redshift=redshift, snr=3.0, source=f"{name}.fits",
        )  # fmt: skip
        writer.add(row_of(card, spectrum))
    writer.close()
    part = writer.part("parts/a.parquet")
    refusals = Refusals()
    refused = InvalidRecord("ivar_empty", "expected some pixels", "folder/c.fits", "c")
    refusals.add(Unit("folder/c.fits", 0, "", 0), refused)
    write_table(folder / "quarantine.parquet", refusals.table())
    manifest = Manifest(
        schema_version=1, skyray_version="0", git_commit="abc", created="now",
        card=card.snapshot(), record="spectrum", grid=card.grid.snapshot(), classes=["STAR"],
        counts=part.counts, apply_cuts=True, rows_read=3, rows_written=2, rows_quarantined=1,
        quarantine_reasons={"ivar_empty": 1}, files_read=3, files_unclaimed=0,
        fingerprint="f" * 64, parts=[part],
    )  # fmt: skip
    write_json(folder / "manifest.json", manifest.snapshot())
    return Dataset.open(folder)


def test_a_dataset_tells_rows_grid_ranges_and_quarantine(dataset):
    found = inspect(dataset.uri)
    assert found["kind"] == "dataset"
    assert found["rows"] == "3 read = 2 written + 1 quarantined"
    assert found["pixels"] == "200 pixels, linear, 4000.0 to 4199.0 Å, step 1 Å"
    assert found["ranges"]["redshift"] == "0.5 to 0.5, median 0.5, 1 unknown"
    assert sum(found["objects by split"].values()) == 2
    assert found["quarantine"] == {"ivar_empty": "1\n  c.fits: expected some pixels"}


@pytest.mark.parametrize("kind", [0, 1], ids=["parquet", "fits"])
def test_a_catalogue_tells_units_meaning_and_range(tmp_path, kind):
    columns = [
        OutputColumn("object_id", "str", "", "identifier"),
        OutputColumn("ra", "float64", "deg", "right ascension"),
    ]
    rows = {"object_id": np.array(["a", "b"], dtype=object), "ra": np.array([10.0, 20.0])}
    found = inspect(write_catalogue(tmp_path / "c", rows, columns)[kind])
    assert found["rows"] == 2
    assert found["columns"]["ra"].endswith("[deg]; right ascension; 10 to 20, median 15")


def test_numbers_without_any_known_value():
    assert describe_numbers(np.array([np.nan, np.nan])) == "none known, 2 unknown"


def test_what_is_neither_is_refused(tmp_path):
    with pytest.raises(ValueError, match="expected a dataset"):
        inspect(tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        inspect(tmp_path / "nowhere")
