"""The three records skyray knows: Spectrum, Cutout and Alert; their Arrow schemas and checks.

A *record* is one object as read from a survey file. Readers yield records, ``ingest`` writes them
as Arrow rows on the card's grid, and everything downstream reads only those rows.

Units
-----
wavelength in Å (vacuum), flux in 1e-17 erg / s / cm² / Å, ivar in the inverse square of flux,
ra and dec in degrees (ICRS).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pyarrow as pa

SCHEMA_VERSION = 1
SPLITS = ("train", "validation", "test")


class InvalidRecord(ValueError):
    """A record, or a whole survey file, that cannot be used.

    Parameters
    ----------
    reason : str
        Stable slug that quarantine groups by, e.g. ``"flux_not_finite"``.
    detail : str
        What was expected and what was found, for a person.
    source : str
        File (and row) the record came from.
    object_id : str
        Identifier of the record where it is known.
    """

    def __init__(self, reason: str, detail: str, source: str = "", object_id: str = ""):
        super().__init__(f"{source or 'record'}: {reason}: {detail}")
        self.reason, self.detail = reason, detail
        self.source, self.object_id = source, object_id

    def __reduce__(self):  # exceptions with several arguments do not pickle by themselves
        return type(self), (self.reason, self.detail, self.source, self.object_id)


@dataclass(frozen=True, slots=True)
class Grid:
    """A regular wavelength grid.

    ``kind='linear'``: wavelength = start + step · i (Å).
    ``kind='log10'``: wavelength = 10 ** (start + step · i), start and step in dex.
    """

    kind: Literal["linear", "log10"]
    start: float
    step: float
    size: int

    def __post_init__(self):
        if self.kind not in ("linear", "log10"):
            raise ValueError(f"grid kind: expected 'linear' or 'log10', found {self.kind!r}")
        if self.step <= 0 or self.size < 2:
            raise ValueError(
                f"grid: expected step > 0 and size ≥ 2, found {self.step}, {self.size}"
            )

    def wavelength(self) -> np.ndarray:
        """Return the vacuum wavelengths, float64 [size], Å."""
        axis = self.start + self.step * np.arange(self.size)
        return axis if self.kind == "linear" else 10.0**axis

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, "start": self.start, "step": self.step, "size": self.size}


@dataclass(frozen=True, slots=True)
class Spectrum:
    """One 1-D spectrum on its own wavelengths, as a reader yields it.

    Attributes
    ----------
    object_id : str
        Identifier of this observation, unique in its survey (``plate-mjd-fiber``, ``TARGETID``).
    wavelength : float64 [L]
        Vacuum Å, strictly increasing.
    flux, ivar : float32 [L]
        1e-17 erg/s/cm²/Å and its inverse variance; ivar 0 marks an unmeasured pixel.
    mask : bool [L]
        True where the survey flags the pixel as bad.
    spectype, subtype : str
        The survey's own class and subclass; empty where unknown.
    redshift, redshift_err : float
        NaN where unknown.
    zwarning : int
        0 = the survey trusts its redshift; -1 = the survey says nothing.
    snr : float
        Median flux·√ivar over good pixels unless the survey states its own; NaN where unknown.
    source : str
        File, and row where it holds several.
    extra : mapping
        Further survey columns that cards may cut on (``deltachi2``, ``fiberstatus`` …).
    """

    object_id: str
    wavelength: np.ndarray
    flux: np.ndarray
    ivar: np.ndarray
    mask: np.ndarray
    ra: float = float("nan")
    dec: float = float("nan")
    spectype: str = ""
    subtype: str = ""
    redshift: float = float("nan")
    redshift_err: float = float("nan")
    zwarning: int = -1
    snr: float = float("nan")
    survey: str = ""
    source: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict)

    def fields(self) -> dict[str, Any]:
        """Return the scalar columns that cards may name in cuts and label rules."""
        names = ("object_id", "ra", "dec", "spectype", "subtype", "redshift", "redshift_err")
        row = {name: getattr(self, name) for name in (*names, "zwarning", "snr", "survey")}
        return {**self.extra, **row}


def check_spectrum(spectrum: Spectrum, min_good_pixels: int = 100) -> None:
    """Raise `InvalidRecord` unless the spectrum can be used.

    Checked in this order: shapes agree (``shape_mismatch``, ``too_short``); wavelengths finite and
    positive (``wavelength_not_finite``), strictly increasing (``wavelength_decreasing`` where they
    run backwards, ``wavelength_not_increasing`` where some are out of order); ivar finite
    (``ivar_not_finite``), ≥ 0 (``ivar_negative``) and somewhere > 0 (``ivar_empty``); flux finite
    where ivar > 0 and no mask is set (``flux_all_nan``, ``flux_infinite``, ``flux_not_finite``); at
    least `min_good_pixels` such pixels (``too_few_good_pixels``); a signal (``flux_all_zero``).
    """
    wavelength, flux, ivar, mask = (
        np.asarray(a) for a in (spectrum.wavelength, spectrum.flux, spectrum.ivar, spectrum.mask)
    )
    shapes = {"wavelength": wavelength.shape, "flux": flux.shape, "ivar": ivar.shape}
    if wavelength.ndim != 1 or {*shapes.values(), mask.shape} != {wavelength.shape}:
        fault = "shape_mismatch", f"expected one length, found {shapes}, mask {mask.shape}"
    elif wavelength.size < 2:
        fault = "too_short", f"expected at least 2 pixels, found {wavelength.size}"
    else:
        used = (ivar > 0) & ~mask.astype(bool)
        fault = (
            _wavelength_fault(wavelength)
            or ivar_fault(ivar)
            or _flux_fault(flux[used], min_good_pixels)
        )
    if fault:
        raise InvalidRecord(*fault, spectrum.source, spectrum.object_id)


def _wavelength_fault(wavelength: np.ndarray) -> tuple[str, str] | None:
    if not np.isfinite(wavelength).all() or wavelength.min() <= 0:
        return "wavelength_not_finite", "expected finite wavelengths > 0 Å"
    steps = np.diff(wavelength)
    if (steps > 0).all():
        return None
    if (steps < 0).all():
        return "wavelength_decreasing", "expected increasing wavelengths, found them descending"
    at = int(np.argmax(steps <= 0))
    return (
        "wavelength_not_increasing",
        f"expected strictly increasing wavelengths, found {wavelength[at]:.3f} then "
        f"{wavelength[at + 1]:.3f} Å at pixel {at}",
    )


def ivar_fault(ivar: np.ndarray) -> tuple[str, str] | None:
    """Return (reason, detail) of what is wrong with inverse variances, None if nothing is."""
    if not np.isfinite(ivar).all():
        bad = int((~np.isfinite(ivar)).sum())
        return "ivar_not_finite", f"expected finite ivar, found {bad} bad pixels"
    if (ivar < 0).any():
        return "ivar_negative", f"expected ivar ≥ 0, found {int((ivar < 0).sum())} negative pixels"
    if not (ivar > 0).any():
        return "ivar_empty", "expected some pixels with ivar > 0, found none"
    return None


def _flux_fault(flux: np.ndarray, min_good_pixels: int) -> tuple[str, str] | None:
    finite = np.isfinite(flux)
    bad = int(flux.size - finite.sum())
    if bad:
        where = f"expected finite flux where ivar > 0, found {bad} of {flux.size} pixels"
        if np.isnan(flux).all():
            return "flux_all_nan", f"{where} NaN"
        if np.isinf(flux).any():
            return "flux_infinite", f"{where} infinite or NaN"
        return "flux_not_finite", f"{where} NaN"
    if flux.size < min_good_pixels:
        return (
            "too_few_good_pixels",
            f"expected ≥ {min_good_pixels} good pixels, found {flux.size}",
        )
    if not np.any(flux):
        return "flux_all_zero", "expected a signal, found flux 0 in every good pixel"
    return None


def tensor_type(dtype: pa.DataType, shape: Sequence[int]) -> pa.DataType:
    """Return Arrow's fixed-shape tensor type without a permutation (Ray's sort needs that)."""
    return pa.fixed_shape_tensor(dtype, list(shape))


def tensor_array(values: np.ndarray, dtype: pa.DataType) -> pa.Array:
    """Turn an array [N, ...] into a fixed-shape tensor column of N rows.

    Built from storage because ``FixedShapeTensorArray.from_numpy_ndarray`` stamps a permutation
    that makes Ray Data's sort and groupby fail.
    """
    values = np.ascontiguousarray(values)
    shape = values.shape[1:]
    flat = pa.array(values.reshape(-1), type=dtype)
    storage = pa.FixedSizeListArray.from_arrays(flat, int(np.prod(shape)))
    return pa.ExtensionArray.from_storage(tensor_type(dtype, shape), storage)


def tensor_values(column: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Return a tensor column as one array [N, ...]."""
    if isinstance(column, pa.ChunkedArray):
        parts = [tensor_values(chunk) for chunk in column.chunks]
        if not parts:
            return np.zeros((0, *column.type.shape), dtype=column.type.value_type.to_pandas_dtype())
        return parts[0] if len(parts) == 1 else np.concatenate(parts)
    if hasattr(column, "to_numpy_ndarray"):
        return column.to_numpy_ndarray()
    return column.to_numpy(zero_copy_only=False)  # Ray's own tensor type


