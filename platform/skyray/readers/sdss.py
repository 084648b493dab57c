"""SDSS-I/II, BOSS and eBOSS spectra: ``spec-PLATE-MJD-FIBER.fits`` and their lite variants.

HDU 1 (COADD) holds the co-added spectrum, HDU 2 the object's catalogue row; it is called SPECOBJ,
SPALL or nothing. Wavelengths are vacuum, heliocentric. A file without the catalogue row is still a
spectrum, of unknown class and redshift.

Source: https://data.sdss.org/datamodel/files/BOSS_SPECTRO_REDUX/RUN2D/spectra/PLATE4/spec.html
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np

from skyray.readers.base import Reader, SurveyFile, register
from skyray.readers.fits_bytes import FitsFile, Table
from skyray.records import InvalidRecord, Spectrum
from skyray.transforms.spectra import median_snr

# Bits of SPPIXMASK (sdssMaskbits.par) in the AND mask, i.e. set in every exposure, for which the
# pixel is called bad: there are no data, or the sky or flux scale is known to be wrong there.
# BADFLAT, LOWFLAT, NEARBADPIXEL, PARTIALREJECT, (NEAR)WHOPPER, MANYBADCOLUMNS, SCATTEREDLIGHT,
# CROSSTALK and BRIGHTSKY are warnings whose effect the pipeline's ivar already carries. On 180
# public spectra their residuals against the pipeline's model are those of unflagged pixels
# (median χ² 0.44–0.57, unflagged 0.49), so calling them bad would throw away 6 % of all pixels
# (BRIGHTSKY: every strong sky line; BADFLAT: whole spectra) for nothing. The pipeline's own
# redshift fit (skymask) likewise masks BADSKYCHI and REDMONSTER only.
BAD_PIXEL_BITS = {
    "NOPLUG": 0, "BADTRACE": 1, "BADARC": 3, "FULLREJECT": 18, "NOSKY": 22, "NODATA": 24,
    "COMBINEREJ": 25, "BADFLUXFACTOR": 26, "BADSKYCHI": 27, "REDMONSTER": 28,
}  # fmt: skip
_BAD_PIXEL = np.uint32(sum(1 << bit for bit in BAD_PIXEL_BITS.values()))

_NAME = re.compile(r"spec(?:-lite)?-(\d+)-(\d+)-(\d+)")
_EXTRA = ("class_noqso", "z_noqso", "rchi2", "sourcetype", "objtype", "thing_id", "specprimary")
_CATALOGUE = (
    "class", "subclass", "z", "z_err", "zwarning", "sn_median_all", "plate", "mjd", "fiberid",
    "run2d", "plug_ra", "plug_dec", "survey", *_EXTRA,
)  # fmt: skip
# The survey's own pixels: loglam = 1e-4 · i as float32, i from the range's lower end on.
_LOGLAM_STEP, _LOGLAM_FIRST, _LOGLAM_LAST = 1e-4, 30_000, 47_000
# 10**loglam must be an optical wavelength; a column in Å instead of dex is the usual accident.
_LOGLAM_RANGE = (3.0, 4.7)


@register
class SdssSpecReader(Reader):
    """One spectrum a file. `Spectrum.extra`: plate, mjd, fiberid, run2d and, where the catalogue
    row has them, class_noqso, z_noqso, rchi2, sourcetype, objtype, thing_id and specprimary.
    """

    name = "sdss_spec"
    patterns = ("spec-*.fits", "spec-*.fits.gz")

    def read(self, file: SurveyFile, unit: int = 0) -> Iterator[Spectrum | InvalidRecord]:
        with FitsFile(file) as fits:
            yield read_spectrum(fits, file.name)


def read_spectrum(fits: FitsFile, name: str) -> Spectrum:
    """Return the spectrum of an open file; `name` is used where neither table nor header has an id.

    Raises
    ------
    InvalidRecord
        See `FitsFile`; and ``table_empty``, ``column_type``, ``column_shape``,
        ``wavelength_out_of_range``, ``redshift_not_finite``.
    """
    coadd = fits.need("COADD", at=1).table()
    if len(coadd) == 0:
        fits.refuse("table_empty", "HDU COADD: expected a row for every pixel, found none")
    loglam, flux, ivar = (_pixels(fits, coadd, column) for column in ("loglam", "flux", "ivar"))
    bits = coadd.column("and_mask").view(np.uint32)
    mask = (bits & _BAD_PIXEL) != 0
    row = _catalogue(fits)
    ids = _identity(fits, row, name)
    ra, dec = _position(fits, row)
    snr = _number(row, "sn_median_all")
    return Spectrum(
        object_id=_object_id(ids, name),
        wavelength=_wavelength(fits, loglam),
        flux=flux,
        ivar=ivar,
        mask=mask,
        ra=ra,
        dec=dec,
        spectype=_text(row, "class"),
        subtype=_text(row, "subclass"),
        redshift=_redshift(fits, row),
        redshift_err=_number(row, "z_err"),
        zwarning=int(row.get("zwarning", -1)),
        snr=median_snr(flux, ivar, mask) if np.isnan(snr) else snr,
        survey=_survey(ids, row),
        source=fits.source,
        extra={**ids, **_extra(row)},
    )


def _wavelength(fits: FitsFile, loglam: np.ndarray) -> np.ndarray:
    """Return 10**loglam, Å; of the survey's own pixels, which nearly all files have, as a view."""
    known, wavelength = _survey_pixels()
    first = float(loglam[0]) / _LOGLAM_STEP - _LOGLAM_FIRST
    if 0 <= first < len(known):
        own = slice(round(first), round(first) + len(loglam))
        if np.array_equal(known[own], loglam):
            return wavelength[own]
    low, high = np.nanmin(loglam, initial=np.inf), np.nanmax(loglam, initial=-np.inf)
    if low <= high and not (_LOGLAM_RANGE[0] <= low and high <= _LOGLAM_RANGE[1]):
        fits.refuse(
            "wavelength_out_of_range",
            f"loglam: expected {_LOGLAM_RANGE} dex, found {low:g} to {high:g}",
        )
    return 10.0 ** loglam.astype(np.float64)


