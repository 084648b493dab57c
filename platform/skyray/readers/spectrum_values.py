"""What the numbers of a spectrum mean: units, and medium and frame of the wavelengths.

`decide` weighs what a file says against what the card says, once a file; where they contradict,
or nobody says what has to be known, the file is refused by name. Of a survey whose description says
what its files leave out (`DataModel`), that stands in where a file is silent. `Meaning` then turns
arrays into those of a `Spectrum`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from astropy import units

from skyray.readers import medium as media
from skyray.readers import velocity_frame
from skyray.readers.column_facts import ColumnFacts
from skyray.readers.medium import (
    Medium,
    Said,
    decide_medium,
    medium_said,
    model_medium,
    to_vacuum,
)
from skyray.readers.table_options import WavelengthOptions
from skyray.readers.units import (
    flux_factor,
    is_flux,
    is_length,
    ivar_factor,
    parse_unit,
    spectral_unit,
    to_angstrom,
)
from skyray.readers.velocity_frame import frame_factor, model_frame
from skyray.records import InvalidRecord, as_float32
from skyray.transforms.spectra import ivar_of_error

_AGREE = 1e-6
_KEYWORDS = media.KEYWORDS + velocity_frame.KEYWORDS
_ANGSTROM = "Angstrom"
_AT = np.array([4000.0, 8000.0])  # Å, where units are compared
_MODEL = "data model"


@dataclass(frozen=True)
class DataModel:
    """What a survey's description of its files says, for where a file is silent.

    Wavelengths are vacuum; `air` tells whether files that say air are converted, or refused.
    """

    frame: str
    wavelength_unit: str = _ANGSTROM
    flux_unit: str = "1e-17 erg/s/cm²/Å"
    air: bool = True


@dataclass(frozen=True)
class Meaning:
    """What was decided of one file's columns; `statements` says from what.

    `step_factor` brings the step of a regular grid to `wavelength_unit`.
    """

    source: str
    wavelength_unit: str
    medium: Medium
    to_rest: float
    flux_unit: str | float
    noise_unit: str | float
    noise_is_error: bool
    statements: Mapping[str, str]
    step_factor: float = 1.0

    def wavelength(self, values: np.ndarray) -> np.ndarray:
        """Return vacuum wavelengths at rest to the barycentre, Å, in the order of `values`."""
        found = values.astype(np.float64)
        if self.wavelength_unit != _ANGSTROM:
            found = to_angstrom(self.source, "wavelength", self.wavelength_unit, found)
        found = to_vacuum(self.medium, found)
        return found if self.to_rest == 1 else found * self.to_rest

    def flux(
        self, wavelength: np.ndarray, flux: np.ndarray, noise: np.ndarray, mask: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return flux and ivar as `Spectrum` has them, float32.

        Raises
        ------
        InvalidRecord
            ``value_out_of_range`` for what float32 cannot hold.
        """
        if self.noise_is_error:
            unit = self.noise_unit or self.flux_unit
            ivar = ivar_of_error(_times(noise, self._factor(unit, wavelength)), mask)
        else:
            ivar = self.ivar(wavelength, noise)
        of_card = self.flux_unit == 1.0 and _MODEL not in self.statements["flux_unit"]
        hint = "" if not of_card else "; is flux_unit of the card right?"
        return (
            as_float32("flux", self.density(wavelength, flux), hint),
            as_float32("ivar", ivar, hint),
        )

    def density(self, wavelength: np.ndarray, flux: np.ndarray) -> np.ndarray:
        """Return flux in our unit, float64 unless it is so already."""
        return _times(flux, self._factor(self.flux_unit, wavelength))

    def ivar(self, wavelength: np.ndarray, ivar: np.ndarray) -> np.ndarray:
        """Return an inverse variance in our unit, float64 unless it is so already."""
        if isinstance(self.noise_unit, float):  # where flux has no unit: to its inverse square
            return _times(ivar, self.noise_unit)
        if self.noise_unit:
            return _times(ivar, ivar_factor(self.source, "ivar", self.noise_unit, wavelength))
        factor = self._factor(self.flux_unit, wavelength)
        plain = np.ndim(factor) == 0 and factor == 1
        return ivar if plain else ivar.astype(np.float64) / np.square(factor)

    def _factor(self, unit: str | float, wavelength: np.ndarray) -> float | np.ndarray:
        if not isinstance(unit, str):
            return unit
        return flux_factor(self.source, "flux", unit, wavelength)


