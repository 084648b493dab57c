"""What all records share: their refusal, splits, tensor columns and the stamp on Arrow schemas."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

SCHEMA_VERSION = 3
SPLITS = ("train", "validation", "test")


class InvalidRecord(ValueError):
    """A record, or a whole survey file, that cannot be used.

    Parameters
    ----------
    reason : str
        Stable slug that quarantine groups by, e.g. ``"flux_not_finite"``.
    detail : str
        What was expected and what was found, for a person.
    source : str
        File (and row) the record came from.
    object_id : str
        Identifier of the record where it is known.
    """

    def __init__(self, reason: str, detail: str, source: str = "", object_id: str = ""):
        super().__init__(f"{source or 'record'}: {reason}: {detail}")
        self.reason, self.detail = reason, detail
        self.source, self.object_id = source, object_id

    def __reduce__(self):  # exceptions with several arguments do not pickle by themselves
        return type(self), (self.reason, self.detail, self.source, self.object_id)


def position_fault(ra: float, dec: float) -> tuple[str, str] | None:
    """Return why degrees are no position (``position_invalid``); unknown ones, NaN, are none."""
    if abs(ra) > 360 or abs(dec) > 90:  # False for NaN
        found = f"ra {ra:g}, dec {dec:g}"
        return "position_invalid", f"expected degrees on the sphere, or NaN, found {found}"
    return None


def tensor_type(dtype: pa.DataType, shape: Sequence[int]) -> pa.DataType:
    """Return Arrow's fixed-shape tensor type without a permutation (Ray's sort needs that)."""
    return pa.fixed_shape_tensor(dtype, list(shape))


def tensor_array(values: np.ndarray, dtype: pa.DataType) -> pa.Array:
    """Turn an array [N, ...] into a fixed-shape tensor column of N rows.

    Built from storage because ``FixedShapeTensorArray.from_numpy_ndarray`` stamps a permutation
    that makes Ray Data's sort and groupby fail.
    """
    values = np.ascontiguousarray(values)
    shape = values.shape[1:]
    flat = pa.array(values.reshape(-1), type=dtype)
    storage = pa.FixedSizeListArray.from_arrays(flat, int(np.prod(shape)))
    return pa.ExtensionArray.from_storage(tensor_type(dtype, shape), storage)


def tensor_values(column: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Return a tensor column as one array [N, ...]."""
    if isinstance(column, pa.ChunkedArray):
        parts = [tensor_values(chunk) for chunk in column.chunks]
        if not parts:
            return np.zeros((0, *column.type.shape), dtype=column.type.value_type.to_pandas_dtype())
        return parts[0] if len(parts) == 1 else np.concatenate(parts)
    if hasattr(column, "to_numpy_ndarray"):
        return column.to_numpy_ndarray()
    return column.to_numpy(zero_copy_only=False)  # Ray's own tensor type


OBJECT_FIELDS = [
    pa.field("observation_id", pa.string(), nullable=False),
    pa.field("object_id", pa.string(), nullable=False),
    pa.field("object_key", pa.string(), nullable=False),
    pa.field("split", pa.string(), nullable=False),
    pa.field("label", pa.string(), nullable=False),
    pa.field("ra", pa.float64()),
    pa.field("dec", pa.float64()),
    pa.field("survey", pa.string()),
    pa.field("source", pa.string(), nullable=False),
    pa.field("extra", pa.string()),
    pa.field("statements", pa.string()),
]


def schema_metadata(record: str, detail: Mapping[str, Any]) -> dict[str, str]:
    text = {"record": record, "schema_version": SCHEMA_VERSION, **detail}
    return {"skyray": json.dumps(text, sort_keys=True)}


def describe_schema(schema: pa.Schema) -> dict[str, Any]:
    """Return skyray's stamp on a schema: record, schema_version and grid, bands or features."""
    stamp = (schema.metadata or {}).get(b"skyray")
    if stamp is None:
        raise ValueError("schema carries no 'skyray' metadata: not a skyray dataset")
    return json.loads(stamp)


def check_table(table: pa.Table, schema: pa.Schema) -> None:
    """Raise `InvalidRecord` unless `table` has `schema`'s columns, types and known splits."""
    for expected in schema:
        if expected.name not in table.column_names:
            raise InvalidRecord("column_missing", f"expected column {expected.name!r}")
        found = table.schema.field(expected.name)
        if found.type != expected.type:
            raise InvalidRecord(
                "column_type", f"{expected.name}: expected {expected.type}, found {found.type}"
            )
        if not expected.nullable and table.column(expected.name).null_count:
            raise InvalidRecord("column_null", f"{expected.name}: expected no nulls")
    strange = set(table.column("split").unique().to_pylist()) - set(SPLITS)
    if strange:
        raise InvalidRecord("split_unknown", f"split: expected {SPLITS}, found {sorted(strange)}")
