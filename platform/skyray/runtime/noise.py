"""What Ray, Serve, MLflow and their processes say, kept in a file instead of on the terminal."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from skyray.runtime import places

SHOW = "SKYRAY_WORKER_LOGS"  # set: nothing is kept from the terminal
_LOGS = "logs"
_MOST_LOGS = 50
_kept: list[Path] = []  # of the blocks this process is in


@contextmanager
def kept(verb: str) -> Iterator[None]:
    """Lead stderr, of this process and of what it starts, into a log file for a block.

    The display (`skyray.runtime.progress`) that was opened before stays on the terminal. An error
    that leaves the block names the file in a note, if anything is in it; without an error the file
    of a silent block is removed.
    """
    if os.environ.get(SHOW):
        yield
        return
    path = _new_log(verb)
    # Never closed: handlers that are made during the block keep it, and write when Python ends.
    stream = path.open("a", encoding="utf-8", buffering=1)
    terminal, python = os.dup(2), sys.stderr
    python.flush()
    os.dup2(stream.fileno(), 2)
    sys.stderr = stream
    _kept.append(path)
    try:
        yield
    except Exception as error:
        if path.stat().st_size:
            error.add_note(f"log: {path}")
        raise
    finally:
        _kept.remove(path)
        stream.flush()
        sys.stderr = python
        os.dup2(terminal, 2)
        os.close(terminal)
        if not path.stat().st_size:
            path.unlink()


def is_kept() -> bool:
    """Return whether stderr is led into a log file now."""
    return bool(_kept)


def workers_into_log() -> None:
    """Print what the Ray just joined and its workers say where stderr leads, in place of stdout."""
    from ray._private import worker
    from ray._private.ray_logging import global_worker_stdstream_dispatcher as dispatcher

    dispatcher.remove_handler("ray_print_logs")
    dispatcher.add_handler("ray_print_logs", _write_lines)
    worker.print_to_stdstream = lambda data, ignore_prefix: _write_lines(data)  # its own errors


def _write_lines(data: dict[str, Any]) -> None:
    who = data.get("actor_name") or data.get("task_name") or ""
    for line in data.get("lines", ()):
        sys.stderr.write(f"({who} pid={data.get('pid')}, ip={data.get('ip')}) {line}\n")


def _new_log(verb: str) -> Path:
    """Return a new file's name beside the runs, or, if those lie in a bucket, a temporary one."""
    home = places.home()
    folder = Path(home if places.is_local(home) else tempfile.gettempdir(), _LOGS).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    for old in sorted(folder.glob("*.log"))[:-_MOST_LOGS]:
        old.unlink(missing_ok=True)
    return folder / f"{time.strftime('%Y%m%d-%H%M%S')}-{verb}-{os.getpid()}.log"