def joined(meanings: Iterable[Meaning]) -> dict[str, str]:
    """Return the statements of all arms of a spectrum, each once."""
    told = [meaning.statements for meaning in meanings]
    return {
        name: "; ".join(dict.fromkeys(one[name] for one in told if name in one))
        for name in dict.fromkeys(name for one in told for name in one)
    }


def ascending(wavelength: np.ndarray, *others: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return arrays of pixels, turned round where their wavelengths run backwards."""
    arrays = wavelength, *others
    backwards = len(wavelength) > 1 and (wavelength[1:] < wavelength[:-1]).all()
    return tuple(array[::-1] for array in arrays) if backwards else arrays


def _times(values: np.ndarray, factor: float | np.ndarray) -> np.ndarray:
    if np.ndim(factor) == 0 and factor == 1:
        return values
    with np.errstate(over="ignore", invalid="ignore"):
        return values.astype(np.float64) * factor


def decide(
    source: str,
    header: Any,
    facts: Mapping[str, ColumnFacts],
    wavelength: WavelengthOptions,
    medium: str,
    flux_unit: float | str | None,
    noise_is_error: bool,
    model: DataModel | None = None,
) -> Meaning:
    """Decide what a file's numbers mean.

    Parameters
    ----------
    source : str
        File, for refusals.
    header : with ``get``, or None
        FITS keywords.
    facts : mapping
        ``wavelength``, ``flux`` and ``noise`` → what the file states of that column; of a grid
        ``wavelength`` is what gives the start, and ``step`` the step.
    wavelength, medium, flux_unit
        What the card says (`TableOptions`).
    noise_is_error : bool
        Whether the noise is 1 σ; else it is an inverse variance.
    model : DataModel, optional
        Of a survey, in place of the card: what it says yields to what the file says.

    Raises
    ------
    InvalidRecord
        ``unit_unknown``, ``unit_conflict``, ``medium_unknown``, ``medium_conflict``,
        ``frame_topocentric``, ``velocity_frame_unknown``.
    """
    asked = wavelength, medium, flux_unit, noise_is_error, model
    if model is None:
        return _decide(source, header, facts, *asked)
    header = header.among(_KEYWORDS)  # millions of small files: what is not given is not asked for
    if header:
        return _decide(source, header, facts, *asked)
    with contextlib.suppress(InvalidRecord):
        return replace(_silent(tuple(facts.items()), *asked), source=source)
    return _decide(source, header, facts, *asked)  # which refuses it in this file's name


@lru_cache(maxsize=16)
def _silent(facts: tuple[tuple[str, ColumnFacts], ...], *asked: Any) -> Meaning:
    """Return what `decide` does of files that state the same, and that in their columns alone."""
    return _decide("", {}, dict(facts), *asked)


def _decide(
    source: str,
    header: Any,
    facts: Mapping[str, ColumnFacts],
    wavelength: WavelengthOptions,
    medium: str,
    flux_unit: float | str | None,
    noise_is_error: bool,
    model: DataModel | None,
) -> Meaning:
    step = 1.0
    if wavelength.column is not None:
        unit, wave_told = _wavelength_unit(source, wavelength, facts["wavelength"], model)
    else:
        unit, step, wave_told = _grid_unit(source, wavelength, facts)
    said = medium_said(header, facts["wavelength"].told())
    if not is_length(unit):
        said = [Said("vacuum", f"unit {unit}")]  # a frequency or an energy is of no medium
    if model is None:
        found, medium_told = decide_medium(source, None if medium == "from_file" else medium, said)
        to_rest, frame_told = frame_factor(source, header) if header is not None else (1.0, "")
    else:
        found, medium_told = model_medium(source, said, model.air)
        to_rest, frame_told = 1.0, model_frame(source, header, model.frame)
    flux, flux_told = flux_scale(source, flux_unit, facts["flux"], model)
    noise = _noise_unit(source, facts["noise"], facts["flux"], flux, noise_is_error)
    statements = {"wavelength_unit": wave_told, "medium": medium_told, "flux_unit": flux_told}
    if noise:
        statements["error_unit" if noise_is_error else "ivar_unit"] = (
            f"{facts['noise'].unit}: {facts['noise'].origin}"
        )
    if frame_told:
        statements["frame"] = frame_told
    return Meaning(source, unit, found, to_rest, flux, noise, noise_is_error, statements, step)


def flux_scale(
    source: str, card: float | str | None, facts: ColumnFacts, model: DataModel | None = None
) -> tuple[str | float, str]:
    """Return a flux's unit, or its factor to 1e-17 erg/s/cm²/Å, and from what it follows.

    Where neither file nor card says, values stay as they are and are marked unknown.

    Raises
    ------
    InvalidRecord
        ``unit_unknown`` for a unit that is no flux density, ``unit_conflict`` where card and file
        contradict.
    """
    told = f"{facts.origin or 'file'}"
    card, by = (card, "card") if model is None else (model.flux_unit, _MODEL)
    if facts.unit and is_flux(facts.unit):
        if model is None and card is not None and not _same_flux(source, card, facts.unit):
            raise _conflict(source, facts, card)
        return facts.unit, f"{facts.unit}: {told}"
    if card == "relative":
        states = f" (the file says {facts.unit!r})" if facts.unit else ""
        return 1.0, f"relative: {by}{states}"
    if facts.unit and (card is None or model is not None):
        flux_factor(source, facts.name or "flux", facts.unit, np.ones(1))  # refuses
    if card is None:
        return 1.0, "unknown: neither file nor card states one"
    if facts.unit and parse_unit(facts.unit) is not None:  # counts, adu, a length
        raise _conflict(source, facts, card)
    states = f" (not understood: {facts.unit!r})" if facts.unit else ""
    shown = card if isinstance(card, str) else f"× {card:g}"
    return card, f"{shown}: {by}{states}"


def _same_flux(source: str, card: float | str, unit: str) -> bool:
    if card == "relative":
        return False
    ours = flux_factor(source, "flux", card, _AT) if isinstance(card, str) else card
    return bool(np.allclose(ours, flux_factor(source, "flux", unit, _AT), rtol=_AGREE, atol=0))


def _conflict(source: str, facts: ColumnFacts, expected: Any, by: str = "card") -> InvalidRecord:
    detail = (
        f"{facts.name}: expected {expected!r}, as the {by} says, found {facts.unit!r} by "
        f"{facts.origin or 'the file'}"
    )
    return InvalidRecord("unit_conflict", detail, source)


def _noise_unit(
    source: str, facts: ColumnFacts, of_flux: ColumnFacts, flux: str | float, is_error: bool
) -> str | float:
    """Return the noise's own unit; '' where it is that of the flux, or nothing is said.

    Of a flux without a unit (relative, a factor) it is the factor to the flux's scale.
    """
    if not facts.unit:
        return ""
    if isinstance(flux, str):
        check = flux_factor if is_error else ivar_factor
        check(source, facts.name, facts.unit, _AT)  # refuses what is none
        return "" if is_error and facts.unit == flux else facts.unit
    if is_error and facts.unit == of_flux.unit:
        return "" if flux == 1 else flux
    ours, theirs = parse_unit(facts.unit), parse_unit(of_flux.unit)
    wanted = None if theirs is None else theirs if is_error else theirs**-2
    if ours is None or wanted is None or not ours.is_equivalent(wanted):
        detail = (
            f"expected flux and noise in one kind of unit, found {facts.name} in {facts.unit!r} "
            f"and flux in {of_flux.unit or 'none'!r}"
        )
        raise InvalidRecord("unit_conflict", detail, source)
    return float(ours.to(wanted)) * (flux if is_error else flux**-2.0)


def _wavelength_unit(
    source: str, options: WavelengthOptions, facts: ColumnFacts, model: DataModel | None
) -> tuple[str, str]:
    """Return the unit of the wavelengths and from what it follows."""
    if model is not None:
        unit = facts.unit or model.wavelength_unit
        base = spectral_unit(source, facts.name, unit)[0]  # refuses what is none
        if (base is None) != (spectral_unit(source, "", model.wavelength_unit)[0] is None):
            raise _conflict(source, facts, model.wavelength_unit, _MODEL)
        return unit, f"{unit}: {facts.origin if facts.unit else _MODEL}"
    card = options.unit
    if options.unit_angstrom is not None:
        card = f"{options.unit_angstrom!r} Angstrom"
    if not facts.unit:
        return (card, f"{card}: card") if card else (_ANGSTROM, "Å: not stated")
    stated = parse_unit(facts.unit) is not None
    if card is None or stated or facts.unit.lower().startswith(("log", "ln", "dex")):
        if card is not None and not _same_unit(source, card, facts):
            raise _conflict(source, facts, card)
        base, unit = spectral_unit(source, facts.name, facts.unit)
        if base is None and unit == units.AA:
            return _ANGSTROM, f"Å: {facts.origin}"
        return facts.unit, f"{facts.unit}: {facts.origin}"
    return card, f"{card}: card (not understood: {facts.unit!r})"


def _grid_unit(
    source: str, options: WavelengthOptions, facts: Mapping[str, ColumnFacts]
) -> tuple[str, float, str]:
    """Return the unit of a regular grid, what brings its step to it, and from what both follow.

    The card's numbers are Å (or log10 of Å); a column that states a unit is in that.
    """
    start, step = facts["wavelength"], facts["step"]
    stated = [one for one in (start, step) if one.unit]
    if not stated:
        unit = _ANGSTROM if options.kind == "linear" else f"log10({_ANGSTROM})"
        return unit, 1.0, f"Å, {options.kind} grid: card"
    told = f"{options.kind} grid: {', '.join(f'{one.unit} ({one.origin})' for one in stated)}"
    if options.kind == "log10":
        for one in stated:  # a step of a logarithm is of no length, nor is a start in dex alone
            if one.unit.lower() != "dex" and spectral_unit(source, one.name, one.unit)[0] != 10:
                raise _conflict(source, one, f"log10({_ANGSTROM})")
        bare = not start.unit or start.unit.lower() == "dex"
        return f"log10({_ANGSTROM})" if bare else start.unit, 1.0, told
    bases, lengths = zip(
        *(spectral_unit(source, one.name, one.unit or _ANGSTROM) for one in (start, step)),
        strict=True,
    )
    silent = [one.name for one in (start, step) if one.name and not one.unit]
    if silent and lengths[0] != lengths[1]:
        detail = f"{silent[0]}: expected a unit, as {stated[0].name} states {stated[0].unit!r}"
        raise InvalidRecord("unit_conflict", f"{detail}, found none", source)
    if bases != (None, None) or not lengths[1].is_equivalent(lengths[0]):
        raise _conflict(source, stated[0], f"{_ANGSTROM}, start and step alike")
    return start.unit or _ANGSTROM, float(lengths[1].to(lengths[0])), told


def _same_unit(source: str, card: str, facts: ColumnFacts) -> bool:
    try:
        theirs = spectral_unit(source, facts.name, facts.unit)
    except InvalidRecord:
        return False
    ours = spectral_unit(source, "wavelength", card)
    if ours[0] != theirs[0] or not ours[1].is_equivalent(theirs[1]):
        return False
    return abs(ours[1].to(theirs[1]) - 1) < _AGREE
