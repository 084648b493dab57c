"""One image of a FITS file, whatever it is packed in; and FITS files for astropy, within bounds."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from contextlib import contextmanager

import astropy.io.fits
import numpy as np

from skyray.readers.base import SurveyFile
from skyray.readers.fits_bytes import FitsFile, Hdu
from skyray.readers.fits_header import Header
from skyray.readers.fits_tiles import image_header


def fits_image(
    file: SurveyFile, wanted: str | int | None = None, most_pixels: int | None = None
) -> tuple[np.ndarray, Header]:
    """Return an image and its header, as they were before compression.

    Parameters
    ----------
    wanted : str, int or None
        Name (``SCI`` or ``SCI,2``) or number of the HDU; None: the first image that holds pixels.
        Number 0 also finds a primary array that fpack moved to HDU 1.
    most_pixels : int, optional
        Limit, checked before pixels are read.

    Returns
    -------
    ndarray, Header
        Pixels in the file's shape and unit: scaled, and as floats with NaN where integers are
        BLANK. Keywords, of the compressed image too; ``Header.astropy()`` for a WCS.

    Raises
    ------
    InvalidRecord
        ``hdu_missing``, ``image_too_large``, or what `FitsFile` and `Hdu.image` refuse.
    """
    with FitsFile(file) as fits:
        hdu = image_hdu(fits, wanted)
        if most_pixels is not None and math.prod(hdu.shape) > most_pixels:
            hdu.refuse(
                "image_too_large", f"expected at most {most_pixels:,} pixels, found {hdu.shape}"
            )
        return hdu.image(), image_header(hdu)


def image_hdu(fits: FitsFile, wanted: str | int | None = None) -> Hdu:
    """Return the HDU of an image, chosen as in `fits_image`.

    Raises
    ------
    InvalidRecord
        ``hdu_missing``.
    """
    if wanted is not None:
        hdu = fits.hdu(wanted)
        if wanted == 0 and not hdu.size:
            moved = fits.find(at=1) or next((h for h in fits.hdus() if h.index == 1), None)
            if moved is not None and moved.header.get("ZSIMPLE") is True:
                return moved
        return hdu
    for hdu in fits.hdus():
        if hdu.size and hdu.kind == "image" and math.prod(hdu.shape):
            return hdu
    fits.refuse("hdu_missing", "expected an image HDU that holds pixels, found none")


def check_headers(file: SurveyFile) -> None:
    """Read every header of a file that astropy is to open: it follows whatever they say.

    Raises
    ------
    InvalidRecord
        What `FitsFile` refuses.
    """
    with FitsFile(file) as fits:
        _check_headers(fits)


def _check_headers(fits: FitsFile) -> None:
    for _ in fits.hdus():
        pass


@contextmanager
def astropy_file(file: SurveyFile) -> Iterator[astropy.io.fits.HDUList]:
    """Open a file with astropy, unpacked and its headers checked: for what only astropy reads.

    Raises
    ------
    InvalidRecord
        What `FitsFile` refuses.
    """
    with FitsFile(file) as fits:
        _check_headers(fits)
        content = bytes(fits.read(0, fits.size))
    with astropy.io.fits.open(io.BytesIO(content)) as hdus:
        yield hdus
