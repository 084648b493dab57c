"""Progress of work on remote workers, shown as bars where the user sits."""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager

import ray
from tqdm import tqdm


@ray.remote(num_cpus=0)
class _Board:
    """Holds the latest state that workers report; losing it loses no work."""

    def __init__(self):
        self._state: tuple[str, int, int, str] | None = None

    def update(self, stage: str, done: int, total: int, note: str) -> None:
        self._state = (stage, done, total, note)

    def state(self) -> tuple[str, int, int, str] | None:
        return self._state


class ProgressBars(AbstractContextManager):
    """Shows a bar for each stage while a block runs.

    ``board`` is the handle workers call: ``board.update.remote(stage, done, total, note)``.
    """

    def __init__(self, disable: bool = False, interval_s: float = 0.5):
        self.board = _Board.remote()
        self._disable, self._interval = disable, interval_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> ProgressBars:
        self._thread.start()
        return self

    def __exit__(self, *exc_info) -> None:
        self._stop.set()
        self._thread.join(timeout=10)

    def _watch(self) -> None:
        bar = tqdm(desc="starting workers", unit="epoch", disable=self._disable)
        stage, shown = None, None
        last = False
        while not last:
            last = self._stop.wait(self._interval)
            try:
                state = ray.get(self.board.state.remote(), timeout=10)
            except ray.exceptions.RayError:
                break
            if state is None or state == shown:
                continue
            shown = state
            name, done, total, note = state
            if name != stage:
                bar.close()
                bar = tqdm(total=total, desc=name, unit="epoch", disable=self._disable)
                stage = name
            bar.set_postfix_str(note, refresh=False)
            bar.update(done - bar.n)
        bar.close()
