"""1-D spectra as FITS images with a spectral axis: IRAF, ESO and everybody's ``wave = CRVAL + …``.

A card names the HDUs (and, of a stack, the rows) that hold flux and noise::

    reader: spectrum_image
    reader_options:
      flux: 0                      # HDU by name or number; "0:1" is row 1 of its image
      error: ERRS                  # or ivar
      medium: air                  # where the file does not say it

Images of more than one row are stacks with an object a row, as of MaNGA's and others' HDUs FLUX,
IVAR, MASK; all must be of one shape, but for what is one row for all.

Wavelengths are an HDU's (``wavelength: WAVE``), or follow from the header: CTYPE of FITS WCS paper
III (WAVE, AWAV, FREQ, ENER, WAVN and their algorithms such as WAVE-LOG, by wcslib through astropy),
else a linear axis with IRAF's DC-FLAG (1: log10; LTV and LTM are of another file) and CUNIT or
WAT1's ``units``. A velocity axis is refused: it has no wavelengths without a line at rest.

Source: Greisen et al. 2006, A&A 446, 747 (paper III); Valdes 1993, ASP Conf. 52, 467 (DC-FLAG).
"""

from __future__ import annotations

import math
import re
import warnings
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
from skyray.readers.spectrum_values import Meaning, decide
from skyray.readers.table_options import WavelengthOptions, known_flux_unit
from skyray.readers.units import to_degrees
from skyray.records import InvalidRecord, Spectrum, attempt
from skyray.transforms.spectra import median_snr

_WCS_TYPES = {"WAVE": "m", "AWAV": "m", "FREQ": "Hz", "ENER": "J", "WAVN": "1/m"}  # SI, by wcslib
_VELOCITIES = ("VELO", "VRAD", "VOPT", "ZOPT", "BETA", "FELO")
_PLAIN = ("", "LINEAR", "PIXEL", "LAMBDA", "WAVELENGTH", "ANGSTROM", "MULTISPE", "LOG-LIN")
_WAT_UNITS = re.compile(r"units\s*=\s*([^\s\"']+)")
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
        hdu, flux = _pixels(fits, options.flux)
        header = hdu.inherited_header()
        noise_hdu, noise = _pixels(fits, options.ivar if options.error is None else options.error)
        mask = np.zeros(flux.shape, dtype=bool)
        if options.mask is not None:
            mask = _pixels(fits, options.mask)[1] != 0
        noise_header = header if noise_hdu is hdu else noise_hdu.own_header()
        axis, meaning = self._meaning(fits, header, noise_header, flux.shape[1])
        stacks = {"flux": flux, "noise": noise, "mask": mask, "wavelength": axis}
        for name, values in stacks.items():
            rows = (1, len(flux)) if name == "wavelength" else (len(flux),)
            if values.shape[1] != flux.shape[1] or len(values) not in rows:
                detail = f"{name}: expected {flux.shape}, as flux has, found {values.shape}"
                fits.refuse("shape_mismatch", detail)
        alone = {} if len(flux) == 1 else {"object_id": ""}  # keywords are of all rows, not of one
        fields = {**self._fields(fits.source, header), **alone}
        if len(flux) > 1:
            fields |= {name: math.nan for name in ("ra", "dec") if name in fields}
        return _Stack(flux, noise, mask, axis, meaning, fields)

    def _spectrum(self, stack: _Stack, row: int, source: str, name: str) -> Spectrum:
        flux, noise, mask = stack.flux[row], stack.noise[row], stack.mask[row]
        meaning, fields = stack.meaning, dict(stack.fields)
        wavelength = meaning.wavelength(stack.axis[row if len(stack.axis) > 1 else 0])
        arrays = (wavelength, *meaning.flux(wavelength, flux, noise, mask), mask)
        if len(wavelength) > 1 and (np.diff(wavelength) < 0).all():
            arrays = tuple(array[::-1] for array in arrays)
        object_id = fields.pop("object_id", "") or name
        return Spectrum(
            object_id, *arrays, source=source, survey=self.image.survey,
            snr=median_snr(*arrays[1:]), statements=meaning.statements,
            observation_id=name_by_content(object_id, arrays[1]), **fields,
        )  # fmt: skip

    def _meaning(
        self, fits: FitsFile, header: Keywords, noise: Keywords, size: int
    ) -> tuple[np.ndarray, Meaning]:
        """Return the axis, [1 or rows, pixels], and what is known of all values."""
        options = self.image
        unit = str(header.get("BUNIT") or "").strip()
        noise_unit = str(noise.get("BUNIT") or "").strip() if noise is not header else ""
        if options.wavelength is None:
            axis, facts = spectral_axis(fits.source, header, size)
            axis = axis[None, :]
        else:
            hdu, axis = _pixels(fits, options.wavelength)
            header, facts = hdu.own_header().over(header), image_facts(hdu)
        facts_of = {
            "wavelength": facts,
            "flux": ColumnFacts("flux", unit=unit, origin="BUNIT"),
            "noise": ColumnFacts("noise", unit=noise_unit, origin="BUNIT"),
        }
        wave = WavelengthOptions(column="axis", unit=options.unit)
        return axis, decide(
            fits.source, header, facts_of, wave, options.medium, options.flux_unit,
            options.error is not None,
        )  # fmt: skip

    def _fields(self, source: str, header: Keywords) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for field, key in self.image.fields.items():
            value = header.get(key.upper())
            if field in ("ra", "dec"):
                found[field] = to_degrees(source, key, "", value, hours=field == "ra")
            elif field == "redshift":
                found[field] = header.number(key.upper())
            else:
                found[field] = "" if value is None else str(value).strip()
        return found


