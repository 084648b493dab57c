"""PNG, JPEG and TIFF → planes of numbers, within limits set before anything is unpacked.

Values are the stored samples: colour profiles and gamma say how to show them and are not applied.
PNG is decoded by libpng and TIFF by libtiff's codecs (both through imagecodecs and tifffile), since
Pillow cuts colours of 16 bits to 8; JPEG by Pillow.
"""

from __future__ import annotations

import io
import logging
import math
import struct
import threading
import warnings
from collections.abc import Iterator

import numpy as np
from imagecodecs import PngError, png_decode
from PIL import Image, UnidentifiedImageError
from tifffile import TiffFile, TiffFileError, TiffPage

from skyray.readers.pixels import MAX_PIXELS, as_float32, check_size
from skyray.records import InvalidRecord

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8\xff"
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_OTHERS = {
    b"GIF8": "GIF", b"RIFF": "WebP", b"BM": "BMP", b"\0\0\0\x0cjP": "JPEG 2000",
    b"\0\0\0\x0cJXL": "JPEG XL", b"\xff\x0a": "JPEG XL", b"SIMPLE": "FITS", b"\x93NUMPY": "numpy",
    b"%PDF": "PDF", b"<svg": "SVG", b"<?xml": "XML", b"\x1f\x8b": "gzip",
}  # fmt: skip
_ORIENTATION = 0x0112
logging.getLogger("imagecodecs").setLevel(logging.ERROR)  # libpng's advice to its callers
_MAX_CHUNKS = 100_000
_COLOUR = {1: "grey", 3: "RGB"}


def decode_image(
    content: bytes | None, bands: int, max_pixels: int = MAX_PIXELS
) -> tuple[np.ndarray, dict[str, str]]:
    """Return a PNG, JPEG or TIFF as float32 [bands, H, W] in its own units; and what was decided.

    8 bits give 0–255, 16 bits 0–65535, floating-point TIFF its numbers; grey of less than 8 bits is
    stretched to 0–255 (PNG specification, 13.12). An orientation in EXIF is followed. Transparent
    pixels and a TIFF's nodata value become NaN.

    Parameters
    ----------
    bands : int
        3 (colour) or 1 (grey).
    max_pixels : int
        Limit of H · W, checked on the header before any pixel is unpacked.

    Raises
    ------
    InvalidRecord
        ``image_empty``, ``image_format`` (another format), ``image_too_large``, ``image_mode``
        (grey where colour is expected or the reverse, inks, unusual samples), ``image_frames``
        (an animation, several pages), ``image_transparent`` (half-transparent pixels),
        ``image_damaged``.
    """
    if not content:
        raise InvalidRecord("image_empty", "expected a PNG, JPEG or TIFF, found nothing")
    if content.startswith(_PNG):
        kind, (samples, orientation) = "PNG", _read_png(content, max_pixels)
    elif content.startswith(_JPEG):
        kind, (samples, orientation) = "JPEG", _read_jpeg(content, max_pixels)
    elif content[:4] in _TIFF:
        kind, (samples, orientation) = "TIFF", _read_tiff(content, max_pixels)
    else:
        names = (name for magic, name in _OTHERS.items() if content.startswith(magic))
        found = next(names, repr(bytes(content[:8])))
        raise InvalidRecord("image_format", f"expected a PNG, JPEG or TIFF, found {found}")
    planes = _opaque(samples, bands)
    told = {"samples": f"{samples.dtype.name} ({kind})"}
    if 2 <= orientation <= 8:
        told["orientation"] = f"{orientation} (EXIF), followed"
    if samples.shape[2] > bands:
        told["alpha"] = "transparent pixels are NaN"
    return np.ascontiguousarray(_upright(planes, orientation)), told


def _opaque(samples: np.ndarray, bands: int) -> np.ndarray:
    """Return float32 [bands, H, W] of samples [H, W, channels], whose last may be the alpha."""
    channels = samples.shape[2]
    if channels not in (bands, bands + 1) or bands not in _COLOUR:
        found = {1: "grey", 2: "grey and alpha", 3: "RGB", 4: "RGB and alpha"}.get(channels)
        raise InvalidRecord(
            "image_mode",
            f"expected {bands} band(s), {_COLOUR.get(bands, 'of which no image file has so many')}"
            f"; found {found or f'{channels} channels'}",
        )
    planes = as_float32(np.moveaxis(samples[..., :bands], 2, 0))
    if channels == bands:
        return planes
    alpha = samples[..., -1]
    whole = np.iinfo(alpha.dtype).max if alpha.dtype.kind == "u" else 1
    clear = alpha == 0
    partly = int((~clear & (alpha != whole)).sum())
    if partly:
        raise InvalidRecord(
            "image_transparent",
            f"expected pixels opaque or wholly transparent, found {partly} in between",
        )
    return np.where(clear, np.float32(np.nan), planes)