_OBJECT_FIELDS = [
    pa.field("object_id", pa.string(), nullable=False),
    pa.field("object_key", pa.string(), nullable=False),
    pa.field("split", pa.string(), nullable=False),
    pa.field("label", pa.string(), nullable=False),
    pa.field("ra", pa.float64()),
    pa.field("dec", pa.float64()),
    pa.field("survey", pa.string()),
    pa.field("source", pa.string(), nullable=False),
    pa.field("extra", pa.string()),
]


def spectrum_schema(grid: Grid) -> pa.Schema:
    """Return the Arrow schema of a Spectrum dataset on `grid`."""
    return pa.schema(
        [
            *_OBJECT_FIELDS,
            pa.field("spectype", pa.string()),
            pa.field("subtype", pa.string()),
            pa.field("redshift", pa.float64()),
            pa.field("redshift_err", pa.float64()),
            pa.field("zwarning", pa.int64()),
            pa.field("snr", pa.float64()),
            pa.field("flux", tensor_type(pa.float32(), [grid.size]), nullable=False),
            pa.field("ivar", tensor_type(pa.float32(), [grid.size]), nullable=False),
            pa.field("mask", tensor_type(pa.uint8(), [grid.size]), nullable=False),
        ],
        metadata=_schema_metadata("spectrum", {"grid": grid.to_dict()}),
    )