def _pixels(fits: FitsFile, place: str | int) -> tuple[Hdu, np.ndarray]:
    """Return the HDU and its pixels [spectra, pixels], of all rows or of the one that is named."""
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
        return hdu, stacked
    if int(row) >= len(stacked):
        fits.refuse("shape_mismatch", f"HDU {name}: expected row {row}, found {len(stacked)}")
    return hdu, stacked[int(row)][None, :]


def spectral_axis(source: str, header: Keywords, size: int) -> tuple[np.ndarray, ColumnFacts]:
    """Return the coordinate of every pixel of the first axis, float64 [size], and its facts.

    Raises
    ------
    InvalidRecord
        ``wavelength_missing`` where the header does not tell it; ``unit_unknown`` for velocities.
    """
    ctype = str(header.get("CTYPE1") or "").strip().upper()
    facts = {"name": "axis 1", "ucd": str(header.get("UCD1") or ""), "ctype": ctype}
    kind = ctype[:4]
    if kind in _VELOCITIES:
        detail = f"CTYPE1: expected a wavelength, frequency or energy, found {ctype!r}"
        raise InvalidRecord("unit_unknown", detail, source)
    known = kind in _WCS_TYPES
    if known and ctype[4:5] == "-":
        axis = _by_wcslib(source, header, ctype, size)
        return axis, ColumnFacts(**facts, unit=_WCS_TYPES[kind], origin=f"CTYPE1 {ctype}")
    if ctype not in _PLAIN and ctype not in _WCS_TYPES:
        detail = f"CTYPE1: expected an axis of wavelengths, found {ctype!r}"
        raise InvalidRecord("wavelength_missing", detail, source)
    axis, logarithm = _linear(source, header, size)
    unit, origin = str(header.get("CUNIT1") or "").strip(), "CUNIT1"
    if not unit and (found := _WAT_UNITS.search(str(header.get("WAT1_001") or ""))):
        unit, origin = found[1], "WAT1_001"
    if logarithm and not unit.lower().startswith(("log", "dex")):
        unit, origin = f"log10({unit or 'Angstrom'})", f"{origin}, {logarithm}"
    if known and not unit:
        detail = f"CUNIT1: expected the unit of CTYPE1 {ctype}, found none"
        raise InvalidRecord("unit_unknown", detail, source)
    return axis, ColumnFacts(**facts, unit=unit, origin=origin)


def _linear(source: str, header: Keywords, size: int) -> tuple[np.ndarray, str]:
    """Return a linear axis, and the keyword by which it is log10; '' for none."""
    start, reference = _number(header, "CRVAL1"), _number(header, "CRPIX1")
    step = _number(header, "CD1_1") or _number(header, "CDELT1")
    logarithm = "DC-FLAG" if header.get("DC-FLAG") == 1 else ""
    if start is None and _number(header, "COEFF0") is not None:  # SDSS
        start, step, reference = _number(header, "COEFF0"), _number(header, "COEFF1"), None
        logarithm = "COEFF0"
    if str(header.get("CTYPE1") or "").strip().upper() == "LOG-LIN":
        logarithm = "CTYPE1"
    if start is None or not step:
        detail = "expected CRVAL1 with CD1_1 or CDELT1, found none"
        raise InvalidRecord("wavelength_missing", detail, source)
    first = 1 - (1.0 if reference is None else reference)
    return start + step * (np.arange(size) + first), logarithm


def _number(header: Keywords, key: str) -> float | None:
    value = header.get(key)
    return float(value) if type(value) in (int, float) else None


def _by_wcslib(source: str, header: Keywords, ctype: str, size: int) -> np.ndarray:
    from astropy.io import fits
    from astropy.wcs import WCS

    cards = fits.Header()
    keys = ("CTYPE1", "CUNIT1", "CRVAL1", "CRPIX1", "CDELT1", "CD1_1", "PC1_1", "RESTFRQ",
            "RESTWAV", "PV1_0", "PV1_1", "PV1_2", "PV1_3", "PV1_4", "PV1_5", "PV1_6")  # fmt: skip
    for key in keys:
        if (value := header.get(key)) is not None:
            cards[key] = value
    cards["WCSAXES"] = 1
    unit = str(cards.get("CUNIT1") or "").strip()
    if unit.lower() in ("angstroms", "a", "ang"):
        cards["CUNIT1"] = "Angstrom"
    if (cards.get("CDELT1") or cards.get("CD1_1")) is None or cards.get("CRVAL1") is None:
        detail = "expected CRVAL1 with CD1_1 or CDELT1, found none"
        raise InvalidRecord("wavelength_missing", detail, source)
    if not unit:
        detail = f"CUNIT1: expected the unit of CTYPE1 {ctype}, found none"
        raise InvalidRecord("unit_unknown", detail, source)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return WCS(cards, naxis=1).wcs_pix2world(np.arange(size), 0)[0]
    except Exception as error:  # whatever wcslib finds wrong
        detail = f"CTYPE1 {ctype}: {type(error).__name__}: {error}"[:300]
        raise InvalidRecord("wavelength_missing", detail, source) from None
