"""Lance tables: workers write data files, a commit makes them rows of the table.

A commit is optimistic: any number of writers append at once and lose nothing. Data files that no
commit has named count for nothing and are removed by `skyray vacuum`.
"""

from __future__ import annotations

import json
import os
import random
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

os.environ.setdefault("LANCE_LOG", "error")  # it warns of every table that is new

import lance
import pyarrow as pa
from lance.fragment import FragmentMetadata
from lance.fragment import write_fragments as _write_fragments

from skyray.runtime import places

# Ray starts its processes before Lance has any thread in them.
warnings.filterwarnings("ignore", message="lance is not fork-safe")

STORAGE_VERSION = "2.0"  # writes faster than 2.1 and reads alike
_ATTEMPTS = 6
_COMMIT_ATTEMPTS = 40  # others commit meanwhile
_ROWS_PER_FILTER = 10_000  # addresses in one predicate
_Made = TypeVar("_Made")


class ForeignType(ValueError):
    """A table holds an extension type, which code of its own would turn into objects."""


def table_exists(uri: str) -> bool:
    """Return whether there is a Lance table at a place: one that has a version."""
    try:
        open_table(uri)
    except FileNotFoundError:
        return False
    return True


def open_table(uri: str, version: int | str | None = None) -> lance.LanceDataset:
    """Open a table at its newest version, or at a version (number or tag).

    Raises
    ------
    FileNotFoundError
        If there is no table.
    ForeignType
        If a column is of an extension type other than Arrow's own tensor.
    """
    where, options = places.lance_uri(uri), places.lance_options(uri)
    try:
        table = patiently(lambda: lance.dataset(where, version=version, storage_options=options))
    except ValueError as error:
        raise FileNotFoundError(f"{uri}: no such table, or no version {version}: {error}") from None
    for field in table.schema:
        _check_plain(field.type, field.name, uri)
    return table


def _check_plain(kind: pa.DataType, column: str, uri: str) -> None:
    """Refuse a stranger's table whose types would be turned into objects by code of their own."""
    if isinstance(kind, pa.BaseExtensionType) and not isinstance(kind, pa.FixedShapeTensorType):
        raise ForeignType(
            f"{uri}: column {column}: expected a plain type or arrow.fixed_shape_tensor, found "
            f"{kind.extension_name!r}"
        )
    for number in range(kind.num_fields):
        _check_plain(kind.field(number).type, f"{column}.{kind.field(number).name}", uri)


def create_table(uri: str, schema: pa.Schema) -> bool:
    """Make an empty table unless there is one; return whether this call made it.

    Of several writers one makes it. (`lance.write_dataset` tries again after a conflict, and then
    overwrites what the first has made, with all rows that came meanwhile.)
    """

    def create() -> bool:
        if table_exists(uri):
            return False
        try:
            lance.LanceDataset.commit(
                places.lance_uri(uri), lance.LanceOperation.Overwrite(schema, []),
                read_version=0, max_retries=0,
                storage_options=places.lance_options(uri),
            )  # fmt: skip
        except OSError:
            if table_exists(uri):  # another writer was first
                return False
            raise
        return True

    return patiently(create)


def write_fragments(uri: str, table: pa.Table) -> list[str]:
    """Write rows as data files of a table, on any worker; return their descriptions (JSON).

    They become rows of the table when `commit_append` names them.
    """
    if not table.num_rows:
        return []
    made = patiently(
        lambda: _write_fragments(
            table, places.lance_uri(uri), schema=table.schema, data_storage_version=STORAGE_VERSION,
            storage_options=places.lance_options(uri),
        )
    )  # fmt: skip
    return [json.dumps(fragment.to_json()) for fragment in made]