@lru_cache(maxsize=1)
def _survey_pixels() -> tuple[np.ndarray, np.ndarray]:
    loglam = (_LOGLAM_STEP * np.arange(_LOGLAM_FIRST, _LOGLAM_LAST + 1)).astype(np.float32)
    wavelength = 10.0 ** loglam.astype(np.float64)
    wavelength.flags.writeable = False
    return loglam, wavelength


def _pixels(fits: FitsFile, table: Table, name: str) -> np.ndarray:
    values = table.column(name)
    where = f"HDU COADD, {name}: expected one float a pixel, found"
    if values.dtype.kind != "f":
        fits.refuse("column_type", f"{where} {values.dtype}")
    if values.ndim != 1:
        fits.refuse("column_shape", f"{where} shape {values.shape}")
    return values.astype(np.float32, copy=False)


def _catalogue(fits: FitsFile) -> dict[str, Any]:
    """Return the object's catalogue row; empty where there is none."""
    for hdu in fits.hdus():
        if hdu.name in ("SPECOBJ", "SPALL") or (hdu.index == 2 and not hdu.name):
            table = hdu.table()
            return table.values(_CATALOGUE) if len(table) and "class" in table else {}
        if hdu.index >= 2:
            return {}
    return {}


def _text(row: dict[str, Any], name: str) -> str:
    return str(row.get(name, "")).strip()


def _number(row: dict[str, Any], name: str) -> float:
    return float(row.get(name, "nan"))


def _redshift(fits: FitsFile, row: dict[str, Any]) -> float:
    redshift = _number(row, "z")
    if _text(row, "class") and not np.isfinite(redshift):
        fits.refuse("redshift_not_finite", f"Z: expected a number beside CLASS, found {redshift}")
    return redshift


def _identity(fits: FitsFile, row: dict[str, Any], name: str) -> dict[str, Any]:
    header = next(fits.hdus()).header
    named = _NAME.match(name)
    ids: dict[str, Any] = {}
    for position, key in enumerate(("plate", "mjd", "fiberid")):
        value = row.get(key)
        if value is None:
            value = header.get("PLATEID" if key == "plate" else key.upper())
        if not isinstance(value, int):
            value = None
        if value is None and named:
            value = int(named[position + 1])
        ids[key] = value
    ids["run2d"] = _text(row, "run2d") or str(header.get("RUN2D", ""))
    return ids


def _object_id(ids: dict[str, Any], name: str) -> str:
    if any(ids[key] is None for key in ("plate", "mjd", "fiberid")):
        return name.removesuffix(".gz").removesuffix(".fits")
    return f"{ids['plate']:04d}-{ids['mjd']:05d}-{ids['fiberid']:04d}"


def _position(fits: FitsFile, row: dict[str, Any]) -> tuple[float, float]:
    header = next(fits.hdus()).header
    ra, dec = header.number("PLUG_RA"), header.number("PLUG_DEC")
    if np.isnan(ra) or np.isnan(dec):
        ra, dec = _number(row, "plug_ra"), _number(row, "plug_dec")
    return ra, dec


def _survey(ids: dict[str, Any], row: dict[str, Any]) -> str:
    # spAll rows have no SURVEY; the BOSS pipeline's versions start with a v.
    return _text(row, "survey") or ("boss" if ids["run2d"].startswith("v") else "sdss")


def _extra(row: dict[str, Any]) -> dict[str, Any]:
    found = {key: row[key] for key in _EXTRA if row.get(key) is not None}
    return {key: value.strip() if isinstance(value, str) else value for key, value in found.items()}
