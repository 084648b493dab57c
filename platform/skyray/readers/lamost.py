"""LAMOST low-resolution spectra, one a file: ``spec-LMJD-PLANID_spSS-FFF.fits`` of any release.

Layouts, known by their content
-------------------------------
Pilot survey to DR5: a primary image of 5 rows. EXTEN0 names them: flux, inverse variance, then the
wavelength or (pilot survey, DR1) the spectrum without its continuum, and-mask, or-mask. Wavelengths
follow from COEFF0 and COEFF1 (log10 Å), and must agree with the row of wavelengths where there is
one.

DR6 on: a table (COADD) with FLUX, IVAR, WAVELENGTH (or LOGLAM), ANDMASK and ORMASK, whose one row
holds arrays, or which has a row a pixel.

Wavelengths are vacuum and heliocentric (VACUUM, HELIO). **Flux is relative**: where the
file states no unit, it is arbitrary and the shape calibrated, so that only what ignores the scale
may use it. CLASS, SUBCLASS, Z of the header; -9999 and "Unknown" are unknown. The survey gives no
warning of its redshifts.

Source: https://www.lamost.org, data production descriptions of DR3, DR5, DR8 and DR10
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from skyray.readers.base import Reader, SurveyFile, name_by_content, register
from skyray.readers.column_facts import ColumnFacts, column_facts, image_facts
from skyray.readers.fits_bytes import FitsFile, Hdu, Header
from skyray.readers.layout import columns_of, fits_names, image_shape, refuse_layout
from skyray.readers.sky_frame import in_icrs
from skyray.readers.spectrum_values import DataModel, Meaning, decide
from skyray.readers.table_options import WavelengthOptions
from skyray.records import InvalidRecord, Spectrum
from skyray.transforms.spectra import median_snr

# Bits of the and-mask, set in every exposure, for which a pixel is bad. BRIGHTSKY (3) is left out:
# it marks sky lines, whose effect the inverse variance carries (as in skyray.readers.sdss).
BAD_PIXEL_BITS = {"BADCCD": 0, "BADPROFILE": 1, "NOSKY": 2, "BADCENTER": 4, "NODATA": 5}
_BAD_PIXEL = sum(1 << bit for bit in BAD_PIXEL_BITS.values())

_MODEL = DataModel(frame="heliocentric", flux_unit="relative")
_DEX_MODEL = replace(_MODEL, wavelength_unit="log10(Angstrom)")
_UNKNOWN = -9999
_PLACE = ColumnFacts("RA"), ColumnFacts("DEC")
_ROWS = ("flux", "inverse", "wavelength", "andmask", "ormask")
_LAYOUT = (
    "a LAMOST spectrum: a primary image of 5 rows, or a table of flux, ivar, wavelength, andmask"
)
_IDS = ("obsid", "lmjd", "planid", "spid", "fiberid")
_KEPT = (*_IDS, "mjd", "objtype", "fibertyp", "sn_u", "sn_g", "sn_r", "sn_i", "sn_z",
         "snru", "snrg", "snrr", "snri", "snrz", "z_err", "data_v", "uid", "gp_id")  # fmt: skip


@register
class LamostReader(Reader):
    """One spectrum a file; observation_id is OBSID, else LMJD-PLANID-SPID-FIBERID.

    `Spectrum.extra`: flux_unit (``relative``, or what the file states), obsid, lmjd, planid, spid,
    fiberid, objtype and the signal-to-noise of each band (sn_u … sn_z) where the header has them.
    """

    name = "lamost"
    patterns = fits_names("*")

    def read(self, file: SurveyFile, unit: int = 0) -> Iterator[Spectrum | InvalidRecord]:
        with FitsFile(file) as fits:
            yield _read_spectrum(fits)


def _read_spectrum(fits: FitsFile) -> Spectrum:
    primary = next(fits.hdus())
    header = primary.header
    found = _pixels(fits, primary)
    if fault := _fibre_fault(header):
        raise InvalidRecord(*fault, fits.source, _text(header, "DESIG"))
    meaning, mask = found.meaning, (found.bits & _BAD_PIXEL) != 0
    unit = meaning.flux_unit
    wavelength = meaning.wavelength(found.wavelength)
    flux, ivar = meaning.flux(wavelength, found.flux, found.ivar, mask)
    extra = {name: _known(header.get(name.upper())) for name in _KEPT}
    extra = {name: value for name, value in extra.items() if value is not None}
    observation_id = _observation_id(extra, flux)
    spectype = _text(header, "CLASS")
    ra, dec, _ = in_icrs(
        fits.source, header, _PLACE, *(_number(header, one.name) for one in _PLACE)
    )
    return Spectrum(
        object_id=_text(header, "DESIG").removeprefix("LAMOST").strip() or observation_id,
        wavelength=wavelength,
        flux=flux,
        ivar=ivar,
        mask=mask,
        ra=ra,
        dec=dec,
        spectype="" if spectype.lower() == "unknown" else spectype,
        subtype=_text(header, "SUBCLASS"),
        redshift=_number(header, "Z"),
        redshift_err=_number(header, "Z_ERR"),
        snr=median_snr(flux, ivar, mask),
        survey="lamost",
        source=fits.source,
        extra={**extra, "flux_unit": unit if isinstance(unit, str) else "relative"},
        statements=meaning.statements,
        observation_id=observation_id,
    )


@dataclass(frozen=True)
class _Pixels:
    """The arrays as the file has them, [P], mask bits as integers; and what they mean."""

    wavelength: np.ndarray
    flux: np.ndarray
    ivar: np.ndarray
    bits: np.ndarray
    meaning: Meaning


def _pixels(fits: FitsFile, primary: Hdu) -> _Pixels:
    if len(shape := image_shape(primary)) == 2 and shape[0] == len(_ROWS):
        return _image_pixels(fits, primary)
    for hdu in fits.hdus():
        names = columns_of(hdu)
        if {"flux", "ivar", "andmask"} <= names and names & {"wavelength", "loglam"}:
            if hdu.name not in ("", "COADD"):
                refuse_layout(fits, f"{_LAYOUT} (medium resolution, {hdu.name}, is not read)")
            return _table_pixels(fits, hdu)
    refuse_layout(fits, _LAYOUT)


def _image_pixels(fits: FitsFile, primary: Hdu) -> _Pixels:
    header = primary.header
    if "LAMOST" not in f"{header.get('TELESCOP')} {header.get('ORIGIN')}".upper():
        refuse_layout(fits, f"{_LAYOUT}, with TELESCOP or ORIGIN of LAMOST")
    rows = dict(zip(_row_names(fits, header), primary.image(), strict=True))
    by_row = rows.get("wavelength")
    by_header = _log_linear(header, len(rows["flux"]))
    if by_row is None and by_header is None:
        expected = "expected COEFF0 and COEFF1, or a row of wavelengths"
        fits.refuse("wavelength_missing", f"{expected}, found rows {', '.join(rows)} alone")
    if by_row is not None and by_header is not None:
        _check_agree(fits, by_row.astype(np.float64), by_header)
    wavelength = by_row.astype(np.float64) if by_header is None else by_header
    meaning = _meaning(fits, primary, ColumnFacts("wavelength"), image_facts(primary), _MODEL)
    return _Pixels(wavelength, rows["flux"], rows["inverse"], _bits(fits, rows["andmask"]), meaning)


def _row_names(fits: FitsFile, header: Header) -> tuple[str, ...]:
    """Return what the rows of the primary image are, by EXTEN0; without it, the data model's."""
    stated = _text(header, "EXTEN0").lower().split()
    if not stated:
        return _ROWS
    if len(stated) != len(_ROWS) or not {"flux", "inverse", "andmask"} <= set(stated):
        expected = "EXTEN0: expected 'Flux Inverse … Andmask Ormask'"
        fits.refuse("layout_unknown", f"{expected}, found {header.get('EXTEN0')!r}")
    return tuple(stated)


