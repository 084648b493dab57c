"""Files and messages that hold alert packets, told apart by what they hold and not by their name.

- Avro object containers, one packet or many;
- single messages in Confluent's wire format, with reader option ``schemas``;
- Parquet with a row a packet: nested as in the Avro schema (Fink, brokers' archives), or flat, with
  the candidate's fields under their names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa

from skyray.readers.avro_bytes import Schemas, named_records
from skyray.readers.base import SurveyFile
from skyray.readers.columns import parquet_units
from skyray.readers.csv_columns import csv_columns, number_of
from skyray.readers.foreign_arrow import ParquetFile
from skyray.readers.unpacked import unpacked_bytes
from skyray.records import InvalidRecord

_PARQUET = b"PAR1"
_ROWS_AT_ONCE = 64

Packet = dict[str, Any] | InvalidRecord


def packet_units(file: SurveyFile) -> list[int]:
    """Return the numbers of the pieces a file is read in: row groups of Parquet."""
    return parquet_units(file) if _is_parquet(file) else [0]


def packets(
    file: SurveyFile, unit: int = 0, schemas: Schemas | None = None
) -> Iterator[tuple[Packet, str, str]]:
    """Yield the packets of a file: each with its name, and the full name of its Avro schema ('').

    Raises
    ------
    InvalidRecord
        What `named_records` refuses; ``parquet_invalid``, ``extension_type``.
    """
    if _is_parquet(file):
        yield from _rows(file, unit)
        return
    found = named_records(file.read_bytes(), file.path, schemas)
    for number, (packet, name) in enumerate(found):
        yield packet, file.path if number == 0 else f"{file.path}#{number}", name


def _is_parquet(file: SurveyFile) -> bool:
    with file.filesystem.open_input_file(file.path) as stream:
        return stream.read(len(_PARQUET)) == _PARQUET


def _rows(file: SurveyFile, unit: int) -> Iterator[tuple[Packet, str, str]]:
    with ParquetFile(file.path, file.filesystem) as parquet:
        try:
            number = sum(parquet.metadata.row_group(n).num_rows for n in range(unit))
            for batch in parquet.iter_batches(_ROWS_AT_ONCE, row_groups=[unit]):
                for row in batch.to_pylist():
                    yield row, f"{file.path}#{number}", ""
                    number += 1
        except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
            raise InvalidRecord("parquet_invalid", str(error), file.path) from None


class SideLabels:
    """A CSV beside the packets: columns by objectId or candid; none where there is no such file.

    None in place of the columns where rows of one name differ. A stream has no labels, so a missing
    file is no fault; what it says is kept until it changes.
    """

    def __init__(self, name: str | None):
        self.name = name
        self._kept: tuple[Any, dict[str, dict[str, Any] | None]] = (None, {})

    def of(self, file: SurveyFile) -> dict[str, dict[str, Any] | None]:
        """Return the rows beside `file`.

        Raises
        ------
        InvalidRecord
            ``labels_invalid``, or what `csv_rows` refuses.
        """
        if self.name is None:
            return {}
        beside = file.sibling(self.name)
        info = beside.filesystem.get_file_info(beside.path)
        if not info.is_file:
            return {}
        stamp = (beside.path, info.size, info.mtime_ns)
        if self._kept[0] != stamp:
            self._kept = stamp, _rows_by_name(beside)
        return self._kept[1]


def csv_rows(file: SurveyFile) -> list[dict[str, str | None]]:
    """Return the rows of a CSV file as text, None for an empty cell.

    Raises
    ------
    InvalidRecord
        ``csv_invalid``, or what `unpacked_bytes` refuses.
    """
    columns = csv_columns(unpacked_bytes(file), file.path, text=None)
    cells = zip(*(column.to_pylist() for column in columns.values()), strict=True)
    return [dict(zip(columns, row, strict=True)) for row in cells]


def _rows_by_name(beside: SurveyFile) -> dict[str, dict[str, Any] | None]:
    """Return rows by objectId, or by candid where only that tells them apart; see `SideLabels`."""
    rows = csv_rows(beside)
    keys = [key for key in ("objectId", "candid") if rows and key in rows[0]]
    if not keys:
        detail = "expected a column objectId or candid"
        raise InvalidRecord("labels_invalid", detail, beside.path)
    single = (key for key in keys if len({row[key] for row in rows}) == len(rows))
    key = next(single, keys[0])
    found: dict[str, dict[str, Any] | None] = {}
    for row in rows:
        again = row[key] in found and found[row[key]] != row
        found[row[key]] = None if again else row
    return {name: row and plain_values(row, without=key) for name, row in found.items()}


def plain_values(row: Mapping[str, str | None], without: str = "") -> dict[str, Any]:
    """Return the cells of a CSV row as the integers and numbers they are, else as text."""
    return {name: _value(text) for name, text in row.items() if name != without}


def _value(text: str | None) -> Any:
    try:
        return None if text is None else number_of(text)
    except ValueError:
        return text
