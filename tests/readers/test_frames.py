"""Cutouts from frames: a small sky of two frames, a catalogue, a second catalogue of votes."""

import bz2
import gzip
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy import units as u
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.wcs import WCS
from pyarrow import fs

from skyray.readers import frame_files
from skyray.readers.base import SurveyFile, make_reader
from skyray.records import Cutout, InvalidRecord, check_cutout

ARCSEC = 1 / 3600
RNG = np.random.default_rng(3)
OPTIONS = {
    "frames": "frame-{band}-{field:04d}.fits", "bands": ["g", "r"], "ra": "RA_deg",
    "dec": "DEC_deg", "size": {"survey": "sdss"}, "fields": {"object_id": "OBJID"},
    "extra": ["P_CS"], "survey": "sdss",
    "match": {"table": "votes.csv", "ra": "RA", "dec": "DEC", "columns": ["P_CS"]},
}  # fmt: skip


@pytest.fixture
def sky(tmp_path) -> Path:
    wcs = WCS(naxis=2)
    wcs.wcs.crpix, wcs.wcs.crval = [101.0, 101.0], [30.0, 0.0]
    wcs.wcs.cdelt = [-0.396 * ARCSEC, 0.396 * ARCSEC]
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    rng = np.random.default_rng(0)
    for band in "gr":
        image = rng.normal(size=(200, 200)).astype(np.float32)
        fits.PrimaryHDU(image, wcs.to_header()).writeto(tmp_path / f"frame-{band}-0007.fits")
    ra = 30.0 + np.array([0, 0.4, 20, 500, 5, np.nan, -20]) * ARCSEC
    pd.DataFrame(
        {"OBJID": np.arange(7), "RA_deg": ra, "DEC_deg": 0.0, "petroRad_r": 5.0,
         "field": [7, 7, 7, 7, 8, 7, 7]}
    ).to_csv(tmp_path / "objects.csv", index=False)  # fmt: skip
    votes = 30.0 + np.array([0.3, 20, 500, 5]) * ARCSEC
    pd.DataFrame({"RA": votes, "DEC": 0.0, "P_CS": [0.9, 0.1, 0.5, 0.5]}).to_csv(
        tmp_path / "votes.csv", index=False
    )
    return tmp_path


def read(folder: Path, options: dict) -> list[Cutout | InvalidRecord]:
    reader = make_reader("frame_cutouts", options)
    return list(reader.read(SurveyFile(fs.LocalFileSystem(), str(folder / "objects.csv"))))


def test_every_row_is_a_cutout_or_has_a_reason(sky):
    records = read(sky, OPTIONS)
    found = [r.reason if isinstance(r, InvalidRecord) else "" for r in records]
    assert found == [
        "", "duplicate_on_sky", "", "outside_frame", "frame_missing", "position_missing",
        "no_counterpart",
    ]  # fmt: skip
    assert records[3].object_id == "3"
    assert records[3].source.endswith("objects.csv#3")


def test_cutout_is_the_frames_pixels_with_the_votes(sky):
    first = read(sky, OPTIONS)[0]
    side = round(2 * 2 * 5.0 / 0.396)
    low = 100 - side // 2
    for plane, band in zip(first.image, "gr", strict=True):
        frame = fits.getdata(sky / f"frame-{band}-0007.fits")
        at = slice(low, low + side)
        assert plane.shape == (side, side)
        assert np.abs(plane - frame[at, at]).max() == 0
    assert first.extra == {"P_CS": 0.9}
    assert (first.object_id, first.ra, first.survey) == ("0", 30.0, "sdss")
    assert first.pixel_scale_arcsec == pytest.approx(0.396, rel=1e-6)
    check_cutout(first, ("g", "r"))


def test_one_size_for_all_and_duplicates_kept(sky):
    options = {**OPTIONS, "match": None, "extra": [], "duplicates_arcsec": None}
    records = read(sky, {**options, "size": {"half_width_arcsec": 7.92}})
    assert records[1].image.shape == (2, 40, 40)


def test_damaged_frame_and_missing_column(sky):
    (sky / "frame-g-0007.fits").write_bytes(b"not a frame")
    assert read(sky, OPTIONS)[0].reason == "not_fits"
    with pytest.raises(InvalidRecord, match="expected columns \\['decl'\\]"):
        read(sky, {**OPTIONS, "dec": "decl"})


ALL = {**OPTIONS, "match": None, "extra": [], "duplicates_arcsec": None}


