"""Image stamps of alert packets: FITS bytes, gzipped or plain, inflated within bounds.

Rubin's stamps are CCDData: the image, ``UNCERT`` (variance), ``MASK`` in some versions, and
``PSFIMAGE`` of another size. Their WCS has no CTYPE: ``CRVAL`` is the source's position and ``PC``
the local, linear map from pixels to degrees on the sky (lsst.ap.association, packageAlerts).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from skyray.readers.base import SurveyFile
from skyray.readers.fits_bytes import FitsFile
from skyray.readers.unpacked import unpack
from skyray.records import InvalidRecord

MAX_STAMP_BYTES = 4 << 20
_GZIP = b"\x1f\x8b"
_MASKS = ("MASK",)
_NOT_IMAGES = ("UNCERT", "VARIANCE", "VAR", "PSFIMAGE", "PSF", *_MASKS)
_PLANE = re.compile(rb"MP_([A-Z_]{1,40}) *= *([0-9]{1,3})")  # the longer ones in HIERARCH cards
_UNUSABLE = ("BAD", "NO_DATA", "SAT", "CR")  # of LSST's mask planes: no light was measured there


@dataclass(frozen=True)
class _Memory:
    """The one method of a filesystem that `FitsFile` asks for."""

    content: bytes

    def open_input_file(self, path: str) -> pa.NativeFile:
        return pa.BufferReader(self.content)


@dataclass(frozen=True)
class Stamp:
    """An image and what its header says.

    Attributes
    ----------
    image : float32 [height, width]
        NaN where unmeasured or masked.
    unit : str
        ``BUNIT``, '' where there is none.
    pixel_scale_arcsec : float
        From the WCS; NaN without one.
    place : (ra, dec, row, column) or None
        A position and the pixel it falls on, from 0.
    matrix : ((…, …), (…, …)) or None
        Degrees on the sky (east, north) for a pixel along a row and along a column.
    """

    image: np.ndarray
    unit: str = ""
    pixel_scale_arcsec: float = math.nan
    place: tuple[float, float, float, float] | None = None
    matrix: np.ndarray | None = None

    def pixel_of(self, ra: float, dec: float) -> tuple[float, float] | None:
        """Return (row, column) of a position in degrees; None without a WCS."""
        if self.place is None or not (math.isfinite(ra) and math.isfinite(dec)):
            return None
        ra0, dec0, row, column = self.place
        east = ((ra - ra0 + 180) % 360 - 180) * math.cos(math.radians(dec0))
        step = np.linalg.solve(self.matrix, [east, dec - dec0])
        return row + float(step[1]), column + float(step[0])


def read_stamp(content: Any, source: str) -> np.ndarray:
    """Return the image of a stamp, float32 [height, width]; raises as `open_stamp`."""
    return open_stamp(content, source).image


def open_stamp(content: Any, source: str) -> Stamp:
    """Return the image of a FITS stamp: the first of two axes that is no variance, mask or PSF.

    Raises
    ------
    InvalidRecord
        ``stamp_missing``, ``stamp_too_large`` (more than 4 MB, or inflating to that),
        ``stamp_gzip``, ``stamp_not_an_image``, ``stamp_mask_shape``, or what `FitsFile` refuses.
    """
    if not isinstance(content, bytes) or not content:
        found = "nothing" if not content else type(content).__name__
        raise InvalidRecord(
            "stamp_missing", f"expected the bytes of a stamp, found {found}", source
        )
    content = _inflated(content, source) if content.startswith(_GZIP) else content
    if len(content) > MAX_STAMP_BYTES:
        detail = f"expected at most {MAX_STAMP_BYTES >> 20} MB, found {len(content)} bytes"
        raise InvalidRecord("stamp_too_large", detail, source)
    with FitsFile(SurveyFile(_Memory(content), source)) as file:
        return _stamp_of(file, source)


def _stamp_of(file: FitsFile, source: str) -> Stamp:
    found = bad = None
    for hdu in file.hdus():
        if hdu.header.get("XTENSION", "IMAGE") != "IMAGE" or hdu.header.get("NAXIS") != 2:
            continue
        if hdu.name in _MASKS:
            bad = _masked(hdu)
        elif found is None and hdu.name not in _NOT_IMAGES:
            image = hdu.image().astype(np.float32)
            header = hdu.own_header()
            unit = str(header.get("BUNIT") or "").strip()
            found = Stamp(image, unit, *_wcs(header))
    if found is None:
        detail = "expected an image of two axes, found none"
        raise InvalidRecord("stamp_not_an_image", detail, source)
    if bad is None:
        return found
    if bad.shape != found.image.shape:
        detail = f"expected a mask of {found.image.shape}, found {bad.shape}"
        raise InvalidRecord("stamp_mask_shape", detail, source)
    found.image[bad] = np.nan
    return found


def _masked(hdu) -> np.ndarray:
    """Return where a mask says that nothing was measured: bool, or LSST's planes by their names."""
    mask = np.nan_to_num(hdu.image()).astype(np.int64)
    planes = {name.decode(): int(bit) for name, bit in _PLANE.findall(hdu.header.block)}
    if not planes:
        return mask != 0
    bits = {bit for name, bit in planes.items() if name in _UNUSABLE and bit < 63}
    return (mask & sum(1 << bit for bit in bits)) != 0


def _wcs(header) -> tuple[float, tuple[float, float, float, float] | None, np.ndarray | None]:
    """Return the pixel scale, the position of the reference pixel, and the local matrix."""

    def number(name: str, default: float) -> float:
        value = header.get(name)
        real = isinstance(value, int | float) and not isinstance(value, bool)
        return float(value) if real else default

    keys = [(f"CD{i}_{j}", f"PC{i}_{j}") for i in (1, 2) for j in (1, 2)]
    cd, pc = (np.array([number(pair[n], math.nan) for pair in keys]) for n in (0, 1))
    steps = np.array([number(f"CDELT{axis}", math.nan) for axis in (1, 2)])
    place = [number(f"{key}{axis}", math.nan) for key in ("CRVAL", "CRPIX") for axis in (1, 2)]
    if np.isfinite(cd).any():
        matrix = np.nan_to_num(cd).reshape(2, 2)
    elif np.isfinite(pc).any() or np.isfinite(steps).all():
        unit = np.where(np.isfinite(pc), pc, np.eye(2).ravel()).reshape(2, 2)
        matrix = np.where(np.isfinite(steps), steps, 1.0)[:, None] * unit
    else:
        return math.nan, None, None
    area = abs(float(np.linalg.det(matrix)))
    if not (math.isfinite(area) and area > 0) or not np.isfinite(place).all():
        return math.nan, None, None
    ra, dec, column, row = place
    return 3600.0 * math.sqrt(area), (ra, dec, row - 1.0, column - 1.0), matrix


def _inflated(content: bytes, source: str) -> bytes:
    try:
        return unpack(pa.BufferReader(content), "gzip", source, MAX_STAMP_BYTES)
    except InvalidRecord as error:
        large = error.reason == "unpacked_too_large"
        reason = "stamp_too_large" if large else "stamp_gzip"
        raise InvalidRecord(reason, error.detail, source) from None
