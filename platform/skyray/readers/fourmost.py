"""ESO phase 3 1-D spectra (SDPS), 4MOST's among them: one spectrum a file, of any name.

Layout
------
Primary header:

===========  =====================================================================
OBJECT       target identifier (text); becomes ``object_id``
ARCFILE      the archive's own name of the file; becomes ``observation_id``
RA, DEC      degrees, ICRS
SNR          median signal-to-noise a pixel
SPECSYS      BARYCENT or HELIOCEN; TOPOCENT is refused
TRG_CLS      class of the target as text (``ClusB``); absent or empty where unknown
TRG_Z        redshift of the target; absent where unknown
===========  =====================================================================

The first BINTABLE with WAVE and FLUX (called SPECTRUM, PHASE3SPECTRUM or nothing), a single row of
array columns of one length:

================  ================================================================
WAVE              wavelength, TUNIT a length; vacuum unless its TUCD contains ``air``
                  (``em.wl;obs.air``), as the ESO standard writes it
FLUX              TUNIT any flux density, such as
                  ``10**(-17)erg.cm**(-2).s**(-1).angstrom**(-1)`` or ``Jy``
ERR_FLUX or ERR   1 σ in the unit of FLUX; 0 = not measured
QUAL              0 = good; absent: the file flags no pixel
================  ================================================================

TRG_CLS and TRG_Z are the mock's own; ESO's standard has no keyword for a class. A file that does
not name itself (ARCFILE) is told apart from others of its target by its content.

Source: ESO External Data Products Standard, issue 8, section 5.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np

from skyray.readers.base import Reader, SurveyFile, name_by_content, register
from skyray.readers.fits_bytes import FitsFile, Header, Table
from skyray.readers.layout import columns_of, fits_names, refuse_layout, stem
from skyray.readers.survey_units import column_card, flux_factor, to_angstrom
from skyray.records import InvalidRecord, Spectrum
from skyray.transforms.spectra import air_to_vacuum, ivar_of_error, median_snr


@register
class FourmostReader(Reader):
    """One spectrum a file. `Spectrum.extra`: specsys and, where given, prog_id and exptime."""

    name = "fourmost"
    patterns = fits_names("*")

    def read(self, file: SurveyFile, unit: int = 0) -> Iterator[Spectrum | InvalidRecord]:
        with FitsFile(file) as fits:
            yield _read_spectrum(fits, file.name)


def _read_spectrum(fits: FitsFile, name: str) -> Spectrum:
    header = next(fits.hdus()).header
    table = _spectrum_table(fits)
    wavelength, flux, error, mask = _pixels(fits, table)
    ivar = ivar_of_error(error, mask)
    spectype = str(header.get("TRG_CLS", "")).strip()
    if str(header.get("SPECSYS", "")).strip().upper() == "TOPOCENT":
        detail = "SPECSYS: expected barycentric or heliocentric wavelengths, found TOPOCENT"
        fits.refuse("frame_topocentric", detail)
    snr = header.number("SNR")
    same = len({wavelength.size, flux.size, ivar.size, mask.size}) == 1
    object_id = str(header.get("OBJECT") or "").strip() or stem(name)
    if object_id.upper() == "SKY":
        raise InvalidRecord(
            "sky_fibre", f"expected a target, found OBJECT {object_id!r}", fits.source
        )
    extra = {"specsys": header.get("SPECSYS"), "prog_id": header.get("PROG_ID"),
             "exptime": header.get("EXPTIME")}  # fmt: skip
    return Spectrum(
        object_id=object_id,
        wavelength=wavelength,
        flux=flux,
        ivar=ivar,
        mask=mask,
        ra=header.number("RA"),
        dec=header.number("DEC"),
        spectype=spectype,
        redshift=header.number("TRG_Z"),
        zwarning=0 if spectype else -1,
        snr=median_snr(flux, ivar, mask) if np.isnan(snr) and same else snr,
        survey=_survey(header),
        source=fits.source,
        observation_id=_observation_id(header, object_id, flux),
        extra={key: value for key, value in extra.items() if value is not None},
    )


def _pixels(fits: FitsFile, table: Table) -> tuple[np.ndarray, ...]:
    """Return vacuum wavelength (Å), flux and 1 σ (1e-17 erg/s/cm²/Å) and what is flagged."""
    error_name = "err" if "err" in table and "err_flux" not in table else "err_flux"
    wave, flux, error = (np.atleast_1d(table.column(c)[0]) for c in ("wave", "flux", error_name))
    flagged = np.atleast_1d(table.column("qual")[0]) if "qual" in table else np.zeros(flux.shape)
    wavelength = to_angstrom(fits, "WAVE", column_card(table.hdu, "TUNIT", "wave"), wave)
    unit = column_card(table.hdu, "TUNIT", "flux")
    error_unit = column_card(table.hdu, "TUNIT", error_name) or unit
    if wave.shape == flux.shape == error.shape:  # else `check_spectrum` says what is wrong
        flux = flux.astype(np.float64) * flux_factor(fits, "FLUX", unit, wavelength)
        factor = flux_factor(fits, error_name.upper(), error_unit, wavelength)
        error = error.astype(np.float64) * factor
    if "air" in re.split("[;.]", column_card(table.hdu, "TUCD", "wave").lower()):
        wavelength = air_to_vacuum(wavelength)
    return wavelength, flux.astype(np.float32), error, flagged != 0


def _spectrum_table(fits: FitsFile) -> Table:
    for hdu in fits.hdus():
        if {"wave", "flux"} <= columns_of(hdu):
            table = hdu.table()
            if len(table) != 1:
                fits.refuse("table_empty", f"HDU {hdu.name}: expected one row, found {len(table)}")
            return table
    refuse_layout(fits, "an ESO phase 3 spectrum: a table of WAVE, FLUX, ERR_FLUX and QUAL")


def _survey(header: Header) -> str:
    instrument = str(header.get("INSTRUME") or "").strip().lower()
    return instrument if instrument not in ("", "qmost") else "4most"


def _observation_id(header: Header, object_id: str, flux: np.ndarray) -> str:
    """Return the archive's name of the file: a target is observed more than once."""
    archived = str(header.get("ARCFILE") or "").strip()
    return stem(archived) if archived else name_by_content(object_id, flux)
