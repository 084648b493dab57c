"""Uploaded bytes as survey files, read by the survey's own readers within bounds."""

from __future__ import annotations

import bz2
import zlib
from collections.abc import Mapping
from typing import Any

from serve.refusal import Refusal

from skyray.readers.base import make_reader
from skyray.readers.memory import memory_file
from skyray.records import InvalidRecord, Record, refusal_of

_DAMAGED = {"gzip": "gzip_damaged", "bzip2": "bzip2_damaged"}

Decoded = list[Record | InvalidRecord]


def too_many(max_records: int) -> Refusal:
    return Refusal(413, "too_many_records", f"expected at most {max_records} records in a request")


def read_upload(
    reader_name: str, options: Mapping[str, Any], body: bytes, name: str, max_records: int
) -> Decoded:
    """Return all records of an uploaded survey file.

    Raises
    ------
    Refusal
        400 for a file its reader cannot read, with the reader's reason; 413 for too many records.
    """
    file = memory_file(body, name)
    reader = make_reader(reader_name, options)
    found: Decoded = []
    try:
        for unit in reader.units(file):
            for record in reader.read(file, unit):
                found.append(record)
                if len(found) > max_records:
                    raise too_many(max_records)
    except Refusal:
        raise
    except Exception as error:  # whatever a reader trips over in a stranger's file is a bad file
        refused = refusal_of(error, name, reason="unreadable")
        if not found:
            raise Refusal(400, refused.reason, refused.detail) from None
        found.append(refused)  # of a file that breaks off, what came before is answered
    return found


def inflate(body: bytes, limit: int) -> bytes:
    """Return the content of a gzip or bzip2 stream; anything else as it is.

    Raises
    ------
    Refusal
        413 beyond `limit` bytes, 400 (``gzip_damaged``, ``bzip2_damaged``) for a damaged stream.
    """
    if body[:2] == b"\x1f\x8b":
        kind, inflater = "gzip", zlib.decompressobj(wbits=31)
    elif body[:3] == b"BZh":
        kind, inflater = "bzip2", bz2.BZ2Decompressor()
    else:
        return body
    try:
        content = inflater.decompress(body, limit)
    except (zlib.error, OSError) as error:
        raise Refusal(400, _DAMAGED[kind], str(error)) from None
    if not inflater.eof and len(content) >= limit:
        raise Refusal(413, "body_too_large", f"expected at most {limit:,} bytes once inflated")
    if not inflater.eof:
        detail = f"expected a whole {kind} stream, found its beginning"
        raise Refusal(400, _DAMAGED[kind], detail)
    return content
