"""Alert: what a survey says the moment something changes in the sky."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from skyray.records.columns import OBJECT_FIELDS, InvalidRecord, schema_metadata, tensor_type

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
        Earlier detections and upper limits (their ``magpsf`` is None), same names.
    ra, dec : float
        Degrees, ICRS.
    source : str
        File, and row where it holds several.
    extra : mapping
        Columns beside the packet: labels of other catalogues.
    observation_id : str
        Unique for what was measured once; empty where `object_id` is.
    statements : mapping
        What was decided about the values, and from which statement of the file
        (`records.statements`).
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
    statements: Mapping[str, str] = field(default_factory=dict)

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

    In this order: a finite ``jd`` (``jd_not_finite``); stamps of two axes, of at most `size` pixels
    a side (``stamp_shape``) and of one shape (``stamps_differ``); no infinite pixel
    (``stamp_infinite``); something measured and not 0 in each (``stamp_empty``).
    """
    fault = None
    if not np.isfinite(alert.jd):
        fault = "jd_not_finite", f"expected a Julian date, found {alert.jd}"
    stamps = dict(zip(STAMPS, alert.stamps(), strict=True))
    fault = fault or _stamps_fault(stamps, size)
    if fault:
        raise InvalidRecord(*fault, alert.source, alert.object_id)


def _stamps_fault(stamps: Mapping[str, np.ndarray], size: int) -> tuple[str, str] | None:
    for name, stamp in stamps.items():
        if stamp.ndim != 2 or not 1 <= min(stamp.shape) <= max(stamp.shape) <= size:
            return "stamp_shape", f"{name}: expected at most {size} × {size}, found {stamp.shape}"
    shapes = {name: stamp.shape for name, stamp in stamps.items()}
    if len(set(shapes.values())) > 1:
        return "stamps_differ", f"expected stamps of one shape, found {shapes}"
    for name, stamp in stamps.items():
        if np.isinf(stamp).any():
            return "stamp_infinite", f"{name}: expected finite pixels"
        if not np.nan_to_num(stamp).any():
            return "stamp_empty", f"{name}: expected a signal, every pixel is 0 or NaN"
    return None


def alert_schema(size: int, features: Sequence[str]) -> pa.Schema:
    """Return the Arrow schema of an Alert dataset.

    ``triplet`` float32 [3, size, size]: the raw stamps in the order science, template, difference,
    NaN where unmeasured and beyond the stamp's own size, which is ``stamp_shape`` int32 [2].
    ``metadata`` float32 [len(features)] in the order of `features`, NaN where unknown. ``history``
    holds the earlier detections and upper limits.
    """
    history = pa.struct(
        [("jd", pa.float64()), ("fid", pa.int32()), ("magpsf", pa.float32()),
         ("sigmapsf", pa.float32()), ("diffmaglim", pa.float32())]
    )  # fmt: skip
    return pa.schema(
        [
            *OBJECT_FIELDS,
            pa.field("candid", pa.int64(), nullable=False),
            pa.field("jd", pa.float64(), nullable=False),
            pa.field("fid", pa.int32(), nullable=False),
            pa.field("triplet", tensor_type(pa.float32(), [3, size, size]), nullable=False),
            pa.field("stamp_shape", tensor_type(pa.int32(), [2]), nullable=False),
            pa.field("metadata", tensor_type(pa.float32(), [len(features)]), nullable=False),
            pa.field("history", pa.list_(history)),
        ],
        metadata=schema_metadata("alert", {"features": list(features)}),
    )
