"""What is fuzzed: every decoder of foreign bytes, with small good files and their mutators."""

from __future__ import annotations

import base64
import functools
import io
import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fastavro
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from astropy.io import fits
from PIL import Image
from serve.decoding import Decoding, Upload
from serve.refusal import Refusal
from tests import fuzz_mutators as mutate
from tests import fuzz_pictures as pictures
from tests import fuzz_tables as tables

from skyray.cards import Card, load_card
from skyray.data.outcomes import Job, outcomes_schema, outcomes_table, unit_outcomes
from skyray.data.sources import Unit
from skyray.families.base import DataInfo
from skyray.readers.base import make_reader
from skyray.readers.memory import memory_file
from skyray.records import Alert, InvalidRecord
from skyray.simulate.alert_files import gzipped_fits, write_ztf_packets
from skyray.simulate.spectra import MockSurvey
from skyray.simulate.survey_files import write_survey_files

Seeds = Callable[[], list[bytes]]
READ = "read"


@dataclass(frozen=True)
class Decoder:
    """A way in for foreign bytes. With a `content_type` it is the service's, else ingest's."""

    card: str
    name: str
    seeds: Seeds
    mutate: mutate.Mutator
    content_type: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    reader: str = ""


def outcomes(decoder: Decoder, content: bytes) -> list[str]:
    """Return `READ` for every record, or the reason of its refusal, as ingest or service have it.

    Raises
    ------
    Exception
        Any that would have ended an ingest, or been answered with status 500.
    """
    card = _card(decoder.card, decoder.reader, json.dumps(decoder.options))
    if decoder.content_type:
        return _served(_decoding(card), Upload(decoder.content_type, content, decoder.name))
    source = _OneFile(card, content, decoder.name)
    job = Job(card, source, "nowhere", apply_cuts=False)
    found = []
    for number in source.numbers():
        rows = unit_outcomes(job, Unit(decoder.name, number, "", len(content)))
        table = outcomes_table(rows, outcomes_schema(card))
        found += [reason or READ for reason in table["reason"].to_pylist()]
    return found


def _served(decoding: Decoding, upload: Upload) -> list[str]:
    try:
        items = decoding(upload)
    except Refusal as refused:
        json.dumps(refused.detail)
        return [refused.reason]
    return [item.reason if isinstance(item, InvalidRecord) else READ for item in items]


class _OneFile:
    """A file in memory as a source of records."""

    bounds = None

    def __init__(self, card: Card, content: bytes, name: str):
        self._reader = make_reader(card.reader, card.reader_options)
        self._file = memory_file(content, name)

    def numbers(self) -> list[int]:
        try:
            return self._reader.units(self._file)[:20] or [0]
        except Exception:  # as in `FileSource`: reading says what is wrong
            return [0]

    def read(self, unit: Unit) -> Iterator[Any]:
        return self._reader.read(self._file, unit.number)


@functools.cache
def _card(name: str, reader: str, options: str) -> Card:
    card = load_card(name)
    changed = {"reader": reader or card.reader}
    if options != "{}":
        changed["reader_options"] = json.loads(options)
    return Card.model_validate({**card.model_dump(), **changed})


@functools.cache
def _decoding_of(text: str) -> Decoding:
    card = Card.model_validate_json(text)
    grid = card.grid.grid() if card.grid else None
    info = DataInfo(card.name, card.record, tuple(card.classes), card.coarse, "", grid,
                    bands=tuple(card.bands or ()), image_size=card.image_size or 0,
                    image_fit=card.image_fit or "exact")  # fmt: skip
    return Decoding(card, info, max_records=100, max_bytes=4 << 20)


def _decoding(card: Card) -> Decoding:
    return _decoding_of(card.model_dump_json())


# good files ------------------------------------------------------------------------------------
def _survey_files(card_name: str, count: int) -> list[bytes]:
    card = load_card(card_name)
    survey = MockSurvey(card, seed=1)
    spectra = [survey.spectrum(label, 0) for label in survey.classes[:count]]
    with tempfile.TemporaryDirectory() as folder:
        paths = write_survey_files(card, spectra, Path(folder))
        return [path.read_bytes() for path in paths if not path.name.startswith("redrock")]


