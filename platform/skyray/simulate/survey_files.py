"""Write mock surveys in the survey's own file format, as the readers expect real ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits

from skyray.cards import Card
from skyray.config import ConfigError
from skyray.readers.desi import DESI_GRID
from skyray.records import Record, Spectrum
from skyray.simulate.alert_files import write_ztf_packets
from skyray.simulate.instruments import instrument

_FULLREJECT = 1 << 18  # SDSS mask bit: rejected in every exposure
_DESI_ARMS = {"B": (3600.0, 5800.0), "R": (5760.0, 7620.0), "Z": (7520.0, 9824.0)}
_DESI_BADPIX = 1 << 1
_TARGETS_PER_FILE = 500
_FLUX_UNIT = "10**(-17)erg.cm**(-2).s**(-1).angstrom**(-1)"
_QMOST_UNITS = {"WAVE": "angstrom", "FLUX": _FLUX_UNIT, "ERR_FLUX": _FLUX_UNIT}
_FITS_BLOCK = 2880


def write_survey_files(card: Card, records: Sequence[Record], folder: Path) -> list[Path]:
    """Write mock records as the files of the card's survey and return their paths.

    SDSS: one ``spec-PLATE-MJD-FIBER.fits`` a spectrum. DESI: ``coadd-…fits`` and ``redrock-…fits``
    for every 500 targets. 4MOST: one ``qmost_OBJECT.fits`` a spectrum. ZTF: one Avro packet an
    alert.

    Raises
    ------
    ConfigError
        If the format of the card's reader cannot be written.
    """
    writers: dict[str, Callable[[Sequence[Any], Path], list[Path]]] = {
        "sdss_spec": _write_sdss,
        "desi_coadd": _write_desi,
        "fourmost": _write_fourmost,
        "ztf": write_ztf_packets,
    }
    if card.reader not in writers:
        raise ConfigError(
            f"card {card.name}: cannot write files of reader {card.reader!r}; "
            f"known: {sorted(writers)}"
        )
    folder.mkdir(parents=True, exist_ok=True)
    return writers[card.reader](records, folder)


def _write_sdss(spectra: Sequence[Spectrum], folder: Path) -> list[Path]:
    return [_write_spec(spectrum, folder) for spectrum in spectra]


def _write_spec(spectrum: Spectrum, folder: Path) -> Path:
    plate, mjd, fiber = (int(spectrum.extra[key]) for key in ("plate", "mjd", "fiberid"))
    primary = {"TELESCOP": "SDSS 2.5-M", "PLATEID": plate, "MJD": mjd, "FIBERID": fiber,
               "PLUG_RA": spectrum.ra, "PLUG_DEC": spectrum.dec}  # fmt: skip
    row = _spec_row(spectrum, plate, mjd, fiber)
    path = folder / f"spec-{plate:04d}-{mjd:05d}-{fiber:04d}.fits"
    tables = {"COADD": _spec_pixels(spectrum), "SPECOBJ": row}
    path.write_bytes(_fits_bytes(primary, tables, {}))
    return path


def _fits_bytes(
    primary: dict[str, object], tables: dict[str, np.ndarray], units: dict[str, str]
) -> bytes:
    """Return a FITS file of binary tables.

    Astropy's own writer spends 15 ms on the headers of a file; tables of one layout share theirs.
    """
    header = fits.PrimaryHDU().header
    header["EXTEND"] = True
    header.update(primary)
    parts = [header.tostring().encode()]
    for name, table in tables.items():
        data = table.tobytes()
        parts += [_table_header(name, table.dtype, len(table), tuple(units.items())), data]
        parts.append(b"\0" * (-len(data) % _FITS_BLOCK))
    return b"".join(parts)


@lru_cache(maxsize=256)
def _table_header(name: str, layout: np.dtype, rows: int, units: tuple) -> bytes:
    hdu = fits.BinTableHDU(np.zeros(rows, dtype=layout), name=name)
    for column, unit in units:
        hdu.header[f"TUNIT{hdu.columns.names.index(column) + 1}"] = unit
    return hdu.header.tostring().encode()


def _spec_pixels(spectrum: Spectrum) -> np.ndarray:
    """Return the COADD table; its model column is a running mean, not a fit."""
    size = len(spectrum.wavelength)
    table = np.zeros(size, dtype=[("flux", ">f4"), ("loglam", ">f4"), ("ivar", ">f4"),
                                  ("and_mask", ">i4"), ("or_mask", ">i4"), ("wdisp", ">f4"),
                                  ("sky", ">f4"), ("model", ">f4")])  # fmt: skip
    pixels = instrument("sdss").pixels
    first = int(np.searchsorted(pixels.wavelength, spectrum.wavelength[0] - 0.1))
    table["flux"], table["ivar"] = spectrum.flux, spectrum.ivar
    table["loglam"] = np.log10(spectrum.wavelength)
    bits = np.where(spectrum.mask, _FULLREJECT, 0)
    table["and_mask"], table["or_mask"] = bits, bits
    table["wdisp"] = instrument("sdss").lsf_kms / 69.0
    table["sky"] = pixels.sky[first : first + size]
    table["model"] = _running_mean(spectrum.flux, spectrum.ivar)
    return table


def _running_mean(flux: np.ndarray, ivar: np.ndarray, half_width: int = 10) -> np.ndarray:
    kernel = np.ones(2 * half_width + 1)
    weight = np.convolve(ivar.astype(np.float64), kernel, mode="same")
    signal = np.convolve(ivar.astype(np.float64) * flux, kernel, mode="same")
    return np.divide(signal, weight, out=np.zeros_like(signal), where=weight > 0)


def _spec_row(spectrum: Spectrum, plate: int, mjd: int, fiber: int) -> np.ndarray:
    columns = [("SURVEY", "S6", "mock"), ("RUN2D", "S8", str(spectrum.extra.get("run2d", "mock"))),
               ("PLATE", ">i4", plate), ("MJD", ">i4", mjd), ("FIBERID", ">i4", fiber),
               ("PLUG_RA", ">f8", spectrum.ra), ("PLUG_DEC", ">f8", spectrum.dec),
               ("CLASS", "S6", spectrum.spectype), ("SUBCLASS", "S21", spectrum.subtype),
               ("Z", ">f4", spectrum.redshift), ("Z_ERR", ">f4", spectrum.redshift_err),
               ("ZWARNING", ">i4", spectrum.zwarning),
               ("SN_MEDIAN_ALL", ">f4", spectrum.snr)]  # fmt: skip
    row = np.zeros(1, dtype=[(name, kind) for name, kind, _ in columns])
    for name, _, value in columns:
        row[name] = value
    return row


def _write_desi(spectra: Sequence[Spectrum], folder: Path) -> list[Path]:
    paths = []
    for start in range(0, len(spectra), _TARGETS_PER_FILE):
        block = spectra[start : start + _TARGETS_PER_FILE]
        name = f"mock-dark-{block[0].object_id}.fits"
        _coadd_file(block).writeto(folder / f"coadd-{name}", overwrite=True)
        _redrock_file(block).writeto(folder / f"redrock-{name}", overwrite=True)
        paths += [folder / f"coadd-{name}", folder / f"redrock-{name}"]
    return paths


def _coadd_file(spectra: Sequence[Spectrum]) -> fits.HDUList:
    primary = fits.PrimaryHDU()
    primary.header["SURVEY"] = "mock"
    fibermap = fits.BinTableHDU(_fibermap(spectra), name="FIBERMAP")
    return fits.HDUList([primary, fibermap, *_arms(spectra)])


def _fibermap(spectra: Sequence[Spectrum]) -> np.ndarray:
    names = [("TARGETID", "i8"), ("COADD_FIBERSTATUS", "i4"), ("TARGET_RA", "f8"),
             ("TARGET_DEC", "f8"), ("OBJTYPE", "S3"), ("DESI_TARGET", "i8")]  # fmt: skip
    table = np.zeros(len(spectra), dtype=names)
    for row, s in zip(table, spectra, strict=True):
        row["TARGETID"], row["TARGET_RA"], row["TARGET_DEC"] = int(s.object_id), s.ra, s.dec
        row["COADD_FIBERSTATUS"] = s.extra.get("fiberstatus", 0)
        row["OBJTYPE"] = s.extra.get("objtype", "TGT")
        row["DESI_TARGET"] = s.extra.get("desi_target", 0)
    return table


def _arms(spectra: Sequence[Spectrum]) -> list[fits.ImageHDU]:
    """Return the images of the arms.

    Where two arms see a pixel each has half the weight, and noise of its own about the mean.
    """
    flux, ivar = (np.stack([getattr(s, name) for s in spectra]) for name in ("flux", "ivar"))
    bits = np.where(np.stack([s.mask for s in spectra]), _DESI_BADPIX, 0).astype(np.int32)
    shared = _shared_pixels()
    share = np.where(shared, 0.5, 1.0).astype(np.float32)
    weighed = shared & (ivar > 0)
    apart = np.zeros_like(flux)
    rng = np.random.default_rng(int(spectra[0].object_id))
    apart[weighed] = rng.standard_normal(int(weighed.sum())) / np.sqrt(ivar[weighed])
    hdus = []
    for arm, (low, high) in _DESI_ARMS.items():
        first, last = (round((edge - DESI_GRID.start) / DESI_GRID.step) for edge in (low, high))
        part = slice(first, last + 1)
        middle = (first + last) / 2
        sign = np.where(np.arange(first, last + 1) < middle, -1, 1).astype(np.float32)
        images = {"WAVELENGTH": DESI_GRID.wavelength()[part],
                  "FLUX": flux[:, part] + sign * apart[:, part],
                  "IVAR": share[part] * ivar[:, part], "MASK": bits[:, part]}  # fmt: skip
        hdus += [fits.ImageHDU(image, name=f"{arm}_{kind}") for kind, image in images.items()]
    return hdus


def _shared_pixels() -> np.ndarray:
    """Return which pixels of DESI's grid two arms see, bool [7781]."""
    wavelength = DESI_GRID.wavelength()
    seen = sum(
        ((wavelength > low - 0.1) & (wavelength < high + 0.1)).astype(int)
        for low, high in _DESI_ARMS.values()
    )
    return np.asarray(seen) > 1


