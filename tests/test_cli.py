"""The command line: help, results, errors."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from skyray.cli import main
from skyray.cli.search_verbs import _named

ROOT = Path(__file__).resolve().parents[1]
VERBS = (
    "download", "simulate", "ingest", "inspect", "prepare", "train", "evaluate", "predict",
    "export", "vacuum", "serve",
)  # fmt: skip
TRAIN = ("train", "redshift/sdss_dr16", "--data", "x", "--out", "y")
TINY = (
    "network.widths=[2,2,4,4,8,8]", "network.dense=16", "members=1", "train.epochs=1",
    "train_redshift.epochs=1",
)  # fmt: skip


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    """Run the command line in this process; return status, stdout and stderr."""
    with pytest.raises(SystemExit) as left:
        main(arguments)
    shown = capsys.readouterr()
    return int(left.value.code or 0), shown.out, shown.err


def message(err: str) -> str:
    """Return the error that stderr holds, and nothing else but what a slow machine waits for."""
    waits = r"\w+: waiting for imports and checks, [\d:, ]+\n"
    error = r"error: (.+(?:\n  .+)*)\n\(SKYRAY_DEBUG=1 shows where\)\n"
    told = re.fullmatch(f"(?:{waits})*{error}", err)
    assert told, err
    return told[1]


def test_help_is_quick_and_lists_the_verbs():
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "platform")}
    command = [sys.executable, "-X", "importtime", "-m", "skyray.cli", "--help"]
    started = time.process_time()
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert all(f"\n  {verb}" in done.stdout for verb in VERBS)
    assert "..." not in done.stdout.partition("Commands:")[2]  # what a verb does is said to the end
    heavy = {"ray", "torch", "pyarrow", "numpy", "astropy", "mlflow"}
    imported = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines()}
    assert not heavy & imported, "help must not wait for these"
    assert time.process_time() - started < 5


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(capsys, verb):
    status, out, _ = run(capsys, verb, "--help")
    assert status == 0
    assert f"Example: skyray {verb}" in out
    assert "--json" in out
    assert verb in ("inspect", "download", "vacuum") or "--address" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("ingest", "no_card", "x", "--out", "y"), ("card 'no_card'", "sdss_dr16")),
        (("train", "redshift/none", "--data", "x", "--out", "y"), ("recipe", "sdss_dr16")),
        (("train", "redshift/sdss_dr16", "--set", "epoch=1", "--data", "x", "--out", "y"),
         ("unknown key 'epoch'",)),
        (("train", "redshift/sdss_dr16", "--set", "members=x", "--data", "x", "--out", "y"),
         ("members", "integer")),
        (("serve", "no.yaml"), ("no.yaml", "no such configuration")),
        (("serve", "--host", "0.0.0.0"), ("SKYRAY_SERVE_TOKEN",)),
        (("simulate", "sdss_dr16", "--objects", "1"), ("--out",)),
        (("sync", "--to", "tracking.new:5000"), ("--to tracking.new:5000", "http://")),
    ],
)  # fmt: skip
def test_a_mistake_is_one_clear_line(capsys, monkeypatch, arguments, words):
    monkeypatch.delenv("SKYRAY_DEBUG", raising=False)
    monkeypatch.delenv("SKYRAY_SERVE_TOKEN", raising=False)
    status, out, err = run(capsys, *arguments)
    assert (status, out) == (1, "")
    told = message(err)
    for word in words:
        assert word in told


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((*TRAIN, "--gpu"),
         ("--gpu: expected 1 GPU, found 0 on this machine",)),
        ((*TRAIN, "--workers", "999"), ("999 CPUs at once", "--address")),
        ((*TRAIN, "--gpu", "--gpus-per-worker", "0"),
         ("gpus-per-worker: expected a number above 0 with --gpu, found 0",)),
        ((*TRAIN, "--gpus-per-worker", "0.5"), ("gpus-per-worker: expected --gpu beside it",)),
        ((*TRAIN, "--workers", "2", "--min-workers", "3"), ("min_workers: expected 1 to 2",)),
        ((*TRAIN, "--resume", "gone"), ("resume: expected the id of a training", "'gone'")),
        (TRAIN, ("x: not a dataset",)),
        (("tune", "redshift/sdss_dr16", "--data", "x", "--out", "y"), ("x: not a dataset",)),
        (("train", "redshift/sdss_dr16", "--data", "x", "--out", "file/y"),
         ("file/y: expected a place to write to", "is a file")),
        (("simulate", "sdss_dr16", "--objects", "9", "--out", "file"), ("file is a file",)),
        (("simulate", "no_card", "--objects", "9", "--out", "y"), ("card 'no_card'",)),
        (("simulate", "sdss_dr16", "--objects", "9", "--out", "y", "--templates", "none"),
         ("none: no such file or folder",)),
        (("ingest", "sdss_dr16", "file", "none", "--out", "y"), ("none: no such file or folder",)),
        (("evaluate", "none", "--data", "x", "--out", "y"), ("none: not a bundle",)),
        (("predict", "none", "file", "--out", "y"), ("none: not a bundle",)),
        (("predict", "none", "file", "--out", "y", "--gpu"), ("found 0 on this machine",)),
        (("serve", "--bundle", "none"), ("none: not a bundle",)),
        (("follow", "none", "packets", "--out", "y"), ("none: not a bundle",)),
        (("export", "parquet", "none", "--out", "y"), ("none: no such file or folder",)),
        (("export", "onnx", "none", "--out", "y"), ("none: not a bundle",)),
        (("export", "onnx", "none", "--out", "file/y"), ("expected a place to write to",)),
        (("export", "onnx", "none", "--out", "."), ("expected a file to write, found a folder",)),
        (("ingest", "sdss_dr16", "file", "--out", "y", "--json", "file/j"), ("is a file",)),
        (("inspect", "file", "--json", "."), (".: expected a file to write",)),
    ],
)  # fmt: skip
def test_what_can_be_known_is_refused_before_ray_starts(
    capsys, monkeypatch, tmp_path, arguments, words
):
    def started(*_) -> bool:
        raise AssertionError("Ray was started")

    monkeypatch.setattr("skyray.runtime.session.start_ray", started)
    for name in ("SKYRAY_DEBUG", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("SKYRAY_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    status, out, err = run(capsys, *arguments)
    assert (status, out) == (1, "")
    told = message(err)
    for word in words:
        assert word in told
    assert not Path("y").exists()


def test_debug_shows_where(capsys, monkeypatch):
    monkeypatch.setenv("SKYRAY_DEBUG", "1")
    status, _, err = run(capsys, "ingest", "no_card", "x", "--out", "y")
    assert status == 1
    assert "Traceback" in err
    assert "load_card" in err


@pytest.mark.parametrize("arguments", [("fly",), ("ingest",), ("train", "a", "--workers", "0")])
def test_wrong_usage_exits_2(capsys, arguments):
    status, _, err = run(capsys, *arguments)
    assert status == 2
    assert "Usage" in err


@pytest.mark.slow
def test_missing_data_are_named(capsys, ray_cluster, tmp_path):
    status, _, err = run(
        capsys, "ingest", "sdss_dr16", str(tmp_path / "none"), "--out", str(tmp_path / "out")
    )
    assert (status, "no such file or folder" in err) == (1, True)
    status, _, err = run(
        capsys, "predict", str(tmp_path / "none"), "x.fits", "--out", str(tmp_path / "cat")
    )
    assert status == 1
    assert str(tmp_path / "none") in err


@pytest.mark.slow
def test_the_whole_way(capsys, ray_cluster, tmp_path):
    """From simulate to export, each verb leaving a table and JSON."""

    def verb(name: str, *arguments) -> dict:
        written = tmp_path / f"{name}.json"
        status, out, err = run(capsys, name, *map(str, arguments), "--json", str(written))
        assert status == 0, err
        assert f"skyray {name}" in out
        return json.loads(written.read_text())

    files, dataset, bundle = tmp_path / "files", tmp_path / "dataset", tmp_path / "bundle"
    verb("simulate", "sdss_coarse", "--objects", 90, "--seed", 3, "--as-files", files)
    assert len(list(files.rglob("*.fits"))) == 90
    made = verb("ingest", "sdss_coarse", files, "--out", dataset, "--no-progress")
    assert made["rows read"] == made["rows written"] + made["rows quarantined"] == 90
    settings = [word for value in TINY for word in ("--set", value)]
    trained = verb(
        "train", "redshift/sdss_coarse_laptop", "--data", dataset, "--out", bundle,
        "--side-by-side", 1, "--no-progress", *settings,
    )  # fmt: skip
    assert (bundle / "bundle.json").exists()
    scores = verb("evaluate", bundle, "--data", dataset, "--out", tmp_path / "scores")
    assert 0 <= scores["accuracy"] <= 1
    done = verb("predict", bundle, dataset, "--out", tmp_path / "cat", "--no-progress")
    assert done["rows"] == made["rows written"]
    for place in (dataset, bundle, done["files"][0]):
        verb("inspect", place)
    sky = verb("export", "hats", done["catalogue"], "--out", tmp_path / "sky")
    assert sky["rows"] + sky["without_position"] == done["rows"]
    plain = verb("export", "parquet", dataset, "--out", tmp_path / "plain")
    assert plain["rows"] == made["rows written"]
    out = tmp_path / "again"
    status, _, err = run(capsys, "export", "parquet", done["catalogue"], "--out", str(out))
    assert (status, out.exists()) == (1, False)
    assert "found a catalogue: it is Parquet already" in err
    assert json.loads((bundle / "bundle.json").read_text())["version"] == trained["version"]


def test_a_dataset_of_a_grid_is_named_by_its_place_or_by_name():
    given = [
        "mocks=data/mock",
        "data/seed=1/mock/",
        "s3://b/x/des?scheme=http",
        "sky=s3://b/y?scheme=http",
    ]
    assert _named(given) == {
        "mocks": "data/mock", "mock": "data/seed=1/mock/", "des": "s3://b/x/des?scheme=http",
        "sky": "s3://b/y?scheme=http",
    }  # fmt: skip
