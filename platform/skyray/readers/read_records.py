"""Everything a survey file holds, as records and refusals: what follow, predict and tools call."""

from __future__ import annotations

from collections.abc import Iterator

from skyray.readers.base import Reader, SurveyFile
from skyray.records import InvalidRecord, Record, to_the_end


def read_records(reader: Reader, file: SurveyFile) -> Iterator[Record | InvalidRecord]:
    """Yield a record, or a refusal, for every object of a file; nothing in the file raises."""
    return to_the_end(lambda: _all(reader, file), file.path)


def _all(reader: Reader, file: SurveyFile) -> Iterator[Record | InvalidRecord]:
    for unit in reader.units(file):
        yield from to_the_end(lambda unit=unit: reader.read(file, unit), file.path)
