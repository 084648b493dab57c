"""Alerts of the Rubin Observatory (and other surveys) under ZTF's names, by a field map of a card.

::

    reader: lsst
    reader_options:
      fields:
        magpsf: {path: diaSource.psfFlux, as: ab_magnitude}
        jd: {path: diaSource.midpointMjdTai, as: julian_date}
        chipsf: {path: diaSource.psfChi2, as: ratio, over: diaSource.psfNdata}
        drb: {path: diaSource.reliability, as: score, over: diaSource.reliabilityVersion}
        reliability: diaSource.reliability

Packets are Avro (containers, or messages with a schema registry) or Parquet of the same layout;
stamps are FITS bytes, gzipped or plain. A field is found by its name, so that versions whose
fields come in another order, or that have more of them, are read alike; where a name changed, a
path is a list of which the first that is given counts.

Source: lsst.alert schemas 7.1 to 11.1 (https://github.com/lsst/alert_packet): fluxes are nJy, times
MJD in TAI. Field meanings of ZTF: https://zwickytransientfacility.github.io/ztf-avro-alert.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, Literal

import erfa
from pydantic import ConfigDict, Field, field_validator

from skyray.config import Config
from skyray.readers.alert_files import SideLabels, packet_units, packets
from skyray.readers.alert_packet import alert_of
from skyray.readers.avro_registry import schemas_at
from skyray.readers.base import Reader, SurveyFile, register
from skyray.records import Alert, InvalidRecord, attempt

_AB_ZERO_NJY = 31.4
_MJD_ZERO = 2400000.5
_FWHM = 2.0 * math.sqrt(2.0 * math.log(2.0))  # in units of a Gaussian's σ
_ZTF_PIXEL_ARCSEC = 1.01
_VERSION = re.compile(r"v(\d+)_(\d+)")


class FieldRule(Config):
    """Where a field comes from, and what has to be done to it."""

    path: str | list[str] = Field(
        description="dotted path in the packet, or in an entry of the history; of several the "
        "first that is given"
    )
    convert: Literal[
        "", "ab_magnitude", "magnitude_error", "limit_magnitude", "julian_date", "sign", "band",
        "ratio", "score", "fwhm",
    ] = Field("", alias="as")  # fmt: skip
    error: str = Field("", description="magnitude_error: path of the flux's error")
    over: str = Field(
        "",
        description="ratio: path of the divisor; score: path of the version of what made it; "
        "fwhm: path of the second moment along the other axis",
    )

    model_config = ConfigDict(**Config.model_config, populate_by_name=True)

    @property
    def paths(self) -> list[str]:
        return [self.path] if isinstance(self.path, str) else self.path


class LsstOptions(Config):
    """``reader_options`` of the ``lsst`` reader; paths that a packet lacks give None."""

    survey: str = "lsst"
    object_id: list[str] = Field(
        ["diaSource.diaObjectId", "diaSource.ssObjectId", "ssSource.ssObjectId"],
        description="paths of the source's name; the first that is given and not 0",
    )
    candid: str | list[str] = "diaSource.diaSourceId"
    fields: dict[str, FieldRule] = Field(description="ZTF's name → its path in the packet")
    history: list[str] = Field(
        ["prvDiaSources", "prvDiaNondetectionLimits"], description="lists of earlier entries"
    )
    forced: list[str] = Field(
        ["prvDiaForcedSources"],
        description="lists of photometry at the source's place, whatever was seen there; left out "
        "where a detection tells of the same exposure",
    )
    forced_snr: float = Field(
        5.0, gt=0, description="forced flux over its error from which it is given a magnitude"
    )
    history_fields: dict[str, FieldRule] = Field(default_factory=dict)
    stamps: dict[Literal["science", "template", "difference"], str] = Field(
        default_factory=lambda: {"science": "cutoutScience", "template": "cutoutTemplate",
                                 "difference": "cutoutDifference"}
    )  # fmt: skip
    pixel_scale_arcsec: float | None = Field(
        None, gt=0, description="of the stamps; none: what their WCS says"
    )
    bands: dict[str, int] = Field(
        {"g": 1, "r": 2, "i": 3, "u": 4, "z": 5, "y": 6}, description="number (fid) of each band"
    )
    labels: str | None = None
    schemas: str | None = Field(
        None, description="of messages: URL of a schema registry, or a folder of .avsc files"
    )

    @field_validator("fields", "history_fields", mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        return {name: {"path": rule} if isinstance(rule, str | list) else rule
                for name, rule in value.items()}  # fmt: skip


@register
class LsstReader(Reader):
    """Alerts whose fields a card maps to ZTF's.

    ``extra`` holds ``schemavsn``: the version that the packet's schema or its broker tells.
    """

    name = "lsst"
    patterns = ("*.avro", "*.parquet")

    def __init__(self, options=None):
        super().__init__(options)
        self.lsst = LsstOptions.load(self.options)
        self._labels = SideLabels(self.lsst.labels)
        self._schemas = schemas_at(self.lsst.schemas)

    def units(self, file: SurveyFile) -> list[int]:
        return packet_units(file)

    def read(self, file: SurveyFile, unit: int = 0) -> Iterator[Any]:
        labels = self._labels.of(file)
        for packet, source, schema in packets(file, unit, self._schemas):
            if isinstance(packet, InvalidRecord):
                yield packet
                continue
            yield attempt(partial(self._alert, packet, source, schema, labels), source)

    def _alert(
        self, packet: Mapping[str, Any], source: str, schema: str, labels: Mapping[str, Any]
    ) -> Alert:
        return alert_of(ztf_packet(packet, self.lsst, schema), source, labels)


def ztf_packet(packet: Mapping[str, Any], options: LsstOptions, schema: str = "") -> dict[str, Any]:
    """Return an alert packet of another survey under ZTF's names.

    Raises
    ------
    InvalidRecord
        ``packet_field_missing``: the packet has another layout; ``packet_field_invalid``.
    """
    root = options.candid if isinstance(options.candid, str) else options.candid[0]
    root = root.partition(".")[0]
    if packet.get(root) is None:
        detail = f"expected {root}, found fields {sorted(packet)[:20]}"
        raise InvalidRecord("packet_field_missing", detail)
    names = [_at(packet, path) for path in options.object_id]
    candid = _first(packet, [options.candid] if isinstance(options.candid, str) else options.candid)
    candidate = _mapped(packet, options.fields, options.bands)
    return {
        "objectId": next((str(name) for name in names if name), None),
        "candid": candid,
        "candidate": {**candidate, "candid": candid},
        "prv_candidates": _history(packet, options, candidate),
        "survey": options.survey,
        "schemavsn": schema_version(packet, schema),
        "pixel_scale_arcsec": options.pixel_scale_arcsec,
        "statements": {
            "schema": _version_by(packet, schema),
            "flux": "nJy, AB (alert schema)",
            "time": "MJD in TAI, as JD in UTC (alert schema)",
        },
        **{f"cutout{name.title()}": _at(packet, path) for name, path in options.stamps.items()},
    }


def schema_version(packet: Mapping[str, Any], schema: str) -> str | None:
    """Return the version, as ``9.0``: the schema's namespace, a broker's note, or its fields."""
    for text in (schema, packet.get("lsst_schema_version")):
        if found := _VERSION.search(str(text or "")):
            return ".".join(found.groups())
    return "7" if "prvDiaNondetectionLimits" in packet else None


def _version_by(packet: Mapping[str, Any], schema: str) -> str:
    version = schema_version(packet, schema)
    if version is None:
        return "version not told"
    by = "lsst_schema_version" if packet.get("lsst_schema_version") else "fields"
    by = "name of the Avro schema" if _VERSION.search(schema) else by
    return f"{version} ({by})"


def _history(
    packet: Mapping[str, Any], options: LsstOptions, now: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Return detections and limits, then forced photometry of exposures they do not tell of."""
    found = [
        _mapped(entry, options.history_fields, options.bands)
        for entry in _entries(packet, options.history)
    ]
    told = {_exposure(entry) for entry in (*found, now)}
    for entry in _entries(packet, options.forced):
        made = _mapped(entry, options.history_fields, options.bands)
        if _exposure(made) in told:
            continue
        error = made.get("sigmapsf")
        if error is None or 2.5 / math.log(10) / options.forced_snr < error:
            made |= {"magpsf": None, "sigmapsf": None}
        found.append({**made, "forced": True})
    return found


