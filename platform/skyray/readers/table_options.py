"""What a card says of a table of spectra: which column is what, and what the file leaves out."""

from __future__ import annotations

from string import Formatter
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from skyray.config import Config
from skyray.readers.units import is_flux, spectral_unit
from skyray.records import InvalidRecord

RELATIVE = ("relative", "unknown")


def known_flux_unit(unit: float | str | None) -> float | str | None:
    """Return a card's `flux_unit`; raises ValueError for what is none."""
    if isinstance(unit, str) and unit.strip().lower() in RELATIVE:
        return "relative"
    if isinstance(unit, str) and not is_flux(unit):
        raise ValueError(f"expected the unit of a flux density or `relative`, found {unit!r}")
    if isinstance(unit, float) and not 0 < unit < float("inf"):
        raise ValueError(f"expected a factor > 0, found {unit}")
    return unit


class WavelengthOptions(Config):
    """Where the wavelengths of a row are: a column, a shared array, or a regular grid."""

    column: str | None = Field(None, description="array column, or 1-D array shared by all rows")
    unit: str | None = Field(
        None, description="of `column`, where the file states none: nm, Hz, log10(Angstrom) …"
    )
    unit_angstrom: float | None = Field(None, gt=0, description="the same as a factor to Å")
    kind: Literal["linear", "log10"] | None = Field(
        None, description="regular grid: Å, or log10 of Å"
    )
    start: str | float | None = Field(
        None, description="grid: first pixel, a number or a column, whose own unit counts"
    )
    step: str | float | None = Field(None, description="grid: step, likewise")

    @model_validator(mode="after")
    def _one_way(self):
        grid = (self.kind, self.start, self.step)
        if (self.column is None) == (None in grid):
            raise ValueError("wavelength: expected either column, or kind, start and step")
        if self.column is not None and any(part is not None for part in grid):
            raise ValueError("wavelength: column and a grid exclude each other")
        if self.unit is not None and self.unit_angstrom is not None:
            raise ValueError("wavelength: unit and unit_angstrom exclude each other")
        if self.column is None and (self.unit or self.unit_angstrom):
            raise ValueError("wavelength: a unit goes with a column; a grid is in Å")
        return self

    @field_validator("unit")
    @classmethod
    def _unit(cls, text: str | None):
        try:
            if text is not None:
                spectral_unit("card", "unit", text)
        except InvalidRecord as error:
            raise ValueError(error.detail) from None
        return text


class TableOptions(Config):
    """What a table of spectra holds. Array names may contain ``{arm}``.

    Of a FITS table that describes itself (UTYPE, UCD or the names WAVE, FLUX, ERR or IVAR, QUAL),
    wavelength, flux, ivar or error and mask may be left out.
    """

    medium: Literal["vacuum", "air", "from_file"] = Field(
        "from_file", description="of the wavelengths; from_file: the file must say. Never assumed"
    )
    wavelength: WavelengthOptions | None = None
    flux: str | None = None
    ivar: str | None = None
    error: str | None = Field(None, description="1 σ, instead of ivar; 0 = not measured")
    mask: str | None = None
    bad_bits: list[int] | None = Field(
        None, description="bits of mask that make a pixel bad; default: any value but 0"
    )
    mask_means: Literal["bad", "good"] = Field(
        "bad", description="what a value of mask other than 0, or a true one, means"
    )
    flux_unit: float | str | None = Field(
        None,
        description="of flux, where the file states none: a unit, a factor to 1e-17 erg/s/cm²/Å, "
        "or `relative` for fluxes without one",
    )
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
        if self.described and (self.ivar is None) == (self.error is None):
            raise ValueError("expected exactly one of ivar and error")
        if bool(self.arms) != (self.coadd_grid is not None):
            raise ValueError("arms and coadd_grid go together")
        columns = self.wavelength is not None and self.wavelength.column is not None
        if self.arms and (self.medium == "air" or not columns or not self.flux):
            raise ValueError("arms: expected flux, and vacuum wavelengths in a column")
        if self.mask_means == "good" and self.bad_bits is not None:
            raise ValueError("bad_bits: expected a mask that means bad")
        known = {"object_id", "ra", "dec", "spectype", "subtype", "redshift", "redshift_err",
                 "zwarning", "snr", "survey"}  # fmt: skip
        if unknown := set(self.fields) - known:
            raise ValueError(f"fields: unknown {sorted(unknown)}; known: {sorted(known)}")
        return self

    @field_validator("flux_unit")
    @classmethod
    def _known_unit(cls, unit: float | str | None):
        return known_flux_unit(unit)

    @property
    def described(self) -> bool:
        """Whether the card says which columns hold wavelength and flux; else the file must."""
        return self.flux is not None and self.wavelength is not None

    def names(self) -> set[str]:
        """Return every column the options mention."""
        grid = self.wavelength or WavelengthOptions(kind="linear", start=0.0, step=1.0)
        arrays = [self.flux, self.ivar, self.error, self.mask, grid.column]
        found = {n.format(arm=arm) for n in arrays if n for arm in self.arms or [""]}
        found |= {s for s in (grid.start, grid.step) if isinstance(s, str)}
        found |= {name for _, name, _, _ in Formatter().parse(self.id_format or "") if name}
        return found | set(self.fields.values()) | set(self.extra)