def _rows() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    pixels = 1200
    return {
        "loglam0": [3.6, 3.6], "plate": [1, 2], "mjd": [50_000, 50_001], "fiberid": [1, 2],
        "flux": list(rng.normal(5, 1, (2, pixels)).astype("f4")),
        "ivar": list(np.ones((2, pixels), "f4")), "and_mask": list(np.zeros((2, pixels), "i4")),
        "ra": [1.0, 2.0], "dec": [1.0, 2.0], "class": ["STAR", "QSO"], "subclass": ["", ""],
        "z": [0.0, 1.0], "z_err": [1e-4, 1e-4], "zwarning": [0, 0], "sn_median_all": [5.0, 6.0],
        "survey": ["sdss", "boss"], "run2d": ["26", "v5"],
    }  # fmt: skip


def _parquet() -> list[bytes]:
    stream, plain = io.BytesIO(), io.BytesIO()
    pq.write_table(pa.table(_rows()), stream, compression="zstd")
    pq.write_table(pa.table(_rows()), plain, use_dictionary=False, store_schema=False)
    return [stream.getvalue(), plain.getvalue()]


def _npz() -> list[bytes]:
    stream = io.BytesIO()
    np.savez(stream, **{name: np.array(values) for name, values in _rows().items()})
    return [stream.getvalue()]


def _table_fits() -> list[bytes]:
    rows = {name: np.array(values) for name, values in _rows().items()}
    kinds = [(name, values.dtype, values.shape[1:]) for name, values in rows.items()]
    table = np.zeros(2, kinds)
    for name, values in rows.items():
        table[name] = values
    hdu = fits.BinTableHDU(table)
    stream = io.BytesIO()
    fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(stream)
    return [stream.getvalue()]


def _csv() -> list[bytes]:
    spectrum = _spectrum()
    rows = pd.DataFrame({name: spectrum[name] for name in ("wavelength", "flux", "ivar")})
    return [rows.assign(ra=1.5, name="a").to_csv(index=False).encode()]


