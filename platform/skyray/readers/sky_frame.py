"""The reference frame of a position, by what its file states, and the way from there to ICRS.

RADESYS (RADECSYS) and EQUINOX (EPOCH) of FITS; CTYPEn of a coordinate that is CRVALn; the UCD or
the name of a column (``pos.galactic.lon``, GLON). Where nothing is stated a position is ICRS.

Source: FITS Standard 4.0, section 8.3; IVOA, UCD1+ controlled vocabulary.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NoReturn

import numpy as np
from astropy import units
from astropy.coordinates import (
    FK4,
    FK5,
    BarycentricMeanEcliptic,
    BaseCoordinateFrame,
    FK4NoETerms,
    Galactic,
    SkyCoord,
    Supergalactic,
)

from skyray.readers.column_facts import ColumnFacts
from skyray.readers.units import to_degrees
from skyray.records import InvalidRecord
from skyray.records.columns import position_fault

_EQUATORIAL = {"fk5": FK5, "fk4": FK4, "fk4-no-e": FK4NoETerms}  # of an equinox
_OTHERS = {"galactic": Galactic, "supergalactic": Supergalactic}
_DEFAULT = {"fk5": "J2000", "fk4": "B1950", "fk4-no-e": "B1950", "ecliptic": "J2000"}
_AXES = {"RA": "equatorial", "DEC": "equatorial", "GLON": "galactic", "GLAT": "galactic",
         "ELON": "ecliptic", "ELAT": "ecliptic", "SLON": "supergalactic",
         "SLAT": "supergalactic"}  # fmt: skip
_LATITUDES = ("DEC", "GLAT", "ELAT", "SLAT")
_UCD = re.compile(r"pos\.(eq|galactic|ecliptic|supergalactic)\b", re.IGNORECASE)
_AXIS = re.compile(r"(?:CRVAL|CDELT)(\d+)|CD(\d+)_\d+")
_YEAR = re.compile(r"([JB]?)\s*(1[89]\d\d|20\d\d|2100)(\.\d*)?", re.IGNORECASE)


def stated_position(
    source: str, header: Any, names: Sequence[str] = ("RA", "DEC")
) -> tuple[float, float, str]:
    """Return the position in two keywords of a header in degrees, ICRS, NaN where there is none.

    And the frame that it is stated in, '' for ICRS.

    Raises
    ------
    InvalidRecord
        ``field_invalid``, ``unit_unknown``, ``position_invalid``; ``frame_unknown``.
    """
    facts = [keyword_facts(header, name) for name in names]
    ra, dec = (
        coordinate(source, one, header.get(name), latitude=bool(n))
        for n, (one, name) in enumerate(zip(facts, names, strict=True))
    )
    return in_icrs(source, header, facts, ra, dec)


def coordinate(source: str, facts: ColumnFacts, value: Any, *, latitude: bool) -> float:
    """Return a longitude or latitude in degrees, NaN for none; `facts` are of its column.

    Sexagesimal text is in hours where it is a right ascension; a galactic longitude is not.

    Raises
    ------
    InvalidRecord
        ``field_invalid``, ``unit_unknown``; ``frame_unknown``.
    """
    hours = not latitude and _kind(source, facts, latitude=False) == "equatorial"
    return to_degrees(source, facts.name, facts.unit, value, hours)


def in_icrs(
    source: str, header: Any, facts: Sequence[ColumnFacts], ra: float, dec: float
) -> tuple[float, float, str]:
    """Return a position in degrees in ICRS, and the frame it was in; raises as `sky_frame`."""
    if not np.isfinite(ra + dec):
        return ra, dec, ""
    frame = sky_frame(source, header, facts)
    return *to_icrs(source, frame, ra, dec), frame


def position_statement(frame: str) -> dict[str, str]:
    """Return what was decided of a position, for a record's `statements`; nothing of ICRS."""
    return {"position": f"ICRS (from {frame})"} if frame else {}


def keyword_facts(header: Any, name: str) -> ColumnFacts:
    """Return what a header states of a number: CUNIT1 and CTYPE1 of CRVAL1 and CDELT1.

    Without CUNIT1 a step is in degrees, as the standard has it of axes on the sky.
    """
    found = _AXIS.fullmatch(name.upper())
    if found is None:
        return ColumnFacts(name)
    axis = found[1] or found[2]
    unit, ctype = (str(header.get(f"{key}{axis}") or "").strip() for key in ("CUNIT", "CTYPE"))
    if not name.upper().startswith("CRVAL"):
        unit = unit or "deg"
    return ColumnFacts(name, unit=unit, ctype=ctype.upper())


