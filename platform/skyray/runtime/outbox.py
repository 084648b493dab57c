"""What is still to be told to MLflow: kept in the run's place until the server has taken it.

Each message is a file ``SKYRAY_HOME/runs/RUN_ID/unsent/NAME.json``, removed when the server has
taken it. Posting writes that file and waits for nobody; a thread, the end of a training or
``skyray sync`` sends. What a server that answers refuses for good, and what is no longer true,
goes to ``refused/`` beside it. A message that was taken and is sent again (its answer was lost)
changes nothing.

A server that takes nothing for PATIENCE_S is given up for AWAY_S by all of this process; who waits
for it does so for MOST_S in all.

A run that was begun while no server answered has an id of ours; ``mlflow.json`` then says which id
MLflow gave it later.
"""

from __future__ import annotations

import fcntl
import logging
import os
import textwrap
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from pyarrow import fs

from skyray.runtime import places

RUNS = "runs"
OPEN = "open"  # the kind of message that makes a run: sent before all others
RETRY_S = 5.0
PATIENCE_S = 60.0
AWAY_S = 60.0
MOST_S = 120.0
_ANSWER_S = 5.0
_ASKED = "api/2.0/mlflow/experiments/search?max_results=1"
_FOR_GOOD = {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "RESOURCE_ALREADY_EXISTS"}
_UNSENT, _REFUSED, _GIVEN = "unsent", "refused", "mlflow.json"
_log = logging.getLogger(__name__)

Handler = Callable[[str, str, dict[str, Any]], None]
_handlers: dict[str, Handler] = {}
_here = threading.Lock()  # of several threads one sends
_threads: dict[str, _Thread] = {}
_away: dict[str, float] = {}  # servers given up, and until when
_untold: dict[str, Delivery] = {}  # of the runs that somebody waited for
_T = TypeVar("_T")


@dataclass(frozen=True)
class Delivery:
    """How many messages were taken or wait and why, and a line for each refused for good."""

    sent: int = 0
    waiting: int = 0
    cause: str = ""
    refusals: tuple[str, ...] = ()

    @property
    def refused(self) -> int:
        return len(self.refusals)


class Never(RuntimeError):
    """A message that can never be sent: what it is about is gone, or is something else by now."""


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
    """Return whether a tracking server says anything within seconds; stores of files always do.

    Its API is asked: a server may call itself healthy and answer nothing else.
    """
    if not uri.startswith("http"):
        return True
    if is_given_up(uri):
        return False
    import requests

    insecure = os.environ.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() in ("true", "1")
    verify = os.environ.get("MLFLOW_TRACKING_SERVER_CERT_PATH") or not insecure
    place = f"{uri.rstrip('/')}/{_ASKED}"
    try:
        with requests.get(place, timeout=_ANSWER_S, stream=True, verify=verify) as answer:
            return answer.status_code < 500
    except requests.Timeout:
        _away[uri] = time.monotonic() + RETRY_S  # the next who asks need not wait as well
        return False
    except (requests.RequestException, ValueError):
        return False


def is_given_up(uri: str) -> bool:
    """Return whether a server took nothing for so long that nobody waits for it now."""
    return time.monotonic() < _away.get(uri, 0.0)


def bounded(uri: str, seconds: float, do: Callable[[], _T]) -> _T:
    """Return what a call to a server gives; wait so long at most, then give the server up.

    A call that is not waited for any longer goes on in its thread until it ends by itself. Stores
    of files are waited for.

    Raises
    ------
    TimeoutError
        If it takes longer, or the server was given up before.
    """
    if not uri.startswith("http"):
        return do()
    if is_given_up(uri):
        raise TimeoutError(f"{uri}: no answer")
    found: Future[_T] = Future()

    def run() -> None:
        try:
            found.set_result(do())
        except BaseException as error:  # goes to who waits
            found.set_exception(error)

    threading.Thread(target=run, name=f"bounded-{uri}", daemon=True).start()
    try:
        return found.result(seconds)
    except TimeoutError:
        if found.done():
            raise
        _away[uri] = time.monotonic() + AWAY_S
        raise TimeoutError(f"{uri}: not done within {seconds:g} s") from None


