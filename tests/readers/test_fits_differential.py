"""Random FITS files: ours agrees with the truth and with astropy value by value, or refuses.

``SKYRAY_EXAMPLES`` sets how many files are made (``make differential``: 50,000).
"""

from __future__ import annotations

import io
import os
import warnings
from collections import Counter
from typing import Any

import numpy as np
import pytest
from astropy.io import fits
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from tests.random_fits import COMPRESSIONS, Part, Truth, build, wrapped

from skyray.readers.fits_bytes import FitsFile, Hdu
from skyray.readers.fits_table import Table
from skyray.readers.memory import memory_file
from skyray.records import InvalidRecord

EXAMPLES = int(os.environ.get("SKYRAY_EXAMPLES", "2000"))
SEEN: Counter[str] = Counter()

HEAP = [pointer + code for pointer in "PQ" for code in "BIJKEDAL"]
COLUMN = st.builds(
    lambda code, repeat, scale, rest: {
        "code": code, "repeat": repeat, "scale": scale, "width": 1 + rest % 6,
        "null": rest & 64 > 0, "tdim": rest & 128 > 0, "twin": rest > 990,
    },
    st.sampled_from([*"LXBIJKEDA" * 3, *HEAP, "PX", "C", "M"]),
    st.sampled_from([1, 1, 1, 0, 2, 3, 4, 9, 16]),
    st.sampled_from(["none", "none", "sign", "offset", "linear", "stated"]),
    st.integers(0, 1023),
)  # fmt: skip
IMAGE = st.fixed_dictionaries({
    "code": st.sampled_from("BIJKED"),
    "shape": st.lists(st.integers(1, 6), min_size=1, max_size=3),
    "scale": st.sampled_from(["none", "sign", "offset", "linear"]),
    "blank": st.booleans(),
    "checksum": st.booleans(),
})  # fmt: skip
TILES = st.fixed_dictionaries({
    "kind": st.sampled_from(["u1", "i2", "i4", "u2", "u4", "f4", "f8"]),
    "compression": st.sampled_from(COMPRESSIONS),
    "blank": st.booleans(),
    "lossless": st.booleans(),
    "checksum": st.booleans(),
})  # fmt: skip
TABLE = st.tuples(
    st.just("table"), st.tuples(st.integers(0, 4), st.lists(COLUMN, min_size=1, max_size=8))
)
ASCII = st.tuples(
    st.just("ascii"),
    st.tuples(st.integers(1, 4), st.lists(st.sampled_from("AIFED"), min_size=1, max_size=5),
              st.booleans()),
)  # fmt: skip
HDU = st.one_of(
    TABLE, TABLE, TABLE, ASCII,
    st.tuples(st.just("image"), st.tuples(IMAGE)),
    st.tuples(st.just("image"), st.tuples(IMAGE)),
    st.tuples(st.just("tiles"), st.tuples(TILES)),
    st.tuples(st.just("strange"), st.sampled_from(["foreign", "ztable"])),
)  # fmt: skip
WRAP = st.sampled_from(["", "", "", "gzip", "members", "bzip2", "xz", "zstandard"])
TAIL = st.sampled_from(["", "", "zeros", "block", "blanks", "junk", "cut padding"])


@settings(max_examples=EXAMPLES, deadline=None, database=None, phases=[Phase.generate],
          suppress_health_check=list(HealthCheck))  # fmt: skip
@given(st.integers(0, 2**32), st.lists(HDU, min_size=1, max_size=2), WRAP, TAIL)
def _compare_files(seed, hdus, wrap, tail):
    content, parts = build(seed, hdus, tail)
    packed = memory_file(wrapped(content, wrap), "a.fits")
    with warnings.catch_warnings(), FitsFile(packed) as file:
        warnings.simplefilter("ignore")
        ours = list(file.hdus())
        assert len(ours) == 1 + len(parts)
        with fits.open(io.BytesIO(content), logical_as_bytes=True) as theirs:
            for number, part in enumerate(parts, start=1):
                other = theirs[number] if number < len(theirs) else None
                compare(ours[number], part, other)


def compare(hdu: Hdu, part: Part, other: Any) -> None:
    """Compare one HDU with what was written and, where it has it, with astropy's."""
    if part.refused:
        refused(hdu.table, part.refused)
        refused(hdu.image, "hdu_wrong_type")
        return
    if part.image is not None:
        compare_header(hdu, other)
        return compare_image(hdu, part.image, other)
    table = hdu.table()
    for column in part.columns:
        if column.refused:
            refused(lambda name=column.name: table.column(name), column.refused)
        else:
            compare_column(table, column, other)
            SEEN["read: columns"] += 1


def refused(look: Any, reason: str) -> None:
    with pytest.raises(InvalidRecord) as caught:
        look()
    assert caught.value.reason == reason
    SEEN[f"refused: {reason}"] += 1


def compare_header(hdu: Hdu, other: Any) -> None:
    if hdu.header.compressed or "LONGTEXT" not in other.header:
        return
    for key in ("LONGTEXT", "HIERARCH ESO DET READ", "BITPIX", "NAXIS1"):
        assert hdu.header.get(key) == other.header[key.removeprefix("HIERARCH ")], key
    SEEN["read: headers"] += 1


