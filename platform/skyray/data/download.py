"""Fetch a card's survey files by its URL template: slowly enough, completely, and again if needed.

A file is fetched to ``NAME.part`` and appears as ``NAME`` when its length and checksum are right.
What is there already is not fetched again; what was begun goes on where the server allows. For a
URI the part lies on the local disk, and at the URI once a file has failed.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
import posixpath
import random
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow.csv
import requests

from skyray.cards import Card
from skyray.config import ConfigError
from skyray.readers import foreign_arrow as pq
from skyray.readers.base import SurveyFile
from skyray.readers.fits_image import check_headers
from skyray.readers.layout import is_fits_name
from skyray.runtime import places
from skyray.runtime.progress import task

CHECKSUMS = ("sha256", "sha1", "md5")
FAILURES = "download-failures.csv"
_BLOCK = 1 << 18
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.5, 60.0
_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})


class DownloadError(OSError):
    """A file could not be fetched; `wait_s` says when to try again, None that it is of no use."""

    def __init__(self, message: str, wait_s: float | None = 0.0):
        super().__init__(message)
        self.wait_s = wait_s


@dataclass(frozen=True)
class _Wanted:
    """A file to fetch to `place`, through the local file `part`."""

    url: str
    place: str
    part: Path
    size: int | None
    checksum: tuple[str, str] | None

    @property
    def begun(self) -> str:
        """Where a part is kept from one call to the next."""
        return places.join(places.parent(self.place), self.part.name)


class _Pace:
    """Lets at most `rate` requests a second start, over all threads."""

    def __init__(self, rate: float | None):
        self._interval = 1.0 / rate if rate else 0.0
        self._next = 0.0
        self._lock = threading.Lock()

    def wait(self) -> None:
        with self._lock:
            now = time.monotonic()
            start = max(self._next, now)
            self._next = start + self._interval
        time.sleep(start - now)


def download(
    card: Card,
    listing: str | os.PathLike | Sequence[Mapping[str, Any]],
    out: str | os.PathLike,
    *,
    rate_limit: float | None = 5.0,
    retries: int = 5,
    timeout: float = 30.0,
    workers: int = 4,
    progress: bool = True,
) -> dict[str, Any]:
    """Fetch the files of a list.

    Parameters
    ----------
    card : Card
        Its ``files.url`` is a template over the list's columns.
    listing : path or rows
        Table (CSV, FITS or Parquet) with the template's columns, one file a row; optional columns
        ``sha256``, ``sha1`` or ``md5`` (hexadecimal) and ``size`` (bytes) are checked.
    out : str
        Folder or URI for the files.
    rate_limit : float, optional
        Requests a second at most, over all workers; None for no limit.
    retries : int
        Attempts after the first, with growing waits; a server's Retry-After is honoured.
    timeout : float
        Seconds without a byte after which a connection has stalled.
    workers : int
        Files fetched at once.

    Returns
    -------
    dict
        ``files``, ``fetched``, ``already there``, ``failed``, ``bytes`` and, where some failed,
        ``report``: a table of url and error in `out`.

    Raises
    ------
    ConfigError
        If the card has no URL, or the list lacks one of its columns.
    """
    out = places.absolute(out)
    pace, sessions = _Pace(rate_limit), threading.local()

    def fetch(item: _Wanted) -> int:
        if not hasattr(sessions, "http"):
            sessions.http = requests.Session()
        return fetch_file(sessions.http, item, retries=retries, timeout=timeout, pace=pace)

    failures: list[tuple[str, str]] = []
    fetched = received = 0
    with ExitStack() as stack:
        wanted = _wanted(card, listing, out, stack.enter_context(_parts(out)))
        shown = stack.enter_context(task("download", len(wanted), "file", show=progress))
        pool = stack.enter_context(ThreadPoolExecutor(max(1, workers)))
        jobs = {pool.submit(fetch, item): item for item in wanted}
        for job in as_completed(jobs):
            try:
                size = job.result()
                received += size
                fetched += size > 0
            except OSError as error:
                failures.append((jobs[job].url, str(error)))
            shown.advance(note=f"{len(failures)} failed" if failures else "")
    summary = {
        "files": len(wanted),
        "fetched": fetched,
        "already there": len(wanted) - fetched - len(failures),
        "failed": len(failures),
        "bytes": received,
    }
    return summary | _report(out, failures)


@contextmanager
def _parts(out: str) -> Iterator[Path]:
    """Hold the local folder in which files grow: `out` itself, or a temporary one for a URI."""
    if places.is_local(out):
        with places.local_folder(out) as folder:
            yield folder
    else:
        with tempfile.TemporaryDirectory(prefix="skyray-") as folder:
            yield Path(folder)


def _report(out: str, failures: list[tuple[str, str]]) -> dict[str, str]:
    report = places.join(out, FAILURES)
    places.remove(report)
    if not failures:
        return {}
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["url", "error"])
    writer.writerows(sorted(failures))
    places.write_bytes(report, text.getvalue().encode())
    return {"report": report}


# the list ------------------------------------------------------------------------------------


def _wanted(card: Card, listing: Any, out: str, parts: Path) -> list[_Wanted]:
    if card.files is None:
        raise ConfigError(f"card {card.name}: files: the card does not say where its files are")
    wanted: dict[str, _Wanted] = {}
    for number, row in enumerate(_rows(listing), start=1):
        try:
            url = card.files.url.format(**row)
            named = card.files.name.format(**row) or urlsplit(url).path
        except (KeyError, ValueError) as error:
            raise ConfigError(
                f"list of files, row {number}: expected columns {card.files.columns} for "
                f"{card.files.url!r}, found {dict(row)}: {error}"
            ) from None
        name = posixpath.basename(named)
        if name in ("", ".", ".."):
            raise ConfigError(f"list of files, row {number}: no file name in {url!r}")
        checksum = next(((k, str(row[k]).lower()) for k in CHECKSUMS if row.get(k)), None)
        size = int(row["size"]) if row.get("size") else None
        part = parts / f"{name}.part"
        item = _Wanted(url, places.join(out, name), part, size, checksum)
        other = wanted.setdefault(name, item)
        if other.url != url:
            raise ConfigError(f"list of files: {other.url} and {url} have one name: {name}")
    return list(wanted.values())


def _rows(listing: Any) -> Iterable[Mapping[str, Any]]:
    if not isinstance(listing, str | os.PathLike):
        return listing
    filesystem, path = places.resolve(listing)
    if is_fits_name(path):
        from astropy.table import Table

        check_headers(SurveyFile(filesystem, path))  # astropy follows whatever they say
        with places.local_copy(listing) as copy:
            table = Table.read(copy)
        table.convert_bytestring_to_unicode()
        names = [name for name in table.colnames if table[name].ndim == 1]
        return [{n: v for n, v in zip(names, row, strict=True)} for row in table[names].iterrows()]
    if path.endswith((".parquet", ".pq")):
        return pq.read_table(path, filesystem=filesystem).to_pylist()
    with filesystem.open_input_stream(path) as stream:
        return pyarrow.csv.read_csv(stream).to_pylist()


# one file ------------------------------------------------------------------------------------


def fetch_file(
    http: requests.Session, item: _Wanted, *, retries: int, timeout: float, pace: _Pace
) -> int:
    """Fetch one file with retries and return its size; 0 where it was already there.

    Raises
    ------
    DownloadError
        If it could not be had; the message says why the last attempt failed.
    """
    if _is_right(item, item.place):
        return 0
    local = places.is_local(item.place)
    begun = not local and places.exists(item.begun)
    if begun:
        places.copy(item.begun, item.part)
    try:
        size = _patiently(http, item, retries, timeout, pace)
    except DownloadError:
        if not local and item.part.exists():
            places.copy(item.part, item.begun)
        raise
    if begun:
        places.remove(item.begun)
    return size


def _patiently(
    http: requests.Session, item: _Wanted, retries: int, timeout: float, pace: _Pace
) -> int:
    for attempt in range(retries + 1):
        pace.wait()
        try:
            return _attempt(http, item, timeout)
        except requests.RequestException as error:
            last = DownloadError(f"{item.url}: {type(error).__name__}: {error}")
        except DownloadError as error:
            last = error
        if last.wait_s is None:
            raise last
        if attempt < retries:
            time.sleep(max(last.wait_s, _backoff(attempt)))
    raise DownloadError(f"{last} (after {retries + 1} attempts)")


def _backoff(attempt: int) -> float:
    """Return a random wait whose bound doubles with every attempt ("full jitter"), seconds."""
    return random.uniform(0.5, 1.0) * min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2.0**attempt)


def _attempt(http: requests.Session, item: _Wanted, timeout: float) -> int:
    part = item.part
    begun = part.stat().st_size if part.exists() else 0
    headers = {"Accept-Encoding": "identity"}  # lengths and ranges of the file itself
    if begun:
        headers["Range"] = f"bytes={begun}-"
    with http.get(item.url, headers=headers, stream=True, timeout=timeout) as answer:
        if answer.status_code == 416:  # the part is as long as the file, or longer: start again
            part.unlink(missing_ok=True)
            raise DownloadError(f"{item.url}: 416: {begun} bytes were begun, too many")
        if answer.status_code not in (200, 206):
            raise _refusal(item, answer)
        resumed = answer.status_code == 206 and begun > 0
        length = answer.headers.get("Content-Length")
        expected = int(length) + (begun if resumed else 0) if length is not None else None
        with part.open("ab" if resumed else "wb") as stream:
            for block in answer.iter_content(_BLOCK):
                stream.write(block)
    return _finish(item, expected)


def _finish(item: _Wanted, expected: int | None) -> int:
    part = item.part
    found = part.stat().st_size
    if expected is not None and found < expected:  # what came stays, to be gone on with
        raise DownloadError(f"{item.url}: expected {expected} bytes, found {found}")
    if not _is_right(item, part):
        part.unlink()
        stated = item.checksum[0] if item.checksum else f"size {item.size}"
        raise DownloadError(f"{item.url}: {found} bytes do not have the list's {stated}")
    if places.is_local(item.place):
        part.replace(item.place)
    else:
        places.copy(part, item.place)
        part.unlink()
    return found


def _refusal(item: _Wanted, answer: requests.Response) -> DownloadError:
    text = f"{item.url}: {answer.status_code} {answer.reason}"
    if answer.status_code not in _AGAIN:
        return DownloadError(text, wait_s=None)
    return DownloadError(text, wait_s=_retry_after(answer.headers.get("Retry-After", "")))


def _retry_after(value: str) -> float:
    """Return the seconds a server asks to wait: a number, or a date."""
    if value.strip().isdigit():
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return 0.0


def _is_right(item: _Wanted, place: places.Place) -> bool:
    """Return whether a file is there and is what the list says."""
    try:
        found = next(places.walk(place), None)
    except FileNotFoundError:
        return False
    if found is None or (item.size is not None and found.size != item.size):
        return False
    if item.checksum is None:
        return True
    kind, expected = item.checksum
    with places.read_stream(place) as stream:
        return hashlib.file_digest(stream, kind).hexdigest() == expected