def _entries(packet: Mapping[str, Any], names: list[str]) -> Iterator[Mapping[str, Any]]:
    for name in names:
        entries = _at(packet, name)
        if entries is not None and not isinstance(entries, list | tuple):
            _invalid(name, "a list", entries)
        for entry in entries or ():
            if not isinstance(entry, Mapping):
                _invalid(name, "a list of records", entry)
            if entry.get("timeWithdrawnMjdTai") is None:  # the survey takes it back
                yield entry


def _exposure(entry: Mapping[str, Any]) -> tuple[Any, Any]:
    jd = entry.get("jd")
    return (round(jd, 6) if isinstance(jd, float) else jd), entry.get("fid")


def _at(packet: Any, path: str) -> Any:
    for name in path.split("."):
        packet = packet.get(name) if isinstance(packet, Mapping) else None
    return packet


def _first(packet: Any, paths: list[str]) -> Any:
    return next((found for path in paths if (found := _at(packet, path)) is not None), None)


def _mapped(
    packet: Mapping[str, Any], rules: Mapping[str, FieldRule], bands: Mapping[str, int]
) -> dict[str, Any]:
    found = {}
    for name, rule in rules.items():
        value = _first(packet, rule.paths)
        if isinstance(value, float) and math.isnan(value):
            value = None
        try:
            found[name] = None if value is None else _converted(value, rule, packet, bands)
        except (TypeError, ValueError, ArithmeticError) as error:
            _invalid(name, f"{rule.convert} of {rule.path}", f"{value!r:.60} ({error})")
    return found