def compare_image(hdu: Hdu, truth: Truth, other: Any) -> None:
    if truth.refused:
        return refused(hdu.image, truth.refused)
    found = hdu.image()
    same(found, truth)
    rows = len(found)
    if rows > 1:
        np.testing.assert_array_equal(hdu.image_rows(1, rows), found[1:])
    theirs = astropys(lambda: np.asarray(other.data))
    SEEN["read: tiled images" if hdu.header.compressed else "read: images"] += 1
    if theirs is None:
        return
    nulls = np.isnan(found) if found.dtype.kind == "f" else np.zeros(found.shape, bool)
    scale = 1e-6 * (1 + np.max(np.abs(theirs.astype(float)[~nulls]), initial=0))
    close(found[~nulls], theirs[~nulls], scale if theirs.dtype.kind == "f" else 0)
    SEEN["read: images that astropy reads too"] += 1


def compare_column(table: Table, truth: Truth, other: Any) -> None:
    name = truth.name
    if truth.nulls is not None and not_as_floats(truth):
        return refused(lambda: table.column(name), "column_type")
    found = table.column(name.upper())
    if isinstance(truth.values, list):
        assert found.shape == (len(truth.values),)
        for cell, values in zip(found, truth.values, strict=True):
            if isinstance(values, str):
                assert cell == values
            else:
                same(cell, Truth(values))
        return
    same(found, truth)
    kept = table.masked(name)
    nulls = np.zeros(kept.shape, bool) if truth.nulls is None else truth.nulls
    assert np.ma.getmaskarray(kept).tolist() == nulls.tolist()
    for row in range(min(len(table), 2)):
        cell = table.value(name, row)
        np.testing.assert_equal(cell, kept[row].tolist() if len(kept.shape) > 1 else
                                np.ma.array(kept).tolist()[row])  # fmt: skip
    compare_astropy(np.ma.getdata(kept), nulls, name, other)


def not_as_floats(truth: Truth) -> bool:
    """Whether there are nulls beside integers of 64 bits that float64 does not hold."""
    values = np.asarray(truth.values)
    if values.dtype != object or not truth.nulls.any():
        return False
    return any(abs(int(v)) > 2**53 for v in values[~truth.nulls])


def compare_astropy(found: np.ndarray, nulls: np.ndarray, name: str, other: Any) -> None:
    theirs = astropys(lambda: np.asarray(other.data[name]))
    if theirs is None:
        return
    if theirs.dtype.kind in "SU" and found.dtype.kind == "b":
        theirs = np.char.equal(theirs, b"T" if theirs.dtype.kind == "S" else "T")
    if theirs.shape != found.shape:  # rAw and a TDIM of one text: astropy has them joined
        assert theirs.dtype.kind in "SU" or found.size == theirs.size
        if theirs.dtype.kind in "SU":
            return
        theirs = theirs.reshape(found.shape)
    if found.dtype.kind == "U":
        assert found.tolist() == np.char.rstrip(theirs.astype(str)).tolist()
    else:
        close(found[~nulls], theirs[~nulls], 0 if theirs.dtype.kind != "f" else 1e-12)
    SEEN["read: columns that astropy reads too"] += 1


def astropys(look: Any) -> np.ndarray | None:
    """Return astropy's values; None where it fails, as on BLANK beside BZERO alone or on TZERO=1
    of 64-bit integers: those are compared with the truth alone."""
    try:
        return look()
    except Exception:
        SEEN["astropy failed"] += 1
        return None


def same(found: np.ndarray, truth: Truth) -> None:
    """Compare values with the truth: exact integers, NaN where they are null."""
    values = np.asarray(truth.values)
    assert found.shape == values.shape
    nulls = np.zeros(values.shape, bool) if truth.nulls is None else truth.nulls
    if values.dtype == object and values.size and isinstance(values.flat[0], str):
        assert found.tolist() == values.tolist()
        return
    if nulls.any():
        assert found.dtype.kind == "f"
        assert np.isnan(found[nulls]).all()
        np.testing.assert_array_equal(found[~nulls], values[~nulls].astype(np.float64))
        return
    if values.dtype == object and values.size:
        assert found.dtype.kind in "iu"
        assert [int(v) for v in found.ravel()] == [int(v) for v in values.ravel()]
        return
    if values.size:
        assert found.dtype.kind == values.dtype.kind
    if truth.tolerance:
        assert np.isnan(found).tolist() == np.isnan(values).tolist()
        np.testing.assert_allclose(found, values, rtol=0, atol=truth.tolerance)
    else:
        np.testing.assert_array_equal(found, values)


def close(found: np.ndarray, theirs: np.ndarray, tolerance: float) -> None:
    if tolerance:
        scale = np.max(np.abs(theirs[np.isfinite(theirs)]), initial=1.0)
        np.testing.assert_allclose(found, theirs.astype(np.float64), rtol=1e-6,
                                   atol=tolerance * scale)  # fmt: skip
    else:
        np.testing.assert_array_equal(found, theirs)


def test_random_files_agree_with_their_truth_and_with_astropy():
    SEEN.clear()
    _compare_files()
    read = sum(SEEN[f"read: {what}"] for what in ("columns", "images", "tiled images"))
    refused = sum(count for what, count in SEEN.items() if what.startswith("refused"))
    print(f"\n{EXAMPLES:,} files: {read:,} columns and images read, {refused:,} refused, "
          "0 disagreements")  # fmt: skip
    for what, count in sorted(SEEN.items()):
        print(f"  {what}: {count:,}")
    assert read > 3 * refused
    assert SEEN["read: columns that astropy reads too"] > EXAMPLES
