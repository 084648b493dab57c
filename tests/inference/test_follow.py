"""Following a folder and a Kafka topic: everything once, whatever is delivered twice."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from skyray.bundles.bundle import Predictor
from skyray.cards import load_card
from skyray.config import ConfigError
from skyray.data.simulate import simulate
from skyray.inference.follow import follow
from skyray.inference.streams import KafkaSource
from skyray.readers.base import SurveyFile, make_reader

FILES = 20
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def files(ray_cluster, tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("stream") / "survey"
    simulate(load_card("sdss_coarse"), FILES, 31, None, as_files=str(folder), progress=False)
    return sorted(folder.rglob("spec-*.fits"))


def scored(out: Path) -> dict[str, float]:
    """Return probability by object of everything that was written."""
    found = [pq.read_table(path) for path in (out / "scored").glob("*.parquet")]
    pairs = [
        pair for table in found
        for pair in zip(table["object_id"].to_pylist(), table["p_QSO"].to_pylist(), strict=True)
    ]  # fmt: skip
    assert len({name for name, _ in pairs}) == len(pairs)  # nothing twice
    return dict(pairs)


def test_folder_is_followed_once_and_damage_is_kept(files, tiny_bundle, tmp_path):
    stream, out = tmp_path / "arriving", tmp_path / "out"
    stream.mkdir()
    for path in files[:8]:
        shutil.copy(path, stream)
    (stream / "spec-0000-00000-0001.fits").write_bytes(files[0].read_bytes()[:4000])
    options = {"batch": 3, "workers": 2, "wait_s": 0.2, "idle_s": 0.5, "progress": False}
    first = follow(tiny_bundle, str(stream), str(out), **options)
    assert (first.scored, first.refused) == (8, 1)
    for path in files[8:]:
        shutil.copy(path, stream)
    shutil.copy(files[0], stream / "spec-9999-99999-0001.fits")  # the same object again
    second = follow(tiny_bundle, str(stream), str(out), **options)
    assert second.scored == len(files) - 8
    assert second.repeated >= 1
    found = scored(out)
    assert len(found) == len(files)
    reasons = pq.read_table(out / "refused")["reason"].to_pylist()
    assert len(reasons) == 1
    predictor = Predictor.from_bundle(tiny_bundle, device="cpu")
    reader = make_reader("sdss_spec")
    from pyarrow import fs

    records = list(reader.read(SurveyFile(fs.LocalFileSystem(), str(files[-1]))))
    expected = predictor.predict_records(records)
    name = expected["object_id"][0].as_py()
    np.testing.assert_allclose(found[name], expected["p_QSO"][0].as_py(), rtol=1e-5)


def test_batch_written_but_not_committed_is_not_written_twice(files, tiny_bundle, tmp_path):
    """The source delivers a batch again after a crash between writing and committing."""
    stream, out = tmp_path / "arriving", tmp_path / "out"
    stream.mkdir()
    for path in files[:5]:
        shutil.copy(path, stream)
    options = {"batch": 5, "wait_s": 0.2, "idle_s": 0.2, "progress": False}
    follow(tiny_bundle, str(stream), str(out), **options)
    renamed = tmp_path / "again"
    stream.rename(renamed)  # the same content from sources with other names
    again = follow(tiny_bundle, str(renamed), str(out), **options)
    assert (again.scored, again.repeated) == (0, 5)
    assert len(scored(out)) == 5


def test_kafka_topic_of_a_mock_broker(files, tiny_bundle, tmp_path):
    """librdkafka's own broker in memory: real client, real consumer group, committed offsets."""
    confluent_kafka = pytest.importorskip("confluent_kafka")
    producer = confluent_kafka.Producer({"test.mock.num.brokers": 1, "bootstrap.servers": "mock"})
    address = str(next(iter(producer.list_topics(timeout=20).brokers.values())))
    address = address.split("/")[0]
    for path in files[:6]:
        producer.produce("spectra", path.read_bytes())
    producer.produce("spectra", None)  # a tombstone: refused, and the stream goes on
    producer.flush(20)
    # The mock broker does not hear of members that leave: the next one waits for the time-out.
    uri = f"kafka://{address}/spectra?group=test&session.timeout.ms=6000"
    options = {"batch": 4, "wait_s": 5.0, "progress": False}
    first = follow(tiny_bundle, uri, str(tmp_path / "out"), most=4, **options)
    assert first.scored + first.refused == 4  # a topic's partitions come in any order
    for path in files[6:8]:
        producer.produce("spectra", path.read_bytes())
    producer.flush(20)
    second = follow(tiny_bundle, uri, str(tmp_path / "out"), most=5, **options)
    # goes on at the committed offset
    assert first.scored + second.scored == 8
    assert first.refused + second.refused == 1
    assert second.repeated == 0
    assert len(scored(tmp_path / "out")) == 8


