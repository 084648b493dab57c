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
from skyray.inference.follow import KafkaSource, follow
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
