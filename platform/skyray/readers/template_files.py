"""Template files of the BOSS pipeline and of redrock → bases for the template fit.

- ``spEigenGal/QSO/Star/CVstar-MJD.fits`` (idlspec2d): rows on log10 λ = COEFF0 + COEFF1 · pixel,
  vacuum, rest frame; the rows of spEigenStar are single stars named by NAMEn: stars of one letter
  are brought to a basis of their own.
- ``rrtemplate-TYPE-SUBTYPE-vN.fits`` (redrock): header RRTYPE, RRSUBTYP, CRVAL1 + CDELT1 · pixel in
  log10 Å (or linear Å where LOGLAM is false), HDU REDSHIFTS. Quasars come without the forest's
  absorption.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
from astropy.io import fits

from skyray.models.template_bases import GALAXY, QSO, STAR, TemplateBasis, on_log_grid
from skyray.records import InvalidRecord

BLUE, RED = 3600.0, 10000.0  # Å; templates cover at least this much of the observed spectrum
_RANGE = {GALAXY: (-0.005, 1.7), QSO: (0.01, 7.0), STAR: (-0.002, 0.002)}
# Of `FitConfig.forest_scatter`: these templates were learned with the forest in sight, and their
# coefficients are free. (Chosen on half of the benchmark's real quasars.)
FOREST_SCATTER = 0.1
_STAR_VECTORS, _PIPELINE_QUASAR_VECTORS = 5, 4
_BOSS = re.compile(r"spEigen(Gal|QSO|Star|CVstar)", re.IGNORECASE)
_LETTER = re.compile(r"^(?:sd:?)?([OBAFGKML])", re.IGNORECASE)


def read_template_file(path: str | Path) -> list[TemplateBasis]:
    """Return the bases of one file.

    Raises
    ------
    InvalidRecord
        ``template_unknown`` if it is neither form, ``template_shape`` if its vectors are not [K, P]
        on a known wavelength axis.
    """
    source, boss = str(path), _BOSS.search(Path(path).name)
    with fits.open(path) as hdus:
        hdu = next((h for h in hdus if h.data is not None), hdus[0])
        header = hdu.header
        if boss:
            return _pipeline(boss[1].lower(), *_vectors(hdu, source), header)
        if "RRTYPE" in header:
            limits = np.asarray(hdus["REDSHIFTS"].data) if "REDSHIFTS" in hdus else None
            return [_redrock(*_vectors(hdu, source), header, limits)]
    raise InvalidRecord(
        "template_unknown", "expected spEigen….fits or a header with RRTYPE, found neither", source
    )


def _vectors(hdu, source: str) -> tuple[np.ndarray, np.ndarray]:
    header, data = hdu.header, hdu.data
    vectors = None if data is None or data.dtype.names else np.atleast_2d(data.astype(np.float64))
    start = header.get("COEFF0", header.get("CRVAL1"))
    step = header.get("COEFF1", header.get("CDELT1"))
    if vectors is None or vectors.ndim != 2 or start is None or not step:
        found = "a table" if vectors is None else f"shape {vectors.shape}, {start}, {step}"
        raise InvalidRecord(
            "template_shape",
            f"expected vectors [K, P] with COEFF0/COEFF1 or CRVAL1/CDELT1, found {found}", source,
        )  # fmt: skip
    axis = start + step * np.arange(vectors.shape[1])
    linear = not header.get("LOGLAM", start < 10.0)
    good = np.isfinite(vectors).all(axis=0)
    return (axis if linear else 10.0**axis)[good], vectors[:, good]


def _basis(spectype: str, subtype: str, wavelength, vectors, limits=None, **about) -> TemplateBasis:
    first, placed = on_log_grid(wavelength, vectors)
    low, high = _RANGE[spectype] if limits is None else limits
    if spectype != STAR:  # no further than the templates reach
        low = max(low, RED / wavelength[-1] - 1.0)
        high = min(high, BLUE / wavelength[0] - 1.0)
    free = np.full(len(placed), np.inf)
    return TemplateBasis(spectype, subtype, first, placed, free, (low, high), **about)


def _pipeline(kind: str, wavelength, vectors, header) -> list[TemplateBasis]:
    if kind == "gal":
        return [_basis(GALAXY, "", wavelength, vectors)]
    if kind == "qso":
        return [_basis(QSO, "", wavelength, vectors[:_PIPELINE_QUASAR_VECTORS])]
    if kind == "cvstar":
        return [_basis(STAR, "CV", wavelength, vectors)]
    groups: dict[str, list[int]] = {}
    for row in range(len(vectors)):
        name = str(header.get(f"NAME{row}", "")).strip()
        letter = _LETTER.match(name)
        kind = "WD" if "WD" in name else "carbon" if name.startswith("Carbon") else ""
        groups.setdefault(kind or (letter[1].upper() if letter else "other"), []).append(row)
    return [
        _basis(STAR, name, wavelength, _span(vectors[rows]))
        for name, rows in sorted(groups.items())
    ]


def _span(stars: np.ndarray) -> np.ndarray:
    """Return up to `_STAR_VECTORS` vectors that span stars of one kind best."""
    scaled = stars / np.sqrt(np.mean(stars**2, axis=1, keepdims=True))
    return np.linalg.svd(scaled, full_matrices=False)[2][:_STAR_VECTORS] * np.sqrt(stars.shape[1])


def _redrock(wavelength, vectors, header, redshifts) -> TemplateBasis:
    spectype = str(header["RRTYPE"]).strip().upper()
    if spectype not in _RANGE:
        raise InvalidRecord(
            "template_unknown", f"RRTYPE: expected {sorted(_RANGE)}, found {spectype!r}", ""
        )
    limits = None
    if redshifts is not None and len(redshifts):
        limits = float(redshifts.min()), float(redshifts.max())
    about = {"forest": True} if spectype == QSO else {}
    subtype = str(header.get("RRSUBTYP", "")).strip()
    return _basis(spectype, subtype, wavelength, vectors, limits, **about)
