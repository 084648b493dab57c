"""Frames of reference: topocentric wavelengths against a published correction, or refused."""

from __future__ import annotations

import pytest

from skyray.readers.velocity_frame import barycentric_velocity, frame_factor
from skyray.records import InvalidRecord

# Wright & Eastman (2014): τ Ceti from CTIO at JD 2456533.47; τ Ceti's barycentric correction there.
CTIO = {"OBSGEO-X": 1814985.3, "OBSGEO-Y": -5213916.8, "OBSGEO-Z": -3187738.1}
TAU_CETI = {"RA": 26.0213645867, "DEC": -15.9395557246}
WHEN = {"MJD-AVG": 2456533.47 - 2400000.5}


def expected_km_s() -> float:
    """The same by adding Earth's velocity and the rotation of the site, along the line of sight."""
    import numpy as np
    from astropy import units
    from astropy.coordinates import EarthLocation, SkyCoord, get_body_barycentric_posvel
    from astropy.time import Time

    time = Time(WHEN["MJD-AVG"], format="mjd", scale="utc")
    place = EarthLocation.from_geocentric(*CTIO.values(), unit=units.m)
    _, earth = get_body_barycentric_posvel("earth", time)
    _, spin = place.get_gcrs_posvel(time)
    velocity = (earth.xyz + spin.xyz).to_value("km/s")
    to_star = SkyCoord(**{k.lower(): v for k, v in TAU_CETI.items()}, unit="deg").cartesian.xyz
    return float(np.dot(velocity, to_star.value))


def test_topocentric_wavelengths_are_brought_to_the_barycentre():
    header = {"SPECSYS": "TOPOCENT", **CTIO, **TAU_CETI, **WHEN}
    velocity = barycentric_velocity("x.fits", header)
    assert velocity == pytest.approx(expected_km_s(), abs=0.02)
    factor, told = frame_factor("x.fits", header)
    assert factor == pytest.approx(1 + velocity / 299792.458, abs=1e-12)
    assert "SPECSYS" in told


@pytest.mark.parametrize(
    "change",
    [{"MJD-AVG": None, "MJD-OBS": 56532.9, "EXPTIME": 0.07 * 2 * 86400},
     {"MJD-AVG": None, "DATE-OBS": "2013-08-28T21:36:00.0", "EXPTIME": 12096.0},
     {"RA": "01:44:05.1275", "DEC": "-15:56:22.4006"},
     {"OBSGEO-X": None, "OBSGEO-L": -70.8065, "OBSGEO-B": -30.1690, "OBSGEO-H": 2200.0}],
)  # fmt: skip
def test_site_time_and_position_in_other_words(change):
    header = {"SPECSYS": "TOPOCENT", **CTIO, **TAU_CETI, **WHEN}
    found = barycentric_velocity("x.fits", {**header, **change})
    assert found == pytest.approx(barycentric_velocity("x.fits", header), abs=0.01)


@pytest.mark.parametrize(
    ("missing", "named"), [("RA", "RA and DEC"), ("OBSGEO-Z", "OBSGEO"), ("MJD-AVG", "MJD")]
)
def test_what_cannot_be_corrected_is_refused(missing, named):
    header = {"SPECSYS": "TOPOCENT", **CTIO, **TAU_CETI, **WHEN}
    del header[missing]
    with pytest.raises(InvalidRecord, match=rf"frame_topocentric.*{named}"):
        frame_factor("x.fits", header)


@pytest.mark.parametrize(
    ("header", "told"),
    [({"SPECSYS": "BARYCENT"}, "barycent: SPECSYS"), ({"SPECSYS": "heliocen"}, "heliocen: SPECSYS"),
     ({"HELIO": True}, "heliocentric: HELIO"), ({}, "unknown: no SPECSYS")],
)  # fmt: skip
def test_frames_at_rest_and_unknown_ones_change_nothing(header, told):
    assert frame_factor("x.fits", header) == (1.0, told)


@pytest.mark.parametrize(
    ("header", "reason"),
    [({"SPECSYS": "LSRK"}, "velocity_frame_unknown"),
     ({"SPECSYS": "SOURCE"}, "velocity_frame_unknown"),
     ({"SPECSYS": "?"}, "velocity_frame_unknown"), ({"HELIO": False}, "frame_topocentric")],
)  # fmt: skip
def test_other_frames_are_refused(header, reason):
    with pytest.raises(InvalidRecord, match=reason):
        frame_factor("x.fits", header)
