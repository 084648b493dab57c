"""Where records come from: survey files, or anything else that can list its units and read them."""

from __future__ import annotations

import copy
import os
import posixpath
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from pyarrow import fs

from skyray.cards import Card
from skyray.readers.base import Reader, SurveyFile, make_reader
from skyray.records import InvalidRecord, Record
from skyray.runtime import bounded, places


@dataclass(frozen=True, slots=True)
class Unit:
    """The smallest piece of a source that is read in one go.

    Attributes
    ----------
    uri : str
        The file (or the generator) it belongs to.
    number : int
        Which piece of it, from 0 on.
    identity : str
        Changes when the content may have changed: size and time of a file, seed of a simulation.
    weight : int
        Bytes, roughly; units are read together up to some of them.
    """

    uri: str
    number: int
    identity: str
    weight: int


@dataclass(frozen=True, slots=True)
class Unclaimed:
    """Files of a folder that are not this source's."""

    count: int


class RecordSource(Protocol):
    """What ``ingest`` reads from. Picklable: `units` and `read` run on the workers.

    Attributes
    ----------
    bounds : Bounds, optional
        What reading one unit may take; None where no stranger wrote what is read.
    """

    bounds: bounded.Bounds | None

    def starts(self) -> list[str]:
        """Return where listing begins; each may be listed by another worker.

        Raises
        ------
        FileNotFoundError
            If one is not there.
        """

    def units(self, start: str) -> Iterator[Unit | Unclaimed]:
        """Yield all units from a start on; no unit belongs to two starts."""

    def only(self, files: Sequence[str]) -> RecordSource:
        """Return the same source with nothing but these files (`Unit.uri`)."""

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
        the reader claims are.
    """

    def __init__(self, card: Card, sources: Sequence[str | os.PathLike]):
        self.reader_name = card.reader
        self.reader_options = dict(card.reader_options)
        self.sources = list(dict.fromkeys(places.absolute(source) for source in sources))
        self.bounds = bounded.Bounds.of_environment()  # the driver's, on all workers
        self._roots = _roots(self.sources)
        self._reader: Reader | None = None
        self._named: frozenset[str] = frozenset()

    def __getstate__(self):
        return {**self.__dict__, "_reader": None}

    @property
    def reader(self) -> Reader:
        if self._reader is None:
            self._reader = make_reader(self.reader_name, self.reader_options)
        return self._reader

    def starts(self) -> list[str]:
        kinds = {source: _kind(source) for source in self.sources}
        self._named = frozenset(s for s, kind in kinds.items() if kind == fs.FileType.File)
        folders = sorted(s for s, kind in kinds.items() if kind != fs.FileType.File)
        outer: list[str] = []
        for folder in folders:  # sorted: a folder comes before what it holds
            if not any(folder.startswith(places.join(known, "")) for known in outer):
                outer.append(folder)
        return [*sorted(self._named), *outer]

    def only(self, files: Sequence[str]) -> FileSource:
        """Return the same source with nothing but these files, of those that are there."""
        source = copy.copy(self)
        source.sources = [file for file in files if places.exists(file)]
        return source

    def units(self, start: str) -> Iterator[Unit | Unclaimed]:
        others = 0
        for info in places.walk(start):
            uri = info.uri
            if start not in self._named and (uri in self._named or not self.reader.claims(uri)):
                others += uri not in self._named
                continue
            stamp = f"{info.size}:{info.modified_ns if info.modified_ns is not None else ''}"
            numbers = self._numbers(uri, info.size)
            for number in numbers:
                yield Unit(uri, number, stamp, info.size // len(numbers))
        if others:
            yield Unclaimed(others)

    def read(self, unit: Unit) -> Iterator[Record | InvalidRecord]:
        file = SurveyFile(*places.resolve(unit.uri), self._tree_path(unit.uri))
        return self.reader.read(file, unit.number)

    def _tree_path(self, uri: str) -> str:
        """Return a file's path below the source it is of, or below all sources' common folder."""
        path = _path(uri)
        return next((path[len(root) :] for root in self._roots if path.startswith(root)), "")

    def _numbers(self, uri: str, size: int) -> list[int]:
        if type(self.reader).units is Reader.units:
            return [0]
        (found,) = bounded.each(self._units, [uri], [size], self.bounds)
        return [0] if isinstance(found, InvalidRecord) else found

    def _units(self, uri: str) -> list[int]:
        try:
            return self.reader.units(SurveyFile(*places.resolve(uri))) or [0]
        except Exception:  # a damaged file: reading it says what is wrong
            return [0]


def _roots(sources: Sequence[str]) -> list[str]:
    """Return where names of files begin: the sources, outer ones first, and what they share."""
    paths = sorted(_path(source) for source in sources)
    shared = ""
    for parts in zip(*(path.split("/")[:-1] for path in paths), strict=False):
        if len(set(parts)) > 1:
            break
        shared += f"{parts[0]}/"
    return [*(posixpath.join(path, "") for path in paths), shared]


def _path(uri: str) -> str:
    return places.split(uri)[1]


def _kind(source: str) -> fs.FileType:
    filesystem, path = places.resolve(source)
    kind = filesystem.get_file_info(path).type
    if kind == fs.FileType.NotFound:
        raise FileNotFoundError(f"{source}: no such file or folder")
    return kind
