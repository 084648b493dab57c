"""Ingests as processes of their own, each with a private Ray: to run side by side and to be killed.

    python tests/ingest_driver.py OUT SECONDS_BETWEEN_COMMITS ROWS_PER_FILE SOURCE...

says ``ready`` when its Ray is up, and begins when a line comes.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
_OBJECT_STORE_BYTES = 100_000_000
_SECONDS_AFTER = 0.5


class Driver:
    """A process that ingests `sources` into `out` once `begin` is called."""

    def __init__(
        self,
        sources: Sequence[str | os.PathLike],
        out: str | os.PathLike,
        *,
        seconds_between_commits: float = 0.05,
        rows_per_file: int = 5,
    ):
        command = [sys.executable, __file__, out, seconds_between_commits, rows_per_file, *sources]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(ROOT / "platform"), str(ROOT)]),
            "SKYRAY_OBJECT_STORE": str(_OBJECT_STORE_BYTES),
        }
        self._process = subprocess.Popen(
            [str(word) for word in command], env=environment, stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip

    def begin(self) -> None:
        """Wait for its Ray and let it begin."""
        said = self._process.stdout.readline().strip()
        if said != "ready":
            raise RuntimeError(f"expected 'ready', found {said!r}: {self._process.stderr.read()}")
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def finish(self, timeout: float = 300) -> None:
        """Wait for its end; a `RuntimeError` says why it failed."""
        _, errors = self._process.communicate(timeout=timeout)
        if self._process.returncode:
            raise RuntimeError(f"ended with {self._process.returncode}: {errors[-3000:]}")

    def at_work(self) -> bool:
        return self._process.poll() is None

    def kill(self, group: bool = True) -> bool:
        """Kill it, or all of its process group; return whether it was still at work."""
        at_work = self.at_work()
        if at_work:
            (os.killpg if group else os.kill)(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            stream.close()
        return at_work


def ingest_together(parts: Sequence[Sequence[str]], out: str, **options) -> None:
    """Ingest each part by a driver of its own, all at the same time."""
    drivers = [Driver(part, out, **options) for part in parts]
    for driver in drivers:
        driver.begin()
    for driver in drivers:
        driver.finish()


def ingest_killed(
    sources: Sequence[str], out: str, kills: int, outcomes: int, seed: int, **options
) -> list[dict[str, float]]:
    """Ingest, killed again and again at random moments, and then once more to the end.

    Each kill comes some random time after a random number of all the outcomes have been committed,
    the first early, the last when (nearly) all have.

    Returns, for every kill, whether the driver was still at work and what was then committed.
    """
    chance, came = random.Random(seed), []
    for number in range(kills):
        driver = Driver(sources, out, **options)
        driver.begin()
        enough = outcomes * (number + chance.random()) / kills
        while driver.at_work() and committed(out) < enough:
            time.sleep(0.005)
        time.sleep(chance.random() * _SECONDS_AFTER)
        at_work = driver.kill(group=number % 2 == 0)
        came.append({"at_work": at_work, "committed": committed(out)})
    ingest_together([sources], out, **options)
    return came


def committed(out: str) -> int:
    """Return how many outcomes, in records and quarantine, have been committed."""
    from skyray.data.dataset import QUARANTINE, RECORDS
    from skyray.data.tables import open_table, table_exists
    from skyray.runtime import places

    found = [places.join(out, name) for name in (RECORDS, QUARANTINE)]
    return sum(open_table(place).count_rows() for place in found if table_exists(place))


def outcomes(out: str) -> dict[str, list]:
    """Return what became of every row of every file, of the newest version, and check its counts.

    A file's row is found in one table, once; no observation has two records; what the manifest
    states is what is there.
    """
    from skyray.data.dataset import QUARANTINE, Dataset
    from skyray.data.settle import SEEN_TWICE, UNIT_ROW
    from skyray.data.tables import open_table
    from skyray.runtime import places

    dataset = Dataset.open(out)
    manifest = dataset.manifest
    records = dataset.table.to_table(columns=["observation_id", "digest", *UNIT_ROW]).to_pylist()
    refused = open_table(places.join(out, QUARANTINE), manifest.quarantine_version)
    refused = refused.to_table().to_pylist()
    names = {row["observation_id"] for row in records}
    rows = Counter(tuple(row[name] for name in UNIT_ROW) for row in [*records, *refused])
    reasons = Counter(row["reason"] for row in refused)
    assert set(rows.values()) == {1}, [row for row, count in rows.items() if count > 1]
    assert len(names) == len(records) == manifest.rows_written
    assert reasons == manifest.quarantine_reasons
    assert manifest.rows_read == manifest.rows_written + manifest.rows_quarantined == len(rows)
    assert manifest.rows_unfinished == 0
    assert {row["observation_id"] for row in refused if row["reason"] in SEEN_TWICE} <= names
    return {
        "records": sorted((row["observation_id"], row["digest"]) for row in records),
        "refused": sorted((places.name(row["source"]), row["reason"]) for row in refused),
        "fingerprint": [manifest.fingerprint],
    }


def main(out: str, seconds_between_commits: str, rows_per_file: str, *sources: str) -> None:
    from tests.data.test_ingest import CARD

    from skyray.data import ingest
    from skyray.runtime.session import ray_session

    ingest._SECONDS_BETWEEN_COMMITS = float(seconds_between_commits)
    with ray_session("local", num_cpus=2):
        print("ready", flush=True)
        sys.stdin.readline()
        ingest.ingest(CARD, sources, out, progress=False, rows_per_file=int(rows_per_file))


if __name__ == "__main__":
    main(*sys.argv[1:])
