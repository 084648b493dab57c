"""Encoded images and numpy files → arrays, within limits set before anything is unpacked."""

from __future__ import annotations

import io
import math
import warnings
import zipfile

import numpy as np
from PIL import Image, UnidentifiedImageError

from skyray.records import InvalidRecord

MAX_PIXELS = 4096 * 4096
MAX_BYTES = 1 << 28
_COLOUR = ("RGB", "RGBA", "P")
_GREY = ("L", "I;16", "I;16B", "I;16L", "I", "F")


def decode_image(content: bytes | None, bands: int, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Return a JPEG or PNG as float32 [bands, H, W] in its own units (0–255, 16 bit: 0–65535).

    Parameters
    ----------
    bands : int
        3 (colour; transparency is dropped) or 1 (grey).
    max_pixels : int
        Limit of H · W, checked on the header before any pixel is unpacked.

    Raises
    ------
    InvalidRecord
        ``image_empty``, ``image_format`` (neither JPEG nor PNG), ``image_too_large``,
        ``image_mode`` (grey where colour is expected, or the reverse), ``image_damaged``.
    """
    if not content:
        raise InvalidRecord("image_empty", "expected a JPEG or PNG, found nothing")
    with warnings.catch_warnings():
        # Our own limit is checked below; PIL's warning of its larger one adds nothing.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            image = Image.open(io.BytesIO(content), formats=("JPEG", "PNG"))
        except UnidentifiedImageError:
            raise InvalidRecord(
                "image_format", f"expected a JPEG or PNG, found {bytes(content[:8])!r}"
            ) from None
        except Image.DecompressionBombError as error:
            raise InvalidRecord("image_too_large", str(error)) from None
        except (OSError, ValueError, SyntaxError) as error:
            raise InvalidRecord("image_damaged", str(error)) from None
        _check_size(math.prod(image.size), max_pixels)
        modes = _COLOUR if bands == 3 else _GREY
        if image.mode not in modes:
            raise InvalidRecord(
                "image_mode", f"expected {bands} band(s), mode {modes}, found mode {image.mode}"
            )
        try:
            pixels = np.asarray(image.convert("RGB") if bands == 3 else image, np.float32)
        except (OSError, ValueError, SyntaxError) as error:
            raise InvalidRecord("image_damaged", str(error)) from None
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)) if bands == 3 else pixels[None]


def load_npy(content: bytes, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Return the array of a ``.npy`` file; its header is checked before memory is taken.

    Raises
    ------
    InvalidRecord
        ``file_empty``, ``npy_invalid``, ``npy_object`` (needs pickle, which runs code of the
        file's author), ``image_too_large``.
    """
    if not content:
        raise InvalidRecord("file_empty", "expected a numpy array, found 0 bytes")
    stream = io.BytesIO(content)
    try:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0
        if version != (1, 0):
            read = np.lib.format.read_array_header_2_0
        shape, _, dtype = read(stream)
    except (ValueError, EOFError) as error:
        raise InvalidRecord("npy_invalid", str(error)) from None
    if dtype.hasobject:
        raise InvalidRecord(
            "npy_object",
            "expected an array of numbers, found pickled objects; save the image alone: "
            "np.save(file, image)",
        )
    _check_size(math.prod(shape), max_pixels)
    try:
        return np.load(io.BytesIO(content), allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise InvalidRecord("npy_invalid", str(error)) from None


def load_npz(content: bytes, max_pixels: int = MAX_PIXELS) -> dict[str, np.ndarray | InvalidRecord]:
    """Return the arrays of a ``.npz`` file by name; one that cannot be used as its refusal.

    Raises
    ------
    InvalidRecord
        ``file_empty``, ``npz_invalid``, ``image_too_large`` (all arrays together).
    """
    if not content:
        raise InvalidRecord("file_empty", "expected an npz archive, found 0 bytes")
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            total = sum(entry.file_size for entry in archive.infolist())
            if total > MAX_BYTES:
                raise InvalidRecord(
                    "image_too_large", f"expected at most {MAX_BYTES:,} bytes, found {total:,}"
                )
            return {
                name.removesuffix(".npy"): _member(archive.read(name), max_pixels)
                for name in archive.namelist()
            }
    except (zipfile.BadZipFile, zipfile.zlib.error, EOFError, NotImplementedError) as error:
        raise InvalidRecord("npz_invalid", str(error)) from None


def _member(content: bytes, max_pixels: int) -> np.ndarray | InvalidRecord:
    try:
        return load_npy(content, max_pixels)
    except InvalidRecord as error:
        return error


def as_planes(array: np.ndarray, bands: int) -> np.ndarray:
    """Return an array as float32 [bands, H, W]; [H, W] is one band, [H, W, bands] is turned.

    Raises
    ------
    InvalidRecord
        ``image_shape``, ``image_type``.
    """
    if array.dtype.kind not in "fiub":
        raise InvalidRecord("image_type", f"expected numbers, found {array.dtype}")
    found = array.shape
    if array.ndim == 2:
        array = array[None]
    elif array.ndim == 3 and found[0] != bands and found[2] == bands:
        array = array.transpose(2, 0, 1)
    if array.ndim != 3 or len(array) != bands:
        raise InvalidRecord(
            "image_shape", f"expected [{bands}, height, width] or [height, width], found {found}"
        )
    return np.ascontiguousarray(array, dtype=np.float32)


def _check_size(pixels: int, limit: int) -> None:
    if pixels > limit:
        raise InvalidRecord(
            "image_too_large", f"expected at most {limit:,} pixels, found {pixels:,}"
        )
