"""What the numbers of a spectrum mean: units, and medium and frame of the wavelengths.

`decide` weighs what a file says against what the card says, once a file; where they contradict,
or nobody says what has to be known, the file is refused by name. `Meaning` then turns arrays into
those of a `Spectrum`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from astropy import units

from skyray.readers.column_facts import ColumnFacts
from skyray.readers.medium import Medium, Said, decide_medium, medium_said, to_vacuum
from skyray.readers.table_options import WavelengthOptions
from skyray.readers.units import (
    flux_factor,
    is_flux,
    ivar_factor,
    parse_unit,
    spectral_unit,
    to_angstrom,
)
from skyray.readers.velocity_frame import frame_factor
from skyray.records import InvalidRecord, as_float32
from skyray.transforms.spectra import ivar_of_error

_AGREE = 1e-6
_ANGSTROM = "Angstrom"


@dataclass(frozen=True)
class Meaning:
    """What was decided of one file's columns; `statements` says from what."""

    source: str
    wavelength_unit: str
    medium: Medium
    to_rest: float
    flux_unit: str | float
    noise_unit: str | float
    noise_is_error: bool
    statements: Mapping[str, str]

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
        factor = self._factor(self.flux_unit, wavelength)
        if self.noise_is_error:
            unit = self.noise_unit or self.flux_unit
            ivar = ivar_of_error(_times(noise, self._factor(unit, wavelength)), mask)
        elif isinstance(self.noise_unit, float):  # where flux has no unit: to its inverse square
            ivar = _times(noise, self.noise_unit)
        elif self.noise_unit:
            ivar = _times(noise, ivar_factor(self.source, "ivar", self.noise_unit, wavelength))
        else:
            ivar = noise if np.ndim(factor) == 0 and factor == 1 else noise / np.square(factor)
        hint = "" if self.flux_unit != 1.0 else "; is flux_unit of the card right?"
        return (
            as_float32("flux", _times(flux, factor), hint),
            as_float32("ivar", ivar, hint),
        )

    def _factor(self, unit: str | float, wavelength: np.ndarray) -> float | np.ndarray:
        if not isinstance(unit, str):
            return unit
        return flux_factor(self.source, "flux", unit, wavelength)


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
) -> Meaning:
    """Decide what a file's numbers mean.

    Parameters
    ----------
    source : str
        File, for refusals.
    header : with ``get``, or None
        FITS keywords.
    facts : mapping
        ``wavelength``, ``flux`` and ``noise`` → what the file states of that column.
    wavelength, medium, flux_unit
        What the card says (`TableOptions`).
    noise_is_error : bool
        Whether the noise is 1 σ; else it is an inverse variance.

    Raises
    ------
    InvalidRecord
        ``unit_unknown``, ``unit_conflict``, ``medium_unknown``, ``medium_conflict``,
        ``frame_topocentric``, ``velocity_frame_unknown``.
    """
    card_medium = None if medium == "from_file" else medium
    unit, wave_told = _wavelength_unit(source, wavelength, facts["wavelength"])
    said = medium_said(header, facts["wavelength"].told())
    if not spectral_unit(source, "wavelength", unit)[1].is_equivalent(units.AA):
        said = [Said("vacuum", f"unit {unit}")]  # a frequency or an energy is of no medium
    found, medium_told = decide_medium(source, card_medium, said)
    to_rest, frame_told = frame_factor(source, header) if header is not None else (1.0, "")
    flux, flux_told = flux_scale(source, flux_unit, facts["flux"])
    noise = _noise_unit(source, facts["noise"], facts["flux"], flux, noise_is_error)
    statements = {"wavelength_unit": wave_told, "medium": medium_told, "flux_unit": flux_told}
    if noise:
        statements["error_unit" if noise_is_error else "ivar_unit"] = (
            f"{facts['noise'].unit}: {facts['noise'].origin}"
        )
    if frame_told:
        statements["frame"] = frame_told
    return Meaning(source, unit, found, to_rest, flux, noise, noise_is_error, statements)


def flux_scale(
    source: str, card: float | str | None, facts: ColumnFacts
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
    if facts.unit and is_flux(facts.unit):
        if card is not None and not _same_flux(source, card, facts.unit):
            raise _conflict(source, facts, card)
        return facts.unit, f"{facts.unit}: {told}"
    if card is None:
        if facts.unit:
            flux_factor(source, facts.name or "flux", facts.unit, np.ones(1))  # refuses
        return 1.0, "unknown: neither file nor card states one"
    if card == "relative":
        states = f" (the file says {facts.unit!r})" if facts.unit else ""
        return 1.0, f"relative: card{states}"
    if facts.unit and parse_unit(facts.unit) is not None:  # counts, adu, a length
        raise _conflict(source, facts, card)
    states = f" (not understood: {facts.unit!r})" if facts.unit else ""
    shown = card if isinstance(card, str) else f"× {card:g}"
    return card, f"{shown}: card{states}"


def _same_flux(source: str, card: float | str, unit: str) -> bool:
    if card == "relative":
        return False
    at = np.array([4000.0, 8000.0])
    ours = flux_factor(source, "flux", card, at) if isinstance(card, str) else card
    return bool(np.allclose(ours, flux_factor(source, "flux", unit, at), rtol=_AGREE, atol=0))


def _conflict(source: str, facts: ColumnFacts, card: Any) -> InvalidRecord:
    detail = (
        f"{facts.name}: expected {card!r}, as the card says, found {facts.unit!r} by "
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
        check(source, facts.name, facts.unit, np.array([4000.0, 8000.0]))  # refuses what is none
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
    source: str, options: WavelengthOptions, facts: ColumnFacts
) -> tuple[str, str]:
    """Return the unit of the wavelengths and from what it follows."""
    if options.column is None:
        return _ANGSTROM, f"Å, {options.kind} grid: card"
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


def _same_unit(source: str, card: str, facts: ColumnFacts) -> bool:
    try:
        theirs = spectral_unit(source, facts.name, facts.unit)
    except InvalidRecord:
        return False
    ours = spectral_unit(source, "wavelength", card)
    if ours[0] != theirs[0] or not ours[1].is_equivalent(theirs[1]):
        return False
    return abs(ours[1].to(theirs[1]) - 1) < _AGREE
