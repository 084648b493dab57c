"""1-D spectra in FITS tables, Parquet, CSV and npz files, with a declared column map.

A card says in ``reader_options`` which column is what (see `TableOptions`)::

    reader: spectrum_table
    reader_options:
      medium: vacuum                                  # else the file has to say it
      wavelength: {kind: log10, start: loglam0, step: 1.0e-4}
      flux: flux
      flux_unit: 1e-17 erg/(s cm2 Angstrom)           # likewise
      ivar: ivar
      fields: {object_id: specid, spectype: class, redshift: z}
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np

from skyray.readers.base import Reader, SurveyFile, name_by_content, read_object, register
from skyray.readers.column_facts import ColumnFacts
from skyray.readers.columns import (
    CSV_NAMES,
    Columns,
    check_whole,
    open_columns,
    parquet_units,
)
from skyray.readers.csv_columns import number_of
from skyray.readers.layout import fits_names, is_fits_name, stem
from skyray.readers.sky_frame import (
    coordinate,
    keyword_facts,
    position_statement,
    sky_frame,
    to_icrs,
)
from skyray.readers.spectrum_roles import described_by_file
from skyray.readers.spectrum_values import Meaning, ascending, decide, joined
from skyray.readers.table_options import TableOptions, WavelengthOptions
from skyray.readers.units import check_redshift
from skyray.readers.unpacked import plain_name
from skyray.records import Grid, InvalidRecord, Spectrum, ivar_fault
from skyray.transforms.spectra import coadd_arms, median_snr

_AXIS_KEYWORD = re.compile(r"(?:CRVAL|CDELT)(\d)|CD(\d)_\d")


@register
class SpectrumTableReader(Reader):
    """Spectra of a table. A Parquet file is read row group by row group in bounded memory.

    Of `layout` ``pixels`` all rows of a file are one spectrum, however they are stored.
    """

    name = "spectrum_table"
    patterns = ("*.parquet", "*.npz", *CSV_NAMES, *fits_names("*"))

    def __init__(self, options=None):
        super().__init__(options)
        self.table = TableOptions.load(self.options)

    def units(self, file: SurveyFile) -> list[int]:
        pieces = file.name.lower().endswith(".parquet") and self.table.layout == "objects"
        return parquet_units(file) if pieces else [0]

    def read(self, file: SurveyFile, unit: int = 0) -> Iterator[Spectrum | InvalidRecord]:
        options = self._options(file)
        text = {options.fields.get("object_id", "")}
        first = options.flux.format(arm=(options.arms or [""])[0])
        whole = options.layout == "pixels"
        for columns in open_columns(file, unit, options.names(), options.hdu, text, whole):
            rows = columns.rows(first)  # refuses the file where there is no such column
            meanings = {arm: _meaning(options, columns, arm) for arm in options.arms or [""]}
            table = _Table(options, columns, meanings, self._named)
            if whole:
                check_whole(rows, 0, file.path)
                yield table.record(None, file.path, _name(file))
                continue
            for row in range(rows):
                number = columns.first_row + row
                name = f"{_name(file)}-{number}"
                yield table.record(row, f"{file.path}#{number}", name)

    def _options(self, file: SurveyFile) -> TableOptions:
        if self.table.described:
            return self.table
        if not is_fits_name(file.name):
            detail = "expected the card to name wavelength and flux, which only FITS tables tell"
            raise InvalidRecord("column_missing", detail, file.path)
        return described_by_file(file, self.table)

    @property
    def _named(self) -> bool:
        """Whether the card says what names an object; else its content tells it from others."""
        return bool(self.table.id_format) or "object_id" in self.table.fields


class _Table:
    """Some rows of a table and what their numbers mean."""

    def __init__(
        self, options: TableOptions, columns: Columns, meanings: dict[str, Meaning], named: bool
    ):
        self.options, self.columns, self.meanings = options, columns, meanings
        self._named = named
        self.statements = joined(meanings.values())

    def record(self, row: int | None, source: str, default_id: str) -> Spectrum | InvalidRecord:
        """Return the spectrum of a row, or of all rows, or why it cannot be used."""
        return read_object(lambda: self._spectrum(row, source, default_id), source)

    @cached_property
    def _frame(self) -> str:
        """The frame of the positions; '' for ICRS."""
        facts = [_facts(self.columns, self.options.fields[field]) for field in ("ra", "dec")]
        return sky_frame(self.columns.source, self.columns.header, facts)

    def _spectrum(self, row: int | None, source: str, default_id: str) -> Spectrum:
        options, columns = self.options, self.columns
        object_id = _object_id(options, columns, row, default_id)
        try:
            arrays = [_arrays(options, columns, row, *one) for one in self.meanings.items()]
        except InvalidRecord as error:
            raise InvalidRecord(error.reason, error.detail, source, object_id) from None
        wavelength, flux, ivar, mask = _joined(options, arrays, source, object_id)
        fields = _fields(options, columns, row, source)
        placed = np.isfinite(fields.get("ra", np.nan) + fields.get("dec", np.nan))
        frame = self._frame if placed else ""
        if frame:
            fields["ra"], fields["dec"] = to_icrs(source, frame, fields["ra"], fields["dec"])
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
            observation_id="" if self._named else name_by_content(object_id, flux),
            statements={**self.statements, **position_statement(frame)},
            **{"survey": options.survey, **fields},
        )


def _name(file: SurveyFile) -> str:
    """Return the path below the folder that was given, without its ending: ``run1/J1234.5+12``."""
    name = plain_name(file.below)
    ending = next((e for e in (".parquet", ".npz", ".csv") if name.lower().endswith(e)), "")
    return name[: -len(ending)] if ending else stem(file.below)


def _meaning(options: TableOptions, columns: Columns, arm: str) -> Meaning:
    noise = options.error or options.ivar
    names = {"flux": options.flux, "noise": noise, "wavelength": options.wavelength.column}
    facts = {role: columns.facts.of((name or "").format(arm=arm)) for role, name in names.items()}
    if options.wavelength.column is None:
        grid = {"wavelength": options.wavelength.start, "step": options.wavelength.step}
        facts |= {role: _grid_facts(columns, part) for role, part in grid.items()}
    bunit = columns.header.get("BUNIT") if columns.header is not None else None
    if bunit and not facts["flux"].unit:
        facts["flux"] = replace(facts["flux"], unit=str(bunit).strip(), origin="BUNIT")
    return decide(
        columns.source, columns.header, facts, options.wavelength, options.medium,
        options.flux_unit, options.error is not None,
    )  # fmt: skip


def _grid_facts(columns: Columns, part: str | float) -> ColumnFacts:
    """Return what is stated of the start or step of a grid: a column, a keyword or a number."""
    if not isinstance(part, str):
        return ColumnFacts()
    axis = _AXIS_KEYWORD.fullmatch(part.upper())
    if part in columns.columns or columns.header is None or axis is None:
        return columns.facts.of(part)
    key = f"CUNIT{axis[1] or axis[2]}"
    return ColumnFacts(part, str(columns.header.get(key) or "").strip(), origin=key)


def _arrays(options: TableOptions, columns: Columns, row: int | None, arm: str, meaning: Meaning):
    """Return wavelength (vacuum Å), flux, ivar and mask of one arm, wavelengths ascending."""
    flux = columns.array(options.flux.format(arm=arm), row)
    noise = columns.array((options.error or options.ivar).format(arm=arm), row)
    mask = np.zeros(len(flux), dtype=bool)
    if options.mask is not None:
        mask = _bad(columns.array(options.mask.format(arm=arm), row), options)
    axis = _axis(options.wavelength, columns, row, arm, len(flux), meaning.step_factor)
    wavelength = meaning.wavelength(axis)
    sizes = [len(array) for array in (wavelength, flux, noise, mask)]
    if len(set(sizes)) != 1:
        detail = f"expected one length for wavelength, flux, ivar and mask, found {sizes}"
        raise InvalidRecord("shape_mismatch", detail)
    return ascending(wavelength, *meaning.flux(wavelength, flux, noise, mask), mask)


def _bad(values: np.ndarray, options: TableOptions) -> np.ndarray:
    """Return which pixels a mask calls bad; a value that is missing does."""
    unknown = np.isnan(values) if values.dtype.kind == "f" else False
    if options.mask_means == "good":
        return (values == 0) | unknown
    if options.bad_bits is None:
        return values != 0
    if values.dtype.kind == "f" and (values != np.trunc(values))[~unknown].any():
        detail = f"{options.mask}: expected integers, of which bits can be bad, found fractions"
        raise InvalidRecord("column_type", detail)
    bits = np.where(unknown, 0, values).astype(np.int64)
    return ((bits & sum(1 << bit for bit in options.bad_bits)) != 0) | unknown


def _axis(
    options: WavelengthOptions, columns: Columns, row: int | None, arm: str, size: int, step: float
) -> np.ndarray:
    """Return wavelengths as the file has them; `step` brings the step of a grid to its unit."""
    if options.column is not None:
        return columns.array(options.column.format(arm=arm), row, shared=True)
    first, by = (
        float(columns.scalar(part, row) if isinstance(part, str) else part)
        for part in (options.start, options.step)
    )
    return first + by * step * np.arange(size)


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


def _fields(
    options: TableOptions, columns: Columns, row: int | None, source: str
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for field, name in options.fields.items():
        value = columns.scalar(name, row)
        if field == "object_id":
            continue
        if field in ("spectype", "subtype", "survey"):
            found[field] = "" if value is None else str(value).strip()
        elif field in ("ra", "dec"):
            found[field] = _degrees(source, field, _facts(columns, name), value)
        elif field == "zwarning":
            found[field] = -1 if value is None else _number(name, value, int)
        else:
            if field in ("redshift", "redshift_err"):
                check_redshift(source, name, columns.facts.of(name).unit)
            found[field] = float("nan") if value is None else _number(name, value, float)
    return found


def _number(name: str, value: Any, kind: type) -> int | float:
    try:
        return kind(number_of(value) if isinstance(value, str) else value)
    except (TypeError, ValueError, OverflowError):
        shown = f"{type(value).__name__} {str(value)[:80]!r}"
        raise ValueError(f"{name}: expected a number, found {shown}") from None


def _facts(columns: Columns, name: str) -> ColumnFacts:
    """Return what is stated of a column, or of the keyword that stands in for it."""
    if name in columns.columns or columns.header is None:
        return columns.facts.of(name)
    return keyword_facts(columns.header, name)


def _degrees(source: str, field: str, facts: ColumnFacts, value: Any) -> float:
    """Return a coordinate in degrees, by its column's unit or as sexagesimal text."""
    found = coordinate(source, facts, value, latitude=field == "dec")
    low, high = (-90, 90) if field == "dec" else (-360, 360)
    if low <= found <= high or np.isnan(found):
        return found
    detail = f"{facts.name}: expected {low}° to {high}°, found {found:g}° (unit {facts.unit!r})"
    raise InvalidRecord("field_invalid", detail, source)
