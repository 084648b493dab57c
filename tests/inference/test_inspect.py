"""`inspect` tells people what they have."""

from __future__ import annotations

import numpy as np
import pytest

from skyray.data.dataset import QUARANTINE, RECORDS, Dataset
from skyray.data.operators import WriteOutcomes
from skyray.data.outcomes import Job, outcomes_schema, table_of, unit_outcomes
from skyray.data.publish import create_dataset, publish
from skyray.data.sources import Unit
from skyray.data.tables import commit_append
from skyray.families.base import OutputColumn
from skyray.inference.catalogue_parts import part_uri, write_part
from skyray.inference.catalogue_parts import publish as publish_parts
from skyray.inference.inspect import describe_numbers, inspect
from skyray.inference.single_file import write_fits
from skyray.records import InvalidRecord, Spectrum
from skyray.records.reasons import reason_of


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Dataset:
    """Two rows and one refusal, written without Ray."""
    from skyray.cards import Card

    folder = tmp_path_factory.mktemp("data")
    card = Card(
        name="two", title="Two stars", record="spectrum", reader="none", classes=["STAR"],
        grid={"kind": "linear", "start": 4000.0, "step": 1.0, "size": 200},
        labels=[{"label": "STAR", "where": [{"field": "spectype", "value": "STAR"}]}],
        citation="none", licence="none",
    )  # fmt: skip
    spectra: list[Spectrum | InvalidRecord] = []
    for name, redshift in (("a", 0.5), ("b", float("nan"))):
        pixels = np.ones(200, dtype=np.float32)
        spectra.append(
            Spectrum(
                name, 4000.0 + np.arange(200), pixels, pixels, pixels < 0,
                spectype="STAR", redshift=redshift, snr=3.0, source=f"{name}.fits",
                statements={"medium": "air → vacuum: TUCD1", "flux_unit": f"{name}: TUNIT2"},
            )
        )  # fmt: skip
    spectra.append(InvalidRecord("ivar_empty", "expected some pixels", "folder/c.fits", "c"))
    job = Job(card, _InMemory(spectra), str(folder), apply_cuts=True)
    outcomes = table_of(unit_outcomes(job, Unit("memory", 0, "", 0)), outcomes_schema(card))
    written = WriteOutcomes(job)(outcomes)
    create_dataset(job)
    for name, column in ((RECORDS, "records"), (QUARANTINE, "quarantine")):
        commit_append(str(folder / name), written[column][0].as_py())
    return publish(job)


class _InMemory:
    def __init__(self, records):
        self._records = records

    def read(self, unit):
        return iter(self._records)


def test_a_dataset_tells_rows_grid_ranges_and_quarantine(dataset):
    found = inspect(dataset.uri)
    assert found["kind"] == "dataset"
    assert found["rows"] == "3 read = 2 written + 1 quarantined"
    assert found["pixels"] == "200 pixels, linear, 4000.0 to 4199.0 Å, step 1 Å"
    assert found["ranges"]["redshift"] == "0.5 to 0.5, median 0.5, 1 unknown"
    assert sum(found["objects by split"].values()) == 2
    assert found["decided"] == {
        "flux_unit": "1 row: a: TUNIT2\n  1 row: b: TUNIT2",
        "medium": "2 rows: air → vacuum: TUCD1",
    }
    means = reason_of("ivar_empty").means
    assert found["quarantine"] == {"ivar_empty": f"1: {means}\n  c.fits: expected some pixels"}


@pytest.mark.parametrize("kind", [0, 1, 2], ids=["folder", "parquet", "fits"])
def test_a_catalogue_tells_units_meaning_and_range(tmp_path, kind):
    columns = [
        OutputColumn("object_id", "str", "", "identifier"),
        OutputColumn("ra", "float64", "deg", "right ascension"),
    ]
    rows = {"object_id": np.array(["a", "b"], dtype=object), "ra": np.array([10.0, 20.0])}
    count, widths = write_part(part_uri(str(tmp_path / "c"), 0), iter([rows]), columns)
    told = {f"width/{name}": width for name, width in widths.items()}
    catalogue = publish_parts(str(tmp_path / "c"), columns, [{"part": 0, "rows": count, **told}])
    write_fits(catalogue, tmp_path / "c.fits")
    found = inspect([catalogue.uri, catalogue.files()[0], tmp_path / "c.fits"][kind])
    assert found["rows"] == 2
    assert found["columns"]["ra"].endswith("[deg]; right ascension; 10 to 20, median 15")


def test_numbers_without_any_known_value():
    assert describe_numbers(np.array([np.nan, np.nan])) == "none known, 2 unknown"


def test_what_is_neither_is_refused(tmp_path):
    with pytest.raises(ValueError, match="expected a dataset"):
        inspect(tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        inspect(tmp_path / "nowhere")
