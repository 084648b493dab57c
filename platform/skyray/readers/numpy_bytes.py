""".npy and .npz files → arrays, within limits set before memory is taken; no pickle is loaded."""

from __future__ import annotations

import io
import math
import tokenize
import zipfile
from typing import Any

import numpy as np

from skyray.readers.numpy_pickle import load_objects
from skyray.readers.pixels import MAX_PIXELS, check_size
from skyray.records import InvalidRecord

MAX_BYTES = 1 << 28
_MAX_MEMBERS = 100_000
# numpy reads a header's text with Python's tokenizer and `ast.literal_eval`.
_HEADER_FAULTS = (ValueError, EOFError, TypeError, SyntaxError, RecursionError, MemoryError,
                  tokenize.TokenError)  # fmt: skip


def load_npy(
    content: bytes, max_pixels: int = MAX_PIXELS, items: tuple[str, ...] = ()
) -> tuple[np.ndarray, dict[str, Any]]:
    """Return the array of a ``.npy`` file, and what an object array holds beside it.

    An object array must hold one array of numbers, the image, beside plain values; or numbers
    alone, which are the image. Its pickle is not loaded but read by `load_objects`.

    Parameters
    ----------
    items : tuple of str
        Names of an object array's elements, one of them ``image``; without them ``item_0`` …

    Raises
    ------
    InvalidRecord
        ``file_empty``, ``npy_invalid``, ``npy_object`` (other objects), ``image_too_large``.
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
    except _HEADER_FAULTS as error:
        raise InvalidRecord("npy_invalid", f"{error}"[:300]) from None
    check_size(math.prod(shape), max_pixels)
    if dtype.hasobject:
        if dtype != np.dtype(object):
            raise InvalidRecord("npy_object", "expected numbers, found records with objects")
        return _from_objects(*load_objects(content[stream.tell() :], max_pixels), items)
    try:
        return np.load(io.BytesIO(content), allow_pickle=False), {}
    except (ValueError, EOFError, OSError) as error:
        raise InvalidRecord("npy_invalid", f"{error}"[:300]) from None


def _from_objects(
    shape: tuple[int, ...], values: list[Any], items: tuple[str, ...]
) -> tuple[np.ndarray, dict[str, Any]]:
    if values and all(type(value) in (int, float, bool) for value in values):
        return np.array(values, np.float64).reshape(shape), {}
    names = items or tuple(f"item_{n}" for n in range(len(values)))
    if len(names) != len(values):
        raise InvalidRecord(
            "npy_object", f"expected the elements {names}, found {len(values)} of them"
        )
    found = dict(zip(names, values, strict=True))
    arrays = [name for name, value in found.items() if isinstance(value, np.ndarray)]
    wanted = ["image"] if items else arrays
    if len(wanted) != 1 or arrays != wanted:
        raise InvalidRecord(
            "npy_object", f"expected one array beside plain values, found arrays {arrays[:20]}"
        )
    return found.pop(wanted[0]), found


def load_npz(
    content: bytes, max_pixels: int = MAX_PIXELS, items: tuple[str, ...] = ()
) -> dict[str, tuple[np.ndarray, dict[str, Any]] | InvalidRecord]:
    """Return the arrays of a ``.npz`` file by name as `load_npy`; a bad one as its refusal.

    Raises
    ------
    InvalidRecord
        ``file_empty``, ``npz_invalid``, ``image_too_large`` (all arrays together).
    """
    if not content:
        raise InvalidRecord("file_empty", "expected an npz archive, found 0 bytes")
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = archive.infolist()
            total = sum(entry.file_size for entry in members)
            if total > MAX_BYTES or len(members) > _MAX_MEMBERS:
                raise InvalidRecord(
                    "image_too_large",
                    f"expected at most {MAX_BYTES:,} bytes, found {total:,} in {len(members)}",
                )
            return {
                entry.filename.removesuffix(".npy"): _member(archive, entry, max_pixels, items)
                for entry in members
            }
    except (zipfile.BadZipFile, zipfile.zlib.error, EOFError, NotImplementedError,
            RuntimeError, ValueError, OSError) as error:  # fmt: skip
        raise InvalidRecord("npz_invalid", f"{error}"[:300]) from None


def _member(
    archive: zipfile.ZipFile, entry: zipfile.ZipInfo, max_pixels: int, items: tuple[str, ...]
) -> tuple[np.ndarray, dict[str, Any]] | InvalidRecord:
    with archive.open(entry) as stream:
        content = stream.read(entry.file_size)  # no more than its header says
    try:
        return load_npy(content, max_pixels, items)
    except InvalidRecord as error:
        return error
