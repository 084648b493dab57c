"""HATS is what the hats package reads, and no row is lost; plain Parquet is the whole table."""

from __future__ import annotations

from pathlib import Path

import astropy.units as u
import hats
import numpy as np
import pyarrow.parquet as pq
import pytest
from astropy.coordinates import Latitude, Longitude
from cdshealpix.nested import lonlat_to_healpix
from tests.data.test_dataset import CARD, _rows

from skyray.data.dataset import Dataset
from skyray.data.derive import append_rows, commit_rows, derived_job
from skyray.inference.export import export_parquet
from skyray.inference.hats import WITHOUT_POSITION, write_hats
from skyray.records import tensor_values


@pytest.fixture(scope="module")
def dataset(tmp_path_factory, ray_cluster) -> Dataset:
    """Ninety spectra all over the sky, three of them without a position."""
    random = np.random.default_rng(2)
    table = _rows(0, "train", 90)
    ra, dec = random.uniform(0, 360, 90), np.degrees(np.arcsin(random.uniform(-1, 1, 90)))
    ra[[3, 50]], dec[70] = np.nan, np.nan
    for name, values in (("ra", ra), ("dec", dec)):
        place = table.schema.get_field_index(name)
        table = table.set_column(place, table.schema.field(name), [values])
    job = derived_job(CARD, str(tmp_path_factory.mktemp("sky") / "data"))
    return commit_rows(job, append_rows(job, table))


def test_hats_holds_every_row_where_it_belongs(dataset, tmp_path):
    done = write_hats(dataset.uri, str(tmp_path / "sky"), threshold=20)
    assert (done.rows, done.without_position) == (87, 3)
    catalogue = hats.read_hats(tmp_path / "sky")
    assert catalogue.catalog_info.total_rows == 87
    pixels = catalogue.get_healpix_pixels()
    assert len(pixels) == done.partitions > 4
    names = []
    for path in sorted((tmp_path / "sky" / "dataset").rglob("Npix=*.parquet")):
        table = pq.read_table(path, partitioning=None)
        index = table["_healpix_29"].to_numpy()
        place = Longitude(table["ra"].to_numpy(), u.deg), Latitude(table["dec"].to_numpy(), u.deg)
        np.testing.assert_array_equal(index, lonlat_to_healpix(*place, 29).astype(np.int64))
        assert (np.diff(index) >= 0).all()
        order, pixel = int(path.parts[-3].split("=")[1]), int(path.stem.split("=")[1])
        assert set(index >> (2 * (29 - order))) == {pixel}
        assert table.num_rows <= 20
        names += table["observation_id"].to_pylist()
    lost = pq.read_table(tmp_path / "sky" / WITHOUT_POSITION)["observation_id"].to_pylist()
    whole = dataset.to_table(["observation_id"])["observation_id"].to_pylist()
    assert sorted(names + lost) == sorted(whole)


def test_hats_without_any_position_is_refused(tmp_path, ray_cluster):
    table = _rows(0, "train", 4)
    place = table.schema.get_field_index("ra")
    table = table.set_column(place, table.schema.field("ra"), [np.full(4, np.nan)])
    job = derived_job(CARD, str(tmp_path / "data"))
    nowhere = commit_rows(job, append_rows(job, table))
    with pytest.raises(ValueError, match="none of 4 rows has a position"):
        write_hats(nowhere.uri, str(tmp_path / "sky"))


def test_plain_parquet_is_the_whole_table(dataset, tmp_path):
    done = export_parquet(dataset.uri, str(tmp_path / "plain"))
    parts = sorted(Path(done.uri).iterdir())
    assert (done.rows, done.parts) == (90, len(parts))
    found = pq.read_table(tmp_path / "plain").sort_by("observation_id")
    expected = dataset.to_table().sort_by("observation_id")
    assert found["observation_id"] == expected["observation_id"]
    flux = np.stack(found["flux"].to_pylist()).astype("f4")
    np.testing.assert_array_equal(flux, tensor_values(expected["flux"]))
    assert found.schema.field("flux").metadata[b"shape"] == b"50"
