"""A real Ray head as a child process, with ports, folder and token of its own."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.error import HTTPError, URLError

ROOT = Path(__file__).resolve().parents[1]
_STRANGE = ("RAY_ADDRESS", "RAY_AUTH_TOKEN", "RAY_JOB_CONFIG_JSON_ENV_VAR", "PYTHONPATH")


@dataclass(frozen=True)
class Head:
    """A running head: where it answers, and the environment its clients need."""

    address: str
    dashboard: str
    environment: dict[str, str]

    def run(self, *command: str, timeout: float = 240) -> subprocess.CompletedProcess:
        """Run a command as a user of this head would, from the repository's root."""
        return subprocess.run(
            command, env=self.environment, cwd=ROOT, timeout=timeout, capture_output=True, text=True
        )


def program(name: str) -> str:
    """Return a console script of the running environment."""
    return str(Path(sys.executable).with_name(name))


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextmanager
def ray_head(home: Path, **variables: str) -> Iterator[Head]:
    """Start a head with 4 logical CPUs and end it, and only it, after the block."""
    folder = Path(tempfile.mkdtemp(prefix="head"))  # short: socket paths are limited
    token = folder / "token"
    token.write_text(secrets.token_hex(32))
    token.chmod(0o600)
    kept = {k: v for k, v in os.environ.items() if k not in _STRANGE}
    environment = {
        **kept, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0", "SKYRAY_HOME": str(home), "OMP_NUM_THREADS": "1",
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
        "RAY_DASHBOARD_STARTUP_TIMEOUT_S": "180",
        **variables,
    }  # fmt: skip
    port, dashboard = free_port(), free_port()
    command = [
        program("ray"), "start", "--head", "--block", f"--port={port}", "--num-cpus=4",
        "--include-dashboard=true", f"--dashboard-port={dashboard}", f"--temp-dir={folder}",
        f"--ray-client-server-port={free_port()}", "--object-store-memory=300000000",
        f"--dashboard-agent-listen-port={free_port()}",
    ]  # fmt: skip
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, env=environment, cwd=ROOT, stdout=log, stderr=log)
    try:
        url = f"http://127.0.0.1:{dashboard}"
        _wait(url, process, folder / "log")
        yield Head(f"127.0.0.1:{port}", url, environment)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _wait(url: str, process: subprocess.Popen, log: Path, seconds: float = 180) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/api/version", timeout=5):
                return
        except HTTPError:  # it answers, and wants the token
            return
        except (URLError, TimeoutError, ConnectionError):
            time.sleep(0.5)
    raise RuntimeError(f"the head did not start within {seconds:g} s:\n{log.read_text()}")
