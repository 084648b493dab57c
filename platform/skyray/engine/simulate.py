"""Mock surveys over Ray: straight into a dataset, or as files in the survey's own format.

A simulation is one more `RecordSource` of ingest, so that checks, cuts, labels, splits and resuming
are the same as for real files.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import ray.data
from tqdm import tqdm

from skyray.cards import Card
from skyray.engine.ingest import ingest_source
from skyray.engine.sources import Unit
from skyray.records import InvalidRecord, Spectrum
from skyray.simulate.spectra import MockSurvey
from skyray.simulate.survey_files import write_survey_files

_ROWS_PER_UNIT = 100
_BYTES_PER_ROW = 40_000


@lru_cache(maxsize=2)
def _survey(card_json: str, seed: int, templates: str | None) -> MockSurvey:
    """Return a worker's survey; its libraries of templates take seconds to prepare."""
    card = Card.model_validate_json(card_json)
    return MockSurvey(card, seed, Path(templates) if templates else None)


@dataclass(frozen=True)
class MockSource:
    """A mock survey of `objects` spectra, shared evenly among the card's classes."""

    card: Card
    objects: int
    seed: int
    templates: str | None = None
    unclaimed: int = field(default=0, init=False)

    def counts(self) -> dict[str, int]:
        """Return the number of objects of each class; the first classes get what is left over."""
        share, rest = divmod(self.objects, len(self.card.classes))
        return {label: share + (n < rest) for n, label in enumerate(self.card.classes)}

    def units(self) -> list[Unit]:
        """Return slices of at most 100 objects of one class."""
        identity = f"{self.seed}:{self.templates or 'built-in'}"
        units = []
        for label, count in self.counts().items():
            for start in range(0, count, _ROWS_PER_UNIT):
                rows = min(_ROWS_PER_UNIT, count - start)
                name = f"mock:{self.card.name}/{label}/{start}+{rows}"
                units.append(Unit(name, 0, identity, rows * _BYTES_PER_ROW))
        return units

    def read(self, unit: Unit) -> Iterator[Spectrum | InvalidRecord]:
        """Yield the spectra of a slice."""
        survey = _survey(self.card.model_dump_json(), self.seed, self.templates)
        label, _, rows = unit.uri.removeprefix(f"mock:{self.card.name}/").rpartition("/")
        start, count = (int(number) for number in rows.split("+"))
        for index in range(start, start + count):
            yield survey.spectrum(label, index)


def simulate(
    card: Card,
    objects: int,
    seed: int,
    out: str | None = None,
    *,
    as_files: str | None = None,
    templates: str | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Make a mock survey of `objects` spectra; Ray must have been started.

    Parameters
    ----------
    out : str, optional
        Dataset to write.
    as_files : str, optional
        Folder for files in the survey's own format; readers take them like real ones.
    templates : str, optional
        Folder of external templates (see `skyray.simulate.templates`).

    Returns
    -------
    dict
        ``objects`` by class and where they went: ``dataset``, ``folder``, ``files``.
    """
    templates = str(Path(templates).absolute()) if templates else None
    source = MockSource(card, objects, seed, templates)
    result: dict[str, Any] = {"card": card.name, "seed": seed, "objects": source.counts()}
    if as_files is not None:
        folder = os.path.abspath(as_files)
        result |= {"folder": folder, "files": _write_files(source, folder, progress)}
    if out is not None:
        made = ingest_source(card, source, out, progress=progress)
        result |= {"dataset": made.uri, "fingerprint": made.manifest.fingerprint}
    return result


def _write_files(source: MockSource, folder: str, progress: bool) -> int:
    """Write all slices over Ray and return the number of files."""
    units = {unit.uri: unit for unit in source.units()}

    def write(row: dict[str, Any]) -> dict[str, Any]:
        spectra = [s for s in source.read(units[row["unit"]]) if isinstance(s, Spectrum)]
        paths = write_survey_files(source.card, spectra, Path(folder))
        return {"objects": len(spectra), "files": len(paths)}

    rows = ray.data.from_items(
        [{"unit": name} for name in units], override_num_blocks=len(units)
    ).map(write)
    files = 0
    with tqdm(total=source.objects, desc="simulate", unit="object", disable=not progress) as bar:
        for row in rows.iter_rows():
            bar.update(row["objects"])
            files += row["files"]
    return files
