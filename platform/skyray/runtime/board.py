"""Where remote workers say how far they are, and the thread that shows it where the user sits."""

from __future__ import annotations

import threading
import time
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from skyray.runtime.progress import Row, display

WORKERS = "workers"  # the row of the groups of workers before any has reported
_LAST_ANSWER_S = 2.0  # for the board's last answer, when the work is over
_SILENCE_S = 15.0  # after which the display says that the board does not answer


@dataclass(frozen=True)
class Report:
    """The latest that is known of one stage, or of a group of workers.

    Attributes
    ----------
    group : bool
        Whether it is of a group, which only waits until its stages report.
    failed : bool
        Whether it ended by an error; the note says by which.
    first : int
        Epochs that were done when it began here: of an earlier run, or before a restart.
    began : float
        When that was, on the board's clock, s; an answer holds how long ago it was instead.
    """

    first: int
    began: float
    done: int
    total: int | None = None
    note: str = ""
    waiting: str = ""
    ended: bool = False
    failed: bool = False
    group: bool = False


@ray.remote(num_cpus=0, max_restarts=-1)
class Board:
    """Holds the latest report of every stage; losing it loses no work, and it comes back empty."""

    def __init__(self):
        self._reports: dict[str, Report] = {}

    def _note(self, stage: str, done: int, **changes) -> None:
        known = self._reports.get(stage)
        if known is None or known.ended:
            known = Report(done, time.monotonic(), done)
        self._reports[stage] = replace(known, done=done, **changes)

    def wait(self, stage: str, what: str, done: int = 0, total: int | None = None) -> None:
        """Note what a stage waits for, in words that follow "waiting for"."""
        self._note(stage, done, total=total, waiting=what)

    def update(self, stage: str, done: int, total: int, note: str = "") -> None:
        """Note how far a stage is, in epochs."""
        self._note(stage, done, total=total, note=note, waiting="")

    def group(self, name: str, what: str) -> None:
        """Note what a group of workers waits for before its stages report."""
        self._note(name, 0, waiting=what, group=True)

    def end(self, name: str) -> None:
        """Note that a stage is over, at whatever epoch, or that a group waits no longer."""
        if name in self._reports:
            self._reports[name] = replace(self._reports[name], waiting="", ended=True)

    def fail(self, stage: str, why: str) -> None:
        """Note that a stage is given up."""
        done = self._reports[stage].done if stage in self._reports else 0
        self._note(stage, done, waiting="", note=why, ended=True, failed=True)

    def reports(self) -> dict[str, Report]:
        """Return all reports; `began` is how long ago, s."""
        now = time.monotonic()
        return {name: replace(r, began=now - r.began) for name, r in self._reports.items()}


class ProgressBars(AbstractContextManager):
    """Shows a row for each stage that workers report, any number of them at once, during a block.

    ``board`` is the handle that workers call with a stage's name, waiting for no answer:
    ``board.wait.remote(stage, what)``, ``board.update.remote(stage, done, total, note)`` and
    ``board.end.remote(stage)`` or ``board.fail.remote(stage, why)``; a group that has yet to begin
    says ``board.group.remote(name, what)``. A board that answers late, or is started anew, is asked
    again as long as the block lasts; meanwhile the display says that there is no news.
    """

    def __init__(
        self, disable: bool = False, interval_s: float = 0.5, silence_s: float = _SILENCE_S
    ):
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
        self.board = Board.options(scheduling_strategy=here).remote()
        self._disable, self._interval, self._silence = disable, interval_s, silence_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._rows: dict[str, Row] = {}
        self._groups = {WORKERS}
        self._ended: set[str] = set()

    def __enter__(self) -> ProgressBars:
        with ExitStack() as stack:
            self._display = stack.enter_context(display(not self._disable))
            self._row(WORKERS).wait("a controller")
            self._thread.start()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc_info) -> None:
        self._stop.set()
        self._thread.join()
        for name in list(self._rows):
            self._close(name, failed=exc_info[0] is not None)
        self._stack.close()

    def _watch(self) -> None:
        asked, heard, last = None, time.monotonic(), False
        while not last:
            last = self._stop.wait(self._interval)
            try:
                asked = asked or self.board.reports.remote()
                patience = _LAST_ANSWER_S if last else self._interval
                if ray.wait([asked], timeout=patience)[0]:
                    answer, asked = asked, None
                    self._show(ray.get(answer))
                    heard = time.monotonic()
            except Exception:  # whatever befell the board or the connection: ask again
                asked = None
            if time.monotonic() - heard > self._silence:
                self._row(WORKERS).wait("news of them; they go on meanwhile")

    def _show(self, reports: dict[str, Report]) -> None:
        self._groups |= {name for name, report in reports.items() if report.group}
        if reports and (WORKERS not in reports or reports[WORKERS].ended):
            self._close(WORKERS)
        for name, report in reports.items():
            if report.ended and (report.group or name in self._ended):
                self._close(name)
                continue
            row = self._row(name, report)
            row.update(report.done, report.note, report.total)
            row.wait(report.waiting)
            if report.ended:
                self._ended.add(name)
                self._close(name, failed=report.failed)
            else:
                self._ended.discard(name)  # a stage that is done again

    def _row(self, name: str, report: Report | None = None) -> Row:
        if name not in self._rows:
            row = self._display.add(name, unit="epoch", done=report.first if report else 0)
            row.began -= report.began if report else 0.0
            self._rows[name] = row
        return self._rows[name]

    def _close(self, name: str, failed: bool = False) -> None:
        if name in self._rows:
            self._display.end(self._rows.pop(name), name not in self._groups, failed)
