"""An LSST-like alert under ZTF's names: units, history, bands, refusals."""

from __future__ import annotations

import io
import math
from pathlib import Path

import fastavro
import numpy as np
import pytest
from astropy import units
from astropy.io import fits
from astropy.time import Time
from pyarrow import fs

from skyray.cards import load_card
from skyray.config import ConfigError
from skyray.readers.base import SurveyFile, make_reader
from skyray.records import check_alert
from skyray.transforms.alerts import FEATURES, alert_features

DOUBLE, STRING, LONG = ["null", "double"], ["null", "string"], ["null", "long"]
SOURCE = {"type": "record", "name": "diaSource", "fields": [
    {"name": "diaSourceId", "type": "long"}, {"name": "diaObjectId", "type": LONG},
    {"name": "ssObjectId", "type": LONG}, {"name": "midpointMjdTai", "type": "double"},
    {"name": "ra", "type": "double"}, {"name": "dec", "type": "double"},
    {"name": "band", "type": STRING}, {"name": "psfFlux", "type": DOUBLE},
    {"name": "psfFluxErr", "type": DOUBLE}, {"name": "snr", "type": DOUBLE},
    {"name": "psfChi2", "type": DOUBLE}, {"name": "reliability", "type": DOUBLE},
]}  # fmt: skip
SCHEMA = {"type": "record", "name": "alert", "fields": [
    {"name": "diaSourceId", "type": "long"}, {"name": "diaSource", "type": SOURCE},
    {"name": "prvDiaSources", "type": ["null", {"type": "array", "items": "diaSource"}]},
    *({"name": f"cutout{n}", "type": ["null", "bytes"]}
      for n in ("Science", "Template", "Difference")),
]}  # fmt: skip


def stamp(value: float, size: int = 30) -> bytes:
    stream = io.BytesIO()
    image = np.full((size, size), value, np.float32)
    fits.HDUList([fits.PrimaryHDU(image), fits.ImageHDU(image, name="VAR")]).writeto(stream)
    return stream.getvalue()


def source(number: int, mjd: float, flux: float, **changes) -> dict:
    found = {"diaSourceId": number, "diaObjectId": 77, "ssObjectId": None, "midpointMjdTai": mjd,
             "ra": 10.0, "dec": -30.0, "band": "r", "psfFlux": flux, "psfFluxErr": 100.0,
             "snr": flux / 100, "psfChi2": 1.5, "reliability": 0.8}  # fmt: skip
    return {**found, **changes}


def write(path: Path, **changes) -> Path:
    packet = {"diaSourceId": 3, "diaSource": source(3, 60010.0, 3631.0),
              "prvDiaSources": [source(1, 60001.0, 2000.0, band="g"), source(2, 60005.0, 5000.0)],
              "cutoutScience": stamp(1), "cutoutTemplate": stamp(2), "cutoutDifference": stamp(3),
              **changes}  # fmt: skip
    with path.open("wb") as stream:
        fastavro.writer(stream, SCHEMA, [packet])
    return path


def read(path: Path):
    card = load_card("lsst_alerts")
    reader = make_reader(card.reader, card.reader_options)
    return list(reader.read(SurveyFile(fs.LocalFileSystem(), str(path))))


def test_fields_have_ztfs_names_and_units(tmp_path):
    (alert,) = read(write(tmp_path / "a.avro"))
    check_alert(alert, 63)
    assert (alert.source_id, alert.candid, alert.fid, alert.survey) == ("77", 3, 2, "lsst")
    expected = (3631.0 * units.nJy).to(units.ABmag).value
    assert alert.candidate["magpsf"] == pytest.approx(expected, abs=1e-4)
    assert alert.candidate["sigmapsf"] == pytest.approx(1.0857 * 100 / 3631, rel=1e-4)
    assert alert.jd == pytest.approx(Time(60010.0, format="mjd").jd)
    assert alert.candidate["isdiffpos"] == "t"
    assert [s[0, 0] for s in alert.stamps()] == [1, 2, 3]


def test_history_makes_the_features(tmp_path):
    (alert,) = read(write(tmp_path / "a.avro"))
    found = dict(zip(FEATURES, alert_features(alert).tolist(), strict=True))
    assert (found["age"], found["days_since_peak"], found["days_to_peak"]) == (9.0, 5.0, 4.0)
    assert found["peakmag_so_far"] == pytest.approx(31.4 - 2.5 * math.log10(5000), abs=1e-4)
    assert found["new_drb"] == pytest.approx(0.8)
    assert np.isnan(found["sgscore1"])


def test_moving_objects_and_fading_sources(tmp_path):
    moving = source(3, 60010.0, -500.0, diaObjectId=None, ssObjectId=5)
    (alert,) = read(write(tmp_path / "a.avro", diaSource=moving, prvDiaSources=None))
    assert (alert.source_id, alert.candidate["isdiffpos"], alert.history) == ("5", "f", [])


def test_missing_parts_have_reasons(tmp_path):
    (found,) = read(write(tmp_path / "a.avro", cutoutTemplate=None))
    assert found.reason == "stamp_missing"
    nameless = source(3, 60010.0, 1.0, diaObjectId=None)
    (found,) = read(write(tmp_path / "b.avro", diaSource=nameless))
    assert found.reason == "packet_field_missing"
    unknown = source(3, 60010.0, 1.0, band="q")
    (found,) = read(write(tmp_path / "c.avro", diaSource=unknown))
    assert found.reason == "packet_field_invalid"


def test_map_of_a_card_is_checked():
    with pytest.raises(ConfigError, match=r"fields\.jd"):
        make_reader("lsst", {"fields": {"jd": {"path": "mjd", "as": "years"}}})
