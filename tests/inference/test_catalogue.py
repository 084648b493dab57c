"""Catalogues open in astropy and pyarrow with their units, and appear whole or not at all."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

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


def write(folder, parts, columns=COLUMNS) -> Catalogue:
    """Write a catalogue of parts, each of tables, as the workers do."""
    made = []
    for number, tables in enumerate(parts):
        count, widths = write_part(part_uri(str(folder), number), iter(tables), columns)
        told = {f"width/{name}": width for name, width in widths.items()}
        made.append({"part": number, "rows": count, **told})
    return publish(str(folder), columns, made)


@pytest.fixture
def written(tmp_path) -> Catalogue:
    parts = [[rows(10), rows(25, 10)], [rows(1, 35)]]
    return write(tmp_path / "out" / "catalogue", parts)


@pytest.fixture
def files(written, tmp_path):
    """The catalogue as a folder of parts, a FITS file and a VOTable."""
    write_fits(written, tmp_path / "c.fits")
    write_votable(written, tmp_path / "c.vot")
    return [written.uri, tmp_path / "c.fits", tmp_path / "c.vot"]


def test_parts_are_there_and_nothing_else(written, tmp_path):
    names = sorted(path.name for path in (tmp_path / "out" / "catalogue").iterdir())
    assert names == ["_about.json", "part-00000.parquet", "part-00001.parquet"]
    assert written.parts == (("part-00000.parquet", 35), ("part-00001.parquet", 1))
    assert written.rows == 36
    assert Catalogue.open(written.uri) == written


@pytest.mark.parametrize("kind", [0, 1, 2], ids=["parquet", "fits", "votable"])
def test_every_format_gives_back_the_values(files, kind):
    if kind == 0:
        read = pq.read_table(files[0])
        found = {name: np.array(read[name].to_pylist()) for name in read.column_names}
    else:
        read = Table.read(files[kind])
        found = {name: np.asarray(read[name]) for name in read.colnames}
    for name, expected in rows(36).items():
        values = found[name].astype(str) if name == "object_id" else found[name]
        np.testing.assert_array_equal(values, expected, err_msg=name)


def test_votable_bears_what_xml_and_numbers_bring(tmp_path):
    columns = COLUMNS[:4]
    odd = {"object_id": np.array(["a<b>&c", "λ 1"], object), "ra": np.array([np.nan, np.inf]),
           "z_pred": np.array([0.1, -np.inf], "f4"),
           "in_domain": np.array([True, False])}  # fmt: skip
    catalogue = write(tmp_path / "c", [[odd]], columns)
    write_votable(catalogue, tmp_path / "c.vot")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = Table.read(tmp_path / "c.vot")
    assert found["object_id"].tolist() == ["a<b>&c", "λ 1"]
    np.testing.assert_array_equal(np.ma.filled(found["ra"], np.nan), odd["ra"])
    np.testing.assert_array_equal(found["z_pred"], odd["z_pred"])
    assert found["in_domain"].tolist() == [True, False]
    assert found["ra"].unit == u.deg


def test_fits_has_units_descriptions_and_valid_checksums(files):
    found = Table.read(files[1], hdu="CATALOGUE")
    assert found["ra"].unit == u.deg
    assert fits.getheader(files[1], 1)["TCOMM2"] == "right ascension, ICRS"
    assert found["in_domain"].dtype == bool
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with fits.open(files[1], checksum=True) as hdus:
            hdus.verify("exception")
            assert hdus[1].header["DATASUM"] != "0"


def test_a_flipped_byte_fails_the_checksum(files, tmp_path):
    content = bytearray(files[1].read_bytes())
    content[-2880 + 40] ^= 1
    broken = tmp_path / "broken.fits"
    broken.write_bytes(content)
    with (
        pytest.warns(UserWarning, match="(Check|Data)sum verification failed"),
        fits.open(broken, checksum=True) as hdus,
    ):
        hdus[1].data  # noqa: B018  (reading it checks it)


def test_parquet_has_units_in_both_conventions(written):
    schema = pq.read_schema(written.files()[0])
    assert schema.field("ra").metadata[b"unit"] == b"deg"
    header = schema.metadata[b"IVOA.VOTable-Parquet.content"]
    assert b'name="ra"' in header
    assert b'unit="deg"' in header
    assert b'arraysize="*"' in header  # texts of any length


def test_tables_with_tensor_columns_are_taken(tmp_path):
    plain = pa.table({n: v for n, v in rows(4).items() if n != "probability"})
    vectors = tensor_array(rows(4)["probability"], pa.float32())
    catalogue = write(tmp_path / "c", [[plain.append_column("probability", vectors)]])
    write_fits(catalogue, tmp_path / "c.fits")
    found = Table.read(tmp_path / "c.fits")
    np.testing.assert_array_equal(found["probability"], rows(4)["probability"])


def test_an_empty_catalogue_keeps_its_columns(tmp_path):
    catalogue = write(tmp_path / "empty", [[]], COLUMNS[:5])
    write_fits(catalogue, tmp_path / "empty.fits")
    found = Table.read(tmp_path / "empty.fits")
    assert len(found) == 0
    assert found.colnames == [column.name for column in COLUMNS[:5]]


def test_a_part_is_written_whole_or_not_at_all(tmp_path):
    def torn() -> Iterator[dict]:
        yield rows(5)
        raise RuntimeError("power cut")

    before = write(tmp_path / "c", [[rows(3)]])
    content = (tmp_path / "c" / "part-00000.parquet").read_bytes()
    with pytest.raises(RuntimeError, match="power cut"):
        write_part(before.files()[0], torn(), COLUMNS)
    assert (tmp_path / "c" / "part-00000.parquet").read_bytes() == content
    assert sorted(p.name for p in (tmp_path / "c").iterdir()) == [
        "_about.json", "part-00000.parquet"
    ]  # fmt: skip


def test_missing_column_and_wrong_type_are_named(tmp_path):
    place = str(tmp_path / "part.parquet")
    with pytest.raises(ValueError, match="in_domain"):
        write_part(place, iter([{n: v for n, v in rows(2).items() if n != "in_domain"}]), COLUMNS)
    with pytest.raises(ValueError, match="'ra': expected float64"):
        write_part(place, iter([{**rows(2), "ra": np.array(["a", "b"], dtype=object)}]), COLUMNS)


def test_what_is_no_finished_catalogue_is_refused(tmp_path):
    with pytest.raises(NotACatalogue, match="not a finished catalogue"):
        Catalogue.open(str(tmp_path))


def test_rows_are_picked_group_by_group(written, ray_cluster):
    some = written.select(
        lambda group: group.filter(pa.array(group["in_domain"].to_numpy(zero_copy_only=False))),
        ["object_id", "in_domain"],
    )
    assert some["position"].to_pylist() == list(range(0, 36, 3))
    none = written.select(lambda group: group.slice(0, 0), ["ra"])
    assert none.column_names == ["ra", "position"]
    assert none.num_rows == 0
