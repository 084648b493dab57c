"""ZTF alerts: Avro and Parquet give one record; damage has a name; nothing inflates unbounded."""

from __future__ import annotations

import gzip
import io
import zlib
from pathlib import Path

import fastavro
import numpy as np
import pytest
from astropy.io import fits
from pyarrow import fs
from pyarrow import parquet as pq

from skyray.config import ConfigError
from skyray.readers.base import SurveyFile, make_reader
from skyray.readers.stamps import MAX_STAMP_BYTES, read_stamp
from skyray.records import Alert, InvalidRecord, check_alert
from skyray.transforms.alerts import alert_features

PACKET = "1105522281015015000.avro"


@pytest.fixture(scope="module")
def packets(survey_data) -> Path:
    return survey_data / "ztf_alerts" / "raw_avro"


@pytest.fixture(scope="module")
def table(survey_data) -> Path:
    return survey_data / "ztf_alerts" / "alerts.parquet"


def file(path: Path) -> SurveyFile:
    return SurveyFile(fs.LocalFileSystem(), str(path))


def read(path: Path, **options) -> list:
    reader = make_reader("ztf", options)
    assert reader.claims(str(path))
    return [r for unit in reader.units(file(path)) for r in reader.read(file(path), unit)]


def reason(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    try:
        (found,) = read(path)
    except InvalidRecord as error:
        found = error
    assert isinstance(found, InvalidRecord), found
    return found.reason


def packed(image: np.ndarray) -> bytes:
    stream = io.BytesIO()
    fits.PrimaryHDU(image).writeto(stream)
    return gzip.compress(stream.getvalue())


def minimal(**changes) -> dict:
    stamp = packed(np.ones((63, 63), np.float32))
    candidate = {"jd": 2460000.5, "fid": 1, "ra": 1.0, "dec": 2.0, "magpsf": 18.0, "isdiffpos": "t"}
    packet = {
        "objectId": "ZTF1",
        "candid": 7,
        "candidate": candidate,
        "prv_candidates": None,
        **{f"cutout{n}": {"stampData": stamp} for n in ("Science", "Template", "Difference")},
    }
    return {**packet, **changes}  # fmt: skip


SCHEMA = {
    "type": "record", "name": "alert", "fields": [
        {"name": "objectId", "type": ["null", "string"]},
        {"name": "candid", "type": ["null", "long"]},
        {"name": "candidate", "type": {"type": "map", "values": ["null", "double", "string"]}},
        {"name": "prv_candidates", "type": ["null", {"type": "array", "items": {
            "type": "map", "values": ["null", "double", "string"]}}]},
        *({"name": f"cutout{n}", "type": {"type": "map", "values": "bytes"}}
          for n in ("Science", "Template", "Difference")),
    ],
}  # fmt: skip


def written(*records: dict, codec: str = "null") -> bytes:
    stream = io.BytesIO()
    fastavro.writer(stream, SCHEMA, records, codec=codec)
    return stream.getvalue()


def test_packets_as_fastavro_and_astropy_read_them(packets):
    for path in sorted(packets.glob("*.avro")):
        (alert,) = read(path)
        with path.open("rb") as stream:
            packet = next(fastavro.reader(stream))
        assert alert.source_id == packet["objectId"]
        assert (alert.candid, alert.object_id) == (packet["candid"], str(packet["candid"]))
        assert (alert.jd, alert.fid) == (packet["candidate"]["jd"], packet["candidate"]["fid"])
        assert alert.candidate["magpsf"] == packet["candidate"]["magpsf"]
        assert len(alert.history) == len(packet["prv_candidates"])
        for name, stamp in zip(("Science", "Template", "Difference"), alert.stamps(), strict=True):
            raw = gzip.decompress(packet[f"cutout{name}"]["stampData"])
            with fits.open(io.BytesIO(raw)) as hdus:
                np.testing.assert_array_equal(stamp, hdus[0].data.astype(np.float32))
        check_alert(alert, 63)


def test_table_gives_the_records_of_the_packets(packets, table):
    rows = {alert.object_id: alert for alert in read(table)}
    assert len(rows) == 569
    for path in sorted(packets.glob("*.avro")):
        (alert,) = read(path)
        row = rows[alert.object_id]
        np.testing.assert_array_equal(alert_features(row), alert_features(alert))
        for a, b in zip(alert.stamps(), row.stamps(), strict=True):
            np.testing.assert_array_equal(a, b)
        assert row.source_id == alert.source_id


def test_table_is_read_by_row_groups_with_edges_and_labels(table):
    reader = make_reader("ztf")
    assert reader.units(file(table)) == list(range(pq.ParquetFile(table).num_row_groups))
    alerts = read(table)
    assert sum(min(a.science.shape) < 63 for a in alerts) >= 12
    for alert in alerts:
        check_alert(alert, 63)
        assert alert_features(alert)[13] >= 0  # age
        assert {"label_tns", "label_xmatch", "sgscore_best"} <= set(alert.extra)
    assert alerts[0].source.endswith("alerts.parquet#0")
    assert alerts[-1].source.endswith("#568")


@pytest.mark.parametrize(("written_as", "one"), [("1", "t"), ("t", "t"), ("0", "f"), ("f", "f")])
def test_sign_is_written_in_one_way_unless_as_published(tmp_path, written_as, one):
    packet = minimal()
    packet["candidate"]["isdiffpos"] = written_as
    path = tmp_path / "a.avro"
    path.write_bytes(written(packet))
    assert read(path)[0].candidate["isdiffpos"] == one
    assert read(path, isdiffpos="as_published")[0].candidate["isdiffpos"] == written_as


def test_score_that_was_never_computed_is_none(tmp_path):
    packet, path = minimal(), tmp_path / "a.avro"
    for score, version, expected in ((0.0, "", None), (0.0, "d6_m7", 0.0), (0.4, "", 0.4)):
        packet["candidate"] |= {"drb": score, "drbversion": version}
        path.write_bytes(written(packet))
        assert read(path)[0].candidate["drb"] == expected


@pytest.mark.parametrize("codec", ["null", "deflate"])
def test_several_packets_in_a_file(tmp_path, codec):
    path = tmp_path / "a.avro"
    path.write_bytes(written(minimal(), minimal(candid=8), minimal(candid=9), codec=codec))
    alerts = read(path)
    assert [a.candid for a in alerts] == [7, 8, 9]
    assert alerts[0].source == str(path)
    assert alerts[2].source == f"{path}#2"


def test_edge_stamps_and_nan_pixels_pass(tmp_path):
    stamp = np.ones((40, 63), np.float32)
    stamp[3, 4] = np.nan
    packet = minimal(cutoutScience={"stampData": packed(stamp)})
    path = tmp_path / "a.avro"
    path.write_bytes(written(packet))
    (alert,) = read(path)
    np.testing.assert_array_equal(alert.science, stamp)
    with pytest.raises(InvalidRecord, match="stamps_differ"):
        check_alert(alert, 63)


def test_labels_beside_the_packets(tmp_path):
    path = tmp_path / "a.avro"
    path.write_bytes(written(minimal(), minimal(objectId="ZTF2", candid=8)))
    assert "bts" not in read(path, labels="labels.csv")[0].extra  # a stream has none
    (tmp_path / "labels.csv").write_text("objectId,bts,subset\nZTF1,1,trues\nZTF9,0,vars\n")
    first, second = read(path, labels="labels.csv")
    assert (first.extra["bts"], first.extra["subset"]) == (1, "trues")
    assert "bts" not in second.extra
    (tmp_path / "labels.csv").write_text("name\nZTF1\n")
    with pytest.raises(InvalidRecord, match="labels_invalid"):
        read(path, labels="labels.csv")


def test_repeated_labels_are_not_chosen_from(tmp_path):
    path, labels = tmp_path / "a.avro", tmp_path / "labels.csv"
    path.write_bytes(written(minimal(), minimal(candid=8)))
    labels.write_text("objectId,bts\nZTF1,1\nZTF1,0\n")
    assert [found.reason for found in read(path, labels="labels.csv")] == 2 * [
        "label_row_ambiguous"
    ]
    labels.write_text("objectId,bts\nZTF1,1_0\nZTF1,1_0\n")  # no number, and the same twice
    assert [found.extra["bts"] for found in read(path, labels="labels.csv")] == ["1_0", "1_0"]
    labels.write_text("objectId;candid;bts\nZTF1;7;1\nZTF1;8;0\n")  # candid tells them apart
    assert [found.extra["bts"] for found in read(path, labels="labels.csv")] == [1, 0]
    labels.write_text("objectId,bts,bts\nZTF1,1,0\n")
    with pytest.raises(InvalidRecord, match="csv_invalid"):
        read(path, labels="labels.csv")


def test_damaged_containers_have_reasons(packets, tmp_path):
    whole, path = (packets / PACKET).read_bytes(), tmp_path / "a.avro"
    assert reason(path, b"") == "file_empty"
    assert reason(path, b"<html>404</html>") == "not_avro"
    assert reason(path, whole[:300]) == "avro_schema"
    assert reason(path, whole[:-5000]) == "avro_truncated"
    assert reason(path, whole[:-16] + bytes(16)) == "avro_corrupt"
    lz4 = written(minimal()).replace(b"\x08null", b"\x08lz4x", 1)
    assert reason(path, lz4) == "avro_codec"
    header = written()
    assert reason(path, header + _long(9) + _long(3) + b"abc" + header[-16:]) == "avro_corrupt"
    assert reason(path, header + _long(1) + _long(3) + b"\xff\xff\xff" + header[-16:]) == (
        "avro_corrupt"
    )


def _long(value: int) -> bytes:
    stream = io.BytesIO()
    fastavro.schemaless_writer(stream, "long", value)
    return stream.getvalue()


def test_records_before_the_damage_are_kept(tmp_path):
    stream = io.BytesIO()
    fastavro.writer(stream, SCHEMA, [minimal(), minimal(candid=8)], sync_interval=1)
    path = tmp_path / "a.avro"
    path.write_bytes(stream.getvalue()[:-100])
    first, second = read(path)
    assert isinstance(first, Alert)
    assert second.reason == "avro_truncated"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"objectId": None}, "packet_field_missing"),
        ({"candid": None}, "packet_field_missing"),
        ({"candidate": {"jd": 1.0}}, "packet_field_missing"),
        ({"candidate": {"jd": "x", "fid": 1, "ra": 1, "dec": 1}}, "packet_field_invalid"),
        ({"candidate": {"jd": 1.0, "fid": None, "ra": 1, "dec": 1}}, "packet_field_invalid"),
        ({"cutoutScience": {}}, "stamp_missing"),
        ({"cutoutScience": {"stampData": b"\x1f\x8bnonsense"}}, "stamp_gzip"),
        ({"cutoutScience": {"stampData": b"no fits"}}, "not_fits"),
    ],
)
def test_damaged_packets_have_reasons(tmp_path, changes, expected):
    assert reason(tmp_path / "a.avro", written(minimal(**changes))) == expected


