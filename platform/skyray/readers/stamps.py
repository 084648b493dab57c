"""Image stamps of alert packets: FITS bytes, gzipped or plain, inflated within bounds."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from skyray.readers.base import SurveyFile
from skyray.readers.fits_bytes import FitsFile
from skyray.records import InvalidRecord

MAX_STAMP_BYTES = 4 << 20
_GZIP = b"\x1f\x8b"


@dataclass(frozen=True)
class _Memory:
    """The one method of a filesystem that `FitsFile` asks for."""

    content: bytes

    def open_input_file(self, path: str) -> pa.NativeFile:
        return pa.BufferReader(self.content)


def read_stamp(content: Any, source: str) -> np.ndarray:
    """Return the first two-dimensional image of a FITS stamp, float32 [height, width].

    Raises
    ------
    InvalidRecord
        ``stamp_missing``, ``stamp_too_large`` (more than 4 MB, or inflating to that),
        ``stamp_gzip``, ``stamp_not_an_image``, or what `FitsFile` refuses.
    """
    if not isinstance(content, bytes) or not content:
        found = "nothing" if not content else type(content).__name__
        raise InvalidRecord(
            "stamp_missing", f"expected the bytes of a stamp, found {found}", source
        )
    content = _inflated(content, source) if content.startswith(_GZIP) else content
    if len(content) > MAX_STAMP_BYTES:
        detail = f"expected at most {MAX_STAMP_BYTES >> 20} MB, found {len(content)} bytes"
        raise InvalidRecord("stamp_too_large", detail, source)
    with FitsFile(SurveyFile(_Memory(content), source)) as file:
        for hdu in file.hdus():
            kind = hdu.header.get("XTENSION", "IMAGE")
            if kind == "IMAGE" and hdu.header.get("NAXIS") == 2:
                return hdu.image().astype(np.float32)
    raise InvalidRecord("stamp_not_an_image", "expected an image of two axes, found none", source)


def _inflated(content: bytes, source: str) -> bytes:
    decoder = zlib.decompressobj(16 + zlib.MAX_WBITS)
    try:
        found = decoder.decompress(content, MAX_STAMP_BYTES)
    except zlib.error as error:
        raise InvalidRecord(
            "stamp_gzip", f"expected a gzip stream, found: {error}", source
        ) from None
    if decoder.unconsumed_tail:
        detail = f"expected at most {MAX_STAMP_BYTES >> 20} MB, the stamp inflates beyond that"
        raise InvalidRecord("stamp_too_large", detail, source)
    if not decoder.eof:
        raise InvalidRecord("stamp_gzip", "expected a whole gzip stream, found its start", source)
    return found
