"""Uploaded bytes as survey files, read by the survey's own readers within bounds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa
from serve.refusal import Refusal

from skyray.readers.base import make_reader
from skyray.readers.memory import memory_file
from skyray.readers.unpacked import packing, unpack
from skyray.records import InvalidRecord, Record, refusal_of

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


def plain(body: bytes, most: int) -> bytes:
    """Return the content of a body, unpacked as readers unpack files; a plain one as it is.

    Raises
    ------
    Refusal
        413 (``body_too_large``) beyond `most` bytes; 400 for a damaged stream
        (``gzip_truncated``, ``xz_truncated`` …) or an unknown packing (``compression_unknown``).
    """
    try:
        kind = packing(body[:8], "body")
        return unpack(pa.BufferReader(body), kind, "body", most) if kind else body
    except InvalidRecord as error:
        if error.reason == "unpacked_too_large":
            raise Refusal(413, "body_too_large", error.detail) from None
        raise Refusal(400, error.reason, error.detail) from None
