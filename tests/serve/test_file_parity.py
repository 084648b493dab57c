"""The same object sent in a request and read from a file is the same record, in every form."""

from __future__ import annotations

import base64
import bz2
import dataclasses
import gzip
import io
import json
import lzma

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy.io import fits
from PIL import Image
from pyarrow import fs
from serve.decode import decode
from tests.request_bodies import ARROW, FITS, JSON, refusal, spec_file

from skyray.cards import load_card
from skyray.readers.base import SurveyFile, make_reader
from skyray.records import Alert, Record

RNG = np.random.default_rng(7)
AXIS = 10 ** (3.6 + 1e-4 * np.arange(400))
NPY, NPZ = "application/x-npy", "application/x-npz"
_OF_PLACE = {"source", "survey"}  # where a record came from


def from_file(path, content: bytes, reader: str, options) -> Record:
    path.write_bytes(content)
    (found,) = make_reader(reader, options).read(SurveyFile(fs.LocalFileSystem(), str(path)))
    return found


def sent(card: str, kind: str, body: bytes, name: str = "") -> Record:
    (found,) = decode(kind, body, load_card(card), 10, 10_000_000, name)
    return found


def same(found: Record, expected: Record, but: set[str] = frozenset()) -> None:
    assert type(found) is type(expected), found
    for field in dataclasses.fields(expected):
        ours, theirs = getattr(found, field.name), getattr(expected, field.name)
        if field.name in _OF_PLACE | set(but):
            continue
        if field.name == "extra":  # the folder is of the file's place
            ours, theirs = ({k: v for k, v in one.items() if k[:6] != "folder"}
                            for one in (ours, theirs))  # fmt: skip
        np.testing.assert_equal(ours, theirs, err_msg=field.name)


# spectra
def spectrum_table(noise: str = "error", **metadata) -> pa.Table:
    columns = {"object_id": ["a"], "redshift": [0.5], "wavelength": [AXIS[::-1] / 10],
               "flux": [RNG.normal(5, 1, 400)], noise: [RNG.uniform(0.5, 1, 400)],
               "mask": [RNG.random(400) < 0.1]}  # fmt: skip
    table = pa.table(columns)
    fields = [f.with_metadata(metadata.get(f.name)) for f in table.schema]
    return table.cast(pa.schema(fields, metadata={"medium": "air"}))


UNITS = {
    "error": {"wavelength": {"unit": "nm"}, "flux": {"unit": "1e-16 erg/s/cm2/A"},
              "error": {"unit": "1e-17 erg/s/cm2/A"}},
    "ivar": {"wavelength": {"unit": "nm", "ucd": "em.wl;obs.air"}, "flux": {"unit": "mJy"},
             "ivar": {"unit": "mJy-2"}},
}  # fmt: skip


def table_options(noise: str, **options) -> dict:
    return {"wavelength": {"column": "wavelength"}, "flux": "flux", noise: noise, "mask": "mask",
            "fields": {"object_id": "object_id", "redshift": "redshift"}, **options}  # fmt: skip


@pytest.mark.parametrize("file", [False, True])
@pytest.mark.parametrize("noise", UNITS)
def test_arrow_as_parquet(tmp_path, noise, file):
    table, content = spectrum_table(noise, **UNITS[noise]), io.BytesIO()
    pq.write_table(table, content)
    options = table_options(noise, medium="air")
    expected = from_file(tmp_path / "x.parquet", content.getvalue(), "spectrum_table", options)
    assert expected.wavelength[0] == pytest.approx(3982, abs=1)
    found = sent("sdss_dr16", ARROW, arrow_of(table, file))
    same(found, expected)


def arrow_of(table: pa.Table, file: bool = False) -> bytes:
    sink = pa.BufferOutputStream()
    with (pa.ipc.new_file if file else pa.ipc.new_stream)(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [({"flux": {"unit": "adu"}}, "unit_unknown"), ({"wavelength": {"unit": "kg"}}, "unit_unknown"),
     ({"error": {"unit": "mJy"}}, "unit_conflict"),
     ({"redshift": {"unit": "km/s"}}, "unit_unknown"),
     ({"wavelength": {"ucd": "em.wl;obs.vacuum"}}, "medium_conflict")],
)  # fmt: skip
def test_units_of_arrow_that_cannot_be_honoured(card, metadata, reason):
    body = arrow_of(spectrum_table(**metadata))
    refused = refusal(decode, ARROW, body, card, 10, 10_000_000)
    assert (refused.status, refused.reason) == (400, reason)


def test_spectrum_json_as_csv_of_the_same_numbers(tmp_path):
    table = spectrum_table()
    row = {name: column[0].as_py() for name, column in zip(table.schema.names, table, strict=True)}
    row["wavelength"] = AXIS.tolist()
    names = ("wavelength", "flux", "error", "mask")
    rows = zip(*(row[name] for name in names), strict=True)
    lines = [",".join(names), *(",".join(map(repr, cells)) for cells in rows)]
    options = table_options("error", medium="air", layout="pixels", fields={})
    expected = from_file(tmp_path / "a.csv", "\n".join(lines).encode(), "spectrum_table", options)
    found = sent("sdss_dr16", JSON, json.dumps({**row, "medium": "air"}).encode())
    same(found, expected, {"redshift", "observation_id", "statements"})


