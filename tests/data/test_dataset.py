"""Datasets are read by split and column, in a fixed order, with and without Ray."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from skyray.cards import Card
from skyray.data.dataset import MANIFEST_KEY, RECORDS, Dataset, NotADataset
from skyray.data.derive import append_rows, commit_rows, derived_job
from skyray.data.publish import create_dataset, open_job
from skyray.data.tables import open_table
from skyray.records import SPLITS, Grid, spectrum_schema, tensor_array, tensor_values
from skyray.runtime import places

GRID = Grid("linear", 4000.0, 2.0, 50)
PER_SPLIT = {"train": 7, "validation": 3, "test": 2}
CARD = Card(
    name="tiny",
    title="Tiny",
    record="spectrum",
    reader="none",
    grid=GRID.to_dict(),
    classes=["A"],
    citation="none",
    licence="none",
)


def _rows(part: int, split: str, count: int) -> pa.Table:
    names = [f"{part}-{split}-{i}" for i in range(count)]
    offset = 1000 * part + 100 * SPLITS.index(split)
    flux = (offset + np.arange(count))[:, None] + np.linspace(0, 0.5, GRID.size)
    columns = {
        "observation_id": names, "object_id": names, "object_key": names,
        "split": [split] * count, "label": ["A"] * count,
        "ra": [1.0] * count, "dec": [2.0] * count, "survey": ["mock"] * count,
        "source": ["file"] * count, "extra": ["{}"] * count, "statements": [None] * count,
        "spectype": ["STAR"] * count,
        "subtype": ["A0"] * count, "redshift": [0.0] * count, "redshift_err": [0.0] * count,
        "zwarning": [0] * count, "snr": [5.0] * count,
        "flux": tensor_array(flux.astype(np.float32), pa.float32()),
        "ivar": tensor_array(np.ones_like(flux, dtype=np.float32), pa.float32()),
        "mask": tensor_array(np.zeros_like(flux, dtype=np.uint8), pa.uint8()),
    }  # fmt: skip
    return pa.table(columns, schema=spectrum_schema(GRID))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    """A dataset of three data files; the last holds no test rows."""
    folder = tmp_path_factory.mktemp("tiny")
    job = derived_job(CARD, str(folder))
    fragments = []
    for number in range(3):
        tables = [
            _rows(number, split, count)
            for split, count in PER_SPLIT.items()
            if split != "test" or number < 2
        ]
        fragments += append_rows(job, pa.concat_tables(tables))
    commit_rows(job, fragments)
    return folder


def test_info_states_grid_classes_and_counts(tiny):
    info = Dataset.open(tiny).info()
    assert info.grid == GRID
    assert info.classes == ("A",)
    assert info.counts == {"train": {"A": 21}, "validation": {"A": 9}, "test": {"A": 4}}
    assert info.version == 1
    assert len(info.fingerprint) == 64


def test_table_of_a_split_holds_that_split_in_order(tiny):
    table = Dataset.open(tiny).to_table(["object_id", "split", "flux"], "train")
    assert table.column_names == ["object_id", "split", "flux"]
    assert table["object_id"].to_pylist() == [f"{p}-train-{i}" for p in range(3) for i in range(7)]
    assert tensor_values(table["flux"])[8, 0] == 1001.0


def test_splits_together_are_the_whole(tiny):
    dataset = Dataset.open(tiny)
    by_split = [i for s in SPLITS for i in dataset.to_table(["object_id"], s)[0].to_pylist()]
    assert sorted(by_split) == sorted(dataset.to_table(["object_id"])[0].to_pylist())
    assert len(by_split) == dataset.count() == 34


def test_tables_are_streamed_in_bounded_pieces(tiny):
    tables = list(Dataset.open(tiny).iter_tables(["object_id"], "train", rows=5))
    assert max(t.num_rows for t in tables) == 5
    assert sum(t.num_rows for t in tables) == 21


def test_rows_come_in_an_order_of_their_names_and_are_taken_at_random(tiny):
    dataset = Dataset.open(tiny)
    rows = dataset.rows("train")
    names = dataset.take(rows, ["object_id"])["object_id"].to_pylist()
    assert names == sorted(dataset.to_table(["object_id"], "train")["object_id"].to_pylist())
    some = dataset.take(rows[[5, 0, 5]], ["object_id", "flux"])
    assert some["object_id"].to_pylist() == [names[5], names[0], names[5]]
    whole = dataset.to_table(["object_id", "flux"])
    at = whole["object_id"].to_pylist().index(names[0])
    np.testing.assert_array_equal(tensor_values(some["flux"])[1], tensor_values(whole["flux"])[at])


def test_rows_are_found_by_name(tiny):
    found = Dataset.open(tiny).find(["1-test-0", "nobody's", "0-train-3"], ["flux"])
    rows = dict(zip(found["observation_id"].to_pylist(), tensor_values(found["flux"]), strict=True))
    assert sorted(rows) == ["0-train-3", "1-test-0"]
    assert rows["0-train-3"][0] == 3.0
    assert rows["1-test-0"][0] == 1200.0
    assert Dataset.open(tiny).find([], ["flux"]).num_rows == 0


def test_ray_gives_real_arrays(tiny, ray_cluster):
    dataset = Dataset.open(tiny)
    table = dataset.to_table(["object_id", "flux"], "train")
    batches = list(
        dataset.to_ray(["object_id", "flux"], "train").iter_batches(
            batch_size=4, batch_format="numpy"
        )
    )
    flux = np.concatenate([b["flux"] for b in batches])
    assert flux.dtype == np.float32
    assert flux.shape == (21, GRID.size)
    names = [name for b in batches for name in b["object_id"]]
    expected = dict(zip(table["object_id"].to_pylist(), tensor_values(table["flux"]), strict=True))
    assert sorted(names) == sorted(expected)
    for name, row in zip(names, flux, strict=True):
        np.testing.assert_array_equal(row, expected[name])


def test_ray_dataset_can_be_sorted(tiny, ray_cluster):
    rows = Dataset.open(tiny).to_ray(["object_id", "mask"]).sort("object_id").take_all()
    names = [row["object_id"] for row in rows]
    assert names == sorted(names)
    assert len(names) == 34


def test_quarantine_is_empty_where_nothing_was_refused(tiny):
    assert Dataset.open(tiny).quarantine().num_rows == 0


def test_unknown_column_and_split_are_named(tiny):
    dataset = Dataset.open(tiny)
    with pytest.raises(KeyError, match="fluxx"):
        dataset.to_table(["fluxx"])
    with pytest.raises(KeyError, match="digest"):  # the ingest's own
        dataset.to_table(["digest"])
    with pytest.raises(KeyError, match="training"):
        dataset.to_table(["flux"], "training")


def test_a_version_is_a_snapshot(tiny, tmp_path):
    folder = tmp_path / "grows"
    job = derived_job(CARD, str(folder))
    first = commit_rows(job, append_rows(job, _rows(0, "train", 4)))
    rows, table = first.rows(), first.to_table()
    second = commit_rows(job, append_rows(job, _rows(1, "test", 3)))
    assert (first.version, second.version) == (1, 2)
    assert second.count() == 7
    assert first.take(rows).num_rows == first.count() == 4
    again = Dataset.open(folder, version=1)
    assert again.to_table() == table
    assert again.manifest == first.manifest
    assert [m.fingerprint for m in second.versions()] == [
        first.manifest.fingerprint, second.manifest.fingerprint,
    ]  # fmt: skip
    with pytest.raises(NotADataset, match=r"no version 3; it has \[1, 2\]"):
        Dataset.open(folder, version=3)


def test_a_folder_without_tables_is_refused(tmp_path):
    with pytest.raises(NotADataset, match=RECORDS):
        Dataset.open(tmp_path)
    assert not Dataset.exists(tmp_path)


def test_an_ingest_that_was_not_finished_is_no_dataset(tmp_path):
    create_dataset(derived_job(CARD, str(tmp_path)))
    with pytest.raises(NotADataset, match="run it again"):
        Dataset.open(tmp_path)


def test_a_dataset_of_the_former_layout_says_how_to_go_on(tmp_path):
    places.write_json(tmp_path / "manifest.json", {"schema_version": 1})
    with pytest.raises(NotADataset, match=r"former layout.*skyray ingest CARD FILES --out"):
        Dataset.open(tmp_path)
    with pytest.raises(NotADataset, match="former layout"):
        open_job(derived_job(CARD, str(tmp_path)))


@pytest.mark.parametrize(
    ("field", "value", "match"),
    [("schema_version", 99, "expected 3, found 99"), ("rows_read", "many", "rows_read")],
)
def test_a_manifest_that_cannot_be_understood_names_the_field(tmp_path, field, value, match):
    job = derived_job(CARD, str(tmp_path))
    dataset = commit_rows(job, append_rows(job, _rows(0, "train", 2)))
    content = {**dataset.manifest.snapshot(), field: value}
    open_table(str(tmp_path / RECORDS)).update_config({MANIFEST_KEY: json.dumps(content)})
    with pytest.raises(NotADataset, match=match):
        Dataset.open(tmp_path)
