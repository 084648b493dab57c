"""Prediction goes on after a kill, refuses other results, and keeps pixels off the driver."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from skyray.data.dataset import Dataset
from skyray.data.simulate import simulate
from skyray.inference import pipeline
from skyray.inference.predict import predict
from skyray.inference.results import OtherResults

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import sys
from skyray.inference import results
results._LEAST = results._MOST = 8  # rows of a piece
from skyray.inference.predict import predict
from skyray.runtime.session import ray_session
with ray_session("local", num_cpus=2):
    predict(sys.argv[1], [sys.argv[2]], sys.argv[3], progress=False)
"""


def start(bundle: str, data: str, out: Path) -> subprocess.Popen:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("RAY_AUTH")}
    environment = {**kept, "PYTHONPATH": str(ROOT / "platform"), "SKYRAY_OBJECT_STORE": "200000000"}
    command = [sys.executable, "-c", SCRIPT, bundle, data, str(out)]
    return subprocess.Popen(command, env=environment, start_new_session=True)


def rows_of(out: Path):
    return pq.read_table(out / "catalogue", partitioning=None).sort_by("observation_id")


@pytest.mark.slow
def test_a_killed_prediction_goes_on_where_it_stopped(tiny_bundle, mock_dataset, tmp_path):
    out = tmp_path / "killed"
    process = start(tiny_bundle, mock_dataset, out)
    pieces = out / "catalogue" / "_pieces"
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and process.poll() is None:
        if pieces.exists() and len(list(pieces.glob("piece-*.parquet"))) >= 4:
            break
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    time.sleep(2)  # Ray's workers notice and end
    done = {path: path.stat().st_mtime_ns for path in pieces.glob("piece-*.parquet")}
    assert 4 <= len(done) < 38
    process = start(tiny_bundle, mock_dataset, out)
    while process.poll() is None and pieces.exists():
        for path, written in done.items():
            try:
                assert path.stat().st_mtime_ns == written
            except FileNotFoundError:  # all are there: they have become the catalogue
                break
        time.sleep(0.05)
    assert process.wait(timeout=240) == 0
    whole = predict(tiny_bundle, [mock_dataset], str(tmp_path / "whole"), progress=False)
    found, expected = rows_of(out), rows_of(tmp_path / "whole")
    assert found.num_rows == whole.rows == Dataset.open(mock_dataset).count()
    for name in expected.column_names:
        if expected[name].type in ("float", "double"):
            np.testing.assert_allclose(found[name], expected[name], rtol=1e-5, err_msg=name)
        else:
            assert found[name].to_pylist() == expected[name].to_pylist(), name


def test_results_of_other_work_are_refused(tiny_bundle, mock_dataset, tmp_path):
    out = str(tmp_path / "out")
    first = predict(tiny_bundle, [mock_dataset], out, progress=False)
    again = predict(tiny_bundle, [mock_dataset], out, progress=False)
    assert again == first
    dataset = Dataset.open(mock_dataset)
    other = str(tmp_path / "other")
    simulate(dataset.card, 20, 77, other, progress=False)
    with pytest.raises(OtherResults, match="fingerprint"):
        predict(tiny_bundle, [other], out, progress=False)


def test_the_driver_sees_numbers_of_pieces_and_rows_only(
    tiny_bundle, mock_dataset, tmp_path, monkeypatch
):
    seen = []
    original = pipeline.stream

    def watched(*arguments):
        written = original(*arguments)
        seen.append(set(written.schema().names))
        return written

    monkeypatch.setattr(pipeline, "stream", watched)
    predict(tiny_bundle, [mock_dataset], str(tmp_path / "out"), progress=False)
    assert seen == [{"piece", "rows"}]
