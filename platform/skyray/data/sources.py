"""Where records come from: survey files, or anything else that can list its units and read them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

from pyarrow import fs

from skyray.cards import Card
from skyray.readers.base import Reader, SurveyFile, make_reader
from skyray.records import InvalidRecord, Record
from skyray.runtime import places

_LISTING_THREADS = 8


@dataclass(frozen=True, slots=True)
class Unit:
    """The smallest piece of a source that is read in one go.

    Attributes
    ----------
    uri : str
        The file (or the generator) it belongs to.
    number : int
        Which piece of it.
    identity : str
        Changes when the content may have changed: size and time of a file, seed of a simulation.
    weight : int
        Bytes, roughly; pieces are grouped into tasks by it.
    """

    uri: str
    number: int
    identity: str
    weight: int


class RecordSource(Protocol):
    """What ``ingest`` reads from. Picklable; `read` runs on the workers."""

    unclaimed: int  # files seen in folders that are not this card's

    def units(self) -> list[Unit]:
        """Return all units in a fixed order."""

    def read(self, unit: Unit) -> Iterator[Record | InvalidRecord]:
        """Yield a record, or a refusal, for everything the unit holds."""


class FileSource:
    """Survey files on any filesystem, read by the reader of a card.

    Parameters
    ----------
    card : Card
        Names the reader.
    sources : sequence of str
        Files, folders or URIs. A file named here is always taken; in a folder only the files that
        the reader claims are, the others are counted in `unclaimed`.
    """

    def __init__(self, card: Card, sources: Sequence[str | os.PathLike]):
        self.reader_name = card.reader
        self.reader_options = dict(card.reader_options)
        self.unclaimed = 0
        self._roots: dict[str, fs.FileSystem] = {}
        self._reader: Reader | None = None
        self._files = self._list(sources)

    def __getstate__(self):
        return {**self.__dict__, "_reader": None, "_files": {}}  # workers need no listing

    @property
    def reader(self) -> Reader:
        if self._reader is None:
            self._reader = make_reader(self.reader_name, self.reader_options)
        return self._reader

    def units(self) -> list[Unit]:
        files = sorted(self._files.items())
        if type(self.reader).units is Reader.units:
            numbers = [[0]] * len(files)
        else:
            with ThreadPoolExecutor(_LISTING_THREADS) as pool:
                numbers = list(pool.map(lambda item: self._numbers(item[0]), files))
        return [
            Unit(uri, number, identity, size // len(pieces))
            for (uri, (size, identity)), pieces in zip(files, numbers, strict=True)
            for number in pieces
        ]

    def read(self, unit: Unit) -> Iterator[Record | InvalidRecord]:
        return self.reader.read(self._file(unit.uri), unit.number)

    def _numbers(self, uri: str) -> list[int]:
        try:
            return self.reader.units(self._file(uri)) or [0]
        except Exception:  # a damaged file: reading it on a worker says what is wrong
            return [0]

    def _file(self, uri: str) -> SurveyFile:
        if "://" not in uri:
            return SurveyFile(fs.LocalFileSystem(), uri)
        prefix, _, path = uri.partition("://")
        if prefix in self._roots:
            return SurveyFile(self._roots[prefix], path)
        return SurveyFile(*places.resolve(uri))

    def _list(self, sources: Sequence[str | os.PathLike]) -> dict[str, tuple[int, str]]:
        files: dict[str, tuple[int, str]] = {}
        for source in sources:
            filesystem, path = places.resolve(source)
            prefix = ""
            if not isinstance(filesystem, fs.LocalFileSystem):
                scheme = os.fspath(source).partition("://")[0]
                self._roots[scheme] = filesystem
                prefix = f"{scheme}://"
            for info in self._claimed(filesystem, path, os.fspath(source)):
                stamp = f"{info.size}:{info.mtime_ns if info.mtime_ns is not None else ''}"
                files[prefix + info.path] = (info.size or 0, stamp)
        return files

    def _claimed(self, filesystem: fs.FileSystem, path: str, source: str) -> list[fs.FileInfo]:
        info = filesystem.get_file_info(path)
        if info.type == fs.FileType.NotFound:
            raise FileNotFoundError(f"{source}: no such file or folder")
        if info.type == fs.FileType.File:
            return [info]
        found = filesystem.get_file_info(fs.FileSelector(path, recursive=True))
        files = [f for f in found if f.type == fs.FileType.File]
        claimed = [f for f in files if self.reader.claims(f.path)]
        self.unclaimed += len(files) - len(claimed)
        return claimed
