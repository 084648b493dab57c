"""DESI co-added spectra: ``coadd-*.fits`` (healpix or tile) with ``redrock-*.fits`` beside them.

The arms B, R and Z are co-added by inverse variance where nothing is masked, on DESI's own grid of
0.8 Å from 3600 to 9824 Å. Class and redshift come from the redrock file of the same name, joined on
TARGETID; without one, and for targets missing from it, they are unknown.

Source: https://desidatamodel.readthedocs.io, DESI_SPECTRO_REDUX/SPECPROD/healpix
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from skyray.readers.base import Reader, SurveyFile, register
from skyray.readers.fits_bytes import FitsFile, Hdu, Header, Table
from skyray.records import Grid, InvalidRecord, Spectrum, ivar_fault
from skyray.transforms.spectra import coadd_arms, median_snr

DESI_GRID = Grid("linear", 3600.0, 0.8, 7781)
ARMS = ("B", "R", "Z")
_ROWS_AT_ONCE = 64  # 64 spectra × 3 arms × (flux, ivar, mask): 6 MB, however many a file holds

# Bits of DESI_TARGET that mean the same in the main survey and in validation (SV1–SV3).
_BGS_ANY, _MWS_ANY = 1 << 60, 1 << 61
_DESI_TARGET = ("desi_target", "sv1_desi_target", "sv2_desi_target", "sv3_desi_target")
_TARGET_COLUMNS = (
    *_DESI_TARGET,
    *(f"{sv}{name}" for name in ("bgs_target", "mws_target") for sv in ("", "sv1_", "sv3_")),
)


@register
class DesiCoaddReader(Reader):
    """Many spectra a file; object_id is the TARGETID, which is unique only in one co-addition.

    `Spectrum.extra`: fiberstatus (COADD_FIBERSTATUS), objtype, deltachi2, the target bits the file
    has (desi_target, sv1_desi_target, bgs_target …), and is_bgs and is_mws, which are true where
    BGS_ANY or MWS_ANY is set in the DESI_TARGET of any phase.
    """

    name = "desi_coadd"
    patterns = ("coadd-*.fits", "coadd-*.fits.gz")

    def read(self, file: SurveyFile, unit: int = 0) -> Iterator[Spectrum | InvalidRecord]:
        redshifts = _redshifts(file)
        with FitsFile(file) as fits:
            fibermap = fits.need("FIBERMAP").table()
            targets = fibermap.column("targetid")
            arms = [_Arm(fits, arm, len(targets)) for arm in ARMS]
            header = next(fits.hdus()).header
            survey, coaddition = str(header.get("SURVEY", "desi")), _coaddition(header, file)
            for start in range(0, len(targets), _ROWS_AT_ONCE):
                rows = range(start, min(start + _ROWS_AT_ONCE, len(targets)))
                blocks = [arm.block(rows) for arm in arms]
                bad = _bad_ivar(blocks)
                try:
                    coadded = coadd_arms(DESI_GRID, blocks)
                except ValueError as error:
                    fits.refuse("wavelength_off_grid", str(error))
                for row, *arrays in zip(rows, *coadded, strict=True):
                    where, target = f"{fits.source}#{row}", fibermap.value("targetid", row)
                    if row - start in bad:
                        yield InvalidRecord(*bad[row - start], where, str(target))
                        continue
                    yield _record(
                        where, survey, coaddition, fibermap, row, arrays, redshifts.get(target, {})
                    )


def _coaddition(header: Header, file: SurveyFile) -> str:
    """Return what tells one co-addition of exposures from another: healpix or tile, else the file.

    The same target is observed in several programmes, pixels of the sky and nights.
    """
    for keys in (("SURVEY", "PROGRAM", "HPXPIXEL"), ("TILEID", "SPGRP", "SPGRPVAL", "PETAL")):
        if all(header.get(key) is not None for key in keys):
            return "-".join(str(header.get(key)).strip() for key in keys)
    return file.name.partition(".fits")[0]


class _Arm:
    """The four images of one arm, their shapes checked."""

    def __init__(self, fits: FitsFile, arm: str, rows: int):
        self.wavelength = fits.need(f"{arm}_WAVELENGTH").image()
        self.images: list[Hdu] = [fits.need(f"{arm}_{kind}") for kind in ("FLUX", "IVAR")]
        mask = fits.find(f"{arm}_MASK")  # absent in some early and reduced files
        self.mask = mask
        expected = (rows, len(self.wavelength))
        for hdu in (*self.images, *([mask] if mask else [])):
            if hdu.shape != expected:
                fits.refuse(
                    "shape_mismatch", f"HDU {hdu.name}: expected {expected}, found {hdu.shape}"
                )
            hdu.check_whole()

    def block(self, rows: range) -> tuple[np.ndarray, ...]:
        """Return wavelength [P], flux, ivar and mask [rows, P]."""
        flux, ivar = (hdu.image_rows(rows.start, rows.stop) for hdu in self.images)
        mask = self.mask.image_rows(rows.start, rows.stop) if self.mask else np.zeros(flux.shape)
        return self.wavelength, flux, ivar, mask


def _bad_ivar(blocks: list[tuple[np.ndarray, ...]]) -> dict[int, tuple[str, str]]:
    """Return the rows whose unmasked ivar makes no sense; the co-addition would hide it as 0."""
    found = {}
    for arm, (_, _, ivar, mask) in zip(ARMS, blocks, strict=True):
        with np.errstate(invalid="ignore"):
            bad = (mask == 0) & ~((ivar >= 0) & (ivar < np.inf))
        for row in np.flatnonzero(bad.any(axis=1)).tolist():
            reason, detail = ivar_fault(ivar[row][mask[row] == 0])
            found[row] = reason, f"{arm}_IVAR: {detail}"
    return found


def _record(
    where: str,
    survey: str,
    coaddition: str,
    fibermap: Table,
    row: int,
    arrays: list[np.ndarray],
    fitted: dict[str, Any],
) -> Spectrum:
    flux, ivar, mask = arrays
    return Spectrum(
        object_id=str(fibermap.value("targetid", row)),
        wavelength=DESI_GRID.wavelength(),
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
        survey=survey,
        source=where,
        extra=_extra(fibermap, row, fitted),
        observation_id=f"{coaddition}-{fibermap.value('targetid', row)}",
    )


def _extra(fibermap: Table, row: int, fitted: dict[str, Any]) -> dict[str, Any]:
    targets = {n: fibermap.value(n, row) for n in _TARGET_COLUMNS if n in fibermap}
    any_phase = 0
    for name in _DESI_TARGET:
        any_phase |= targets.get(name, 0)
    found = {
        "fiberstatus": fibermap.value("coadd_fiberstatus", row),
        "objtype": fibermap.value("objtype", row),
        "deltachi2": fitted.get("deltachi2"),
        "is_bgs": bool(any_phase & _BGS_ANY),
        "is_mws": bool(any_phase & _MWS_ANY),
    }
    return {**targets, **{key: value for key, value in found.items() if value is not None}}


def _redshifts(coadd: SurveyFile) -> dict[int, dict[str, Any]]:
    """Return redrock's columns by TARGETID, empty where there is no redrock file."""
    name = coadd.name.replace("coadd-", "redrock-", 1)
    choices = [coadd.sibling(n) for n in (name, name.removesuffix(".gz"), f"{name}.gz")]
    file = next((f for f in choices if f.exists()), None)
    if file is None:
        return {}
    with FitsFile(file) as fits:
        table = fits.need("REDSHIFTS", at=1).table()
        names = ("z", "zerr", "zwarn", "spectype", "subtype", "deltachi2")
        columns = {n: table.column(n).tolist() for n in names if n in table}
        targets = table.column("targetid").tolist()
    return {
        target: {name: values[row] for name, values in columns.items()}
        for row, target in enumerate(targets)
    }
