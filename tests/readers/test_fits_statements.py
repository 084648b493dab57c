"""Statements of a FITS file that change a value: each honoured, or refused with its name."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tracemalloc
import zlib

import numpy as np
import pyarrow as pa
import pytest
from astropy.io import fits
from tests.random_fits import BLOCK, filled, header, with_cards

from skyray.readers.column_facts import column_facts
from skyray.readers.columns import open_columns
from skyray.readers.fits_bytes import FitsFile
from skyray.readers.fits_header import Header
from skyray.readers.fits_image import astropy_file, fits_image
from skyray.readers.layout import is_fits_name
from skyray.readers.memory import memory_file
from skyray.readers.unpacked import FREE_BYTES, most_bytes
from skyray.records import InvalidRecord
from skyray.records.reasons import reason_of

PRIMARY = header([("SIMPLE", True), ("BITPIX", 8), ("NAXIS", 0)])


def written(*hdus, checksum: bool = False) -> bytes:
    stream = io.BytesIO()
    fits.HDUList([fits.PrimaryHDU(), *hdus]).writeto(stream, checksum=checksum)
    return stream.getvalue()


def table_of(content: bytes, number: int = 1):
    return FitsFile(memory_file(content, "a.fits")).hdu(number).table()


def table_bytes(cards, row: bytes, rows: int = 1) -> bytes:
    start = [("XTENSION", "BINTABLE"), ("BITPIX", 8), ("NAXIS", 2), ("NAXIS1", len(row)),
             ("NAXIS2", rows), ("PCOUNT", 0), ("GCOUNT", 1)]  # fmt: skip
    return PRIMARY + header(start + cards) + filled(row * rows)


def refusal(look) -> InvalidRecord:
    with pytest.raises(InvalidRecord) as caught:
        look()
    return caught.value


# what a bomb may not do ------------------------------------------------------------------------
@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress])
def test_a_bomb_is_refused_before_it_is_unpacked(pack):
    bomb = pack(PRIMARY + bytes(3 * FREE_BYTES))
    assert len(bomb) < 1 << 20
    tracemalloc.start()
    error = refusal(lambda: FitsFile(memory_file(bomb, "a.fits")))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert error.reason == "unpacked_too_large"
    assert peak < 2.3 * FREE_BYTES


def test_what_may_be_unpacked_grows_with_what_came_in():
    assert most_bytes(10) == FREE_BYTES
    assert FREE_BYTES < most_bytes(5 << 20) < most_bytes(1 << 40) <= 1 << 30


def test_tiles_that_unpack_too_far_are_refused():
    tile = zlib.compressobj(9, zlib.DEFLATED, 31)
    packed = tile.compress(bytes(80 << 20)) + tile.flush()
    hdu = fits.CompImageHDU(np.zeros((2, 8), "i4"), compression_type="GZIP_1", tile_shape=(2, 8))
    stream = io.BytesIO()
    hdu.writeto(stream)
    content = stream.getvalue()
    end = content.index(b"END" + b" " * 77, BLOCK)
    data = -(-(end + 80) // BLOCK) * BLOCK
    head = content[BLOCK : end + 80].replace(
        b"PCOUNT  = ".ljust(20) + f"{Header(content[BLOCK:end]).get('PCOUNT'):>10}".encode(),
        b"PCOUNT  = ".ljust(20) + f"{len(packed):>10}".encode(),
    )
    descriptor = np.array([len(packed), 0], ">i4").tobytes()
    spoilt = PRIMARY + filled(head, b" ") + filled(descriptor + packed)
    assert len(content[data:]) >= 8
    error = refusal(lambda: fits_image(memory_file(spoilt, "a.fits")))
    assert error.reason == "tiles_invalid"
    assert "at most 128 bytes" in error.detail
    huge = content.replace(b"ZNAXIS1 =                    8", b"ZNAXIS1 =            999999999")
    error = refusal(lambda: fits_image(memory_file(huge, "a.fits")))
    assert error.reason == "unpacked_too_large"


def test_lists_that_share_the_heap_do_not_multiply_it():
    rows, size = 4000, 1 << 20
    start = [("XTENSION", "BINTABLE"), ("BITPIX", 8), ("NAXIS", 2), ("NAXIS1", 8),
             ("NAXIS2", rows), ("PCOUNT", size), ("GCOUNT", 1), ("TFIELDS", 1),
             ("TTYPE1", "a"), ("TFORM1", "1PB")]  # fmt: skip
    data = np.array([size, 0], ">i4").tobytes() * rows + bytes(size)
    error = refusal(lambda: table_of(PRIMARY + header(start) + filled(data)).column("a"))
    assert error.reason == "heap_invalid"
    outside = np.array([9, size], ">i4").tobytes() * rows + bytes(size)
    error = refusal(lambda: table_of(PRIMARY + header(start) + filled(outside)).column("a"))
    assert error.reason == "heap_invalid"
    assert "row 0" in error.detail


# columns ---------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("cards", "found"),
    [
        ([("TFORM1", "1C")], "complex"),
        ([("TFORM1", "2E"), ("TDIM1", "(3,2)")], "TDIM1"),
        ([("TFORM1", "2E"), ("TDIM1", "two")], "TDIM1"),
        ([("TFORM1", "1K"), ("TNULL1", "none")], "TNULL1"),
        ([("TFORM1", "1K"), ("TZERO1", "much")], "TZERO1"),
        ([("TFORM1", "1K"), ("TSCAL1", 0)], "TSCAL1"),
        ([("TFORM1", "1K"), ("TSCAL1", "1D400")], "TSCAL1"),
        ([("TFORM1", "1K"), ("TZERO1", 5), ("TZERO1", 6)], "TZERO1"),
        ([("TFORM1", "8A"), ("TSCAL1", 2)], "TSCAL"),
        ([("TFORM1", "8A:SSTR3")], "TFORM1"),
        ([("TFORM1", "1PX(3)")], "TFORM1"),
        ([("TFORM1", "8L")], "logical"),
    ],
)
def test_a_column_that_is_not_understood_is_refused_and_the_others_are_read(cards, found):
    more = [("TFIELDS", 2), ("TTYPE1", "odd"), ("TTYPE2", "flux"), ("TFORM2", "E")]
    table = table_of(table_bytes([*cards, *more], bytes(range(1, 9)) + b"\x3f\x80\0\0"))
    assert table.column("FLUX").tolist() == [1.0]
    error = refusal(lambda: table.column("odd"))
    assert error.reason == "column_type"
    assert found in error.detail
    assert "odd" in error.detail
    assert refusal(lambda: table.value("odd")).reason == "column_type"


def test_nulls_are_no_numbers():
    cards = [("TFIELDS", 4), ("TTYPE1", "i"), ("TFORM1", "I"), ("TNULL1", -32768),
             ("TTYPE2", "e"), ("TFORM2", "E"), ("TNULL2", -999.0), ("TTYPE3", "l"),
             ("TFORM3", "L"), ("TTYPE4", "k"), ("TFORM4", "K"), ("TNULL4", -1)]  # fmt: skip
    row = b"".join(np.array(v, t).tobytes() for v, t in
                   ((-32768, ">i2"), (-999, ">f4"), (0, "u1"), (-1, ">i8")))  # fmt: skip
    table = table_of(table_bytes(cards, row))
    assert all(np.isnan(table.column(name)).all() for name in "ielk")
    assert [table.value(name) for name in "ilk"] == [None, None, None]
    file = memory_file(table_bytes(cards, row), "a.fits")
    (columns,) = open_columns(file, 0, {"I", "l", "K", "absent"})
    assert [columns.scalar(name, 0) for name in ("I", "l", "K")] == [None] * 3
    with pytest.raises(InvalidRecord, match=r"column_missing.*absent.*'i', 'k', 'l'"):
        columns.scalar("absent", 0)


def test_integers_stay_exact():
    cards = [("TFIELDS", 1), ("TTYPE1", "TARGETID"), ("TFORM1", "K"), ("TNULL1", 0)]
    big = 39627547165298689
    content = table_bytes(cards, np.array([big], ">i8").tobytes())
    (columns,) = open_columns(memory_file(content, "a.fits"), 0, {"TargetID"})
    assert columns.scalar("TargetID", 0) == big
    shifted = table_bytes([*cards, ("TZERO1", 2.0)], np.array([big], ">i8").tobytes())
    assert table_of(shifted).value("targetid") == big + 2


def test_units_and_ucds():
    columns = [fits.Column("WAVE", "E", unit="nm", array=[1]), fits.Column("F", "E", array=[1])]
    hdu = fits.BinTableHDU.from_columns(columns)
    hdu.header["TUCD1"] = "em.wl;obs.atmos"
    table = table_of(written(hdu))
    found = column_facts(table, "Wave")
    assert (found.unit, found.ucd, found.origin) == ("nm", "em.wl;obs.atmos", "TUNIT1")
    assert column_facts(table, "f").unit == ""


def test_text_of_other_alphabets_stays_different():
    names = ["Ésp".encode(), b"\xc9sp", b"\xc8sp"]
    cards = [("TFIELDS", 1), ("TTYPE1", "name"), ("TFORM1", "4A")]
    found = {table_of(table_bytes(cards, name.ljust(4))).value("name") for name in names}
    assert found == {"Ésp", "\\xc9sp", "\\xc8sp"}


# files -----------------------------------------------------------------------------------------
def test_wrong_checksums_are_refused_with_their_hdu():
    image = fits.ImageHDU(np.arange(100.0), name="SCI")
    content = written(image, fits.ImageHDU(np.ones(3), name="WGT"), checksum=True)
    assert fits_image(memory_file(content, "a.fits"), "sci")[0].tolist() == list(range(100))
    at = content.index(b"XTENSION") + BLOCK + 5
    spoilt = content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]
    error = refusal(lambda: fits_image(memory_file(spoilt, "a.fits"), "SCI"))
    assert error.reason == "checksum_wrong"
    assert "HDU SCI: DATASUM" in error.detail
    assert fits_image(memory_file(spoilt, "a.fits"), "WGT")[0].tolist() == [1, 1, 1]
    renamed = content.replace(b"'SCI     '", b"'SCJ     '")
    error = refusal(lambda: fits_image(memory_file(renamed, "a.fits"), "SCJ"))
    assert "CHECKSUM" in error.detail


def test_random_groups_and_foreign_files_are_refused_by_name():
    cards = [("SIMPLE", True), ("BITPIX", -32), ("NAXIS", 2), ("NAXIS1", 0), ("NAXIS2", 3),
             ("GROUPS", True), ("PCOUNT", 2), ("GCOUNT", 4)]  # fmt: skip
    content = header(cards) + filled(bytes(4 * 4 * 5))
    content += written(fits.ImageHDU(np.ones(2)))[BLOCK:]
    with FitsFile(memory_file(content, "a.fits")) as file:
        groups, image = file.hdus()
        assert image.image().tolist() == [1, 1]
        assert "random groups" in refusal(groups.image).detail
    foreign = content.replace(b"SIMPLE  =                    T", b"SIMPLE  =                    F")
    assert refusal(lambda: FitsFile(memory_file(foreign, "a.fits"))).reason == "not_fits"
    for head in (b"\x1f\x9d\x90", b"Rar!", b"\x04\x22\x4d\x18"):
        error = refusal(lambda head=head: FitsFile(memory_file(head + content, "a.fits.Z")))
        assert error.reason == "compression_unknown"


def test_an_hdu_cannot_be_lost_in_what_follows_the_last():
    content = written(fits.ImageHDU(np.ones(2), name="A"))
    hidden = content + bytes(80) + written(fits.ImageHDU(np.ones(2), name="MASK"))[BLOCK:]
    with FitsFile(memory_file(hidden, "a.fits")) as file:
        assert file.find("A").image().tolist() == [1, 1]
        assert refusal(lambda: file.find("MASK")).reason == "header_invalid"
    cut = content + b"XTENS"
    with FitsFile(memory_file(cut, "a.fits")) as file:
        assert refusal(lambda: list(file.hdus())).reason == "header_truncated"


def test_a_gzip_member_must_be_whole_and_followed_by_nothing_else():
    content = gzip.compress(PRIMARY)
    for spoilt in (content[:-9], content + b"junk", content + gzip.compress(PRIMARY)[:-4]):
        error = refusal(lambda spoilt=spoilt: FitsFile(memory_file(spoilt, "a.fits.gz")))
        assert error.reason == "gzip_truncated"


def test_zstandard_is_unpacked_within_limits():
    def packed(content: bytes) -> bytes:
        return pa.compress(content, "zstd", asbytes=True)

    content = written(fits.ImageHDU(np.ones((2, 3)), name="A"))
    whole = packed(content)
    for sound in (whole, packed(content[:99]) + packed(content[99:])):
        with FitsFile(memory_file(sound, "a.fits.zst")) as file:
            assert file.find("A").image().shape == (2, 3)
    bomb = packed(bytes(FREE_BYTES + 1))
    cut = "zstandard_truncated"
    for spoilt, reason in ((whole[:-9], cut), (whole + b"x", cut),
                           (bomb, "unpacked_too_large")):  # fmt: skip
        error = refusal(lambda spoilt=spoilt: FitsFile(memory_file(spoilt, "a.fits")))
        assert error.reason == reason


def test_compressed_tables_are_refused_with_what_to_do():
    table = written(fits.BinTableHDU.from_columns([fits.Column("A", "K", array=[1, 2])]))
    content = PRIMARY + with_cards(table[BLOCK:], [("ZTABLE", True)])
    error = refusal(lambda: table_of(content))
    assert error.reason == "table_compressed"
    assert "funpack" in reason_of(error.reason).do


def test_fpacked_primary_is_found_as_number_0():
    pixels = np.arange(256, dtype="i4").reshape(16, 16)
    hdu = fits.CompImageHDU(pixels, header=fits.Header([("BAND", "g")]))
    stream = io.BytesIO()
    hdu.writeto(stream)
    packed = stream.getvalue()
    moved = packed[:BLOCK] + with_cards(packed[BLOCK:], [("ZSIMPLE", True)])
    for wanted in (0, 1, None):
        image, found = fits_image(memory_file(moved, "a.fits.fz"), wanted)
        np.testing.assert_array_equal(image, pixels)
        assert (found.get("BAND"), found.get("NAXIS1"), found.get("BITPIX")) == ("g", 16, 32)
    assert refusal(lambda: fits_image(memory_file(moved, "a"), most_pixels=9)).reason == (
        "image_too_large"
    )
    assert refusal(lambda: fits_image(memory_file(packed, "a"), 0)).reason == "hdu_wrong_type"


def test_astropy_gets_what_was_unpacked_and_checked():
    content = written(fits.ImageHDU(np.ones((2, 3)), name="A"))
    with astropy_file(memory_file(bz2.compress(content), "a.fits.bz2")) as hdus:
        assert hdus["A"].data.shape == (2, 3)


def test_names_of_fits_files():
    names = ("a.fits", "A.FITS", "a.fit.gz", "b.fts.bz2", "c.fits.fz", "D.FITS.GZ", "e.fits.xz")
    assert all(map(is_fits_name, names))
    assert not any(map(is_fits_name, ("a.csv", "fits", "a.gz", "a.fits.csv")))


def test_long_and_hierarchical_keywords_and_the_inheritance_of_others():
    primary = fits.PrimaryHDU()
    primary.header["ORIGIN"] = "the " * 40 + "end"
    primary.header["HIERARCH ESO OBS ID"] = 7
    primary.header["FILTER"] = "r"
    table = fits.BinTableHDU.from_columns([fits.Column("A", "E", array=[1])])
    table.header["FILTER"] = "g"
    stream = io.BytesIO()
    fits.HDUList([primary, table]).writeto(stream)
    file = memory_file(stream.getvalue(), "a.fits")
    (columns,) = open_columns(file, 0, {"A"})
    assert columns.scalar("FILTER", 0) == "g"
    assert columns.scalar("ORIGIN", 0) == "the " * 40 + "end"
    assert columns.scalar("ESO OBS ID", 0) == columns.scalar("HIERARCH ESO OBS ID", 0) == 7