def _stamp(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(10, 1, (63, 63)).astype(np.float32)


_CANDIDATE = {"jd": 2458000.5, "fid": 1, "ra": 1.0, "dec": 1.0, "magpsf": 18.0, "sigmapsf": 0.1,
              "isdiffpos": "t", "rb": 0.9, "drb": 0.9, "candid": 7, "magnr": 19.0,
              "distnr": 0.5, "sgscore1": 0.5, "distpsnr1": 1.0}  # fmt: skip


def _packet() -> dict[str, Any]:
    history = {"jd": 2457999.5, "fid": 1, "magpsf": None, "sigmapsf": None, "diffmaglim": 20.0}
    stamps = {f"cutout{name}": {"fileName": "x", "stampData": gzipped_fits(_stamp(number))}
              for number, name in enumerate(("Science", "Template", "Difference"))}  # fmt: skip
    return {"objectId": "ZTF18a", "candid": 7, "candidate": _CANDIDATE,
            "prv_candidates": [history], **stamps}  # fmt: skip


def _ztf() -> list[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        stamps = map(_stamp, range(3))
        alert = Alert("7", "ZTF18a", 7, 2458000.5, 1, *stamps, candidate=_CANDIDATE,
                      history=_packet()["prv_candidates"])  # fmt: skip
        (path,) = write_ztf_packets([alert], Path(folder))
        return [path.read_bytes()]


def _alert_parquet() -> list[bytes]:
    stream = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([_packet(), _packet() | {"candid": 8}]), stream)
    return [stream.getvalue()]


def _lamost() -> list[bytes]:
    pixels = np.ones((5, 1500), np.float32)
    pixels[2] = 10 ** (3.6 + 1e-4 * np.arange(1500))
    pixels[3:] = 0
    image = fits.PrimaryHDU(pixels)
    image.header.update(TELESCOP="LAMOST", OBSID=101001, LMJD=55862, PLANID="B6212", SPID=6,
                        FIBERID=3, DESIG="LAMOST J063715.90+271356.5", RA=99.3, DEC=27.2,
                        CLASS="STAR", SUBCLASS="F9", Z=-7e-05, Z_ERR=1e-05, VACUUM=True,
                        HELIO=True, COEFF0=3.6, COEFF1=1e-4)  # fmt: skip
    stream = io.BytesIO()
    image.writeto(stream)
    return [stream.getvalue()]


def _lsst() -> list[bytes]:
    source = {"diaSourceId": 7, "diaObjectId": 5, "midpointMjdTai": 60_000.5, "band": "r",
              "ra": 1.0, "dec": 1.0, "psfFlux": 1000.0, "psfFluxErr": 10.0, "psfChi2": 1.0,
              "snr": 9.0, "reliability": 0.9}  # fmt: skip
    kinds = {int: "long", str: "string", float: "double"}
    fields = [{"name": n, "type": ["null", kinds[type(v)]]} for n, v in source.items()]
    dia_source = {"type": "record", "name": "diaSource", "fields": fields}
    dia_object = {"type": "record", "name": "diaObject", "fields": [
        {"name": "diaObjectId", "type": "long"},
        {"name": "nDiaSources", "type": "int"}]}  # fmt: skip
    schema = {"type": "record", "name": "alert", "namespace": "lsst.v9_0", "fields": [
        {"name": "alertId", "type": "long"}, {"name": "diaSourceId", "type": "long"},
        {"name": "diaSource", "type": dia_source},
        {"name": "prvDiaSources", "type": ["null", {"type": "array", "items": "diaSource"}]},
        {"name": "diaObject", "type": ["null", dia_object]},
        *({"name": f"cutout{name}", "type": ["null", "bytes"]}
          for name in ("Science", "Template", "Difference")),
    ]}  # fmt: skip
    stream, plain = io.BytesIO(), io.BytesIO()
    fits.PrimaryHDU(_stamp(0)).writeto(plain)
    packet = {"alertId": 7, "diaSourceId": 7, "diaSource": source, "prvDiaSources": [source],
              "diaObject": {"diaObjectId": 5, "nDiaSources": 2}}  # fmt: skip
    packet |= {f"cutout{n}": plain.getvalue() for n in ("Science", "Template", "Difference")}
    fastavro.writer(stream, schema, [packet], codec="deflate")
    return [stream.getvalue()]


def _picture(form: str, mode: str = "RGB", **options: Any) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 255, (69, 69, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(stream, form, **options)
    return stream.getvalue()


def _image_fits() -> list[bytes]:
    cube = np.random.default_rng(0).normal(5, 1, (3, 69, 69)).astype(np.float32)
    found = []
    for hdu in (fits.PrimaryHDU(cube), fits.CompImageHDU(cube)):
        stream = io.BytesIO()
        hdu.header.update(CTYPE1="RA---TAN", CTYPE2="DEC--TAN", CD1_1=-1 / 3600, CD2_2=1 / 3600,
                          CRVAL1=1.0, CRVAL2=1.0, CRPIX1=35.0, CRPIX2=35.0)  # fmt: skip
        primary = [] if isinstance(hdu, fits.PrimaryHDU) else [fits.PrimaryHDU()]
        fits.HDUList([*primary, hdu]).writeto(stream)
        found.append(stream.getvalue())
    return found


def _npy() -> list[bytes]:
    stream = io.BytesIO()
    np.save(stream, np.random.default_rng(0).normal(5, 1, (64, 64)))
    return [stream.getvalue()]


def _spectrum() -> dict[str, Any]:
    wavelength = (10 ** (3.6 + 1e-4 * np.arange(300))).round(3).tolist()
    return {"object_id": "a", "medium": "vacuum", "wavelength": wavelength,
            "flux": [1.5] * 300, "ivar": [1.0] * 300}  # fmt: skip


def _json_spectra() -> list[bytes]:
    one = _spectrum()
    return [json.dumps(one).encode(), json.dumps({"spectra": [one, one]}).encode()]


def _json_alerts() -> list[bytes]:
    packet = _packet()
    stamps = {n: base64.b64encode(packet[f"cutout{n.title()}"]["stampData"]).decode()
              for n in ("science", "template")}  # fmt: skip
    stamps["difference"] = _stamp(2).round(1).astype(float).tolist()
    one = {"objectId": "ZTF18a", "candid": 7, "candidate": _CANDIDATE, "cutouts": stamps,
           "prv_candidates": packet["prv_candidates"]}  # fmt: skip
    return [json.dumps(one, default=float).encode()]


def _json_cutouts() -> list[bytes]:
    image = np.random.default_rng(0).integers(0, 255, (3, 16, 16)).tolist()
    return [json.dumps({"cutouts": [{"image": image, "object_id": 1}]}).encode()]


def _npz_alert() -> list[bytes]:
    about = {"objectId": "ZTF18a", "candid": 7, "candidate": _CANDIDATE}
    packet = np.frombuffer(json.dumps(about).encode(), np.uint8)
    stream = io.BytesIO()
    np.savez(stream, packet=packet, science=_stamp(0), template=_stamp(1), difference=_stamp(2))
    return [stream.getvalue()]


def _arrow() -> list[bytes]:
    one, found = _spectrum(), []
    for compression in (None, "zstd"):
        kind = pa.list_(pa.float32())
        table = pa.table({
            **{name: pa.array([one[name]] * 3, kind) for name in ("wavelength", "flux", "ivar")},
            "mask": pa.array([[False] * 300] * 3), "object_id": ["a", "b", "c"],
            "redshift": [0.1, None, 0.2],
        }).replace_schema_metadata({"medium": "vacuum"})  # fmt: skip
        stream = io.BytesIO()
        options = pa.ipc.IpcWriteOptions(compression=compression)
        with pa.ipc.new_stream(stream, table.schema, options=options) as writer:
            writer.write_table(table)
        found.append(stream.getvalue())
    return found


_PIXELS = {"layout": "pixels", "medium": "vacuum", "wavelength": {"column": "wavelength"},
           "flux": "flux", "ivar": "ivar", "fields": {"ra": "ra"}, "extra": ["name"]}  # fmt: skip
_COLOURS = {"bands": ["red", "green", "blue"]}
FILES = {
    "SDSS FITS": Decoder("sdss_coarse", "spec-0001-50000-0001.fits",
                         lambda: _survey_files("sdss_coarse", 2), mutate.fits),
    "SDSS FITS, gzip": Decoder("sdss_coarse", "spec-0001-50000-0001.fits.gz",
                               lambda: _survey_files("sdss_coarse", 1), mutate.fits_packed),
    "DESI FITS": Decoder("desi_bgs", "coadd-sv3-bright-1.fits",
                         lambda: _survey_files("desi_bgs", 2), mutate.fits),
    "4MOST FITS": Decoder("fourmost_mock", "qmost_1.fits",
                          lambda: _survey_files("fourmost_mock", 2), mutate.fits),
    "LAMOST FITS": Decoder("lamost_dr10", "spec-1.fits", _lamost, mutate.fits),
    "table FITS": Decoder("sdss_table", "t.fits", _table_fits, mutate.fits),
    "table Parquet": Decoder("sdss_table", "t.parquet", _parquet, tables.parquet),
    "table CSV": Decoder("sdss_table", "t.csv", _csv, tables.csv_table, options=_PIXELS),
    "table npz": Decoder("sdss_table", "t.npz", _npz, tables.npz),
    "ZTF Avro": Decoder("ztf_bts", "7.avro", _ztf, mutate.avro),
    "LSST Avro": Decoder("lsst_alerts", "7.avro", _lsst, mutate.avro),
    "alert Parquet": Decoder("ztf_bts", "7.parquet", _alert_parquet, tables.alert_parquet),
    "PNG": Decoder("galaxies_gz1", "1.png",
                   lambda: [_picture("PNG"), _picture("PNG", "P"), _picture("PNG", "RGBA")],
                   pictures.png, reader="image_files", options=_COLOURS),
    "JPEG": Decoder("galaxies_gz1", "1.jpg",
                    lambda: [_picture("JPEG"), _picture("JPEG", progressive=True)], pictures.jpeg,
                    reader="image_files", options=_COLOURS),
    "TIFF": Decoder("galaxies_gz1", "1.tiff",
                    lambda: [_picture("TIFF"), _picture("TIFF", compression="tiff_lzw")],
                    pictures.tiff, reader="image_files", options=_COLOURS),
    "image FITS": Decoder("legacy_survey_cutouts", "1.fits", _image_fits, mutate.fits),
    "image npy": Decoder("lenses_folder", "1.npy", _npy, tables.npy),
}  # fmt: skip
BODIES = {
    "HTTP Arrow": Decoder("sdss_coarse", "", _arrow, pictures.arrow,
                          "application/vnd.apache.arrow.stream"),
    "HTTP JSON spectra": Decoder("sdss_coarse", "", _json_spectra, mutate.json_text,
                                 "application/json"),
    "HTTP JSON cutouts": Decoder("galaxies_gz1", "", _json_cutouts, mutate.json_text,
                                 "application/json"),
    "HTTP JSON alerts": Decoder("ztf_bts", "", _json_alerts, mutate.json_text,
                                "application/json"),
    "HTTP npz alerts": Decoder("ztf_bts", "", _npz_alert, tables.npz, "application/x-npz"),
    "HTTP FITS": Decoder("sdss_coarse", "", lambda: _survey_files("sdss_coarse", 1),
                         mutate.fits_packed, "application/fits"),
    "HTTP image FITS": Decoder("legacy_survey_cutouts", "", _image_fits, mutate.fits_packed,
                               "application/fits"),
    "HTTP PNG": Decoder("galaxies_gz1", "", lambda: [_picture("PNG")], pictures.png, "image/png"),
}  # fmt: skip
