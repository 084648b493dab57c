"""HATS that we write is read and found valid by the hats package; no row is lost."""

from __future__ import annotations

import hats
import numpy as np
import pyarrow.dataset as pds
import pyarrow.parquet as pq
import pytest
from hats.io.paths import pixel_catalog_file
from hats.io.validation import is_valid_catalog
from hats.pixel_math.spatial_index import compute_spatial_index

from skyray.data.dataset import Dataset
from skyray.families.base import OutputColumn
from skyray.inference.catalogue import Catalogue
from skyray.inference.catalogue_parts import part_uri, publish, write_part
from skyray.inference.hats import FINEST, healpix, partition_orders, write_hats
from skyray.inference.results import OtherResults

COLUMNS = [
    OutputColumn("object_id", "str", "", "object"),
    OutputColumn("ra", "float64", "deg", "right ascension"),
    OutputColumn("dec", "float64", "deg", "declination"),
    OutputColumn("p", "float32", "", "probabilities"),
]
ROWS, LOST = 1500, 7


def sky() -> dict[str, np.ndarray]:
    """Objects over the sky, a dense patch among them, some without a position."""
    random = np.random.default_rng(3)
    ra, dec = random.uniform(0, 360, ROWS), np.degrees(np.arcsin(random.uniform(-1, 1, ROWS)))
    ra[:700], dec[:700] = random.normal(150, 0.5, 700), random.normal(2, 0.5, 700)
    ra[10 : 10 + LOST] = np.nan
    vectors = np.stack([np.arange(ROWS), -np.arange(ROWS)], axis=1).astype(np.float32)
    names = np.array([f"o{row}" for row in range(ROWS)], object)
    return {"object_id": names, "ra": ra, "dec": dec, "p": vectors}


@pytest.fixture(scope="module")
def catalogue(ray_cluster, tmp_path_factory) -> Catalogue:
    uri, made, rows = str(tmp_path_factory.mktemp("catalogue")), [], sky()
    for number, at in enumerate(np.array_split(np.arange(ROWS), 4)):
        table = {name: values[at] for name, values in rows.items()}
        count, widths = write_part(part_uri(uri, number), iter([table]), COLUMNS)
        told = {f"width/{name}": width for name, width in widths.items()}
        made.append({"part": number, "rows": count, **told})
    return publish(uri, COLUMNS, made)


@pytest.fixture(scope="module")
def made(catalogue, tmp_path_factory):
    out = str(tmp_path_factory.mktemp("sky") / "mine")
    return write_hats(catalogue.uri, out, threshold=100)


def test_hats_finds_it_valid(made):
    assert is_valid_catalog(made.uri, strict=True)
    found = hats.read_hats(made.uri)
    assert found.catalog_info.total_rows == made.rows == ROWS - LOST
    assert found.catalog_info.catalog_name == "mine"
    assert found.schema.names == ["_healpix_29", "object_id", "ra", "dec", "p"]
    assert len(found.get_healpix_pixels()) == made.partitions
    assert max(pixel.order for pixel in found.get_healpix_pixels()) >= 4  # the dense patch


def test_every_row_is_in_its_pixel_once_sorted_and_no_pixel_too_full(made):
    rows, seen = sky(), []
    for pixel in hats.read_hats(made.uri).get_healpix_pixels():
        path = str(pixel_catalog_file(made.uri, pixel))
        table = pq.ParquetFile(path).read()
        index = table["_healpix_29"].to_numpy()
        assert len(index) <= 100
        assert (np.diff(index) >= 0).all()
        assert (index >> (2 * (29 - pixel.order)) == pixel.pixel).all()
        here = np.array([int(name[1:]) for name in table["object_id"].to_pylist()])
        np.testing.assert_array_equal(
            index, compute_spatial_index(rows["ra"][here], rows["dec"][here])
        )
        np.testing.assert_array_equal(np.array(table["p"].to_pylist()), rows["p"][here])
        assert table.schema.field("ra").metadata[b"unit"] == b"deg"
        seen += here.tolist()
    assert sorted(seen) == sorted(set(range(ROWS)) - set(range(10, 10 + LOST)))


def test_rows_without_a_position_are_kept_aside(made):
    assert made.without_position == LOST
    table = pq.read_table(f"{made.uri}/without_position.parquet")
    assert sorted(table["object_id"].to_pylist()) == sorted(f"o{i}" for i in range(10, 10 + LOST))


def test_a_dataset_keeps_its_pixels(mock_dataset, tmp_path):
    done = write_hats(mock_dataset, str(tmp_path / "survey"), threshold=60)
    assert is_valid_catalog(done.uri, strict=True)
    data = Dataset.open(mock_dataset)
    assert done.rows + done.without_position == data.count()
    table = pds.dataset(f"{done.uri}/dataset", exclude_invalid_files=True).to_table()
    some = table.take([0, 17, 101])
    expected = data.find(some["observation_id"].to_pylist(), ["observation_id", "flux"])
    flux = dict(zip(expected["observation_id"].to_pylist(),
                    expected["flux"].combine_chunks().to_numpy_ndarray(), strict=True))  # fmt: skip
    for row in some.select(["observation_id", "flux"]).to_pylist():
        np.testing.assert_array_equal(np.float32(row["flux"]), flux[row["observation_id"]])


def test_nothing_of_others_is_overwritten(made, catalogue, tmp_path):
    (tmp_path / "dataset").mkdir()
    with pytest.raises(OtherResults, match="not of an export by skyray"):
        write_hats(catalogue.uri, str(tmp_path))
    assert (tmp_path / "dataset").exists()
    with pytest.raises(OtherResults, match="threshold: expected 50, found 100"):
        write_hats(catalogue.uri, made.uri, threshold=50)
    assert is_valid_catalog(made.uri, strict=True)


def test_a_catalogue_without_positions_is_refused(ray_cluster, tmp_path):
    rows = sky() | {"ra": np.full(ROWS, np.nan)}
    count, widths = write_part(part_uri(str(tmp_path / "c"), 0), iter([rows]), COLUMNS)
    told = {f"width/{name}": width for name, width in widths.items()}
    bare = publish(str(tmp_path / "c"), COLUMNS, [{"part": 0, "rows": count, **told}])
    with pytest.raises(ValueError, match="none of 1500 rows has a position"):
        write_hats(bare.uri, str(tmp_path / "out"))


def test_pixels_are_those_of_hats_and_positions_that_are_none_have_none():
    ra, dec = np.array([0.0, 359.9, 12.0, np.nan, 3.0]), np.array([90.0, -90.0, 0.0, 1.0, 91.0])
    found = healpix(ra, dec)
    np.testing.assert_array_equal(found[:3], compute_spatial_index(ra[:3], dec[:3]))
    assert found[3:].tolist() == [-1, -1]


def test_partitions_split_only_where_they_are_full():
    counts = np.zeros(12 * 4**FINEST, np.int64)
    counts[0], counts[1], counts[-1] = 60, 60, 5
    orders = partition_orders(counts, 100)
    assert orders[0] == orders[1] == FINEST
    assert orders[-1] == 0
    assert partition_orders(counts, 120)[0] == 0
    assert partition_orders(counts, 10)[0] == FINEST  # the smallest pixels hold what they hold
