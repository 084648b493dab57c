"""Write mock alerts as ZTF packets: one Avro file an alert, gzipped FITS stamps inside."""

from __future__ import annotations

import gzip
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import fastavro
import numpy as np

from skyray.records import STAMPS, Alert

_INTEGERS = frozenset(
    ("fid", "programid", "candid", "ndethist", "ncovhist", "nmtchps", "nneg", "nbad", "tblid")
)
_TEXTS = frozenset(("isdiffpos", "rbversion", "drbversion"))
_CUTOUT = {"type": "record", "name": "cutout", "fields": [
    {"name": "fileName", "type": "string"}, {"name": "stampData", "type": "bytes"}]}  # fmt: skip
_EXTRA = {"type": "map", "values": ["null", "long", "double", "string"]}


def write_ztf_packets(alerts: Sequence[Alert], folder: Path) -> list[Path]:
    """Write ``CANDID.avro`` for each alert and return the paths.

    Layout and names are those of schema 3.3, with a field ``extra`` more: what a mock knows about
    the truth. Some packets say '1' for a positive subtraction, as the real ones did for a time.
    """
    return [_write(alert, folder / f"{alert.candid}.avro") for alert in alerts]


def _write(alert: Alert, path: Path) -> Path:
    candidate = dict(alert.candidate)
    if candidate.get("isdiffpos") == "t" and alert.candid % 3 == 0:
        candidate["isdiffpos"] = "1"
    packet: dict[str, Any] = {
        "schemavsn": "3.3", "publisher": "skyray mock", "objectId": alert.source_id,
        "candid": alert.candid, "candidate": candidate,
        "prv_candidates": [dict(entry) for entry in alert.history], "extra": dict(alert.extra),
    }  # fmt: skip
    for name, stamp in zip(STAMPS, alert.stamps(), strict=True):
        packet[f"cutout{name.title()}"] = {
            "fileName": f"candid{alert.candid}_{name}.fits.gz", "stampData": gzipped_fits(stamp)
        }  # fmt: skip
    stream = io.BytesIO()
    fastavro.writer(stream, _schema(packet), [packet])
    path.write_bytes(stream.getvalue())
    return path


def _schema(packet: Mapping[str, Any]) -> dict[str, Any]:
    # Without any entry one field all the same: readers refuse arrays of items that take no bytes.
    history = sorted({name for entry in packet["prv_candidates"] for name in entry}) or ["jd"]
    earlier = {"type": "array", "items": _record("prv_candidate", history)}
    fields = [
        *({"name": name, "type": "string"} for name in ("schemavsn", "publisher", "objectId")),
        {"name": "candid", "type": "long"},
        {"name": "candidate", "type": _record("candidate", packet["candidate"])},
        {"name": "prv_candidates", "type": ["null", earlier]},
        {"name": "cutoutScience", "type": ["null", _CUTOUT]},
        {"name": "cutoutTemplate", "type": ["null", "cutout"]},
        {"name": "cutoutDifference", "type": ["null", "cutout"]},
        {"name": "extra", "type": ["null", _EXTRA]},
    ]
    schema = {"type": "record", "name": "alert", "fields": fields}
    return fastavro.parse_schema(schema)


def _record(name: str, fields: Sequence[str] | Mapping[str, Any]) -> dict[str, Any]:
    types = {field: "long" if field in _INTEGERS else "string" if field in _TEXTS else "double"
             for field in fields}  # fmt: skip
    listed = [{"name": field, "type": ["null", kind]} for field, kind in types.items()]
    return {"type": "record", "name": name, "fields": listed}


def gzipped_fits(image: np.ndarray) -> bytes:
    """Return an image as a gzipped FITS file of one HDU; the same bytes for the same image."""
    height, width = image.shape
    cards = [("SIMPLE", "T"), ("BITPIX", "-32"), ("NAXIS", "2"), ("NAXIS1", str(width)),
             ("NAXIS2", str(height))]  # fmt: skip
    header = "".join(f"{key:<8}= {value:>20}".ljust(80) for key, value in cards) + "END"
    data = image.astype(">f4").tobytes()
    blocks = math.ceil(len(data) / 2880) * 2880
    content = header.ljust(2880).encode() + data.ljust(blocks, b"\0")
    return gzip.compress(content, compresslevel=6, mtime=0)
