"""DESI spectra: co-additions of any name, healpix or tile, of any arms, with or without redrock.

A file is known by its content: a table FIBERMAP (or COADD_FIBERMAP) with a TARGETID a row, and for
each arm the images ARM_WAVELENGTH, ARM_FLUX, ARM_IVAR and mostly ARM_MASK. Arms are B, R, Z or some
of them joined (BRZ). They are co-added by inverse variance where nothing is masked, on DESI's own
grid of 0.8 Å from 3600 to 9824 Å; an arm that is alone may have any wavelengths. Where no arm
reaches, nothing is measured. Wavelengths are vacuum, barycentric (data model).

Class and redshift come from an HDU REDSHIFTS or ZBEST of the file itself, or else from the redrock
or zbest file of the same name beside it, joined on TARGETID; without one, and for targets missing
from it, they are unknown. Fibres that saw no target (``sky_fibre``, ``fibre_unassigned``) or could
not (``fibre_broken``) are refused: redrock gives those a class and a redshift all the same.

Source: https://desidatamodel.readthedocs.io, DESI_SPECTRO_REDUX/SPECPROD/healpix, …/tiles, bitmasks
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from skyray.readers.base import Reader, SurveyFile, name_by_content, register
from skyray.readers.column_facts import image_facts
from skyray.readers.desi_fibres import INTEGERS, bad_arms, fibre_fault, target_fields
from skyray.readers.desi_redshifts import redshift_table, redshifts_of
from skyray.readers.fits_bytes import FitsFile, Hdu, Table
from skyray.readers.layout import fits_names, refuse_companion, refuse_layout
from skyray.readers.spectrum_values import DataModel, decide, joined
from skyray.readers.table_options import WavelengthOptions
from skyray.records import Grid, InvalidRecord, Spectrum, attempt, ivar_fault
from skyray.transforms.spectra import coadd_arms, median_snr

_MODEL = DataModel(frame="barycentric", air=False)
DESI_GRID = Grid("linear", 3600.0, 0.8, 7781)
ARMS = ("B", "R", "Z")
_ROWS_AT_ONCE = 64  # 64 spectra × 3 arms × (flux, ivar, mask): 6 MB, however many a file holds
_ARM = re.compile(r"([BRZ]{1,3})_(WAVELENGTH|FLUX|IVAR)")
_LAYOUT = "DESI spectra: FIBERMAP and images ARM_WAVELENGTH, ARM_FLUX, ARM_IVAR"
# Primary keywords that name a co-addition, in this order; each file has those of its kind.
_HEALPIX, _TILE = ("SURVEY", "PROGRAM", "HPXPIXEL"), ("TILEID", "SPGRP", "SPGRPVAL", "PETAL")


@register
class DesiCoaddReader(Reader):
    """Many spectra a file; object_id is the TARGETID, which is unique only in one co-addition.

    A file with a row an exposure (``spectra-…``) is refused unless ``exposures: true`` says that
    each is to be an observation of its own.

    `Spectrum.extra`: targetid (integer), program, healpix, tileid, petal, fiberstatus, objtype,
    ebv, the co-addition's exposures (coadd_numexp …), deltachi2, the target bits the file has
    (desi_target, sv1_desi_target, bgs_target …), and is_bgs and is_mws, which are true where
    BGS_ANY or MWS_ANY is set in the DESI_TARGET of any phase.
    """

    name = "desi_coadd"
    patterns = fits_names("*")
    companions = fits_names(
        "redrock-*", "zbest-*", "rrdetails-*", "qso_mgii-*", "qso_qn-*", "emline-*", "tile-qa-*",
        "zmtl-*",
    )  # fmt: skip

    def read(self, file: SurveyFile, unit: int = 0) -> Iterator[Spectrum | InvalidRecord]:
        with FitsFile(file) as fits:
            fibermap = _fibermap(fits)
            targets = fibermap.column("targetid")
            arms = _arms(fits, len(targets))
            if exposures := _exposures(fibermap):
                self._check_exposures(fits, targets)
            about = replace(
                _Coaddition.of(fits, exposures), statements=joined(arm.meaning for arm in arms)
            )
            fitted = redshifts_of(fits, file)
            for start in range(0, len(targets), _ROWS_AT_ONCE):
                rows = range(start, min(start + _ROWS_AT_ONCE, len(targets)))
                yield from _read_rows(fits, fibermap, arms, about, fitted, rows)

    def _check_exposures(self, fits: FitsFile, targets: np.ndarray) -> None:
        if not self.options.get("exposures"):
            fits.refuse(
                "exposures_not_coadded",
                f"expected one row a target, found {len(targets)} exposures of "
                f"{len(np.unique(targets))} targets; use the coadd file, or the reader option "
                "exposures: true, which makes each an observation of its own",
            )


def _read_rows(
    fits: FitsFile,
    fibermap: Table,
    arms: list[_Arm],
    about: _Coaddition,
    fitted: Mapping[int, Mapping[str, Any]],
    rows: range,
) -> Iterator[Spectrum | InvalidRecord]:
    faults = {row: fibre_fault(fibermap, row, {arm.name for arm in arms}) for row in rows}
    blocks = [arm.block(rows) for arm in arms]
    for row in rows:
        dead = bad_arms(fibermap, row)
        for arm, (_, _, _, mask) in zip(arms, blocks, strict=True):
            if arm.name in dead:
                mask[row - rows.start] = 1
    bad = _bad_ivar(arms, blocks)
    try:
        wavelength, coadded = _coadd(blocks)
    except ValueError as error:
        fits.refuse("wavelength_off_grid", str(error))
    for row, *arrays in zip(rows, *coadded, strict=True):
        where, target = f"{fits.source}#{row}", int(fibermap.value("targetid", row))
        if fault := faults[row] or bad.get(row - rows.start):
            yield InvalidRecord(*fault, where, str(target))
            continue
        known = fitted.get(target, {})
        spectrum = (wavelength, *arrays)
        yield attempt(partial(_record, where, about, fibermap, row, spectrum, known), where)


def _fibermap(fits: FitsFile) -> Table:
    """Return the table of fibres, its TARGETID as exact integers."""
    hdu = fits.find("COADD_FIBERMAP") or fits.find("FIBERMAP")
    if hdu is None or not any(_ARM.fullmatch(h.name) for h in fits.hdus()):
        if redshift_table(fits):
            refuse_companion(fits, "redshifts alone")
        if hdu is None:
            refuse_layout(fits, _LAYOUT)
    table = hdu.table()
    for name in ("targetid", *(name for name in INTEGERS if name in table)):
        values = table.column(name)
        if values.dtype.kind not in "iu" or values.ndim != 1:
            found = f"{values.dtype} of shape {values.shape}"
            fits.refuse("column_type", f"{name.upper()}: expected integers, found {found}")
    return table


def _arms(fits: FitsFile, rows: int) -> list[_Arm]:
    """Return the arms a file has, in the order of their wavelengths."""
    names = {m[1]: None for hdu in fits.hdus() if (m := _ARM.fullmatch(hdu.name))}
    if not names:
        refuse_layout(fits, _LAYOUT)
    letters = "".join(names)
    if len(set(letters)) != len(letters):
        fits.refuse(
            "layout_ambiguous",
            f"expected every arm once, found {', '.join(names)}: which of them is wanted?",
        )
    return [_Arm(fits, name, rows) for name in sorted(names, key=lambda name: "BRZ".find(name[0]))]


def _exposures(fibermap: Table) -> bool:
    """Return whether a row is one exposure: it has an EXPID, and nothing counts what was joined."""
    counted = any(name.startswith(("coadd_", "num_")) for name in fibermap.layout.names)
    return "expid" in fibermap and not counted


@dataclass(frozen=True)
class _Coaddition:
    """What tells one co-addition of exposures from another.

    The same target is observed in several programmes, pixels of the sky, tiles and nights. `name`
    joins what the header states; where that is not all (`whole` is false), a record is told apart
    by its content too, for names of files say nothing.
    """

    survey: str
    name: str
    whole: bool
    exposures: bool
    extra: Mapping[str, Any]
    statements: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, fits: FitsFile, exposures: bool) -> _Coaddition:
        header = next(fits.hdus()).header
        stated = {key: header.get(key) for key in (*_HEALPIX, *_TILE)}
        stated["PETAL"] = header.get("SPECTRO") if stated["PETAL"] is None else stated["PETAL"]
        if stated["HPXPIXEL"] is None and str(stated["SPGRP"]).strip() == "healpix":
            stated["HPXPIXEL"] = stated["SPGRPVAL"]
        text = {key: str(value).strip() for key, value in stated.items() if value is not None}
        for keys in (_HEALPIX, _TILE):
            whole = all(text.get(key) for key in keys)
            if whole:
                break
        else:
            keys = tuple(key for key in (*_HEALPIX, *_TILE) if text.get(key))
        extra = {"program": text.get("PROGRAM"), "healpix": stated["HPXPIXEL"],
                 "tileid": stated["TILEID"], "petal": stated["PETAL"],
                 "night": header.get("NIGHT")}  # fmt: skip
        return cls(
            text.get("SURVEY") or "desi",
            "-".join(text[key] for key in keys) or "desi",
            whole,
            exposures,
            {key: value for key, value in extra.items() if value is not None},
        )

    def observation_id(self, fibermap: Table, row: int, flux: np.ndarray) -> str:
        parts = [self.name, str(int(fibermap.value("targetid", row)))]
        if self.exposures:
            known = fibermap.values(("expid", "fiber"), row)
            parts += [str(value) for value in known.values()]
        name = "-".join(parts)
        return name if self.whole else name_by_content(name, flux)


class _Arm:
    """The images of one arm, their shapes checked."""

    def __init__(self, fits: FitsFile, name: str, rows: int):
        self.name = name
        wavelength = fits.need(f"{name}_WAVELENGTH")
        self.images: list[Hdu] = [fits.need(f"{name}_{kind}") for kind in ("FLUX", "IVAR")]
        self.mask = fits.find(f"{name}_MASK")  # absent in some early and reduced files
        stored = wavelength.image()
        expected = (rows, len(stored))
        for hdu in (*self.images, *([self.mask] if self.mask else [])):
            if hdu.shape != expected:
                fits.refuse(
                    "shape_mismatch", f"HDU {hdu.name}: expected {expected}, found {hdu.shape}"
                )
            hdu.check_whole()
        flux, ivar = self.images
        stated = {"wavelength": image_facts(wavelength), "flux": image_facts(flux, inherits=True),
                  "noise": image_facts(ivar)}  # fmt: skip
        facts = {role: replace(one, origin="BUNIT") for role, one in stated.items()}
        header = wavelength.own_header().over(flux.inherited_header())
        self.meaning = decide(
            fits.source, header, facts, WavelengthOptions(column=name),
            "from_file", None, False, _MODEL,
        )  # fmt: skip
        self.wavelength = self.meaning.wavelength(stored)

    def block(self, rows: range) -> tuple[np.ndarray, ...]:
        """Return wavelength [P], flux, ivar and mask [rows, P]."""
        flux, ivar = (hdu.image_rows(rows.start, rows.stop) for hdu in self.images)
        mask = self.mask.image_rows(rows.start, rows.stop) if self.mask else np.zeros(flux.shape)
        ivar = self.meaning.ivar(self.wavelength, ivar)
        return self.wavelength, self.meaning.density(self.wavelength, flux), ivar, mask


def _coadd(blocks: list[tuple[np.ndarray, ...]]) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """Return wavelength [L] and flux, ivar and mask [rows, L] of all arms together.

    Raises
    ------
    ValueError
        If several arms do not lie on DESI's grid.
    """
    try:
        return DESI_GRID.wavelength(), coadd_arms(DESI_GRID, blocks)
    except ValueError:
        if len(blocks) > 1:
            raise
    wavelength, flux, ivar, mask = blocks[0]
    bad = (mask != 0) | ~(ivar > 0)
    return wavelength.astype(np.float64), (
        np.where(bad, 0, flux).astype(np.float32), np.where(bad, 0, ivar).astype(np.float32), bad
    )  # fmt: skip


def _bad_ivar(arms: list[_Arm], blocks: list[tuple[np.ndarray, ...]]) -> dict[int, tuple[str, str]]:
    """Return the rows whose unmasked ivar makes no sense; the co-addition would hide it as 0."""
    found = {}
    for arm, (_, _, ivar, mask) in zip(arms, blocks, strict=True):
        with np.errstate(invalid="ignore"):
            bad = (mask == 0) & ~((ivar >= 0) & (ivar < np.inf))
        for row in np.flatnonzero(bad.any(axis=1)).tolist():
            reason, detail = ivar_fault(ivar[row][mask[row] == 0])
            found[row] = reason, f"{arm.name}_IVAR: {detail}"
    return found


def _record(
    where: str,
    about: _Coaddition,
    fibermap: Table,
    row: int,
    arrays: tuple[np.ndarray, ...],
    fitted: Mapping[str, Any],
) -> Spectrum:
    wavelength, flux, ivar, mask = arrays
    extra = {**about.extra, **target_fields(fibermap, row)}
    if fitted.get("deltachi2") is not None:
        extra["deltachi2"] = fitted["deltachi2"]
    return Spectrum(
        object_id=str(extra["targetid"]),
        wavelength=wavelength,
        flux=flux,
        ivar=ivar,
        mask=mask,
        ra=fibermap.value("target_ra", row, default=float("nan")),
        dec=fibermap.value("target_dec", row, default=float("nan")),
        spectype=fitted.get("spectype", ""),
        subtype=fitted.get("subtype", ""),
        redshift=fitted.get("z", float("nan")),
        redshift_err=fitted.get("zerr", float("nan")),
        zwarning=fitted.get("zwarn", -1),
        snr=median_snr(flux, ivar, mask),
        survey=about.survey,
        source=where,
        extra=extra,
        observation_id=about.observation_id(fibermap, row, flux),
        statements=about.statements,
    )
