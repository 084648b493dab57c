"""What DESI's FIBERMAP says of a fibre: what it was put on, whether it could see, which target.

Source: https://desidatamodel.readthedocs.io, bitmasks (FIBERSTATUS, TARGETID); which bits of
FIBERSTATUS are fatal: desispec.fiberbitmasking.get_all_nonamp_fiberbitmask_val
"""

from __future__ import annotations

from typing import Any

from skyray.readers.fits_bytes import Table

_UNASSIGNED = 1 << 0
_FATAL = {
    "BROKENFIBER": 2, "MISSINGPOSITION": 8, "BADPOSITION": 9, "BADFIBER": 16, "BADTRACE": 17,
    "BADFLAT": 18, "BADARC": 19, "MANYBADCOL": 20, "MANYREJECTED": 21,
}  # fmt: skip
_AMPLIFIERS = {"B": 1 << 22, "R": 1 << 23, "Z": 1 << 24}  # BADAMPB: nothing of camera B is usable
_TARGETID_SKY = 1 << 59
_FA_TARGET, _FA_SKY = 1 | 2, 4 | 8  # FA_TYPE: science, standard; sky, supplementary sky

# Bits of DESI_TARGET that mean the same in the main survey and in validation (SV1–SV3).
_BGS_ANY, _MWS_ANY = 1 << 60, 1 << 61
_DESI_TARGET = ("desi_target", "sv1_desi_target", "sv2_desi_target", "sv3_desi_target")
_TARGET_COLUMNS = (
    *_DESI_TARGET,
    *(f"{sv}{name}" for name in ("bgs_target", "mws_target") for sv in ("", "sv1_", "sv3_")),
    "scnd_target",
)
INTEGERS = ("coadd_fiberstatus", "fiberstatus", "fa_type", *_DESI_TARGET)  # bits: never rounded
_KEPT = ("targetid", "objtype", "ebv", "photsys", "morphtype", "tileid", "coadd_numexp",
         "coadd_exptime", "coadd_numtile", "coadd_numnight", "mean_mjd", "expid", "night",
         "fiber", "mjd")  # fmt: skip


def fibre_fault(fibermap: Table, row: int, arms: set[str]) -> tuple[str, str] | None:
    """Return why a fibre shows no target, reason and detail; None where it does.

    `arms` are those of the file: a fibre none of whose cameras could be read out is broken.
    """
    kind, status = _objtype(fibermap, row), fiberstatus(fibermap, row)
    if kind == "SKY":
        return "sky_fibre", f"expected a target, found OBJTYPE {kind!r}: the fibre looks at the sky"
    if kind == "BAD":
        return "fibre_broken", f"expected a target, found OBJTYPE {kind!r}"
    fatal = [name for name, bit in _FATAL.items() if status >> bit & 1]
    if kind == "NON" or status & _UNASSIGNED:
        detail = f"found OBJTYPE {kind!r}, FIBERSTATUS {status}"
        return "fibre_unassigned", f"expected a fibre on a target, {detail}"
    if not fatal and arms <= bad_arms(fibermap, row):
        fatal = [f"BADAMP{arm}" for arm in sorted(arms)]
    if fatal:
        detail = f"found FIBERSTATUS {status} ({', '.join(fatal)})"
        return "fibre_broken", f"expected a working fibre, {detail}"
    return None


def bad_arms(fibermap: Table, row: int) -> set[str]:
    """Return the arms whose amplifiers could not be read for this fibre."""
    status = fiberstatus(fibermap, row)
    return {arm for arm, bit in _AMPLIFIERS.items() if status & bit}


def fiberstatus(fibermap: Table, row: int) -> int:
    """Return COADD_FIBERSTATUS, else FIBERSTATUS, else 0."""
    for name in ("coadd_fiberstatus", "fiberstatus"):
        if name in fibermap:
            return int(fibermap.value(name, row))
    return 0


def _objtype(fibermap: Table, row: int) -> str:
    """Return TGT, SKY, BAD, NON or '' by OBJTYPE, else FA_TYPE, else the TARGETID's own sky bit."""
    if "objtype" in fibermap:
        return str(fibermap.value("objtype", row)).strip().upper()
    kind = int(fibermap.value("fa_type", row, default=0))
    target = int(fibermap.value("targetid", row))
    sky = kind & _FA_SKY if kind else target > 0 and target & _TARGETID_SKY
    return "SKY" if sky and not kind & _FA_TARGET else ""


def target_fields(fibermap: Table, row: int) -> dict[str, Any]:
    """Return the columns of a target that are kept, integers exact."""
    found = fibermap.values(_KEPT + _TARGET_COLUMNS, row)
    any_phase = 0
    for name in _DESI_TARGET:
        any_phase |= int(found.get(name, 0))
    found["fiberstatus"] = fiberstatus(fibermap, row)
    found["is_bgs"], found["is_mws"] = bool(any_phase & _BGS_ANY), bool(any_phase & _MWS_ANY)
    return found
