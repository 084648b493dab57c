"""Tables that are made once, read by many, and can be made again: their form and their space.

A table is a Lance table of one version. Whoever makes it writes data files and publishes them in
one commit that only the first can win; until then there is nothing to open. ``NAME.used`` beside
it says when it was last used, so that the space of all is bounded by removing what rests longest.
"""

from __future__ import annotations

import contextlib
import datetime
import itertools
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from queue import Full, Queue
from typing import TYPE_CHECKING, Any

import lance
import numpy as np
import pyarrow as pa
from lance.fragment import FragmentMetadata, write_fragments

from skyray.data.tables import STORAGE_VERSION, patiently
from skyray.records import tensor_array, tensor_values
from skyray.runtime import places

if TYPE_CHECKING:
    from skyray.families.base import Columns

_VERSION = 1  # the only one a table ever has
_CACHE_BYTES = 128 << 20  # what an open table keeps of the form of its files
_TOUCH_SECONDS = 300.0
_AHEAD = 2  # batches made before they are written
_DTYPE = b"skyray.dtype"  # of a tensor column that Arrow has no tensor type for


class NotPrepared(ValueError):
    """A prepared table is not, or no longer, there."""


class PreparedTable:
    """A published table; opened in each process when it is first read.

    Rows are numbered from 0 in the dataset's canonical order, split by split: training,
    validation, test; each split is one range of row numbers.
    """

    def __init__(self, uri: str):
        self.uri = uri
        self._touched = -np.inf

    def __reduce__(self):
        return PreparedTable, (self.uri,)

    def __repr__(self) -> str:
        return f"PreparedTable({self.uri!r})"

    def exists(self) -> bool:
        """Return whether the table has been published."""
        return bool(_manifests(self.uri))

    @cached_property
    def _table(self) -> lance.LanceDataset:
        if not self.exists():
            raise NotPrepared(
                f"{self.uri}: expected a prepared table, found none: it was removed, or never "
                "finished; start the training again and it is made anew"
            )
        self.touch()
        return _opened(self.uri)

    @cached_property
    def about(self) -> dict[str, Any]:
        """What the table is for, as it was published, and ``splits``: name → [start, stop]."""
        return json.loads(self._table.schema.metadata[b"skyray"])

    def about_untouched(self) -> dict[str, Any] | None:
        """Return `about` without using the table; None where it is not published."""
        if not self.exists():
            return None
        return json.loads(_opened(self.uri).schema.metadata[b"skyray"])

    @cached_property
    def schema(self) -> pa.Schema:
        return self._table.schema

    @property
    def columns(self) -> list[str]:
        return self.schema.names

    @property
    def numbers(self) -> list[str]:
        """The columns a network can take: all but text."""
        return [f.name for f in self.schema if _is_number(f.type)]

    def rows(self, split: str | None = None) -> range:
        """Return the row numbers of a split, or of all rows."""
        splits = self.about["splits"]
        if split is None:
            return range(max((stop for _, stop in splits.values()), default=0))
        return range(*splits.get(split, (0, 0)))

    def count(self, split: str | None = None) -> int:
        return len(self.rows(split))

    def bytes_per_row(self, columns: Sequence[str] | None = None) -> int:
        """Return what a row takes in memory, bytes; text counts as 64."""
        return sum(_bytes_of(self.schema.field(name).type) for name in columns or self.columns)

    def take(self, rows: Sequence[int] | np.ndarray, columns: Sequence[str] | None = None):
        """Return rows by number, in the order asked for, as numpy columns [N, ...]."""
        wanted = np.asarray(rows, dtype=np.int64)
        if len(wanted) == 0:
            names = self.columns if columns is None else columns
            return _to_columns(pa.schema([self.schema.field(n) for n in names]).empty_table())
        self.touch()
        unique, place = np.unique(wanted, return_inverse=True)  # ascending rows are read fastest
        names = None if columns is None else list(columns)
        found = _to_columns(patiently(lambda: self._table.take(unique, columns=names)))
        if len(unique) == len(wanted) and (unique == wanted).all():
            return {k: np.require(values, requirements="W") for k, values in found.items()}
        return {name: values[place] for name, values in found.items()}

    def scan(
        self, rows: range | None = None, columns: Sequence[str] | None = None, size: int = 1024
    ) -> Iterator[Columns]:
        """Yield consecutive rows in their order, at most `size` at a time; default: all rows."""
        rows = self.rows() if rows is None else rows
        for start in range(rows.start, rows.stop, size):
            yield self.take(np.arange(start, min(start + size, rows.stop)), columns)

    def to_columns(self, split: str | None = None, columns: Sequence[str] | None = None) -> Columns:
        """Return a split, or all rows, as numpy columns [N, ...]."""
        return self.take(np.arange(self.rows(split).start, self.rows(split).stop), columns)

    def touch(self) -> None:
        """Mark the table as used now; the mark is written every few minutes at most.

        A storage that fails then stops nobody: the next mark is soon enough.
        """
        if time.monotonic() - self._touched > _TOUCH_SECONDS:
            self._touched = time.monotonic()
            with contextlib.suppress(OSError):
                places.write_bytes(mark_of(self.uri), _now().encode())


