"""Alert: what a survey says the moment something changes in the sky."""

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

STAMPS = ("science", "template", "difference")


@dataclass(frozen=True, slots=True)
class Alert:
    """One alert packet, as a reader yields it.

    Attributes
    ----------
    object_id : str
        Identifier of this alert, unique in its survey (ZTF: candid, as text).
    source_id : str
        The survey's name of what varies (ZTF: objectId); all alerts of one source share it, and
        it is their object key.
    candid : int
        The alert's number in the survey.
    jd : float
        Julian date of the exposure.
    fid : int
        The survey's number of the band (ZTF: 1 g, 2 r, 3 i).
    science, template, difference : float32 [height, width]
        Raw stamps; NaN where unmeasured; near a detector's edge smaller than usual.
    candidate : mapping
        The survey's fields of this detection under ZTF's names (``magpsf``, ``isdiffpos`` …);
        None where the survey gives nothing.
    history : sequence of mappings
        Earlier detections and upper limits (their ``magpsf`` is None), same names; ``forced`` is
        true of photometry at the place of a source that was not detected then.
    ra, dec : float
        Degrees, ICRS.
    source : str
        File, and row where it holds several.
    extra : mapping
        Columns beside the packet: labels of other catalogues.
    observation_id : str
        Unique for what was measured once; empty where `object_id` is.
    source_pixel : ((row, column), …) or None
        Where the source lies in science, template and difference: pixels from 0, whole numbers at
        pixel centres. None: in the middle pixel (size // 2) of each.
    pixel_scale_arcsec : float
        Of the stamps; NaN where neither packet nor reader tells.
    statements : mapping
        What was decided about schema, units, time and place, and from what.
    """

    object_id: str
    source_id: str
    candid: int
    jd: float
    fid: int
    science: np.ndarray
    template: np.ndarray
    difference: np.ndarray
    candidate: Mapping[str, Any]
    history: Sequence[Mapping[str, Any]] = ()
    ra: float = float("nan")
    dec: float = float("nan")
    survey: str = ""
    source: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)
    observation_id: str = ""
    source_pixel: tuple[tuple[float, float], ...] | None = None
    pixel_scale_arcsec: float = float("nan")
    statements: Mapping[str, str] = field(default_factory=dict)

    def source_pixels(self) -> tuple[tuple[float, float], ...]:
        """Return where the source lies in each stamp, (row, column)."""
        if self.source_pixel is not None:
            return self.source_pixel
        return tuple((stamp.shape[0] // 2, stamp.shape[1] // 2) for stamp in self.stamps())

    def stamps(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return science, template, difference: the order of every triplet."""
        return self.science, self.template, self.difference

    def fields(self) -> dict[str, Any]:
        """Return the scalar columns that cards may name in cuts and label rules."""
        names = ("object_id", "source_id", "candid", "jd", "fid", "ra", "dec", "survey")
        own = {name: getattr(self, name) for name in names}
        return {**self.candidate, **self.extra, **own}


def check_alert(alert: Alert, size: int) -> None:
    """Raise `InvalidRecord` unless the alert can be used.

    In this order: a finite ``jd`` (``jd_not_finite``); a position (``position_invalid``); stamps of
    two axes, of at most `size` pixels a side (``stamp_shape``), and of one shape unless it is known
    where the source lies in each (``stamps_differ``); the source within them
    (``stamp_off_source``); no infinite pixel (``stamp_infinite``); something measured and not 0 in
    each (``stamp_empty``).
    """
    fault = None
    if not np.isfinite(alert.jd):
        fault = "jd_not_finite", f"expected a Julian date, found {alert.jd}"
    stamps = dict(zip(STAMPS, alert.stamps(), strict=True))
    fault = fault or position_fault(alert.ra, alert.dec)
    fault = fault or _shape_fault(alert, stamps, size) or _pixels_fault(stamps)
    if fault:
        raise InvalidRecord(*fault, alert.source, alert.object_id)


def _shape_fault(
    alert: Alert, stamps: Mapping[str, np.ndarray], size: int
) -> tuple[str, str] | None:
    for name, stamp in stamps.items():
        if stamp.ndim != 2 or not 1 <= min(stamp.shape) <= max(stamp.shape) <= size:
            return "stamp_shape", f"{name}: expected at most {size} × {size}, found {stamp.shape}"
    shapes = {name: stamp.shape for name, stamp in stamps.items()}
    if len(set(shapes.values())) > 1 and alert.source_pixel is None:
        detail = f"expected stamps of one shape, or the source's place in each, found {shapes}"
        return "stamps_differ", detail
    for (name, shape), place in zip(shapes.items(), alert.source_pixels(), strict=True):
        if not all(-0.5 <= at < side - 0.5 for at, side in zip(place, shape, strict=True)):
            row, column = place
            detail = f"expected the source within {shape}, found it at {row:.1f}, {column:.1f}"
            return "stamp_off_source", f"{name}: {detail}"
    return None


def _pixels_fault(stamps: Mapping[str, np.ndarray]) -> tuple[str, str] | None:
    for name, stamp in stamps.items():
        if np.isinf(stamp).any():
            return "stamp_infinite", f"{name}: expected finite pixels"
        if not np.nan_to_num(stamp).any():
            return "stamp_empty", f"{name}: expected a signal, every pixel is 0 or NaN"
    return None


def alert_schema(size: int, features: Sequence[str]) -> pa.Schema:
    """Return the Arrow schema of an Alert dataset.

    ``triplet`` float32 [3, size, size]: the raw stamps in the order science, template, difference,
    the source in the middle pixel (size // 2), NaN where unmeasured and beyond the stamp's own
    pixels, which are ``stamp_box`` int32 [3, 4]: top, left, height, width of each.
    ``metadata`` float32 [len(features)] in the order of `features`, NaN where unknown. ``history``
    holds the earlier detections and upper limits; ``forced``: measured where nothing was detected.
    """
    history = pa.struct(
        [("jd", pa.float64()), ("fid", pa.int32()), ("magpsf", pa.float32()),
         ("sigmapsf", pa.float32()), ("diffmaglim", pa.float32()), ("forced", pa.bool_())]
    )  # fmt: skip
    return pa.schema(
        [
            *OBJECT_FIELDS,
            pa.field("candid", pa.int64(), nullable=False),
            pa.field("jd", pa.float64(), nullable=False),
            pa.field("fid", pa.int32(), nullable=False),
            pa.field("triplet", tensor_type(pa.float32(), [3, size, size]), nullable=False),
            pa.field("stamp_box", tensor_type(pa.int32(), [3, 4]), nullable=False),
            pa.field("metadata", tensor_type(pa.float32(), [len(features)]), nullable=False),
            pa.field("history", pa.list_(history)),
        ],
        metadata=schema_metadata("alert", {"features": list(features)}),
    )
