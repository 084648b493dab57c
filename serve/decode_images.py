"""Request body → cutouts: JPEG, PNG, TIFF, FITS, numpy arrays, JSON."""

from __future__ import annotations

import math
import posixpath
from functools import partial
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field
from serve.decode_json import json_records
from serve.uploads import Decoded, plain, read_upload

from skyray.cards import Card
from skyray.readers.images import without_suffix
from skyray.records import Cutout, InvalidRecord

# content type → reader and the ending its files have
_READERS = {
    "image/jpeg": ("image_files", "upload.jpg"),
    "image/png": ("image_files", "upload.png"),
    "image/tiff": ("image_files", "upload.tiff"),
    "application/fits": ("image_fits", "upload.fits"),
    "image/fits": ("image_fits", "upload.fits"),
    "application/x-npy": ("image_arrays", "upload.npy"),
    "application/x-npz": ("image_arrays", "upload.npz"),
}
CONTENT_TYPES = ("application/json", *_READERS)
_OPTIONS = ("pixel_scale_arcsec", "survey")
_FLUX_OPTIONS = ("unit", "zero_point")  # what a card says of its FITS images, uploads too
_LAYOUT_OPTIONS = {"image_fits": ("hdu", "hdus"), "image_arrays": ("items",)}  # of the same reader
_KEYWORDS = ("fields", "extra")  # of FITS files, where they are no columns of a table beside them
_MAX_SIDE = 4096


Row = Annotated[list[float | None], Field(fail_fast=True, max_length=_MAX_SIDE)]
Plane = Annotated[list[Row], Field(fail_fast=True, max_length=_MAX_SIDE)]


class CutoutJSON(BaseModel):
    """One cutout. null stands for a pixel that was not measured."""

    model_config = ConfigDict(extra="forbid")

    image: Annotated[list[Plane], Field(fail_fast=True)] = Field(
        description="[bands][rows][columns]"
    )
    bands: Annotated[list[str], Field(fail_fast=True)] | None = Field(
        None, description="one a plane; default: the model's own"
    )
    object_id: str | int = ""
    pixel_scale_arcsec: float | None = Field(None, gt=0, allow_inf_nan=False)
    survey: str | None = Field(None, max_length=100, description="default: the model's own")


class CutoutsJSON(BaseModel):
    """Several cutouts in one request."""

    model_config = ConfigDict(extra="forbid")

    cutouts: list[CutoutJSON] = Field(min_length=1)


def decode_cutouts(
    kind: str, body: bytes, card: Card, max_records: int, max_bytes: int, name: str
) -> Decoded:
    """Return the cutouts of a body of content type `kind`, one of `CONTENT_TYPES`."""
    if kind == "application/json":
        make = partial(_cutout, card=card)
        return json_records(body, CutoutJSON, "cutouts", make, max_records)
    body = plain(body, max_bytes)
    reader, default = _READERS[kind]
    options = _options(card, reader)
    ending = default[default.index(".") :]
    name = f"{without_suffix(posixpath.basename(name)) or 'upload'}{ending}"
    return read_upload(reader, options, body, name, max_records)


def _options(card: Card, reader: str) -> dict[str, Any]:
    """Return a reader's options for an upload: what the card says, as far as it is of the file."""
    names = set(_OPTIONS) | (set(_FLUX_OPTIONS) if reader == "image_fits" else set())
    if reader == card.reader:
        names |= set(_LAYOUT_OPTIONS.get(reader, ()))
        beside = reader != "image_fits" or card.reader_options.get("table")
        names |= set() if beside else set(_KEYWORDS)
    found = {name: card.reader_options[name] for name in names & set(card.reader_options)}
    # Known before anything is unpacked: what an image of the card can be, with room to shrink.
    side = card.image_size * 2 if card.image_fit == "exact" else max(card.image_size * 4, 1024)
    limit = card.reader_options.get("max_pixels", max(side, 512) ** 2)
    return {**found, "bands": card.bands, "max_pixels": limit}


def _cutout(item: CutoutJSON, row: int, card: Card) -> Cutout | InvalidRecord:
    source, name = f"request[{row}]", str(item.object_id) or str(row)
    shapes = {(len(plane), len(line)) for plane in item.image for line in plane}
    ragged = len(shapes) != 1 or len({len(plane) for plane in item.image}) != 1
    if ragged or max(next(iter(shapes))) > _MAX_SIDE:
        detail = f"expected planes of one shape, at most {_MAX_SIDE} a side; found {shapes or '{}'}"
        return InvalidRecord("image_shape", detail[:300], source, name)
    with np.errstate(over="ignore"):  # becomes infinite and is refused by name
        image = np.array(item.image, dtype=np.float64).astype(np.float32)
    scale = item.pixel_scale_arcsec
    scale = card.pixel_scale_arcsec if scale is None else scale
    return Cutout(
        object_id=name,
        image=image,
        bands=tuple(item.bands or card.bands),
        pixel_scale_arcsec=math.nan if scale is None else scale,
        survey=item.survey or str(card.reader_options.get("survey", "request")),
        source=source,
    )
