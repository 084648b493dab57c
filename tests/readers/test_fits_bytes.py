"""The lean FITS view against astropy: every column and image of real and written files."""

from __future__ import annotations

import gzip
import io
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import fs

from skyray.readers.base import SurveyFile
from skyray.readers.fits_bytes import FitsFile
from skyray.readers.fits_header import Header
from skyray.records import InvalidRecord


def opened(path: Path) -> FitsFile:
    return FitsFile(SurveyFile(fs.LocalFileSystem(), str(path)))


def assert_same_column(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.dtype.kind == expected.dtype.kind
    if expected.dtype.kind in "SU":
        assert [str(v) for v in found.ravel()] == [str(v).rstrip() for v in expected.ravel()]
    else:
        np.testing.assert_array_equal(found, expected)


def assert_equals_astropy(path: Path) -> int:
    """Compare all HDUs; return the number of columns and images compared."""
    compared = 0
    with opened(path) as ours, fits.open(path) as theirs:
        found = list(ours.hdus())
        assert [h.name for h in found] == [h.name.replace("PRIMARY", "") for h in theirs]
        for hdu, other in zip(found, theirs, strict=True):
            if isinstance(other, fits.BinTableHDU):
                table = hdu.table()
                assert len(table) == len(other.data)
                for name in other.columns.names:
                    assert_same_column(table.column(name.lower()), np.asarray(other.data[name]))
                    compared += 1
            elif other.data is not None:
                np.testing.assert_array_equal(hdu.image(), other.data)
                compared += 1
    return compared


def test_every_real_sdss_file_equals_astropy(survey_data):
    paths = sorted((survey_data / "spectra_sdss" / "raw_fits").glob("*.fits"))
    assert [assert_equals_astropy(path) > 100 for path in paths] == [True] * 6


def test_every_real_desi_file_equals_astropy(survey_data):
    paths = sorted((survey_data / "spectra_desi" / "raw_fits").glob("*.fits"))
    assert [assert_equals_astropy(path) > 50 for path in paths] == [True] * 3


def test_types_scales_and_unsigned_integers(tmp_path):
    unsigned = np.array([0, 1, 2**31, 2**32 - 1], dtype=np.uint32)
    long = np.array([0, 7, 2**63, 2**64 - 1], dtype=np.uint64)
    columns = [
        fits.Column("U4", "J", bzero=2**31, array=unsigned),
        fits.Column("U8", "K", bzero=2**63, array=long),
        fits.Column("SCALED", "I", array=np.array([0, 2, -1, 4], dtype=np.int16)),
        fits.Column("FLAG", "L", array=np.array([True, False, True, True])),
        fits.Column("TEXT", "5A", array=["a", "b'c", "", "de fg"]),
        fits.Column("VECTOR", "3D", array=np.arange(12.0).reshape(4, 3)),
        fits.Column("BYTE", "B", array=np.arange(4, dtype=np.uint8)),
    ]
    images = [
        fits.ImageHDU(np.arange(12, dtype=np.uint16).reshape(3, 4), name="U2"),
        fits.ImageHDU(np.arange(24, dtype=np.float64).reshape(2, 3, 4), name="CUBE"),
    ]
    path = tmp_path / "types.fits"
    table = fits.BinTableHDU.from_columns(columns, name="T")
    fits.HDUList([fits.PrimaryHDU(), table, *images]).writeto(path)
    unscaled, scaled = b"TTYPE3  = 'SCALED  '".ljust(80), b"TSCAL3  = 0.5".ljust(80)
    content = path.read_bytes()
    assert content.count(unscaled) == 1
    end = content.find(b"END".ljust(80), content.find(unscaled))
    zero = b"TZERO3  = 10".ljust(80)
    path.write_bytes(content[:end] + scaled + zero + content[end : end + 80] + content[end + 240 :])
    assert assert_equals_astropy(path) == 9
    with opened(path) as file:
        found = file.need("T").table()
        assert found.value("u8", 3) == 2**64 - 1
        assert found.value("scaled", 2) == 9.5
        assert found.value("text", 1) == "b'c"
        assert found.value("absent", default=5) == 5
        np.testing.assert_array_equal(
            file.need("CUBE").image_rows(1, 2)[0], np.arange(12.0, 24).reshape(3, 4)
        )


def test_variable_length_columns_do_not_shift_the_others(tmp_path):
    path = tmp_path / "heap.fits"
    ragged = np.array([np.arange(3.0), np.arange(5.0)], dtype=object)
    columns = [fits.Column("R", "PD()", array=ragged), fits.Column("X", "D", array=[1.5, 2.5])]
    fits.HDUList([fits.PrimaryHDU(), fits.BinTableHDU.from_columns(columns),
                  fits.ImageHDU(np.ones(4), name="LAST")]).writeto(path)  # fmt: skip
    with opened(path) as file:
        assert file.need(at=1).table().column("x").tolist() == [1.5, 2.5]
        assert file.need("LAST").image().tolist() == [1.0] * 4


def test_files_longer_than_the_first_read(tmp_path):
    path = tmp_path / "long.fits"
    big = np.arange(200_000, dtype=np.float64)
    fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(big, name="BIG"),
                  fits.ImageHDU(big[:7], name="LAST")]).writeto(path)  # fmt: skip
    assert assert_equals_astropy(path) == 2
    zipped = tmp_path / "long.fits.gz"
    zipped.write_bytes(gzip.compress(path.read_bytes()))
    assert assert_equals_astropy(zipped) == 2


@settings(max_examples=80, deadline=None)
@given(
    st.one_of(
        st.integers(-(2**63), 2**63 - 1),
        st.floats(allow_nan=False, allow_infinity=False),
        st.booleans(),
        st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=40),
    )
)
def test_header_values_equal_astropy(value):
    header = fits.Header([("SIMPLE", True), ("KEYWORD", value, "a comment / with a slash")])
    text = header.tostring(endcard=False).encode("ascii")
    expected = fits.Header.fromstring(text)["KEYWORD"]
    expected = expected.rstrip() if isinstance(expected, str) else expected
    assert Header(text).get("KEYWORD") == expected
    assert Header(text).get("KEYWOR", "absent") == "absent"


def test_a_keyword_without_a_value_is_whatever_each_asks_for():
    header = Header(b"EMPTY   =   ".ljust(80) + b"OTHER   = 1".ljust(80))
    assert [header.get("EMPTY", 1), header.get("EMPTY", 2), header.get("EMPTY")] == [1, 2, None]
    assert [header.get("NONE", 1), header.get("NONE", 2), header.get("NONE")] == [1, 2, None]


def test_a_keyword_inside_a_value_is_not_taken():
    header = fits.Header([("COMMENT", "PLATEID = 9"), ("PLATEID", 266)])
    assert Header(header.tostring(endcard=False).encode()).get("PLATEID") == 266


def test_missing_hdu_and_wrong_type_are_named(tmp_path):
    path = tmp_path / "a.fits"
    stream = io.BytesIO()
    fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(np.ones(3), name="FLUX")]).writeto(stream)
    path.write_bytes(stream.getvalue())
    with opened(path) as file:
        with pytest.raises(InvalidRecord, match=r"hdu_missing.*IVAR.*FLUX"):
            file.need("IVAR")
        with pytest.raises(InvalidRecord, match=r"hdu_wrong_type.*table.*IMAGE"):
            file.need("FLUX").table()
        assert file.find("IVAR") is None
