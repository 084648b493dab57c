"""A packet under ZTF's names → an alert: what a field must be, and where its source lies.

A field that is not what it has to be refuses its packet, never the batch that it came in.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from skyray.readers.stamps import Stamp, open_stamp
from skyray.records import STAMPS, Alert, InvalidRecord
from skyray.transforms.alerts import FEATURES, number

_HISTORY = ("jd", "fid", "magpsf", "sigmapsf", "diffmaglim", "isdiffpos", "forced")
_NUMBERS = (*FEATURES, "drb", "rb", "jdstarthist", "xpos", "ypos")
_POSITIVE = {"t": "t", "1": "t", "true": "t", "f": "f", "0": "f", "false": "f"}
_ZTF_STAMP = 63
_LONG = 1 << 63
_EXACT = 1 << 53


def alert_of(
    packet: Mapping[str, Any],
    source: str,
    labels: Mapping[str, Mapping[str, Any] | None] | None = None,
    one_sign: bool = True,
) -> Alert:
    """Turn a packet under ZTF's names into a record.

    Parameters
    ----------
    packet : mapping
        ``cutoutScience`` and its like hold ``stampData``, gzipped or plain FITS.
    labels : mapping, optional
        Columns for ``extra`` by objectId or candid; None for a name whose rows differ.
    one_sign : bool
        Whether ``isdiffpos`` becomes 't' or 'f', however it was written.

    Raises
    ------
    InvalidRecord
        ``packet_field_missing``, ``packet_field_invalid``, ``label_row_ambiguous``, or what
        `open_stamp` refuses.
    """
    candid = None
    try:
        candidate = _need(packet, "candidate", Mapping)
        candid, source_id = _names(packet, candidate)
        candidate = _checked(candidate, one_sign)
        ra, dec = (finite_field(candidate, name) for name in ("ra", "dec"))
        extra = {"schemavsn": packet.get("schemavsn"), "sgscore_best": _best_score(candidate)}
        extra |= packet.get("extra") or {}
        for key in (source_id, str(candid)):
            row = (labels or {}).get(key, {})
            if row is None:
                detail = f"labels: expected one row for {key}, found several that differ"
                raise InvalidRecord("label_row_ambiguous", detail)
            extra |= row
        stamps = [open_stamp(_stamp(packet, name), f"{source}: {name}") for name in STAMPS]
        scale = packet.get("pixel_scale_arcsec") or stamps[0].pixel_scale_arcsec
        places = source_pixels(stamps, candidate, ra, dec)
        return Alert(
            object_id=str(candid), source_id=source_id, candid=candid,
            jd=finite_field(candidate, "jd"), fid=integer_field(candidate, "fid"),
            candidate=candidate, ra=ra, dec=dec, history=_history(packet, one_sign),
            survey=str(packet.get("survey", "ztf")), source=source, extra=extra,
            source_pixel=places, pixel_scale_arcsec=scale,
            statements={**packet.get("statements", {}), **_statements(packet, stamps, places)},
            **{name: stamp.image for name, stamp in zip(STAMPS, stamps, strict=True)},
        )  # fmt: skip
    except InvalidRecord as error:
        name = error.source.rpartition(": ")[2] if error.source.startswith(f"{source}: ") else ""
        detail = f"{name}: {error.detail}" if name in STAMPS else error.detail
        candid = "" if candid is None else str(candid)
        raise InvalidRecord(error.reason, detail, source, candid) from None


# names -----------------------------------------------------------------------------------------
def _names(packet: Mapping[str, Any], candidate: Mapping[str, Any]) -> tuple[int, str]:
    candid, source_id = packet.get("candid"), packet.get("objectId")
    candid = candidate.get("candid") if candid is None else candid
    if candid in (None, "") or source_id in (None, ""):
        detail = f"expected objectId and candid, found {source_id!r:.60} and {candid!r:.60}"
        raise InvalidRecord("packet_field_missing", detail)
    if isinstance(source_id, bool) or not isinstance(source_id, str | int):
        _invalid("objectId", "text", source_id)
    return _exact(candid), str(source_id)


def _exact(candid: Any) -> int:
    """Return an identifier of 64 bits that has never been rounded."""
    if isinstance(candid, str) and candid.strip().isascii() and candid.strip().isdigit():
        candid = int(candid) if len(candid) < 30 else _LONG
    if isinstance(candid, float) and candid.is_integer() and abs(candid) <= _EXACT:
        candid = int(candid)
    if isinstance(candid, bool) or not isinstance(candid, int) or not -_LONG <= candid < _LONG:
        _invalid("candid", "an integer of 64 bits", candid)
    return candid


# fields ----------------------------------------------------------------------------------------
def _checked(candidate: Mapping[str, Any], one_sign: bool) -> dict[str, Any]:
    """Return the candidate with its sign in one spelling and without a score that was not made."""
    for name, value in candidate.items():
        if isinstance(value, Mapping):
            _invalid(str(name), "a number or text", value)
    for name in _NUMBERS:
        number(candidate, name)
    found = {**candidate, "isdiffpos": _sign(candidate.get("isdiffpos"), one_sign)}
    if found.get("drb") == 0 and found.get("drbversion") in ("", None):
        found["drb"] = None  # packets of 2018 and 2019: nothing was computed
    return found


def _history(packet: Mapping[str, Any], one_sign: bool) -> list[dict[str, Any]]:
    entries = packet.get("prv_candidates")
    if entries is None:
        return []
    if not isinstance(entries, Sequence) or isinstance(entries, str | bytes):
        _invalid("prv_candidates", "a list", entries)
    return [_earlier(entry, one_sign) for entry in entries]


def _earlier(entry: Any, one_sign: bool) -> dict[str, Any]:
    if not isinstance(entry, Mapping):
        _invalid("prv_candidates", "a list of mappings", entry)
    found = {name: entry.get(name) for name in _HISTORY}
    for name in ("jd", "magpsf", "sigmapsf", "diffmaglim"):
        value = number(found, name)
        found[name] = None if math.isnan(value) else found[name]
    if found["fid"] is not None:
        found["fid"] = integer_field(found, "fid")
    if not isinstance(found["forced"], bool | None):
        _invalid("forced", "true or false", found["forced"])
    found["isdiffpos"] = _sign(found["isdiffpos"], one_sign)
    return found


def finite_field(fields: Mapping[str, Any], name: str) -> float:
    """Return a field that has to be there, as a finite number.

    Raises
    ------
    InvalidRecord
        ``packet_field_missing``, ``packet_field_invalid``.
    """
    if name not in fields:
        raise InvalidRecord("packet_field_missing", f"candidate: expected a field {name!r}")
    value = number(fields, name)
    if not math.isfinite(value) or isinstance(fields[name], bool):
        _invalid(name, "a finite number", fields[name])
    return value


def integer_field(fields: Mapping[str, Any], name: str) -> int:
    """Return a field as `finite_field`, an integer of 32 bits."""
    value = finite_field(fields, name)
    if not value.is_integer() or not -(1 << 31) <= value < 1 << 31:
        _invalid(name, "an integer", fields[name])
    return int(value)


def _sign(value: Any, one_sign: bool) -> Any:
    if value is None:
        return None
    found = _POSITIVE.get(str(value).strip().lower())
    if found is None or not isinstance(value, str | int | float):
        _invalid("isdiffpos", "t, f, 1, 0, true or false", value)
    return found if one_sign else value


def _best_score(candidate: Mapping[str, Any]) -> float | None:
    scores = [number(candidate, name) for name in ("sgscore1", "sgscore2")]
    return max((score for score in scores if not math.isnan(score)), default=None)


def _need(packet: Mapping[str, Any], name: str, kind: type) -> Any:
    found = packet.get(name)
    if not isinstance(found, kind):
        detail = f"expected {name}, found {type(found).__name__}; fields: {sorted(packet)[:20]}"
        raise InvalidRecord("packet_field_missing", detail)
    return found


def _invalid(name: str, expected: str, found: Any):
    shown = (
        f"{found!r:.60}" if not isinstance(found, int) or abs(found) < 10**20 else "a larger one"
    )
    raise InvalidRecord("packet_field_invalid", f"{name}: expected {expected}, found {shown}")


# stamps ----------------------------------------------------------------------------------------
def _stamp(packet: Mapping[str, Any], name: str) -> Any:
    cutout = packet.get(f"cutout{name.title()}")
    return cutout.get("stampData") if isinstance(cutout, Mapping) else cutout


def _statements(packet: Mapping[str, Any], stamps: Sequence[Stamp], places: Any) -> dict[str, str]:
    first = stamps[0]
    by = "WCS" if first.place else "xpos, ypos and stamp size" if places else "middle of the stamps"
    scale = "reader option" if packet.get("pixel_scale_arcsec") else "WCS of the science stamp"
    found = {"source": by, "stamp_unit": f"{first.unit} (BUNIT)" if first.unit else "not told"}
    if packet.get("pixel_scale_arcsec") or math.isfinite(first.pixel_scale_arcsec):
        found["pixel_scale"] = scale
    return found


def source_pixels(
    stamps: Sequence[Stamp], candidate: Mapping[str, Any], ra: float, dec: float
) -> tuple[tuple[float, float], ...] | None:
    """Return where the source lies in each stamp, (row, column); None where nothing tells.

    By a stamp's WCS; without one by ``xpos`` and ``ypos``, the place on ZTF's detector: its stamps
    have 63 pixels a side with the source in the middle, fewer where the detector ends.
    """
    found = []
    for stamp in stamps:
        pixel = stamp.pixel_of(ra, dec)
        if pixel is None:
            places = zip(stamp.image.shape, ("ypos", "xpos"), strict=True)
            pixel = tuple(_ztf_pixel(side, number(candidate, name)) for side, name in places)
        if None in pixel:
            return None
        found.append(pixel)
    return tuple(found)


def _ztf_pixel(side: int, position: float) -> float | None:
    """Return the source's pixel along one side of a ZTF stamp; `position` counts from 1."""
    half = _ZTF_STAMP // 2
    if side == _ZTF_STAMP:
        return float(half)
    near = round(position) if math.isfinite(position) else side
    if side < _ZTF_STAMP and near <= half and abs(near + half - side) <= 1:
        return float(side - half - 1)  # what lies before the first row of the detector is missing
    if half < side < _ZTF_STAMP and math.isfinite(position) and near > half:
        return float(half)
    return None
