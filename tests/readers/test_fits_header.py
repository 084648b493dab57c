"""Headers that lie: reading ends within the file's own size, with records or with a reason."""

from __future__ import annotations

import contextlib
import io
from itertools import islice, pairwise

import numpy as np
import pytest
from astropy.io import fits
from hypothesis import example, given, settings
from hypothesis import strategies as st

from skyray.readers.fits_bytes import MAX_HDUS, MAX_HEADER_BLOCKS, FitsFile
from skyray.readers.fits_columns import scaled
from skyray.readers.fits_header import BadHeader, Header
from skyray.readers.memory import memory_file
from skyray.readers.stamps import read_stamp
from skyray.records import InvalidRecord

BLOCK = 2880


def header(*cards: tuple[str, object], first: str = "SIMPLE") -> bytes:
    """A header of these cards, filled up to whole blocks."""
    start = [("SIMPLE", "T")] if first == "SIMPLE" else [("XTENSION", f"'{first:<8}'")]
    text = "".join(f"{key:<8}= {value!s:>20}".ljust(80) for key, value in [*start, *cards])
    text += "END".ljust(80)
    return text.ljust(-(-len(text) // BLOCK) * BLOCK).encode()


def good_file() -> bytes:
    """Every kind of HDU that is read: image, cube, table with scales and a heap, empty ones."""
    ragged = np.array([np.arange(3.0), np.arange(5.0)], dtype=object)
    columns = [
        fits.Column("FLUX", "5E", array=np.arange(10.0).reshape(2, 5)),
        fits.Column("U4", "J", bzero=2**31, array=np.array([0, 2**32 - 1], np.uint32)),
        fits.Column("NAME", "6A", array=["a", "bc"]),
        fits.Column("RAGGED", "PD()", array=ragged),
        fits.Column("BITS", "11X", array=np.zeros((2, 11), bool)),
    ]
    stream = io.BytesIO()
    fits.HDUList(
        [
            fits.PrimaryHDU(np.arange(12, dtype=np.uint16).reshape(3, 4)),
            fits.BinTableHDU.from_columns(columns, name="TABLE"),
            fits.ImageHDU(np.arange(24.0).reshape(2, 3, 4), name="CUBE"),
            fits.ImageHDU(np.zeros((0, 3), np.float32), name="NONE"),
        ]
    ).writeto(stream)
    return stream.getvalue()


GOOD = good_file()
NUMBERS = [
    at
    for at in range(0, len(GOOD), 80)
    if GOOD[at + 8 : at + 10] == b"= "
    and GOOD[at : at + 8].rstrip(b" 0123456789").decode("ascii", "replace")
    in ("BITPIX", "NAXIS", "PCOUNT", "GCOUNT", "TFIELDS", "TFORM", "TZERO", "TSCAL", "BZERO",
        "BSCALE")
]  # fmt: skip


def read_all(content: bytes) -> int:
    """Read every HDU in every way; return how many there are."""
    with FitsFile(memory_file(content, "a.fits")) as file:
        hdus = list(islice(file.hdus(), len(content) // BLOCK + 2))
        ends = [0, *(hdu.end for hdu in hdus)]
        assert all(b - a >= BLOCK for a, b in pairwise(ends))
        for hdu in hdus:
            for look in (hdu.image, lambda hdu=hdu: read_table(hdu)):
                with contextlib.suppress(InvalidRecord):
                    look()
        return len(hdus)


def read_table(hdu) -> None:
    table = hdu.table()
    for name in table.names:
        with contextlib.suppress(InvalidRecord):
            table.column(name)
            if len(table):
                table.value(name, len(table) - 1)


def refusal(content: bytes) -> InvalidRecord:
    with pytest.raises(InvalidRecord) as caught:
        read_all(content)
    assert caught.value.source == "/a.fits"
    return caught.value


def test_the_good_file_is_read():
    assert read_all(GOOD) == 4
    assert len(NUMBERS) > 25


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("cards", "keyword", "found"),
    [
        ([("BITPIX", 8), ("NAXIS", 1), ("NAXIS1", 0), ("PCOUNT", -2880)], "PCOUNT", "-2880"),
        ([("BITPIX", 8), ("NAXIS", 1), ("NAXIS1", 1), ("GCOUNT", -2880)], "GCOUNT", "-2880"),
        ([("BITPIX", 8), ("NAXIS", 1), ("NAXIS1", 1), ("GCOUNT", 0)], "GCOUNT", "0"),
        ([("BITPIX", 8), ("NAXIS", 1), ("NAXIS1", 1), ("PCOUNT", "T")], "PCOUNT", "T"),
        ([("BITPIX", 8), ("NAXIS", 1), ("NAXIS1", 1), ("PCOUNT", "'-9'")], "PCOUNT", "-9"),
        ([("BITPIX", 8), ("NAXIS", 1), ("NAXIS1", 1), ("PCOUNT", "1_0")], "PCOUNT", "1_0"),
        ([("BITPIX", 8), ("NAXIS", 1), ("NAXIS1", 1), ("PCOUNT", 10**60)], "PCOUNT", "10000"),
        ([("BITPIX", 8), ("NAXIS", 1), ("NAXIS1", -1)], "NAXIS1", "-1"),
        ([("BITPIX", 8), ("NAXIS", 1), ("NAXIS1", "3.0")], "NAXIS1", "3.0"),
        ([("BITPIX", 8), ("NAXIS", 1)], "NAXIS1", "none"),
        ([("BITPIX", 8), ("NAXIS", -1)], "NAXIS", "-1"),
        ([("BITPIX", 8), ("NAXIS", 999)], "NAXIS", "999"),
        ([("BITPIX", 8)], "NAXIS", "none"),
        ([("BITPIX", 12), ("NAXIS", 1), ("NAXIS1", 1)], "BITPIX", "12"),
        ([("BITPIX", "many"), ("NAXIS", 1), ("NAXIS1", 1)], "BITPIX", "many"),
        ([("NAXIS", 1), ("NAXIS1", 1)], "BITPIX", "none"),
        ([("BITPIX", 64), ("NAXIS", 3), ("NAXIS1", 0), ("NAXIS2", 10**14), ("NAXIS3", 10**14)],
         "NAXISn", "axes [0, 1000"),
    ],
)  # fmt: skip
def test_an_impossible_number_is_named(cards, keyword, found):
    error = refusal(header(*cards))
    assert error.reason == "header_invalid"
    assert keyword in error.detail
    assert found in error.detail.partition("found")[2]


@pytest.mark.timeout(60)
def test_a_stamp_that_leads_back_to_itself_is_refused():
    cards = ("BITPIX", 8), ("NAXIS", 1), ("NAXIS1", 0), ("PCOUNT", -BLOCK), ("GCOUNT", 1)
    assert len(header(*cards)) == BLOCK
    with pytest.raises(InvalidRecord, match=r"header_invalid.*PCOUNT.*-2880"):
        read_stamp(header(*cards), "alert")


VALUES = st.one_of(
    st.integers(-3, 12),
    st.integers(-(2**70), 2**70),
    st.integers(-70, 70).map(lambda power: (1 if power >= 0 else -1) * 2 ** abs(power)),
    st.floats(allow_nan=True, allow_infinity=True),
    st.sampled_from(["T", "F", "", "'text'", "''", "E", "1_0", "-", "+7", "0x10", "1D400", "'9P'",
                     "'0E'", "'999999999999J'", "'1PD(-3)'", "'PA'", "'M'"]),
)  # fmt: skip


@pytest.mark.timeout(120)
@settings(max_examples=600, deadline=5_000)
@given(st.dictionaries(st.sampled_from(NUMBERS), VALUES, min_size=1, max_size=4))
@example({NUMBERS[0]: -64})
def test_mutated_numbers_end_in_records_or_reasons(changes):
    content = bytearray(GOOD)
    for at, value in changes.items():
        content[at + 10 : at + 80] = f"{value!s:>20}".ljust(70)[:70].encode()
    with contextlib.suppress(InvalidRecord):
        assert read_all(bytes(content)) <= len(content) // BLOCK


@settings(max_examples=200, deadline=5_000)
@given(st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), max_size=6),
       st.integers(0, len(GOOD)))  # fmt: skip
def test_mutated_bytes_end_in_records_or_reasons(changes, size):
    content = bytearray(GOOD)
    for at, value in changes:
        content[at] = value
    with contextlib.suppress(InvalidRecord):
        read_all(bytes(content[:size]))


# limits ----------------------------------------------------------------------------------------
def test_a_file_of_too_many_hdus_is_refused():
    one = header(("BITPIX", 8), ("NAXIS", 0), first="IMAGE")
    start = header(("BITPIX", 8), ("NAXIS", 0))
    many = memory_file(start + one * MAX_HDUS, "a.fits")
    with FitsFile(many) as file, pytest.raises(InvalidRecord, match=r"too_many_hdus.*10,000"):
        file.find("ABSENT")
    with FitsFile(memory_file(start + one * 99, "a.fits")) as file:
        assert len(list(file.hdus())) == 100


@pytest.mark.timeout(60)
def test_a_header_without_end_is_refused():
    long = header(*[("HISTORY", 1)] * 36 * (MAX_HEADER_BLOCKS + 5))
    error = refusal(long)
    assert error.reason == "header_too_long"
    assert refusal(long[: 100 * BLOCK]).reason == "header_truncated"
    cards = [("BITPIX", 8), ("NAXIS", 0), *[("HISTORY", 1)] * 36 * (MAX_HEADER_BLOCKS - 2)]
    assert read_all(header(*cards)) == 1


@pytest.mark.timeout(20)
def test_a_comment_full_of_keywords_does_not_slow_the_search():
    """Looked for behind each comment anew, 999 keywords are a minute's work."""
    columns = [(f"TFORM{n}", "'1E'") for n in range(1, 1000)]
    comment = ("COMMENT " + "".join(f"{key:<8}=" for key, _ in columns[:7])).ljust(80).encode()
    found = Header(comment * 34_000 + header(*columns))
    assert [found.get(key) for key, _ in columns] == ["1E"] * 999
    assert found.get("TFORM1000") is None


def test_numbers_of_a_header_keep_their_types():
    found = Header(header(("A", "1.5e-3"), ("B", "-2D3"), ("C", "nan"), ("D", 7), ("D", 8)))
    assert (found.get("A"), found.get("B"), found.get("C"), found.get("D")) == (
        1.5e-3, -2000.0, None, 7,
    )  # fmt: skip
    assert found.factor("A", 1) == 1.5e-3
    assert found.factor("ABSENT", 1) == 1
    with pytest.raises(BadHeader, match="SIMPLE: expected a number, found 'T'"):
        found.factor("SIMPLE", 1)


def test_scales_equal_astropy():
    for dtype, zero, scale in (("u1", -128, 1), ("u1", 3, 2), ("i2", 32768, 1), ("i2", 7, 1),
                               ("i4", 0, 0.5), ("i8", 2**63, 1), ("i2", -5.5, 1)):  # fmt: skip
        raw = np.array([0, 1, 100, 127], dtype=dtype)
        hdu = fits.PrimaryHDU(raw)
        hdu.header["BZERO"], hdu.header["BSCALE"] = zero, scale
        stream = io.BytesIO()
        hdu.writeto(stream)
        content = stream.getvalue()
        with FitsFile(memory_file(content, "a.fits")) as file:
            found = next(file.hdus()).image()
        expected = fits.getdata(io.BytesIO(content))
        np.testing.assert_array_equal(found, expected)
        exact = scale == 1 and zero == int(zero)  # astropy has floats for most sums of integers
        assert found.dtype.kind in (expected.dtype.kind, "i" if exact else "f")
    assert scaled(np.ones(2, np.float32), 0, 2.0).dtype == np.float64


def test_more_fields_than_a_table_can_have_are_refused_before_anything_counts_to_them():
    header = Header(b"".join(card.ljust(80) for card in (
        b"XTENSION= 'BINTABLE'", b"BITPIX  = 8", b"NAXIS   = 0", b"TFIELDS = 2147483647"
    )))  # fmt: skip
    with pytest.raises(BadHeader, match="TFIELDS"):
        header.data_bytes()
