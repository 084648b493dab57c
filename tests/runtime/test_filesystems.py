"""Stores behind places: they fail now and then, their secrets stay secret, Lance agrees."""

from __future__ import annotations

import math
import os
import pickle
import subprocess
import sys

import lance
import pyarrow as pa
import pytest
from tests.object_store import FAULTS, SECRET, object_store

from skyray.runtime import filesystems, places

BIG = bytes(range(256)) * 50_000  # 12.8 MB: two parts of an upload


def test_an_object_that_lacks_a_part_does_not_appear(monkeypatch):
    monkeypatch.setattr(filesystems, "_ATTEMPTS", 2)
    with object_store(math.inf) as found:
        uri = f"{found.uri}/file"
        places.write_bytes(uri, b"old")
        found.proxy.never = "partNumber=2"
        with pytest.raises(OSError, match="uploading part"):
            places.write_bytes(uri, BIG)
        assert found.proxy.calls["POST"]
        assert places.read_bytes(uri) == b"old"


def test_a_filesystem_keeps_its_retries_on_the_way_to_a_worker():
    code = (
        "import pickle, sys\n"
        "filesystem = pickle.loads(bytes.fromhex(sys.argv[1]))\n"
        "for _ in range(40):\n"
        "    assert filesystem.get_file_info('survey/file').size == 3\n"
    )
    with object_store(2.5, FAULTS) as found:
        places.write_bytes(f"{found.uri}/file", b"abc")
        pickled = pickle.dumps(places.resolve(found.uri)[0])
        assert SECRET.encode() not in pickled
        environment = os.environ | {"PYTHONPATH": "platform"}
        subprocess.run([sys.executable, "-c", code, pickled.hex()], env=environment, check=True)
        assert found.proxy.calls["HEAD"] > 50


def test_a_small_read_is_made_again():
    with object_store(4, ("500", "503")) as found:
        places.write_bytes(f"{found.uri}/file", b"0123456789")
        for _ in range(30):
            with places.read_stream(f"{found.uri}/file") as stream:
                stream.seek(3)
                assert (stream.read(2), stream.tell(), stream.read()) == (b"34", 5, b"56789")
        assert sum(found.proxy.made.values()) > 10


def test_a_lance_table_lies_where_its_place_says():
    with object_store(6, FAULTS, seed=3) as found:  # what comes late, Lance does not bear: #13
        _write_and_read_a_table(f"{found.uri}/tables")
        assert set(found.proxy.made) == set(FAULTS)


def test_a_local_lance_table_lies_where_its_place_says(tmp_path):
    _write_and_read_a_table(str(tmp_path))


def _write_and_read_a_table(place: str) -> None:
    uri = places.join(place, "table")
    address, options = places.lance_uri(uri), places.lance_options(uri)
    for start in range(0, 100, 10):
        rows = pa.table({"row": range(start, start + 10)})
        lance.write_dataset(rows, address, mode="append", storage_options=options)
    table = lance.dataset(address, storage_options=options)
    assert places.exists(places.join(uri, "_versions"))
    assert len(places.list_files(places.join(uri, "data"))) == 10
    assert sorted(table.to_table()["row"].to_pylist()) == list(range(100))
    places.remove(uri)
    assert not places.exists(uri)


@pytest.mark.parametrize("odd", ["a b", "ü", "a#b", "what?"])
def test_a_name_that_lance_would_change_is_refused(odd, tmp_path):
    with object_store() as found:
        uri = f"{found.uri}/{odd}"
        lance.write_dataset(pa.table({"a": [1]}), uri, storage_options=places.lance_options(uri))
        assert not places.exists(uri)  # it lies somewhere else
        with pytest.raises(ValueError, match="expected a name of letters"):
            places.lance_uri(uri)
    local = places.lance_uri(tmp_path / odd)
    lance.write_dataset(pa.table({"a": [1]}), local)
    assert places.exists(tmp_path / odd / "_versions")


@pytest.mark.parametrize("form", ["{host}&scheme=http", "http://{host}"])
def test_options_of_a_place_reach_its_store(form, monkeypatch):
    with object_store() as found:
        host = found.endpoint.removeprefix("http://")
        uri = f"{found.uri}/x?endpoint_override={form.format(host=host)}&region=us-west-2"
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        file, table = places.join(uri, "a", "file"), places.join(uri, "table")
        places.write_bytes(file, b"x")
        assert [one.uri for one in places.walk(uri)] == [file]
        options = places.lance_options(table)
        lance.write_dataset(pa.table({"a": [1]}), places.lance_uri(table), storage_options=options)
        assert places.exists(places.join(table, "_versions"))
        assert options["aws_region"] == places.resolve(uri)[0].region == "us-west-2"
        monkeypatch.setenv("AWS_ENDPOINT_URL", found.endpoint)
        assert places.exists(f"{found.uri}/x/a/file")


def test_lance_is_told_what_pyarrow_uses(monkeypatch):
    for key in ("AWS_ENDPOINT_URL", "AWS_SESSION_TOKEN", "AWS_REGION"):
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    found = places.lance_options("s3://bucket/x")
    assert found["aws_region"] == "eu-west-1"
    assert found["aws_virtual_hosted_style_request"] == "true"
    assert "aws_endpoint" not in found
    assert (found["aws_access_key_id"], found["aws_secret_access_key"]) == ("key", SECRET)
    assert places.lance_options("s3://dotted.bucket/x")["aws_virtual_hosted_style_request"] == (
        "false"  # no certificate covers such a host
    )
    own = "s3://bucket/x?endpoint_override=store.org&force_virtual_addressing=true"
    assert places.lance_options(own)["aws_endpoint"] == "https://bucket.store.org"
    assert places.lance_options(own)["allow_http"] == "false"
    open_to_all = places.lance_options("s3://bucket/x?anonymous=true")
    assert open_to_all["aws_skip_signature"] == "true"
    assert SECRET not in open_to_all.values()
    assert places.lance_options("/data/x") == {}
    assert "client_max_retries" in places.lance_options("gs://bucket/x")


def test_credentials_in_a_place_are_refused_without_showing_them():
    for uri in (f"s3://key:{SECRET}@bucket/x", f"s3://{SECRET}@bucket/x", f"ftp://me:{SECRET}@h/x"):
        with pytest.raises(ValueError, match="expected no user or password") as caught:
            places.exists(uri)
        assert SECRET not in str(caught.value)


def test_no_failure_shows_a_secret(monkeypatch):
    monkeypatch.setattr(filesystems, "_ATTEMPTS", 1)
    with object_store(math.inf) as found:
        uri, table = f"{found.uri}/file", pa.table({"a": [1]})
        options = places.lance_options(uri)
        found.proxy.never = "file"
        failures = [
            lambda: places.read_bytes("s3://no-such-bucket/file"),
            lambda: places.write_bytes("s3://no-such-bucket/file", b""),
            lambda: places.read_bytes(uri),
            lambda: places.write_bytes(uri, b"x"),
            lambda: lance.dataset("s3://no-such-bucket/x", storage_options=options),
            lambda: lance.write_dataset(table, uri, storage_options=options),
        ]
        for failure in failures:
            with pytest.raises((OSError, ValueError)) as caught:
                failure()
            assert SECRET not in repr(caught.value) + str(caught.value.__cause__)


def test_this_machine_has_one_filesystem(tmp_path):
    assert filesystems.resolve(tmp_path / "a")[0] is filesystems.resolve("b")[0]
