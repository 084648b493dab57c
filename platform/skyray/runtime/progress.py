"""What a command is doing, told where its user sits: one live display, or lines where no one looks.

A process has one display at a time. Whoever opens one inside another's writes rows of that one:

    with task("ingest", unit="file") as row:
        row.update(done=3, note="rows=120")

A row says how far something is, or what it waits for, and for how long already. Time left is what
remains at the mean pace since the row began; where work may end early it is a bound from above.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

_LINE_S = 60.0  # between lines of one row, where there is no terminal
_FIRST_S = 5.0  # what waits for less is not worth a line
_TICK_S = 1.0
_BAR = 12  # characters
_OTHERS = 4  # lines of a terminal that rows may not take


class Row:
    """One thing that is done or waited for; everything here may be called from any thread."""

    def __init__(self, display: Display, name: str, total: int | None, unit: str, done: int):
        self._display = display
        self.name, self.total, self.unit, self.done = name, total, unit, done
        self.note = self.waiting = ""
        self.began = self.moved = self.since = time.monotonic()
        self._first = done

    def update(
        self, done: int | None = None, note: str | None = None, total: int | None = None
    ) -> None:
        """Say how much is done, of how much, and what else there is to say."""
        with self._display.lock:
            if done is not None and done != self.done:
                self.done, self.moved, self.waiting = done, time.monotonic(), ""
            self.note = self.note if note is None else note
            self.total = self.total if total is None else total

    def advance(self, count: int = 1, note: str | None = None) -> None:
        """Say that `count` more are done."""
        with self._display.lock:
            self.update(self.done + count, note)

    def wait(self, what: str) -> None:
        """Say what is waited for; "" or an `update` that moves on ends it."""
        with self._display.lock:
            if what != self.waiting:
                self.waiting, self.since = what, time.monotonic()

    def seconds_left(self, now: float) -> float | None:
        """Return the time that is left, s; None where nothing tells."""
        steps = self.done - self._first
        if not self.total or steps <= 0:
            return None
        pace = (self.moved - self.began) / steps
        return max(0.0, (self.total - self.done) * pace - (now - self.moved))

    def count(self) -> str:
        """Return how far it is, as ``3/20 epochs``."""
        if self.total is None and not self.done:
            return ""
        of = "" if self.total is None else f"/{self.total:,}"
        plural = "" if (self.total or self.done) == 1 or not self.unit else "s"
        return f"{self.done:,}{of} {self.unit}{plural}".rstrip()

    def state(self, now: float) -> str:
        """Return what is waited for and how long already, or the note."""
        if self.waiting:
            since = now - self.since
            return f"waiting for {self.waiting}" + (f", {clock(since)}" if since >= 1 else "")
        return self.note

    def times(self, now: float) -> str:
        """Return how long it has taken, and how long it will still take if that is known."""
        left = self.seconds_left(now)
        gone = clock(now - self.began)
        return gone if left is None else f"{gone}, {clock(left)} left"

    def line(self, now: float) -> str:
        """Return all of it as one line of text."""
        told = (self.count(), self.state(now), self.times(now))
        return f"{self.name}: " + ", ".join(dict.fromkeys(text for text in told if text))


def clock(seconds: float) -> str:
    """Return a duration as ``m:ss`` or ``h:mm:ss``."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class Display:
    """The rows of a process, drawn in place on a terminal, else told as lines now and then.

    Parameters
    ----------
    show : bool
        Nothing is shown else, and rows cost next to nothing.
    console : Console, optional
        Where to; default: what is stderr now, even if stderr is led elsewhere later.
    line_s : float
        Seconds between two lines of one row.
    """

    def __init__(self, show: bool = True, console: Console | None = None, line_s: float = _LINE_S):
        self.lock = threading.RLock()
        self.rows: list[Row] = []
        self.show = show
        self._line_s = line_s
        self._told: dict[int, tuple[float, str]] = {}
        self._live: Live | None = None
        self._closed = threading.Event()
        self._ticker: threading.Thread | None = None
        self._own = console is None and show and _is_stderr(sys.stderr)
        stream = sys.stderr
        if self._own:
            stream = os.fdopen(os.dup(2), "w", encoding=stream.encoding, errors="replace")
        self._console = console or Console(file=stream)

    @contextmanager
    def row(
        self, name: str, total: int | None = None, unit: str = "", done: int = 0, keep: bool = True
    ) -> Iterator[Row]:
        """Hold a row for a block; its last state is left behind as a line if it is to be kept."""
        row = self.add(name, total, unit, done)
        try:
            yield row
        except BaseException:
            self.end(row, keep, failed=True)
            raise
        self.end(row, keep)

    def add(self, name: str, total: int | None = None, unit: str = "", done: int = 0) -> Row:
        """Add a row; `end` takes it away."""
        row = Row(self, name, total, unit, done)
        with self.lock:
            self.rows.append(row)
            if self.show:
                self._start()
        return row

    def end(self, row: Row, keep: bool = True, failed: bool = False) -> None:
        """Take a row away and leave its last state behind as a line."""
        with self.lock:
            if row not in self.rows:
                return
            self.rows.remove(row)
            self._told.pop(id(row), None)
            if not self.rows:
                self._stop_live()
            if keep:
                self.tell(_last_line(row, failed))

    def tell(self, text: str) -> None:
        """Leave a line behind."""
        if self.show:
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Take everything away that is still shown."""
        self._closed.set()
        if self._ticker:
            self._ticker.join()
        with self.lock:
            self._stop_live()
            if self._own:
                self._console.file.close()

    def __rich__(self) -> Table:
        now = time.monotonic()
        room = max(3, self._console.height - _OTHERS)
        with self.lock:
            rows, hidden = self.rows[:room], len(self.rows) - room
            drawn = [
                (row.name, ProgressBar(row.total, row.done, _BAR) if row.total else "", row.count(),
                 row.state(now), row.times(now)) for row in rows
            ]  # fmt: skip
        if hidden > 0:
            drawn.append((f"and {hidden} more", "", "", "", ""))
        table = Table.grid(padding=(0, 1), expand=True)
        for column in range(5):
            widest = max((len(cells[column]) for cells in drawn if column != 1), default=_BAR)
            if column == 3:  # what says most gets what is left of the line
                table.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
            else:
                table.add_column(no_wrap=True, width=widest)
        for cells in drawn:
            table.add_row(*cells)
        return table

    def _start(self) -> None:
        if self._console.is_terminal and not self._console.is_dumb_terminal:
            if self._live is None:
                self._live = Live(
                    self, console=self._console, refresh_per_second=4, transient=True,
                    redirect_stdout=False, redirect_stderr=False,
                )  # fmt: skip
                self._live.start()
        elif self._ticker is None:
            self._ticker = threading.Thread(target=self._tick, daemon=True)
            self._ticker.start()

    def _stop_live(self) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _tick(self) -> None:
        first = min(_FIRST_S, self._line_s)
        while not self._closed.wait(min(_TICK_S, self._line_s)):
            now = time.monotonic()
            with self.lock:
                for row in self.rows:
                    at, waiting = self._told.get(id(row), (row.began + first - self._line_s, ""))
                    waits = row.waiting not in ("", waiting) and now - row.since >= first
                    if waits or now - at >= self._line_s:
                        self._told[id(row)] = (now, row.waiting)
                        self.tell(row.line(now))


def _is_stderr(stream: TextIO) -> bool:
    try:
        return stream.fileno() == 2
    except (OSError, ValueError, AttributeError):  # a stream in memory has no descriptor
        return False


def _last_line(row: Row, failed: bool) -> str:
    told = [row.count(), row.note, clock(time.monotonic() - row.began)]
    if failed:
        told = ["ended by an error", row.state(time.monotonic()), *told]
    return f"{row.name}: " + ", ".join(dict.fromkeys(text for text in told if text))


_open: list[Display] = []  # the display of this process, if there is one


@contextmanager
def display(show: bool = True) -> Iterator[Display]:
    """Hold the process's display: the one that is open already, or a new one for the block."""
    if _open and show:
        yield _open[0]
        return
    made = Display(show)
    if show:
        _open.append(made)
    try:
        yield made
    finally:
        if show:
            _open.remove(made)
        made.close()


@contextmanager
def task(
    name: str,
    total: int | None = None,
    unit: str = "",
    *,
    done: int = 0,
    show: bool = True,
    keep: bool = True,
) -> Iterator[Row]:
    """Hold a row of the process's display for a block, opening a display if there is none."""
    with display(show) as shown, shown.row(name, total, unit, done, keep) as row:
        yield row


@contextmanager
def waiting(name: str, what: str, show: bool = True) -> Iterator[Row]:
    """Say for a block what is waited for; nothing is left behind."""
    with task(name, show=show, keep=False) as row:
        row.wait(what)
        yield row


def clear() -> None:
    """Take away all rows of the process's display, if there is one."""
    for shown in _open:
        for row in list(shown.rows):
            shown.end(row, keep=False)


def is_open() -> bool:
    """Return whether this process shows a display."""
    return bool(_open)


def tell(text: str) -> None:
    """Leave a line on the display, or on stderr where there is none."""
    if _open:
        _open[0].tell(text)
    else:
        print(text, file=sys.stderr)
