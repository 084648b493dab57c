"""Request body → alerts: the survey's Avro packets, numpy triplets, JSON packets.

Whatever the form, the candidate's fields come under ZTF's names (or the card's own, in Avro), and
the model's metadata are computed from them by the same function as in training.
"""

from __future__ import annotations

import base64
import io
import json
import zipfile
from functools import partial
from typing import Annotated, Any

import numpy as np
from astropy.io import fits
from pydantic import BaseModel, ConfigDict, Field
from serve.decode_json import json_records
from serve.refusal import Refusal
from serve.uploads import Decoded, read_upload

from skyray.cards import Card
from skyray.readers.alert_packet import alert_of
from skyray.readers.ztf import ZtfOptions
from skyray.records import STAMPS, Alert, InvalidRecord, attempt

_AVRO = ("application/avro", "avro/binary", "application/octet-stream")
_NPZ = "application/x-npz"
CONTENT_TYPES = ("application/json", *_AVRO, _NPZ)
_MAX_STAMP = 512

Row = Annotated[list[float | None], Field(fail_fast=True, max_length=_MAX_STAMP)]
Stamp = str | Annotated[list[Row], Field(fail_fast=True, max_length=_MAX_STAMP)]


class AlertJSON(BaseModel):
    """One alert packet under ZTF's names."""

    model_config = ConfigDict(extra="forbid")

    objectId: str = Field(min_length=1, max_length=200)
    candid: int
    candidate: dict[str, Any] = Field(description="jd, fid, ra, dec, magpsf …")
    prv_candidates: Annotated[list[dict[str, Any]], Field(fail_fast=True)] = Field(
        default_factory=list, max_length=10_000
    )
    cutouts: dict[str, Stamp] = Field(
        description="science, template, difference: base64 of FITS (gzipped or not), or rows"
    )


class AlertsJSON(BaseModel):
    """Several alerts in one request."""

    model_config = ConfigDict(extra="forbid")

    alerts: list[AlertJSON] = Field(min_length=1)


def decode_alerts(
    kind: str, body: bytes, card: Card, max_records: int, max_bytes: int, name: str
) -> Decoded:
    """Return the alerts of a body of content type `kind`, one of `CONTENT_TYPES`."""
    if kind == "application/json":
        return json_records(body, AlertJSON, "alerts", partial(_of_json, card=card), max_records)
    if kind == _NPZ:
        return [_of_npz(body, max_bytes, card)]
    return read_upload(card.reader, card.reader_options, body, "upload.avro", max_records)


def _of_json(item: AlertJSON, row: int, card: Card) -> Alert | InvalidRecord:
    def alert() -> Alert:
        stamps = {
            f"cutout{name.title()}": _stamp_bytes(item.cutouts.get(name), name) for name in STAMPS
        }
        return _alert(item, stamps, row, card)

    return attempt(alert, f"request[{row}]", str(item.candid))


def _alert(item: AlertJSON, stamps: dict[str, bytes], row: int, card: Card) -> Alert:
    """Return the record of a packet under ZTF's names, by the card's options as from a file."""
    options = card.reader_options
    if card.reader == "ztf":
        options = ZtfOptions.load(options).model_dump()
    packet = {"objectId": item.objectId, "candid": item.candid, "candidate": item.candidate,
              "prv_candidates": item.prv_candidates, "survey": "request"}  # fmt: skip
    packet["pixel_scale_arcsec"] = options.get("pixel_scale_arcsec")
    one_sign = options.get("isdiffpos", "corrected") == "corrected"
    return alert_of(packet | stamps, f"request[{row}]", one_sign=one_sign)


def _stamp_bytes(stamp: Stamp | None, name: str) -> bytes:
    if stamp is None:
        raise InvalidRecord("stamp_missing", f"cutouts: expected {name}")
    if isinstance(stamp, str):
        try:
            return base64.b64decode(stamp, validate=True)
        except ValueError as error:  # not base64, or not ASCII
            raise InvalidRecord("stamp_not_base64", f"{name}: {error}") from None
    try:
        return _fits(np.array(stamp, dtype=np.float64), name)
    except ValueError:
        raise InvalidRecord("stamp_shape", f"{name}: expected rows of one length") from None


def _fits(values: np.ndarray, name: str) -> bytes:
    if values.ndim != 2 or not 1 <= min(values.shape) <= max(values.shape) <= _MAX_STAMP:
        raise InvalidRecord(
            "stamp_shape",
            f"{name}: expected two axes of at most {_MAX_STAMP}, found {values.shape}",
        )
    content = io.BytesIO()
    with np.errstate(over="ignore"):
        fits.PrimaryHDU(values.astype(np.float32)).writeto(content)
    return content.getvalue()


def _of_npz(body: bytes, max_bytes: int, card: Card) -> Alert | InvalidRecord:
    """Read arrays science, template, difference and ``packet``, its JSON text as uint8 or str."""
    try:
        with zipfile.ZipFile(io.BytesIO(body)) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > max_bytes:
                raise Refusal(413, "body_too_large", f"expected ≤ {max_bytes:,} bytes inflated")
        arrays = dict(np.load(io.BytesIO(body), allow_pickle=False))
        packet = arrays["packet"]
        text = packet.tobytes() if packet.dtype == np.uint8 else str(packet.item())
        value = json.loads(text)
        item = {"cutouts": {}, **value}
        parsed = AlertJSON.model_validate(item)
        stamps = {f"cutout{name.title()}": _fits(arrays[name], name) for name in STAMPS}
    except InvalidRecord as error:
        raise Refusal(400, error.reason, error.detail) from None
    except KeyError as error:
        raise Refusal(400, "npz_array_missing", f"expected an array {error}") from None
    except Refusal:
        raise
    except Exception as error:  # encrypted, an unknown compression, damaged: zipfile has many ways
        raise Refusal(400, "npz_invalid", f"{type(error).__name__}: {error}"[:300]) from None
    return attempt(lambda: _alert(parsed, stamps, 0, card), "request[0]", str(parsed.candid))