@pytest.mark.parametrize("pack", [bytes, gzip.compress, bz2.compress, lzma.compress])
def test_spectrum_fits(tmp_path, card, pack):
    content = spec_file()
    expected = from_file(tmp_path / "s.fits", content, card.reader, card.reader_options)
    same(sent("sdss_dr16", FITS, pack(content), "s.fits"), expected)


# cutouts
def saved(save, *arrays, **named) -> bytes:
    content = io.BytesIO()
    save(content, *arrays, **named)
    return content.getvalue()


def picture(form: str) -> bytes:
    pixels = np.random.default_rng(1).integers(0, 255, (69, 69, 3), dtype=np.uint8)
    return saved(Image.fromarray(pixels).save, form)


def cube() -> bytes:
    """Keywords, band order, unit and an old equinox, as the card of the Legacy Surveys has them."""
    hdu = fits.PrimaryHDU(np.random.default_rng(2).normal(size=(3, 64, 64)).astype(np.float32))
    hdu.header.update({"BANDS": "zrg", "BUNIT": "nanomaggies", "RA": 30.0, "DEC": -40.0, "BTS": 1,
                       "RADESYS": "FK4", "EQUINOX": 1950.0})  # fmt: skip
    return saved(hdu.writeto)


LENS = np.random.default_rng(3).gamma(2, 1, (64, 64))


@pytest.mark.parametrize("name", ["J1234.5+0102", "spiral.7"])
@pytest.mark.parametrize(
    ("card", "kind", "ending", "content"),
    [("galaxies_gz1", "image/png", ".png", picture("PNG")),
     ("galaxies_gz1", "image/jpeg", ".jpg", picture("JPEG")),
     ("galaxies_gz1", "image/tiff", ".tiff", picture("TIFF")),
     ("legacy_survey_cutouts", FITS, ".fits", cube()),
     ("lenses_hst", NPY, ".npy", saved(np.save, LENS)),
     ("lenses_hst", NPZ, ".npz", saved(np.savez, first=LENS))],
)  # fmt: skip
def test_cutouts(tmp_path, card, kind, ending, content, name):
    about = load_card(card)
    reader = {"image/": "image_files"}.get(kind[:6], about.reader)
    options = {"bands": about.bands} if reader == "image_files" else about.reader_options
    expected = from_file(tmp_path / f"{name}{ending}", content, reader, options)
    same(sent(card, kind, content, f"{name}{ending}"), expected)
    same(sent(card, kind, gzip.compress(content), f"{name}{ending}.gz"), expected)
    if kind == FITS:
        assert expected.ra == pytest.approx(30.5, abs=0.1)
        assert expected.extra["BTS"] == 1


def test_cutout_json_as_npy(tmp_path):
    about = load_card("lenses_hst")
    content = saved(np.save, LENS)
    expected = from_file(tmp_path / "a.npy", content, about.reader, about.reader_options)
    body = json.dumps({"image": [LENS.tolist()], "object_id": "a"}).encode()
    told = {"extra", "statements", "observation_id", "pixel_scale_arcsec"}
    same(sent("lenses_hst", JSON, body), expected, told)


# alerts
@pytest.fixture(scope="module")
def packet(survey_data) -> bytes:
    return sorted((survey_data / "ztf_alerts" / "raw_avro").glob("*.avro"))[0].read_bytes()


@pytest.mark.parametrize("kind", ["application/avro", JSON, NPZ])
def test_alerts(tmp_path, packet, kind):
    card = load_card("ztf_real_bogus")
    options = {k: v for k, v in card.reader_options.items() if k != "labels"}
    expected: Alert = from_file(tmp_path / "a.avro", packet, card.reader, options)
    stamps = dict(zip(("science", "template", "difference"), expected.stamps(), strict=True))
    plain = {key: None if value != value else value for key, value in expected.candidate.items()}
    item = {"objectId": expected.source_id, "candid": expected.candid, "candidate": plain,
            "prv_candidates": [dict(row) for row in expected.history]}  # fmt: skip
    if kind == JSON:
        packed = {name: base64.b64encode(gzip.compress(saved(fits.PrimaryHDU(s).writeto))).decode()
                  for name, s in stamps.items()}  # fmt: skip
        body = json.dumps({**item, "cutouts": packed}).encode()
    else:
        body = (
            saved(np.savez, packet=np.array(json.dumps(item)), **stamps) if kind == NPZ else packet
        )
    told = {"extra", "statements"} if kind != "application/avro" else set()
    same(sent("ztf_real_bogus", kind, body), expected, told)