def cutout_schema(bands: Sequence[str], height: int, width: int) -> pa.Schema:
    """Return the Arrow schema of a Cutout dataset: image float32 [bands, height, width]."""
    return pa.schema(
        [
            *_OBJECT_FIELDS,
            pa.field("redshift", pa.float64()),
            pa.field("pixel_scale_arcsec", pa.float64(), nullable=False),
            pa.field(
                "image", tensor_type(pa.float32(), [len(bands), height, width]), nullable=False
            ),
        ],
        metadata=_schema_metadata("cutout", {"bands": list(bands)}),
    )


def alert_schema(size: int, features: Sequence[str]) -> pa.Schema:
    """Return the Arrow schema of an Alert dataset.

    ``triplet`` float32 [3, size, size] in the order science, template, difference; ``metadata``
    float32 [len(features)] in the order of `features`; ``history`` the earlier detections.
    """
    history = pa.struct(
        [("jd", pa.float64()), ("fid", pa.int32()), ("magpsf", pa.float32()),
         ("sigmapsf", pa.float32()), ("diffmaglim", pa.float32())]
    )  # fmt: skip
    return pa.schema(
        [
            *_OBJECT_FIELDS,
            pa.field("candid", pa.int64(), nullable=False),
            pa.field("jd", pa.float64(), nullable=False),
            pa.field("fid", pa.int32(), nullable=False),
            pa.field("triplet", tensor_type(pa.float32(), [3, size, size]), nullable=False),
            pa.field("metadata", tensor_type(pa.float32(), [len(features)]), nullable=False),
            pa.field("history", pa.list_(history)),
        ],
        metadata=_schema_metadata("alert", {"features": list(features)}),
    )


def _schema_metadata(record: str, detail: Mapping[str, Any]) -> dict[str, str]:
    text = {"record": record, "schema_version": SCHEMA_VERSION, **detail}
    return {"skyray": json.dumps(text, sort_keys=True)}


def describe_schema(schema: pa.Schema) -> dict[str, Any]:
    """Return skyray's stamp on a schema: record, schema_version and grid, bands or features."""
    stamp = (schema.metadata or {}).get(b"skyray")
    if stamp is None:
        raise ValueError("schema carries no 'skyray' metadata: not a skyray dataset")
    return json.loads(stamp)


def check_table(table: pa.Table, schema: pa.Schema) -> None:
    """Raise `InvalidRecord` unless `table` has `schema`'s columns, types and known splits."""
    for expected in schema:
        if expected.name not in table.column_names:
            raise InvalidRecord("column_missing", f"expected column {expected.name!r}")
        found = table.schema.field(expected.name)
        if found.type != expected.type:
            raise InvalidRecord(
                "column_type", f"{expected.name}: expected {expected.type}, found {found.type}"
            )
        if not expected.nullable and table.column(expected.name).null_count:
            raise InvalidRecord("column_null", f"{expected.name}: expected no nulls")
    strange = set(table.column("split").unique().to_pylist()) - set(SPLITS)
    if strange:
        raise InvalidRecord("split_unknown", f"split: expected {SPLITS}, found {sorted(strange)}")
