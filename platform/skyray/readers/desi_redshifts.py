"""Classes and redshifts of DESI targets: redrock's table in the file itself or in one beside it.

Source: https://desidatamodel.readthedocs.io, …/redrock-SURVEY-PROGRAM-PIXNUM (REDSHIFTS; before
2021 zbest-… with ZBEST)
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from skyray.readers.base import SurveyFile
from skyray.readers.fits_bytes import FitsFile, Hdu
from skyray.readers.layout import COMPRESSED, columns_of, stem

_COLUMNS = ("z", "zerr", "zwarn", "spectype", "subtype", "deltachi2")
_TABLES = ("REDSHIFTS", "ZBEST")
_SPECTRA = re.compile("coadd|spectra", re.IGNORECASE)
_SAME = ("SURVEY", "PROGRAM", "HPXPIXEL", "TILEID", "SPGRP", "SPGRPVAL", "PETAL")


def redshifts_of(fits: FitsFile, file: SurveyFile) -> dict[int, dict[str, Any]]:
    """Return redrock's columns by TARGETID; empty where there is no redrock.

    Raises
    ------
    InvalidRecord
        What `FitsFile` refuses; ``column_type``, ``redrock_mismatch`` where a file beside says that
        it belongs to other spectra, ``redrock_ambiguous`` where a target is in it twice.
    """
    if own := redshift_table(fits):
        return _by_target(fits, own)
    beside = next((other for other in _beside(file) if other.exists()), None)
    if beside is None:
        return {}
    with FitsFile(beside) as found:
        _check_same(fits, found)
        return _by_target(found, found.need(*_TABLES, at=1))


def redshift_table(fits: FitsFile) -> Hdu | None:
    """Return the HDU REDSHIFTS or ZBEST of a file where it is a table by target."""
    named = (hdu for hdu in fits.hdus() if hdu.name in _TABLES)
    return next((hdu for hdu in named if {"targetid", "z"} <= columns_of(hdu)), None)


def _beside(file: SurveyFile) -> Iterator[SurveyFile]:
    """Yield where the redshifts of ``coadd-NAME`` may lie: redrock-NAME or zbest-NAME."""
    name = stem(file.name)
    match = _SPECTRA.search(name)
    if match is None:
        return
    upper = match[0].isupper()
    ending = file.name[len(name) :].lower()
    for packed in COMPRESSED:
        ending = ending.removesuffix(packed)
    for product in ("redrock", "zbest"):
        product = product.upper() if upper else product
        other = name[: match.start()] + product + name[match.end() :]
        for packed in COMPRESSED:
            full = f"{ending}{packed}"
            yield file.sibling(other + (full.upper() if file.name.isupper() else full))


def _check_same(spectra: FitsFile, redshifts: FitsFile) -> None:
    ours, theirs = (next(f.hdus()).header for f in (spectra, redshifts))
    for key in _SAME:
        wanted, found = ours.get(key), theirs.get(key)
        if wanted is not None and found is not None and str(wanted) != str(found):
            redshifts.refuse(
                "redrock_mismatch",
                f"{key}: expected {wanted!r} as in {spectra.source}, found {found!r}",
            )


def _by_target(fits: FitsFile, hdu: Hdu) -> dict[int, dict[str, Any]]:
    table = hdu.table()
    targets = table.column("targetid")
    if targets.dtype.kind not in "iu" or targets.ndim != 1:
        found = f"{targets.dtype} of shape {targets.shape}"
        fits.refuse("column_type", f"TARGETID: expected integers, found {found}")
    if len(np.unique(targets)) != len(targets):
        fits.refuse("redrock_ambiguous", f"HDU {hdu.name}: expected every TARGETID once")
    columns = {name: table.column(name).tolist() for name in _COLUMNS if name in table}
    return {
        target: {name: values[row] for name, values in columns.items()}
        for row, target in enumerate(targets.tolist())
    }
