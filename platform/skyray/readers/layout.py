"""What a FITS file is, told by its HDUs, columns and keywords; its name decides nothing.

A reader of a survey looks at every FITS file of a folder (`fits_names`), apart from products known
to lie beside spectra (`Reader.companions`), and refuses by name what has not the survey's layout.
"""

from __future__ import annotations

from typing import NoReturn

from skyray.readers.fits_bytes import FitsFile, Hdu, table_layout
from skyray.readers.fits_header import BadHeader
from skyray.readers.unpacked import SUFFIXES

COMPRESSED = ("", ".fz", *SUFFIXES)
FITS_ENDINGS = tuple(  # the longer ones first
    f"{end}{packed}"
    for packed in (*SUFFIXES, "")
    for end in (".fits.fz", ".fit.fz", ".fts.fz", ".fits", ".fit", ".fts", ".fz")
)
_SHOWN = 12


def fits_names(*stems: str) -> tuple[str, ...]:
    """Return patterns of file names with these stems and any ending of a FITS file."""
    return tuple(f"{stem}{ending}" for stem in stems for ending in FITS_ENDINGS)


def is_fits_name(name: str) -> bool:
    """Return whether a file's name says that it is FITS, compressed or not, in any case."""
    return name.lower().endswith(FITS_ENDINGS)


def stem(name: str) -> str:
    """Return a file's name without its ending: ``spec-1-2.FITS.gz`` → ``spec-1-2``."""
    ending = next((end for end in FITS_ENDINGS if name.lower().endswith(end)), "")
    return name[: len(name) - len(ending)]


def refuse_layout(fits: FitsFile, expected: str) -> NoReturn:
    """Refuse a file (``layout_unknown``), telling what was expected and what its HDUs are."""
    fits.refuse("layout_unknown", f"expected {expected}, found {describe(fits)}")


def refuse_companion(fits: FitsFile, what: str) -> NoReturn:
    """Refuse a file (``companion_file``) that belongs to spectra but holds none."""
    fits.refuse("companion_file", f"expected spectra, found {what}: {describe(fits)}")


def describe(fits: FitsFile) -> str:
    """Return the HDUs of a file in words: ``PRIMARY (no data), COADD (table: flux, loglam, …)``."""
    parts = []
    for hdu in fits.hdus():
        if hdu.index == _SHOWN:
            return ", ".join([*parts, "…"])
        name = hdu.name or (f"#{hdu.index}" if hdu.index else "PRIMARY")
        parts.append(f"{name} ({_kind(hdu)})")
    return ", ".join(parts)


def columns_of(hdu: Hdu) -> frozenset[str]:
    """Return the lower-case names of a binary table's columns; empty for anything else."""
    if not is_table(hdu):
        return frozenset()
    try:
        return table_layout(hdu.header).names
    except BadHeader:
        return frozenset()


def is_table(hdu: Hdu) -> bool:
    return hdu.header.get("XTENSION") == "BINTABLE"


def image_shape(hdu: Hdu) -> tuple[int, ...]:
    """Return the shape of an image HDU in numpy's order; () for a table or without data."""
    axes = hdu.header.get("NAXIS", 0)
    if hdu.header.get("XTENSION", "IMAGE") != "IMAGE" or not axes:
        return ()
    return tuple(hdu.header.get(f"NAXIS{n}") for n in range(axes, 0, -1))


def _kind(hdu: Hdu) -> str:
    if is_table(hdu):
        names = sorted(columns_of(hdu))
        more = ", …" if len(names) > _SHOWN else ""
        return f"table of {', '.join(names[:_SHOWN])}{more}"
    shape = image_shape(hdu)
    return f"image {' × '.join(map(str, shape))}" if shape else "no data"
