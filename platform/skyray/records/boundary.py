"""The boundary at which faults become refusals: what goes wrong with one record ends there.

Whatever a record's fields hold, working on it either succeeds or gives an `InvalidRecord`; other
records of the file, batch or request go on. Everything that touches a decoded record on its way to
a row, a batch or an answer passes through here, in ingest, follow and the service alike.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from skyray.records.columns import InvalidRecord

FAULT = "reader_fault"
_Made, _Record = TypeVar("_Made"), TypeVar("_Record")
_CHARACTERS = 300
_log = logging.getLogger(__name__)


class NotNow(ConnectionError):
    """A service does not answer, which is no fault of the record: it is to be read again."""


def attempt(
    work: Callable[[], _Made], source: str = "", object_id: str = ""
) -> _Made | InvalidRecord:
    """Return what `work` makes of one record, or why it cannot.

    An exception that has no reason of its own is refused as `FAULT`, with its type and message, and
    logged with its traceback.
    """
    try:
        return work()
    except Exception as error:  # the boundary: any library may trip over what a stranger wrote
        return refusal_of(error, source, object_id)


def refusal_of(
    error: Exception, source: str = "", object_id: str = "", reason: str = FAULT
) -> InvalidRecord:
    """Return an exception as a refusal: itself, if it is one, with what it does not say yet.

    Raises
    ------
    NotNow
        If that is the error.
    """
    if isinstance(error, NotNow):
        raise error
    if isinstance(error, InvalidRecord):
        source, object_id = error.source or source, error.object_id or object_id
        return InvalidRecord(error.reason, error.detail, source, object_id)
    if isinstance(error, MemoryError):  # at the limit of a process that decodes
        return InvalidRecord("decode_memory", "expected to fit the memory", source, object_id)
    if reason == FAULT:
        _log.warning("%s: %s of a record", source or "record", FAULT, exc_info=error)
    detail = f"{type(error).__name__}: {error}"[:_CHARACTERS]
    return InvalidRecord(reason, detail, source, object_id)


def to_the_end(
    records: Callable[[], Iterable[_Made | InvalidRecord]], source: str
) -> Iterator[_Made | InvalidRecord]:
    """Yield what a file (or a piece of one) holds; what breaks it off is the last refusal.

    A file that cannot be read is refused by its reader's reason or as ``unreadable``, one that
    holds nothing as ``no_objects``.
    """
    found = False
    try:
        for record in records():
            found = True
            yield record
    except Exception as error:  # any damage of a survey file, in any library below the reader
        yield refusal_of(error, source, reason="unreadable")
    else:
        if not found:
            yield InvalidRecord("no_objects", "expected at least one object, found none", source)


def each_or_all(
    work: Callable[[Sequence[_Record]], Sequence[_Made]], records: Sequence[_Record]
) -> list[_Made | InvalidRecord]:
    """Return what `work` makes of a batch, one a record; where it fails, of halves of it.

    So a record on which it fails is the only one without an answer.
    """
    try:
        return list(work(records))
    except Exception as error:  # the boundary, as in `attempt`
        if len(records) == 1:
            return [refusal_of(error, records[0].source, records[0].object_id)]
        middle = len(records) // 2
        return each_or_all(work, records[:middle]) + each_or_all(work, records[middle:])