def test_kafka_address_is_checked():
    pytest.importorskip("confluent_kafka")
    with pytest.raises(ConfigError, match="kafka://HOST:PORT/TOPIC"):
        KafkaSource("kafka://localhost:9092")


@pytest.fixture
def broker():
    """librdkafka's own broker, in memory: it speaks the protocol, as long as its client lives."""
    confluent_kafka = pytest.importorskip("confluent_kafka")
    producer = confluent_kafka.Producer({"test.mock.num.brokers": 1, "bootstrap.servers": "mock"})
    address = str(next(iter(producer.list_topics(timeout=20).brokers.values())))
    return producer, address.split("/")[0]


def test_what_was_written_but_not_committed_is_noticed_and_nothing_is_lost(
    files, tiny_bundle, tmp_path, broker, monkeypatch
):
    """The follower dies between writing a batch and noting its offsets; another one goes on."""
    producer, address = broker
    for path in files[:5]:
        producer.produce("spectra", path.read_bytes(), partition=0)
    producer.produce("spectra", b"no FITS at all", partition=0)
    producer.flush(20)
    uri = f"kafka://{address}/spectra?group=dies&session.timeout.ms=6000"
    options = {"batch": 3, "wait_s": 3.0, "progress": False}

    def dies(self, messages):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(KafkaSource, "done", dies)
        with pytest.raises(KeyboardInterrupt):
            follow(tiny_bundle, uri, str(tmp_path / "out"), most=3, **options)
    assert len(scored(tmp_path / "out")) == 3
    again = follow(tiny_bundle, uri, str(tmp_path / "out"), most=6, **options)
    assert (again.scored, again.repeated, again.refused) == (2, 3, 1)
    assert len(scored(tmp_path / "out")) == 5
    (refused,) = pq.read_table(tmp_path / "out" / "refused").to_pylist()
    assert (refused["content"], refused["reason"]) == (b"no FITS at all", "not_fits")
    from confluent_kafka import Consumer, TopicPartition

    member = Consumer({"bootstrap.servers": address, "group.id": "dies"})
    (place,) = member.committed([TopicPartition("spectra", 0)], timeout=20)
    member.close()
    assert place.offset == 6


def test_other_content_of_a_known_observation_is_refused_with_its_bytes():
    import pyarrow as pa

    from skyray.inference.follow_ledger import Ledger

    def batch(*rows: tuple[str, str, str]) -> pa.Table:
        names = ("observation_id", "digest", "source")
        columns = [pa.array(column) for column in zip(*rows, strict=True)]
        table = pa.table(columns, names=names)
        table = table.append_column("object_id", table["observation_id"])
        table = table.append_column("delivery", pa.array([f"d{row[1]}" for row in rows]))
        return table.append_column("content", pa.array([row[1].encode() for row in rows]))

    import tempfile

    with tempfile.TemporaryDirectory() as out:
        done = Ledger(out).write(batch(("1", "a", "t/0/0"), ("2", "b", "t/0/1")), [])
        assert (done.scored, done.refused, done.repeated) == (2, 0, 0)
        ledger = Ledger(out)  # another member
        done = ledger.write(
            batch(("1", "a", "t/0/0"), ("2", "c", "t/0/2"), ("3", "e", "t/0/3")), []
        )
        assert (done.scored, done.refused, done.repeated) == (1, 1, 1)
        (refused,) = pq.read_table(Path(out) / "refused").to_pylist()
        assert (refused["reason"], refused["content"]) == ("conflicting_observation", b"c")
        done = ledger.write(batch(("2", "c", "t/0/2")), [])
        assert (done.scored, done.refused, done.repeated) == (0, 0, 1)
        found = pq.read_table(Path(out) / "scored")
        assert sorted(found["observation_id"].to_pylist()) == ["1", "2", "3"]
        assert not {"delivery", "content"} & set(found.column_names)