def test_one_bad_packet_does_not_take_the_others_along(tmp_path):
    path = tmp_path / "a.avro"
    path.write_bytes(written(minimal(cutoutScience={}), minimal(candid=8)))
    first, second = read(path)
    assert first.reason == "stamp_missing"
    assert second.candid == 8


def test_bombs_are_refused_without_inflating_them(tmp_path):
    stamp = gzip.compress(bytes(200 << 20), 9)
    assert len(stamp) < 300_000
    with pytest.raises(InvalidRecord, match="stamp_too_large"):
        read_stamp(stamp, "bomb")
    packet = minimal(cutoutScience={"stampData": stamp})
    assert reason(tmp_path / "a.avro", written(packet)) == "stamp_too_large"
    with pytest.raises(InvalidRecord, match="stamp_too_large"):
        read_stamp(b"SIMPLE  =" + bytes(MAX_STAMP_BYTES), "long")
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = compressor.compress(bytes(100 << 20)) + compressor.flush()
    header = written(codec="deflate")
    bomb = header + _long(1) + _long(len(block)) + block + header[-16:]
    assert reason(tmp_path / "b.avro", bomb) == "avro_too_large"


def test_a_stamp_of_several_gzip_members_is_whole():
    raw = gzip.decompress(packed(np.ones((63, 63), np.float32)))
    members = gzip.compress(raw[:4000]) + gzip.compress(raw[4000:])
    np.testing.assert_array_equal(read_stamp(members, "members"), np.ones((63, 63)))