def _log_linear(header: Header, size: int) -> np.ndarray | None:
    start, step = header.number("COEFF0"), header.number("COEFF1")
    if np.isfinite(start) and np.isfinite(step):
        return 10.0 ** (start + step * np.arange(size))
    return None


def _check_agree(fits: FitsFile, by_row: np.ndarray, by_header: np.ndarray) -> None:
    apart = np.abs(by_row - by_header) > 1e-5 * by_header
    if apart.any():
        at = int(np.argmax(apart))
        fits.refuse(
            "layout_ambiguous",
            f"expected row 3 to hold the wavelengths of COEFF0 and COEFF1, found {by_row[at]:.3f} "
            f"Å and {by_header[at]:.3f} Å at pixel {at}",
        )


def _meaning(
    fits: FitsFile, hdu: Hdu, axis: ColumnFacts, flux: ColumnFacts, model: DataModel,
    ivar: ColumnFacts | None = None,
) -> Meaning:  # fmt: skip
    """Return what the numbers mean, by what the file states and else by the data model."""
    facts = {"wavelength": axis, "flux": flux, "noise": ivar or ColumnFacts("ivar")}
    wavelength = WavelengthOptions(column=axis.name)
    header = hdu.inherited_header()
    return decide(fits.source, header, facts, wavelength, "from_file", None, False, model)


