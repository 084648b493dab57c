"""An LSST-like alert under ZTF's names: units, history, bands, refusals."""

from __future__ import annotations

import io
import math
from pathlib import Path

import fastavro
import numpy as np
import pyarrow as pa
import pytest
from astropy import units
from astropy.io import fits
from astropy.time import Time
from pyarrow import fs
from pyarrow import parquet as pq

from skyray.cards import load_card
from skyray.config import ConfigError
from skyray.data.rows import row_of
from skyray.readers.base import SurveyFile, make_reader
from skyray.readers.lsst import LsstOptions, ztf_packet
from skyray.records import InvalidRecord, check_alert
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


# real packets ------------------------------------------------------------------------------------
def real(survey_data: Path, pattern: str) -> list:
    card = load_card("lsst_alerts")
    reader = make_reader(card.reader, card.reader_options)
    found = []
    for path in sorted((survey_data / "rubin_alerts").glob(pattern)):
        file = SurveyFile(fs.LocalFileSystem(), str(path))
        found += [item for unit in reader.units(file) for item in reader.read(file, unit)]
    return found


@pytest.mark.parametrize(
    ("pattern", "version", "count"),
    [("*_7_4_*", "7", 14), ("*_9_0_*", "9.0", 17), ("fink-client*", "10.0", 7),
     ("*.parquet", "7", 50)],
)  # fmt: skip
def test_every_real_packet_is_read_with_its_source_in_the_middle(
    survey_data, pattern, version, count
):
    card, alerts = load_card("lsst_alerts"), real(survey_data, pattern)
    assert len(alerts) == count
    for alert in alerts:
        row = row_of(card, alert)
        assert alert.extra["schemavsn"] == version
        for (at_row, at_column), stamp, plane in zip(
            alert.source_pixels(), alert.stamps(), row["triplet"], strict=True
        ):
            assert max(abs(at_row + 0.5 - stamp.shape[0] / 2),
                       abs(at_column + 0.5 - stamp.shape[1] / 2)) < 5  # fmt: skip
            nearest = stamp[math.floor(at_row + 0.5), math.floor(at_column + 0.5)]
            np.testing.assert_array_equal(plane[31, 31], nearest)


def test_the_real_peak_lies_where_the_source_is_said_to_be(survey_data):
    """Two asteroids in the v10 sample: bright, alone, without anything in the template."""
    moving = [a for a in real(survey_data, "fink-client*") if math.isnan(a.candidate["ndethist"]
              or math.nan) and a.candidate["scorr"] > 20]  # fmt: skip
    assert len(moving) == 2
    for alert in moving:
        peak = np.unravel_index(np.nanargmax(alert.difference), alert.difference.shape)
        assert np.abs(np.subtract(peak, alert.source_pixels()[2])).max() < 1


def test_numbers_of_real_packets_against_astropy(survey_data):
    import fastavro

    (path,) = (survey_data / "rubin_alerts").glob("fink-client*")
    with path.open("rb") as stream:
        packets = {str(p["diaSource"]["diaSourceId"]): p for p in fastavro.reader(stream)}
    for alert in real(survey_data, "fink-client*"):
        packet = packets[alert.object_id]
        source, found = packet["diaSource"], alert.candidate
        flux, error = abs(source["psfFlux"]) * units.nJy, source["psfFluxErr"] * units.nJy
        assert found["magpsf"] == pytest.approx(flux.to_value(units.ABmag), abs=1e-3)
        assert found["diffmaglim"] == pytest.approx((5 * error).to_value(units.ABmag), abs=1e-3)
        assert found["chipsf"] == pytest.approx(source["psfChi2"] / source["psfNdata"])
        moment = Time(source["midpointMjdTai"], format="mjd", scale="tai").utc
        assert abs(alert.jd - moment.jd) < 1e-8
        assert moment.jd != pytest.approx(source["midpointMjdTai"] + 2400000.5, abs=1e-5)
        times = [e["midpointMjdTai"] for e in packet["prvDiaSources"] or ()]
        detected = [h for h in alert.history if not h["forced"]]
        assert len(detected) == len(times)
        forced = [h for h in alert.history if h["forced"]]
        exposures = {(e["midpointMjdTai"], e["band"]) for e in packet["prvDiaForcedSources"] or ()}
        both = (*(packet["prvDiaSources"] or ()), source)
        seen = {(entry["midpointMjdTai"], entry["band"]) for entry in both}
        assert len(forced) == len(exposures - seen)
        age = dict(zip(FEATURES, alert_features(alert).tolist(), strict=True))["age"]
        first = (packet.get("misc") or {}).get("firstDiaSourceMjdTaiFink")
        start = min([*times, source["midpointMjdTai"], *([first] if first else [])])
        assert age == pytest.approx(source["midpointMjdTai"] - start, abs=1e-5)


