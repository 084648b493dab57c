"""Mock surveys on Ray: straight into a dataset, or as files in the survey's own format.

A simulation is ingest from another source; every object is a pure function of seed, class and
index, so that any worker can make any slice and the result does not depend on how it was dealt out.
"""

from __future__ import annotations

import copy
import functools
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from skyray.cards import Card
from skyray.config import ConfigError
from skyray.data.ingest import ingest_source
from skyray.data.sources import Unit
from skyray.records import Record
from skyray.runtime import places
from skyray.runtime.progress import task
from skyray.simulate.base import Simulator, make_simulator
from skyray.simulate.planted import KINDS, PlantedSurvey
from skyray.simulate.survey_files import write_survey_files

_PLANTED = "planted"
_OBJECTS_PER_UNIT = 64
_OBJECTS_PER_FILE_TASK = 200  # and so many targets in a DESI coadd
_UNIT_WEIGHT = 8 << 20  # a unit is a task: the work is in computing


class MockSource:
    """The records of a mock survey as a source of records (see `skyray.data.sources`)."""

    bounds = None  # nobody else's bytes

    def __init__(
        self,
        card: Card,
        objects: int,
        seed: int,
        templates: str | None = None,
        planted: float = 0.0,
    ):
        self.card, self.seed, self.templates = card, seed, templates
        self.chosen: frozenset[str] | None = None
        count = round(objects * planted)
        self.counts = objects_per_class(card, objects - count)
        self.planted = {kind: count // len(KINDS) + (i < count % len(KINDS))
                        for i, kind in enumerate(KINDS)} if count else {}  # fmt: skip

    def starts(self) -> list[str]:
        found = [uri for uri, count in self._counts().items() if count]
        return [uri for uri in found if self.chosen is None or uri in self.chosen]

    def only(self, files: Sequence[str]) -> MockSource:
        source = copy.copy(self)
        source.chosen = frozenset(files)
        return source

    def units(self, start: str) -> Iterator[Unit]:
        count = self._counts()[start]
        for first in range(0, count, _OBJECTS_PER_UNIT):
            stop = min(first + _OBJECTS_PER_UNIT, count)
            yield Unit(start, first // _OBJECTS_PER_UNIT, f"{first}-{stop}", _UNIT_WEIGHT)

    def read(self, unit: Unit) -> Iterator[Record]:
        folder, _, label = unit.uri.rpartition("/")
        survey = _survey(self.card, self.seed, self.templates)
        if folder.endswith(_PLANTED):
            with _local(self.templates) as templates:
                survey = PlantedSurvey(self.card, self.seed, templates)
        start, stop = map(int, unit.identity.split("-"))
        for index in range(start, stop):
            yield survey.record(label, index)

    def _counts(self) -> dict[str, int]:
        planted = {f"{_PLANTED}/{kind}": count for kind, count in self.planted.items()}
        return {self._uri(name): count for name, count in (self.counts | planted).items()}

    def _uri(self, label: str) -> str:
        kind = places.name(self.templates) if self.templates else "built-in"
        return f"mock://{self.card.name}/seed-{self.seed}/{kind}/{label}"


def objects_per_class(card: Card, objects: int) -> dict[str, int]:
    """Share objects among a card's classes as evenly as they go."""
    share, rest = divmod(objects, len(card.classes))
    return {label: share + (i < rest) for i, label in enumerate(card.classes)}


def simulate(
    card: Card,
    objects: int,
    seed: int,
    out: str | os.PathLike | None = None,
    *,
    as_files: str | os.PathLike | None = None,
    templates: str | os.PathLike | None = None,
    planted: float = 0.0,
    progress: bool = True,
) -> dict[str, Any]:
    """Make a mock survey; Ray must have been started.

    Parameters
    ----------
    card : Card
        Its classes are made, on its instrument's own wavelengths.
    objects : int
        Number of objects, shared evenly among the classes.
    out : str, optional
        Dataset to write (as `ingest` would).
    as_files : str, optional
        Folder (on a filesystem all workers see) for files in the survey's own format.
    templates : str, optional
        Folder of external templates.
    planted : float
        Share of the objects that are outliers of known kind (see `skyray.simulate.planted`), for
        the test of an outlier search; only in a dataset.

    Returns
    -------
    dict
        ``card``, ``seed``, ``objects`` by class and where they went: ``dataset`` and its
        ``fingerprint``, ``folder`` and number of ``files``.

    Raises
    ------
    ConfigError
        If neither `out` nor `as_files` is given, the card has no mock, or its reader's
        format cannot be written.
    """
    if out is None and as_files is None:
        raise ConfigError(
            "simulate: expected a dataset (out) or a folder (as_files): found neither"
        )
    if objects < 1:
        raise ConfigError(f"simulate: objects: expected at least 1, found {objects}")
    folder = places.absolute(templates) if templates else None
    _survey(card, seed, folder)  # refuses what no worker could make
    if not 0 <= planted < 1:
        raise ConfigError(f"simulate: planted: expected a share in [0, 1), found {planted}")
    source = MockSource(card, objects, seed, folder, planted)
    counts = source.counts | source.planted
    result: dict[str, Any] = {"card": card.name, "seed": seed, "objects": counts}
    if as_files is not None:
        if planted:
            raise ConfigError("simulate: planted outliers go into a dataset (out), not into files")
        files = _write_files(source, places.absolute(as_files), progress)
        result |= {"folder": str(as_files), "files": files}
    if out is not None:
        made = ingest_source(card, source, out, progress=progress)
        if "unreadable" in made.manifest.quarantine_reasons:
            raise RuntimeError(f"simulate: {made.quarantine().slice(0, 3).to_pylist()}")
        result |= {"dataset": made.uri, "fingerprint": made.manifest.fingerprint}
    return result


def _write_files(source: MockSource, out: str, progress: bool) -> int:
    import ray.data

    wanted = [(label, i) for label, count in source.counts.items() for i in range(count)]
    wanted.sort(key=lambda item: item[1])  # every file of many targets holds all classes
    tasks = [
        {"wanted": json.dumps(wanted[start : start + _OBJECTS_PER_FILE_TASK])}
        for start in range(0, len(wanted), _OBJECTS_PER_FILE_TASK)
    ]

    def write(row: dict[str, Any]) -> dict[str, Any]:
        survey = _survey(source.card, source.seed, source.templates)
        chosen = json.loads(row["wanted"])
        records = [survey.record(label, index) for label, index in chosen]
        with places.local_folder(out) as folder:
            files = write_survey_files(source.card, records, folder)
        return {"files": len(files), "objects": len(records)}

    files = 0
    listing = ray.data.from_items(tasks, override_num_blocks=len(tasks))
    with task("simulate", len(wanted), "object", show=progress) as shown:
        shown.wait("the first objects")
        for row in listing.map(write).iter_rows():
            files += row["files"]
            shown.advance(row["objects"])
    return files


def _survey(card: Card, seed: int, templates: str | None) -> Simulator:
    return _cached_survey(card.model_dump_json(), seed, templates)


@functools.lru_cache(maxsize=2)
def _cached_survey(card: str, seed: int, templates: str | None) -> Simulator:
    with _local(templates) as folder:
        return make_simulator(Card.model_validate_json(card), seed, folder)


def _local(templates: str | None) -> AbstractContextManager[Path | None]:
    return places.local_copy(templates) if templates else nullcontext()
