"""Downloads from a server that fails, stalls, truncates and lies."""

from __future__ import annotations

import gzip
import hashlib
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy.table import Table
from tests.object_store import FAULTS, LATE_FAULTS, object_store

from skyray.cards import Card
from skyray.config import ConfigError
from skyray.data import download as module
from skyray.data.download import download
from skyray.runtime import places

CONTENT = bytes(range(256)) * 2000


class _Survey(BaseHTTPRequestHandler):
    """Behaviour by file name; the first answers of a name may differ from the later ones."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        name = self.path.rpartition("/")[2].removesuffix(".fits")
        with self.server.lock:
            self.server.seen[name] += 1
            self.server.times.append(time.monotonic())
            turn = self.server.seen[name]
        getattr(self, f"_{name.rstrip('0123456789')}", self._missing)(turn)

    def _whole(self, turn: int):
        self._send(CONTENT)

    def _missing(self, turn: int):
        self._status(404)

    def _broken(self, turn: int):
        self._status(500)

    def _busy(self, turn: int):
        if turn == 1:
            self._status(503, {"Retry-After": "1"})
        else:
            self._send(CONTENT)

    def _stalling(self, turn: int):
        if turn == 1:
            self._start(200, len(CONTENT))
            self.wfile.write(CONTENT[:1000])
            self.wfile.flush()
            self.server.stop.wait(5)
            self.close_connection = True
        else:
            self._send(CONTENT)

    def _cut(self, turn: int):
        begun = self.headers.get("Range", "")
        self.server.ranges.append(begun)
        if turn == 1:
            self._start(200, len(CONTENT))
            self.wfile.write(CONTENT[:300_000])
            self.close_connection = True
            return
        start = int(begun.removeprefix("bytes=").removesuffix("-"))
        self._start(206, len(CONTENT) - start)
        self.wfile.write(CONTENT[start:])

    def _lying(self, turn: int):
        self._send(CONTENT[:-1] + b"x" if turn == 1 else CONTENT)

    def _send(self, content: bytes):
        self._start(200, len(content))
        self.wfile.write(content)

    def _start(self, status: int, length: int):
        self.send_response(status)
        self.send_header("Content-Length", str(length))
        self.end_headers()

    def _status(self, status: int, headers: dict[str, str] | None = None):
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(module, "_FIRST_WAIT_S", 0.02)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Survey)
    server.daemon_threads = True
    server.lock, server.stop = threading.Lock(), threading.Event()
    server.seen, server.times, server.ranges = Counter(), [], []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.stop.set()
    server.shutdown()
    server.server_close()


@pytest.fixture
def card(server) -> Card:
    url = f"http://127.0.0.1:{server.server_port}/spectra/{{name}}.fits"
    return Card(
        name="served", title="Served", record="spectrum", reader="sdss_spec",
        grid={"kind": "linear", "start": 1, "step": 1, "size": 2}, classes=["A"],
        files={"url": url, "columns": ["name"]}, citation="none", licence="none",
    )  # fmt: skip


def fetch(card, names, out, **options):
    rows = [{"name": name} if isinstance(name, str) else name for name in names]
    options = {"rate_limit": None, "timeout": 1.0, "retries": 2, "progress": False} | options
    return download(card, rows, out, **options)


@pytest.mark.parametrize("name", ["whole", "busy", "stalling", "cut"])
def test_the_file_arrives_whole_whatever_the_server_does(server, card, tmp_path, name):
    summary = fetch(card, [name], tmp_path)
    assert summary["fetched"] == 1
    assert [path.name for path in tmp_path.iterdir()] == [f"{name}.fits"]
    assert (tmp_path / f"{name}.fits").read_bytes() == CONTENT


def test_a_cut_transfer_goes_on_where_it_stopped(server, card, tmp_path):
    fetch(card, ["cut"], tmp_path)
    assert server.ranges[0] == ""
    assert server.ranges[1] == "bytes=262144-"  # whole blocks of what came are kept


def test_retry_after_is_honoured(server, card, tmp_path):
    fetch(card, ["busy"], tmp_path)
    assert server.times[1] - server.times[0] >= 1.0


def test_failures_are_reported_and_the_others_fetched(server, card, tmp_path):
    summary = fetch(card, ["broken", "whole", "missing"], tmp_path)
    assert (summary["fetched"], summary["failed"]) == (1, 2)
    report = (tmp_path / "download-failures.csv").read_text()
    assert "broken.fits: 500" in report
    assert "missing.fits: 404" in report
    assert server.seen["broken"] == 3
    assert server.seen["missing"] == 1  # of no use to ask again
    fetch(card, ["whole"], tmp_path)
    assert not (tmp_path / "download-failures.csv").exists()


@pytest.mark.parametrize("named", ["spec-{name}.fits", "../../{name}.fits"])
def test_the_card_may_name_the_file(server, card, tmp_path, named):
    """Where the URL ends in a number; a name never leaves the folder."""
    card = card.model_copy(update={"files": card.files.model_copy(update={"name": named})})
    fetch(card, ["whole"], tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [named.split("/")[-1].format(name="whole")]


@pytest.mark.parametrize("kind", ["sha256", "sha1", "md5"])
def test_a_wrong_checksum_is_fetched_again(server, card, tmp_path, kind):
    row = {"name": "lying", kind: hashlib.new(kind, CONTENT).hexdigest()}
    assert fetch(card, [row], tmp_path)["fetched"] == 1
    assert server.seen["lying"] == 2
    assert (tmp_path / "lying.fits").read_bytes() == CONTENT


def test_a_checksum_that_never_fits_fails_and_leaves_nothing(server, card, tmp_path):
    summary = fetch(card, [{"name": "whole", "sha256": "0" * 64}], tmp_path)
    assert summary["failed"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["download-failures.csv"]
    assert "do not have the list's sha256" in (tmp_path / "download-failures.csv").read_text()


def test_what_is_there_is_not_fetched_again_unless_it_is_wrong(server, card, tmp_path):
    fetch(card, ["whole"], tmp_path)
    assert fetch(card, ["whole"], tmp_path)["already there"] == 1
    assert server.seen["whole"] == 1
    (tmp_path / "whole.fits").write_bytes(b"half")
    fetch(card, [{"name": "whole", "size": len(CONTENT)}], tmp_path)
    assert (tmp_path / "whole.fits").read_bytes() == CONTENT


def test_the_rate_is_kept_over_all_workers(server, card, tmp_path):
    names = [f"whole{i}" for i in range(9)]
    assert fetch(card, names, tmp_path, rate_limit=20.0, workers=8)["fetched"] == 9
    assert max(server.times) - min(server.times) >= 8 / 20.0 - 0.03


def test_the_list_may_be_a_table(server, card, tmp_path):
    listing = tmp_path / "list.csv"
    listing.write_text(f"name,size\nwhole,{len(CONTENT)}\n")
    summary = download(card, listing, tmp_path / "out", progress=False)
    assert summary["bytes"] == len(CONTENT)


def test_a_missing_column_is_named(card, tmp_path):
    with pytest.raises(ConfigError, match=r"row 1: expected columns \['name'\]"):
        fetch(card, [{"plate": 1}], tmp_path)


def test_a_card_without_files_is_refused(card, tmp_path):
    with pytest.raises(ConfigError, match="does not say where"):
        fetch(card.model_copy(update={"files": None}), ["whole"], tmp_path)


# into an object store --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bucket():
    with object_store(8, (*FAULTS, *LATE_FAULTS), seed=1) as store:
        yield store.uri


def test_a_store_gets_whole_files_and_a_report(server, card, bucket):
    out = places.join(bucket, "whole")
    summary = fetch(card, ["whole", "cut", "missing"], out)
    assert (summary["fetched"], summary["failed"]) == (2, 1)
    assert summary["report"] == places.join(out, "download-failures.csv")
    assert b"missing.fits: 404" in places.read_bytes(summary["report"])
    for name in ("whole", "cut"):
        assert places.read_bytes(places.join(out, f"{name}.fits")) == CONTENT
    assert fetch(card, ["whole", "cut"], out)["already there"] == 2
    found = {places.name(path) for path, _ in places.list_files(out)}
    assert found == {"whole.fits", "cut.fits"}
    assert (server.seen["whole"], server.seen["cut"]) == (1, 2)


def test_what_a_store_holds_is_checked(server, card, bucket):
    out = places.join(bucket, "checked")
    row = {"name": "whole", "sha256": hashlib.sha256(CONTENT).hexdigest()}
    places.write_bytes(places.join(out, "whole.fits"), CONTENT[:-1] + b"x")
    assert fetch(card, [row], out)["fetched"] == 1
    assert places.read_bytes(places.join(out, "whole.fits")) == CONTENT
    assert fetch(card, [row], out)["already there"] == 1


def test_the_next_call_goes_on_with_what_a_store_holds_of_a_file(server, card, bucket):
    out = places.join(bucket, "begun")
    assert fetch(card, ["cut"], out, retries=0)["failed"] == 1
    assert places.exists(places.join(out, "cut.fits.part"))
    assert not places.exists(places.join(out, "cut.fits"))
    assert fetch(card, ["cut"], out)["fetched"] == 1
    assert server.ranges == ["", "bytes=262144-"]
    assert places.read_bytes(places.join(out, "cut.fits")) == CONTENT
    assert [places.name(path) for path, _ in places.list_files(out)] == ["cut.fits"]


@pytest.mark.parametrize("kind", ["csv", "csv.gz", "parquet", "fits"])
def test_the_list_may_lie_in_a_store(server, card, bucket, kind, tmp_path):
    table, here = Table({"name": ["whole"], "size": [len(CONTENT)]}), tmp_path / f"list.{kind}"
    if kind == "parquet":
        pq.write_table(pa.table({"name": ["whole"], "size": [len(CONTENT)]}), here)
    elif kind == "csv.gz":
        here.write_bytes(gzip.compress(f"name,size\nwhole,{len(CONTENT)}\n".encode()))
    else:
        table.write(here)
    listing = places.join(bucket, here.name)
    places.copy(here, listing)
    out = places.join(bucket, f"of-{kind}")
    assert download(card, listing, out, progress=False)["bytes"] == len(CONTENT)
