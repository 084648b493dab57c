"""SDSS spectra, one a file, of DR8 to DR19: SDSS-I/II, BOSS and eBOSS (PLATE, MJD, FIBERID) and
SDSS-V (FIELD, MJD, CATALOGID), full and lite.

A file is known by its content: HDU 1 (COADD) holds the co-added spectrum, one row a pixel, in flux,
ivar, and_mask and loglam (log10 Å) or wavelength (Å); letter case does not matter. The object's
catalogue row is a table of one row with CLASS and Z: SPECOBJ, SPALL or without a name; where there
is none, the first row of SPZALL (ZALL), the best fit. A file without any is still a spectrum, of
unknown class and redshift. Wavelengths are vacuum, heliocentric (data model; VACUUM = F is
converted). Fibres on the sky (``sky_fibre``) and unplugged ones (``fibre_broken``) are refused.

SDSS-I/II's older spSpec files (DR1 to DR7) and whole plates (spPlate) are refused as
``layout_unknown``.

Source: https://data.sdss.org/datamodel/files/BOSS_SPECTRO_REDUX/RUN2D/spectra/PLATE4/spec.html,
https://www.sdss.org/dr19/, data model of specFull and specLite
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np

from skyray.readers.base import Reader, SurveyFile, name_by_content, register
from skyray.readers.column_facts import column_facts
from skyray.readers.fits_bytes import FitsFile, Table
from skyray.readers.layout import columns_of, fits_names, image_shape, is_table, refuse_layout, stem
from skyray.readers.spectrum_values import DataModel, Meaning, decide
from skyray.readers.table_options import WavelengthOptions
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
_BAD_PIXEL = sum(1 << bit for bit in BAD_PIXEL_BITS.values())
# ZWARNING: the fibre looked at the sky; it was unplugged or broken.
_SKY, _UNPLUGGED = 1 << 0, 1 << 7

_NAME = re.compile(r"spec(?:-?lite|-?full)?-(\w+)-(\d+)-(\d+)", re.IGNORECASE)
_LAYOUT = "an SDSS spectrum: a table COADD of flux, ivar, and_mask and loglam or wavelength"
_PLATE, _FIELD = ("plate", "mjd", "fiberid"), ("field", "mjd", "catalogid")
_EXTRA = ("class_noqso", "z_noqso", "rchi2", "vdisp", "vdisp_err", "sourcetype", "objtype",
          "programname", "thing_id", "specprimary", "sdss_id", "ebv", "sfd_ebv")  # fmt: skip
_POSITIONS = (("plug_ra", "plug_dec"), ("fiber_ra", "fiber_dec"), ("racat", "deccat"))
_CATALOGUE = (
    "class", "subclass", "z", "z_err", "zwarning", "sn_median_all", *_PLATE, *_FIELD, "run2d",
    "survey", "targettype", *(name for pair in _POSITIONS for name in pair), *_EXTRA,
)  # fmt: skip
_UNKNOWN = (-999, -9999)
_KEYWORDS = {"plate": "PLATEID", "mjd": "MJD", "fiberid": "FIBERID", "field": "FIELDID",
             "catalogid": "CATALOGID"}  # fmt: skip
_DIGITS_OF_A_FIBER = 4  # FIBERID is at most 1000; what stands in its place and is longer, CATALOGID
# The survey's own pixels: loglam = 1e-4 · i as float32, i from the range's lower end on.
_LOGLAM_STEP, _LOGLAM_FIRST, _LOGLAM_LAST = 1e-4, 30_000, 47_000
# 10**loglam must be an optical wavelength; a column in Å instead of dex is the usual accident.
_LOGLAM_RANGE = (3.0, 4.7)
_COLUMN = WavelengthOptions(column="loglam or wavelength")
_MODEL = DataModel(frame="heliocentric")
_LOGLAM_MODEL = DataModel(frame="heliocentric", wavelength_unit="log10(Angstrom)")


@register
class SdssSpecReader(Reader):
    """One spectrum a file; object_id is PLATE-MJD-FIBERID or FIELD-MJD-CATALOGID.

    `Spectrum.extra`: plate, mjd, fiberid or field, mjd, catalogid (integers), run2d and, where the
    catalogue row has them, vdisp, vdisp_err, ebv, sdss_id, class_noqso, z_noqso, rchi2, sourcetype,
    objtype, programname, thing_id and specprimary.
    """

    name = "sdss_spec"
    patterns = fits_names("*")
    companions = fits_names(
        "spplate-*", "spzbest-*", "spzall-*", "spzline-*", "spall-*", "specobj-*", "photoplate-*",
        "spzlist-*", "spdiag1d-*",
    )  # fmt: skip

    def read(self, file: SurveyFile, unit: int = 0) -> Iterator[Spectrum | InvalidRecord]:
        with FitsFile(file) as fits:
            yield read_spectrum(fits, file.name)


def read_spectrum(fits: FitsFile, name: str) -> Spectrum:
    """Return the spectrum of an open file; `name` is used where neither table nor header has an id.

    Raises
    ------
    InvalidRecord
        See `FitsFile`; and ``layout_unknown``, ``layout_ambiguous``, ``table_empty``,
        ``column_type``, ``column_shape``, ``wavelength_out_of_range``, ``redshift_not_finite``,
        ``field_invalid``, ``sky_fibre``, ``fibre_broken``.
    """
    coadd = _coadd(fits)
    if len(coadd) == 0:
        fits.refuse("table_empty", "HDU COADD: expected a row for every pixel, found none")
    flux, ivar = (_pixels(fits, coadd, column) for column in ("flux", "ivar"))
    mask = _bad_pixels(fits, coadd)
    axis = "loglam" if "loglam" in coadd or "wavelength" not in coadd else "wavelength"
    stored = _pixels(fits, coadd, axis)
    meaning = _meaning(fits, coadd, axis)
    wavelength = _wavelengths(fits, coadd, axis, stored, meaning)
    flux, ivar = meaning.flux(wavelength, flux, ivar, mask)
    row = _catalogue(fits)
    _check_numbers(fits, row)
    ids = _identity(fits, row, name)
    object_id = _object_id(ids)
    if fault := _fibre_fault(row):
        raise InvalidRecord(*fault, fits.source, object_id)
    ra, dec = _position(fits, row)
    snr = _number(row, "sn_median_all")
    return Spectrum(
        object_id=object_id or stem(name),
        wavelength=wavelength,
        flux=flux,
        ivar=ivar,
        mask=mask,
        ra=ra,
        dec=dec,
        spectype=_text(row, "class"),
        subtype=_text(row, "subclass"),
        redshift=_redshift(fits, row),
        redshift_err=_number(row, "z_err"),
        zwarning=row.get("zwarning", -1),
        snr=median_snr(flux, ivar, mask) if np.isnan(snr) else snr,
        survey=_survey(ids, row),
        source=fits.source,
        extra={**ids, **_extra(row)},
        observation_id="" if object_id else name_by_content(stem(name), flux),
        statements=meaning.statements,
    )


def _coadd(fits: FitsFile) -> Table:
    """Return the table of pixels: COADD, else the first one with flux and ivar."""
    hdu = fits.find("COADD")
    if hdu is None:
        hdu = next((h for h in fits.hdus() if {"flux", "ivar"} <= columns_of(h)), None)
    if hdu is None:
        if any(image_shape(h) or is_table(h) for h in fits.hdus()):
            old = len(image_shape(next(fits.hdus()))) == 2
            refuse_layout(fits, _LAYOUT + " (spSpec and spPlate files are not read)" * old)
        hdu = fits.need("COADD")  # refuses
    return hdu.table()


def _bad_pixels(fits: FitsFile, coadd: Table) -> np.ndarray:
    bits = coadd.column("and_mask")
    if bits.dtype.kind not in "iu" or bits.ndim != 1:
        fits.refuse("column_type", f"and_mask: expected integers a pixel, found {bits.dtype}")
    whole = bits.view(np.uint32) if bits.dtype == np.int32 else bits.astype(np.int64)
    return (whole & whole.dtype.type(_BAD_PIXEL)) != 0


def _meaning(fits: FitsFile, coadd: Table, axis: str) -> Meaning:
    """Return what the numbers mean, by what the file states and else by the data model."""
    header = coadd.hdu.inherited_header()
    names = {"wavelength": axis, "flux": "flux", "noise": "ivar"}
    facts = {role: column_facts(coadd, name) for role, name in names.items()}
    if not facts["flux"].unit and (unit := str(header.get("BUNIT") or "").strip()):
        facts["flux"] = replace(facts["flux"], unit=unit, origin="BUNIT")
    model = _LOGLAM_MODEL if axis == "loglam" else _MODEL
    return decide(fits.source, header, facts, _COLUMN, "from_file", None, False, model)


def _wavelengths(
    fits: FitsFile, coadd: Table, axis: str, values: np.ndarray, meaning: Meaning
) -> np.ndarray:
    """Return vacuum wavelengths, Å, by loglam or wavelength, which must agree where both are."""
    own = (meaning.wavelength_unit, meaning.medium) == (_LOGLAM_MODEL.wavelength_unit, "vacuum")
    found = _survey_wavelength(fits, values) if own else meaning.wavelength(values)
    if axis == "loglam" and "wavelength" in coadd:
        unit = column_facts(coadd, "wavelength").unit or _MODEL.wavelength_unit
        other = replace(meaning, wavelength_unit=unit).wavelength(
            _pixels(fits, coadd, "wavelength")
        )
        if not np.allclose(found, other, rtol=1e-5, atol=0):
            fits.refuse(
                "layout_ambiguous",
                f"expected one wavelength a pixel, found loglam {found[0]:.3f} Å and "
                f"wavelength {other[0]:.3f} Å",
            )
    return found


def _survey_wavelength(fits: FitsFile, loglam: np.ndarray) -> np.ndarray:
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
    return values


def _catalogue(fits: FitsFile) -> dict[str, Any]:
    """Return the object's catalogue row; empty where there is none."""
    best: Table | None = None
    for hdu in fits.hdus():
        if not {"class", "z"} <= columns_of(hdu):
            continue
        table = hdu.table()
        if len(table) == 1:
            return table.values(_CATALOGUE)
        if hdu.name not in ("SPZALL", "ZALL", "SPZ_ALL"):
            fits.refuse(
                "layout_ambiguous",
                f"HDU {hdu.name or hdu.index}: expected the row of one object, found {len(table)}",
            )
        best = best or table
    return best.values(_CATALOGUE) if best is not None and len(best) else {}


