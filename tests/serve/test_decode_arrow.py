"""Spectra as Arrow in a request: rows, lists, limits; and what is refused, with which status."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from tests.hostile_arrow import pickled
from tests.request_bodies import ARROW, about, arrow_body, refusal

from skyray.data.rows import admit
from skyray.records import Grid, spectrum_schema, tensor_array


# Arrow ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("file", [False, True])
def test_arrow_lists(read, spectrum, file):
    columns = {k: [spectrum[k]] * 2 for k in ("wavelength", "flux", "ivar")}
    columns["object_id"] = ["x", "y"]
    body = arrow_body(columns, {"medium": "vacuum"}, file=file)
    first, second = read(body, ARROW)
    assert (first.object_id, second.object_id) == ("x", "y")
    np.testing.assert_array_equal(second.flux, np.float32(spectrum["flux"]))


def test_arrow_nulls_and_ragged_rows(read):
    columns = {
        "wavelength": [[4000.0, 4001.0, 4002.0], [5000.0, 5001.0], None],
        "flux": [[1.0, None, 3.0], [1.0, 2.0], None],
        "error": [[1.0, None, 2.0], [1.0, 1.0], None],
        "mask": [[False, True, False], [True, False], None],
    }
    first, second, empty = read(arrow_body(columns, {"medium": "air"}), ARROW)
    assert np.isnan(first.flux[1])
    np.testing.assert_array_equal(first.ivar, np.float32([1, 0, 0.25]))
    np.testing.assert_array_equal(first.mask, [False, True, False])
    assert second.wavelength.shape == (2,)
    assert admit(empty, about(Grid("linear", 4000, 1, 1000), 1)).reason == "too_short"


def test_arrow_rows_of_a_dataset(read):
    """Rows as ingest writes them need no wavelength: their schema carries the grid."""
    grid = Grid("log10", 3.6, 1e-4, 300)
    flux = np.random.default_rng(0).normal(size=(2, 300)).astype(np.float32)
    columns = {
        "object_id": ["p", "q"],
        "flux": tensor_array(flux, pa.float32()),
        "ivar": tensor_array(np.ones_like(flux), pa.float32()),
        "mask": tensor_array(np.zeros((2, 300), np.uint8), pa.uint8()),
    }
    found = read(arrow_body(columns, spectrum_schema(grid).metadata), ARROW)
    np.testing.assert_array_equal(found[1].flux, flux[1])
    np.testing.assert_array_equal(found[1].wavelength, grid.wavelength())


@pytest.mark.parametrize(
    ("columns", "metadata", "reason"),
    [
        ({"wavelength": [[1.0]], "flux": [[1.0]], "ivar": [[1.0]]}, None, "medium_missing"),
        ({"wavelength": [[1.0]], "flux": [[1.0]]}, {"medium": "air"}, "column_missing"),
        ({"flux": [[1.0]], "ivar": [[1.0]]}, {"medium": "air"}, "column_missing"),
        ({"wavelength": [1.0], "flux": [[1.0]], "ivar": [[1.0]]}, {"medium": "air"}, "column_type"),
        ({"wavelength": [["a"]], "flux": [[1.0]], "ivar": [[1.0]]}, {"medium": "air"},
         "column_type"),
        ({"flux": [[1.0]], "ivar": [[1.0]]}, {"skyray": '{"grid": {"kind": "log10"}}'},
         "grid_invalid"),
        ({"flux": [[1.0]], "ivar": [[1.0]]}, {"skyray": "{"}, "arrow_invalid"),
    ],
)  # fmt: skip
def test_arrow_malformed_is_400(read, columns, metadata, reason):
    refused = refusal(read, arrow_body(columns, metadata), ARROW)
    assert (refused.status, refused.reason) == (400, reason)


def test_arrow_of_an_extension_type_is_400_and_runs_nothing(read, spectrum, tmp_path):
    columns = {k: [spectrum[k]] for k in ("wavelength", "flux", "ivar")}
    for file in (False, True):
        body = arrow_body({**columns, "object_id": pickled(1, tmp_path / "marker")},
                          {"medium": "vacuum"}, file)  # fmt: skip
        refused = refusal(read, body, ARROW)
        assert (refused.status, refused.reason) == (400, "extension_type")
        assert "column object_id" in refused.detail
    assert not (tmp_path / "marker").exists()


def test_arrow_compressed_bomb_is_refused(read):
    """Ten megabytes of zeros in a few kilobytes must not be inflated."""
    table = pa.table({"flux": [np.zeros(1_250_000)]}).replace_schema_metadata({"medium": "air"})
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_stream(sink, table.schema, options=options) as writer:
        writer.write_table(table)
    refused = refusal(read, sink.getvalue().to_pybytes(), ARROW, max_bytes=100_000)
    assert refused.status == 413


def test_arrow_compressed_within_the_limit_is_read(read, spectrum):
    columns = {k: [spectrum[k]] for k in ("wavelength", "flux", "ivar")}
    table = pa.table(columns).replace_schema_metadata({"medium": "vacuum"})
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    with pa.ipc.new_stream(sink, table.schema, options=options) as writer:
        writer.write_table(table)
    (found,) = read(sink.getvalue().to_pybytes(), ARROW)
    np.testing.assert_array_equal(found.flux, np.float32(spectrum["flux"]))


def test_arrow_row_limit_is_413(read, spectrum):
    columns = {k: [spectrum[k]] * 3 for k in ("wavelength", "flux", "ivar")}
    body = arrow_body(columns, {"medium": "vacuum"})
    assert refusal(read, body, ARROW, max_records=2).status == 413
