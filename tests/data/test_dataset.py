"""Datasets are read by split and column, in a fixed order, with and without Ray."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from skyray.cards import Card
from skyray.data.dataset import Dataset, Manifest, NotADataset, Part
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
        "object_id": names, "object_key": names, "split": [split] * count, "label": ["A"] * count,
        "ra": [1.0] * count, "dec": [2.0] * count, "survey": ["mock"] * count,
        "source": ["file"] * count, "extra": ["{}"] * count, "spectype": ["STAR"] * count,
        "subtype": ["A0"] * count, "redshift": [0.0] * count, "redshift_err": [0.0] * count,
        "zwarning": [0] * count, "snr": [5.0] * count,
        "flux": tensor_array(flux.astype(np.float32), pa.float32()),
        "ivar": tensor_array(np.ones_like(flux, dtype=np.float32), pa.float32()),
        "mask": tensor_array(np.zeros_like(flux, dtype=np.uint8), pa.uint8()),
    }  # fmt: skip
    return pa.table(columns, schema=spectrum_schema(GRID))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    """A dataset of three parts; the last holds no test rows."""
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "parts").mkdir()
    parts = []
    for number in range(3):
        counts = {s: {"A": n} for s, n in PER_SPLIT.items() if s != "test" or number < 2}
        path = f"parts/{number}.parquet"
        with pq.ParquetWriter(folder / path, spectrum_schema(GRID)) as writer:
            for split in counts:
                writer.write_table(_rows(number, split, counts[split]["A"]))
        rows = sum(c["A"] for c in counts.values())
        parts.append(Part(path=path, rows=rows, content_digest="0", counts=counts))
    totals = {s: {"A": sum(p.counts.get(s, {}).get("A", 0) for p in parts)} for s in SPLITS}
    written = sum(p.rows for p in parts)
    manifest = Manifest(
        schema_version=1, skyray_version="0", git_commit="", created="", card=CARD.snapshot(),
        record="spectrum", grid=GRID.to_dict(), classes=["A"], counts=totals, apply_cuts=True,
        rows_read=written, rows_written=written, rows_quarantined=0, quarantine_reasons={},
        files_read=3, files_unclaimed=0, fingerprint="abc", parts=parts,
    )  # fmt: skip
    places.write_json(folder / "manifest.json", manifest.snapshot())
    return folder


def test_info_states_grid_classes_and_counts(tiny):
    info = Dataset.open(tiny).info()
    assert info.grid == GRID
    assert info.classes == ("A",)
    assert info.counts == {"train": {"A": 21}, "validation": {"A": 9}, "test": {"A": 4}}
    assert info.fingerprint == "abc"


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


def test_ray_gives_real_arrays_in_the_same_order(tiny, ray_cluster):
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
    np.testing.assert_array_equal(flux, tensor_values(table["flux"]))
    names = [name for b in batches for name in b["object_id"]]
    assert names == table["object_id"].to_pylist()


def test_ray_dataset_can_be_sorted(tiny, ray_cluster):
    rows = Dataset.open(tiny).to_ray(["object_id", "mask"]).sort("object_id").take_all()
    names = [row["object_id"] for row in rows]
    assert names == sorted(names)
    assert len(names) == 34


def test_quarantine_is_empty_without_a_file(tiny):
    assert Dataset.open(tiny).quarantine().num_rows == 0


def test_unknown_column_and_split_are_named(tiny):
    dataset = Dataset.open(tiny)
    with pytest.raises(KeyError, match="fluxx"):
        dataset.to_table(["fluxx"])
    with pytest.raises(KeyError, match="training"):
        dataset.to_table(["flux"], "training")


def test_a_folder_without_manifest_is_refused(tmp_path):
    with pytest.raises(NotADataset, match=r"manifest\.json"):
        Dataset.open(tmp_path)


def test_another_schema_version_is_refused(tmp_path):
    places.write_json(tmp_path / "manifest.json", {"schema_version": 99})
    with pytest.raises(NotADataset, match="expected 1, found 99"):
        Dataset.open(tmp_path)


def test_a_broken_manifest_names_the_field(tiny, tmp_path):
    content = places.read_json(tiny / "manifest.json")
    content["rows_read"] = "many"
    places.write_json(tmp_path / "manifest.json", content)
    with pytest.raises(NotADataset, match="rows_read"):
        Dataset.open(tmp_path)
