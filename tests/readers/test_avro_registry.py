"""Messages in Confluent's wire format: schemas from a folder, and from a registry over HTTP."""

from __future__ import annotations

import importlib.util
import io
import json
import pickle
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import fastavro
import pytest
from pyarrow import fs

from skyray.cards import load_card
from skyray.readers.avro_bytes import avro_records
from skyray.readers.avro_registry import FolderSchemas, RegistryDown, RegistrySchemas, schemas_at
from skyray.readers.base import SurveyFile, make_reader
from skyray.records import InvalidRecord

SOURCE = {"type": "record", "name": "diaSource", "namespace": "lsst.v9_0", "fields": [
    {"name": "id", "type": "long"}, {"name": "flux", "type": ["null", "float"]}]}  # fmt: skip
ALERT = {"type": "record", "name": "alert", "namespace": "lsst.v9_0", "fields": [
    {"name": "diaSource", "type": "lsst.v9_0.diaSource"},
    {"name": "prv", "type": ["null", {"type": "array", "items": "diaSource"}]}]}  # fmt: skip
WHOLE = {**ALERT, "fields": [{"name": "diaSource", "type": SOURCE}, ALERT["fields"][1]]}
PACKET = {"diaSource": {"id": 5, "flux": 1.5}, "prv": [{"id": 4, "flux": None}]}


def message(number: int, packet=PACKET) -> bytes:
    stream = io.BytesIO()
    fastavro.schemaless_writer(stream, fastavro.parse_schema(json.loads(json.dumps(WHOLE))), packet)
    return b"\0" + number.to_bytes(4, "big") + stream.getvalue()


@pytest.fixture
def folder(tmp_path) -> Path:
    place = tmp_path / "schema" / "9" / "0"
    place.mkdir(parents=True)
    (place / "lsst.v9_0.alert.avsc").write_text(json.dumps(ALERT))
    (place / "lsst.v9_0.diaSource.avsc").write_text(json.dumps(SOURCE))
    (tmp_path / "schema" / "17.avsc").write_text(json.dumps(WHOLE))
    return tmp_path / "schema"


def test_schemas_of_a_folder_by_number_or_by_rubins_names(folder):
    schemas = pickle.loads(pickle.dumps(schemas_at(str(folder))))
    for number in (17, 900):
        assert list(avro_records(message(number), "a", schemas)) == [PACKET]
    with pytest.raises(InvalidRecord, match=r"schema_unknown.*schema 901: expected 901\.avsc"):
        list(avro_records(message(901), "a", schemas))
    assert schemas_at(None) is None


def test_a_message_without_its_schema_says_which_it_needs():
    with pytest.raises(InvalidRecord, match=r"schema_unknown.*of schema 900"):
        list(avro_records(message(900), "a"))


def test_a_message_must_be_what_its_schema_says(folder):
    schemas = FolderSchemas(str(folder))
    for content in (message(17) + b"x", message(17)[:-1], message(17)[:7]):
        with pytest.raises(InvalidRecord, match="avro_corrupt"):
            list(avro_records(content, "a", schemas))
    for content in (b"\0\0\0", b"\xc3\x01" + bytes(20)):
        with pytest.raises(InvalidRecord, match="not_avro"):
            list(avro_records(content, "a", schemas))


class Registry(BaseHTTPRequestHandler):
    """Of Confluent's REST protocol what a reader asks for: schemas by number, and references."""

    asked: list[str] = []  # noqa: RUF012
    answers = {  # noqa: RUF012
        "/schemas/ids/17": {"schema": json.dumps(WHOLE)},
        "/schemas/ids/900": {"schema": json.dumps(ALERT), "references": [
            {"name": "lsst.v9_0.diaSource", "subject": "diaSource", "version": 2}]},
        "/subjects/diaSource/versions/2": {"schema": json.dumps(SOURCE), "subject": "diaSource",
                                           "version": 2, "id": 3, "schemaType": "AVRO"},
    }  # fmt: skip

    def do_GET(self):
        path = self.path.split("?")[0]
        self.asked.append(path)
        answer = self.answers.get(path)
        body = json.dumps(answer or {"error_code": 40403, "message": "Schema not found"}).encode()
        self.send_response(200 if answer else 404)
        self.send_header("Content-Type", "application/vnd.schemaregistry.v1+json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def test_schemas_of_a_registry_are_asked_for_once():
    pytest.importorskip("confluent_kafka.schema_registry")
    server = HTTPServer(("127.0.0.1", 0), Registry)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        schemas = schemas_at(f"http://127.0.0.1:{server.server_port}")
        assert isinstance(schemas, RegistrySchemas)
        for number in (17, 17, 900, 900):
            assert list(avro_records(message(number), "a", schemas)) == [PACKET]
        assert Registry.asked.count("/schemas/ids/17") == 1
        with pytest.raises(InvalidRecord, match="schema_unknown"):
            schemas.text(5)
        copy = pickle.loads(pickle.dumps(schemas))
        assert list(avro_records(message(17), "a", copy)) == [PACKET]
    finally:
        server.shutdown()
        server.server_close()


def test_a_registry_that_does_not_answer_is_no_fault_of_the_message(monkeypatch):
    pytest.importorskip("confluent_kafka.schema_registry")
    schemas = RegistrySchemas("http://127.0.0.1:9")
    with pytest.raises(RegistryDown, match=r"127\.0\.0\.1:9"):
        schemas.text(17)


def test_real_messages_of_rubin_with_its_own_schemas(survey_data):
    found = importlib.util.find_spec("lsst.alert.packet") if importlib.util.find_spec("lsst") else 0
    if not found:
        pytest.skip("Rubin's schemas: pip install lsst-alert-packet")
    card = load_card("lsst_alerts")
    options = {**card.reader_options, "schemas": str(Path(found.origin).parent / "schema")}
    reader = make_reader(card.reader, options)
    for number in (0, 1):
        (path,) = (survey_data / "rubin_alerts").glob(f"pipeline__*message_{number}.avro")
        (alert,) = reader.read(SurveyFile(fs.LocalFileSystem(), str(path)))
        assert alert.extra["schemavsn"] == "7.4"
        assert alert.science.shape == ((30, 30), (48, 48))[number]
        assert np_close(alert.source_pixels()[0], alert.science.shape)


def np_close(pixel, shape) -> bool:
    return all(abs(at - side / 2) < 2 for at, side in zip(pixel, shape, strict=True))
