"""Which HDU of a FITS file is the image, which band each plane is, and in what unit.

A file says so in many ways: EXTNAME, EXTTYPE (Rubin), DES_EXT, HDUCLAS2 (OGIP, ESO), PRODTYPE and
IMTYPE (NOIRLab, Legacy Surveys); BANDS and BANDn, FILTER; BUNIT and zero points. What it says is
followed, or refused where it contradicts the card; where it says nothing the card's word counts.
"""

from __future__ import annotations

import math
import posixpath
import re
from collections.abc import Sequence

from astropy import units as u

from skyray.readers.base import SurveyFile
from skyray.readers.fits_bytes import FitsFile, Hdu
from skyray.readers.fits_header import Header
from skyray.readers.fits_image import image_hdu
from skyray.readers.fits_keywords import Keywords
from skyray.records import InvalidRecord

_ROLE_KEYWORDS = ("EXTTYPE", "DES_EXT", "HDUCLAS2", "PRODTYPE", "IMTYPE", "EXTNAME")
_SCIENCE = {"SCI", "SCIENCE", "IMAGE", "IMG", "DATA", "FLUX", "SIGNAL", "COADD"}
_OTHER = {
    "WHT", "WGT", "WT", "WEIGHT", "WEIGHTS", "WTMAP", "WMAP", "IVAR", "INVVAR", "INVVARIANCE",
    "VAR", "VARIANCE", "ERR", "ERROR", "ERRORS", "SIGMA", "RMS", "NOISE", "UNCERT", "UNCERTAINTY",
    "STDDEV", "STD", "STAT", "MSK", "MASK", "MASKS", "MAXMASK", "DQ", "DQMASK", "FLAG", "FLAGS",
    "FLG", "QUALITY", "BPM", "BADPIX", "EXP", "EXPMAP", "EXPTIME", "EXPOSURE", "COVERAGE", "CTX",
    "CON", "NEXP", "NIMAGE", "PSF", "PSFSIZE", "BKG", "BACK", "BACKGROUND", "SKY", "MODEL",
    "RESID", "RESIDUAL", "DEPTH", "GALDEPTH", "PSFDEPTH", "SEG", "SEGM", "SEGMENTATION", "SEGMAP",
    "CHI", "SAMP", "TIME", "AREA", "FLAT", "DARK", "BIAS",
}  # fmt: skip
_BY_FPACK = "COMPRESSED_IMAGE"  # EXTNAME of an image that had none, whatever it is of
_DISTORTION = {"WCSDVARR", "D2IMARR"}
# Of a file's name only words that can hardly mean an object.
_OTHER_FILES = {
    "NOISE", "NOISEMAP", "WEIGHT", "WEIGHTS", "WHT", "WGT", "RMS", "IVAR", "INVVAR", "VARIANCE",
    "MASK", "PSF", "DQ", "BPM", "SEGMAP",
}  # fmt: skip
_SPECTRAL = ("WAVE", "AWAV", "FREQ", "ENER", "WAVN", "VRAD", "VOPT", "ZOPT", "VELO", "STOKES")
GENERIC_BANDS = {"light", "flux", "image", "data", "grey", "gray", "mono", "white", "intensity"}
_ZERO_POINTS = ("MAGZERO", "MAGZPT", "MAGZP", "ZEROPOINT", "ZEROPNT", "PHOTZP", "PHOTZPT", "ZP")


# which HDU -------------------------------------------------------------------------------------
def choose_image(fits: FitsFile, file: SurveyFile, wanted: str | int | None) -> tuple[Hdu, str]:
    """Return the HDU of the image and why it is that one.

    Parameters
    ----------
    wanted : str, int or None
        Name (``SCI``, ``SCI,2``) or number; None: the only image, of several the only one called
        science or the only one that is not called weight, variance, mask …

    Raises
    ------
    InvalidRecord
        ``hdu_missing``, ``image_ambiguous``, ``image_role`` (a weight map, by its name, where no
        HDU is asked for).
    """
    if wanted is not None:
        found = image_hdu(fits, wanted)
        same = [hdu for hdu in fits.hdus() if found.name and hdu.name == found.name]
        if isinstance(wanted, str) and "," not in wanted and len(same) > 1:
            fits.refuse(
                "image_ambiguous",
                f"expected one HDU {wanted!r}, found {len(same)}; say which, as {wanted},1",
            )
        return found, f"{found.name or found.index} (card)"
    images = [hdu for hdu in image_hdus(fits) if hdu.name not in _DISTORTION]
    roles = [_role(hdu.header) for hdu in images]
    primary = next(fits.hdus())
    if len(images) == 1 and not primary.size and not roles[0][0]:  # what it says is of its image
        roles = [_role(primary.header)]
    called = [n for n, (role, _) in enumerate(roles) if role == "science"]
    unknown = [n for n, (role, _) in enumerate(roles) if not role]
    chosen = called or unknown
    names = [hdu.name or f"#{hdu.index}" for hdu in images]
    if not images:
        fits.refuse("hdu_missing", "expected an image HDU that holds pixels, found none")
    if not chosen:
        fits.refuse("image_role", f"expected an image, found {[why for _, why in roles][:20]}")
    if len(chosen) > 1:
        fits.refuse(
            "image_ambiguous",
            f"expected one image, found {[names[n] for n in chosen][:20]}; name it by `hdu`, the "
            "bands' by `hdus`, or take each as an object by `hdu: each`",
        )
    role, why = roles[chosen[0]]
    if not role:
        _check_file_name(file)
    return images[chosen[0]], f"{names[chosen[0]]} ({why or 'the only image'})"


