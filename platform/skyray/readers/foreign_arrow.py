"""Arrow data of strangers: the one way in, on which no type of theirs becomes code.

A schema may name extension types, and pyarrow asks its process's registry what each of them means:
whatever a library has registered (Ray, pandas) then runs, some of it as soon as the schema is
read, Ray's pickled objects when a value is looked at. Here a schema is first read with those names
hidden, so that it holds plain storage types only; if it named anything but Arrow's own fixed-shape
tensor, at any depth, it is refused; and pyarrow gets a schema written anew from what was accepted.
The calls carry the names and arguments of ``pyarrow.parquet``: a module changes its import.

Feather (version 2) is Arrow IPC.

Sources: Arrow columnar format, "Extension Types"; Parquet's ``FileMetaData`` in Thrift's compact
protocol, where ``ARROW:schema`` is a pair of ``key_value_metadata``.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import os
from collections.abc import Sequence
from typing import NoReturn

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from skyray.records import InvalidRecord

TENSOR = "arrow.fixed_shape_tensor"
MAX_PARQUET_PARTS = 4_000  # row groups, columns: pyarrow overruns its stack at 6,000 nested groups
MAX_DEPTH = 64
MAX_SCHEMA_BYTES = 16 << 20

_NAME, _PARAMETERS = b"ARROW:extension:name", b"ARROW:extension:metadata"
_HIDDEN_NAME = b"ARROW.extension.name"  # as long, so that nothing moves
_SCHEMA, _HIDDEN_SCHEMA = b"ARROW:schema", b"ARROW.schema"
_PARQUET_MAGIC, _FILE_MAGIC = b"PAR1", b"ARROW1\0\0"
_TAIL_BYTES = 64 << 10  # holds the footer of most files
_NEXT_STRING = b"\x18"  # Thrift, compact: the next field, a string


class ParquetFile(pq.ParquetFile):
    """A Parquet file of anyone's; used as `pyarrow.parquet.ParquetFile`.

    Raises
    ------
    InvalidRecord
        From the constructor: ``extension_type`` naming file and column, or ``parquet_invalid``.
    OSError
        Where the file cannot be opened.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        filesystem: fs.FileSystem | None = None,
        pre_buffer: bool = True,
    ):
        self._handle = (filesystem or fs.LocalFileSystem()).open_input_file(os.fspath(path))
        try:
            metadata = _safe_metadata(self._handle, str(path))
            super().__init__(
                self._handle, metadata=metadata, pre_buffer=pre_buffer,
                arrow_extensions_enabled=False,
                thrift_container_size_limit=MAX_PARQUET_PARTS,
            )  # fmt: skip
        except InvalidRecord:
            self._handle.close()
            raise
        except (pa.ArrowException, OSError, ValueError) as error:
            self._handle.close()
            limit = f" ({MAX_PARQUET_PARTS:,} row groups, columns)" * ("size limit" in str(error))
            raise InvalidRecord("parquet_invalid", f"{error}{limit}", str(path)) from None

    def close(self, force: bool = False) -> None:
        """Close the file."""
        super().close(force)
        self._handle.close()


def read_table(
    path: str | os.PathLike[str],
    columns: Sequence[str] | None = None,
    filesystem: fs.FileSystem | None = None,
) -> pa.Table:
    """Return the columns of a Parquet file; raises as `ParquetFile`."""
    with ParquetFile(path, filesystem) as file:
        return file.read(columns=None if columns is None else list(columns))


def read_schema(path: str | os.PathLike[str], filesystem: fs.FileSystem | None = None) -> pa.Schema:
    """Return the Arrow schema of a Parquet file; raises as `ParquetFile`."""
    with ParquetFile(path, filesystem) as file:
        return file.schema_arrow


