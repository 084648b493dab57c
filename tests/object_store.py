"""A real S3 emulation on loopback, and a real proxy before it that fails a call now and then."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

BUCKET = "survey"
KEY, SECRET, REGION = "test-key", "test-secret-that-no-message-may-show", "eu-central-1"
# What becomes of a failing call. The store never sees it: `500`, `503`, `closed` (no answer).
FAULTS = ("500", "503", "closed")
# The store has done its work: half of the answer's body comes, or no answer at all.
LATE_FAULTS = ("cut", "lost")
_SERVER = """
import sys
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
print(*server.get_host_and_port(), flush=True)
sys.stdin.read()  # ends with whoever started it
"""
_REFUSAL = (  # as long as the real ones
    '<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{}</Code><Message>Please try again.'
    "</Message><RequestId>656c76696e6727732072657175657374</RequestId><HostId>Uuag1LuByRx9e6j5Onimru"
    "9pO4ZVKnJ2Qz7/C1NPcfTWAtRPfTaOFg==</HostId></Error>"
)
_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "expect", "te"}


@dataclass
class Store:
    """A running store: where it answers and what clients in other processes need to reach it."""

    endpoint: str
    bucket: str
    environment: dict[str, str]
    proxy: Proxy | None = None

    @property
    def uri(self) -> str:
        return f"s3://{self.bucket}"


@dataclass
class Proxy:
    """What the proxy saw: calls by method, and the faults it made.

    A call whose path holds the text `never`, where one is given, always gets a 500.
    """

    one_in: float
    faults: Sequence[str]
    seed: int
    never: str = ""
    calls: Counter = field(default_factory=Counter)
    made: Counter = field(default_factory=Counter)

    def __post_init__(self):
        self._random, self._lock = random.Random(self.seed), threading.Lock()

    def fault(self, method: str, path: str) -> str:
        """Count a call and return what becomes of it: a fault, or nothing."""
        with self._lock:
            self.calls[method] += 1
            if self.never and self.never in path:
                return "500"
            if self._random.random() >= 1 / self.one_in:
                return ""
            fault = self._random.choice(self.faults)
            self.made[fault] += 1
            return fault


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def _pass(self) -> None:
        proxy, body = self.server.proxy, self._body()
        fault = proxy.fault(self.command, self.path)
        if fault in ("500", "503"):
            code = "InternalError" if fault == "500" else "SlowDown"
            self._answer(int(fault), {}, _REFUSAL.format(code).encode())
        elif fault == "closed":
            self.close_connection = True
        else:
            status, headers, content = self._ask(body)
            if fault == "lost":
                self.close_connection = True
            else:
                self._answer(status, headers, content, cut=fault == "cut")

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _pass

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():  # trailers
            pass
        return b"".join(parts)

    def _ask(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        headers = {k: v for k, v in self.headers.items() if k.lower() not in _HOP}
        server = HTTPConnection(*self.server.behind, timeout=60)
        try:
            server.request(self.command, self.path, body, headers)
            answer = server.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()
        except (OSError, HTTPException) as error:
            return 502, {}, repr(error).encode()
        finally:
            server.close()

    def _answer(self, status: int, headers: dict[str, str], content: bytes, cut=False) -> None:
        self.send_response_only(status)
        length = len(content)
        for name, value in headers.items():
            if name.lower() == "content-length" and self.command == "HEAD":
                length = int(value)
            elif name.lower() not in _HOP:
                self.send_header(name, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[: len(content) // 2] if cut else content)
        self.close_connection |= cut

    def log_message(self, *arguments):
        pass


@contextmanager
def object_store(
    one_in: float = 0, faults: Sequence[str] = FAULTS, seed: int = 0, bucket: str = BUCKET
) -> Iterator[Store]:
    """Run a store with one bucket and set the ``AWS_…`` variables to it for the block.

    Parameters
    ----------
    one_in : float
        Of so many calls one fails, drawn by `seed`; infinity: none, but the proxy counts; 0: no
        proxy in between.
    faults : sequence of str
        What may happen to it.
    """
    with _server() as address:
        connection = HTTPConnection(*address, timeout=60)
        connection.request("PUT", f"/{bucket}")
        assert connection.getresponse().status == 200
        connection.close()
        if not one_in:
            with _client_of(f"http://{address[0]}:{address[1]}", bucket, None) as store:
                yield store
            return
        with (
            flaky_proxy(address, one_in, faults, seed) as (endpoint, proxy),
            _client_of(endpoint, bucket, proxy) as store,
        ):
            yield store


@contextmanager
def _server() -> Iterator[tuple[str, int]]:
    """Run the emulation in a child process; its address, and its end by the block's end."""
    with subprocess.Popen(
        [sys.executable, "-c", _SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, text=True,
    ) as child:  # fmt: skip
        try:
            host, port = child.stdout.readline().split()
            yield host, int(port)
        finally:
            child.kill()


@contextmanager
def flaky_proxy(
    behind: tuple[str, int], one_in: float, faults: Sequence[str] = FAULTS, seed: int = 0
) -> Iterator[tuple[str, Proxy]]:
    """Run the proxy in a thread; yield its URL and what it counts."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    server.behind, server.proxy = behind, Proxy(one_in, faults, seed)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", server.proxy
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def _client_of(endpoint: str, bucket: str, proxy: Proxy | None) -> Iterator[Store]:
    environment = {
        "AWS_ENDPOINT_URL": endpoint, "AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_REGION": REGION, "AWS_DEFAULT_REGION": REGION, "AWS_EC2_METADATA_DISABLED": "true",
        "NO_PROXY": urlsplit(endpoint).hostname, "no_proxy": urlsplit(endpoint).hostname,
    }  # fmt: skip
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    try:
        yield Store(endpoint, bucket, environment, proxy)
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name)
            else:
                os.environ[name] = value
