"""What is still to be told to MLflow: kept in the run's place until the server has taken it.

Each message is a file ``SKYRAY_HOME/runs/RUN_ID/unsent/NAME.json``, removed when the server has
taken it. Posting writes that file and waits for nobody; a thread, the end of a training or
``skyray sync`` sends. What a server that answers refuses for good goes to ``refused/`` beside it.
A message that was taken and is sent again (its answer was lost) changes nothing.

A run that was begun while no server answered has an id of ours; ``mlflow.json`` then says which id
MLflow gave it later.
"""

from __future__ import annotations

import fcntl
import logging
import os
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pyarrow import fs

from skyray.runtime import places

RUNS = "runs"
OPEN = "open"  # the kind of message that makes a run: sent before all others
RETRY_S = 5.0
_ANSWER_S = 5.0
_FOR_GOOD = {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "RESOURCE_ALREADY_EXISTS"}
_UNSENT, _REFUSED, _GIVEN = "unsent", "refused", "mlflow.json"
_log = logging.getLogger(__name__)

Handler = Callable[[str, str, dict[str, Any]], None]
_handlers: dict[str, Handler] = {}
_here = threading.Lock()  # of several threads one sends
_threads: dict[str, _Thread] = {}


@dataclass(frozen=True)
class Delivery:
    """How many messages were taken, wait, or were refused for good, and why some wait."""

    sent: int = 0
    waiting: int = 0
    refused: int = 0
    cause: str = ""


class NotYet(RuntimeError):
    """A message that another must go before: of a nested run, the one that opens its parent."""


def sends(kind: str) -> Callable[[Handler], Handler]:
    """Register the function that sends a kind of message: (tracking URI, MLflow's id, content)."""

    def register(handler: Handler) -> Handler:
        _handlers[kind] = handler
        return handler

    return register


def folder(run_id: str) -> str:
    """Return a run's place."""
    return places.join(places.absolute(places.home()), RUNS, run_id)


def post(uri: str, run_id: str, kind: str, content: dict[str, Any]) -> None:
    """Keep a message to the server at `uri`; `content` is JSON."""
    order = "0" if kind == OPEN else f"{time.time_ns():020d}-{uuid.uuid4().hex[:6]}"
    place = places.join(folder(run_id), _UNSENT, f"{order}-{kind}.json")
    places.write_json(place, {"uri": uri, "kind": kind, "content": content})


def mlflow_id(run_id: str) -> str:
    """Return MLflow's id of a run.

    Raises
    ------
    NotYet
        If the run was begun without a server and MLflow does not know it yet.
    """
    place = places.join(folder(run_id), _GIVEN)
    if places.exists(place):
        return places.read_json(place)["run_id"]
    if places.exists(places.join(folder(run_id), _UNSENT, f"0-{OPEN}.json")):
        raise NotYet(f"run {run_id} was begun without a server; `skyray sync` opens it")
    return run_id


def given(run_id: str, mlflow_run: str) -> None:
    """Keep the id that MLflow gave a run."""
    places.write_json(places.join(folder(run_id), _GIVEN), {"run_id": mlflow_run})


def answers(uri: str) -> bool:
    """Return whether a tracking server says anything within seconds; stores of files always do."""
    if not uri.startswith("http"):
        return True
    try:
        urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=_ANSWER_S).close()
    except urllib.error.HTTPError:
        return True
    except (OSError, ValueError):
        return False
    return True


def send(run_id: str, to: str | None = None) -> Delivery:
    """Send what waits of a run, oldest first, to the server each message is for or to `to`.

    Nothing is raised for a server that is away or refuses: what it did not take waits.
    """
    sent, refused, cause = 0, 0, ""
    with _alone(run_id):
        for place in _unsent(run_id):
            message = places.read_json(place)
            uri, handler = to or message["uri"], _handlers.get(message["kind"])
            if handler is None:  # of a room this process has not loaded
                continue
            if not answers(uri):
                cause = f"{uri}: no answer"
                break
            try:
                run = run_id if message["kind"] == OPEN else mlflow_id(run_id)
                handler(uri, run, message["content"])
            except Exception as error:  # MLflow raises what its stores and its transport raise
                if _is_final(error):
                    refused += 1
                    _set_aside(place, message | {"refused": str(error)})
                    continue
                cause = f"{uri}: {error or type(error).__name__}"
                if message["kind"] == OPEN:
                    break
                continue
            places.remove(place)
            sent += 1
        return Delivery(sent, len(_unsent(run_id)), refused, cause)


