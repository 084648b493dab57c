"""A dataset as plain Parquet: every row, every value, in any reader."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from skyray.data.dataset import Dataset, table_to_columns
from skyray.inference import export
from skyray.inference import results as results_module
from skyray.inference.export import export_parquet
from skyray.inference.results import OtherResults


def test_parts_hold_the_dataset(mock_dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(results_module, "_MOST", 40)
    monkeypatch.setattr(export, "_PIECES_A_PART", 2)
    done = export_parquet(mock_dataset, str(tmp_path / "out"))
    assert (done.rows, done.parts, done.version) == (300, 4, 1)
    table = pq.read_table(tmp_path / "out")
    data = Dataset.open(mock_dataset)
    assert table.column_names == data.schema.names
    assert pa.types.is_fixed_size_list(table.schema.field("flux").type)
    expected = table_to_columns(data.to_table())
    assert table["observation_id"].to_pylist() == expected["observation_id"].tolist()
    flux = table["flux"].combine_chunks().flatten().to_numpy().reshape(300, -1)
    np.testing.assert_array_equal(flux, expected["flux"])
    part = pq.read_schema(tmp_path / "out" / "part-00000.parquet")
    assert part.field("flux").metadata[b"shape"] == str(flux.shape[1]).encode()


def test_what_is_there_is_not_written_again_and_other_data_refused(mock_dataset, tmp_path):
    out = str(tmp_path / "out")
    export_parquet(mock_dataset, out)
    part = tmp_path / "out" / "part-00000.parquet"
    before = part.stat().st_mtime_ns
    assert export_parquet(mock_dataset, out).rows == 300
    assert part.stat().st_mtime_ns == before
    (tmp_path / "out" / "_about.json").write_text('{"data": "elsewhere"}')
    with pytest.raises(OtherResults, match="found elsewhere"):
        export_parquet(mock_dataset, out)
