"""What astropy writes about columns as YAML, in Parquet and FITS, as astropy itself reads it."""

from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy import units as u
from astropy.io import fits
from astropy.table import MaskedColumn, QTable, Table, meta, serialize
from astropy.utils.data_info import serialize_context_as

from skyray.readers.base import make_reader
from skyray.readers.column_facts import parquet_facts
from skyray.readers.memory import memory_file
from skyray.readers.read_records import read_records
from skyray.transforms.spectra import air_to_vacuum

SIZE = 300
WAVE = 4000.0 + 2.0 * np.arange(SIZE)
OPTIONS = {"wavelength": {"column": "wave"}, "flux": "flux", "error": "err", "layout": "pixels"}


def table(description: str = "") -> QTable:
    made = QTable({"wave": WAVE / 10 * u.nm, "flux": np.ones(SIZE) * u.mJy})
    made["err"] = made["flux"] / 10  # of one unit: an anchor
    made["wave"].info.description = description
    return made


def parquet(made: Table, fields: dict | None = None, text: bytes | None = None):
    """As astropy writes it (which needs pandas), with metadata of the fields."""
    with serialize_context_as("parquet"):
        plain = serialize.represent_mixins_as_columns(made)
    if text is None:
        text = "\n".join(meta.get_yaml_from_table(plain)).encode()
    arrow = pa.table({name: np.asarray(plain[name]) for name in plain.colnames})
    schema = pa.schema([f.with_metadata((fields or {}).get(f.name)) for f in arrow.schema],
                       metadata={b"table_meta_yaml": text})  # fmt: skip
    stream = io.BytesIO()
    pq.write_table(arrow.cast(schema), stream)
    return memory_file(stream.getvalue(), "a.parquet")


def fits_table(made: Table):
    stream = io.BytesIO()
    made.write(stream, format="fits")
    return memory_file(stream.getvalue(), "a.fits")


def read(file, **options):
    (record,) = read_records(make_reader("spectrum_table", {**OPTIONS, **options}), file)
    return record


@pytest.mark.parametrize("form", [parquet, fits_table])
def test_anchors_ampersands_and_the_medium_that_a_description_names(form):
    file = form(table("wavelengths & more of them, which are long ago measured in air, at noon"))
    if form is parquet:
        assert b"&id001" in file.read_bytes()
    found = read(file)
    np.testing.assert_allclose(found.wavelength, air_to_vacuum(WAVE), rtol=1e-12)
    assert found.flux[0] == pytest.approx(2.99792458e18 * 1e-26 / WAVE[0] ** 2 * 1e17, rel=1e-3)
    assert found.flux[0] ** 2 * found.ivar[0] == pytest.approx(100, rel=1e-5)


@pytest.mark.filterwarnings("ignore:The unit")
def test_a_unit_that_fits_has_no_word_for():
    made = table("in vacuum")
    made["wave"] = u.Dex(np.log10(WAVE), u.dex(u.AA))
    made["wave"].info.description = "in vacuum"
    file = fits_table(made)
    assert "TUNIT1" not in fits.getheader(io.BytesIO(file.read_bytes()), 1)
    np.testing.assert_allclose(read(file).wavelength, WAVE, rtol=1e-12)


@pytest.mark.parametrize("fields", [{b"PARQUET:field_id": b"3"}, {b"unit": b"nanometer"},
                                    {b"description": b"vacuum"}])  # fmt: skip
def test_metadata_of_fields_stand_beside_it(fields):
    medium = {} if b"description" in fields else {"medium": "vacuum"}
    found = read(parquet(table(), {"wave": fields}), **medium)
    np.testing.assert_allclose(found.wavelength, WAVE, rtol=1e-12)


def test_what_contradicts_or_cannot_be_read_is_refused():
    refused = read(parquet(table(), {"wave": {b"unit": b"um"}}), medium="vacuum")
    assert refused.reason == "unit_conflict"
    assert "'um'" in refused.detail
    assert "'nm'" in refused.detail
    deep = b"[" * 5000
    for text in (b"datatype: {", b"datatype: 3", b"meta: {}", b"- x", deep, b"#" * (2 << 20),
                 b"a: &a {unit: nm}\ndatatype:\n- {name: wave, <<: *a}",
                 b"datatype: &d [*d]", b"\xff\xfe\xfd"):  # fmt: skip
        refused = read(parquet(table(), text=text), medium="vacuum")
        assert refused.reason == "parquet_invalid"
        assert "astropy's description of columns" in refused.detail
    content = fits_table(table("in & vacuum")).read_bytes()
    broken = memory_file(content.replace(b"COMMENT datatype:", b"COMMENT datatype{"), "a.fits")
    assert read(broken).reason == "header_invalid"


def test_aliases_do_not_multiply():
    rows = [b"a0: &a0 {name: x, unit: nm}"]
    rows += [b"a%d: &a%d [%s]" % (n, n, b", ".join([b"*a%d" % (n - 1)] * 9)) for n in range(1, 60)]
    text = b"\n".join([*rows, b"datatype: [*a0]", b"meta: *a59"])
    schema = pa.schema([pa.field("x", pa.float64())], metadata={b"table_meta_yaml": text})
    assert parquet_facts(schema, "a", {"x"}).of("x").unit == "nm"


@pytest.mark.parametrize("form", [parquet, fits_table])
def test_a_mask_that_is_a_column_of_its_own_is_applied(form):
    made = Table(table("vacuum"))
    hidden = np.arange(SIZE) % 7 == 3
    made["flux"] = MaskedColumn(made["flux"], mask=hidden)
    made["flux"].info.serialize_method.update(fits="data_mask", parquet="data_mask")
    file = form(made)
    np.testing.assert_array_equal(np.isnan(read(file).flux), hidden)
    found = read(file, mask="flux.mask")
    np.testing.assert_array_equal(found.mask, hidden)
