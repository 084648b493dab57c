"""Image readers: tables, folders, FITS and numpy files; real data; limits; damage with reasons."""

from __future__ import annotations

import io
import pickle
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tifffile
from astropy.io import fits
from astropy.wcs import WCS
from PIL import Image
from pyarrow import fs

from skyray.config import ConfigError
from skyray.readers.base import SurveyFile, make_reader
from skyray.records import Cutout, InvalidRecord, check_cutout

RNG = np.random.default_rng(8)
PIXELS = RNG.integers(0, 255, (20, 24, 3), dtype=np.uint8)


def encoded(pixels: np.ndarray = PIXELS, kind: str = "PNG", **options) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind, **options)
    return stream.getvalue()


def read(name: str, path: Path, options: dict | None = None) -> list:
    reader = pickle.loads(pickle.dumps(make_reader(name, options)))
    assert reader.claims(str(path))
    file = SurveyFile(fs.LocalFileSystem(), str(path))
    return [record for unit in reader.units(file) for record in reader.read(file, unit)]


def reasons(records: list) -> list[str]:
    return [r.reason if isinstance(r, InvalidRecord) else "" for r in records]


# tables
OPTIONS = {
    "image": "img",
    "fields": {"object_id": "objid", "ra": "ra", "pixel_scale_arcsec": "scale"},
    "extra": ["label"],
    "survey": "sdss",
}


def table(path: Path, images: list, ids: list | None = None) -> Path:
    rows = len(images)
    pq.write_table(
        pa.table(
            {"objid": pa.array(ids or list(range(rows)), pa.int64()),
             "ra": [10.0 + n for n in range(rows)], "scale": [0.396] * rows,
             "label": list(range(rows)), "img": pa.array(images, pa.binary())}
        ),
        path, row_group_size=2,
    )  # fmt: skip
    return path


def test_table_of_encoded_images(tmp_path):
    path = table(tmp_path / "a.parquet", [encoded(), encoded(kind="JPEG"), encoded()])
    records = read("image_table", path, OPTIONS)
    np.testing.assert_array_equal(records[0].image, PIXELS.transpose(2, 0, 1))
    assert records[0].image.dtype == np.float32
    decoded = np.asarray(Image.open(io.BytesIO(encoded(kind="JPEG"))), np.float32)
    np.testing.assert_array_equal(records[1].image, decoded.transpose(2, 0, 1))
    assert [r.object_id for r in records] == ["0", "1", "2"]
    assert records[2].source.endswith("a.parquet#2")
    assert (records[2].ra, records[2].pixel_scale_arcsec, records[2].survey) == (12, 0.396, "sdss")
    assert records[1].extra == {"label": 1}
    for record in records:
        check_cutout(record, ("red", "green", "blue"))


