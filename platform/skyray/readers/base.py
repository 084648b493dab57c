"""What every reader offers: the files it claims, the units of a file, and its records."""

from __future__ import annotations

import fnmatch
import hashlib
import importlib
import posixpath
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, TypeVar

import numpy as np
from pyarrow import fs

from skyray.records import InvalidRecord, Record, attempt

_Made = TypeVar("_Made", bound=Record)


@dataclass(frozen=True)
class SurveyFile:
    """One survey file on any filesystem that pyarrow knows (local, ``s3://``, ``gs://``).

    `tree_path` is its path below the folder that was given to be read, where there is one.
    """

    filesystem: fs.FileSystem
    path: str
    tree_path: str = ""

    @property
    def name(self) -> str:
        return posixpath.basename(self.path)

    @property
    def below(self) -> str:
        """The path below the folder that was given; of a file given itself, its name."""
        return self.tree_path or self.name

    def read_bytes(self) -> bytes:
        """Return the whole content."""
        with self.filesystem.open_input_file(self.path) as stream:
            return stream.read()

    def sibling(self, name: str) -> SurveyFile:
        """Return another file of the same folder (a redrock file beside its coadd)."""
        return SurveyFile(self.filesystem, posixpath.join(posixpath.dirname(self.path), name))

    def exists(self) -> bool:
        return self.filesystem.get_file_info(self.path).type == fs.FileType.File


def name_by_content(name: str, pixels: np.ndarray) -> str:
    """Return an observation_id for what only a file's name tells: many folders hold a ``1.png``."""
    return f"{name}-{hashlib.sha256(np.ascontiguousarray(pixels).data).hexdigest()[:16]}"


def read_object(
    make: Callable[[], _Made], source: str, object_id: str = ""
) -> _Made | InvalidRecord:
    """Return the record of an object, or why its values make none, in its own place.

    As `records.attempt`; values of a wrong kind are ``field_invalid``.

    Raises
    ------
    InvalidRecord
        ``column_missing``, which is the same for every object: it refuses the file.
    """

    def checked() -> _Made:
        try:
            return make()
        except (ArithmeticError, LookupError, TypeError, ValueError) as error:
            if isinstance(error, InvalidRecord):
                raise
            raise InvalidRecord("field_invalid", f"{error}"[:300], source, object_id) from None

    found = attempt(checked, source, object_id)
    if not isinstance(found, InvalidRecord):
        return found
    if found.reason == "column_missing":
        raise found
    return InvalidRecord(found.reason, found.detail, source, found.object_id)


@lru_cache(maxsize=64)
def _one_of(patterns: tuple[str, ...]) -> re.Pattern[str]:
    """Return what matches the lower-case names that one of these patterns fits."""
    kinds = [fnmatch.translate(pattern.lower()) for pattern in patterns]
    return re.compile("|".join(kinds) or "(?!)")


class Reader(ABC):
    """Turns survey files into records.

    Subclasses are made once per task with the card's ``reader_options`` and must be cheap to make
    and picklable.
    """

    name: ClassVar[str]
    patterns: ClassVar[tuple[str, ...]]
    companions: ClassVar[tuple[str, ...]] = ()

    def __init__(self, options: Mapping[str, Any] | None = None):
        self.options = dict(options or {})

    def claims(self, path: str) -> bool:
        """Return whether a file found in a folder is to be read; letter case does not matter.

        `patterns` choose the files that are looked at, `companions` among them those known to hold
        no spectra or images. What a file then is, its content says: one that is none of this
        reader's is refused by name.
        """
        name = posixpath.basename(path).lower()
        kinds = self.patterns, self.companions
        looked_at, known = (_one_of(tuple(kind)).match(name) for kind in kinds)
        return looked_at is not None and known is None

    def units(self, file: SurveyFile) -> list[int]:
        """Return the numbers of the pieces a file is read in; large tables give several."""
        return [0]

    @abstractmethod
    def read(self, file: SurveyFile, unit: int = 0) -> Iterator[Record | InvalidRecord]:
        """Yield a record for every object, or an `InvalidRecord` for one that cannot be read.

        A file that cannot be opened at all raises `InvalidRecord`. Nothing is skipped silently:
        what is yielded plus what is refused is everything the unit holds.
        """


_READERS: dict[str, type[Reader]] = {}
# Which module defines the reader of a name: workers import those alone that their cards name.
MODULES = {
    "desi_coadd": "desi",
    "fourmost": "fourmost",
    "frame_cutouts": "frames",
    "image_arrays": "images",
    "image_files": "images",
    "image_fits": "image_fits",
    "image_table": "images",
    "lamost": "lamost",
    "lsst": "lsst",
    "sdss_spec": "sdss",
    "spectrum_image": "spectrum_images",
    "spectrum_table": "tables",
    "ztf": "ztf",
    "ztf_triplets": "ztf_triplets",
}


def register(cls: type[Reader]) -> type[Reader]:
    """Class decorator: make a reader known to cards by its name."""
    _READERS[cls.name] = cls
    return cls


def make_reader(name: str, options: Mapping[str, Any] | None = None) -> Reader:
    """Return the reader a card names.

    Raises
    ------
    KeyError
        If no reader has this name.
    """
    if name not in _READERS and name in MODULES:
        importlib.import_module(f"skyray.readers.{MODULES[name]}")
    if name not in _READERS:
        raise KeyError(f"reader {name!r}: unknown; known: {sorted({*MODULES, *_READERS})}")
    return _READERS[name](options)