def test_a_score_of_0_without_a_version_was_not_computed(tmp_path, survey_data):
    scores = {a.candidate["drb"] for a in real(survey_data, "*_7_4_*")}
    assert None in scores
    assert 0.0 not in scores
    (alert,) = read(write(tmp_path / "a.avro", diaSource=source(3, 60010.0, 9.0, reliability=0.0)))
    assert alert.candidate["drb"] is None


def test_fields_are_found_by_their_name_in_any_order_and_among_others():
    card = load_card("lsst_alerts")
    options = LsstOptions.load(card.reader_options)
    packet = {"diaSource": source(3, 60010.0, 3631.0, psfNdata=3, isNegative=False, new=1),
              "diaObject": {"firstDiaSourceMjdTai": 60000.0, "nDiaSources": 9}}  # fmt: skip
    expected = ztf_packet(packet, options)
    turned = {"extra": 1, "diaObject": packet["diaObject"],
              "diaSource": dict(reversed(packet["diaSource"].items()))}  # fmt: skip
    assert ztf_packet(turned, options) == expected
    assert expected["candidate"]["chipsf"] == 0.5
    assert expected["candidate"]["ndethist"] == 9
    age = expected["candidate"]["jd"] - expected["candidate"]["jdstarthist"]
    assert age == pytest.approx(10.0, abs=1e-8)
    old = {**packet["diaSource"], "is_negative": True, "isNegative": None}
    assert ztf_packet({"diaSource": old}, options)["candidate"]["isNegative"] is True
    assert ztf_packet({"diaSource": {**old, "psfNdata": 0}}, options)["candidate"]["chipsf"] is None


@pytest.mark.parametrize(
    ("changes", "named"),
    [({"psfFlux": "bright"}, "magpsf"), ({"midpointMjdTai": math.inf}, "jd"), ({"band": []}, "fid"),
     ({"midpointMjdTai": 10**400}, "jd"), ({"psfChi2": {}}, "chipsf")],
)  # fmt: skip
def test_a_bad_field_refuses_its_packet(changes, named):
    options = LsstOptions.load(load_card("lsst_alerts").reader_options)
    with pytest.raises(InvalidRecord, match=f"packet_field_invalid: {named}: expected"):
        ztf_packet({"diaSource": source(3, 60010.0, 3631.0, psfNdata=3) | changes}, options)


def test_forced_photometry_and_withdrawn_sources():
    options = LsstOptions.load(load_card("lsst_alerts").reader_options)
    forced = [{"midpointMjdTai": 60000.0 + n, "band": "g", "psfFlux": flux, "psfFluxErr": 100.0}
              for n, flux in enumerate((40.0, 900.0, 2000.0))]  # fmt: skip
    forced[2] |= {"midpointMjdTai": 60001.0, "band": "r"}  # the exposure of a detection
    packet = {"diaSource": source(3, 60010.0, 3631.0),
              "prvDiaSources": [source(1, 60001.0, 2000.0),
                                source(2, 60002.0, 9.0, timeWithdrawnMjdTai=60003.0)],
              "prvDiaForcedSources": forced,
              "prvDiaNondetectionLimits": [{"midpointMjdTai": 59999.0, "band": "y",
                                            "diaNoise": 20.0}]}  # fmt: skip
    found = ztf_packet(packet, options)["prv_candidates"]
    assert [entry.get("forced", False) for entry in found] == [False, False, True, True]
    assert [entry["magpsf"] is None for entry in found] == [False, True, True, False]
    assert found[1]["diffmaglim"] == pytest.approx(31.4 - 2.5 * math.log10(100))
    assert found[1]["fid"] == 6


def test_a_packet_of_another_layout_says_what_it_holds(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"i:objectId": ["ZTF1"], "i:jd": [1.0]}), path)
    (found,) = read(path)
    assert (found.reason, "i:objectId" in found.detail) == ("packet_field_missing", True)