def _converted(
    value: Any, rule: FieldRule, packet: Mapping[str, Any], bands: Mapping[str, int]
) -> Any:
    other = _at(packet, rule.error or rule.over) if rule.error or rule.over else None
    if rule.convert == "band":
        if value not in bands:
            raise ValueError(f"expected one of {', '.join(bands)}")
        return bands[value]
    if rule.convert == "score":  # 0 of no version: nothing was computed
        return None if value == 0 and not other else value
    if rule.convert in _OF_TWO:
        return None if other is None else _OF_TWO[rule.convert](value, other)
    return _CONVERT[rule.convert](value) if rule.convert else value


def ab_magnitude(flux_njy: float) -> float | None:
    """Return the AB magnitude of |flux|; None for 0 (a negative flux is a fading source)."""
    return _AB_ZERO_NJY - 2.5 * math.log10(abs(flux_njy)) if flux_njy else None


def magnitude_error(flux_njy: float, error_njy: float | None) -> float | None:
    """Return the magnitude's error, 1.0857 σ / |flux|."""
    if not flux_njy or error_njy is None or math.isnan(error_njy):
        return None
    return 2.5 / math.log(10) * error_njy / abs(flux_njy)


def utc_julian_date(mjd_tai: float) -> float:
    """Return the Julian date in UTC, ZTF's scale, of a modified one in TAI (37 s since 2017)."""
    if not math.isfinite(mjd_tai):
        raise ValueError("expected a finite date")
    days, part, status = erfa.ufunc.taiutc(_MJD_ZERO, mjd_tai)
    if status < 0:
        raise ValueError("expected a date of this era")
    return float(days) + float(part)


def gaussian_fwhm(xx_arcsec2: float, yy_arcsec2: float) -> float | None:
    """Return the full width at half maximum, in ZTF's pixels, of a source with these moments."""
    mean = (xx_arcsec2 + yy_arcsec2) / 2
    return _FWHM * math.sqrt(mean) / _ZTF_PIXEL_ARCSEC if mean > 0 else None


def _ratio(value: float, other: float) -> float | None:
    return value / other if other else None


def _invalid(name: str, expected: str, found: Any):
    detail = f"{name}: expected {expected}, found {found!s:.160}"
    raise InvalidRecord("packet_field_invalid", detail)


_OF_TWO: dict[str, Callable[[float, float], Any]] = {
    "magnitude_error": magnitude_error, "ratio": _ratio, "fwhm": gaussian_fwhm,
}  # fmt: skip
_CONVERT: dict[str, Callable[[float], Any]] = {
    "ab_magnitude": ab_magnitude,
    "limit_magnitude": lambda error: ab_magnitude(5.0 * error),
    "julian_date": utc_julian_date,
    "sign": lambda flux: "t" if flux > 0 else "f",
}
