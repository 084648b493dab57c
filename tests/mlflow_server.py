"""A real MLflow tracking server on loopback, with SQLite; it can be killed and come back."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from skyray.runtime import outbox


@dataclass
class MlflowServer:
    """`folder` keeps the database and artifacts while no server runs."""

    folder: Path
    process: subprocess.Popen | None = None

    def __post_init__(self):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> MlflowServer:
        """Start the server and wait until it answers."""
        self.folder.mkdir(parents=True, exist_ok=True)
        command = [
            sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1",
            "--port", str(self.port), "--workers", "1",
            "--backend-store-uri", f"sqlite:///{self.folder}/mlflow.db",
            "--artifacts-destination", f"{self.folder}/artifacts",
        ]  # fmt: skip
        with (self.folder / "log").open("a") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, start_new_session=True, cwd=self.folder,
                env={
                    **{k: v for k, v in os.environ.items() if k != "MLFLOW_TRACKING_URI"},
                    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # more processes, of no use here
                },
            )  # fmt: skip
        deadline = time.monotonic() + 300
        while not outbox.answers(self.uri):
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError((self.folder / "log").read_text()[-3000:])
            time.sleep(0.2)
        return self

    def kill(self) -> None:
        """Kill it and its workers at once."""
        if self.process and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
