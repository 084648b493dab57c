"""Request body → spectra: FITS through the card's own reader, JSON, and Arrow IPC.

Pure functions; nothing here knows HTTP beyond the content type. A body that cannot be read at all
raises `Refusal` (4xx); a single spectrum that cannot be used is returned as `InvalidRecord` in
its place, so that one bad spectrum in a batch does not spoil the others.
"""

from __future__ import annotations

import zlib

import numpy as np
from fsspec.implementations.memory import MemoryFileSystem
from pyarrow import fs
from serve.decode_arrow import decode_arrow
from serve.decode_json import decode_json
from serve.refusal import Refusal

from skyray.cards import Card
from skyray.readers.base import SurveyFile, make_reader
from skyray.records import Grid, InvalidRecord, Spectrum, check_spectrum

Decoded = list[Spectrum | InvalidRecord]

JSON_TYPES = ("application/json",)
ARROW_TYPES = ("application/vnd.apache.arrow.stream", "application/vnd.apache.arrow.file")
FITS_TYPES = ("application/fits", "image/fits", "application/octet-stream")
# Compressed FITS and Arrow may grow to this multiple of the body limit, no further.
_INFLATION = 8


def decode(
    content_type: str, body: bytes, card: Card, max_spectra: int, max_bytes: int, name: str = ""
) -> Decoded:
    """Return the spectra of a request body, refused ones in their places.

    Parameters
    ----------
    content_type : str
        The header as sent; parameters after ``;`` are ignored.
    card : Card
        Names the reader for FITS uploads.
    max_spectra, max_bytes : int
        Limits; more spectra → 413, an inflated FITS beyond 8 × `max_bytes` → 413.
    name : str
        File name of an upload, for readers that look at it.
    """
    kind = content_type.partition(";")[0].strip().lower()
    if kind in JSON_TYPES:
        decoded = decode_json(body)
    elif kind in ARROW_TYPES:
        decoded = decode_arrow(body, max_spectra, _INFLATION * max_bytes)
    elif kind in FITS_TYPES:
        decoded = _decode_fits(body, card, max_spectra, max_bytes, name)
    else:
        known = ", ".join(JSON_TYPES + FITS_TYPES + ARROW_TYPES)
        raise Refusal(415, "content_type_unknown", f"expected one of {known}; found {kind[:80]!r}")
    if len(decoded) > max_spectra:
        raise too_many(max_spectra)
    if not decoded:
        raise Refusal(400, "no_spectra", "expected at least one spectrum, found none")
    return decoded


def too_many(max_spectra: int) -> Refusal:
    return Refusal(413, "too_many_spectra", f"expected at most {max_spectra} spectra in a request")


def admit(item: Spectrum | InvalidRecord, grid: Grid, min_good_pixels: int):
    """Return the spectrum if the model can use it, else the `InvalidRecord` that says why not."""
    if isinstance(item, InvalidRecord):
        return item
    try:
        check_spectrum(item, min_good_pixels)
        _check_overlap(item, grid, min_good_pixels)
    except InvalidRecord as refused:
        return refused
    return item


def _check_overlap(spectrum: Spectrum, grid: Grid, min_good_pixels: int) -> None:
    first, last = grid.wavelength()[[0, -1]]
    wavelength = np.asarray(spectrum.wavelength)
    inside = (wavelength >= first) & (wavelength <= last)
    good = int((inside & (spectrum.ivar > 0) & ~spectrum.mask).sum())
    if good < min_good_pixels:
        raise InvalidRecord(
            "outside_model_range",
            f"expected ≥ {min_good_pixels} good pixels in {first:.0f}–{last:.0f} Å, found {good}",
            spectrum.source,
            spectrum.object_id,
        )


def _decode_fits(body: bytes, card: Card, max_spectra: int, max_bytes: int, name: str) -> Decoded:
    if body[:2] == b"\x1f\x8b":
        body = _inflate(body, _INFLATION * max_bytes)
    if not body.startswith(b"SIMPLE  ="):
        raise Refusal(400, "not_fits", f"expected a FITS file, found bytes {body[:16]!r}")
    file = memory_file(body, name or "upload.fits")
    reader = make_reader(card.reader, card.reader_options)
    found: Decoded = []
    try:
        for unit in reader.units(file):
            for record in reader.read(file, unit):
                found.append(record)
                if len(found) > max_spectra:
                    raise too_many(max_spectra)
    except InvalidRecord as error:
        raise Refusal(400, error.reason, error.detail) from None
    except Refusal:
        raise
    except Exception as error:  # whatever a reader trips over in a stranger's file is a bad file
        raise Refusal(400, "fits_unreadable", f"{type(error).__name__}: {error}"[:300]) from None
    return found


def _inflate(body: bytes, limit: int) -> bytes:
    inflater = zlib.decompressobj(wbits=31)
    try:
        content = inflater.decompress(body, limit)
    except zlib.error as error:
        raise Refusal(400, "gzip_damaged", str(error)) from None
    if inflater.unconsumed_tail:
        raise Refusal(413, "body_too_large", f"expected at most {limit:,} bytes once inflated")
    if not inflater.eof:
        raise Refusal(400, "gzip_damaged", "expected a whole gzip stream, found its beginning")
    return content


class _OneRequest(MemoryFileSystem):
    """An in-memory filesystem that is not shared with the rest of the process."""

    cachable = False

    def __init__(self):
        super().__init__()
        self.store, self.pseudo_dirs = {}, [""]


def memory_file(content: bytes, name: str) -> SurveyFile:
    """Return bytes as a `SurveyFile`, so that readers need not know where they came from."""
    memory = _OneRequest()
    path = "/" + (name.replace("\\", "/").rsplit("/", 1)[-1] or "upload.fits")
    memory.pipe_file(path, content)
    return SurveyFile(fs.PyFileSystem(fs.FSSpecHandler(memory)), path)
