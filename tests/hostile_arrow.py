"""Makers of Arrow and Parquet files that carry code: harmless here, it only creates a marker file.

Two doors: `pickled` objects of Ray's extension type, which run when a value is looked at, and
`Trap`, a registered type that runs as soon as a schema naming it is read.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import ray.data  # noqa: F401  (registers its extension types, as in an ingest worker)

PICKLED = "ray.data.arrow_pickled_object"
TRAP = "survey.trap"
NAME, PARAMETERS = b"ARROW:extension:name", b"ARROW:extension:metadata"


class Marker:
    """Unpickled, it creates a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


class Trap(pa.ExtensionType):
    """A registered type whose reading creates the file that its metadata name."""

    def __init__(self, path: bytes = b""):
        self.path = path
        super().__init__(pa.large_binary(), TRAP)

    def __arrow_ext_serialize__(self) -> bytes:
        return self.path

    @classmethod
    def __arrow_ext_deserialize__(cls, storage_type, serialized):
        Path(serialized.decode()).touch()
        return cls(serialized)


@contextmanager
def registered_trap() -> Iterator[None]:
    pa.register_extension_type(Trap())
    try:
        yield
    finally:
        pa.unregister_extension_type(TRAP)


def extension_field(name: str, marker: Path, kind: pa.DataType | None = None) -> pa.Field:
    """A field of `kind` that calls itself the trap."""
    metadata = {NAME: TRAP, PARAMETERS: str(marker)}
    return pa.field(name, kind or pa.large_binary(), metadata=metadata)


def pickled(rows: int, marker: Path) -> pa.Array:
    """A column of `rows` objects as Ray Data would write them."""
    from ray.data._internal.object_extensions.arrow import ArrowPythonObjectType

    storage = pa.array([pickle.dumps(Marker(marker))] * rows, pa.large_binary())
    return pa.ExtensionArray.from_storage(ArrowPythonObjectType(), storage)


def nested(values: pa.Array) -> dict[str, pa.Array]:
    """The same values in every nesting that Parquet has, by the name of the nesting."""
    every = pa.array(range(len(values) + 1), pa.int32())
    wide = every.cast(pa.int64())
    names = pa.array([f"n{n}" for n in range(len(values))])
    struct = pa.StructArray.from_arrays([values], fields=[pa.field("inner", values.type)])
    return {
        "column": values,
        "list": pa.ListArray.from_arrays(every, values),
        "large_list": pa.LargeListArray.from_arrays(wide, values),
        "fixed_size_list": pa.FixedSizeListArray.from_arrays(values, 1),
        "struct": struct,
        "map": pa.MapArray.from_arrays(every, names, values),
        "list_of_structs": pa.ListArray.from_arrays(every, struct),
    }


def write_parquet(path: Path, columns: dict[str, pa.Array]) -> Path:
    pq.write_table(pa.table(columns), path)
    return path