def _check_numbers(fits: FitsFile, row: dict[str, Any]) -> None:
    """Refuse a catalogue row that has text or an array where a number belongs."""
    for name in ("z", "z_err", "sn_median_all", *(name for pair in _POSITIONS for name in pair)):
        if not isinstance(row.get(name, 0.0), int | float):
            fits.refuse("field_invalid", f"{name}: expected a number, found {row[name]!r}")
    if type(row.get("zwarning", 0)) is not int:
        fits.refuse("field_invalid", f"zwarning: expected bits, found {row['zwarning']!r}")


def _fibre_fault(row: dict[str, Any]) -> tuple[str, str] | None:
    for name in ("objtype", "sourcetype", "targettype"):
        if _text(row, name).upper().startswith("SKY"):
            detail = f"found {name.upper()} {_text(row, name)!r}"
            return "sky_fibre", f"expected a target, {detail}: the fibre looks at the sky"
    warnings = row.get("zwarning", 0)
    if warnings > 0 and warnings & _SKY:
        return "sky_fibre", f"expected a target, found ZWARNING {warnings} (SKY)"
    if warnings > 0 and warnings & _UNPLUGGED:
        return "fibre_broken", f"expected a plugged fibre, found ZWARNING {warnings} (UNPLUGGED)"
    return None


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
    """Return plate, mjd, fiberid or field, mjd, catalogid: by table, header, then the name."""
    header = next(fits.hdus()).header
    keys = _PLATE if _integer(row.get("catalogid")) is None else _FIELD
    ids: dict[str, Any] = {}
    for key in keys:
        value = _integer(row.get(key))
        ids[key] = _integer(header.get(_KEYWORDS[key])) if value is None else value
    if None in ids.values() and (named := _NAME.match(name)):
        if len(named[3]) > _DIGITS_OF_A_FIBER:
            ids = {key: ids.get(key) for key in _FIELD}
        for position, key in enumerate(ids, start=1):
            if ids[key] is None:
                ids[key] = _integer(named[position]) or named[position]
    ids["run2d"] = _text(row, "run2d") or str(header.get("RUN2D", ""))
    return ids


