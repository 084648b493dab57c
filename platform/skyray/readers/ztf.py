"""ZTF alerts: Avro packets (schemas 3 and 4) and the same packets gathered in Parquet tables.

A packet holds ``objectId``, ``candid``, ``candidate``, ``prv_candidates`` and three gzipped FITS
stamps. A table has a row an alert: the candidate's fields under their names, ``objectId``,
``prv_candidates`` (a list of structs) and ``cutout_science``, ``cutout_template``,
``cutout_difference`` with the packet's own bytes. Further columns go into ``extra``.

Source: https://zwickytransientfacility.github.io/ztf-avro-alert/schema.html
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa
from pydantic import Field

from skyray.config import Config
from skyray.readers.avro_bytes import avro_records
from skyray.readers.base import Reader, SurveyFile, register
from skyray.readers.columns import parquet_units
from skyray.readers.foreign_arrow import ParquetFile
from skyray.readers.stamps import read_stamp
from skyray.records import STAMPS, Alert, InvalidRecord

_ROWS_AT_ONCE = 64
_HISTORY = ("jd", "fid", "magpsf", "sigmapsf", "diffmaglim", "isdiffpos")
_POSITIVE = {"t": "t", "1": "t", "true": "t", "f": "f", "0": "f", "false": "f"}


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

    def units(self, file: SurveyFile) -> list[int]:
        return parquet_units(file) if file.name.endswith(".parquet") else [0]

    def read(self, file: SurveyFile, unit: int = 0) -> Iterator[Alert | InvalidRecord]:
        if file.name.endswith(".parquet"):
            packets = table_packets(file, unit)
        else:
            packets = avro_packets(file)
        labels = self._labels.of(file)
        for packet, source in packets:
            if isinstance(packet, InvalidRecord):
                yield packet
                continue
            try:
                yield alert_of(packet, source, labels, self.ztf.isdiffpos == "corrected")
            except InvalidRecord as error:
                yield error


def avro_packets(file: SurveyFile) -> Iterator[tuple[dict[str, Any] | InvalidRecord, str]]:
    """Yield the packets of an Avro file with the name of each."""
    for number, packet in enumerate(avro_records(file.read_bytes(), file.path)):
        yield packet, file.path if number == 0 else f"{file.path}#{number}"


def table_packets(file: SurveyFile, unit: int) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield the rows of a Parquet row group as packets.

    Raises
    ------
    InvalidRecord
        ``parquet_invalid``, ``extension_type``.
    """
    with ParquetFile(file.path, file.filesystem) as parquet:
        try:
            number = sum(parquet.metadata.row_group(n).num_rows for n in range(unit))
            for batch in parquet.iter_batches(_ROWS_AT_ONCE, row_groups=[unit]):
                for row in batch.to_pylist():
                    yield _packet_of_row(row), f"{file.path}#{number}"
                    number += 1
        except (pa.ArrowException, OSError) as error:
            raise InvalidRecord("parquet_invalid", str(error), file.path) from None


def _packet_of_row(row: dict[str, Any]) -> dict[str, Any]:
    packet = {f"cutout{name.title()}": {"stampData": row.pop(f"cutout_{name}", None)}
              for name in STAMPS}  # fmt: skip
    packet |= {name: row.pop(name, None) for name in ("objectId", "prv_candidates", "schemavsn")}
    extra = {name: row.pop(name) for name in list(row) if name.startswith("label")}
    return {**packet, "candid": row.get("candid"), "candidate": row, "extra": extra}