def commit_append(uri: str, fragments: Sequence[str]) -> None:
    """Make written data files rows of an existing table; safe beside any other writer.

    A commit whose answer was lost is recognised by its files and not made twice.
    """
    if not fragments:
        return
    described = [FragmentMetadata.from_json(text) for text in fragments]
    ours = {file.path for fragment in described for file in fragment.files}

    def commit() -> None:
        table = open_table(uri)
        if ours & _files(table):
            return
        lance.LanceDataset.commit(
            places.lance_uri(uri), lance.LanceOperation.Append(described),
            read_version=table.version, storage_options=places.lance_options(uri),
            max_retries=0,  # Lance's own would make a commit twice whose answer was lost
        )  # fmt: skip

    patiently(commit, _COMMIT_ATTEMPTS)


def commit_columns(
    uri: str,
    table: lance.LanceDataset,
    fragments: Sequence[FragmentMetadata],
    fields: Sequence[int],
) -> None:
    """Make columns that were written anew (`LanceFragment.update_columns`) those of the table.

    Raises
    ------
    OSError
        If one of the fragments was changed since `table` was opened.
    """
    if fragments:
        update = lance.LanceOperation.Update(
            updated_fragments=list(fragments), fields_modified=list(fields)
        )
        lance.LanceDataset.commit(
            places.lance_uri(uri), update,
            read_version=table.version, storage_options=places.lance_options(uri), max_retries=0,
        )  # fmt: skip


def _files(table: lance.LanceDataset) -> set[str]:
    return {file.path for fragment in table.get_fragments() for file in fragment.metadata.files}


def delete_rows(uri: str, which: str) -> None:
    """Delete the rows that a filter (SQL) names."""
    patiently(lambda: open_table(uri).delete(which))


def delete_addresses(uri: str, addresses: Sequence[int]) -> None:
    """Delete rows by their ``_rowaddr``."""
    for start in range(0, len(addresses), _ROWS_PER_FILTER):
        chosen = ", ".join(str(int(a)) for a in addresses[start : start + _ROWS_PER_FILTER])
        delete_rows(uri, f"_rowaddr IN ({chosen})")


def quoted(values: Sequence[str]) -> str:
    """Return text values as a list for a filter: ``'a', 'it''s'``."""
    return ", ".join("'" + value.replace("'", "''") + "'" for value in values)


def fragment_rows(
    table: lance.LanceDataset, columns: Sequence[str], filter: str | None = None
) -> Iterator[pa.Table]:
    """Yield narrow columns with ``_rowaddr``, fragment by fragment."""
    yield from rows_of(table.get_fragments(), columns, filter)


def rows_of(
    fragments: Iterable[lance.LanceFragment], columns: Sequence[str], filter: str | None = None
) -> Iterator[pa.Table]:
    """Yield narrow columns of some fragments, with ``_rowaddr``; those without rows give none."""
    for fragment in fragments:
        scanner = fragment.scanner(columns=list(columns), filter=filter, with_row_address=True)
        found = scanner.to_table()
        if found.num_rows:
            yield found


def rows_at(
    table: lance.LanceDataset, addresses: Sequence[int], columns: Sequence[str]
) -> pa.Table:
    """Return narrow columns of rows by their ``_rowaddr``, which comes with them."""
    pieces = []
    for start in range(0, max(1, len(addresses)), _ROWS_PER_FILTER):
        chosen = ", ".join(str(int(a)) for a in addresses[start : start + _ROWS_PER_FILTER])
        scanner = table.scanner(
            columns=list(columns), with_row_address=True,
            filter=f"_rowaddr IN ({chosen})" if chosen else "false",
        )  # fmt: skip
        pieces.append(scanner.to_table())
    return pa.concat_tables(pieces)


def patiently(work: Callable[[], _Made], attempts: int = _ATTEMPTS) -> _Made:
    """Return what `work` returns; a storage that fails now and then is asked again."""
    for attempt in range(attempts):
        try:
            return work()
        except OSError:
            if attempt == attempts - 1:
                raise
            time.sleep(random.uniform(0.5, 1.5) * 0.05 * 2 ** min(attempt, 5))
    raise AssertionError("unreachable")