def reasons(records) -> list[str]:
    return [r.reason if isinstance(r, InvalidRecord) else "" for r in records]


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".fz"])
def test_frames_as_archives_hand_them_out(sky, suffix):
    plain = read(sky, ALL)[0].image
    for path in sky.glob("frame-*.fits"):
        packed = path.with_name(path.name + suffix)
        if suffix == ".fz":
            with fits.open(path) as hdus:
                packs = fits.CompImageHDU(hdus[0].data, hdus[0].header, quantize_level=0,
                                          compression_type="GZIP_1", name="SCI")  # fmt: skip
                weight = fits.ImageHDU(np.ones((200, 200), "f4"), name="WGT")
                fits.HDUList([fits.PrimaryHDU(), packs, weight]).writeto(packed)
        else:
            packed.write_bytes({".gz": gzip, ".bz2": bz2}[suffix].compress(path.read_bytes()))
        path.unlink()
    found = read(sky, ALL)[0]
    np.testing.assert_array_equal(found.image, plain)
    if suffix == ".fz":
        assert found.statements["hdu"] == "SCI (EXTNAME = SCI)"


def test_catalogue_in_other_coordinates(sky):
    truth = read(sky, ALL)[0]
    place = SkyCoord(truth.ra, truth.dec, unit="deg")
    for options, ra, dec in [
        ({"frame": "galactic"}, place.galactic.l.deg, place.galactic.b.deg),
        ({"frame": "fk4"}, place.fk4.ra.deg, place.fk4.dec.deg),
        ({"ra_unit": "rad", "dec_unit": "rad"}, place.ra.rad, place.dec.rad),
        ({"ra_unit": "hourangle"}, place.ra.to_string(u.hourangle, sep=":", precision=6),
         place.dec.to_string(sep=":", precision=6)),
    ]:  # fmt: skip
        table = pd.read_csv(sky / "objects.csv")[:1].astype({"RA_deg": object, "DEC_deg": object})
        table.loc[0, ["RA_deg", "DEC_deg"]] = [ra, dec]
        table.to_csv(sky / "objects.csv", index=False)
        (found,) = read(sky, {**ALL, **options})
        assert (found.ra, found.dec) == pytest.approx((truth.ra, truth.dec), abs=1e-7)
        np.testing.assert_array_equal(found.image, truth.image)


def test_bad_positions_are_of_their_row(sky):
    table = pd.read_csv(sky / "objects.csv").astype({"RA_deg": object, "DEC_deg": object})
    table.loc[1, "RA_deg"], table.loc[2, "DEC_deg"], table.loc[3, "RA_deg"] = "east", 95.0, 1e300
    table.to_csv(sky / "objects.csv", index=False)
    assert reasons(read(sky, ALL))[:4] == ["", *["position_invalid"] * 3]


def test_names_stay_exact(sky):
    number = 2**60 + 1
    (sky / "objects.csv").write_text(
        f"OBJID,RA_deg,DEC_deg,petroRad_r,field\n{number},30.0,0.0,5.0,7\n,30.0,0.0,5.0,7\n"
    )
    first, second = read(sky, ALL)
    assert first.object_id == str(number)
    assert second.reason == "field_invalid"


def test_edges_are_not_measured(sky):
    table = pd.read_csv(sky / "objects.csv")[:1]
    table["RA_deg"] = 30.0 + 98 * 0.396 * ARCSEC  # two pixels from the edge
    table.to_csv(sky / "objects.csv", index=False)
    (found,) = read(sky, ALL)
    empty = np.isnan(found.image[0]).all(axis=0)
    assert 0.3 < empty.mean() < 0.5
    assert np.isfinite(found.image[0][:, ~empty]).all()


def rewrite(path: Path, data=None, **keywords) -> None:
    with fits.open(path) as hdus:
        header, data = hdus[0].header, hdus[0].data if data is None else data
        header.update(keywords)
        fits.PrimaryHDU(data, header).writeto(path, overwrite=True)


@pytest.mark.parametrize(
    ("keywords", "reason"),
    [
        ({"CDELT1": -1e-4, "CDELT2": 1e-4}, "frames_differ"),
        ({"CDELT1": 1.1e-4}, "frames_differ"), ({"CROTA2": 5.0}, "frames_differ"),
        ({"BUNIT": "uJy"}, "frames_differ"), ({"FILTER": "z"}, "bands_wrong"),
        ({"CTYPE1": "LINEAR", "CTYPE2": "LINEAR"}, "frame_invalid"),
    ],
)  # fmt: skip
def test_frames_of_an_object_must_agree(sky, keywords, reason):
    rewrite(sky / "frame-r-0007.fits", **keywords)
    assert read(sky, ALL)[0].reason == reason


def test_blanks_and_units_of_frames(sky):
    data = RNG.integers(0, 100, (200, 200)).astype(np.int16)
    data[100, 100] = -1
    for band in "gr":
        rewrite(sky / f"frame-{band}-0007.fits", data, BLANK=-1, BUNIT="uJy", FILTER=f"SDSS {band}")
    found = read(sky, {**ALL, "unit": "nJy"})[0]
    middle = found.image.shape[1] // 2
    assert np.isnan(found.image[:, middle, middle]).all()
    assert np.isnan(found.image).sum() == 2
    assert np.nanmax(found.image) > 10_000
    assert found.statements["unit"] == "nJy (from uJy, BUNIT)"


