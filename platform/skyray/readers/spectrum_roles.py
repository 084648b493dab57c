"""Which column of a FITS table of spectra is what, where the card does not say.

By UTYPE and UCD (IVOA Spectrum Data Model 1.1; ESO phase 3 spectra have them), else by the names
surveys use. Two columns that could be one thing are refused, never chosen between.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from skyray.readers.base import SurveyFile
from skyray.readers.column_facts import ColumnFacts, Facts, fits_facts
from skyray.readers.fits_bytes import FitsFile, Hdu
from skyray.readers.table_options import TableOptions
from skyray.records import InvalidRecord

# Each in the order of preference: UTYPE (without what comes before "Data."), UCD, names.
_UTYPES = {
    "wavelength": "spectralaxis.value",
    "flux": "fluxaxis.value",
    "error": "fluxaxis.accuracy.staterror",
    "mask": "fluxaxis.accuracy.qualitystatus",
}
_UCDS: dict[str, Callable[[str], bool]] = {
    "wavelength": lambda ucd: (
        ucd.split(";")[0] in ("em.wl", "em.freq", "em.energy", "em.wavenumber")
    ),
    "flux": lambda ucd: ucd.startswith("phot.flux.density") and "arith" not in ucd,
    "error": lambda ucd: ucd.startswith("stat.error;phot.flux.density"),
    "mask": lambda ucd: ucd.startswith("meta.code.qual"),
}
_NAMES = {
    "wavelength": ("wave", "wavelength", "lambda", "loglam"),
    "flux": ("flux",),
    "error": (
        "err_flux",
        "flux_err",
        "flux_error",
        "err",
        "error",
        "sigma",
        "stdev",
        "uncertainty",
    ),
    "ivar": ("ivar", "flux_ivar", "inverse"),
    "mask": ("qual", "mask"),
}
_FIELDS = {"object_id": "OBJECT", "ra": "RA", "dec": "DEC", "snr": "SNR"}


def described_by_file(file: SurveyFile, options: TableOptions) -> TableOptions:
    """Return options with the columns that a FITS file describes itself.

    Raises
    ------
    InvalidRecord
        ``column_missing``, ``column_ambiguous`` or ``layout_ambiguous`` (two tables) naming what is
        not to be told.
    """
    with FitsFile(file) as fits:
        hdu = _spectrum_hdu(fits, options)
        facts = fits_facts(hdu.own_header())
        roles = _roles(file.path, facts, options)
        header = hdu.inherited_header()
        fields = dict(options.fields)
        if "object_id" not in fields and options.id_format is None and hdu.row_count == 1:
            known = {k: v for k, v in _FIELDS.items() if header.get(v) not in (None, "")}
            fields = {**known, **fields}
        flux = hdu.table(0, 1).layout.column(roles["flux"])
        wide = flux.cell or flux.stored == "heap"
    one = {"wavelength": {"column": roles.pop("wavelength")}} if options.wavelength is None else {}
    layout = "objects" if wide or hdu.row_count == 1 else "pixels"
    return TableOptions.load(
        {**options.snapshot(), **roles, **one, "fields": fields, "layout": layout, "hdu": hdu.index}
    )


def _spectrum_hdu(fits: FitsFile, options: TableOptions) -> Hdu:
    if options.hdu is not None:
        return fits.hdu(options.hdu)
    tables = [hdu for hdu in fits.hdus() if hdu.kind in ("table", "compressed table")]
    facts = {hdu.index: fits_facts(hdu.own_header()) for hdu in tables}
    found = [
        hdu
        for hdu in tables
        if all(_candidates(facts[hdu.index], role) for role in ("wavelength", "flux"))
    ]
    if len(found) > 1:
        shown = [f"{hdu.index} {hdu.name}".strip() for hdu in found[:12]]
        detail = f"expected one table of wavelength and flux, found HDUs {shown}; let the card's"
        fits.refuse("layout_ambiguous", f"{detail} `hdu` name one")
    if found:
        return found[0]
    names = [sorted(facts[hdu.index].columns)[:12] for hdu in tables[:4]]
    fits.refuse(
        "column_missing",
        "expected a table whose columns tell wavelength and flux (UTYPE, UCD or WAVE and FLUX); "
        f"found {names}; let the card name the columns",
    )


def _roles(source: str, facts: Facts, options: TableOptions) -> dict[str, str]:
    """Return role → column for every array; what the card names is kept."""
    found: dict[str, str] = {}
    for role in ("flux", "wavelength", "mask"):
        named = options.wavelength if role == "wavelength" else getattr(options, role)
        if named is None and (name := _only(source, facts, role)):
            found[role] = name
    if options.ivar is None and options.error is None:
        both = {role: _only(source, facts, role) for role in ("error", "ivar")}
        known = {role: name for role, name in both.items() if name}
        if len(known) != 1:
            shown = known or sorted(facts.columns)[:12]
            reason = "column_ambiguous" if known else "column_missing"
            detail = f"expected a column of errors or of inverse variances, found {shown}"
            raise InvalidRecord(reason, detail, source)
        found |= known
    missing = {"flux", "wavelength"} - set(found)
    if options.flux:
        missing -= {"flux"}
        found["flux"] = options.flux
    if options.wavelength:
        missing -= {"wavelength"}
    if missing:
        detail = f"expected columns of {sorted(missing)}, found {sorted(facts.columns)[:12]}"
        raise InvalidRecord("column_missing", detail, source)
    return found


def _only(source: str, facts: Facts, role: str) -> str | None:
    found = _candidates(facts, role)
    if len(found) > 1:
        names = [fact.name for fact in found]
        detail = f"expected one column of {role}, found {names}; let the card name it"
        raise InvalidRecord("column_ambiguous", detail, source)
    return found[0].name if found else None


def _candidates(facts: Facts, role: str) -> Sequence[ColumnFacts]:
    """Return the columns that can be `role`, by the first way that finds any."""
    columns: Mapping[str, ColumnFacts] = facts.columns
    by_utype = [
        fact
        for fact in columns.values()
        if fact.utype.lower().rpartition("data.")[2] == _UTYPES.get(role, "-")
    ]
    main = [fact for fact in by_utype if ":" not in fact.utype.lower().replace("spec:", "")]
    by_ucd = [fact for fact in columns.values() if role in _UCDS and _UCDS[role](fact.ucd.lower())]
    plain = [fact for fact in by_ucd if fact.name.lower() in _NAMES[role]]
    by_name = [columns[name] for name in _NAMES[role] if name in columns]
    for found in (main, by_utype, plain, by_ucd):
        if found:
            return found
    return by_name