def image_hdus(fits: FitsFile) -> list[Hdu]:
    """Return the HDUs that hold pixels of at least two axes."""
    return [
        hdu
        for hdu in fits.hdus()
        if hdu.size and hdu.kind == "image" and len(hdu.shape) > 1 and math.prod(hdu.shape)
    ]


def _role(header: Header) -> tuple[str, str]:
    """Return ``science``, ``other`` or '' and the keyword that says so; one ``other`` decides."""
    found = "", ""
    for key in _ROLE_KEYWORDS:
        value = header.get(key)
        words = set(_words(value)) if isinstance(value, str) and value != _BY_FPACK else set()
        if words & _OTHER:
            return "other", f"{key} = {value}"
        if words & _SCIENCE and not found[0]:
            found = "science", f"{key} = {value}"
    return found


def _words(text: str) -> list[str]:
    return re.findall(r"[A-Z]+", text.upper())


def _check_file_name(file: SurveyFile) -> None:
    name = posixpath.basename(file.path)
    words = {*_words(name), "".join(_words(name)[:2])} & _OTHER_FILES
    if words:
        raise InvalidRecord(
            "image_role",
            f"expected an image, found by its name {name} a {sorted(words)[0].lower()} map; "
            "`files` says which to take",
        )


# which band ------------------------------------------------------------------------------------
BAND_LISTS = ("BANDS", "FILTERS", "BANDLIST", "FILTLIST")
_BAND = ("FILTER", "BAND", "FILTNAM", "FILTER1", "FILTER2", "FILTNAM1", "FILTNAM2", "FILTERID",
         "ESO INS FILT1 NAME", "ESO INS FILT2 NAME")  # fmt: skip


def band_order(header: Keywords, planes: int, bands: Sequence[str]) -> tuple[list[int] | None, str]:
    """Return which planes of a cube are the card's bands, and by what keyword.

    None where the file does not say, which leaves the order to the card.

    Raises
    ------
    InvalidRecord
        ``bands_wrong``: a band is missing or given twice; BANDS and BANDn differ; the third axis
        is one of wavelength, velocity or polarisation.
    """
    if planes == 1:
        return None, check_band(header, bands[0]) if len(bands) == 1 else "card"
    found = {key: value for key, value in _stated_bands(header, planes, bands).items() if value}
    if not found:
        axis = str(header.get("CTYPE3", "")).upper()
        if axis.startswith(_SPECTRAL):
            raise InvalidRecord("bands_wrong", f"expected planes of bands, found CTYPE3 = {axis}")
        return None, f"{', '.join(bands)} (card)"
    if len({tuple(value) for value in found.values()}) > 1:
        raise InvalidRecord("bands_wrong", f"expected one order of the bands, found {found}")
    key, stated = next(iter(found.items()))
    order = [_place(band, stated) for band in bands]
    if None in order or len(stated) != planes:
        raise InvalidRecord(
            "bands_wrong",
            f"{key}: expected bands {tuple(bands)}, found {tuple(stated)} of {planes} planes",
        )
    return order, f"{', '.join(stated)} ({key})"


def check_band(header: Keywords, band: str) -> str:
    """Return what the file says of a single plane's band; refuse another one (``bands_wrong``)."""
    keys = [key for key in _BAND if isinstance(header.get(key), str) and header.get(key).strip()]
    if not keys:
        return f"{band} (card)"
    stated = " ".join(header.get(key) for key in keys)
    if band.lower() not in GENERIC_BANDS and _place(band, [stated]) is None:
        told = ", ".join(f"{key} = {header.get(key)}" for key in keys)
        raise InvalidRecord("bands_wrong", f"expected band {band!r}, found {told}")
    return f"{stated} ({keys[0]})"