def _redrock_file(spectra: Sequence[Spectrum]) -> fits.HDUList:
    names = [("TARGETID", "i8"), ("Z", "f8"), ("ZERR", "f8"), ("ZWARN", "i8"),
             ("SPECTYPE", "S6"), ("SUBTYPE", "S20"), ("DELTACHI2", "f8")]  # fmt: skip
    table = np.zeros(len(spectra), dtype=names)
    for row, s in zip(table, spectra, strict=True):
        row["TARGETID"], row["Z"], row["ZERR"] = int(s.object_id), s.redshift, s.redshift_err
        row["ZWARN"], row["SPECTYPE"], row["SUBTYPE"] = s.zwarning, s.spectype, s.subtype
        row["DELTACHI2"] = s.extra.get("deltachi2", 0.0)
    return fits.HDUList([fits.PrimaryHDU(), fits.BinTableHDU(table, name="REDSHIFTS")])


def _write_fourmost(spectra: Sequence[Spectrum], folder: Path) -> list[Path]:
    return [_write_qmost(spectrum, folder) for spectrum in spectra]


def _write_qmost(spectrum: Spectrum, folder: Path) -> Path:
    primary = {"OBJECT": spectrum.object_id, "RA": spectrum.ra, "DEC": spectrum.dec,
               "SNR": spectrum.snr, "SPECSYS": "BARYCENT", "TRG_CLS": spectrum.spectype,
               "TRG_Z": spectrum.redshift}  # fmt: skip
    size = len(spectrum.wavelength)
    table = np.zeros(1, dtype=[("WAVE", ">f8", size), ("FLUX", ">f4", size),
                               ("ERR_FLUX", ">f4", size), ("QUAL", ">i4", size)])  # fmt: skip
    error = np.zeros_like(spectrum.ivar)
    np.divide(1.0, np.sqrt(spectrum.ivar), out=error, where=spectrum.ivar > 0)
    table["WAVE"], table["FLUX"] = spectrum.wavelength, spectrum.flux
    table["ERR_FLUX"], table["QUAL"] = error, spectrum.mask
    path = folder / f"qmost_{spectrum.object_id}.fits"
    path.write_bytes(_fits_bytes(primary, {"SPECTRUM": table}, _QMOST_UNITS))
    return path
