"""From records to the rows of a dataset and to the columns a model gets; one place a record type.

Everything that turns a record into numbers passes through here: ingest on its way to Parquet,
prediction over HTTP on its way to the transform. So both see the same pixels.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
import pyarrow as pa

from skyray.cards import Card
from skyray.records import (
    SPLITS,
    Alert,
    Cutout,
    Grid,
    InvalidRecord,
    Record,
    Spectrum,
    alert_schema,
    attempt,
    check_alert,
    check_cutout,
    check_spectrum,
    cutout_schema,
    spectrum_schema,
    statements_text,
)
from skyray.transforms.alerts import FEATURES, alert_features, place_stamp
from skyray.transforms.images import fit_image, fitted_scale
from skyray.transforms.spectra import place_on_grid

if TYPE_CHECKING:  # brings torch, which ingest workers do not need
    from skyray.families.base import Columns, DataInfo


class RowKind(Protocol):
    """How one record type is stored. `about` is a card or a `DataInfo`: both know the layout."""

    copied: ClassVar[tuple[str, ...]]  # attributes that become columns of the same name
    told: ClassVar[tuple[str, ...]]  # those that a model gets too

    def schema(self, card: Card) -> pa.Schema:
        """Return the dataset's schema."""

    def check(self, record: Record, about: Card | DataInfo) -> None:
        """Raise `InvalidRecord` unless the record can be used."""

    def arrays(self, record: Record, about: Card | DataInfo) -> dict[str, Any]:
        """Return the pixels of a checked record, as they are stored and as a model gets them.

        Raises
        ------
        InvalidRecord
            If they do not fit.
        """


MAX_STAMP = 512  # pixels a side; Rubin's largest have some 100
_OBJECT = ("object_id", "ra", "dec", "survey", "source")


class SpectrumRows:
    """flux, ivar, mask on the card's grid."""

    copied = (*_OBJECT, "spectype", "subtype", "redshift", "redshift_err", "zwarning", "snr")
    told = ("spectype", "redshift", "redshift_err", "zwarning")

    def schema(self, card: Card) -> pa.Schema:
        return spectrum_schema(card.grid.grid())

    def check(self, record: Spectrum, about: Card | DataInfo) -> None:
        check_spectrum(record, about.min_good_pixels)

    def arrays(self, record: Spectrum, about: Card | DataInfo) -> dict[str, Any]:
        grid = about.grid if isinstance(about.grid, Grid) else about.grid.grid()
        flux, ivar, mask = place_on_grid(record, grid)
        good = len(mask) - np.count_nonzero(mask)
        if good < about.min_good_pixels:
            raise InvalidRecord(
                "off_grid",
                f"expected ≥ {about.min_good_pixels} good pixels on the card's grid, found {good}",
                record.source,
                record.object_id,
            )
        return {"flux": flux, "ivar": ivar, "mask": mask}


class CutoutRows:
    """image [bands, size, size], and what a pixel of it then measures."""

    copied = (*_OBJECT, "redshift", "pixel_scale_arcsec")
    told = ("redshift", "pixel_scale_arcsec", "survey")

    def schema(self, card: Card) -> pa.Schema:
        return cutout_schema(card.bands, card.image_size, card.image_size)

    def check(self, record: Cutout, about: Card | DataInfo) -> None:
        check_cutout(record, about.bands)

    def arrays(self, record: Cutout, about: Card | DataInfo) -> dict[str, Any]:
        image, size = np.asarray(record.image, dtype=np.float32), about.image_size
        if about.image_fit == "exact" and image.shape[1:] != (size, size):
            raise InvalidRecord(
                "image_size",
                f"expected {size} × {size} pixels, found {image.shape[1]} × {image.shape[2]}",
                record.source,
                record.object_id,
            )
        scale = record.pixel_scale_arcsec
        return {
            "image": fit_image(image, size, about.image_fit),
            "pixel_scale_arcsec": fitted_scale(scale, image.shape[1:], size, about.image_fit),
        }


class AlertRows:
    """triplet [3, size, size] about the source, the ordered metadata and the history."""

    copied = (*_OBJECT, "candid", "jd", "fid")
    told = ("ra", "dec", "candid", "jd", "fid")

    def schema(self, card: Card) -> pa.Schema:
        return alert_schema(card.image_size, card.features or FEATURES)

    def check(self, record: Alert, about: Card | DataInfo) -> None:
        check_alert(record, about.image_size if about.image_fit == "exact" else MAX_STAMP)

    def arrays(self, record: Alert, about: Card | DataInfo) -> dict[str, Any]:
        zoom = _zoom(record, about) if about.image_fit == "resize" else 1.0
        placed = [
            place_stamp(stamp, pixel, about.image_size, zoom)
            for stamp, pixel in zip(record.stamps(), record.source_pixels(), strict=True)
        ]
        planes, boxes = zip(*placed, strict=True)
        try:
            metadata = alert_features(record, about.features or FEATURES)
        except InvalidRecord as error:
            raise InvalidRecord(
                error.reason, error.detail, record.source, record.object_id
            ) from None
        return {
            "triplet": np.stack(planes),
            "stamp_box": np.array(boxes, dtype=np.int32),
            "metadata": metadata,
            "history": [{name: row.get(name) for name in _HISTORY} for row in record.history],
        }


