"""Bytes as survey files, so that readers need not know where they came from."""

from __future__ import annotations

from fsspec.implementations.memory import MemoryFileSystem
from pyarrow import fs

from skyray.readers.base import SurveyFile


class _OneFile(MemoryFileSystem):
    """An in-memory filesystem that is not shared with the rest of the process."""

    cachable = False

    def __init__(self):
        super().__init__()
        self.store, self.pseudo_dirs = {}, [""]


def memory_file(content: bytes, name: str) -> SurveyFile:
    """Return bytes as a `SurveyFile` called `name`, of which only the last part is kept."""
    memory = _OneFile()
    path = "/" + (name.replace("\\", "/").rsplit("/", 1)[-1] or "upload")
    memory.pipe_file(path, content)
    return SurveyFile(fs.PyFileSystem(fs.FSSpecHandler(memory)), path)