def open_ipc(content: pa.Buffer | bytes, source: str) -> pa.RecordBatchStreamReader:
    """Open an Arrow IPC stream or file; tensor columns arrive as their storage, lists of one size.

    Parameters
    ----------
    content : pyarrow.Buffer or bytes
        The whole stream or file; not copied unless it holds tensors.
    source : str
        What errors call it.

    Raises
    ------
    InvalidRecord
        ``extension_type`` naming the column, or ``arrow_invalid``.
    """
    buffer = ipc_stream(content)
    try:
        stream = pa.BufferReader(buffer)
        start = buffer[:8].to_pybytes()
        if start[:4] != b"\xff" * 4 or int.from_bytes(start[4:], "little") > MAX_SCHEMA_BYTES:
            _refuse("arrow_invalid", f"expected a schema's message, found {start!r}", source)
        message = pa.ipc.MessageReader.open_stream(stream).read_next_message()
        if message.type != "schema":
            _refuse("arrow_invalid", f"expected a schema first, found {message.type!r}", source)
        head = buffer[: stream.tell()].to_pybytes()
        if _NAME in head:
            head = head.replace(_NAME, _HIDDEN_NAME)
            _accepted(pa.ipc.read_schema(pa.py_buffer(head)), source)
            buffer = pa.py_buffer(head + buffer.slice(stream.tell()).to_pybytes())
        return pa.ipc.open_stream(buffer)
    except InvalidRecord:
        raise
    except (pa.ArrowException, OSError, ValueError, StopIteration) as error:
        detail = f"{type(error).__name__}: {error}"[:300]
        raise InvalidRecord("arrow_invalid", detail, source) from None


def ipc_stream(content: pa.Buffer | bytes) -> pa.Buffer:
    """Return the stream in an IPC file, which lies between a magic and a footer."""
    buffer = pa.py_buffer(content)
    is_file = buffer[: len(_FILE_MAGIC)].to_pybytes() == _FILE_MAGIC
    return buffer.slice(len(_FILE_MAGIC)) if is_file else buffer


# the schema ------------------------------------------------------------------------------------
def _accepted(schema: pa.Schema, source: str) -> pa.Schema:
    """Return a schema that was read with its names hidden, with the types that are allowed."""
    fields = []
    for field in schema:
        _check_field(field, field.name, source)
        if (field.metadata or {}).get(_HIDDEN_NAME) == TENSOR.encode():
            field = _tensor_field(field, source)
        fields.append(field)
    return pa.schema(fields, metadata=schema.metadata)


def _check_field(field: pa.Field, column: str, source: str) -> None:
    name = (field.metadata or {}).get(_HIDDEN_NAME, TENSOR.encode()).decode("utf-8", "replace")
    if name != TENSOR or isinstance(field.type, pa.BaseExtensionType):
        detail = f"column {column[:200]}: expected a plain type or {TENSOR}, found {name[:80]!r}"
        _refuse("extension_type", detail, source)
    for child in _children(field.type):
        _check_field(child, f"{column}.{child.name}", source)


def _children(kind: pa.DataType) -> list[pa.Field]:
    if pa.types.is_dictionary(kind):
        return [pa.field("values", kind.value_type)]
    return [kind.field(number) for number in range(kind.num_fields)]


def _tensor_field(field: pa.Field, source: str) -> pa.Field:
    """Return a column of lists as the tensors its metadata describe."""
    rest = dict(field.metadata)
    del rest[_HIDDEN_NAME]
    try:
        about = json.loads(rest.pop(_PARAMETERS, b"{}"))
        shape = about["shape"]
        if not all(type(size) is int and size >= 0 for size in shape):
            raise ValueError(f"shape {shape}")
        kind = pa.fixed_shape_tensor(
            field.type.value_type, shape, about.get("dim_names"), about.get("permutation")
        )
        if not pa.types.is_fixed_size_list(field.type) or math.prod(shape) != field.type.list_size:
            raise ValueError(f"shape {shape} in {field.type}")
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        detail = f"column {field.name[:200]}: expected {TENSOR} with its shape, found {error}"
        _refuse("extension_type", detail[:400], source)
    return pa.field(field.name, kind, field.nullable, rest or None)