def _upright(planes: np.ndarray, orientation: int) -> np.ndarray:
    """Return planes [..., H, W] as EXIF's orientation (1 to 8, others mean nothing) shows them."""
    if 5 <= orientation <= 8:
        planes = planes.swapaxes(-1, -2)
    if orientation in (3, 4, 7, 8):
        planes = planes[..., ::-1, :]
    if orientation in (2, 3, 6, 7):
        planes = planes[..., ::-1]
    return planes


# PNG -------------------------------------------------------------------------------------------
def _read_png(content: bytes, max_pixels: int) -> tuple[np.ndarray, int]:
    """Return samples [H, W, channels] of a PNG (palettes resolved) and its orientation."""
    chunks = dict(_png_chunks(content))
    if len(header := chunks.get(b"IHDR", b"")) != 13 or b"IEND" not in chunks:
        raise InvalidRecord("image_damaged", "PNG: expected chunks from IHDR to IEND")
    width, height = struct.unpack(">II", header[:8])
    check_size(height * width, max_pixels)
    if b"acTL" in chunks:
        raise InvalidRecord("image_frames", "expected one picture, found an animated PNG")
    try:
        samples = png_decode(content)
    except (PngError, ValueError) as error:
        raise InvalidRecord("image_damaged", f"PNG: {error}") from None
    samples = samples if samples.ndim == 3 else samples[..., None]
    return samples, _exif_orientation(chunks.get(b"eXIf", b""))