def mark_of(uri: str) -> str:
    """Return the file whose time of change says when a table was last used."""
    return places.join(places.parent(uri), f"{places.name(uri)}.used")


class LazyColumns(Mapping):
    """Columns of some rows of a table; each is read when it is first asked for, and kept.

    So whoever chooses rows by a label reads the labels and not the pixels.
    """

    def __init__(self, table: PreparedTable, rows: np.ndarray | range):
        self._source, self._rows = table, np.asarray(rows, dtype=np.int64)
        self._read: Columns = {}

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._source.columns:
            raise KeyError(name)
        if name not in self._read:
            self._read |= self._source.take(self._rows, [name])
        return self._read[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._source.columns)

    def __len__(self) -> int:
        return len(self._source.columns)


@dataclass(frozen=True)
class Written:
    """Data files that one maker has written, in the order of their rows, and their schema."""

    schema: pa.Schema
    fragments: list[str]
    rows: int


def write_batches(uri: str, batches: Callable[[], Iterator[Columns]], rows: int) -> Written:
    """Write batches as one data file of a table, batch by batch; no row counts until `publish`.

    Parameters
    ----------
    batches : callable
        Returns the batches, at least one; called again when the storage failed.
    rows : int
        How many rows they hold together.

    Raises
    ------
    ValueError
        If a batch differs from the first in its columns, or the rows are not as many.
    """

    def write() -> Written:
        source = (_to_arrow(batch) for batch in batches())
        first = next(source)
        waiting: Queue[pa.Table | None] = Queue(_AHEAD)
        reader = pa.RecordBatchReader.from_batches(first.schema, _taken(waiting))
        # Lance asks for batches on threads of its own; they are made on the caller's.
        with ThreadPoolExecutor(1) as pool:
            writing = pool.submit(
                write_fragments, reader, places.lance_uri(uri), schema=first.schema,
                data_storage_version=STORAGE_VERSION, max_rows_per_file=max(rows, 1),
                storage_options=places.lance_options(uri),
            )  # fmt: skip
            try:
                for table in itertools.chain([first], source):
                    same_schema(first.schema, table.schema)
                    _put(waiting, table, writing)
            finally:
                _put(waiting, None, writing)
            made = writing.result()
        written = sum(fragment.physical_rows for fragment in made)
        if written != rows:
            raise ValueError(f"{uri}: expected a row for each of {rows}, found {written}")
        return Written(first.schema, [json.dumps(f.to_json()) for f in made], rows)

    return patiently(write)


def _put(waiting: Queue, table: pa.Table | None, writing: Future) -> None:
    """Hand a table to the writer; raise its error where it has ended."""
    while not writing.done():
        with contextlib.suppress(Full):
            waiting.put(table, timeout=0.1)
            return
    writing.result()


def _taken(waiting: Queue) -> Iterator[pa.RecordBatch]:
    while (table := waiting.get()) is not None:
        yield from table.to_batches()


def same_schema(expected: pa.Schema, found: pa.Schema) -> None:
    """Raise ValueError, naming a column, unless two parts of a table have the same columns."""
    names = [f"{f.name}: {f.type}" for f in expected], [f"{f.name}: {f.type}" for f in found]
    if names[0] != names[1]:
        ours, theirs = (sorted(set(a) - set(b)) for a, b in (names, names[::-1]))
        raise ValueError(
            f"transformed columns differ between batches: expected {ours}, found {theirs}"
        )