def sky_frame(source: str, header: Any, facts: Sequence[ColumnFacts]) -> str:
    """Return the frame of a position: ``fk5 J1975``, ``galactic`` …, '' for ICRS.

    Parameters
    ----------
    header : with ``get``, or None
        Keywords that hold for the position.
    facts : two ColumnFacts
        Of longitude and latitude.

    Raises
    ------
    InvalidRecord
        ``frame_unknown``.
    """
    kinds = [_kind(source, one, latitude=bool(n)) for n, one in enumerate(facts)]
    if len(set(kinds)) > 1:
        _refuse(source, f"{facts[0].name}, {facts[1].name}: expected one frame, found {kinds}")
    if kinds[0] in _OTHERS:
        return kinds[0]
    header = {} if header is None else header
    if kinds[0] == "ecliptic":
        return f"ecliptic {_equinox(source, header, 'J') or _DEFAULT['ecliptic']}"
    stated = (str(header.get(key) or "").strip() for key in ("RADESYS", "RADECSYS"))
    text = next(filter(None, stated), "")
    system = text.lower()
    if system == "icrs":
        return ""
    if system and system not in _EQUATORIAL:
        _refuse(source, f"RADESYS: expected ICRS, FK5, FK4 or FK4-NO-E, found {text!r:.60}")
    equinox = _equinox(source, header, _DEFAULT.get(system, "")[:1])
    if not (system or equinox):
        return ""
    system = system or {"J": "fk5", "B": "fk4"}[equinox[0]]
    return f"{system} {equinox or _DEFAULT[system]}"


def to_icrs(source: str, frame: str, ra: Any, dec: Any) -> tuple[Any, Any]:
    """Return positions in degrees, numbers or arrays, of a frame (`sky_frame`) in ICRS.

    Raises
    ------
    InvalidRecord
        ``position_invalid``.
    """
    if not frame:
        return ra, dec
    shape, (ra, dec) = np.shape(ra), np.atleast_1d(ra, dec)
    for fault in filter(None, map(position_fault, ra, dec)):
        raise InvalidRecord(*fault, source)
    if frame.startswith("fk4"):  # aberration is in its catalogues: no rotation
        there = np.isfinite(ra + dec)
        place = SkyCoord(ra[there], dec[there], unit=units.deg, frame=_frame(frame)).icrs
        found = np.full((2, len(ra)), np.nan)
        found[:, there] = place.ra.deg, place.dec.deg
    else:
        lon, lat = np.radians(ra), np.radians(dec)
        sight = np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)
        x, y, z = _rotation(frame) @ np.array(sight)
        found = np.degrees([np.arctan2(y, x) % (2 * np.pi), np.arctan2(z, np.hypot(x, y))])
    return tuple(values if shape else float(values[0]) for values in found)


@lru_cache(maxsize=64)
def _frame(frame: str) -> BaseCoordinateFrame:
    name, _, equinox = frame.partition(" ")
    if name in _OTHERS:
        return _OTHERS[name]()
    kind = BarycentricMeanEcliptic if name == "ecliptic" else _EQUATORIAL[name]
    return kind(equinox=equinox)


@lru_cache(maxsize=64)
def _rotation(frame: str) -> np.ndarray:
    """Return the matrix from a frame's axes to those of ICRS."""
    axes = SkyCoord([0, 90, 0], [0, 0, 90], unit=units.deg, frame=_frame(frame)).icrs
    return axes.cartesian.xyz.value


def _kind(source: str, facts: ColumnFacts, latitude: bool) -> str:
    """Return the kind of a coordinate: ``equatorial``, where nothing is said."""
    axis = facts.ctype[:4].rstrip("-") if facts.ctype else facts.name.upper()
    found = _AXES.get(axis)
    if facts.ctype and (found is None or (axis in _LATITUDES) != latitude):
        wanted = "latitude" if latitude else "longitude"
        _refuse(source, f"{facts.name}: expected a {wanted} on the sky, found CTYPE {facts.ctype}")
    if ucd := _UCD.search(facts.ucd):
        return "equatorial" if ucd[1].lower() == "eq" else ucd[1].lower()
    return found or "equatorial"


def _equinox(source: str, header: Any, letter: str) -> str:
    """Return the equinox as ``J2000`` or ``B1950``, '' for none; `letter` of a bare year."""
    for key in ("EQUINOX", "EPOCH"):
        if (value := header.get(key)) is None or value == "":
            continue
        match = None if isinstance(value, bool) else _YEAR.fullmatch(str(value).strip())
        if match is None:
            _refuse(source, f"{key}: expected a year such as 2000 or B1950, found {value!r:.60}")
        year = float(f"{match[2]}{match[3] or ''}")
        return f"{match[1].upper() or letter or ('B' if year < 1984 else 'J')}{year:g}"
    return ""


def _refuse(source: str, detail: str) -> NoReturn:
    raise InvalidRecord("frame_unknown", detail, source)
