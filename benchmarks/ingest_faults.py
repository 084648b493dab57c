"""What an ingest loses when two run at once, when it is killed and when the store fails: nothing.

    python benchmarks/ingest_faults.py [--count 2000] [--rounds 5] [--kills 10] [--json FILE]

Every ingest is a process of its own with a private Ray. On the local disk, and on an S3 emulation
on loopback behind a proxy that fails one call in twenty:

- two ingest disjoint halves of the files into one dataset at the same time, several times over;
- two ingest two thirds each, of which one third is common;
- one is killed at random moments again and again, and then runs to its end. One file in ten is the
  observation of another once more, one in twenty outside the cuts or damaged.

Value: rows and refusals in the dataset, each checked to be there once, with manifest and rows in
accord; reference: those of an undisturbed ingest, whose fingerprint must be the same (ratio 1), or
else the ratio is 0.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "platform"), str(ROOT / "benchmarks")]

from report import Row, finish  # noqa: E402
from tests.data.test_ingest import write_spec  # noqa: E402
from tests.ingest_driver import ingest_killed, ingest_together, outcomes  # noqa: E402
from tests.object_store import FAULTS, LATE_FAULTS, object_store  # noqa: E402

from skyray.runtime import places  # noqa: E402

OPTIONS = {"seconds_between_commits": 0.2, "rows_per_file": 64}
FAULTS_ONE_IN = 20


def write_plain(folder: Path, count: int) -> None:
    """Write so many good files."""
    for number in range(count):
        write_spec(folder, 1 + number % 1000, plate=1 + number // 1000, seed=number)


def write_mixed(folder: Path, count: int) -> None:
    """Write so many files, some of them copies, outside the cuts or damaged."""
    good = count - count // 10 - 2 * (count // 20)
    write_plain(folder / "a", good)
    for number in range(count // 10):  # half of them with other content
        seed = number if number % 2 else None
        write_spec(folder / "b", 1 + number, plate=1, seed=seed)
    for number in range(count // 20):
        write_spec(folder / "c", 1 + number % 1000, plate=50, zwarning=4)
        write_spec(folder / "c", 1 + number % 1000, plate=51).write_bytes(b"SIMPLE  = damaged")


class Faults:
    """The figures of one kind of store."""

    def __init__(self, store: str, plain: str, mixed: str, out: str, count: int):
        self.store, self.plain, self.mixed, self.out, self.count = store, plain, mixed, out, count
        self.rows: list[Row] = []

    def run(self, rounds: int, kills: int) -> Iterator[Row]:
        files = sorted(found.uri for found in places.walk(self.plain))
        third = len(files) // 3
        whole = self._whole("plain", self.plain)
        for number in range(rounds):
            halves = [files[number % 2 :: 2], files[1 - number % 2 :: 2]]
            out = places.join(self.out, f"halves{number}")
            yield self._figure(
                f"two halves at once, {number + 1}", whole, out,
                lambda halves=halves, out=out: ingest_together(halves, out, **OPTIONS) or "",
            )  # fmt: skip
        out = places.join(self.out, "overlap")
        yield self._figure(
            "two thirds each at once", whole, out,
            lambda: ingest_together([files[: 2 * third], files[third:]], out, **OPTIONS) or "",
        )  # fmt: skip
        whole, killed = self._whole("mixed", self.mixed), places.join(self.out, "killed")

        def kill() -> str:
            done = ingest_killed([self.mixed], killed, kills, self.count, seed=1, **OPTIONS)
            at_work = [str(kill["committed"]) for kill in done if kill["at_work"]]
            return f"killed {len(at_work)} times, with committed: {', '.join(at_work)}"

        yield self._figure("killed and run again", whole, killed, kill)

    def _whole(self, name: str, files: str) -> dict[str, list]:
        out = places.join(self.out, f"whole-{name}")
        ingest_together([[files]], out, **OPTIONS)
        return outcomes(out)

    def _figure(self, name: str, whole: dict, out: str, work: Callable[[], str]) -> Row:
        begun = time.perf_counter()
        note = work()
        seconds = time.perf_counter() - begun
        found = outcomes(out)
        count, expected = (len(of["records"]) + len(of["refused"]) for of in (found, whole))
        note = f"{note or 'all rows, same fingerprint'}; {seconds:.0f} s with the start of Ray"
        ratio = float(found == whole)
        return Row(f"{self.store}: {name}", count, "rows", expected, ratio, 1.0, note)


def run(folder: Path, count: int, rounds: int, kills: int, stores: list[str]) -> Iterator[Row]:
    plain, mixed = folder / "plain", folder / "mixed"
    write_plain(plain, count)
    write_mixed(mixed, count)
    if "local" in stores:
        yield from Faults("local", str(plain), str(mixed), str(folder), count).run(rounds, kills)
    if "s3" not in stores:
        return
    with object_store(FAULTS_ONE_IN, faults=(*FAULTS, *LATE_FAULTS)) as store:
        there = [f"{store.uri}/plain", f"{store.uri}/mixed"]
        for source, target in zip((plain, mixed), there, strict=True):
            for found in places.walk(source):
                within = Path(found.uri).relative_to(source)
                places.copy(found.uri, places.join(target, within.as_posix()))
        yield from Faults("s3", *there, f"{store.uri}/out", count).run(rounds, kills)
        made, calls = store.proxy.made, store.proxy.calls.total()
        kinds = ", ".join(f"{fault} {number}" for fault, number in sorted(made.items()))
        yield Row("s3: calls that failed", made.total(), "calls", calls, made.total() / calls, None,
                  kinds)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=2000, help="survey files")
    parser.add_argument("--rounds", type=int, default=5, help="times two drivers share the files")
    parser.add_argument("--kills", type=int, default=10, help="times a driver is killed")
    parser.add_argument("--stores", nargs="+", default=["local", "s3"], choices=["local", "s3"])
    parser.add_argument("--json", type=Path, help="write the rows here")
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory(prefix="skyray-bench-") as folder:
        options = (arguments.count, arguments.rounds, arguments.kills, arguments.stores)
        for row in run(Path(folder), *options):
            print(f"{row.name}: {row.value:g} of {row.reference:g}; {row.note}", flush=True)
            rows.append(row)
    finish("Ingest under faults", rows, arguments.json)
    if any(row.target and row.ratio < row.target for row in rows):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