def publish(uri: str, parts: Sequence[Written], about: Mapping[str, Any]) -> bool:
    """Make written data files the table, in their order; return whether ours are the table.

    Whoever comes second finds the table of the first and has nothing to do.
    """
    for part in parts[1:]:
        same_schema(parts[0].schema, part.schema)
    fragments = [FragmentMetadata.from_json(text) for part in parts for text in part.fragments]
    told = json.dumps({**about, "created": _now()}, sort_keys=True)
    schema = parts[0].schema.with_metadata({b"skyray": told.encode()})
    ours = {file.path for fragment in fragments for file in fragment.files}

    def commit() -> bool:
        if _manifests(uri):
            return ours <= _named_files(uri)  # a commit whose answer was lost is ours too
        try:
            lance.LanceDataset.commit(
                places.lance_uri(uri), lance.LanceOperation.Overwrite(schema, fragments),
                read_version=0, max_retries=0, storage_options=places.lance_options(uri),
            )  # fmt: skip
        except OSError:
            if not _manifests(uri):
                raise
            return ours <= _named_files(uri)
        return True

    won = patiently(commit)
    remove_strays(uri)
    PreparedTable(uri).touch()
    return won


def remove_strays(uri: str) -> None:
    """Remove data files of a published table that are not its own.

    Their makers came second, or were killed; a table has one version, so they can never count.
    """
    named = _named_files(uri)
    for found in list(places.walk(places.join(uri, "data"))):
        if places.name(found.uri) not in named:
            remove_file(found.uri)


def remove_file(uri: str) -> None:
    """Remove a file that somebody else may remove at the same time."""
    with contextlib.suppress(FileNotFoundError):
        patiently(lambda: places.remove(uri))


def _manifests(uri: str) -> list[str]:
    try:
        found = list(places.walk(places.join(uri, "_versions")))
    except FileNotFoundError:
        return []
    return [info.uri for info in found if places.name(info.uri).endswith(".manifest")]


def _named_files(uri: str) -> set[str]:
    fragments = _opened(uri).get_fragments()
    return {file.path for fragment in fragments for file in fragment.metadata.files}


def _opened(uri: str) -> lance.LanceDataset:
    return patiently(
        lambda: lance.dataset(
            places.lance_uri(uri), version=_VERSION, storage_options=places.lance_options(uri),
            metadata_cache_size_bytes=_CACHE_BYTES, index_cache_size_bytes=_CACHE_BYTES,
        )
    )  # fmt: skip


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _is_number(kind: pa.DataType) -> bool:
    if isinstance(kind, pa.BaseExtensionType):
        return True
    types = pa.types
    return types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind)


def _bytes_of(kind: pa.DataType) -> int:
    if isinstance(kind, pa.BaseExtensionType):
        return int(np.prod(kind.shape)) * _bytes_of(kind.value_type)
    try:
        return max(1, kind.bit_width // 8)
    except ValueError:  # text and lists
        return 64


def _to_arrow(columns: Columns) -> pa.Table:
    """Return columns as an Arrow table: numbers [N, ...] as tensors, text as text."""
    fields, arrays = [], []
    for name, values in columns.items():
        array, metadata = _arrow_column(np.asarray(values))
        fields.append(pa.field(name, array.type, metadata=metadata))
        arrays.append(array)
    return pa.table(arrays, schema=pa.schema(fields))


def _arrow_column(values: np.ndarray) -> tuple[pa.Array, dict[bytes, str] | None]:
    if values.dtype.kind == "O" and len(values) and _alike(values):
        values = np.stack(list(values))
    if values.dtype.kind in "OUS":
        found = values.tolist()
        text = all(value is None or isinstance(value, str | bytes) for value in found)
        return pa.array(found, pa.string()) if text else pa.array(found), None
    values = values.astype(values.dtype.newbyteorder("="), copy=False)
    if values.ndim == 1:
        return pa.array(values), None
    metadata = None
    if values.dtype == bool:
        values, metadata = values.astype(np.uint8), {_DTYPE: "bool"}
    return tensor_array(values, pa.from_numpy_dtype(values.dtype)), metadata


def _alike(values: np.ndarray) -> bool:
    """Return whether a column of objects holds arrays of numbers of one shape."""
    forms = {(v.shape, v.dtype.str) if isinstance(v, np.ndarray) else None for v in values}
    return len(forms) == 1 and None not in forms and next(iter(forms))[1][1] in "fiub"


def _to_columns(table: pa.Table) -> Columns:
    columns: Columns = {}
    for field in table.schema:
        column = table.column(field.name)
        if not isinstance(field.type, pa.BaseExtensionType):
            columns[field.name] = column.to_numpy(zero_copy_only=False)
            continue
        values = tensor_values(column)
        kept = (field.metadata or {}).get(_DTYPE)
        columns[field.name] = values.astype(kept.decode()) if kept else values
    return columns
