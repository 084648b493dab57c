"""Air or vacuum: what a file says of its wavelengths, and what follows from it.

Whoever says something is asked, and all must agree: the UCD of the column or axis (IVOA Spectrum
Data Model 1.1, table 3, and ESO's phase 3 standard: ``em.wl`` is vacuum, ``em.wl;obs.atmos`` or
``obs.air`` air), CTYPE (FITS WCS paper III, Greisen et al. 2006: WAVE is vacuum, AWAV air),
keywords (VACUUM, AIRORVAC …), the words ``air`` and ``vac`` in names, units and comments of the
column.

A bare ``em.wl`` is weaker than the others: many write it of any wavelength. It counts where nothing
else is said.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import numpy as np

from skyray.records import InvalidRecord
from skyray.transforms.spectra import air_to_vacuum

Medium = Literal["vacuum", "air"]
_WORDS = re.compile(r"[a-z]+")
_AIR, _VACUUM = {"air", "awav", "atmos"}, {"vac", "vacuum"}
_FLAGS = ("VACUUM", "VACWAVE", "ISVACUUM")  # true: vacuum
_FLAGS_AIR = ("AIRWAVE", "ISAIR")
_NAMING = ("AIRORVAC", "AIR_VAC", "AIRVAC", "WAVEMED", "WAVE_MED", "WAVMEDIU", "MEDIUM",
           "WAVETYPE", "VACORAIR", "WAVESYS", "LAMMED")  # fmt: skip
KEYWORDS = (*_FLAGS, *_FLAGS_AIR, *_NAMING)
_TRUE, _FALSE = ("t", "true", "yes", "y", "1"), ("f", "false", "no", "n", "0")


class Said(NamedTuple):
    """One statement: the medium, who said it, and whether it holds against others."""

    medium: Medium
    by: str
    strong: bool = True


def medium_said(
    header: Mapping[str, Any] | Any = None, facts: Mapping[str, str] | None = None
) -> list[Said]:
    """Return every statement about the medium.

    Parameters
    ----------
    header : with ``get``
        Keywords of the file or HDU.
    facts : mapping, optional
        What is known of the column or axis of the wavelengths: ``name``, ``unit``, ``ucd``,
        ``utype``, ``ctype``, ``comment``.
    """
    found = _facts_say(facts or {})
    if header is None:
        return found
    for key in (*_FLAGS, *_FLAGS_AIR):
        value = _flag(header.get(key))
        if value is not None:
            found.append(Said("vacuum" if value == (key in _FLAGS) else "air", key))
    for key in _NAMING:
        value = header.get(key)
        if isinstance(value, str) and (medium := medium_of_text(value)):
            found.append(Said(medium, f"{key} = {value.strip()[:40]!r}"))
    return found


def _facts_say(facts: Mapping[str, str]) -> list[Said]:
    found = []
    name = facts.get("name", "")
    if ucd := facts.get("ucd", "").lower():
        parts = re.split(r"[;\s]+", ucd)
        words = set(re.split(r"[;.\s]+", ucd))
        told = f"UCD {facts['ucd'].strip()[:60]} of {name}"
        if words & {"air", "atmos"}:
            found.append(Said("air", told))
        elif words & _VACUUM:
            found.append(Said("vacuum", told))
        elif parts[0] == "em.wl":
            found.append(Said("vacuum", told, strong=False))
    ctype = facts.get("ctype", "").strip().upper()
    if ctype[:4] in ("AWAV", "WAVE") and ctype[4:5] in ("", "-"):
        found.append(Said("air" if ctype[0] == "A" else "vacuum", f"CTYPE {ctype}"))
    for kind in ("name", "unit", "comment", "utype"):
        text = facts.get(kind, "")
        if medium := medium_of_text(text):
            found.append(Said(medium, f"{kind} {text.strip()[:60]!r}"))
    return found


def medium_of_text(text: str) -> Medium | None:
    """Return the medium that a text names; None for neither, or both."""
    words = set(_WORDS.findall(text.lower()))
    air, vacuum = bool(words & _AIR), bool(words & _VACUUM)
    return None if air == vacuum else "air" if air else "vacuum"


def _flag(value: Any) -> bool | None:
    text = str(value).strip().lower()
    return True if text in _TRUE else False if text in _FALSE else None


def decide_medium(source: str, card: Medium | None, said: list[Said]) -> tuple[Medium, str]:
    """Return the medium and the statement that says from what it follows.

    Parameters
    ----------
    source : str
        File, for the refusal.
    card : {'vacuum', 'air'}, optional
        What the card says; None: the file alone decides.
    said : list of Said
        What the file says.

    Raises
    ------
    InvalidRecord
        ``medium_unknown`` where nobody says; ``medium_conflict`` where two contradict.
    """
    strong = [one for one in said if one.strong] or said
    told = {one.medium: one.by for one in reversed(strong)}
    if len(told) > 1:
        detail = f"expected one medium, found air by {told['air']} and vacuum by {told['vacuum']}"
        raise InvalidRecord("medium_conflict", detail, source)
    if not told:
        if card is None:
            detail = (
                "expected air or vacuum to be stated (UCD, CTYPE, VACUUM, AIRORVAC, name of the "
                "column), found nothing; let the card say `medium: air` or `medium: vacuum`"
            )
            raise InvalidRecord("medium_unknown", detail, source)
        return card, f"{card}: card"
    ((medium, by),) = told.items()
    if card not in (None, medium):
        detail = f"expected {card}, as the card says, found {medium} by {by}"
        raise InvalidRecord("medium_conflict", detail, source)
    return medium, f"{medium}: {by}"


def model_medium(source: str, said: list[Said], air: bool = True) -> tuple[Medium, str]:
    """Return the medium a file states, else vacuum, as a survey's data model has it; and by what.

    Parameters
    ----------
    said : list of Said
        What the file says.
    air : bool
        Whether air is understood.

    Raises
    ------
    InvalidRecord
        ``medium_conflict`` where two statements of the file contradict, or one the data model.
    """
    found = decide_medium(source, None, said) if said else ("vacuum", "vacuum: data model")
    if found[0] == "air" and not air:
        detail = f"expected vacuum, as the data model says, found {found[1]}"
        raise InvalidRecord("medium_conflict", detail, source)
    return found


def to_vacuum(medium: Medium, wavelength_angstrom: np.ndarray) -> np.ndarray:
    """Return vacuum wavelengths, Å; below 2000 Å they are vacuum by convention and unchanged."""
    return air_to_vacuum(wavelength_angstrom) if medium == "air" else wavelength_angstrom