def test_every_kind_of_damage_has_its_reason(tmp_path):
    whole = encoded(kind="JPEG")
    images = [
        b"", None, b"GIF89a" + bytes(50), b"no image at all", whole[: len(whole) // 2],
        encoded()[:60], encoded(PIXELS[..., 0]), encoded(RNG.integers(0, 255, (90, 90, 3), "u1")),
    ]  # fmt: skip
    path = table(tmp_path / "a.parquet", images, ids=[7, 8, 9, 10, 11, 12, 13, 14])
    records = read("image_table", path, {**OPTIONS, "max_pixels": 2000})
    assert reasons(records) == [
        "image_empty", "image_empty", "image_format", "image_format", "image_damaged",
        "image_damaged", "image_mode", "image_too_large",
    ]  # fmt: skip
    assert records[4].object_id == "11"
    assert records[4].source.endswith("a.parquet#4")


def test_decompression_bomb_is_refused_before_it_is_unpacked(tmp_path):
    bomb = bytearray(encoded())
    header = bomb.index(b"IHDR") + 4
    bomb[header : header + 8] = (60_000).to_bytes(4, "big") * 2  # 3.6 Gpixel in the header
    crc = zipfile.crc32(bytes(bomb[header - 4 : header + 13]))
    bomb[header + 13 : header + 17] = crc.to_bytes(4, "big")
    path = table(tmp_path / "a.parquet", [bytes(bomb)])
    assert reasons(read("image_table", path, OPTIONS)) == ["image_too_large"]


def test_limits_come_before_memory(tmp_path):
    """Large pictures in little: a PNG of zeros, and a tile larger than its picture."""
    large = io.BytesIO()
    Image.new("L", (4096, 4096)).save(large, "PNG")
    tiles = io.BytesIO()
    tifffile.imwrite(tiles, np.zeros((10, 10), "u1"), tile=(4096, 4096), compression="zlib")
    assert len(large.getvalue()) < 50_000
    assert len(tiles.getvalue()) < 50_000
    path = table(tmp_path / "a.parquet", [large.getvalue(), tiles.getvalue()])
    tracemalloc.start()
    records = read("image_table", path, {**OPTIONS, "bands": ["light"], "max_pixels": 1 << 20})
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert reasons(records) == ["image_too_large"] * 2
    assert peak < 8 << 20
    assert (
        reasons(read("image_table", path, {**OPTIONS, "bands": ["light"]}))[0] == "image_too_large"
    )


def test_missing_column_refuses_the_file(tmp_path):
    path = table(tmp_path / "a.parquet", [encoded()])
    with pytest.raises(InvalidRecord, match="expected a column 'votes'"):
        read("image_table", path, {**OPTIONS, "extra": ["votes"]})


def test_null_id_is_one_bad_row(tmp_path):
    path = table(tmp_path / "a.parquet", [encoded()] * 2, ids=[5, None])
    records = read("image_table", path, OPTIONS)
    assert reasons(records) == ["", "field_invalid"]


def test_options_are_checked():
    with pytest.raises(ConfigError, match="unknown \\['spectype'\\]"):
        make_reader("image_table", {"fields": {"spectype": "x"}})
    with pytest.raises(ConfigError, match="need `table`"):
        make_reader("image_files", {"extra": ["label"]})
    with pytest.raises(ConfigError, match="expected one a band"):
        make_reader("image_fits", {"bands": ["g", "r"], "hdus": {"g": 1}})


def test_real_galaxies(survey_data):
    path = survey_data / "galaxies_gz1" / "galaxies_69px.parquet"
    options = {"image": "image_jpeg", "fields": {"object_id": "objid"}, "extra": ["label_name"]}
    records = read("image_table", path, options)
    assert len(records) == 2346
    assert {r.image.shape for r in records} == {(3, 69, 69)}
    labels = [r.extra["label_name"] for r in records]
    assert labels.count("elliptical") == 1000
    assert labels.count("edge_on") == 665


# folders
def test_folder_of_images_with_labels(tmp_path):
    folder = tmp_path / "spiral"
    folder.mkdir()
    for name in ("a", "b"):
        (folder / f"{name}.png").write_bytes(encoded())
    (tmp_path / "labels.csv").write_text("file,ra,kind\na.jpg,12.5,spiral\n")
    options = {
        "table": "../labels.csv", "table_key": "file", "fields": {"ra": "ra"}, "extra": ["kind"],
        "pixel_scale_arcsec": 0.4,
    }  # fmt: skip
    (found,) = read("image_files", folder / "a.png", options)
    assert (found.object_id, found.ra, found.pixel_scale_arcsec) == ("a", 12.5, 0.4)
    assert found.extra == {"kind": "spiral", "folder": "spiral", "folders": "spiral"}
    assert reasons(read("image_files", folder / "b.png", options)) == ["label_row_missing"]
    (tmp_path / "labels.csv").unlink()
    assert reasons(read("image_files", folder / "a.png", options)) == ["label_table_missing"]


def test_units_that_a_table_of_labels_states_are_honoured(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded())
    about = {
        "ra": ("rad", 0.25),
        "scale": ("arcmin/pix", 0.0066),
        "z": ("", 0.1),
        "v": ("km/s", 9e4),
    }
    schema = pa.schema([pa.field("name", pa.string()), *(
        pa.field(name, pa.float64(), metadata={"unit": unit}) for name, (unit, _) in about.items()
    )])  # fmt: skip
    row = {"name": ["a"], **{name: [value] for name, (_, value) in about.items()}}
    pq.write_table(pa.table(row, schema), tmp_path / "labels.parquet")
    options = {"table": "labels.parquet",
               "fields": {"ra": "ra", "pixel_scale_arcsec": "scale", "redshift": "z"}}  # fmt: skip
    (found,) = read("image_files", tmp_path / "a.png", options)
    assert found.ra == pytest.approx(np.degrees(0.25), rel=1e-12)
    assert found.pixel_scale_arcsec == pytest.approx(0.396, rel=1e-12)
    for field in ("redshift", "pixel_scale_arcsec"):
        wrong = {**options, "fields": {field: "v"}}
        assert reasons(read("image_files", tmp_path / "a.png", wrong)) == ["unit_unknown"]


def test_numbers_that_only_python_reads_are_none(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded())
    (tmp_path / "labels.csv").write_text("name,z\na,1_0\n")
    options = {"table": "labels.csv", "fields": {"redshift": "z"}}
    assert reasons(read("image_files", tmp_path / "a.png", options)) == ["field_invalid"]


def test_folder_names_are_labels_without_a_table(tmp_path):
    folder = tmp_path / "elliptical"
    folder.mkdir()
    (folder / "x.jpg").write_bytes(encoded(PIXELS[..., 0], "JPEG"))
    (found,) = read("image_files", folder / "x.jpg", {"bands": ["grey"]})
    assert found.extra == {"folder": "elliptical", "folders": "elliptical"}
    assert found.image.shape == (1, 20, 24)


def test_file_larger_than_the_limit_is_not_read(tmp_path):
    path = tmp_path / "x.png"
    path.write_bytes(bytes(2_000_000))
    with pytest.raises(InvalidRecord, match="file_too_large"):
        read("image_files", path, {"max_pixels": 100})


# numpy files
def test_npy_in_class_folders(tmp_path):
    folder = tmp_path / "axion"
    folder.mkdir()
    image = RNG.random((64, 64))
    np.save(folder / "axion_sim_1.npy", image)
    (found,) = read("image_arrays", folder / "axion_sim_1.npy", {"bands": ["F"], "survey": "mock"})
    assert found.object_id == "axion_sim_1"
    assert found.extra == {"folder": "axion", "folders": "axion"}
    np.testing.assert_allclose(found.image, image[None].astype(np.float32))


def test_npy_damage(tmp_path):
    (tmp_path / "f").mkdir()

    def one(content: bytes, bands=("F",)) -> list[str]:
        path = tmp_path / "f" / "x.npy"
        path.write_bytes(content)
        return reasons(read("image_arrays", path, {"bands": list(bands), "max_pixels": 5000}))

    def saved(array: np.ndarray) -> bytes:
        stream = io.BytesIO()
        np.save(stream, array, allow_pickle=True)
        return stream.getvalue()

    good = saved(RNG.random((20, 20)))
    header = good[:10] + good[10:128].replace(b"(20, 20)", b"(9999999999, 9999999999)"[:24])
    assert one(b"") == ["file_empty"]
    assert one(b"not numpy at all") == ["npy_invalid"]
    assert one(good[:400]) == ["npy_invalid"]
    assert one(header[:128] + good[128:]) == ["image_too_large"]
    assert one(saved(np.array([RNG.random((4, 4)), RNG.random(3)], dtype=object))) == ["npy_object"]
    assert one(saved(np.array([["a", "b"]]))) == ["image_type"]
    assert one(saved(RNG.random((5, 20, 20)))) == ["image_shape"]
    assert one(saved(RNG.random((20, 20, 3))), "grz") == [""]


def test_npz_of_real_lenses(survey_data):
    path = survey_data / "lenses_deeplense" / "examples.npz"
    records = read("image_arrays", path, {"bands": ["F160W"]})
    assert sorted(r.extra["name"] for r in records) == ["axion", "cdm", "nosub"]
    for record in records:
        assert record.image.shape == (1, 64, 64)
        check_cutout(record, ("F160W",))


# FITS
def fits_file(path: Path, hdus: list) -> Path:
    fits.HDUList([fits.PrimaryHDU(), *hdus]).writeto(path)
    return path


def wcs_header() -> fits.Header:
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    angle = np.radians(30)
    scale = 0.263 / 3600
    wcs.wcs.cdelt = [-scale, scale]
    wcs.wcs.pc = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return wcs.to_header()


def test_fits_cube_with_keywords_and_wcs(tmp_path):
    cube = RNG.normal(size=(3, 30, 30)).astype(np.float32)
    header = fits.Header(
        {"OBJID": "G1", "RA": 33.0, "MAG": 17.5, "CD1_1": -7.3e-5, "CD1_2": 0.0, "CD2_2": 7.3e-5,
         "CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN"}
    )  # fmt: skip
    path = fits_file(tmp_path / "a.fits", [fits.ImageHDU(cube, header)])
    (found,) = read(
        "image_fits", path,
        {"bands": ["g", "r", "i"], "fields": {"object_id": "OBJID", "ra": "RA"}, "extra": ["MAG"]},
    )  # fmt: skip
    np.testing.assert_array_equal(found.image, cube)
    assert (found.object_id, found.ra, found.extra["MAG"]) == ("G1", 33.0, 17.5)
    assert found.pixel_scale_arcsec == pytest.approx(7.3e-5 * 3600)


def test_fits_hdu_a_band(tmp_path):
    planes = {name: RNG.normal(size=(30, 30)).astype(np.float32) for name in "gri"}
    hdus = [fits.ImageHDU(p, wcs_header(), name=n.upper()) for n, p in planes.items()]
    path = fits_file(tmp_path / "a.fits", hdus[::-1])
    options = {"bands": ["g", "r", "i"], "hdus": {"g": "G", "r": "R", "i": "I"}}
    (found,) = read("image_fits", path, options)
    np.testing.assert_array_equal(found.image, np.stack(list(planes.values())))
    assert found.pixel_scale_arcsec == pytest.approx(0.263, rel=1e-6)
    assert found.object_id == "a"


def test_fits_damage(tmp_path):
    image = RNG.normal(size=(30, 30)).astype(np.float32)
    one = fits_file(tmp_path / "one.fits", [fits.ImageHDU(image, name="G")])
    two = fits_file(
        tmp_path / "two.fits",
        [fits.ImageHDU(image, name="G"), fits.ImageHDU(image[:20], name="R")],
    )
    cut = tmp_path / "cut.fits"
    cut.write_bytes(one.read_bytes()[:6000])
    both = {"bands": ["g", "r"], "hdus": {"g": "G", "r": "R"}}
    assert reasons(read("image_fits", one, both)) == ["hdu_missing"]
    assert reasons(read("image_fits", two, both)) == ["image_shape"]
    assert reasons(read("image_fits", cut, {"bands": ["g"]})) == ["data_truncated"]
    assert reasons(read("image_fits", one, {"bands": ["g"], "max_pixels": 100})) == [
        "image_too_large"
    ]


def test_real_hst_stamp_agrees_with_astropy(survey_data):
    path = survey_data / "hst_galaxy_stamps" / "acs_I_unrot_sci_20_cf.fits"
    (found,) = read("image_fits", path, {"bands": ["F814W"], "survey": "hst"})
    assert isinstance(found, Cutout)
    np.testing.assert_allclose(found.image[0], fits.getdata(path))
    check_cutout(found, ("F814W",))


def test_dots_in_names_stay(tmp_path):
    (tmp_path / "J1234.5+67.8.png").write_bytes(encoded())
    (found,) = read("image_files", tmp_path / "J1234.5+67.8.png")
    assert found.object_id == "J1234.5+67.8"


def test_names_in_float_columns_are_refused(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"id": [1.2376e18, 7.0], "image": [encoded(), encoded()]}), path)
    records = read("image_table", path, {"fields": {"object_id": "id"}})
    assert reasons(records) == ["field_invalid", ""]
    assert records[1].object_id == "7"


def test_statements_of_pictures(tmp_path):
    image = Image.fromarray(PIXELS)
    image.getexif()[0x0112] = 6
    image.save(tmp_path / "a.jpg", exif=image.getexif())
    (found,) = read("image_files", tmp_path / "a.jpg")
    assert found.image.shape == (3, 24, 20)
    assert found.statements == {"samples": "uint8 (JPEG)", "orientation": "6 (EXIF), followed"}


def test_files_of_equal_names_in_several_folders_are_several_observations(tmp_path):
    images = np.random.default_rng(3).integers(0, 255, (3, 16, 16, 3), dtype=np.uint8)
    places = [tmp_path / "a" / "1.png", tmp_path / "b" / "1.png", tmp_path / "c" / "1.png"]
    for place, pixels in zip(places, (images[0], images[1], images[0]), strict=True):
        place.parent.mkdir()
        Image.fromarray(pixels).save(place)
    records = [read("image_files", place)[0] for place in places]
    assert {record.object_id for record in records} == {"1"}
    first, second, copy = (record.observation_id for record in records)
    assert first != second
    assert first == copy