def _stated_bands(header: Keywords, planes: int, bands: Sequence[str]) -> dict[str, list[str]]:
    found = {}
    for key in (*BAND_LISTS, "BAND", "FILTER"):
        text = header.get(key)
        parts = re.findall(r"[^\s,;:/|+]+", text) if isinstance(text, str) else []
        letters = len(parts) == 1 and planes > 1
        parts = list(parts[0]) if letters else parts
        known = not letters or all(_place(band, parts) is not None for band in bands)
        told = known and len(parts) == planes > 1
        if parts and (key in BAND_LISTS or told):  # BAND may also be one word for all: VIS
            found[key] = parts
    for key in ("BAND", "FILTER", "PLANE", "CHAN"):
        first = 0 if header.states(f"{key}0") else 1
        names = [header.get(f"{key}{first + n}") for n in range(planes)]
        if planes > 1 and all(isinstance(name, str) and name for name in names):
            found[f"{key}n"] = names
    return found


def _place(band: str, stated: Sequence[str]) -> int | None:
    """Return which of the names is a band: itself, else one of its words in any case."""
    if band in stated:
        return stated.index(band) if list(stated).count(band) == 1 else None
    places = [
        n for n, name in enumerate(stated)
        if band.casefold() in (name.casefold(), *re.findall(r"[a-z0-9]+", name.casefold()))
    ]  # fmt: skip
    return places[0] if len(places) == 1 else None


# in what unit ----------------------------------------------------------------------------------
def flux_factor(
    header: Keywords, unit: str | None, magnitude: float | None
) -> tuple[float, dict[str, str]]:
    """Return by what to multiply pixels so that they are as the card says; and what was decided.

    Parameters
    ----------
    unit : str, optional
        Of the pixels; BUNIT is converted to it.
    magnitude : float, optional
        Of one unit of flux; pixels are scaled from the zero point of their file.

    Raises
    ------
    InvalidRecord
        ``unit_unknown``, ``unit_wrong`` (another kind of quantity), where the card wants a unit;
        ``zero_point_wrong`` (two keywords differ), ``zero_point_missing``.
    """
    factor, told_unit = _unit_factor(header, unit)
    stated, told_zero = _zero_point(header)
    if magnitude is not None:
        if stated is None:
            raise InvalidRecord(
                "zero_point_missing",
                f"expected a zero point by one of {', '.join(_ZERO_POINTS)}, found none",
            )
        factor *= 10 ** (0.4 * (magnitude - stated))
        told_zero = f"{magnitude:g} mag (from {told_zero})"
    return factor, {"unit": told_unit, "zero_point": told_zero}


def _unit_factor(header: Keywords, wanted: str | None) -> tuple[float, str]:
    stated = header.get("BUNIT")
    if not isinstance(stated, str) or not stated.strip():
        return 1.0, f"{wanted} (card)" if wanted else "unknown"
    if wanted is None:
        return 1.0, f"{stated} (BUNIT)"
    try:
        return float(_unit(stated).to(_unit(wanted))), f"{wanted} (from {stated}, BUNIT)"
    except u.UnitConversionError:
        raise InvalidRecord("unit_wrong", f"BUNIT: expected {wanted}, found {stated}") from None
    except (ValueError, TypeError) as error:
        raise InvalidRecord("unit_unknown", f"BUNIT {stated!r}: {error}"[:300]) from None


def _unit(text: str) -> u.UnitBase:
    words = re.sub(r"(?i)maggies\b", "maggy", text.strip())
    if re.fullmatch(r"(?i)(counts?|electrons?|e-|adu)(/s(ec)?)?", words):  # ELECTRONS/S: seconds
        words = words.lower().replace("sec", "s")
    return u.Unit(re.sub(r"(?i)\b(?:(counts)|(electrons)|e-)(?!\w)", _singular, words))


def _singular(found: re.Match) -> str:
    return "count" if found[1] else "electron"


def _zero_point(header: Keywords) -> tuple[float | None, str]:
    found = {key: header.number(key) for key in _ZERO_POINTS if math.isfinite(header.number(key))}
    if not found:
        return None, "unknown"
    if max(found.values()) - min(found.values()) > 1e-4:
        raise InvalidRecord("zero_point_wrong", f"expected one zero point, found {found}")
    key, value = next(iter(found.items()))
    return value, f"{value:g} mag ({key})"
