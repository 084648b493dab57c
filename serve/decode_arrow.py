"""Arrow IPC body (stream or file) → spectra.

Columns: ``flux`` and ``ivar`` or ``error``, lists or tensors of numbers; ``wavelength`` unless
the rows are a skyray dataset's own, whose schema carries the grid; ``mask``, ``redshift`` and
``object_id`` where known. The schema's metadata (or the dataset's stamp) says ``medium``: vacuum or
air. What the metadata of a field state (``unit``, ``ucd``) holds as in a Parquet file.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from serve.arrow_size import inflated_bytes
from serve.decode_json import build_spectrum
from serve.refusal import Refusal
from serve.uploads import too_many

from skyray.readers.column_facts import ColumnFacts, parquet_facts
from skyray.readers.foreign_arrow import ipc_stream, open_ipc
from skyray.readers.spectrum_values import Meaning, decide
from skyray.readers.table_options import WavelengthOptions
from skyray.readers.units import check_redshift
from skyray.records import Grid, InvalidRecord, Spectrum, attempt

_ARRAYS = ("wavelength", "flux", "ivar", "error", "mask")
_CELL_BYTES = 8  # a value of a list, once read: a bool of the stream has one bit


@dataclass(frozen=True)
class _Frame:
    """What the schema says about all rows."""

    meaning: Meaning
    wavelength: np.ndarray | None
    noise: str


def decode_arrow(body: bytes, max_records: int, max_bytes: int) -> list[Spectrum | InvalidRecord]:
    """Return the spectra of an Arrow IPC stream or file.

    Raises
    ------
    Refusal
        400 for a body that is not valid Arrow, lacks columns or has columns of an extension type;
        413 for too many rows, or buffers that inflate beyond `max_bytes`.
    """
    body = ipc_stream(body)
    found: list[Spectrum | InvalidRecord] = []
    cells = 0
    try:
        if inflated_bytes(body) > max_bytes:
            raise Refusal(413, "body_too_large", f"expected at most {max_bytes:,} bytes inflated")
        reader = open_ipc(body, "request")
        frame = _frame(reader.schema)
        for batch in reader:
            if len(found) + batch.num_rows > max_records:
                raise too_many(max_records)
            batch.validate(full=True)
            cells += _cells(batch)
            if _CELL_BYTES * cells > max_bytes:
                raise Refusal(413, "body_too_large", f"expected at most {max_bytes:,} bytes in all")
            for row in range(batch.num_rows):
                number = len(found)
                made = partial(_row, batch, row, number, frame)
                found.append(attempt(made, f"request[{number}]"))
    except InvalidRecord as error:
        raise Refusal(400, error.reason, error.detail) from None
    except Refusal:
        raise
    except Exception as error:  # of the schema, its metadata or a batch: nothing of it is read
        text = f"{type(error).__name__}: {error}"[:300]
        raise Refusal(400, "arrow_invalid", text) from None
    return found


def _frame(schema: pa.Schema) -> _Frame:
    names = schema.names
    metadata = {k.decode(): v.decode() for k, v in (schema.metadata or {}).items()}
    stamp = json.loads(metadata["skyray"]) if "skyray" in metadata else {}
    wavelength = None
    if "wavelength" not in names:
        if not isinstance(stamp, dict) or "grid" not in stamp:
            raise Refusal(
                400, "column_missing", "wavelength: expected this column, or a dataset's grid"
            )
        wavelength = _grid_wavelength(stamp["grid"])
    noise = next((name for name in ("ivar", "error") if name in names), None)
    if noise is None or "flux" not in names:
        raise Refusal(
            400, "column_missing", f"expected columns flux and ivar or error, found {names[:20]}"
        )
    _check_types(schema)
    medium = metadata.get("medium", "from_file" if wavelength is None else "vacuum")
    return _Frame(_meaning(schema, medium, wavelength is None, noise), wavelength, noise)


def _meaning(schema: pa.Schema, medium: str, own_axis: bool, noise: str) -> Meaning:
    """Return what the columns mean, by the metadata of their fields."""
    told = f"schema metadata 'medium': expected 'vacuum' or 'air', found {medium[:40]!r}"
    if medium not in ("vacuum", "air", "from_file"):
        raise Refusal(400, "medium_missing", told)
    stated = parquet_facts(schema, "request", {"wavelength", "flux", noise, "redshift"})
    grid = ColumnFacts("wavelength", unit="Angstrom", origin="grid of the dataset")
    facts = {"wavelength": stated.of("wavelength") if own_axis else grid,
             "flux": stated.of("flux"), "noise": stated.of(noise)}  # fmt: skip
    check_redshift("request", "redshift", stated.of("redshift").unit)
    axis = WavelengthOptions(column="wavelength")
    try:
        return decide("request", None, facts, axis, medium, None, noise == "error")
    except InvalidRecord as error:
        if error.reason == "medium_unknown":
            raise Refusal(400, "medium_missing", told) from None
        raise


def _check_types(schema: pa.Schema) -> None:
    """Refuse columns whose cells could not be numbers, or lists of them, whatever they hold."""
    for name in _ARRAYS:
        if name in schema.names:
            kind = schema.field(name).type
            lists = pa.types.is_list(kind) or pa.types.is_large_list(kind)
            if not (lists or pa.types.is_fixed_size_list(kind)):
                raise Refusal(
                    400, "column_type", f"{name}: expected lists of numbers, found {kind}"
                )
            if not _is_number(kind.value_type) and not pa.types.is_boolean(kind.value_type):
                raise Refusal(
                    400, "column_type", f"{name}: expected numbers, found {kind.value_type}"
                )
    if "redshift" in schema.names and not _is_number(schema.field("redshift").type):
        kind = schema.field("redshift").type
        raise Refusal(400, "column_type", f"redshift: expected numbers, found {kind}")


def _cells(batch: pa.RecordBatch) -> int:
    """Return how many values the lists of a batch hold."""
    columns = [batch.column(name) for name in _ARRAYS if name in batch.schema.names]
    return sum(pc.sum(pc.list_value_length(column)).as_py() or 0 for column in columns)


def _is_number(kind: pa.DataType) -> bool:
    return pa.types.is_floating(kind) or pa.types.is_integer(kind)


def _grid_wavelength(value) -> np.ndarray:
    try:
        grid = Grid(**value)
        if not 2 <= int(grid.size) <= 200_000:
            raise ValueError(f"size: expected 2–200,000, found {grid.size}")
        return grid.wavelength()
    except (TypeError, ValueError) as error:
        raise Refusal(400, "grid_invalid", str(error)[:200]) from None


def _row(batch: pa.RecordBatch, row: int, number: int, frame: _Frame) -> Spectrum | InvalidRecord:
    names = batch.schema.names
    wavelength = frame.wavelength
    if wavelength is None:
        wavelength = _pixels(batch, "wavelength", row)
    mask = _pixels(batch, "mask", row) if "mask" in names else None
    noise = _pixels(batch, frame.noise, row)
    object_id = batch.column("object_id")[row].as_py() if "object_id" in names else None
    return build_spectrum(
        frame.meaning,
        wavelength=wavelength,
        flux=_pixels(batch, "flux", row),
        noise=noise,
        mask=None if mask is None else mask != 0,
        object_id=str(number if object_id is None else object_id)[:200],
        source=f"request[{number}]",
        redshift=_number(batch, "redshift", row),
    )


def _number(batch: pa.RecordBatch, name: str, row: int) -> float:
    """Return a scalar column's value, NaN for null or where there is no such column."""
    if name not in batch.schema.names:
        return float("nan")
    value = batch.column(name)[row].as_py()
    return float("nan") if value is None else float(value)


def _pixels(batch: pa.RecordBatch, name: str, row: int) -> np.ndarray:
    """Return one row of a list or tensor column, float64 [L]; nulls become NaN."""
    values = batch.column(name)[row].values
    if values is None:
        return np.zeros(0)
    if pa.types.is_boolean(values.type):
        values = values.cast(pa.uint8())
    return values.to_numpy(zero_copy_only=False).astype(np.float64)
