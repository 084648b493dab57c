"""Positions of any frame in ICRS, against astropy; what a file states of them, reader by reader."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy.coordinates import (
    FK4,
    FK5,
    BarycentricMeanEcliptic,
    FK4NoETerms,
    Galactic,
    SkyCoord,
    Supergalactic,
)
from astropy.io import fits
from pyarrow import fs

from skyray.readers.base import SurveyFile, make_reader
from skyray.readers.column_facts import ColumnFacts
from skyray.readers.sky_frame import keyword_facts, sky_frame, stated_position, to_icrs
from skyray.readers.velocity_frame import barycentric_velocity
from skyray.records import InvalidRecord

TRUTH = SkyCoord(150.25, -30.5, unit="deg")
FRAMES = {
    "fk5 J2000": FK5(), "fk5 J1975": FK5(equinox="J1975"), "fk4 B1950": FK4(),
    "fk4 B1900": FK4(equinox="B1900"), "fk4-no-e B1950": FK4NoETerms(), "galactic": Galactic(),
    "supergalactic": Supergalactic(), "ecliptic J2000": BarycentricMeanEcliptic(),
    "ecliptic B1950": BarycentricMeanEcliptic(equinox="B1950"),
}  # fmt: skip


@pytest.mark.parametrize("name", FRAMES)
def test_frames_as_astropy_turns_them(name):
    rng = np.random.default_rng(0)
    lon, lat = rng.uniform(0, 360, 50), np.degrees(np.arcsin(rng.uniform(-1, 1, 50)))
    lat[:2], lon[2] = (-90, 90), np.nan
    ra, dec = to_icrs("x", name, lon, lat)
    expected = SkyCoord(lon, lat, unit="deg", frame=FRAMES[name]).icrs
    apart = SkyCoord(ra, dec, unit="deg").separation(expected).arcsec
    assert np.isnan(apart[2])
    assert np.nanmax(apart) < 1e-8
    one = to_icrs("x", name, float(lon[5]), float(lat[5]))
    assert one == pytest.approx((ra[5], dec[5]), abs=1e-12)
    with pytest.raises(InvalidRecord, match="position_invalid"):
        to_icrs("x", name, 10.0, 91.0)


@pytest.mark.parametrize(
    ("header", "frame"),
    [({}, ""), ({"RADESYS": "ICRS", "EQUINOX": "?"}, ""), ({"RADESYS": "FK5"}, "fk5 J2000"),
     ({"RADECSYS": "fk5 ", "EQUINOX": 1975.0}, "fk5 J1975"), ({"EQUINOX": 2000}, "fk5 J2000"),
     ({"EQUINOX": 1950.0}, "fk4 B1950"), ({"EQUINOX": "J2000.0"}, "fk5 J2000"),
     ({"EPOCH": 1950.0}, "fk4 B1950"), ({"RADESYS": "FK4", "EQUINOX": "B1900"}, "fk4 B1900"),
     ({"RADESYS": "FK4-NO-E"}, "fk4-no-e B1950"), ({"RADESYS": "GAPPT"}, None),
     ({"RADESYS": "MARS"}, None), ({"RADESYS": 5}, None), ({"EQUINOX": "new"}, None),
     ({"EQUINOX": True}, None), ({"EQUINOX": 20000.0}, None)],
)  # fmt: skip
def test_what_a_header_states(header, frame):
    facts = ColumnFacts("RA"), ColumnFacts("DEC")
    if frame is None:
        with pytest.raises(InvalidRecord, match="frame_unknown"):
            sky_frame("x", header, facts)
    else:
        assert sky_frame("x", header, facts) == frame


@pytest.mark.parametrize(
    ("names", "ucds", "frame"),
    [(("RA", "DEC"), ("pos.eq.ra;meta.main", "pos.eq.dec"), ""),
     (("glon", "glat"), ("", ""), "galactic"), (("ELON", "ELAT"), ("", ""), "ecliptic J2000"),
     (("l", "b"), ("pos.galactic.lon", "pos.galactic.lat"), "galactic"),
     (("lon", "lat"), ("pos.ecliptic.lon", "pos.ecliptic.lat"), "ecliptic J2000"),
     (("ra", "glat"), ("", ""), None)],
)  # fmt: skip
def test_what_columns_state(names, ucds, frame):
    facts = [ColumnFacts(name, ucd=ucd) for name, ucd in zip(names, ucds, strict=True)]
    if frame is None:
        with pytest.raises(InvalidRecord, match="frame_unknown"):
            sky_frame("x", None, facts)
    else:
        assert sky_frame("x", None, facts) == frame


def test_sexagesimal_right_ascensions_are_hours_and_galactic_longitudes_are_not():
    header = {"RA": "01 30 00", "DEC": "-00 30 00", "GLON": "120 30 00", "GLAT": "5 00 00"}
    ra, dec, frame = stated_position("a", header)
    assert (ra, dec) == pytest.approx((22.5, -0.5), abs=1e-9)
    assert frame == ""
    expected = SkyCoord(120.5, 5.0, unit="deg", frame="galactic").icrs
    ra, dec, frame = stated_position("a", header, ("GLON", "GLAT"))
    np.testing.assert_allclose((ra, dec), (expected.ra.deg, expected.dec.deg), atol=1e-8)
    assert frame == "galactic"


def test_a_step_of_the_sky_is_in_degrees_where_nothing_else_is_said():
    assert keyword_facts({}, "CDELT2").unit == "deg"
    assert keyword_facts({"CUNIT2": "arcsec"}, "cd2_2").unit == "arcsec"
    assert keyword_facts({}, "PIXSCALE").unit == ""


def test_a_reference_position_is_of_its_axes():
    place, names = TRUTH.galactic, ("CRVAL1", "CRVAL2")
    header = {"CRVAL1": place.l.arcsec, "CRVAL2": place.b.deg, "CUNIT1": "arcsec",
              "CTYPE1": "GLON-TAN", "CTYPE2": "GLAT-TAN"}  # fmt: skip
    ra, dec, frame = stated_position("x", header, names)
    assert (ra, dec) == pytest.approx((TRUTH.ra.deg, TRUTH.dec.deg), abs=1e-9)
    assert frame == "galactic"
    for wrong in ({"CTYPE1": "LINEAR"}, {"CTYPE1": "GLAT-TAN"}, {"CTYPE1": "RA---TAN"}):
        with pytest.raises(InvalidRecord, match="frame_unknown"):
            stated_position("x", {**header, **wrong}, names)


# every reader
WAVE = np.linspace(4000.0, 9000.0, 300)
UNIT = "10**(-17) erg/s/cm2/Angstrom"
OLD = TRUTH.transform_to(FK4())
KEYS = {"RA": OLD.ra.deg, "DEC": OLD.dec.deg, "RADESYS": "FK4", "EQUINOX": 1950.0, "OBJECT": "x"}


def image(path):
    primary, noise = fits.PrimaryHDU(WAVE), fits.ImageHDU(WAVE, name="ERRS")
    primary.header.update({**KEYS, "CTYPE1": "WAVE", "CUNIT1": "nm", "CRVAL1": 400, "CDELT1": 1.0})
    fits.HDUList([primary, noise]).writeto(path)
    return make_reader("spectrum_image", {"error": "ERRS"})


def table(path):
    columns = [
        fits.Column("WAVE", "300D", unit="angstrom", array=[WAVE]),
        *(fits.Column(n, "300D", unit=UNIT, array=[WAVE]) for n in ("FLUX", "ERR")),
    ]
    hdu = fits.BinTableHDU.from_columns(columns, name="SPECTRUM")
    fits.HDUList([fits.PrimaryHDU(header=fits.Header(KEYS)), hdu]).writeto(path)
    return make_reader("spectrum_table", {"medium": "vacuum"})


def phase3(path):
    table(path)
    return make_reader("fourmost")


def rows(path):
    place = TRUTH.galactic
    schema = pa.schema([
        pa.field("l", pa.float64(), metadata={"unit": "rad", "ucd": "pos.galactic.lon"}),
        pa.field("b", pa.float64(), metadata={"unit": "rad", "ucd": "pos.galactic.lat"}),
        *(pa.field(name, pa.list_(pa.float64())) for name in ("w", "f", "i"))])  # fmt: skip
    lists = {name: [WAVE.tolist()] for name in ("w", "f", "i")}
    pq.write_table(pa.table({"l": [place.l.rad], "b": [place.b.rad], **lists}, schema), path)
    return make_reader("spectrum_table", {
        "medium": "vacuum", "wavelength": {"column": "w"}, "flux": "f", "ivar": "i",
        "fields": {"ra": "l", "dec": "b"}})  # fmt: skip


@pytest.mark.parametrize("make", [image, table, phase3, rows])
def test_positions_of_spectra_are_icrs(tmp_path, make):
    path = tmp_path / ("x.parquet" if make is rows else "x.fits")
    reader = make(path)
    (found,) = reader.read(SurveyFile(fs.LocalFileSystem(), str(path)))
    assert (found.ra, found.dec) == pytest.approx((TRUTH.ra.deg, TRUTH.dec.deg), abs=1e-9)
    assert "ICRS (from" in found.statements["position"]


def test_keywords_of_the_primary_header_stand_in_unless_inherit_is_false(tmp_path):
    path, states = tmp_path / "x.fits", {"INHERIT": False}
    for own, truth in (({}, TRUTH.ra.deg), (states, np.nan)):
        axis = {"CTYPE1": "WAVE", "CUNIT1": "nm", "CRVAL1": 400, "CDELT1": 1.0, **own}
        hdus = [fits.ImageHDU(WAVE, fits.Header(axis), name=name) for name in ("FLUX", "ERRS")]
        primary = fits.PrimaryHDU(header=fits.Header(KEYS))
        fits.HDUList([primary, *hdus]).writeto(path, overwrite=True)
        reader = make_reader("spectrum_image", {"flux": "FLUX", "error": "ERRS"})
        (found,) = reader.read(SurveyFile(fs.LocalFileSystem(), str(path)))
        assert found.ra == pytest.approx(truth, nan_ok=True)


def test_the_barycentric_correction_is_towards_the_source():
    site = {"OBSGEO-X": 1814985.3, "OBSGEO-Y": -5213916.8, "OBSGEO-Z": -3187738.1}
    header = {**site, "MJD-AVG": 56532.97}
    plain = {**header, "RA": TRUTH.ra.deg, "DEC": TRUTH.dec.deg}
    old = {**header, **KEYS}
    assert barycentric_velocity("x", old) == pytest.approx(
        barycentric_velocity("x", plain), abs=1e-6
    )
