"""Request body → spectra: FITS through the card's own reader, JSON, and Arrow IPC."""

from __future__ import annotations

from serve.decode_arrow import decode_arrow
from serve.decode_json import decode_json
from serve.refusal import Refusal
from serve.uploads import Decoded, plain, read_upload

from skyray.cards import Card
from skyray.readers.layout import stem

JSON_TYPES = ("application/json",)
ARROW_TYPES = ("application/vnd.apache.arrow.stream", "application/vnd.apache.arrow.file")
FITS_TYPES = ("application/fits", "image/fits", "application/octet-stream")
CONTENT_TYPES = (*JSON_TYPES, *FITS_TYPES, *ARROW_TYPES)


def decode_spectra(
    kind: str, body: bytes, card: Card, max_records: int, max_bytes: int, name: str
) -> Decoded:
    """Return the spectra of a body of content type `kind`, one of `CONTENT_TYPES`.

    FITS, plain or compressed (gzip, bzip2, xz, zstandard), is read by its content; `name` may say
    anything or nothing.
    """
    if kind in JSON_TYPES:
        return decode_json(body, max_records)
    if kind in ARROW_TYPES:
        return decode_arrow(body, max_records, max_bytes)
    body = plain(body, max_bytes)
    if not body.startswith(b"SIMPLE  ="):
        raise Refusal(400, "not_fits", f"expected a FITS file, found bytes {body[:16]!r}")
    named = f"{stem(name) or 'upload'}.fits"
    return read_upload(card.reader, card.reader_options, body, named, max_records)
