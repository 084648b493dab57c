"""Request body → records: spectra, cutouts or alerts, whichever the model takes.

Pure functions; nothing here knows HTTP beyond the content type. A body that cannot be read at all
raises `Refusal` (4xx); a single record that cannot be used is returned as `InvalidRecord` in
its place, so that one bad record in a batch does not spoil the others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from serve import decode_alerts, decode_images, decode_spectra
from serve.refusal import Refusal
from serve.uploads import Decoded, too_many

from skyray.cards import Card

# Compressed bodies may grow to this multiple of the body limit, and of their own size beside some
# MiB, no further: images and spectra shrink by 2 to 10.
_INFLATION = 8
_OWN_INFLATION, _FREE_BYTES = 64, 16 << 20


@dataclass(frozen=True)
class Decoder:
    """How bodies with one record type are read: (kind, body, card, records, bytes, name)."""

    content_types: tuple[str, ...]
    decode: Callable[[str, bytes, Card, int, int, str], Decoded]


DECODERS = {
    "spectrum": Decoder(decode_spectra.CONTENT_TYPES, decode_spectra.decode_spectra),
    "cutout": Decoder(decode_images.CONTENT_TYPES, decode_images.decode_cutouts),
    "alert": Decoder(decode_alerts.CONTENT_TYPES, decode_alerts.decode_alerts),
}


def decode(
    content_type: str, body: bytes, card: Card, max_records: int, max_bytes: int, name: str = ""
) -> Decoded:
    """Return the records of a request body, refused ones in their places.

    Parameters
    ----------
    content_type : str
        The header as sent; parameters after ``;`` are ignored.
    card : Card
        Names the record type, and the reader of uploaded survey files.
    max_records, max_bytes : int
        Limits; more records → 413, a body that inflates beyond 8 × `max_bytes`, or beyond 16 MiB
        and 64 times its size → 413.
    name : str
        File name of an upload, for readers that look at it.
    """
    kind = content_type.partition(";")[0].strip().lower()
    decoder = DECODERS[card.record]
    if kind not in decoder.content_types:
        known = ", ".join(decoder.content_types)
        raise Refusal(415, "content_type_unknown", f"expected one of {known}; found {kind[:80]!r}")
    most = min(_INFLATION * max_bytes, _FREE_BYTES + _OWN_INFLATION * len(body))
    decoded = decoder.decode(kind, body, card, max_records, most, name)
    if len(decoded) > max_records:
        raise too_many(max_records)
    if not decoded:
        raise Refusal(400, "no_records", "expected at least one record, found none")
    return decoded
