"""Cutouts from frames: a small sky of two frames, a catalogue, a second catalogue of votes."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from astropy.io import fits
from astropy.wcs import WCS
from pyarrow import fs

from skyray.readers.base import SurveyFile, make_reader
from skyray.records import Cutout, InvalidRecord, check_cutout

ARCSEC = 1 / 3600
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
