"""Alerts of ZTF: packets (schemas 3 and 4) in Avro, as messages, and in Parquet tables.

A packet holds ``objectId``, ``candid``, ``candidate``, ``prv_candidates`` and three gzipped FITS
stamps. A table has a row an alert: nested like the packet, or the candidate's fields under their
names, ``objectId``, ``prv_candidates`` (a list of structs) and ``cutout_science``,
``cutout_template``, ``cutout_difference`` with the packet's own bytes. Further columns go into
``extra``.

Source: https://zwickytransientfacility.github.io/ztf-avro-alert/schema.html
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from pydantic import Field

from skyray.config import Config
from skyray.readers.alert_files import SideLabels, packet_units, packets
from skyray.readers.alert_packet import alert_of
from skyray.readers.avro_registry import schemas_at
from skyray.readers.base import Reader, SurveyFile, register
from skyray.records import STAMPS, Alert, InvalidRecord, attempt

_PACKET = ("objectId", "candid", "schemavsn", "publisher", "candidate", "prv_candidates",
           "fp_hists", *(f"cutout{name.title()}" for name in STAMPS))  # fmt: skip


class ZtfOptions(Config):
    """``reader_options`` of the ``ztf`` reader."""

    isdiffpos: str = Field(
        "corrected",
        pattern="^(corrected|as_published)$",
        description="corrected: 't', '1' and true all become 't'; as_published: left as they are, "
        "so that a cut on 't' loses the packets that say '1'",
    )
    labels: str | None = Field(
        None,
        description="name of a CSV beside the packets; its rows are found by objectId (or candid), "
        "its other columns go into extra",
    )
    pixel_scale_arcsec: float = Field(1.01, gt=0, description="of the stamps")
    schemas: str | None = Field(
        None, description="of messages: URL of a schema registry, or a folder of .avsc files"
    )


@register
class ZtfReader(Reader):
    """Alerts of ZTF, one or several a file.

    A ``drb`` of 0 without ``drbversion`` is no score but its absence, and becomes None. ``extra``
    also holds ``schemavsn`` and:

    ``sgscore_best``
        The larger of ``sgscore1`` and ``sgscore2``: ≥ 0 where Pan-STARRS knows a neighbour.
    """

    name = "ztf"
    patterns = ("*.avro", "*.parquet")

    def __init__(self, options=None):
        super().__init__(options)
        self.ztf = ZtfOptions.load(self.options)
        self._labels = SideLabels(self.ztf.labels)
        self._schemas = schemas_at(self.ztf.schemas)

    def units(self, file: SurveyFile) -> list[int]:
        return packet_units(file)

    def read(self, file: SurveyFile, unit: int = 0) -> Iterator[Alert | InvalidRecord]:
        labels = self._labels.of(file)
        for packet, source, _ in packets(file, unit, self._schemas):
            if isinstance(packet, InvalidRecord):
                yield packet
                continue
            yield attempt(partial(self._alert, packet, source, labels), source)

    def _alert(self, packet: Mapping[str, Any], source: str, labels: Mapping[str, Any]) -> Alert:
        packet = {"pixel_scale_arcsec": self.ztf.pixel_scale_arcsec, **ztf_packet(packet)}
        return alert_of(packet, source, labels, self.ztf.isdiffpos == "corrected")


def ztf_packet(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a packet, or a row of a table of packets, as a packet; what else it holds is extra."""
    if "candidate" in row:
        packet = {name: row[name] for name in _PACKET if name in row}
        extra = {name: value for name, value in row.items() if name not in _PACKET}
        told = extra.pop("extra", None)
        return {**packet, "extra": extra | (told if isinstance(told, Mapping) else {})}
    row = dict(row)
    packet = {f"cutout{name.title()}": {"stampData": row.pop(f"cutout_{name}", None)}
              for name in STAMPS}  # fmt: skip
    packet |= {name: row.pop(name, None) for name in ("objectId", "prv_candidates", "schemavsn")}
    extra = {name: row.pop(name) for name, value in list(row.items())
             if name.startswith("label") or isinstance(value, Mapping | list)}  # fmt: skip
    return {**packet, "candid": row.get("candid"), "candidate": row, "extra": extra}