def send_or_say(run_id: str) -> Delivery:
    """Send what waits of a run; say in one line what was left, and how to send it later."""
    found = send(run_id)
    if found.waiting or found.refused:
        _log.warning(
            "MLflow has not taken %d messages of run %s%s; `skyray sync` sends what waits",
            found.waiting + found.refused, run_id, f" ({found.cause})" if found.cause else "",
        )  # fmt: skip
    return found


def send_soon(run_id: str) -> None:
    """Send what waits of a run from a thread of this process, again and again until all is sent."""
    thread = _threads.get(run_id)
    if thread is None or not thread.is_alive():
        thread = _threads[run_id] = _Thread(run_id)
        thread.start()
    thread.wake.set()


class _Thread(threading.Thread):
    """Sends one run's messages; ends with its process, since what it has not sent is on disk."""

    def __init__(self, run_id: str):
        super().__init__(name=f"outbox-{run_id}", daemon=True)
        self.run_id, self.wake = run_id, threading.Event()

    def run(self) -> None:
        waiting = 0
        while True:
            self.wake.wait(RETRY_S if waiting else None)
            self.wake.clear()
            try:
                waiting = send(self.run_id).waiting
            except OSError as error:  # the place is away, too: what is in it stays there
                _log.info("outbox of run %s: %s", self.run_id, error)
                waiting = 1


def runs_waiting() -> list[str]:
    """Return the runs in ``SKYRAY_HOME`` of which something waits."""
    filesystem, path = places.resolve(places.join(places.absolute(places.home()), RUNS))
    found = filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True))
    names = (info.base_name for info in found if info.type == fs.FileType.Directory)
    return sorted(name for name in names if _unsent(name))


def sync(to: str | None = None) -> dict[str, Delivery]:
    """Send what waits of all runs in ``SKYRAY_HOME``; a nested run goes after its parent."""
    total: dict[str, Delivery] = {}
    waiting, moved = runs_waiting(), True
    while waiting and moved:
        found = {run: send(run, to) for run in waiting}
        for run, now in found.items():
            before = total.get(run, Delivery())
            total[run] = Delivery(
                before.sent + now.sent, now.waiting, before.refused + now.refused, now.cause
            )
        moved = any(now.sent or now.refused for now in found.values())
        waiting = [run for run, now in found.items() if now.waiting]
    return total


def _unsent(run_id: str) -> list[str]:
    place = places.join(folder(run_id), _UNSENT)
    filesystem, path = places.resolve(place)
    found = filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True))
    names = sorted(info.base_name for info in found)
    return [places.join(place, name) for name in names if name.endswith(".json")]


def _set_aside(place: str, message: dict[str, Any]) -> None:
    aside = places.join(places.parent(places.parent(place)), _REFUSED, places.name(place))
    places.write_json(aside, message)
    places.remove(place)


def _is_final(error: Exception) -> bool:
    """Return whether to ask again would bring the same answer."""
    code = getattr(error, "error_code", None)  # of an MlflowException
    return code in _FOR_GOOD or isinstance(error, FileNotFoundError)


@contextmanager
def _alone(run_id: str) -> Iterator[None]:
    """Let one thread of one process send a run's messages; on an object store, of this one."""
    place = folder(run_id)
    with _here:
        if not places.is_local(place):
            yield
            return
        with places.local_folder(place) as kept:
            lock = os.open(kept / "sending.lock", os.O_CREAT | os.O_RDWR, 0o644)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield
            finally:
                os.close(lock)