def _integer(value: Any) -> int | None:
    """Return an exact integer, also of text; None for anything else and for -999."""
    if isinstance(value, str) and value.strip().isdecimal():
        value = int(value)
    return value if type(value) is int and value not in _UNKNOWN else None


def _object_id(ids: dict[str, Any]) -> str:
    """Return the survey's name of what was observed; '' where a part of it is unknown."""
    keys = _FIELD if "catalogid" in ids else _PLATE
    if any(ids[key] is None for key in keys):
        return ""
    if keys == _FIELD:
        return "-".join(str(ids[key]) for key in keys)
    plate, mjd, fiber = (str(ids[key]) for key in keys)
    return f"{plate.zfill(4)}-{mjd.zfill(5)}-{fiber.zfill(4)}"


def _position(fits: FitsFile, row: dict[str, Any]) -> tuple[float, float]:
    header = next(fits.hdus()).header
    pairs = [(header.number("PLUG_RA"), header.number("PLUG_DEC"))]
    pairs += [(_number(row, ra), _number(row, dec)) for ra, dec in _POSITIONS]
    for ra, dec in pairs:
        if 0 <= ra <= 360 and -90 <= dec <= 90:
            return ra, dec
    return float("nan"), float("nan")


def _survey(ids: dict[str, Any], row: dict[str, Any]) -> str:
    # spAll rows have no SURVEY; the BOSS pipeline's versions start with a v, SDSS-V's with v6.
    run2d = ids["run2d"]
    by_version = "sdss5" if run2d.startswith("v6") else "boss" if run2d.startswith("v") else "sdss"
    return _text(row, "survey") or by_version


def _extra(row: dict[str, Any]) -> dict[str, Any]:
    found = {key: row[key] for key in _EXTRA if row.get(key) not in (None, *_UNKNOWN)}
    return {key: value.strip() if isinstance(value, str) else value for key, value in found.items()}
