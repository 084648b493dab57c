"""A sweep killed half-way and given again: is every trial counted once?

`skyray tune` runs as a process group of its own, Ray included, gets SIGKILL when half of the trials
are done, and is started again with the same command.

    python benchmarks/sweep_restore.py --data DATASET --out DIR
        [--recipe alerts/real_bogus_laptop] [--trials 20] [--set key=value] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "platform"), str(ROOT / "benchmarks")]

import pandas as pd  # noqa: E402
from report import Row, finish  # noqa: E402

from skyray.runtime import tracking  # noqa: E402
from skyray.search.tune import SWEEP_FILE, TRIALS_FILE  # noqa: E402

_PATIENCE_S = 3600


def trial_runs(out: Path) -> dict[str, str]:
    """Return the MLflow runs nested in a sweep's, with their status."""
    if not (out / SWEEP_FILE).exists():
        return {}
    parent = json.loads((out / SWEEP_FILE).read_text())["run_id"]
    client = tracking.client(tracking.tracking_uri())
    experiment = client.get_run(parent).info.experiment_id
    query = f"tags.`mlflow.parentRunId` = '{parent}'"
    runs = client.search_runs([experiment], query, max_results=1000)
    return {run.info.run_id: run.info.status for run in runs}


def finished_trials(out: Path) -> int:
    return sum(status == "FINISHED" for status in trial_runs(out).values())


def sweep(options: argparse.Namespace, log: Path) -> subprocess.Popen:
    """Start the sweep as a process group of its own."""
    command = [
        sys.executable, "-m", "skyray.cli", "tune", options.recipe, "--data", options.data,
        "--trials", str(options.trials), "--out", str(options.out / "sweep"),
        *(f"--set={change}" for change in options.set),
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "platform")}
    with log.open("w") as stream:
        return subprocess.Popen(
            command, env=environment, stdout=stream, stderr=stream, start_new_session=True
        )


def killed_half_way(options: argparse.Namespace) -> int:
    """Run the sweep until half of its trials are done, kill it, and return how many were."""
    process = sweep(options, options.out / "first.log")
    deadline = time.monotonic() + _PATIENCE_S
    while finished_trials(options.out / "sweep") < options.trials // 2:
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"the sweep ended by itself: {options.out / 'first.log'}")
        time.sleep(1.0)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    return finished_trials(options.out / "sweep")


def rows_of(options: argparse.Namespace, before: int, seconds: dict[str, float]) -> list[Row]:
    """Return the counts after the second call."""
    out = options.out / "sweep"
    trials = pd.read_parquet(out / TRIALS_FILE)
    runs = trial_runs(out)
    done = finished_trials(out)
    same = set(runs) == set(trials["run_id"])
    return [
        Row("trials done when it was killed", before, "", note=f"{seconds['first']:.0f} s"),
        Row("trials at the end", len(trials), "", target=options.trials,
            note=f"{trials['trial'].nunique()} different, {int(trials['failed'].sum())} failed; "
            f"{seconds['second']:.0f} s more"),
        Row("nested MLflow runs", len(runs), "", target=options.trials,
            note=f"{done} finished; {'those' if same else 'NOT those'} of the table"),
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", type=Path, default=Path("results/sweep_restore"))
    parser.add_argument("--recipe", default="alerts/real_bogus_laptop")
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--set", action="append", default=[], help="change the recipe: key=value")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    options.out = options.out.absolute()
    options.out.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("SKYRAY_HOME", str(options.out / "home"))
    seconds, started = {}, time.monotonic()
    before = killed_half_way(options)
    seconds["first"] = time.monotonic() - started
    started = time.monotonic()
    if sweep(options, options.out / "second.log").wait():
        raise RuntimeError(f"the restored sweep failed: {options.out / 'second.log'}")
    seconds["second"] = time.monotonic() - started
    finish("A sweep killed and restored", rows_of(options, before, seconds), options.json)


if __name__ == "__main__":
    main()
