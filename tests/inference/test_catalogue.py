"""Catalogues open in astropy and pyarrow with their units, and appear whole or not at all."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy import units as u
from astropy.io import fits
from astropy.table import Table

from skyray.families.base import OutputColumn
from skyray.inference.catalogue import CatalogueWriter, write_catalogue
from skyray.records import tensor_array

COLUMNS = [
    OutputColumn("object_id", "str", "", "identifier"),
    OutputColumn("ra", "float64", "deg", "right ascension, ICRS"),
    OutputColumn("z_pred", "float32", "", "redshift"),
    OutputColumn("in_domain", "bool", "", "whether the input lies in the training domain"),
    OutputColumn("members", "int16", "", "number of ensemble members"),
    OutputColumn("targetid", "int64", "", "DESI target"),
    OutputColumn("probability", "float32", "", "class probabilities"),
]


def rows(count: int, start: int = 0) -> dict[str, np.ndarray]:
    index = np.arange(start, start + count)
    return {
        "object_id": np.array([f"object {'x' * (i % 7)}{i}" for i in index], dtype=object),
        "ra": index / 7.0,
        "z_pred": (index / 100).astype("f4"),
        "in_domain": index % 3 == 0,
        "members": index.astype("i2"),
        "targetid": index + 39_628_000_000_000_000,
        "probability": np.stack([index, index + 1, index + 2], axis=1).astype("f4"),
    }


@pytest.fixture
def written(tmp_path):
    with CatalogueWriter(tmp_path / "out" / "catalogue", COLUMNS, votable=True) as writer:
        for start, count in ((0, 10), (10, 25), (35, 1)):
            writer.write(rows(count, start))
    assert writer.rows == 36
    return writer


def test_the_three_files_are_there_and_nothing_else(written, tmp_path):
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["catalogue.fits", "catalogue.parquet", "catalogue.vot"]
    assert [f.rpartition(".")[2] for f in written.files] == ["parquet", "fits", "vot"]


@pytest.mark.parametrize("kind", [0, 1, 2], ids=["parquet", "fits", "votable"])
def test_every_format_gives_back_the_values(written, kind):
    if kind == 0:
        table = pq.read_table(written.files[0])
        found = {name: np.array(table[name].to_pylist()) for name in table.column_names}
    else:
        table = Table.read(written.files[kind])
        found = {name: np.asarray(table[name]) for name in table.colnames}
    for name, expected in rows(36).items():
        values = found[name].astype(str) if name == "object_id" else found[name]
        np.testing.assert_array_equal(values, expected, err_msg=name)


def test_fits_has_units_descriptions_and_valid_checksums(written):
    table = Table.read(written.files[1], hdu="CATALOGUE")
    assert table["ra"].unit == u.deg
    assert fits.getheader(written.files[1], 1)["TCOMM2"] == "right ascension, ICRS"
    assert table["in_domain"].dtype == bool
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with fits.open(written.files[1], checksum=True) as hdus:
            hdus.verify("exception")
            assert hdus[1].header["DATASUM"] != "0"


def test_a_flipped_byte_fails_the_checksum(written, tmp_path):
    content = bytearray(Path(written.files[1]).read_bytes())
    content[-2880 + 40] ^= 1
    broken = tmp_path / "broken.fits"
    broken.write_bytes(content)
    with (
        pytest.warns(UserWarning, match="(Check|Data)sum verification failed"),
        fits.open(broken, checksum=True) as hdus,
    ):
        hdus[1].data  # noqa: B018  (reading it checks it)


def test_parquet_has_units_in_both_conventions(written):
    schema = pq.read_schema(written.files[0])
    assert schema.field("ra").metadata[b"unit"] == b"deg"
    header = schema.metadata[b"IVOA.VOTable-Parquet.content"]
    assert b'name="ra"' in header
    assert b'unit="deg"' in header


def test_tables_with_tensor_columns_are_taken(tmp_path):
    table = pa.table({n: v for n, v in rows(4).items() if n != "probability"})
    vectors = tensor_array(rows(4)["probability"], pa.float32())
    files = write_catalogue(tmp_path / "c", table.append_column("probability", vectors), COLUMNS)
    np.testing.assert_array_equal(Table.read(files[1])["probability"], rows(4)["probability"])


def test_an_empty_catalogue_keeps_its_columns(tmp_path):
    with CatalogueWriter(tmp_path / "empty", COLUMNS[:5]) as writer:
        pass
    table = Table.read(writer.files[1])
    assert len(table) == 0
    assert table.colnames == [column.name for column in COLUMNS[:5]]


def _write_half(base: Path) -> None:
    with CatalogueWriter(base, COLUMNS) as writer:
        writer.write(rows(5))
        raise RuntimeError("power cut")


def test_a_failure_leaves_the_old_catalogue_and_no_rubbish(tmp_path):
    write_catalogue(tmp_path / "c", rows(3), COLUMNS)
    before = (tmp_path / "c.fits").read_bytes()
    with pytest.raises(RuntimeError, match="power cut"):
        _write_half(tmp_path / "c")
    assert (tmp_path / "c.fits").read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c.fits", "c.parquet"]


def test_missing_column_and_wrong_type_are_named(tmp_path):
    with CatalogueWriter(tmp_path / "c", COLUMNS) as writer:
        with pytest.raises(ValueError, match="in_domain"):
            writer.write({n: v for n, v in rows(2).items() if n != "in_domain"})
        with pytest.raises(ValueError, match="'ra': expected float64"):
            writer.write({**rows(2), "ra": np.array(["a", "b"], dtype=object)})
        writer.write(rows(2))