def test_stamps_cut_short_are_refused():
    whole = packed(np.ones((63, 63), np.float32))
    with pytest.raises(InvalidRecord, match="stamp_gzip"):
        read_stamp(whole[:-20], "short")
    raw = gzip.decompress(whole)
    with pytest.raises(InvalidRecord, match="data_truncated"):
        read_stamp(raw[: 2880 + 100], "short")
    huge = raw.replace(b"NAXIS1  =                   63", b"NAXIS1  =            999999999")
    with pytest.raises(InvalidRecord, match="data_truncated"):
        read_stamp(huge, "huge")
    many = raw.replace(b"NAXIS   =                    2", b"NAXIS   =            999999999")
    with pytest.raises(InvalidRecord, match="header_invalid"):
        read_stamp(many, "many axes")


def test_image_in_an_extension_is_found():
    stream = io.BytesIO()
    image = np.arange(12.0).reshape(3, 4)
    fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(image)]).writeto(stream)
    np.testing.assert_array_equal(read_stamp(stream.getvalue(), "x"), image.astype(np.float32))
    stream = io.BytesIO()
    fits.HDUList([fits.PrimaryHDU()]).writeto(stream)
    with pytest.raises(InvalidRecord, match="stamp_not_an_image"):
        read_stamp(stream.getvalue(), "x")


def test_options_are_checked():
    with pytest.raises(ConfigError, match="isdiffpos"):
        make_reader("ztf", {"isdiffpos": "perhaps"})
