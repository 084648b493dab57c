"""The space that prepared tables take: what there is, and what may go."""

from __future__ import annotations

import contextlib
import datetime
import os
from dataclasses import dataclass

from skyray.config import ConfigError
from skyray.data.prepared_tables import PreparedTable, mark_of, remove_file, remove_strays
from skyray.runtime import places

FOLDER = "prepared"
BYTES_SETTING = "SKYRAY_PREPARED_BYTES"
_DEFAULT_BYTES = 200_000_000_000
_SUFFIX, _MARK = ".lance", ".used"
IN_USE = datetime.timedelta(hours=1)
_UNFINISHED = datetime.timedelta(days=1)  # without a new file: its maker was killed


@dataclass(frozen=True)
class PreparedInfo:
    """A prepared table, or what a killed maker left of one.

    Attributes
    ----------
    name, uri : str
    bytes, rows : int
        `rows` is 0 for one that was never finished.
    last_used : datetime
        UTC; of an unfinished one, when its last file was written.
    made_for : str
        Recipe and card of whoever made it, and the stage if it holds features of frozen networks;
        ``unfinished`` else.
    """

    name: str
    uri: str
    bytes: int
    rows: int
    last_used: datetime.datetime
    made_for: str

    @property
    def finished(self) -> bool:
        return self.rows > 0


def folder() -> str:
    """Return the place of all prepared tables: ``SKYRAY_HOME/prepared``."""
    return places.join(places.absolute(places.home()), FOLDER)


def prepared_tables() -> list[PreparedInfo]:
    """Return all prepared tables, least recently used first."""
    found: dict[str, list[places.FileInfo]] = {}
    marks: dict[str, int] = {}
    start = len(places.resolve(folder())[1])
    for info in _files(folder()):
        name, *deeper = places.resolve(info.uri)[1][start:].strip("/").split("/")
        if deeper and name.endswith(_SUFFIX):
            found.setdefault(name, []).append(info)
        elif name.endswith(_SUFFIX + _MARK):
            marks[name.removesuffix(_MARK)] = info.modified_ns or 0
    infos = [_info(name, files, marks.get(name, 0)) for name, files in found.items()]
    return sorted(infos, key=lambda info: (info.last_used, info.name))


def _info(name: str, files: list[places.FileInfo], mark: int) -> PreparedInfo:
    table = PreparedTable(places.join(folder(), name))
    size = sum(info.size for info in files)
    newest = max(info.modified_ns or 0 for info in files)
    about = table.about_untouched()
    last = datetime.datetime.fromtimestamp(max(newest, mark) / 1e9, datetime.UTC)
    if about is None:
        return PreparedInfo(name, table.uri, size, 0, last, "unfinished")
    rows = max(stop for _, stop in about["splits"].values())
    stage = f", stage {about['stage']}" if "stage" in about else ""
    made_for = f"{about['recipe']} on {about['card']}{stage}"
    return PreparedInfo(name, table.uri, size, rows, last, made_for)


def _files(place: str) -> list[places.FileInfo]:
    try:
        return list(places.walk(place))
    except FileNotFoundError:
        return []


def vacuum_prepared(
    keep_bytes: int | None = None,
    older_than: datetime.timedelta | None = None,
    *,
    in_use: datetime.timedelta = IN_USE,
    dry_run: bool = False,
) -> list[PreparedInfo]:
    """Remove prepared tables that nobody uses; return what was removed (or would be: `dry_run`).

    What killed makers left goes after a day without a new file, whatever the limits.

    Parameters
    ----------
    keep_bytes : int, optional
        Remove the least recently used ones until the others take no more than this.
    older_than : timedelta, optional
        Remove those that were not used for so long.
    in_use : timedelta
        So long after it was last read a table counts as in use, and stays whatever the limits:
        readers mark it every few minutes.
    """
    now = datetime.datetime.now(datetime.UTC)
    infos = prepared_tables()
    total = sum(info.bytes for info in infos)
    removed = []
    for info in infos:
        idle = now - info.last_used
        if info.finished:
            old = older_than is not None and idle >= older_than
            goes = idle >= in_use and (old or (keep_bytes is not None and total > keep_bytes))
        else:
            goes = idle >= _UNFINISHED
        if goes:
            if not dry_run:
                _remove(info)
            total -= info.bytes
            removed.append(info)
        elif info.finished and not dry_run:
            remove_strays(info.uri)
    return removed


def keep_within_bound() -> list[PreparedInfo]:
    """Apply the bound of ``SKYRAY_PREPARED_BYTES`` (default 200 GB); return what was removed."""
    return vacuum_prepared(keep_bytes=bound_bytes())


def bound_bytes() -> int:
    """Return the bound of the space of all prepared tables, bytes.

    Raises
    ------
    ConfigError
        If ``SKYRAY_PREPARED_BYTES`` is no number.
    """
    text = os.environ.get(BYTES_SETTING, "").strip()
    try:
        return int(float(text)) if text else _DEFAULT_BYTES
    except ValueError:
        raise ConfigError(
            f"{BYTES_SETTING}: expected a number of bytes such as 2e11, found {text!r}"
        ) from None


def _remove(info: PreparedInfo) -> None:
    """Remove a table's files one by one, what publishes it first.

    Never the folder with all that is in it: somebody may begin to make the same table anew.
    """
    files = [found.uri for found in _files(info.uri)]
    for uri in sorted(files, key=lambda uri: not places.name(uri).endswith(".manifest")):
        remove_file(uri)
    remove_file(mark_of(info.uri))
    if places.is_local(info.uri):
        for folder_left, _, _ in os.walk(info.uri, topdown=False):
            with contextlib.suppress(OSError):  # not empty: somebody began anew
                os.rmdir(folder_left)
