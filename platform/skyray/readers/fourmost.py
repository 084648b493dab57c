"""ESO phase 3 1-D spectra (SDPS), 4MOST's among them: one spectrum a file, of any name.

Layout
------
Primary header:

===========  =====================================================================
OBJECT       target identifier (text); becomes ``object_id``
ARCFILE      the archive's own name of the file; becomes ``observation_id``
RA, DEC      degrees, of RADESYS and EQUINOX where stated; ICRS without
SNR          median signal-to-noise a pixel
SPECSYS      BARYCENT or HELIOCEN; TOPOCENT is corrected where site, time and
             position are told, else refused
TRG_CLS      class of the target as text (``ClusB``); absent or empty where unknown
TRG_Z        redshift of the target; absent where unknown
===========  =====================================================================

The first BINTABLE with WAVE and FLUX (called SPECTRUM, PHASE3SPECTRUM or nothing), a single row of
array columns of one length:

================  ================================================================
WAVE              wavelength, TUNIT a length; vacuum unless its TUCD says air
                  (``em.wl;obs.atmos``, ``em.wl;obs.air``), as the ESO standard writes it
FLUX              TUNIT any flux density per wavelength, such as
                  ``10**(-17)erg.cm**(-2).s**(-1).angstrom**(-1)``
ERR_FLUX or ERR   1 σ in the unit of FLUX; 0 = not measured
QUAL              0 = good; absent: the file flags no pixel
================  ================================================================

TRG_CLS and TRG_Z are the mock's own; ESO's standard has no keyword for a class. A file that does
not name itself (ARCFILE) is told apart from others of its target by its content.

Source: ESO External Data Products Standard, issue 8, section 5.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from skyray.readers.base import Reader, SurveyFile, name_by_content, register
from skyray.readers.column_facts import fits_facts
from skyray.readers.fits_bytes import FitsFile, Header, Table
from skyray.readers.layout import columns_of, fits_names, refuse_layout, stem
from skyray.readers.medium import medium_said
from skyray.readers.sky_frame import position_statement, stated_position
from skyray.readers.spectrum_values import Meaning, decide
from skyray.readers.table_options import WavelengthOptions
from skyray.readers.units import FLUX, is_flux, parse_unit
from skyray.records import InvalidRecord, Spectrum
from skyray.transforms.spectra import median_snr


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
    wavelength, flux, ivar, mask, statements = _pixels(fits, table)
    spectype = str(header.get("TRG_CLS", "")).strip()
    snr = header.number("SNR")
    same = len({wavelength.size, flux.size, ivar.size, mask.size}) == 1
    object_id = str(header.get("OBJECT") or "").strip() or stem(name)
    if object_id.upper() == "SKY":
        raise InvalidRecord(
            "sky_fibre", f"expected a target, found OBJECT {object_id!r}", fits.source
        )
    ra, dec, frame = stated_position(fits.source, header)
    extra = {"specsys": header.get("SPECSYS"), "prog_id": header.get("PROG_ID"),
             "exptime": header.get("EXPTIME")}  # fmt: skip
    return Spectrum(
        object_id=object_id,
        wavelength=wavelength,
        flux=flux,
        ivar=ivar,
        mask=mask,
        ra=ra,
        dec=dec,
        spectype=spectype,
        redshift=header.number("TRG_Z"),
        zwarning=0 if spectype else -1,
        snr=median_snr(flux, ivar, mask) if np.isnan(snr) and same else snr,
        survey=_survey(header),
        source=fits.source,
        observation_id=_observation_id(header, object_id, flux),
        extra={key: value for key, value in extra.items() if value is not None},
        statements={**statements, **position_statement(frame)},
    )


def _pixels(fits: FitsFile, table: Table) -> tuple[np.ndarray, ...]:
    """Return vacuum wavelength (Å), flux and ivar as `Spectrum` has them, and what is flagged.

    And the statements that this rests on.
    """
    error_name = "err" if "err" in table and "err_flux" not in table else "err_flux"
    wave, flux, error = (np.atleast_1d(table.column(c)[0]) for c in ("wave", "flux", error_name))
    mask = np.atleast_1d(table.column("qual")[0]) if "qual" in table else np.zeros(flux.shape)
    mask = mask != 0
    meaning = _meaning(fits, table, error_name)
    wavelength = meaning.wavelength(wave)
    if not wave.shape == flux.shape == error.shape:  # `check_spectrum` says what is wrong
        return wavelength, flux, error, mask, meaning.statements
    return wavelength, *meaning.flux(wavelength, flux, error, mask), mask, meaning.statements


def _meaning(fits: FitsFile, table: Table, error_name: str) -> Meaning:
    header, columns = table.hdu.inherited_header(), fits_facts(table.hdu.own_header())
    facts = {"wavelength": columns.of("WAVE"), "flux": columns.of("FLUX"),
             "noise": columns.of(error_name)}  # fmt: skip
    for role in ("wavelength", "flux"):
        if not facts[role].unit:
            detail = f"{facts[role].name}: expected a unit, as the standard has it, found none"
            fits.refuse("unit_unknown", detail)
    unit = parse_unit(facts["flux"].unit)
    if unit is not None and is_flux(facts["flux"].unit) and not unit.is_equivalent(FLUX):
        detail = f"FLUX: expected a flux density per wavelength, found {facts['flux'].unit!r}"
        fits.refuse("unit_unknown", detail)
    length = parse_unit(facts["wavelength"].unit)
    if length is None or not length.is_equivalent("Angstrom"):
        detail = f"WAVE: expected a unit of length, found {facts['wavelength'].unit!r}"
        fits.refuse("unit_unknown", detail)
    # The standard: vacuum unless it says air.
    silent = not medium_said(header, facts["wavelength"].told())
    medium = "vacuum" if silent else "from_file"
    found = decide(fits.source, header, facts, WavelengthOptions(column="WAVE"), medium, None, True)
    if silent:
        told = {**found.statements, "medium": "vacuum: ESO standard, no TUCD of WAVE"}
        return replace(found, statements=told)
    return found


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
