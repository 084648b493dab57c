"""jobs/*.py by hand, and on a running head by `ray job submit`, do what `skyray VERB` does."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator

import pytest
import yaml
from tests.ray_head import ROOT, Head, program, ray_head

VERBS = (
    "simulate", "ingest", "download", "prepare", "train", "evaluate", "predict", "outliers",
    "export",
)  # fmt: skip
SIMULATE = ("simulate", "sdss_coarse", "--objects", "30", "--seed", "5")


@pytest.fixture(scope="module")
def head(tmp_path_factory) -> Iterator[Head]:
    with ray_head(tmp_path_factory.mktemp("home")) as running:
        yield running


def submit(head: Head, *entrypoint: str) -> str:
    """Submit a job as jobs/README.md says; return its output."""
    done = head.run(
        program("ray"), "job", "submit", "--address", head.dashboard,
        "--runtime-env", "jobs/runtime_env.yaml", "--working-dir", ".", "--", *entrypoint,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize("verb", VERBS)
def test_script_takes_the_verbs_arguments(verb, tmp_path):
    """By hand, from any folder, with no skyray on the path."""
    done = subprocess.run(
        [sys.executable, ROOT / "jobs" / f"{verb}.py", "--help"],
        cwd=tmp_path, env={"PATH": "/usr/bin:/bin"}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"Usage: skyray {verb}" in done.stdout


def test_upload_leaves_data_and_environments_behind():
    settings = yaml.safe_load((ROOT / "jobs" / "runtime_env.yaml").read_text())
    assert {".git", ".venv", ".skyray", "/demo"} <= set(settings["excludes"])
    assert "platform" in settings["env_vars"]["PYTHONPATH"].split(":")


@pytest.mark.slow
def test_same_fingerprint_by_cli_by_script_and_by_submission(head, tmp_path):
    places = {name: tmp_path / name for name in ("cli", "script", "submitted")}
    results = {name: tmp_path / f"{name}.json" for name in places}

    def arguments(name: str) -> list[str]:
        where = ["--out", str(places[name]), "--json", str(results[name])]
        return [*SIMULATE[1:], *where]

    by_cli = head.run(
        sys.executable, "-c", "import sys; sys.path.insert(0, 'platform'); "
        "from skyray.cli import main; main()", "simulate", *arguments("cli"),
        "--address", head.address,
    )  # fmt: skip
    assert by_cli.returncode == 0, by_cli.stderr[-3000:]
    by_hand = head.run(
        sys.executable, "jobs/simulate.py", *arguments("script"), "--address", head.address
    )
    assert by_hand.returncode == 0, by_hand.stderr[-3000:]
    submit(head, "python", "jobs/simulate.py", *arguments("submitted"))
    found = {name: json.loads(path.read_text()) for name, path in results.items()}
    assert sum(found["cli"]["objects"].values()) == 30
    assert len({result["fingerprint"] for result in found.values()}) == 1


@pytest.mark.slow
def test_failed_job_is_reported_as_failed(head, tmp_path):
    done = head.run(
        program("ray"), "job", "submit", "--address", head.dashboard,
        "--runtime-env", "jobs/runtime_env.yaml", "--working-dir", ".", "--",
        "python", "jobs/ingest.py", "sdss_coarse", str(tmp_path / "nothing"),
        "--out", str(tmp_path / "out"),
    )  # fmt: skip
    assert done.returncode != 0
    assert "no such file or folder" in done.stdout + done.stderr
    assert not (tmp_path / "out").exists()
