"""1-D spectra in FITS tables, Parquet, CSV and npz files, with a declared column map.

A card says in ``reader_options`` which column is what (see `TableOptions`)::

    reader: spectrum_table
    reader_options:
      medium: vacuum
      wavelength: {kind: log10, start: loglam0, step: 1.0e-4}
      flux: flux
      ivar: ivar
      fields: {object_id: specid, spectype: class, redshift: z}
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from string import Formatter
from typing import Any, Literal

import numpy as np
from pydantic import Field, model_validator

from skyray.config import Config
from skyray.readers.base import Reader, SurveyFile, name_by_content, register
from skyray.readers.columns import Columns, open_columns, parquet_units
from skyray.records import Grid, InvalidRecord, Spectrum, attempt, ivar_fault
from skyray.transforms.spectra import air_to_vacuum, coadd_arms, ivar_of_error, median_snr

_ENDING = re.compile(r"\.(parquet|npz|csv|(fits|fit|fts)(\.(gz|bz2|fz|xz))?)$", re.IGNORECASE)


class WavelengthOptions(Config):
    """Where the wavelengths of a row are: a column, a shared array, or a regular grid."""

    column: str | None = Field(None, description="array column, or 1-D array shared by all rows")
    unit_angstrom: float = Field(1.0, gt=0, description="factor to Å for `column`, e.g. 10 for nm")
    kind: Literal["linear", "log10"] | None = Field(
        None, description="regular grid: Å, or log10 of Å"
    )
    start: str | float | None = Field(None, description="grid: first pixel, a column or a number")
    step: str | float | None = Field(None, description="grid: step, a column or a number")

    @model_validator(mode="after")
    def _one_way(self):
        grid = (self.kind, self.start, self.step)
        if (self.column is None) == (None in grid):
            raise ValueError("wavelength: expected either column, or kind, start and step")
        if self.column is not None and any(part is not None for part in grid):
            raise ValueError("wavelength: column and a grid exclude each other")
        return self


class TableOptions(Config):
    """What a table of spectra holds. Array names may contain ``{arm}``."""

    medium: Literal["vacuum", "air"] = Field(description="of the wavelengths; never assumed")
    wavelength: WavelengthOptions
    flux: str
    ivar: str | None = None
    error: str | None = Field(None, description="1 σ, instead of ivar; 0 = not measured")
    mask: str | None = None
    bad_bits: list[int] | None = Field(
        None, description="bits of mask that make a pixel bad; default: any value but 0"
    )
    flux_unit: float = Field(1.0, gt=0, description="factor of flux to 1e-17 erg/s/cm²/Å")
    layout: Literal["objects", "pixels"] = Field(
        "objects", description="a row is an object with array columns, or a pixel of one spectrum"
    )
    fields: dict[str, str] = Field(
        default_factory=dict, description="field of Spectrum → column (or FITS keyword)"
    )
    id_format: str | None = Field(
        None, description="object_id of several columns, e.g. '{plate:04d}-{mjd}-{fiberid:04d}'"
    )
    extra: list[str] = Field(default_factory=list, description="columns kept for cuts")
    arms: list[str] = Field(default_factory=list, description="arms to co-add, e.g. [b, r, z]")
    coadd_grid: dict[str, Any] | None = Field(
        None, description="with arms: the linear grid {kind, start, step, size} they lie on"
    )
    survey: str = ""
    hdu: str | int | None = Field(None, description="FITS: name or number; default: first table")

    @model_validator(mode="after")
    def _consistent(self):
        if (self.ivar is None) == (self.error is None):
            raise ValueError("expected exactly one of ivar and error")
        if bool(self.arms) != (self.coadd_grid is not None):
            raise ValueError("arms and coadd_grid go together")
        if self.arms and (self.medium == "air" or self.wavelength.column is None):
            raise ValueError("arms: expected vacuum wavelengths in a column")
        known = {"object_id", "ra", "dec", "spectype", "subtype", "redshift", "redshift_err",
                 "zwarning", "snr", "survey"}  # fmt: skip
        if unknown := set(self.fields) - known:
            raise ValueError(f"fields: unknown {sorted(unknown)}; known: {sorted(known)}")
        return self

    def names(self) -> set[str]:
        """Return every column the options mention."""
        arrays = [self.flux, self.ivar, self.error, self.mask, self.wavelength.column]
        found = {n.format(arm=arm) for n in arrays if n for arm in self.arms or [""]}
        found |= {s for s in (self.wavelength.start, self.wavelength.step) if isinstance(s, str)}
        found |= {name for _, name, _, _ in Formatter().parse(self.id_format or "") if name}
        return found | set(self.fields.values()) | set(self.extra)


@register
class SpectrumTableReader(Reader):
    """Spectra of a table. A Parquet file is read row group by row group in bounded memory."""

    name = "spectrum_table"
    patterns = ("*.parquet", "*.npz", "*.csv", "*.fits", "*.fits.gz", "*.fit")

    def __init__(self, options=None):
        super().__init__(options)
        self.table = TableOptions.load(self.options)

    def units(self, file: SurveyFile) -> list[int]:
        return parquet_units(file) if file.name.endswith(".parquet") else [0]

    def read(self, file: SurveyFile, unit: int = 0) -> Iterator[Spectrum | InvalidRecord]:
        options = self.table
        text = {options.fields.get("object_id", "")}
        for columns in open_columns(file, unit, options.names(), options.hdu, text):
            if options.layout == "pixels":
                yield self._record(columns, None, file.path, _stem(file.name))
                continue
            for row in range(columns.rows(options.flux.format(arm=(options.arms or [""])[0]))):
                number = columns.first_row + row
                name = f"{_stem(file.name)}-{number}"
                yield self._record(columns, row, f"{file.path}#{number}", name)

    def _record(
        self, columns: Columns, row: int | None, source: str, default_id: str
    ) -> Spectrum | InvalidRecord:
        def spectrum() -> Spectrum:
            try:
                return self._spectrum(columns, row, source, default_id)
            except (TypeError, ValueError, OverflowError) as error:  # a null, text, out of range
                if isinstance(error, InvalidRecord):
                    raise
                raise InvalidRecord("field_invalid", str(error), source) from None

        found = attempt(spectrum, source)
        if isinstance(found, InvalidRecord) and found.reason == "column_missing":
            raise found  # the same for every row: refuse the file
        return found

    def _spectrum(self, columns: Columns, row: int | None, source: str, default_id: str):
        options = self.table
        object_id = _object_id(options, columns, row, default_id)
        arrays = [_arrays(options, columns, row, arm) for arm in options.arms or [""]]
        for wavelength, *others in arrays:
            sizes = [len(wavelength), *(len(a) for a in others)]
            if len(set(sizes)) != 1:
                raise InvalidRecord(
                    "shape_mismatch",
                    f"expected one length for wavelength, flux, ivar and mask, found {sizes}",
                    source,
                    object_id,
                )
        wavelength, flux, ivar, mask = _joined(options, arrays, source, object_id)
        named = options.id_format or "object_id" in options.fields
        fields = _fields(options, columns, row)
        if np.isnan(fields.get("snr", np.nan)):
            with np.errstate(invalid="ignore"):
                fields["snr"] = median_snr(flux, ivar, mask)
        return Spectrum(
            object_id=object_id,
            wavelength=wavelength,
            flux=flux,
            ivar=ivar,
            mask=mask,
            source=source,
            extra={name: columns.scalar(name, row) for name in options.extra},
            observation_id="" if named else name_by_content(object_id, flux),
            **{"survey": options.survey, **fields},
        )


def _stem(name: str) -> str:
    """Return a file's name without its ending: ``J1234.5+12.csv`` → ``J1234.5+12``."""
    return _ENDING.sub("", name)