# Parquet ---------------------------------------------------------------------------------------
def _safe_metadata(handle: pa.NativeFile, source: str) -> pq.FileMetaData:
    """Return the metadata of a file, its Arrow schema replaced by what was accepted of it."""
    footer = _footer(handle, source).replace(_SCHEMA, _HIDDEN_SCHEMA)
    hidden = _parsed(footer)
    deepest = max((hidden.schema.column(n).path.count(".") for n in range(hidden.num_columns)),
                  default=0)  # fmt: skip
    if deepest > MAX_DEPTH:
        detail = f"expected columns nested at most {MAX_DEPTH} deep, found {deepest}"
        _refuse("parquet_invalid", detail, source)
    written = (hidden.metadata or {}).get(_HIDDEN_SCHEMA)
    if written is None:
        return hidden  # types as Parquet itself knows them: none of them an extension
    accepted = base64.b64encode(_accepted(_decoded(written, source), source).serialize())
    footer = _with_schema(footer, written, accepted)
    # As the key stands there once and its value was checked, showing it shows this value alone.
    if footer.count(_HIDDEN_SCHEMA) > 1 or _parsed(footer).metadata[_HIDDEN_SCHEMA] != accepted:
        return hidden
    return _parsed(footer.replace(_HIDDEN_SCHEMA, _SCHEMA))


def _footer(handle: pa.NativeFile, source: str) -> bytes:
    size = handle.size()
    tail = handle.read_at(min(size, _TAIL_BYTES), max(size - _TAIL_BYTES, 0))
    length = int.from_bytes(tail[-8:-4], "little")
    if tail[-4:] != _PARQUET_MAGIC or length + 12 > size:
        detail = f"expected a footer and {_PARQUET_MAGIC!r} at the end, found {tail[-8:]!r}"
        _refuse("parquet_invalid", detail, source)
    if length + 8 <= len(tail):
        return tail[-8 - length : -8]
    return handle.read_at(length, size - 8 - length)


def _parsed(footer: bytes) -> pq.FileMetaData:
    """Return pyarrow's view of a footer, which alone makes a file that it can open."""
    parts = _PARQUET_MAGIC, footer, len(footer).to_bytes(4, "little"), _PARQUET_MAGIC
    file = pa.BufferReader(b"".join(parts))
    limit = MAX_PARQUET_PARTS
    return pq.ParquetFile(
        file, arrow_extensions_enabled=False, thrift_container_size_limit=limit
    ).metadata


def _decoded(written: bytes, source: str) -> pa.Schema:
    """Return the schema under ``ARROW:schema`` with the names of extension types hidden."""
    try:
        message = base64.b64decode(written, validate=True)
    except binascii.Error as error:
        _refuse("parquet_invalid", f"ARROW:schema: expected base64, found {error}", source)
    if len(message) > MAX_SCHEMA_BYTES:
        detail = f"expected at most {MAX_SCHEMA_BYTES:,} bytes, found {len(message):,}"
        _refuse("parquet_invalid", f"ARROW:schema: {detail}", source)
    return pa.ipc.read_schema(pa.py_buffer(message.replace(_NAME, _HIDDEN_NAME)))


def _with_schema(footer: bytes, written: bytes, accepted: bytes) -> bytes:
    """Return a footer with another Arrow schema; unchanged if it is written in an unusual way."""
    old, new = (
        _HIDDEN_SCHEMA + _NEXT_STRING + _varint(len(value)) + value for value in (written, accepted)
    )
    return footer.replace(old, new)


def _varint(value: int) -> bytes:
    found = b""
    while value >= 128:
        found += bytes([value % 128 + 128])
        value //= 128
    return found + bytes([value])


def _refuse(reason: str, detail: str, source: str) -> NoReturn:
    raise InvalidRecord(reason, detail, source)