def _png_chunks(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the names of chunks, with the content of those that are small."""
    at = len(_PNG)
    for _ in range(_MAX_CHUNKS):
        if at + 12 > len(content):
            return
        (size,) = struct.unpack(">I", content[at : at + 4])
        name = bytes(content[at + 4 : at + 8])
        yield name, bytes(content[at + 8 : at + 8 + min(size, 1 << 16)])
        if name == b"IEND":
            return
        at += 12 + size


def _exif_orientation(block: bytes) -> int:
    if not block:
        return 1
    exif = Image.Exif()
    try:
        exif.load(block)
        found = exif.get(_ORIENTATION, 1)
    except Exception as error:
        raise InvalidRecord("image_damaged", f"EXIF: {error}") from None
    return found if isinstance(found, int) else 1


# JPEG ------------------------------------------------------------------------------------------
def _read_jpeg(content: bytes, max_pixels: int) -> tuple[np.ndarray, int]:
    """Return samples uint8 [H, W, 1 or 3] of a JPEG and its orientation."""
    with warnings.catch_warnings():
        # Our own limit is checked below; PIL's warning of its larger one adds nothing.
        warnings.simplefilter("ignore")
        try:
            image = Image.open(io.BytesIO(content), formats=("JPEG",))
        except UnidentifiedImageError:
            raise InvalidRecord("image_damaged", "JPEG: expected a header, found none") from None
        except Image.DecompressionBombError as error:
            raise InvalidRecord("image_too_large", str(error)) from None
        except (OSError, ValueError, SyntaxError, struct.error) as error:
            raise InvalidRecord("image_damaged", f"JPEG: {error}") from None
        check_size(math.prod(image.size), max_pixels)
        if image.mode not in ("L", "RGB"):
            raise InvalidRecord(
                "image_mode", f"expected a JPEG of grey or RGB, found {image.mode} (inks)"
            )
        if getattr(image, "n_frames", 1) > 1:
            raise InvalidRecord("image_frames", f"expected one picture, found {image.n_frames}")
        try:
            samples = np.asarray(image)
            orientation = image.getexif().get(_ORIENTATION, 1)
        except (OSError, ValueError, SyntaxError, struct.error) as error:
            raise InvalidRecord("image_damaged", f"JPEG: {error}") from None
    samples = samples if samples.ndim == 3 else samples[..., None]
    return samples, orientation if isinstance(orientation, int) else 1


# TIFF ------------------------------------------------------------------------------------------
class _Faults(logging.Handler):
    """What tifffile logs of tags it cannot read, and then leaves out, by thread."""

    def __init__(self):
        super().__init__(logging.ERROR)
        self.found = threading.local()

    def emit(self, record: logging.LogRecord) -> None:
        self.found.messages = [*getattr(self.found, "messages", []), record.getMessage()][:10]

    def take(self) -> list[str]:
        messages, self.found.messages = getattr(self.found, "messages", []), []
        return messages


_FAULTS = _Faults()
logging.getLogger("tifffile").addHandler(_FAULTS)
logging.getLogger("tifffile").propagate = False


def _read_tiff(content: bytes, max_pixels: int) -> tuple[np.ndarray, int]:
    """Return samples [H, W, channels] of a TIFF of one page and its orientation."""
    _FAULTS.take()
    try:
        with TiffFile(io.BytesIO(content)) as tiff:
            page = tiff.pages[0]
            if not isinstance(page, TiffPage):
                raise InvalidRecord("image_damaged", "TIFF: expected a page, found none")
            if _has_more(tiff, page):
                raise InvalidRecord("image_frames", "expected a TIFF of one page, found several")
            _check_page(page, max_pixels)
            samples = page.asarray()
            if faults := _FAULTS.take():
                raise InvalidRecord("image_damaged", f"TIFF: {faults[0]}"[:300])
            return _tiff_samples(page, samples), int(page.tags.valueof(_ORIENTATION, 1))
    except InvalidRecord:
        raise
    except (TiffFileError, struct.error, ArithmeticError, LookupError, TypeError, ValueError,
            RuntimeError, OSError, MemoryError) as error:  # fmt: skip
        raise InvalidRecord("image_damaged", f"TIFF: {error}"[:300]) from None


def _has_more(tiff: TiffFile, first: TiffPage) -> bool:
    """Return whether the first page names a next one, be it there or cut off."""
    form, stream = tiff.tiff, tiff.filehandle
    stream.seek(first.offset)
    (tags,) = struct.unpack(form.tagnoformat, stream.read(form.tagnosize))
    stream.seek(first.offset + form.tagnosize + tags * form.tagsize)
    return any(stream.read(form.offsetsize))


def _check_page(page: TiffPage, max_pixels: int) -> None:
    check_size(page.imagelength * page.imagewidth * page.imagedepth, max_pixels)
    if page.is_tiled:  # a tile is unpacked whole, however small the picture
        check_size(page.tilelength * page.tilewidth * page.tiledepth, max(max_pixels, 1 << 20))
    photometric = getattr(page.photometric, "name", str(page.photometric))
    if photometric not in ("MINISBLACK", "RGB"):
        raise InvalidRecord("image_mode", f"expected a TIFF of grey or RGB, found {photometric}")
    if page.samplesperpixel > 4 or page.imagedepth != 1:
        found = f"{page.samplesperpixel} samples a pixel, depth {page.imagedepth}"
        raise InvalidRecord("image_mode", f"expected a TIFF of at most 4 samples, found {found}")
    if page.dtype is None or page.dtype.kind not in "uif" or page.bitspersample % 8:
        found = f"{page.bitspersample} bits, {page.dtype}"
        raise InvalidRecord("image_mode", f"expected samples of 8 to 64 bits, found {found}")
    if {"SCALE", "OFFSET"} & set(_gdal_roles(page)):
        raise InvalidRecord("image_mode", "GDAL_METADATA: expected no scale or offset, found one")


def _gdal_roles(page: TiffPage) -> list[str]:
    text = str(page.tags.valueof(42112, ""))
    return [word.upper() for word in text.replace('"', " ").split()]


def _tiff_samples(page: TiffPage, samples: np.ndarray) -> np.ndarray:
    count = page.samplesperpixel
    shape = (page.imagelength, page.imagewidth)
    planar = samples.shape == (count, *shape) and page.planarconfig == 2
    samples = np.moveaxis(samples, 0, 2) if planar else samples.reshape(*shape, count)
    colours = 1 if page.photometric == 1 else 3
    alpha = [int(kind) for kind in page.extrasamples]
    if count - colours != len(alpha) or alpha not in ([], [1], [2]):
        raise InvalidRecord(
            "image_mode", f"expected {colours} sample(s) and alpha, found {count}, extra {alpha}"
        )
    if 42113 in page.tags:  # GDAL_NODATA
        values = samples.astype(np.float64)
        values[..., :colours][values[..., :colours] == page.nodata] = np.nan
        return values
    return samples
