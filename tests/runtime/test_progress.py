"""The display: what it says on a terminal, as lines, and of workers whose board is late or lost."""

from __future__ import annotations

import io
import os
import pty
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from skyray.runtime import progress
from skyray.runtime.progress import Display, clock, display, task

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def now(monkeypatch) -> list[float]:
    """The time, s, to be set by hand."""
    told = [1000.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: told[0])
    return told


def drawn(shown: Display, width: int = 120) -> list[str]:
    """Return the lines of a terminal that shows the display."""
    console = Console(file=io.StringIO(), width=width)
    console.print(shown)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def until(true: Callable[[], bool], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def test_time_left_is_at_the_mean_pace_and_goes_down_between_reports(now):
    shown = Display(show=False)
    row = shown.add("galaxy/0", total=20, unit="epoch", done=4)  # four of an earlier run
    assert row.seconds_left(now[0]) is None
    now[0] += 60
    row.update(6, "loss 0.5")
    assert row.seconds_left(now[0]) == 14 * 30
    now[0] += 20
    assert row.seconds_left(now[0]) == 14 * 30 - 20
    assert row.line(now[0]) == "galaxy/0: 6/20 epochs, loss 0.5, 1:20, 6:40 left"
    now[0] += 9999
    assert row.seconds_left(now[0]) == 0
    assert (clock(59.9), clock(3661)) == ("0:59", "1:01:01")


def test_every_running_stage_has_a_row_and_says_what_it_waits_for(now):
    shown = Display(show=False)
    first, second = (shown.add(name, 8, "epoch") for name in ("star", "galaxy"))
    second.wait("its rows to be read")
    now[0] += 30
    first.update(2, "loss 0.1")
    lines = drawn(shown)
    assert len(lines) == 2
    assert all(word in lines[0] for word in ("star", "2/8 epochs", "loss 0.1", "1:30 left"))
    assert "waiting for its rows to be read, 0:30" in lines[1]
    second.update(1)
    assert "waiting" not in drawn(shown)[1]
    shown.end(first)
    assert len(drawn(shown)) == 1


def test_more_stages_than_a_terminal_has_lines_are_counted(now):
    shown = Display(show=False, console=Console(file=io.StringIO(), height=14))
    for number in range(61):
        shown.add(f"stage-{number}", 3, "epoch")
    lines = drawn(shown)
    assert len(lines) == 11
    assert lines[-1] == "and 51 more"


def test_where_no_one_looks_lines_are_told_and_few_of_them():
    stream = io.StringIO()
    shown = Display(console=Console(file=stream, width=40), line_s=0.5)
    with shown.row("ingest", unit="piece") as row:
        row.wait("the first files")
        until(lambda: "waiting" in stream.getvalue())
        for _ in range(5000):
            row.advance(note="rows of a note that is longer than forty columns")
    shown.close()
    lines = stream.getvalue().splitlines()
    assert lines[0].startswith("ingest: waiting for the first files, 0:0")
    assert lines[-1].startswith("ingest: 5,000 pieces, rows of a note that is longer than forty")
    assert len(lines) <= 6
    assert "\x1b" not in stream.getvalue()


def test_a_display_within_a_display_is_the_same(capsys):
    with display() as outer:
        with display() as inner, task("one", 2, "row") as row:
            assert inner is outer
            row.advance()
        with task("quiet", 2, "row", show=False) as silent:
            silent.advance(2)
    err = capsys.readouterr().err
    assert err.startswith("one: 1/2 rows")
    assert "quiet" not in err
    assert not progress.is_open()


def test_what_an_error_ends_is_not_said_to_be_done(capsys):
    def work() -> None:
        with task("train", 9, "epoch") as row:
            row.advance(2)
            raise KeyError

    with pytest.raises(KeyError):
        work()
    assert capsys.readouterr().err.startswith("train: ended by an error, 2/9 epochs")


NOISY = """
import os, sys, time
from skyray.runtime import noise
from skyray.runtime.progress import display, task
try:
    with display() as shown, noise.kept("test"):
        with task("stage", 3, "epoch") as row:
            os.write(2, b"noise of a library in C\\n")
            print("noise of Python", file=sys.stderr)
            os.system("echo noise of a child >&2")
            row.advance()
            time.sleep(0.4)
        if "fail" in sys.argv:
            raise ValueError("it failed")
except ValueError as error:
    print("note", *error.__notes__, file=sys.stderr)
os.write(2, b"back again\\n")
"""


def on_terminal(home: Path, *arguments: str) -> str:
    """Run NOISY on a pseudo-terminal; return what came there."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "platform"), "SKYRAY_HOME": str(home)}
    environment |= {"TERM": "xterm", "COLUMNS": "90", "LINES": "20"}
    environment.pop("SKYRAY_WORKER_LOGS", None)
    command = [sys.executable, "-c", NOISY, *arguments]
    running = subprocess.Popen(command, stdout=theirs, stderr=theirs, stdin=theirs, env=environment)
    os.close(theirs)
    found = b""
    while True:
        try:
            found += os.read(ours, 4096)
        except OSError:  # the other end is closed
            break
    assert running.wait(timeout=60) == 0
    os.close(ours)
    return found.decode()


def test_a_terminal_shows_the_display_and_a_file_keeps_the_noise(tmp_path):
    shown = on_terminal(tmp_path, "fail")
    (log,) = (tmp_path / "logs").iterdir()
    assert log.read_text().split("\n")[:3] == [
        "noise of a library in C", "noise of Python", "noise of a child",
    ]  # fmt: skip
    assert "noise" not in shown
    assert "1/3 epochs" in shown
    assert f"note log: {log}" in shown.replace("\r\n", "")
    assert "back again" in shown
    assert shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l"), "the cursor is back"


def test_a_log_without_an_error_stays_and_old_ones_go(tmp_path):
    logs = tmp_path / "logs"
    logs.mkdir()
    for number in range(60):
        (logs / f"20200101-0000{number:02}-x-1.log").write_text("old")
    on_terminal(tmp_path)
    names = sorted(path.name for path in logs.iterdir())
    assert len(names) == 51
    assert names[0] == "20200101-000010-x-1.log"
    assert "-test-" in names[-1]