def _zoom(record: Alert, about: Card | DataInfo) -> float:
    """Return how many pixels of the card's scale a pixel of the stamps is wide."""
    if not record.pixel_scale_arcsec > 0 or not about.pixel_scale_arcsec:
        raise InvalidRecord(
            "pixel_scale_unknown",
            f"image_fit: resize: expected the scale of stamps and card, found "
            f"{record.pixel_scale_arcsec} and {about.pixel_scale_arcsec} arcsec",
            record.source,
            record.object_id,
        )
    return record.pixel_scale_arcsec / about.pixel_scale_arcsec


_HISTORY = ("jd", "fid", "magpsf", "sigmapsf", "diffmaglim", "forced")
_KINDS: dict[str, RowKind] = {
    "spectrum": SpectrumRows(),
    "cutout": CutoutRows(),
    "alert": AlertRows(),
}
_TYPES: dict[str, type] = {"spectrum": Spectrum, "cutout": Cutout, "alert": Alert}


def schema_of(card: Card) -> pa.Schema:
    """Return the Arrow schema of the card's dataset."""
    return _KINDS[card.record].schema(card)


def row_of(card: Card, record: Record, apply_cuts: bool = True) -> dict[str, Any]:
    """Turn a record into a row of the card's dataset.

    Raises
    ------
    InvalidRecord
        If the record is not usable, outside the card's selection, or of another type.
    """
    kind = _kind_of(record, card)
    fields = record.fields()
    if apply_cuts:
        card.check_cuts(fields, record.source)
    key = card.key_of(fields)
    extra = {**record.candidate, **record.extra} if isinstance(record, Alert) else record.extra
    return {
        **{name: getattr(record, name) for name in kind.copied},
        "observation_id": record.observation_id or record.object_id,
        "object_key": key,
        "split": split_of(key, card.split),
        "label": card.label_of(fields),
        "extra": plain_json(extra),
        "statements": statements_text(record.statements),
        **kind.arrays(record, card),
    }


def columns_of(records: Sequence[Record], info: DataInfo) -> Columns:
    """Return records as the columns a family's transform takes, [B, ...] each.

    Raises
    ------
    InvalidRecord
        If one cannot be used.
    """
    rows = []
    for record in records:
        kind = _kind_of(record, info)
        told = {name: getattr(record, name) for name in kind.told}
        rows.append(told | kind.arrays(record, info))
    return {name: _column([row[name] for row in rows]) for name in rows[0]}


def admit(record: Record | InvalidRecord, info: DataInfo) -> Record | InvalidRecord:
    """Return a record if a model trained on `info` can use it, else why it cannot."""
    if isinstance(record, InvalidRecord):
        return record
    made = attempt(lambda: columns_of([record], info), record.source, record.object_id)
    return made if isinstance(made, InvalidRecord) else record


def content_digest(record: Record, info: DataInfo) -> str:
    """Return a digest of what a model trained on `info` gets to see of a record, as `check_record`.

    Raises
    ------
    InvalidRecord
    """
    kind = _kind_of(record, info)
    told = {name: getattr(record, name) for name in kind.told} | kind.arrays(record, info)
    digest = hashlib.sha256()
    for name, value in sorted(told.items()):
        plain = value.tobytes() if isinstance(value, np.ndarray) else repr(value).encode()
        digest.update(name.encode() + b"\0" + plain + b"\0")
    return digest.hexdigest()[:32]


def plain_json(values: Mapping[str, Any]) -> str:
    """Return survey columns as JSON: numpy scalars as plain ones, NaN and infinities as null.

    Dates and times are ISO 8601, decimals integers or text.
    """

    def plain(value: Any) -> Any:
        if isinstance(value, np.ndarray | list | tuple):
            return [plain(item) for item in value]
        if isinstance(value, Mapping):
            return {str(name): plain(item) for name, item in value.items()}
        if isinstance(value, np.generic):
            value = value.item()
        if isinstance(value, bytes):
            return value.decode("latin-1").strip()
        if isinstance(value, float) and not math.isfinite(value):
            return None
        if isinstance(value, Decimal):  # exact, as JSON's own numbers are for few who read them
            return int(value) if value == value.to_integral_value() else str(value)
        if isinstance(value, datetime.date | datetime.time):
            return value.isoformat()
        return str(value) if isinstance(value, datetime.timedelta) else value

    return json.dumps({str(k): plain(v) for k, v in values.items()}, sort_keys=True, default=str)


def _kind_of(record: Record, about: Card | DataInfo) -> RowKind:
    """Return how a record is stored, after checking it."""
    if not isinstance(record, _TYPES[about.record]):
        raise InvalidRecord(
            "record_type",
            f"expected a record of type {about.record}, found {type(record).__name__}",
            record.source,
            record.object_id,
        )
    kind = _KINDS[about.record]
    kind.check(record, about)
    return kind


def _column(values: list[Any]) -> np.ndarray:
    if isinstance(values[0], str | list):
        column = np.empty(len(values), dtype=object)
        column[:] = values
        return column
    return np.stack([np.asarray(value) for value in values])


def split_of(key: str, fractions: Mapping[str, float]) -> str:
    """Return the split of an object: sha256 of its key as a uniform number in [0, 1).

    Depends on nothing else, so that an object keeps its split when data are added.
    """
    digest = hashlib.sha256(key.encode()).digest()
    uniform = int.from_bytes(digest[:8], "big") / 2.0**64
    edge = 0.0
    for split in SPLITS[:-1]:
        edge += fractions[split]
        if uniform < edge:
            return split
    return SPLITS[-1]
