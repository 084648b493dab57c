"""Bodies of requests for a spectrum, made for tests."""

from __future__ import annotations

import io

import numpy as np
import pyarrow as pa
import pytest
from astropy.io import fits
from serve.refusal import Refusal

from skyray.families.base import DataInfo
from skyray.records import Grid

JSON = "application/json"


ARROW = "application/vnd.apache.arrow.stream"


FITS = "application/fits"


PIXELS = 400


def about(grid: Grid, min_good_pixels: int) -> DataInfo:
    return DataInfo("card", "spectrum", (), {}, "", grid, min_good_pixels=min_good_pixels)


def refusal(read, *args, **kwargs) -> Refusal:
    with pytest.raises(Refusal) as caught:
        read(*args, **kwargs)
    return caught.value


def arrow_body(columns: dict, metadata: dict | None = None, file: bool = False) -> bytes:
    table = pa.table(columns).replace_schema_metadata(metadata)
    sink = pa.BufferOutputStream()
    make = pa.ipc.new_file if file else pa.ipc.new_stream
    with make(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def spec_file(pixels: int = PIXELS, class_hdu: bool = True) -> bytes:
    """A spec-PLATE-MJD-FIBER file as BOSS wrote them, with the columns readers use."""
    coadd = fits.BinTableHDU.from_columns(
        [
            fits.Column("flux", "E", array=np.linspace(1, 2, pixels)),
            fits.Column("loglam", "E", array=3.6 + 1e-4 * np.arange(pixels)),
            fits.Column("ivar", "E", array=np.full(pixels, 4.0)),
            fits.Column("and_mask", "J", array=np.zeros(pixels)),
        ],
        name="COADD",
    )
    row = fits.BinTableHDU.from_columns(
        [
            fits.Column("PLATE", "J", array=[266]),
            fits.Column("MJD", "J", array=[51602]),
            fits.Column("FIBERID", "J", array=[13]),
            fits.Column("CLASS", "6A", array=["GALAXY"]),
            fits.Column("SUBCLASS", "6A", array=[""]),
            fits.Column("Z", "E", array=[0.1]),
            fits.Column("Z_ERR", "E", array=[1e-4]),
            fits.Column("ZWARNING", "J", array=[0]),
            fits.Column("PLUG_RA", "D", array=[146.0]),
            fits.Column("PLUG_DEC", "D", array=[-0.5]),
        ],
        name="SPECOBJ",
    )
    stream = io.BytesIO()
    fits.HDUList([fits.PrimaryHDU(), coadd, row][: 3 if class_hdu else 2]).writeto(stream)
    return stream.getvalue()
