"""Packets under ZTF's names: bad fields refuse their packet, and the source is found in stamps."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
from astropy.io import fits
from astropy.wcs import WCS

from skyray.cards import load_card
from skyray.data.rows import row_of
from skyray.readers.alert_packet import alert_of
from skyray.readers.stamps import open_stamp
from skyray.records import InvalidRecord, check_alert

ZTF = load_card("ztf_bts")


def stamp(shape=(63, 63), header=(), **hdus: np.ndarray) -> bytes:
    stream = io.BytesIO()
    image = np.random.default_rng(1).normal(100, 5, shape).astype(np.float32)
    primary = fits.PrimaryHDU(image, fits.Header(list(header)))
    extra = [fits.ImageHDU(values, name=name) for name, values in hdus.items()]
    fits.HDUList([primary, *extra]).writeto(stream)
    return stream.getvalue()


def packet(size=(63, 63), candidate=None, **changes) -> dict:
    fields = {"jd": 2460000.5, "fid": 1, "ra": 10.0, "dec": 2.0, "magpsf": 18.0, "isdiffpos": "t"}
    images = {f"cutout{name}": stamp(size) for name in ("Science", "Template", "Difference")}
    return {"objectId": "ZTF1", "candid": 7, "candidate": {**fields, **(candidate or {})},
            "prv_candidates": None, **images, **changes}  # fmt: skip


BAD = [
    ({"isdiffpos": {}}, "isdiffpos"), ({"isdiffpos": "maybe"}, "isdiffpos"),
    ({"isdiffpos": ["t"]}, "isdiffpos"), ({"drb": "None"}, "drb"),
    ({"fwhm": {"$numberDouble": "NaN"}}, "fwhm"), ({"fwhm": [1.0]}, "fwhm"),
    ({"jd": "2460000.5"}, "jd"), ({"jd": math.nan}, "jd"), ({"jd": True}, "jd"),
    ({"ra": math.inf}, "ra"), ({"dec": None}, "dec"), ({"fid": 1.5}, "fid"),
    ({"fid": 1 << 40}, "fid"), ({"magpsf": 10**400}, "magpsf"), ({"scorr": 1e300}, "scorr"),
    ({"sgscore1": "0.5"}, "sgscore1"), ({"anything": {"a": 1}}, "anything"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "named"), BAD)
def test_a_bad_field_refuses_its_packet_and_is_named(fields, named):
    with pytest.raises(InvalidRecord) as refused:
        alert_of(packet(candidate=fields), "a.avro")
    assert refused.value.reason == "packet_field_invalid"
    assert refused.value.detail.startswith(f"{named}: expected")
    assert refused.value.object_id == "7"


@pytest.mark.parametrize(
    "changes",
    [
        {"candid": math.nan}, {"candid": 2.46644e18}, {"candid": 1 << 70}, {"candid": "x"},
        {"candid": True}, {"candid": {}}, {"objectId": {}}, {"objectId": math.nan},
        {"prv_candidates": "none"}, {"prv_candidates": ["x"]}, {"prv_candidates": {"jd": 1}},
        {"prv_candidates": [{"jd": "x"}]}, {"prv_candidates": [{"jd": 1.0, "fid": 10**30}]},
        {"prv_candidates": [{"magpsf": {}}]}, {"prv_candidates": [{"isdiffpos": []}]},
    ],
)  # fmt: skip
def test_bad_names_and_histories_refuse_their_packet(changes):
    with pytest.raises(InvalidRecord, match="packet_field_invalid"):
        alert_of(packet(**changes), "a.avro")


def test_identifiers_are_exact():
    for candid in (2695378462115010012, "2695378462115010012", -5):
        assert alert_of(packet(candid=candid), "a").candid == int(candid)


# stamps ----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("size", "place", "pixel"),
    [
        ((63, 63), {}, (31, 31)),
        ((51, 63), {"xpos": 2875.6, "ypos": 19.78}, (19, 31)),  # of a real packet
        ((48, 63), {"xpos": 2298.3, "ypos": 3063.77}, (31, 31)),  # the upper edge
        ((63, 54), {"xpos": 3049.6, "ypos": 151.2}, (31, 31)),
        ((63, 40), {"xpos": 9.0, "ypos": 1000.0}, (31, 8)),
        ((40, 63), {}, (20, 31)),  # the packet does not tell: the middle
    ],
)
def test_ztf_stamps_at_an_edge_are_padded_on_the_side_that_is_missing(size, place, pixel):
    alert = alert_of(packet(size, place), "a")
    check_alert(alert, 63)
    assert alert.source_pixels()[0] == pixel
    row = row_of(ZTF, alert, apply_cuts=False)
    assert row["triplet"][0, 31, 31] == alert.science[pixel]
    top, left, height, width = row["stamp_box"][0]
    assert (top, left, height, width) == (31 - pixel[0], 31 - pixel[1], *size)
    outside = np.ones((63, 63), bool)
    outside[top : top + height, left : left + width] = False
    assert np.isnan(row["triplet"][:, outside]).all()
    assert np.isfinite(row["triplet"][:, ~outside]).all()


def wcs(ra: float, dec: float, column: float, row: float, scale=0.2, turn=30.0) -> WCS:
    found = WCS(naxis=2)
    found.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    found.wcs.crval, found.wcs.crpix = [ra, dec], [column + 1, row + 1]
    angle, step = math.radians(turn), scale / 3600
    found.wcs.cd = np.array([[-math.cos(angle), math.sin(angle)],
                             [math.sin(angle), math.cos(angle)]]) * step  # fmt: skip
    return found


@pytest.mark.parametrize(("ra", "dec"), [(10.0, 2.0), (359.9999, -60.0), (0.0001, 80.0)])
def test_the_source_is_where_the_wcs_has_it(ra, dec):
    made = wcs(ra, dec, 20.0, 11.0)
    found = open_stamp(stamp((40, 50), made.to_header(relax=True).cards), "a")
    assert found.pixel_scale_arcsec == pytest.approx(0.2)
    for column, row in ((20.0, 11.0), (33.3, 7.2), (2.0, 30.0)):
        at = made.pixel_to_world_values(column, row)
        assert found.pixel_of(*map(float, at)) == pytest.approx((row, column), abs=2e-3)


def test_stamps_of_different_sizes_have_the_source_in_one_pixel():
    sizes = {"Science": (30, 31), "Template": (71, 66), "Difference": (24, 40)}
    images = {}
    for number, (name, shape) in enumerate(sizes.items()):
        header = wcs(10.0, 2.0, shape[1] / 2 - number, shape[0] / 2 + number).to_header(relax=True)
        images[f"cutout{name}"] = stamp(shape, header.cards)
    alert = alert_of(packet(**images), "a")
    check_alert(alert, 512)
    row = row_of(ZTF.model_copy(update={"image_fit": "crop"}), alert, apply_cuts=False)
    for plane, image, (at_row, at_column) in zip(
        row["triplet"], alert.stamps(), alert.source_pixels(), strict=True
    ):
        assert plane[31, 31] == image[math.floor(at_row + 0.5), math.floor(at_column + 0.5)]
    off = wcs(10.0, 2.0, -40.0, 3.0).to_header(relax=True)
    gone = alert_of(packet(**images | {"cutoutScience": stamp((30, 30), off.cards)}), "a")
    with pytest.raises(InvalidRecord, match="stamp_off_source"):
        check_alert(gone, 512)


def test_the_image_is_neither_variance_nor_mask_nor_psf():
    variance, psf = np.full((30, 30), 9.0, np.float32), np.ones((41, 41))
    mask = np.zeros((30, 30), np.uint8)
    mask[3, 4] = 1
    image = open_stamp(stamp((30, 30), UNCERT=variance, MASK=mask, PSFIMAGE=psf), "a").image
    assert image.shape == (30, 30)
    assert np.isnan(image[3, 4])
    assert np.isfinite(image).sum() == 899
    first = io.BytesIO()
    parts = [fits.PrimaryHDU(), fits.ImageHDU(variance, name="VARIANCE"),
             fits.ImageHDU(np.full((30, 30), 5.0), name="IMAGE")]  # fmt: skip
    fits.HDUList(parts).writeto(first)
    assert (open_stamp(first.getvalue(), "a").image == 5).all()
    with pytest.raises(InvalidRecord, match="stamp_mask_shape"):
        open_stamp(stamp((30, 30), MASK=np.zeros((5, 5), np.uint8)), "a")


def test_planes_of_an_lsst_mask_are_taken_by_their_names():
    stream, mask = io.BytesIO(), np.zeros((30, 30), np.int32)
    mask[1, 1], mask[2, 2] = 1 << 5, 1 << 8  # DETECTED is where the source is
    planes = fits.ImageHDU(mask, fits.Header([("MP_DETECTED", 5), ("MP_NO_DATA", 8)]), name="MASK")
    fits.HDUList([fits.PrimaryHDU(np.ones((30, 30), np.float32)), planes]).writeto(stream)
    image = open_stamp(stream.getvalue(), "a").image
    assert np.isnan(image[2, 2])
    assert image[1, 1] == 1
