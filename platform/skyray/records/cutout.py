"""Cutout: an image of one object in one or several bands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from skyray.records.columns import (
    OBJECT_FIELDS,
    InvalidRecord,
    position_fault,
    schema_metadata,
    tensor_type,
)


@dataclass(frozen=True, slots=True)
class Cutout:
    """One object's image, as a reader yields it.

    Attributes
    ----------
    object_id : str
        The survey's own name of what was observed, exact.
    image : float32 [bands, height, width]
        In the survey's units (nanomaggies, counts, 0–255 of a JPEG); row 0 is the first row of the
        file. NaN where unmeasured.
    bands : tuple of str
        One name a plane: ``("g", "r", "i")``, ``("red", "green", "blue")``.
    pixel_scale_arcsec : float
        NaN where unknown.
    ra, dec : float
        Degrees, ICRS; NaN where unknown.
    redshift : float
        NaN where unknown.
    source : str
        File, and row where it holds several.
    extra : mapping
        Further survey columns that cards may cut on or label by (``petro_rad_arcsec``, votes …).
    observation_id : str
        Unique for what was measured once; empty where `object_id` is.
    statements : mapping
        What was decided about the values, and from what the file states it: ``bands``, ``unit``,
        ``hdu``, ``pixel_scale_arcsec`` … (`records.statements`).
    """

    object_id: str
    image: np.ndarray
    bands: tuple[str, ...]
    pixel_scale_arcsec: float = float("nan")
    ra: float = float("nan")
    dec: float = float("nan")
    redshift: float = float("nan")
    survey: str = ""
    source: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)
    observation_id: str = ""
    statements: Mapping[str, str] = field(default_factory=dict)

    def fields(self) -> dict[str, Any]:
        """Return the scalar columns that cards may name in cuts and label rules."""
        names = ("object_id", "ra", "dec", "redshift", "pixel_scale_arcsec", "survey")
        return {**self.extra, **{name: getattr(self, name) for name in names}}


def check_cutout(cutout: Cutout, bands: Sequence[str]) -> None:
    """Raise `InvalidRecord` unless the image can be used.

    In this order: a position (``position_invalid``), three axes (``image_shape``), the card's bands
    (``bands_wrong``), at least 8 pixels a side (``image_too_small``), no infinite pixel
    (``image_infinite``), in every band at least half of the pixels measured (``image_unmeasured``)
    and not all the same value (``image_constant``).
    """
    fault = position_fault(cutout.ra, cutout.dec)
    fault = fault or _image_fault(np.asarray(cutout.image), cutout.bands, tuple(bands))
    if fault:
        raise InvalidRecord(*fault, cutout.source, cutout.object_id)


def _image_fault(
    image: np.ndarray, found: Sequence[str], expected: tuple[str, ...]
) -> tuple[str, str] | None:
    if image.ndim != 3 or len(image) != len(found):
        return "image_shape", f"expected [{len(found)} bands, height, width], found {image.shape}"
    if tuple(found) != expected:
        return "bands_wrong", f"expected bands {expected}, found {tuple(found)}"
    if min(image.shape[1:]) < 8:
        return "image_too_small", f"expected at least 8 × 8 pixels, found {image.shape[1:]}"
    if np.isinf(image).any():
        return "image_infinite", f"expected finite pixels, found {int(np.isinf(image).sum())} not"
    for name, plane in zip(found, image, strict=True):
        measured = plane[~np.isnan(plane)]
        if 2 * measured.size < plane.size:
            return (
                "image_unmeasured",
                f"band {name}: expected at least half of {plane.size} pixels measured, "
                f"found {measured.size}",
            )
        if measured.min() == measured.max():
            return "image_constant", f"band {name}: every pixel is {measured.min():g}"
    return None


def cutout_schema(bands: Sequence[str], height: int, width: int) -> pa.Schema:
    """Return the Arrow schema of a Cutout dataset: image float32 [bands, height, width]."""
    return pa.schema(
        [
            *OBJECT_FIELDS,
            pa.field("redshift", pa.float64()),
            pa.field("pixel_scale_arcsec", pa.float64(), nullable=False),
            pa.field(
                "image", tensor_type(pa.float32(), [len(bands), height, width]), nullable=False
            ),
        ],
        metadata=schema_metadata("cutout", {"bands": list(bands)}),
    )
