"""DESI co-additions and redrock files made for tests, and their reading."""

from __future__ import annotations

import gzip
import io
from pathlib import Path

import numpy as np
from astropy.io import fits
from pyarrow import fs

from skyray.readers.base import SurveyFile, make_reader

HEALPIX = "coadd-special-dark-27247.fits"


TILE = "coadd-5-169-thru20210419.fits"


ARM_PIXELS = {"B": (3600.0, 2751), "R": (5760.0, 2326), "Z": (7520.0, 2881)}


def read(path: Path) -> list:
    return list(make_reader("desi_coadd").read(SurveyFile(fs.LocalFileSystem(), str(path))))


def coadd_file(rows: int = 3, masks: bool = True) -> fits.HDUList:
    rng = np.random.default_rng(8)
    columns = [
        fits.Column("TARGETID", "K", array=2**55 + np.arange(rows)),
        fits.Column("COADD_FIBERSTATUS", "J", array=np.zeros(rows)),
        fits.Column("TARGET_RA", "D", array=10.0 + np.arange(rows)),
        fits.Column("TARGET_DEC", "D", array=np.full(rows, -5.0)),
        fits.Column("OBJTYPE", "3A", array=["TGT"] * rows),
        fits.Column("SV3_DESI_TARGET", "K", array=np.resize([1 << 60, 1 << 61, 4], rows)),
        fits.Column("DESI_TARGET", "K", array=np.zeros(rows)),
    ]
    hdus = [fits.PrimaryHDU(), fits.BinTableHDU.from_columns(columns, name="FIBERMAP")]
    hdus[0].header["SURVEY"] = "sv3"
    for arm, (start, size) in ARM_PIXELS.items():
        hdus.append(fits.ImageHDU(start + 0.8 * np.arange(size), name=f"{arm}_WAVELENGTH"))
        flux = rng.normal(3, 1, (rows, size)).astype(np.float32)
        ivar = rng.uniform(0.5, 2, (rows, size)).astype(np.float32)
        hdus += [fits.ImageHDU(flux, name=f"{arm}_FLUX"), fits.ImageHDU(ivar, name=f"{arm}_IVAR")]
        if masks:
            mask = (rng.random((rows, size)) < 0.02).astype(np.uint32)
            hdus.append(fits.ImageHDU(mask, name=f"{arm}_MASK"))
    return fits.HDUList(hdus)


def redrock_file(targets: list[int]) -> fits.HDUList:
    rows = len(targets)
    columns = [
        fits.Column("TARGETID", "K", array=targets),
        fits.Column("Z", "D", array=0.1 + 0.1 * np.arange(rows)),
        fits.Column("ZERR", "D", array=np.full(rows, 1e-4)),
        fits.Column("ZWARN", "K", array=np.zeros(rows)),
        fits.Column("SPECTYPE", "6A", array=["GALAXY"] * rows),
        fits.Column("SUBTYPE", "20A", array=[""] * rows),
        fits.Column("DELTACHI2", "D", array=np.full(rows, 55.0)),
    ]
    table = fits.BinTableHDU.from_columns(columns, name="REDSHIFTS")
    return fits.HDUList([fits.PrimaryHDU(), table])


def write_any(hdus: fits.HDUList, path: Path) -> None:
    stream = io.BytesIO()
    hdus.writeto(stream)
    body = stream.getvalue()
    path.write_bytes(gzip.compress(body) if path.suffix.lower() == ".gz" else body)
