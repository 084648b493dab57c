"""Lance tables: workers write data files, a commit makes them rows of the table.

A commit is optimistic: any number of writers append at once and lose nothing. Data files that no
commit has named count for nothing and are removed by `skyray vacuum`.
"""

from __future__ import annotations

import json
import os
import time
import warnings
from collections.abc import Callable
from typing import TypeVar

os.environ.setdefault("LANCE_LOG", "error")  # it warns of every table that is new

import lance
import pyarrow as pa
from lance.fragment import write_fragments as _write_fragments

from skyray.runtime import places

# Ray starts its processes before Lance has any thread in them.
warnings.filterwarnings("ignore", message="lance is not fork-safe")

STORAGE_VERSION = "2.0"  # writes faster than 2.1 and reads alike
_ATTEMPTS = 6
_Made = TypeVar("_Made")


def table_exists(uri: str) -> bool:
    """Return whether there is a Lance table at a place."""
    return places.exists(places.join(uri, "_versions"))


def open_table(uri: str, version: int | str | None = None) -> lance.LanceDataset:
    """Open a table at its newest version, or at a version (number or tag).

    Raises
    ------
    FileNotFoundError
        If there is no table.
    """
    if not table_exists(uri):
        raise FileNotFoundError(f"{uri}: no such table")
    return patiently(
        lambda: lance.dataset(uri, version=version, storage_options=places.lance_options(uri))
    )


def write_fragments(uri: str, table: pa.Table) -> list[str]:
    """Write rows as data files of a table, on any worker; return their descriptions (JSON).

    They become rows of the table when `commit_append` names them.
    """
    if not table.num_rows:
        return []
    made = patiently(
        lambda: _write_fragments(
            table, uri, schema=table.schema, data_storage_version=STORAGE_VERSION,
            storage_options=places.lance_options(uri),
        )
    )  # fmt: skip
    return [json.dumps(fragment.to_json()) for fragment in made]


def patiently(work: Callable[[], _Made]) -> _Made:
    """Return what `work` returns; a storage that fails now and then is asked again."""
    for attempt in range(_ATTEMPTS):
        try:
            return work()
        except OSError:
            if attempt == _ATTEMPTS - 1:
                raise
            time.sleep(0.05 * 2**attempt)
    raise AssertionError("unreachable")