def _table_pixels(fits: FitsFile, hdu: Hdu) -> _Pixels:
    table = hdu.table()
    if len(table) == 0:
        fits.refuse("table_empty", "HDU COADD: expected one spectrum, found no row")

    def pixels(name: str) -> np.ndarray:
        values = table.column(name)
        if values.ndim == 2 and len(values) != 1:
            fits.refuse("column_shape", f"{name}: expected one spectrum, found {len(values)} rows")
        if values.dtype.kind not in "iuf":
            fits.refuse("column_type", f"{name}: expected numbers, found {values.dtype}")
        return values.reshape(-1)

    axis = "wavelength" if "wavelength" in table else "loglam"
    arrays = [pixels(name) for name in (axis, "flux", "ivar", "andmask")]
    flux = column_facts(table, "flux")
    if not flux.unit:
        flux = image_facts(hdu, inherits=True)
    model = _DEX_MODEL if axis == "loglam" else _MODEL
    meaning = _meaning(fits, hdu, column_facts(table, axis), flux, model,
                       column_facts(table, "ivar"))  # fmt: skip
    return _Pixels(*arrays[:3], _bits(fits, arrays[3]), meaning)


def _bits(fits: FitsFile, values: np.ndarray) -> np.ndarray:
    """Return mask bits as integers; the rows of an image hold them as floats."""
    whole = np.isfinite(values) & (values == np.trunc(values)) & (np.abs(values) < 2**53)
    if not whole.all():
        fits.refuse("column_type", "and-mask: expected integers, found fractions")
    return values.astype(np.int64)


def _fibre_fault(header: Header) -> tuple[str, str] | None:
    kind = _text(header, "FIBERTYP").lower()
    objtype = _text(header, "OBJTYPE").lower()
    if kind == "sky" or objtype == "sky":
        return "sky_fibre", "expected a target, found FIBERTYP Sky"
    if kind == "unused":
        return "fibre_unassigned", "expected a fibre on a target, found FIBERTYP Unused"
    if kind in ("dead", "poserr"):
        return "fibre_broken", f"expected a working fibre, found FIBERTYP {kind!r}"
    return None


def _observation_id(ids: dict[str, Any], flux: np.ndarray) -> str:
    if isinstance(ids.get("obsid"), int | str) and str(ids["obsid"]).strip() not in ("", "0"):
        return str(ids["obsid"]).strip()
    if all(ids.get(name) is not None for name in _IDS[1:]):
        lmjd, plan, spectrograph, fibre = (ids[name] for name in _IDS[1:])
        return f"{lmjd}-{plan}-{str(spectrograph).zfill(2)}-{str(fibre).zfill(3)}"
    return name_by_content("lamost", flux)


def _text(header: Header, key: str) -> str:
    value = header.get(key)
    return "" if value is None or value == _UNKNOWN else str(value).strip()


def _number(header: Header, key: str) -> float:
    value = header.number(key)
    return float("nan") if value == _UNKNOWN else value


def _known(value: Any) -> Any:
    value = value.strip() if isinstance(value, str) else value
    return None if value in (_UNKNOWN, str(_UNKNOWN), "") else value
