"""Alerts of the Rubin Observatory (and other surveys) under ZTF's names, by a field map of a card.

::

    reader: lsst
    reader_options:
      fields:
        magpsf: {path: diaSource.psfFlux, as: ab_magnitude}
        jd: {path: diaSource.midpointMjdTai, as: julian_date}
        drb: diaSource.reliability

Packets are Avro containers; stamps are FITS bytes, gzipped or plain. Source of the default names:
lsst.alert schemas 7 to 9 (https://github.com/lsst/alert_packet); fluxes there are nJy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

from pydantic import ConfigDict, Field, field_validator

from skyray.config import Config
from skyray.readers.base import Reader, SurveyFile, register
from skyray.readers.ztf import SideLabels, alert_of, avro_packets
from skyray.records import InvalidRecord

_AB_ZERO_NJY = 31.4
_MJD_ZERO = 2400000.5


class FieldRule(Config):
    """Where a field comes from, and what has to be done to it."""

    path: str = Field(description="dotted path in the packet, or in an entry of the history")
    convert: Literal[
        "", "ab_magnitude", "magnitude_error", "limit_magnitude", "julian_date", "sign", "band"
    ] = Field("", alias="as")
    error: str = Field("", description="magnitude_error: path of the flux's error")

    model_config = ConfigDict(**Config.model_config, populate_by_name=True)


class LsstOptions(Config):
    """``reader_options`` of the ``lsst`` reader; paths that a packet lacks give None."""

    survey: str = "lsst"
    object_id: list[str] = Field(
        ["diaSource.diaObjectId", "diaSource.ssObjectId"],
        description="paths of the source's name; the first that is given",
    )
    candid: str = "diaSource.diaSourceId"
    fields: dict[str, FieldRule] = Field(description="ZTF's name → its path in the packet")
    history: list[str] = Field(
        ["prvDiaSources", "prvDiaNondetectionLimits"], description="lists of earlier entries"
    )
    history_fields: dict[str, FieldRule] = Field(default_factory=dict)
    stamps: dict[Literal["science", "template", "difference"], str] = Field(
        default_factory=lambda: {"science": "cutoutScience", "template": "cutoutTemplate",
                                 "difference": "cutoutDifference"}
    )  # fmt: skip
    bands: dict[str, int] = Field(
        {"g": 1, "r": 2, "i": 3, "u": 4, "z": 5, "y": 6}, description="number (fid) of each band"
    )
    labels: str | None = None

    @field_validator("fields", "history_fields", mode="before")
    @classmethod
    def _short_form(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        return {name: {"path": rule} if isinstance(rule, str) else rule
                for name, rule in value.items()}  # fmt: skip


@register
class LsstReader(Reader):
    """Avro alerts whose fields a card maps to ZTF's."""

    name = "lsst"
    patterns = ("*.avro",)

    def __init__(self, options=None):
        super().__init__(options)
        self.lsst = LsstOptions.load(self.options)
        self._labels = SideLabels(self.lsst.labels)

    def read(self, file: SurveyFile, unit: int = 0) -> Iterator[Any]:
        labels = self._labels.of(file)
        for packet, source in avro_packets(file):
            if isinstance(packet, InvalidRecord):
                yield packet
                continue
            try:
                yield alert_of(ztf_packet(packet, self.lsst), source, labels)
            except InvalidRecord as error:
                yield error


def ztf_packet(packet: Mapping[str, Any], options: LsstOptions) -> dict[str, Any]:
    """Return an alert packet of another survey under ZTF's names."""
    names = [_at(packet, path) for path in options.object_id]
    candid = _at(packet, options.candid)
    candidate = _mapped(packet, options.fields, options.bands)
    entries = [entry for name in options.history for entry in _at(packet, name) or ()]
    return {
        "objectId": next((str(name) for name in names if name), None),
        "candid": candid,
        "candidate": {**candidate, "candid": candid},
        "prv_candidates": [_mapped(e, options.history_fields, options.bands) for e in entries],
        "survey": options.survey,
        **{f"cutout{name.title()}": _at(packet, path) for name, path in options.stamps.items()},
    }


def _at(packet: Any, path: str) -> Any:
    for name in path.split("."):
        packet = packet.get(name) if isinstance(packet, Mapping) else None
    return packet


def _mapped(
    packet: Mapping[str, Any], rules: Mapping[str, FieldRule], bands: Mapping[str, int]
) -> dict[str, Any]:
    found = {}
    for name, rule in rules.items():
        value = _at(packet, rule.path)
        if value is None:
            found[name] = None
        elif rule.convert == "band":
            found[name] = bands.get(str(value))
        elif rule.convert == "magnitude_error":
            found[name] = magnitude_error(value, _at(packet, rule.error))
        elif rule.convert:
            found[name] = _CONVERT[rule.convert](value)
        else:
            found[name] = value
    return found


def ab_magnitude(flux_njy: float) -> float | None:
    """Return the AB magnitude of |flux|; None for 0 (a negative flux is a fading source)."""
    return _AB_ZERO_NJY - 2.5 * math.log10(abs(flux_njy)) if flux_njy else None


def magnitude_error(flux_njy: float, error_njy: float | None) -> float | None:
    """Return the magnitude's error, 1.0857 σ / |flux|."""
    if not flux_njy or error_njy is None:
        return None
    return 2.5 / math.log(10) * error_njy / abs(flux_njy)


_CONVERT: dict[str, Callable[[float], Any]] = {
    "ab_magnitude": ab_magnitude,
    "limit_magnitude": lambda error: ab_magnitude(5.0 * error),
    "julian_date": lambda mjd: mjd + _MJD_ZERO,
    "sign": lambda flux: "t" if flux > 0 else "f",
}
