"""What MLflow has not been told: kept, sent, said, or set aside by name; nobody waits for long."""

from __future__ import annotations

import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from skyray.cli import main, verb
from skyray.runtime import outbox, places, tracking


class Server(ThreadingHTTPServer):
    """Says it is healthy; its API answers with `status`, or only after the test where that is 0."""

    daemon_threads = True

    def __init__(self, reads: int, writes: int):
        self.statuses, self.asked, self.over = {"GET": reads, "POST": writes}, 0, threading.Event()
        super().__init__(("127.0.0.1", 0), Answer)

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Answer(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        status = 200 if self.path == "/health" else self.server.statuses[self.command]
        self.server.asked += self.path != "/health"
        if not status:
            self.server.over.wait(60)
            return
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(status)
        self.send_header("Content-Length", "2")
        self.send_header("Retry-After", "3600")
        self.end_headers()
        self.wfile.write(b"{}")

    do_POST = do_GET

    def log_message(self, *_) -> None:
        pass


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("SKYRAY_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(outbox, "_away", {})
    monkeypatch.setattr(outbox, "_untold", {})
    return tmp_path


@pytest.fixture(params=[(0, 0), (500, 500), (200, 0), (200, 503)], ids=str)
def ill(request, home, monkeypatch):
    """A server that is healthy by its own account only."""
    server = Server(*request.param)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    monkeypatch.setattr(outbox, "_ANSWER_S", 0.3)
    monkeypatch.setattr(outbox, "PATIENCE_S", 1.0)
    monkeypatch.setattr(outbox, "MOST_S", 1.5)
    monkeypatch.setattr(tracking, "_START_S", 0.5)
    tracking.client(server.uri)  # its import is not what is timed
    yield server
    server.over.set()
    server.shutdown()
    server.server_close()


def test_a_server_that_is_only_healthy_delays_nothing(ill):
    """Twenty epochs and the end: a total deadline, not one a message."""
    started = time.monotonic()
    run_id = tracking.start_run("ill", "ill", {"a": 1}, {})
    for epoch in range(20):
        outbox.post(ill.uri, run_id, "metrics", {"values": {"x": 1.0}, "step": epoch, "time": 1})
    outbox._away.clear()  # as after a long training
    tracking.finish_run(run_id, failed=False)
    assert time.monotonic() - started < 6
    (line,) = outbox.untold()
    assert f"MLflow has not taken 23 messages of run {run_id} ({ill.uri}: " in line
    assert line.endswith("skyray sync")
    assert not outbox.untold()  # said once


def test_a_given_up_server_is_asked_by_nobody_for_a_while(ill, monkeypatch):
    """So that what waits of many runs is no wait for each."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    for number in range(5):
        content = {"values": {"x": 1.0}, "step": 0, "time": 1}
        outbox.post(ill.uri, f"run-{number}", "metrics", content)
    started = time.monotonic()
    found = outbox.sync()
    assert time.monotonic() - started < 10
    assert [run.waiting for run in found.values()] == [1] * 5
    assert all(ill.uri in run.cause for run in found.values())


@outbox.sends("strange")
def _strange(uri: str, run_id: str, content) -> None:
    if content["say"] == "never":
        raise outbox.Never("the thing is gone")
    if content["say"] == "not now":
        raise RuntimeError("come back later")


@verb.verb
def tell_mlflow(json: verb.Json = None):
    """Example: skyray tell-mlflow"""
    from skyray.runtime import noise

    with noise.kept("tell-mlflow"):
        for say in ("never", "not now", "yes"):
            outbox.post("sqlite:///x", "r1", "strange", {"say": say})
        outbox.send_or_say("sqlite:///x", "r1")
    raise ValueError("and the work failed")


def test_what_is_left_is_said_at_the_end_of_a_verb(home, capsys):
    """Not in the log file only, where nobody looks, and also when the work failed."""
    with pytest.raises(SystemExit) as ended:
        main(["tell-mlflow"])
    assert ended.value.code == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "error: and the work failed"
    assert lines[-2].startswith("MLflow was not told: strange of run r1: the thing is gone (in ")
    assert lines[-1] == (
        "MLflow has not taken 1 message of run r1 (sqlite:///x: come back later); to send what "
        "waits: skyray sync"
    )
    with pytest.raises(SystemExit) as ended:
        main(["sync"])
    assert ended.value.code == 1
    shown = capsys.readouterr()
    assert "come back later" in shown.out
    assert "MLflow" not in shown.err


def test_files_that_were_written_again_are_not_sent(home):
    """A folder of scores that a second evaluation went into is no longer the first one's."""
    out = places.join(str(home), "scores")
    places.write_bytes(places.join(out, "figures", "a.png"), b"first")
    tracking.log_files("r1", out, ["figures"], "evaluation")
    places.write_bytes(places.join(out, "figures", "a.png"), b"other")
    found = outbox.send("r1")
    assert (found.waiting, found.refused) == (0, 1)
    assert "figures: is not what the run left there" in found.refusals[0]
