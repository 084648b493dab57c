"""1-D spectra as FITS images with a spectral axis: IRAF, ESO and everybody's ``wave = CRVAL + …``.

A card names the HDUs (and, of a stack, the rows) that hold flux and noise::

    reader: spectrum_image
    reader_options:
      flux: 0                      # HDU by name or number; "0:1" is row 1 of its image
      error: ERRS                  # or ivar
      medium: air                  # where the file does not say it

Images of more than one row are stacks with an object a row, as of MaNGA's and others' HDUs FLUX,
IVAR, MASK; all must be of one shape, but for what is one row for all.

Wavelengths are an HDU's (``wavelength: WAVE``), or follow from the header (`spectral_axis`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
from pydantic import Field, field_validator, model_validator

from skyray.config import Config
from skyray.readers.base import Reader, SurveyFile, name_by_content, register
from skyray.readers.column_facts import ColumnFacts, image_facts
from skyray.readers.fits_bytes import FitsFile, Hdu
from skyray.readers.fits_keywords import Keywords
from skyray.readers.layout import fits_names, stem
from skyray.readers.sky_frame import position_statement, stated_position
from skyray.readers.spectral_axis import spectral_axis
from skyray.readers.spectrum_values import Meaning, ascending, decide
from skyray.readers.table_options import WavelengthOptions, known_flux_unit
from skyray.records import InvalidRecord, Spectrum, attempt
from skyray.transforms.spectra import median_snr

_LEAST_ANGSTROM = 100.0  # of an axis without a unit: below are pixels, µm and what is no axis
_PLACE = re.compile(r"(.+?)(?::(\d{1,6}))?")


class ImageOptions(Config):
    """What the HDUs of a file hold; each a name or number, with ``:ROW`` for a row of a stack."""

    flux: str | int = 0
    wavelength: str | int | None = Field(
        None, description="HDU of the wavelengths: of every pixel, or one row for all of a stack"
    )
    ivar: str | int | None = None
    error: str | int | None = Field(None, description="1 σ, instead of ivar; 0 = not measured")
    mask: str | int | None = Field(None, description="values other than 0 are bad")
    medium: Literal["vacuum", "air", "from_file"] = "from_file"
    unit: str | None = Field(None, description="of the wavelengths, where the file states none")
    flux_unit: float | str | None = Field(None, description="as of spectrum_table")
    fields: dict[str, str] = Field(
        default_factory=lambda: {"object_id": "OBJECT", "ra": "RA", "dec": "DEC"},
        description="field of Spectrum → keyword",
    )
    survey: str = ""

    @model_validator(mode="after")
    def _consistent(self):
        if (self.ivar is None) == (self.error is None):
            raise ValueError("expected exactly one of ivar and error")
        if self.flux in (self.ivar, self.error):
            raise ValueError("flux: expected another place than that of the noise")
        known = {"object_id", "ra", "dec", "spectype", "subtype", "redshift"}
        if unknown := set(self.fields) - known:
            raise ValueError(f"fields: unknown {sorted(unknown)}; known: {sorted(known)}")
        if ("ra" in self.fields) != ("dec" in self.fields):
            raise ValueError("fields: expected both of ra and dec, or neither")
        return self

    @field_validator("flux_unit")
    @classmethod
    def _known_unit(cls, unit: float | str | None):
        return known_flux_unit(unit)


@dataclass(frozen=True)
class _Stack:
    """The arrays of a file, [spectra, pixels] (`axis`: or one row), and what their numbers mean."""

    flux: np.ndarray
    noise: np.ndarray
    mask: np.ndarray
    axis: np.ndarray
    meaning: Meaning
    fields: dict[str, Any]


@register
class SpectrumImageReader(Reader):
    """One spectrum a file, or one a row of a stack."""

    name = "spectrum_image"
    patterns = fits_names("*")

    def __init__(self, options=None):
        super().__init__(options)
        self.image = ImageOptions.load(self.options)

    def read(self, file: SurveyFile, unit: int = 0) -> Iterator[Spectrum | InvalidRecord]:
        with FitsFile(file) as fits:
            stack = self._stack(fits)
            rows, name = len(stack.flux), stem(file.below)
            for row in range(rows):
                source = fits.source if rows == 1 else f"{fits.source}#{row}"
                yield attempt(
                    partial(
                        self._spectrum, stack, row, source, name if rows == 1 else f"{name}-{row}"
                    ),
                    source,
                )

    def _stack(self, fits: FitsFile) -> _Stack:
        options = self.image
        hdu, flux, rows = _pixels(fits, options.flux)
        header = hdu.inherited_header()
        place = options.ivar if options.error is None else options.error
        noise_hdu, noise, _ = _pixels(fits, place)
        mask = np.zeros(flux.shape, dtype=bool)
        if options.mask is not None:
            mask = _pixels(fits, options.mask)[1] != 0
        noise_unit = "" if noise_hdu is hdu else _unit(noise_hdu.own_header())
        axis, meaning = self._meaning(fits, header, noise_unit, hdu.shape)
        if options.wavelength is None and len(axis) > 1:  # of the lines of each plane
            axis = axis[rows % len(axis)]
        stacks = {"flux": flux, "noise": noise, "mask": mask, "wavelength": axis}
        for name, values in stacks.items():
            many = (1, len(flux)) if name == "wavelength" else (len(flux),)
            if values.shape[1] != flux.shape[1] or len(values) not in many:
                detail = f"{name}: expected {flux.shape}, as flux has, found {values.shape}"
                fits.refuse("shape_mismatch", detail)
        fields = self._fields(fits.source, header, one=len(flux) == 1)
        return _Stack(flux, noise, mask, axis, meaning, fields)

    def _spectrum(self, stack: _Stack, row: int, source: str, name: str) -> Spectrum:
        flux, noise, mask = stack.flux[row], stack.noise[row], stack.mask[row]
        meaning, fields = stack.meaning, dict(stack.fields)
        axis = stack.axis[row if len(stack.axis) > 1 else 0]
        if self.image.wavelength is None:  # NaN behind a shorter line's last pixel
            told = np.isfinite(axis)
            axis, flux, noise, mask = (values[told] for values in (axis, flux, noise, mask))
        wavelength = meaning.wavelength(axis)
        arrays = ascending(wavelength, *meaning.flux(wavelength, flux, noise, mask), mask)
        object_id = fields.pop("object_id", "") or name
        statements = meaning.statements | position_statement(fields.pop("frame", ""))
        return Spectrum(
            object_id, *arrays, source=source, survey=self.image.survey,
            snr=median_snr(*arrays[1:]), statements=statements,
            observation_id=name_by_content(object_id, arrays[1]), **fields,
        )  # fmt: skip

    def _meaning(
        self, fits: FitsFile, header: Keywords, noise_unit: str, shape: tuple[int, ...]
    ) -> tuple[np.ndarray, Meaning]:
        """Return the axis, [1 or rows, pixels], and what is known of all values."""
        options = self.image
        unit = _unit(header)
        if options.wavelength is None:
            lines = shape[-2] if len(shape) > 1 else 1
            axis, facts = spectral_axis(fits.source, header, shape[-1], lines)
            if not (facts.unit or options.unit) and np.nanmin(axis) < _LEAST_ANGSTROM:
                found = f"{np.nanmin(axis):g} to {np.nanmax(axis):g}"
                detail = (
                    f"axis 1: expected Å where no unit is stated, found {found}; `unit` says it"
                )
                fits.refuse("unit_unknown", detail)
        else:
            hdu, axis, _ = _pixels(fits, options.wavelength)
            header, facts = hdu.own_header().over(header), image_facts(hdu)
        facts_of = {
            "wavelength": facts,
            "flux": ColumnFacts("flux", unit=unit, origin="BUNIT"),
            "noise": ColumnFacts("noise", unit=noise_unit, origin="BUNIT of the noise"),
        }
        wave = WavelengthOptions(column="axis", unit=options.unit)
        return axis, decide(
            fits.source, header, facts_of, wave, options.medium, options.flux_unit,
            options.error is not None,
        )  # fmt: skip

    def _fields(self, source: str, header: Keywords, one: bool) -> dict[str, Any]:
        """Return what keywords tell; of a stack's rows they tell neither name nor position."""
        found: dict[str, Any] = {}
        ours = self.image.fields.items()
        names = {f: key for f, key in ours if one or f not in ("object_id", "ra", "dec")}
        place = [names.pop(field).upper() for field in ("ra", "dec") if field in names]
        if len(place) == 2:
            *position, found["frame"] = stated_position(source, header, place)
            found |= dict(zip(("ra", "dec"), position, strict=True))
        for field, key in names.items():
            value = header.get(key.upper())
            if field == "redshift":
                found[field] = header.number(key.upper())
            else:
                found[field] = "" if value is None else str(value).strip()
        return found


def _unit(header: Keywords) -> str:
    return str(header.get("BUNIT") or "").strip()


def _pixels(fits: FitsFile, place: str | int) -> tuple[Hdu, np.ndarray, np.ndarray]:
    """Return the HDU, its pixels [spectra, pixels], of all rows or the one named, and which."""
    name, row = _PLACE.fullmatch(str(place)).groups()
    hdu = fits.hdu(int(name) if name.isdigit() else name)
    shape = hdu.shape
    pixels = hdu.image()
    stacked = pixels.reshape(-1, pixels.shape[-1])
    if row is None and len([size for size in shape if size > 1]) > 2:
        detail = (
            f"HDU {name}: expected a spectrum a row, found a cube {shape}: name one as '{name}:0'"
        )
        fits.refuse("shape_mismatch", detail)
    if row is None:
        return hdu, stacked, np.arange(len(stacked))
    if int(row) >= len(stacked):
        fits.refuse("shape_mismatch", f"HDU {name}: expected row {row}, found {len(stacked)}")
    return hdu, stacked[int(row)][None, :], np.array([int(row)])