def send(run_id: str, to: str | None = None) -> Delivery:
    """Send what waits of a run, oldest first, to the server each message is for or to `to`.

    Nothing is raised for a server that is away or refuses: what it did not take waits.
    """
    sent, refusals, cause = 0, [], ""
    with _alone(run_id):
        taken, asked = time.monotonic(), set()
        for place in _unsent(run_id):
            message = places.read_json(place)
            uri, handler = to or message["uri"], _handlers.get(message["kind"])
            if handler is None:  # of a room this process has not loaded
                continue
            if uri not in asked and not answers(uri):
                cause = f"{uri}: no answer"
                break
            asked.add(uri)
            try:
                run = run_id if message["kind"] == OPEN else mlflow_id(run_id)
                handler(uri, run, message["content"])
            except Exception as error:  # MLflow raises what its stores and its transport raise
                if _is_final(error):
                    aside = _set_aside(place, message | {"refused": str(error)})
                    why = textwrap.shorten(str(error), 300, placeholder=" …")
                    refusals.append(f"{message['kind']} of run {run_id}: {why} (in {aside})")
                    continue
                why = textwrap.shorten(str(error), 160, placeholder=" …") or type(error).__name__
                cause = f"{uri}: {why}"
                if time.monotonic() > taken + PATIENCE_S:
                    _away[uri] = time.monotonic() + AWAY_S
                if message["kind"] == OPEN or is_given_up(uri):
                    break
                continue
            places.remove(place)
            sent, taken = sent + 1, time.monotonic()
        return Delivery(sent, len(_unsent(run_id)), cause, tuple(refusals))


def send_or_say(uri: str, run_id: str) -> Delivery:
    """Send what waits of a run to the server at `uri`, for MOST_S at most; `untold` says the rest.

    It is a line in the log as well.
    """
    try:
        found = bounded(uri, MOST_S, lambda: send(run_id)) if _unsent(run_id) else Delivery()
    except TimeoutError as error:
        found = Delivery(waiting=len(_unsent(run_id)), cause=str(error))
    _keep(run_id, found)
    for line in _lines({run_id: found}):
        _log.warning(line)
    return found


def untold() -> list[str]:
    """Return what MLflow was not told of the runs this process sent, a line each, and what to do.

    Said once: what is returned is forgotten.
    """
    found = {run: replace(_untold[run], waiting=len(_unsent(run))) for run in sorted(_untold)}
    _untold.clear()
    return _lines(found)


def _keep(run_id: str, found: Delivery) -> None:
    before = _untold.pop(run_id, Delivery())
    now = replace(found, refusals=before.refusals + found.refusals)
    if now.waiting or now.refusals:
        _untold[run_id] = now


def _lines(found: dict[str, Delivery]) -> list[str]:
    waiting = {run: now for run, now in found.items() if now.waiting}
    lines = [f"MLflow was not told: {line}" for now in found.values() for line in now.refusals]
    if waiting:
        count = sum(now.waiting for now in waiting.values())
        runs = f"{len(waiting)} runs" if len(waiting) > 1 else f"run {next(iter(waiting))}"
        causes = "; ".join(sorted({now.cause for now in waiting.values() if now.cause}))
        lines.append(
            f"MLflow has not taken {count} message{'s' * (count > 1)} of {runs}"
            f"{f' ({causes})' if causes else ''}; to send what waits: skyray sync"
        )
    return lines


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
                found = send(self.run_id)
                waiting = found.waiting
                if found.refusals:
                    _keep(self.run_id, found)
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
                before.sent + now.sent, now.waiting, now.cause, before.refusals + now.refusals
            )
        moved = any(now.sent or now.refusals for now in found.values())
        waiting = [run for run, now in found.items() if now.waiting]
    return total


def _unsent(run_id: str) -> list[str]:
    place = places.join(folder(run_id), _UNSENT)
    filesystem, path = places.resolve(place)
    found = filesystem.get_file_info(fs.FileSelector(path, allow_not_found=True))
    names = sorted(info.base_name for info in found)
    return [places.join(place, name) for name in names if name.endswith(".json")]


def _set_aside(place: str, message: dict[str, Any]) -> str:
    aside = places.join(places.parent(places.parent(place)), _REFUSED, places.name(place))
    places.write_json(aside, message)
    places.remove(place)
    return aside


def _is_final(error: Exception) -> bool:
    """Return whether to ask again would bring the same answer."""
    code = getattr(error, "error_code", None)  # of an MlflowException
    return code in _FOR_GOOD or isinstance(error, FileNotFoundError | Never)


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
