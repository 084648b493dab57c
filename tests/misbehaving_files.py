"""Survey files whose reading does what a library may do with damaged bytes."""

from __future__ import annotations

from collections.abc import Iterator

from tests.bounded_work import misbehave

from skyray.data.sources import FileSource
from skyray.readers.base import SurveyFile
from skyray.readers.sdss import SdssSpecReader
from skyray.records import Record


class Misbehaving(SdssSpecReader):
    """SDSS spectra, apart from files that are named after what they do."""

    def read(self, file: SurveyFile, unit: int = 0) -> Iterator[Record]:
        for kind in ("loop", "memory", "crash"):
            if kind in file.path:
                misbehave(kind)
        return super().read(file, unit)


class MisbehavingFiles(FileSource):
    @property
    def reader(self) -> Misbehaving:
        return Misbehaving(self.reader_options)
