"""The frame of reference of wavelengths: at rest to whom they were measured.

Heliocentric and barycentric wavelengths, which differ by 13 m/s at most, are what a Spectrum holds.
Topocentric ones (in the rest frame of the telescope, up to 30 km/s off) are corrected where the
header tells site, time and position, else refused. Any other frame is refused; where nothing is
said the frame is marked unknown.

Keywords: SPECSYS, OBSGEO-X/Y/Z (or -B/L/H), MJD-AVG, MJD-OBS or DATE-OBS with EXPTIME (FITS WCS
paper III, Greisen et al. 2006, A&A 446, 747; FITS Standard 4.0, sections 8.4 and 9); HELIO of
LAMOST.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from skyray.readers.sky_frame import stated_position
from skyray.records import InvalidRecord

KEYWORDS = ("SPECSYS", "HELIO", "BARYCORR")
_AT_REST = {"HELIOCEN", "BARYCENT", "HELIOCENTRIC", "BARYCENTRIC", "HELIO", "BARY"}
_TOPOCENTRIC = {"TOPOCENT", "TOPOCENTRIC", "TOPO"}
_LIGHT_KM_S = 299_792.458
_SECONDS_A_DAY = 86_400.0


def frame_factor(source: str, header: Mapping[str, Any] | Any) -> tuple[float, str]:
    """Return what to multiply wavelengths with to bring them to the barycentre, and why.

    Parameters
    ----------
    source : str
        File, for the refusal.
    header : with ``get``
        Keywords of the file.

    Raises
    ------
    InvalidRecord
        ``frame_topocentric`` where the correction cannot be computed; ``velocity_frame_unknown``
        for a frame that is neither.
    """
    found = str(header.get("SPECSYS") or "").strip()
    frame = found.upper()
    if frame in _AT_REST:
        return 1.0, f"{frame.lower()}: SPECSYS"
    if frame in _TOPOCENTRIC:
        factor = 1.0 + barycentric_velocity(source, header) / _LIGHT_KM_S
        return factor, "topocentric → barycentric: SPECSYS, site, time and position"
    if frame:
        detail = f"SPECSYS: expected BARYCENT, HELIOCEN or TOPOCENT, found {found[:40]!r}"
        raise InvalidRecord("velocity_frame_unknown", detail, source)
    for key, meaning in (("HELIO", "heliocentric"), ("BARYCORR", "barycentric")):
        value = header.get(key)
        if value is True:
            return 1.0, f"{meaning}: {key}"
        if value is False:
            detail = f"{key}: expected {meaning} wavelengths or SPECSYS, found F"
            raise InvalidRecord("frame_topocentric", detail, source)
    return 1.0, "unknown: no SPECSYS"


def model_frame(source: str, header: Mapping[str, Any] | Any, model: str) -> str:
    """Return the statement on the frame of a survey whose data model knows it (`model`).

    Raises
    ------
    InvalidRecord
        ``frame_topocentric`` or ``velocity_frame_unknown`` where the file says another.
    """
    found = str(header.get("SPECSYS") or "").strip()
    if found.upper() in _TOPOCENTRIC:
        detail = f"SPECSYS: expected {model} wavelengths, as the data model says, found {found}"
        raise InvalidRecord("frame_topocentric", detail, source)
    told = frame_factor(source, header)[1]
    return f"{model}: data model" if told.startswith("unknown") else told


def barycentric_velocity(source: str, header: Mapping[str, Any] | Any) -> float:
    """Return the telescope's velocity towards the source, as seen from the barycentre, km/s.

    Wright & Eastman 2014 (PASP 126, 838) to a few cm/s, by astropy.

    Raises
    ------
    InvalidRecord
        ``frame_topocentric`` naming what the header does not tell.
    """
    ra, dec, _ = stated_position(source, header)
    site, mjd = _site(header), _mid_exposure(header)
    missing = [
        name
        for name, there in (
            ("RA and DEC", math.isfinite(ra + dec)), ("OBSGEO-X, -Y, -Z", site is not None),
            ("MJD-AVG, MJD-OBS or DATE-OBS (with EXPTIME)", math.isfinite(mjd)),
        ) if not there
    ]  # fmt: skip
    if missing:
        detail = f"expected {'; '.join(missing)} to correct TOPOCENT wavelengths, found none"
        raise InvalidRecord("frame_topocentric", detail, source)
    from astropy import units
    from astropy.coordinates import EarthLocation, SkyCoord
    from astropy.time import Time
    from astropy.utils import iers

    try:
        # Without newer tables of the Earth's rotation (1 s is 0.5 mm/s) nothing is fetched.
        with iers.conf.set_temp("auto_download", False), iers.conf.set_temp("auto_max_age", None):
            place = EarthLocation.from_geocentric(*site, unit=units.m)
            target = SkyCoord(ra, dec, unit="deg")
            velocity = target.radial_velocity_correction(
                "barycentric", obstime=Time(mjd, format="mjd", scale="utc"), location=place
            )
            return float(velocity.to_value(units.km / units.s))
    except Exception as error:  # dates and places that astropy cannot follow
        detail = f"expected a place and time to correct for, found {type(error).__name__}: {error}"
        raise InvalidRecord("frame_topocentric", detail[:300], source) from None


def _site(header: Any) -> tuple[float, float, float] | None:
    """Return geocentric x, y, z in metres."""
    place = _numbers(header, ("OBSGEO-X", "OBSGEO-Y", "OBSGEO-Z"))
    if place:
        radius = math.hypot(*place)
        return place if 6.3e6 < radius < 6.5e6 else None
    geodetic = _numbers(header, ("OBSGEO-L", "OBSGEO-B", "OBSGEO-H")) or _numbers(
        header, ("HIERARCH ESO TEL GEOLON", "HIERARCH ESO TEL GEOLAT", "HIERARCH ESO TEL GEOELEV")
    )
    if not geodetic or abs(geodetic[1]) > 90 or not -500 < geodetic[2] < 2e4:
        return None
    from astropy.coordinates import EarthLocation

    found = EarthLocation.from_geodetic(*geodetic)
    return tuple(float(part.to_value("m")) for part in found.geocentric)


def _mid_exposure(header: Any) -> float:
    """Return the middle of the exposure as MJD (UTC), NaN where it is not told."""
    if middle := _numbers(header, ("MJD-AVG",)):
        return middle[0]
    ends = _numbers(header, ("MJD-OBS", "MJD-END"))
    if ends:
        return sum(ends) / 2
    begin = _numbers(header, ("MJD-OBS",)) or _numbers(header, ("MJD-BEG",))
    start = begin[0] if begin else _date(header.get("DATE-OBS") or header.get("DATE-BEG"))
    length = _numbers(header, ("EXPTIME",)) or _numbers(header, ("XPOSURE",))
    return start + length[0] / 2 / _SECONDS_A_DAY if length else math.nan


def _date(text: Any) -> float:
    """Return an ISO date with its time of day as MJD."""
    if not isinstance(text, str) or "T" not in text:
        return math.nan
    try:
        moment = np.datetime64(text.strip().removesuffix("Z"), "ms")
    except ValueError:
        return math.nan
    return float((moment - np.datetime64("1858-11-17", "ms")) / np.timedelta64(1, "ms")) / (
        1000 * _SECONDS_A_DAY
    )


def _numbers(header: Any, keys: tuple[str, ...]) -> tuple[float, ...] | None:
    values = [header.get(key) for key in keys]
    good = all(type(value) in (int, float) and math.isfinite(value) for value in values)
    return tuple(float(value) for value in values) if good else None