def alert_of(
    packet: Mapping[str, Any],
    source: str,
    labels: Mapping[str, Mapping[str, Any]] | None = None,
    one_sign: bool = True,
) -> Alert:
    """Turn a packet under ZTF's names into a record.

    Parameters
    ----------
    packet : mapping
        ``cutoutScience`` and its like hold ``stampData``, gzipped or plain FITS.
    labels : mapping, optional
        Columns for ``extra`` by objectId or candid.
    one_sign : bool
        Whether ``isdiffpos`` becomes 't' or 'f', however it was written.

    Raises
    ------
    InvalidRecord
        ``packet_field_missing``, ``packet_field_invalid``, or what `read_stamp` refuses.
    """
    candidate = _need(packet, "candidate", Mapping, source)
    candid = packet.get("candid") or candidate.get("candid")
    source_id = packet.get("objectId")
    if not candid or not source_id:
        detail = f"expected objectId and candid, found {source_id!r} and {candid!r}"
        raise InvalidRecord("packet_field_missing", detail, source)
    candidate = {**candidate, "isdiffpos": _sign(candidate.get("isdiffpos"), one_sign)}
    if candidate.get("drb") == 0 and candidate.get("drbversion") in ("", None):
        candidate["drb"] = None  # packets of 2018 and 2019: nothing was computed
    history = packet.get("prv_candidates") or ()
    stamps = {name: read_stamp(_stamp(packet, name), source) for name in STAMPS}
    extra = {"schemavsn": packet.get("schemavsn"), "sgscore_best": _best_score(candidate)}
    extra |= packet.get("extra") or {}
    for key in (str(source_id), str(candid)):
        extra |= (labels or {}).get(key, {})
    try:
        return Alert(
            object_id=str(candid), source_id=str(source_id), candid=int(candid),
            jd=float(candidate["jd"]), fid=int(candidate["fid"]),
            candidate=candidate, ra=float(candidate["ra"]), dec=float(candidate["dec"]),
            history=[{name: entry.get(name) for name in _HISTORY} for entry in history],
            survey=str(packet.get("survey", "ztf")), source=source, extra=extra, **stamps,
        )  # fmt: skip
    except KeyError as error:
        detail = f"candidate: expected a field {error}"
        raise InvalidRecord("packet_field_missing", detail, source, str(candid)) from None
    except (TypeError, ValueError, AttributeError) as error:
        raise InvalidRecord("packet_field_invalid", str(error), source, str(candid)) from None


def _need(packet: Mapping[str, Any], name: str, kind: type, source: str) -> Any:
    found = packet.get(name)
    if not isinstance(found, kind):
        detail = f"expected {name}, found {type(found).__name__}; fields: {sorted(packet)[:20]}"
        raise InvalidRecord("packet_field_missing", detail, source)
    return found


def _stamp(packet: Mapping[str, Any], name: str) -> Any:
    cutout = packet.get(f"cutout{name.title()}")
    return cutout.get("stampData") if isinstance(cutout, Mapping) else cutout


def _sign(value: Any, one_sign: bool) -> Any:
    if value is None or not one_sign:
        return value
    return _POSITIVE.get(str(value).strip().lower(), str(value))


def _best_score(candidate: Mapping[str, Any]) -> float | None:
    scores = [candidate.get(name) for name in ("sgscore1", "sgscore2")]
    return max((s for s in scores if s is not None and not math.isnan(s)), default=None)


class SideLabels:
    """A CSV beside the packets: columns by objectId or candid; none where there is no such file.

    A stream has no labels, so a missing file is no fault; what it says is kept until it changes.
    """

    def __init__(self, name: str | None):
        self.name = name
        self._kept: tuple[Any, dict[str, dict[str, Any]]] = (None, {})

    def of(self, file: SurveyFile) -> dict[str, dict[str, Any]]:
        """Return the rows beside `file`.

        Raises
        ------
        InvalidRecord
            ``labels_invalid``.
        """
        if self.name is None:
            return {}
        beside = file.sibling(self.name)
        info = beside.filesystem.get_file_info(beside.path)
        if not info.is_file:
            return {}
        stamp = (beside.path, info.size, info.mtime_ns)
        if self._kept[0] != stamp:
            self._kept = stamp, _rows_by_name(beside)
        return self._kept[1]


def _rows_by_name(beside: SurveyFile) -> dict[str, dict[str, Any]]:
    try:
        rows = list(csv.DictReader(io.StringIO(beside.read_bytes().decode())))
    except (UnicodeDecodeError, csv.Error) as error:
        raise InvalidRecord("labels_invalid", str(error), beside.path) from None
    key = next((k for k in ("objectId", "candid") if rows and k in rows[0]), None)
    if key is None:
        detail = "expected a column objectId or candid"
        raise InvalidRecord("labels_invalid", detail, beside.path)
    return {row.pop(key): {name: _value(text) for name, text in row.items()} for row in rows}


def _value(text: str | None) -> Any:
    for convert in (int, float):
        try:
            return convert(text)
        except (TypeError, ValueError):
            continue
    return text
