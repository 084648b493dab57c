"""Spectrum: flux, ivar and mask on a wavelength grid.

Units: wavelength in Å (vacuum), flux in 1e-17 erg / s / cm² / Å, ivar in the inverse square of
flux, ra and dec in degrees (ICRS).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from skyray.records.columns import (
    OBJECT_FIELDS,
    InvalidRecord,
    position_fault,
    schema_metadata,
    tensor_type,
)

_SMALLEST = 1e-37  # below about this, 32-bit floats lose digits


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
        The survey's own name of what was observed, exact (``plate-mjd-fiber``, ``TARGETID``).
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
    observation_id : str
        Unique for what was measured once (survey, programme, file, target); empty where
        `object_id` is.
    statements : mapping
        What was decided about the values, and from which statement of the file
        (`records.statements`).
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
    observation_id: str = ""
    statements: Mapping[str, str] = field(default_factory=dict)

    def fields(self) -> dict[str, Any]:
        """Return the scalar columns that cards may name in cuts and label rules."""
        names = ("object_id", "ra", "dec", "spectype", "subtype", "redshift", "redshift_err")
        row = {name: getattr(self, name) for name in (*names, "zwarning", "snr", "survey")}
        return {**self.extra, **row}


def trusted(zwarning: np.ndarray | int, silent: bool = False) -> np.ndarray:
    """Return where a survey trusts its redshift, bool; with `silent` also where it says nothing."""
    warning = np.asarray(zwarning)
    return (warning == 0) | ((warning == -1) & silent)


def check_spectrum(spectrum: Spectrum, min_good_pixels: int = 100) -> None:
    """Raise `InvalidRecord` unless the spectrum can be used.

    Checked in this order: shapes agree (``shape_mismatch``, ``too_short``); a position
    (``position_invalid``); wavelengths finite and positive (``wavelength_not_finite``), strictly
    increasing (``wavelength_decreasing`` where they run backwards, ``wavelength_not_increasing``
    where some are out of order); ivar finite (``ivar_not_finite``), ≥ 0 (``ivar_negative``) and
    somewhere > 0 (``ivar_empty``); flux finite where ivar > 0 and no mask is set
    (``flux_all_nan``, ``flux_infinite``, ``flux_not_finite``); at least `min_good_pixels` such
    pixels (``too_few_good_pixels``); a signal (``flux_all_zero``).
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
            position_fault(spectrum.ra, spectrum.dec)
            or _wavelength_fault(wavelength)
            or ivar_fault(ivar)
            or _flux_fault(flux[used], min_good_pixels)
        )
    if fault:
        raise InvalidRecord(*fault, spectrum.source, spectrum.object_id)


def _wavelength_fault(wavelength: np.ndarray) -> tuple[str, str] | None:
    steps = wavelength[1:] - wavelength[:-1]
    increasing = (steps > 0).all()  # a NaN is not
    if increasing and wavelength[0] > 0 and np.isfinite(wavelength[-1]):
        return None
    if not np.isfinite(wavelength).all() or wavelength.min() <= 0:
        return "wavelength_not_finite", "expected finite wavelengths > 0 Å"
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
    low, high = ivar.min(), ivar.max()  # NaN where one is
    if low >= 0 and 0 < high < np.inf:
        return None
    if not np.isfinite(ivar).all():
        bad = int((~np.isfinite(ivar)).sum())
        return "ivar_not_finite", f"expected finite ivar, found {bad} bad pixels"
    if (ivar < 0).any():
        return "ivar_negative", f"expected ivar ≥ 0, found {int((ivar < 0).sum())} negative pixels"
    if not (ivar > 0).any():
        return "ivar_empty", "expected some pixels with ivar > 0, found none"
    return None


def _flux_fault(flux: np.ndarray, min_good_pixels: int) -> tuple[str, str] | None:
    with np.errstate(over="ignore", invalid="ignore"):
        sure = np.isfinite(flux.sum())  # then all are
    bad = 0 if sure else int(flux.size - np.isfinite(flux).sum())
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


def as_float32(name: str, values: np.ndarray, hint: str = "") -> np.ndarray:
    """Return values as float32, native byte order; NaN and infinities stay.

    Raises
    ------
    InvalidRecord
        ``value_out_of_range`` where finite values become infinite, or the largest of them is too
        small for float32's precision: fluxes in erg/s/cm²/Å have an ivar beyond it.
    """
    if values.dtype.kind == "f" and values.dtype.itemsize <= 4:
        return values.astype(np.float32, copy=False)
    with np.errstate(over="ignore", invalid="ignore"):
        found = values.astype(np.float32)
        size = float(np.max(np.abs(found), initial=0))
        if not _SMALLEST < size < np.inf and np.any(values):  # NaN is neither
            size = float(np.max(np.abs(values[np.isfinite(values)]), initial=0))
            if size > np.finfo(np.float32).max or 0 < size < _SMALLEST:
                raise InvalidRecord(
                    "value_out_of_range",
                    f"{name}: expected values that 32-bit floats hold, found up to {size:.3g}; "
                    f"flux is to be in 1e-17 erg/s/cm²/Å{hint}",
                )
    return found


def spectrum_schema(grid: Grid) -> pa.Schema:
    """Return the Arrow schema of a Spectrum dataset on `grid`."""
    return pa.schema(
        [
            *OBJECT_FIELDS,
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
        metadata=schema_metadata("spectrum", {"grid": grid.to_dict()}),
    )
