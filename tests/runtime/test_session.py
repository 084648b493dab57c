"""The session's secret, and where runs are tracked."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from skyray.runtime import tracking

ROOT = Path(__file__).resolve().parents[2]


def test_processes_that_start_at_once_share_one_secret_of_their_owner(tmp_path):
    script = (
        "import os, sys\n"
        "from skyray.runtime.session import _prepare_environment\n"
        "sys.stdin.read()\n"
        "_prepare_environment()\n"
        "print(open(os.environ['RAY_AUTH_TOKEN_PATH']).read(), end='')\n"
    )
    kept = {k: v for k, v in os.environ.items() if not k.startswith("RAY_AUTH")}
    environment = kept | {"PYTHONPATH": str(ROOT / "platform"), "SKYRAY_HOME": str(tmp_path / "a")}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    command = [sys.executable, "-c", script]
    waiting = [subprocess.Popen(command, env=environment, **pipes) for _ in range(6)]
    for process in waiting:
        process.stdin.close()
        process.stdin = None
    secrets = {process.communicate(timeout=60)[0] for process in waiting}
    assert len(secrets) == 1
    assert len(secrets.pop()) == 64
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["ray-token"]
    assert stat.S_IMODE((tmp_path / "a" / "ray-token").stat().st_mode) == 0o600


def test_the_tracking_store_lies_in_the_home_and_never_in_a_bucket(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("SKYRAY_HOME", str(tmp_path / "home"))
    assert tracking.tracking_uri() == f"sqlite:///{tmp_path}/home/mlflow.db"
    assert (tmp_path / "home").is_dir()
    monkeypatch.setenv("SKYRAY_HOME", "s3://bucket/home")
    with pytest.raises(ValueError, match="s3://bucket/home: an object store cannot hold"):
        tracking.tracking_uri()
