"""How long does a training wait for MLflow when the server is alive, dead, hangs, or is ill?

The wait is what the loop does with an epoch's curves (`tracking.log_metrics`), the only call that a
training makes while it trains; a step of the optimiser runs beside the sending thread and is timed
as well: a matrix product in torch, as long as a small network's step. Beginning and end of the run
are timed together. Four servers: a real one on loopback (SQLite), a port where nothing listens, a
socket that takes connections and never answers, and one that says it is healthy and lets whoever
reads it read, and never answers who writes. In the end the real server is told all of it, and the
rows are counted.

    python benchmarks/tracking.py [--epochs 40] [--only ill] [--json FILE]
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "platform"), str(ROOT / "benchmarks"), str(ROOT / "tests")]

import torch  # noqa: E402
from mlflow_server import MlflowServer  # noqa: E402
from report import Row, finish  # noqa: E402

from skyray.runtime import outbox, tracking  # noqa: E402

_STEPS, _CURVES, _MOST_S = 20, 40, 1.0
_ENDS_S = 150.0  # of beginning and end: what the outbox waits in all, and the first answer


class Ill(BaseHTTPRequestHandler):
    """Answers whoever reads, and never who writes."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def do_POST(self) -> None:
        time.sleep(3600)

    def log_message(self, *_) -> None:
        pass


def trained(uri: str, epochs: int) -> tuple[str, float, float, float]:
    """Train against a server; return the run and its longest waits, s.

    At the ends of epochs, in steps, and for beginning and end of the run together.
    """
    os.environ["MLFLOW_TRACKING_URI"] = uri
    tracking.client(uri)  # its import is not what is timed
    began = time.perf_counter()
    run_id = tracking.start_run("benchmark", "waits", {"epochs": epochs}, {})
    began = time.perf_counter() - began
    matrix = torch.randn(256, 256)
    longest_log, longest_step = 0.0, 0.0
    for epoch in range(epochs):
        for _ in range(_STEPS):
            started = time.perf_counter()
            matrix = torch.nn.functional.normalize(matrix @ matrix)
            time.sleep(0.005)
            longest_step = max(longest_step, time.perf_counter() - started)
        started = time.perf_counter()
        curves = {f"stage/metric-{number}": float(epoch) for number in range(_CURVES)}
        tracking.log_metrics(uri, run_id, curves, epoch)
        longest_log = max(longest_log, time.perf_counter() - started)
    outbox._away.clear()  # as after epochs of minutes: the server is tried again
    ended = time.perf_counter()
    tracking.finish_run(run_id, failed=False)
    return run_id, longest_log, longest_step, began + time.perf_counter() - ended


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--only", choices=["alive", "dead", "hangs", "ill"])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder, socket.socket() as silent, socket.socket() as off:
        os.environ["SKYRAY_HOME"] = f"{folder}/home"
        silent.bind(("127.0.0.1", 0))
        silent.listen(64)
        off.bind(("127.0.0.1", 0))  # bound, so that nobody else listens there
        server = MlflowServer(Path(folder) / "server").start()
        ill = ThreadingHTTPServer(("127.0.0.1", 0), Ill)
        threading.Thread(target=ill.serve_forever, daemon=True).start()
        try:
            uris = {
                "alive": server.uri,
                "dead": f"http://127.0.0.1:{off.getsockname()[1]}",
                "hangs": f"http://127.0.0.1:{silent.getsockname()[1]}",
                "ill": f"http://127.0.0.1:{ill.server_port}",
            }
            runs = {}
            for state, uri in uris.items():
                if options.only not in (None, state):
                    continue
                runs[state], log, step, ends = trained(uri, options.epochs)
                for what, wait, most in (
                    ("an epoch's end", log, _MOST_S), ("a step", step, _MOST_S),
                    ("beginning and end", ends, _ENDS_S),
                ):  # fmt: skip
                    rows.append(
                        Row(f"longest wait of {what}, server {state}", wait, "s", most,
                            wait / most, 1.0, "target: at most")
                    )  # fmt: skip
            outbox.sync(server.uri)
            rows += [_kept(state, run, server.uri, options.epochs) for state, run in runs.items()]
        finally:
            server.kill()
    finish("Waiting for MLflow", rows, options.json)


def _kept(state: str, run_id: str, uri: str, epochs: int) -> Row:
    client = tracking.client(uri)
    found = client.get_metric_history(outbox.mlflow_id(run_id), "stage/metric-0")
    steps = len({metric.step for metric in found})
    return Row(
        f"epochs in MLflow after sync, server {state}", steps, "", epochs, steps / epochs, 1.0
    )


if __name__ == "__main__":
    main()
