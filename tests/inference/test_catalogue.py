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
from skyray.inference.catalogue import Catalogue, NotACatalogue
from skyray.inference.catalogue_parts import part_uri, publish, write_part
from skyray.inference.single_file import write_fits, write_votable
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


def write(folder: Path, tables, columns=COLUMNS) -> list[str]:
    """Write a catalogue of one part, and one FITS and one VOTable file of it."""
    folder.mkdir(parents=True)
    uri = str(folder / "catalogue")
    count, widths = write_part(part_uri(uri, 0), iter(tables), columns)
    made = {"part": 0, "rows": count, **{f"width/{n}": w for n, w in widths.items()}}
    catalogue = publish(uri, columns, [made])
    files = [*catalogue.files(), f"{uri}.fits", f"{uri}.vot"]
    write_fits(catalogue, Path(files[1]))
    write_votable(catalogue, Path(files[2]))
    return files


@pytest.fixture
def written(tmp_path) -> list[str]:
    return write(tmp_path / "out", (rows(n, start) for start, n in ((0, 10), (10, 25), (35, 1))))


def test_a_catalogue_tells_its_rows_and_files(written, tmp_path):
    catalogue = Catalogue.open(str(tmp_path / "out" / "catalogue"))
    assert catalogue.rows == 36
    assert catalogue.files() == written[:1]
    assert [column.name for column in catalogue.columns] == [column.name for column in COLUMNS]


@pytest.mark.parametrize("kind", [0, 1, 2], ids=["parquet", "fits", "votable"])
def test_every_format_gives_back_the_values(written, kind):
    if kind == 0:
        table = pq.read_table(written[0])
        found = {name: np.array(table[name].to_pylist()) for name in table.column_names}
    else:
        table = Table.read(written[kind])
        found = {name: np.asarray(table[name]) for name in table.colnames}
    for name, expected in rows(36).items():
        values = found[name].astype(str) if name == "object_id" else found[name]
        np.testing.assert_array_equal(values, expected, err_msg=name)


def test_fits_has_units_descriptions_and_valid_checksums(written):
    table = Table.read(written[1], hdu="CATALOGUE")
    assert table["ra"].unit == u.deg
    assert fits.getheader(written[1], 1)["TCOMM2"] == "right ascension, ICRS"
    assert table["in_domain"].dtype == bool
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with fits.open(written[1], checksum=True) as hdus:
            hdus.verify("exception")
            assert hdus[1].header["DATASUM"] != "0"


def test_a_flipped_byte_fails_the_checksum(written, tmp_path):
    content = bytearray(Path(written[1]).read_bytes())
    content[-2880 + 40] ^= 1
    broken = tmp_path / "broken.fits"
    broken.write_bytes(content)
    with (
        pytest.warns(UserWarning, match="(Check|Data)sum verification failed"),
        fits.open(broken, checksum=True) as hdus,
    ):
        hdus[1].data  # noqa: B018  (reading it checks it)


def test_parquet_has_units_in_both_conventions(written):
    schema = pq.read_schema(written[0])
    assert schema.field("ra").metadata[b"unit"] == b"deg"
    header = schema.metadata[b"IVOA.VOTable-Parquet.content"]
    assert b'name="ra"' in header
    assert b'unit="deg"' in header


def test_tables_with_tensor_columns_are_taken(tmp_path):
    table = pa.table({n: v for n, v in rows(4).items() if n != "probability"})
    vectors = tensor_array(rows(4)["probability"], pa.float32())
    files = write(tmp_path / "c", [table.append_column("probability", vectors)])
    np.testing.assert_array_equal(Table.read(files[1])["probability"], rows(4)["probability"])


def test_an_empty_catalogue_keeps_its_columns(tmp_path):
    files = write(tmp_path / "empty", [], COLUMNS[:5])
    table = Table.read(files[1])
    assert len(table) == 0
    assert table.colnames == [column.name for column in COLUMNS[:5]]


def _power_cut():
    yield rows(5)
    raise RuntimeError("power cut")


def test_a_part_that_fails_leaves_nothing_behind(tmp_path):
    with pytest.raises(RuntimeError, match="power cut"):
        write(tmp_path / "c", _power_cut())
    assert not list(tmp_path.rglob("*.parquet"))
    assert not Catalogue.exists(str(tmp_path / "c" / "catalogue"))
    with pytest.raises(NotACatalogue, match="not a finished catalogue"):
        Catalogue.open(str(tmp_path / "c" / "catalogue"))


def test_missing_column_and_wrong_type_are_named(tmp_path):
    with pytest.raises(ValueError, match="in_domain"):
        write(tmp_path / "a", [{n: v for n, v in rows(2).items() if n != "in_domain"}])
    with pytest.raises(ValueError, match="'ra': expected float64"):
        write(tmp_path / "b", [{**rows(2), "ra": np.array(["a", "b"], dtype=object)}])
