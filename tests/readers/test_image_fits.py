"""What FITS images state: which HDU, which band, which unit, where on the sky."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from astropy import units as u
from astropy.coordinates import FK4, SkyCoord
from astropy.io import fits
from astropy.wcs import WCS
from pyarrow import fs

from skyray.readers.base import SurveyFile, make_reader
from skyray.records import InvalidRecord

RNG = np.random.default_rng(4)
SCIENCE, WEIGHT = RNG.normal(size=(2, 16, 16)).astype(np.float32)


def read(path: Path, **options) -> list:
    reader = make_reader("image_fits", {"bands": ["r"], **options})
    return list(reader.read(SurveyFile(fs.LocalFileSystem(), str(path))))


def one(path: Path, **options):
    (found,) = read(path, **options)
    return found


def write(path: Path, *hdus, primary: dict | None = None) -> Path:
    first = fits.PrimaryHDU(header=fits.Header(primary or {}))
    fits.HDUList([first, *hdus]).writeto(path, overwrite=True)
    return path


def image(data: np.ndarray = SCIENCE, name: str | None = None, **header) -> fits.ImageHDU:
    return fits.ImageHDU(data, fits.Header(header), name=name)


# which HDU
@pytest.mark.parametrize(
    ("science", "weight"),
    [
        ({"name": "SCI"}, {"name": "WHT"}), ({"name": "SCI"}, {"name": "ERR"}),
        ({}, {"name": "WGT"}), ({"name": "CHIP1.SCI"}, {"name": "CHIP1.RMS"}),
        ({"EXTTYPE": "IMAGE"}, {"EXTTYPE": "VARIANCE"}), ({}, {"EXTTYPE": "MASK"}),
        ({"DES_EXT": "IMAGE"}, {"DES_EXT": "WEIGHT"}),
        ({"HDUCLAS2": "DATA"}, {"HDUCLAS2": "ERROR"}),
        ({"PRODTYPE": "image"}, {"PRODTYPE": "wtmap"}), ({"IMTYPE": "image"}, {"IMTYPE": "invvar"}),
        ({"name": "DATA"}, {"name": "STAT"}), ({"name": "DATA"}, {"name": "DATA_ERROR"}),
    ],
)  # fmt: skip
def test_a_weight_map_is_never_the_image(tmp_path, science, weight):
    hdus = image(SCIENCE, **science), image(WEIGHT, **weight)
    for order in (hdus, hdus[::-1]):
        found = one(write(tmp_path / "a.fits", *order))
        np.testing.assert_array_equal(found.image[0], SCIENCE)
    assert one(write(tmp_path / "a.fits", hdus[1])).reason == "image_role"


@pytest.mark.parametrize(
    ("name", "primary", "own"),
    [("a.weight.fits.fz", {}, {}), ("a.fits.fz", {"PRODTYPE": "wtmap"}, {}),
     ("a.fits.fz", {}, {"IMTYPE": "invvar"}), ("a.fits.fz", {}, {"EXTTYPE": "IMAGE",
                                                               "EXTNAME": "VARIANCE"})],
)  # fmt: skip
def test_a_compressed_weight_map_is_none_either(tmp_path, name, primary, own):
    """fpack calls an image without a name COMPRESSED_IMAGE, whatever it holds."""
    packed = fits.CompImageHDU(WEIGHT, compression_type="GZIP_1", quantize_level=0)
    packed.header.update({"EXTNAME": "COMPRESSED_IMAGE", **own})
    path = write(tmp_path / name, packed, primary=primary)
    assert one(path).reason == "image_role"
    plain = write(tmp_path / "b.fits.fz", fits.CompImageHDU(SCIENCE, compression_type="GZIP_1"))
    assert one(plain).statements["hdu"].endswith("(the only image)")


def test_two_images_are_not_guessed_at(tmp_path):
    both = image(SCIENCE, "SCI"), image(WEIGHT, "SCI", EXTVER=2)
    path = write(tmp_path / "a.fits", *both)
    found = one(path)
    assert found.reason == "image_ambiguous"
    assert "hdu: each" in found.detail
    assert one(path, hdu="SCI").reason == "image_ambiguous"
    np.testing.assert_array_equal(one(path, hdu="SCI,2").image[0], WEIGHT)
    np.testing.assert_array_equal(one(path, hdu=1).image[0], SCIENCE)
    first, second = read(path, hdu="each")
    assert (first.object_id, second.object_id) == ("a/1", "a/2")
    np.testing.assert_array_equal(second.image[0], WEIGHT)
    both[1].header["BUNIT"] = "flubber"
    bad = read(write(tmp_path / "a.fits", *both), hdu="each", unit="nJy")[1]
    assert (bad.reason, bad.source, bad.object_id) == ("unit_unknown", f"{path}#2", "a/2")


@pytest.mark.parametrize(
    "name", ["noise_map.fits", "psf.fits", "coadd-r-weight.fits", "x.MASK.fit"]
)
def test_a_file_named_for_a_weight_map_is_none(tmp_path, name):
    path = tmp_path / name
    fits.PrimaryHDU(SCIENCE).writeto(path)
    assert one(path).reason == "image_role"
    np.testing.assert_array_equal(one(path, hdu=0).image[0], SCIENCE)


def test_files_to_take_from_a_folder(tmp_path):
    reader = make_reader("image_fits", {"bands": ["r"], "files": ["data.fits", "*_SCI.fits*"]})
    taken = [name for name in ("data.fits", "psf.fits", "X_sci.FITS.fz") if reader.claims(name)]
    assert taken == ["data.fits", "X_sci.FITS.fz"]
    plain = make_reader("image_fits", {"bands": ["r"]})
    assert all(map(plain.claims, ("A.FITS", "a.fits.fz", "b.fit.gz", "c.fts", "d.fits.bz2")))


# which band
def cube(path: Path, planes: int = 3, **header) -> Path:
    fits.PrimaryHDU(
        np.stack([np.full((16, 16), n, "f4") + SCIENCE for n in range(planes)]),
        fits.Header(header),
    ).writeto(path, overwrite=True)
    return path


@pytest.mark.parametrize(
    ("header", "order"),
    [
        ({"BANDS": "grz"}, [0, 1, 2]), ({"BANDS": "zrg"}, [2, 1, 0]),
        ({"BANDS": "z, g, r"}, [1, 2, 0]), ({"FILTERS": "z,r,g"}, [2, 1, 0]),
        ({"FILTER": "zrg"}, [2, 1, 0]), ({"BAND": "z r g"}, [2, 1, 0]),
        ({"PLANE1": "z", "PLANE2": "r", "PLANE3": "g"}, [2, 1, 0]),
        ({"BAND0": "r", "BAND1": "z", "BAND2": "g"}, [2, 0, 1]),
        ({"FILTER1": "z DECam SDSS", "FILTER2": "r DECam", "FILTER3": "g DECam"}, [2, 1, 0]),
        ({"BANDS": "HSC-Z HSC-R HSC-G"}, [2, 1, 0]), ({}, [0, 1, 2]),
    ],
)  # fmt: skip
def test_planes_are_put_into_the_cards_order(tmp_path, header, order):
    found = one(cube(tmp_path / "a.fits", **header), bands=["g", "r", "z"])
    means = [round(float(np.mean(plane - SCIENCE))) for plane in found.image]
    assert means == order
    assert ("card" in found.statements["bands"]) == (not header)


@pytest.mark.parametrize(
    "header",
    [
        {"BANDS": "giz"}, {"FILTER": "g,r,i"}, {"BANDS": "gr"}, {"BANDS": "grg"},
        {"BANDS": "grz", "BAND0": "z", "BAND1": "r", "BAND2": "g"}, {"CTYPE3": "FREQ"},
        {"CTYPE3": "WAVE-LOG"},
    ],
)  # fmt: skip
def test_other_bands_are_refused(tmp_path, header):
    path = cube(tmp_path / "a.fits", **header)
    assert one(path, bands=["g", "r", "z"]).reason == "bands_wrong"


def test_bands_are_picked_from_more(tmp_path):
    found = one(cube(tmp_path / "a.fits", 5, BANDS="ugriz"), bands=["g", "r", "z"])
    assert [round(float(np.mean(p - SCIENCE))) for p in found.image] == [1, 2, 4]


def test_filter_of_a_plane(tmp_path):
    path = write(tmp_path / "a.fits", image(name="SCI", FILTER="i DECam SDSS c0003"))
    assert one(path).reason == "bands_wrong"
    assert one(path, bands=["light"]).statements["bands"] == "i DECam SDSS c0003 (FILTER)"
    assert one(path, bands=["i"]).bands == ("i",)
    wheels = write(tmp_path / "b.fits", image(), primary={"FILTER1": "CLEAR1L", "FILTER2": "F814W"})
    assert one(wheels, bands=["F814W"]).bands == ("F814W",)
    assert one(wheels, bands=["F606W"]).reason == "bands_wrong"
    two = write(tmp_path / "c.fits", image(name="A", FILTER="g"), image(name="B", FILTER="r"))
    assert one(two, bands=["r", "g"], hdus={"r": "A", "g": "B"}).reason == "bands_wrong"
    assert one(two, bands=["r", "g"], hdus={"r": "B", "g": "A"}).bands == ("r", "g")


# in what unit
@pytest.mark.parametrize(
    ("stated", "wanted", "factor"),
    [
        ("nJy", "nJy", 1), ("uJy", "nJy", 1e3), ("nanomaggies", "nanomaggy", 1),
        ("electrons/s", "electron/s", 1), ("ELECTRONS/S", "electron/s", 1), ("counts", "count", 1),
        ("1e-3 Jy", "Jy", 1e-3),
    ],
)  # fmt: skip
def test_unit_is_converted(tmp_path, stated, wanted, factor):
    path = write(tmp_path / "a.fits", image(BUNIT=stated))
    np.testing.assert_allclose(one(path, unit=wanted).image[0], SCIENCE * factor, rtol=1e-6)
    np.testing.assert_array_equal(one(path).image[0], SCIENCE)
    assert one(path).statements["unit"] == f"{stated} (BUNIT)"


def test_units_that_do_not_fit(tmp_path):
    path = write(tmp_path / "a.fits", image(BUNIT="adu"))
    assert one(path, unit="nJy").reason == "unit_wrong"
    odd = write(tmp_path / "b.fits", image(BUNIT="flubber"))
    assert one(odd, unit="nJy").reason == "unit_unknown"
    silent = write(tmp_path / "c.fits", image())
    assert one(silent).statements["unit"] == "unknown"
    two = write(tmp_path / "d.fits", image(name="A", BUNIT="nJy"), image(name="B", BUNIT="uJy"))
    options = {"bands": ["g", "r"], "hdus": {"g": "A", "r": "B"}}
    assert one(two, **options).reason == "units_differ"
    np.testing.assert_allclose(one(two, **options, unit="nJy").image[1], 1e3 * SCIENCE, rtol=1e-6)


def test_zero_point(tmp_path):
    path = write(tmp_path / "a.fits", image(), primary={"MAGZERO": 30.0})
    np.testing.assert_allclose(one(path, zero_point=27.5).image[0], SCIENCE / 10, rtol=1e-6)
    assert one(path).statements["zero_point"] == "30 mag (MAGZERO)"
    assert one(write(tmp_path / "b.fits", image()), zero_point=25).reason == "zero_point_missing"
    two = write(tmp_path / "c.fits", image(MAGZERO=30.0, PHOTZP=25.0))
    assert one(two).reason == "zero_point_wrong"


def test_fluxes_that_float32_cannot_hold(tmp_path):
    path = write(tmp_path / "a.fits", image(SCIENCE.astype("f8") * 1e-40))
    assert one(path).reason == "image_range"


# where on the sky
def sky(**keywords) -> dict:
    return {"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRVAL1": 30.0, "CRVAL2": -40.0,
            "CRPIX1": 8.5, "CRPIX2": 8.5, **keywords}  # fmt: skip


@pytest.mark.parametrize(
    ("keywords", "scale"),
    [
        ({"CDELT1": -1e-4, "CDELT2": 1e-4}, 0.36),
        ({"CDELT1": -0.36, "CDELT2": 0.36, "CUNIT1": "arcsec", "CUNIT2": "arcsec"}, 0.36),
        ({"CD1_1": 0.0, "CD1_2": 1e-4, "CD2_1": 1e-4, "CD2_2": 0.0}, 0.36),
        ({"CDELT1": -2e-4, "CDELT2": 2e-4, "PC1_1": 0.5, "PC2_2": 0.5}, 0.36),
        ({"CDELT1": -1e-4, "CDELT2": 1e-4, "CROTA2": 40.0}, 0.36),
        ({"CDELT1": -1e-4, "CDELT2": 1e-4, "CTYPE1": "GLON-TAN", "CTYPE2": "GLAT-TAN"}, 0.36),
    ],
)
def test_pixel_scale_in_any_unit(tmp_path, keywords, scale):
    header = sky(**keywords)
    if "CUNIT1" in keywords:
        header["CRVAL1"], header["CRVAL2"] = 30.0 * 3600, -40.0 * 3600
    found = one(write(tmp_path / "a.fits", image(**header)))
    assert found.pixel_scale_arcsec == pytest.approx(scale, rel=1e-5)
    assert "WCS" in found.statements["pixel_scale_arcsec"]


def test_orientation_is_stated(tmp_path):
    up = one(write(tmp_path / "a.fits", image(**sky(CDELT1=-1e-4, CDELT2=1e-4))))
    assert up.statements["orientation"].startswith(
        ("y at position angle 0.0", "y at position angle 360")
    )
    assert "mirrored" not in up.statements["orientation"]
    flip = one(write(tmp_path / "a.fits", image(**sky(CDELT1=1e-4, CDELT2=1e-4))))
    assert "mirrored" in flip.statements["orientation"]


def test_a_wcs_that_cannot_be_followed(tmp_path):
    oblong = write(tmp_path / "a.fits", image(**sky(CDELT1=-1e-4, CDELT2=2e-4)))
    assert one(oblong).reason == "pixels_not_square"
    linear = write(
        tmp_path / "b.fits", image(CTYPE1="LINEAR", CTYPE2="LINEAR", CD1_1=1.0, CD2_2=1.0)
    )
    assert np.isnan(one(linear).pixel_scale_arcsec)
    singular = write(
        tmp_path / "c.fits", image(**sky(CD1_1=1e-4, CD1_2=1e-4, CD2_1=1e-4, CD2_2=1e-4))
    )
    assert one(singular).reason == "wcs_invalid"
    square = write(tmp_path / "d.fits", image(**sky(CDELT1=-1e-4, CDELT2=1e-4)))
    assert one(square, pixel_scale_arcsec=0.2).reason == "pixel_scale_wrong"
    assert one(square, pixel_scale_arcsec=0.361).pixel_scale_arcsec == pytest.approx(0.36, rel=1e-5)


def test_the_primary_headers_wcs_is_not_the_extensions(tmp_path):
    path = write(tmp_path / "a.fits", image(), primary=sky(CDELT1=-1e-4, CDELT2=1e-4))
    assert np.isnan(one(path).pixel_scale_arcsec)


def test_positions_of_another_equinox(tmp_path):
    fields = {"ra": "RA", "dec": "DEC"}
    old = write(tmp_path / "a.fits", image(RA=30.0, DEC=-40.0, RADESYS="FK4", EQUINOX=1950.0))
    found = one(old, fields=fields)
    truth = SkyCoord(30 * u.deg, -40 * u.deg, frame=FK4(equinox="B1950")).icrs
    assert (found.ra, found.dec) == pytest.approx((truth.ra.deg, truth.dec.deg), abs=1e-9)
    strange = write(tmp_path / "b.fits", image(RA=30.0, DEC=-40.0, RADESYS="MARS"))
    assert one(strange, fields=fields).reason == "frame_unknown"
    hours = write(tmp_path / "c.fits", image(RA="02:00:00", DEC="-40:30:00"))
    assert one(hours, fields=fields).ra == pytest.approx(30.0)
    assert one(hours, fields=fields).dec == pytest.approx(-40.5)
    text = write(tmp_path / "d.fits", image(RA="north", DEC=-40.0))
    assert one(text, fields=fields).reason == "field_invalid"


def test_sip_and_lookup_tables_change_the_scale(tmp_path):
    header = fits.Header(sky(CTYPE1="RA---TAN-SIP", CTYPE2="DEC--TAN-SIP", CD1_1=-1e-4, CD1_2=0.0,
                             CD2_1=0.0, CD2_2=1e-4, A_ORDER=2, B_ORDER=2, A_1_1=0.002,
                             B_1_1=0.002, CRPIX1=-10.0, CRPIX2=-10.0))  # fmt: skip
    path = write(tmp_path / "a.fits", fits.ImageHDU(SCIENCE, header))
    wcs = WCS(header)
    sides = wcs.pixel_to_world([7.0, 8.0, 7.0], [7.5, 7.5, 8.5])
    found = one(path)
    assert isinstance(found, InvalidRecord) is False, found
    assert found.pixel_scale_arcsec == pytest.approx(sides[0].separation(sides[1]).arcsec, rel=0.02)
    assert abs(found.pixel_scale_arcsec / 0.36 - 1) > 0.02