def _arrays(options: TableOptions, columns: Columns, row: int | None, arm: str):
    """Return wavelength (vacuum Å), flux, ivar and mask of one arm."""
    flux = columns.array(options.flux.format(arm=arm), row)
    mask = np.zeros(len(flux), dtype=bool)
    if options.mask is not None:
        mask = _bad(columns.array(options.mask.format(arm=arm), row), options.bad_bits)
    if options.ivar is not None:
        ivar = columns.array(options.ivar.format(arm=arm), row) / options.flux_unit**2
    else:
        error = columns.array(options.error.format(arm=arm), row)
        ivar = ivar_of_error(error * options.flux_unit, mask)
    wavelength = _wavelength(options.wavelength, columns, row, arm, len(flux))
    if options.medium == "air":
        wavelength = air_to_vacuum(wavelength)
    return (
        wavelength,
        (flux * options.flux_unit).astype(np.float32),
        ivar.astype(np.float32),
        mask,
    )


def _bad(values: np.ndarray, bits: list[int] | None) -> np.ndarray:
    if bits is None:
        return values != 0
    return (values.astype(np.int64) & sum(1 << bit for bit in bits)) != 0


def _wavelength(
    options: WavelengthOptions, columns: Columns, row: int | None, arm: str, size: int
) -> np.ndarray:
    if options.column is not None:
        found = columns.array(options.column.format(arm=arm), row, shared=True)
        return found.astype(np.float64) * options.unit_angstrom
    start, step = (
        float(columns.scalar(part, row) if isinstance(part, str) else part)
        for part in (options.start, options.step)
    )
    axis = start + step * np.arange(size)
    return axis if options.kind == "linear" else 10.0**axis


def _joined(options: TableOptions, arrays: list, source: str, object_id: str):
    if not options.arms:
        return arrays[0]
    grid = Grid(**options.coadd_grid)
    for arm, (_, _, ivar, mask) in zip(options.arms, arrays, strict=True):
        fault = ivar_fault(ivar[~mask])
        if fault and fault[0] != "ivar_empty":  # the co-addition would hide it as ivar 0
            raise InvalidRecord(fault[0], f"arm {arm}: {fault[1]}", source, object_id)
    try:
        return (grid.wavelength(), *coadd_arms(grid, arrays))
    except ValueError as error:
        raise InvalidRecord("wavelength_off_grid", str(error), source, object_id) from None


def _object_id(options: TableOptions, columns: Columns, row: int | None, default: str) -> str:
    if options.id_format:
        return options.id_format.format_map(_Cells(columns, row))
    name = options.fields.get("object_id")
    return default if name is None else columns.identifier(name, row)


class _Cells(dict):
    """The scalar cells of a row, looked up as `str.format_map` asks for them."""

    def __init__(self, columns: Columns, row: int | None):
        self.columns, self.row = columns, row

    def __missing__(self, name: str) -> Any:
        value = self.columns.exact(name, self.row)
        if value is None:
            raise ValueError(f"{name}: expected a part of an object_id, found none")
        return value


def _fields(options: TableOptions, columns: Columns, row: int | None) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for field, name in options.fields.items():
        value = columns.scalar(name, row)
        if field == "object_id":
            continue
        if field in ("spectype", "subtype", "survey"):
            found[field] = "" if value is None else str(value).strip()
        elif field == "zwarning":
            found[field] = -1 if value is None else int(value)
        else:
            found[field] = float("nan") if value is None else float(value)
    return found