def test_open_frames_are_bounded(sky, monkeypatch):
    monkeypatch.setattr(frame_files, "KEPT_FRAMES", 2)
    for field in range(8, 12):
        for band in "gr":
            frame = sky / f"frame-{band}-0007.fits"
            (sky / f"frame-{band}-{field:04d}.fits").write_bytes(frame.read_bytes())
    rows = "".join(f"{n},30.0,0.0,5.0,{n}\n" for n in (7, 8, 9, 10, 11, 7))
    (sky / "objects.csv").write_text("OBJID,RA_deg,DEC_deg,petroRad_r,field\n" + rows)
    reader = make_reader("frame_cutouts", ALL)
    records = list(reader.read(SurveyFile(fs.LocalFileSystem(), str(sky / "objects.csv"))))
    assert reasons(records) == [""] * 6
    assert len(reader._frames._kept) == 2


@pytest.mark.parametrize("form", ["stated", "card", "sexagesimal", "galactic"])
def test_votes_in_other_coordinates(sky, form):
    """Of the table to match with, as of the catalogue."""
    truth = reasons(read(sky, OPTIONS))
    votes = pd.read_csv(sky / "votes.csv")
    place = SkyCoord(votes["RA"], votes["DEC"], unit="deg")
    lon, lat = (place.galactic.l, place.galactic.b) if form == "galactic" else (place.ra, place.dec)
    columns, match = {"RA": lon.rad, "DEC": lat.rad}, {**OPTIONS["match"], "table": "v.parquet"}
    if form == "sexagesimal":
        columns = {"RA": lon.to_string(u.hourangle, sep=":", precision=6),
                   "DEC": lat.to_string(sep=":", precision=6)}  # fmt: skip
    if form == "card":
        match |= {"ra_unit": "rad", "dec_unit": "rad"}
    if form == "galactic":
        match |= {"frame": "galactic"}
    unit = {"unit": "rad"} if form in ("stated", "galactic") else None
    table = pa.table({**{k: pa.array(v) for k, v in columns.items()}, "P_CS": votes["P_CS"]})
    fields = [
        field.with_metadata(unit) if field.name != "P_CS" else field for field in table.schema
    ]
    pq.write_table(table.cast(pa.schema(fields)), sky / "v.parquet")
    assert reasons(read(sky, {**OPTIONS, "match": match})) == truth
    bad = table.slice(0, 1).set_column(1, "DEC", pa.array(["south"]))
    pq.write_table(bad, sky / "v.parquet")
    with pytest.raises(InvalidRecord, match=r"v\.parquet#0: position_invalid"):
        read(sky, {**OPTIONS, "match": match})


def test_units_of_sizes_and_frames_that_the_catalogue_states(sky):
    truth = read(sky, ALL)[0]
    table = pa.Table.from_pandas(pd.read_csv(sky / "objects.csv")[:1]).replace_schema_metadata()
    place = SkyCoord(truth.ra, truth.dec, unit="deg").galactic
    cells = {"RA_deg": (place.l.deg, {"ucd": "pos.galactic.lon"}),
             "DEC_deg": (place.b.deg, {"ucd": "pos.galactic.lat"}),
             "petroRad_r": (5 / 60, {"unit": "arcmin"})}  # fmt: skip
    for name, (value, about) in cells.items():
        field = pa.field(name, pa.float64(), metadata=about)
        table = table.set_column(table.schema.get_field_index(name), field, pa.array([value]))
    pq.write_table(table, sky / "objects.parquet")
    reader = make_reader("frame_cutouts", ALL)
    file = SurveyFile(fs.LocalFileSystem(), str(sky / "objects.parquet"))
    (found,) = reader.read(file)
    assert (found.ra, found.dec) == pytest.approx((truth.ra, truth.dec), abs=1e-9)
    np.testing.assert_array_equal(found.image, truth.image)
    with pytest.raises(InvalidRecord, match="frame_unknown"):
        list(make_reader("frame_cutouts", {**ALL, "frame": "fk5"}).read(file))


def test_units_of_positions_that_the_catalogue_states(sky):
    truth = read(sky, ALL)[0]
    table = pd.read_csv(sky / "objects.csv")[:1].astype({"RA_deg": object, "DEC_deg": object})
    place = SkyCoord(truth.ra, truth.dec, unit="deg")
    hms = place.ra.to_string(u.hourangle, sep=":", precision=6)
    table.loc[0, ["RA_deg", "DEC_deg"]] = [hms, place.dec.to_string(sep=":", precision=6)]
    table.to_csv(sky / "objects.csv", index=False)
    (found,) = read(sky, ALL)  # sexagesimal right ascensions are hours
    assert (found.ra, found.dec) == pytest.approx((truth.ra, truth.dec), abs=1e-7)
