"""Makers of damaged SDSS spec files: what is wrong with each, and the reason it must be given.

``DAMAGED[name] = (function(bytes of a good file) → bytes, expected reason)``. The files that can
still be opened are damaged through astropy, the others byte by byte.
"""

from __future__ import annotations

import gzip
import io
import zipfile
from collections.abc import Callable

import numpy as np
from astropy.io import fits

Damage = Callable[[bytes], bytes]


def spec_file(catalogue: str | None = "SPECOBJ", extra_hdus: int = 0, size: int = 500) -> bytes:
    """A small spec file as the survey writes it, by astropy."""
    rng = np.random.default_rng(3)
    loglam = (3.58 + 1e-4 * np.arange(size)).astype(np.float32)
    columns = [
        fits.Column("flux", "E", array=rng.normal(5, 1, size)),
        fits.Column("loglam", "E", array=loglam),
        fits.Column("ivar", "E", array=np.full(size, 2.0)),
        fits.Column("and_mask", "J", array=np.zeros(size, dtype=np.int32)),
    ]
    primary = fits.PrimaryHDU()
    primary.header.update(PLUG_RA=10.5, PLUG_DEC=-1.25, PLATEID=266, MJD=51602, FIBERID=7)
    hdus = [primary, fits.BinTableHDU.from_columns(columns, name="COADD")]
    if catalogue is not None:
        row = [
            fits.Column("CLASS", "6A", array=["GALAXY"]),
            fits.Column("SUBCLASS", "21A", array=["AGN"]),
            fits.Column("Z", "E", array=[0.125]),
            fits.Column("Z_ERR", "E", array=[1e-5]),
            fits.Column("ZWARNING", "J", array=[4]),
        ]
        hdus.append(fits.BinTableHDU.from_columns(row, name=catalogue or None))
    hdus += [fits.ImageHDU(np.zeros((50, 50)), name=f"B1-{n}") for n in range(extra_hdus)]
    stream = io.BytesIO()
    fits.HDUList(hdus).writeto(stream)
    return stream.getvalue()


def _edit(change: Callable[[fits.HDUList], None]) -> Damage:
    """Return a damage that opens the file, changes its HDUs and writes them again."""

    def damage(good: bytes) -> bytes:
        with fits.open(io.BytesIO(good), lazy_load_hdus=False) as hdus:
            change(hdus)
            stream = io.BytesIO()
            hdus.writeto(stream, output_verify="ignore")
        return stream.getvalue()

    return damage


def _set_column(name: str, where: slice | int, value) -> Damage:
    def change(hdus: fits.HDUList) -> None:
        hdus[1].data[name][where] = value

    return _edit(change)


def _with_columns(change: Callable[[list[fits.Column]], list[fits.Column]]) -> Damage:
    def rebuild(hdus: fits.HDUList) -> None:
        data = hdus[1].data
        found = [fits.Column(c.name, c.format, array=data[c.name]) for c in hdus[1].columns]
        columns = change(found)
        hdus[1] = fits.BinTableHDU.from_columns(columns, name="COADD")

    return _edit(rebuild)


def _text_flux(columns: list[fits.Column]) -> list[fits.Column]:
    rows = len(columns[0].array)
    text = fits.Column("flux", "8A", array=np.full(rows, "5.0"))
    return [text if c.name.lower() == "flux" else c for c in columns]


def _vector_flux(columns: list[fits.Column]) -> list[fits.Column]:
    rows = len(columns[0].array)
    vector = fits.Column("flux", "3E", array=np.ones((rows, 3)))
    return [vector if c.name.lower() == "flux" else c for c in columns]


def _as_zip(good: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("spec.fits", good)
    return stream.getvalue()


def _as_image(hdus: fits.HDUList) -> None:
    hdus[1] = fits.ImageHDU(np.array(hdus[1].data["flux"]), name="COADD")


def _reverse(hdus: fits.HDUList) -> None:
    hdus[1].data["loglam"] = hdus[1].data["loglam"][::-1].copy()


def _swap(hdus: fits.HDUList) -> None:
    hdus[1].data["loglam"][[100, 200]] = hdus[1].data["loglam"][[200, 100]]


def _in_angstrom(hdus: fits.HDUList) -> None:
    hdus[1].data["loglam"] = 10.0 ** hdus[1].data["loglam"]


def _no_redshift(hdus: fits.HDUList) -> None:
    hdus[2].data["Z"] = np.nan


def _no_rows(hdus: fits.HDUList) -> None:
    hdus[1].data = hdus[1].data[:0]


def _only_primary(hdus: fits.HDUList) -> None:
    del hdus[1:]


def _cut_header(good: bytes) -> bytes:
    return good[: good.find(b"XTENSION") + 400]


def _cut_data(good: bytes) -> bytes:
    second = good.find(b"XTENSION", good.find(b"XTENSION") + 1)
    return good[: second - 2880]


def _garble_header(good: bytes) -> bytes:
    at = good.find(b"BITPIX", good.find(b"XTENSION"))
    return good[: at + 10] + b"        many        " + good[at + 30 :]


HTML = b"<!DOCTYPE html>\n<html><head><title>503 Service Unavailable</title></head></html>\n"
EVERY = slice(None)

DAMAGED: dict[str, tuple[Damage, str]] = {
    "empty_file": (lambda good: b"", "file_empty"),
    "zip_instead_of_fits": (_as_zip, "file_is_zip"),
    "html_error_page": (lambda good: HTML, "file_is_html"),
    "text_instead_of_fits": (lambda good: b"wavelength,flux\n3800,1.0\n" * 40, "not_fits"),
    "gzip_cut": (lambda good: gzip.compress(good)[:-2000], "gzip_truncated"),
    "header_cut": (_cut_header, "header_truncated"),
    "data_cut": (_cut_data, "data_truncated"),
    "header_garbled": (_garble_header, "header_invalid"),
    "coadd_missing": (_edit(_only_primary), "hdu_missing"),
    "coadd_is_an_image": (_edit(_as_image), "hdu_wrong_type"),
    "flux_column_missing": (
        _with_columns(lambda columns: [c for c in columns if c.name.lower() != "flux"]),
        "column_missing",
    ),
    "flux_is_text": (_with_columns(_text_flux), "column_type"),
    "flux_is_a_vector": (_with_columns(_vector_flux), "column_shape"),
    "no_rows": (_edit(_no_rows), "table_empty"),
    "flux_nan": (_set_column("flux", slice(50, 60), np.nan), "flux_not_finite"),
    "flux_all_nan": (_set_column("flux", EVERY, np.nan), "flux_all_nan"),
    "flux_infinite": (_set_column("flux", 77, np.inf), "flux_infinite"),
    "flux_all_zero": (_set_column("flux", EVERY, 0.0), "flux_all_zero"),
    "ivar_all_zero": (_set_column("ivar", EVERY, 0.0), "ivar_empty"),
    "ivar_negative": (_set_column("ivar", slice(10, 20), -1.0), "ivar_negative"),
    "ivar_nan": (_set_column("ivar", 5, np.nan), "ivar_not_finite"),
    "all_pixels_masked": (_set_column("and_mask", EVERY, 1 << 24), "too_few_good_pixels"),
    "wavelengths_descending": (_edit(_reverse), "wavelength_decreasing"),
    "wavelengths_swapped": (_edit(_swap), "wavelength_not_increasing"),
    "wavelength_nan": (_set_column("loglam", 30, np.nan), "wavelength_not_finite"),
    "wavelength_not_in_dex": (_edit(_in_angstrom), "wavelength_out_of_range"),
    "redshift_nan": (_edit(_no_redshift), "redshift_not_finite"),
}
