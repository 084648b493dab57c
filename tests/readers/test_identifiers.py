"""Names of objects are exact, whatever column holds them, or refused by name."""

from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy.io import fits

from skyray.readers.base import make_reader
from skyray.readers.memory import memory_file
from skyray.records import InvalidRecord

PIXELS = 200
LONG = [39627547165298689, 39627547165298690, 39627547165298691]
OPTIONS = {
    "medium": "vacuum", "wavelength": {"kind": "linear", "start": 4000.0, "step": 1.0},
    "flux": "flux", "ivar": "ivar",
}  # fmt: skip
SPECTRA = {
    "flux": [np.linspace(1, 2, PIXELS) + n for n in range(3)],
    "ivar": [np.ones(PIXELS)] * 3,
}


def parquet(**columns: pa.Array | list) -> bytes:
    stream = io.BytesIO()
    arrays = {name: [row.tolist() for row in rows] for name, rows in SPECTRA.items()}
    pq.write_table(pa.table(arrays | columns), stream)
    return stream.getvalue()


def fits_table(**columns: np.ndarray) -> bytes:
    made = [fits.Column(n, f"{PIXELS}E", array=np.array(rows)) for n, rows in SPECTRA.items()]
    kinds = {"f": "D", "i": "K", "U": "20A"}
    made += [fits.Column(n, kinds[a.dtype.kind], array=a) for n, a in columns.items()]
    stream = io.BytesIO()
    fits.HDUList([fits.PrimaryHDU(), fits.BinTableHDU.from_columns(made)]).writeto(stream)
    return stream.getvalue()


def npz(**columns: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, **{name: np.array(rows) for name, rows in SPECTRA.items()}, **columns)
    return stream.getvalue()


def found(content: bytes, name: str, **options) -> list[str]:
    """Return object_id, or the reason of a refusal, of every row."""
    reader = make_reader("spectrum_table", {**OPTIONS, **options})
    file = memory_file(content, name)
    records = [record for unit in reader.units(file) for record in reader.read(file, unit)]
    return [r.reason if isinstance(r, InvalidRecord) else r.object_id for r in records]


BY_ID = {"fields": {"object_id": "id"}}
TEXT = [str(n) for n in LONG]


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        (np.array(LONG), TEXT),
        (np.array(LONG, float), ["id_not_exact"] * 3),
        (np.array([1.0, 2.0**53 - 1, 2.0**53]), ["1", "9007199254740991", "id_not_exact"]),
        (np.array([1.5, np.nan, np.inf]), ["id_not_exact"] * 3),
        (np.array(["007", "J1234.5+12", "a b"]), ["007", "J1234.5+12", "a b"]),
    ],
)
@pytest.mark.parametrize(
    ("write", "name"), [(parquet, "a.parquet"), (fits_table, "a.fits"), (npz, "a.npz")]
)
def test_an_identifier_is_exact_or_refused(write, name, ids, expected):
    nan = np.isnan(ids) if ids.dtype.kind == "f" else np.zeros(3, bool)
    reasons = {tuple(expected), tuple(np.where(nan, "field_invalid", expected).tolist())}
    assert tuple(found(write(id=ids), name, **BY_ID)) in reasons


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        (pa.array([2**64 - 1, 0, None], pa.uint64()), [str(2**64 - 1), "0", "field_invalid"]),
        (pa.array([2.0**24 - 1, 2.0**24, 3.0], pa.float32()), ["16777215", "id_not_exact", "3"]),
        (pa.array([2047, 2048, 3], pa.float16()), ["2047", "id_not_exact", "3"]),
        (pa.array(["ß-Å", "", " "]), ["ß-Å", "field_invalid", "field_invalid"]),
        (pa.array([b"007", b"x ", "ß".encode()]), ["007", "x", "ß"]),
        (pa.array(["a", "a", "b"]).dictionary_encode(), ["a", "a", "b"]),
        (pa.array([True, False, None]), ["field_invalid"] * 3),
        (pa.array([[1], [2], [3]]), ["field_invalid"] * 3),
    ],
)
def test_identifiers_of_every_arrow_type(ids, expected):
    assert found(parquet(id=ids), "a.parquet", **BY_ID) == expected


def test_an_identifier_may_lie_in_a_struct():
    ids = pa.array([{"target": {"id": n}} for n in LONG])
    fields = {"fields": {"object_id": "about.target.id"}}
    assert found(parquet(about=ids), "a.parquet", **fields) == TEXT


def test_parts_of_a_format_are_exact_too():
    options = {"id_format": "{plate:04d}-{mjd}-{id}"}
    columns = {"plate": [266.0, 1.0, 2.0], "mjd": [51602] * 3}
    names = [f"{p:04d}-51602-{n}" for p, n in zip((266, 1, 2), LONG, strict=True)]
    assert found(parquet(**columns, id=LONG), "a.parquet", **options) == names
    floats = found(parquet(**columns, id=np.array(LONG, float)), "a.parquet", **options)
    assert floats == ["id_not_exact"] * 3


@pytest.mark.parametrize("name", ["J1234.5+12.parquet", "a.b.c.parquet", "plain.parquet"])
def test_names_of_files_are_not_cut_at_dots(name):
    stem = name.removesuffix(".parquet")
    assert found(parquet(), name) == [f"{stem}-{row}" for row in range(3)]


def test_columns_of_other_lengths_refuse_the_rows_they_lack():
    content = npz(id=np.array([1, 2]))
    assert found(content, "a.npz", **BY_ID) == ["1", "2", "shape_mismatch"]
