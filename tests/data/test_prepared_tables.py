"""The form of prepared tables: every kind of column, and refusals that name it."""

from __future__ import annotations

import numpy as np
import pytest

from skyray.data.prepared_tables import (
    LazyColumns,
    PreparedTable,
    publish,
    same_schema,
    write_batches,
)


def made(uri: str, *batches: dict, splits: dict | None = None) -> PreparedTable:
    rows = sum(len(next(iter(batch.values()))) for batch in batches)
    written = write_batches(uri, lambda: iter(batches), rows)
    about = {"splits": splits or {"train": [0, rows]}, "recipe": "r", "card": "c"}
    assert publish(uri, [written], about)
    return PreparedTable(uri)


def column_of(*values) -> np.ndarray:
    column = np.empty(len(values), dtype=object)
    column[:] = values
    return column


def test_every_kind_of_column_comes_back_as_it_went(tmp_path):
    rng = np.random.default_rng(0)
    columns = {
        f"{kind}{'x'.join(map(str, shape))}": (100 * rng.random((5, *shape))).astype(kind)
        for kind in ("float16", "float32", "float64", "int8", "uint8", "int64", "bool")
        for shape in ((), (3,), (2, 3, 4))
    }
    columns["float32"][2] = np.nan
    columns["text"] = column_of("a", "", "ä", "long " * 50, "b")
    columns["maybe"] = column_of("a", None, "c", None, "e")
    table = made(str(tmp_path / "t.lance"), columns)
    found = table.to_columns()
    assert list(found) == list(columns)
    for name, values in columns.items():
        assert found[name].dtype == values.dtype, name
        np.testing.assert_array_equal(found[name], values, err_msg=name)
        assert found[name].flags.writeable
    assert table.numbers == [name for name in columns if name not in ("text", "maybe")]
    assert table.bytes_per_row(["float322x3x4", "float32", "bool"]) == 4 * 24 + 4 + 1


def test_other_byte_orders_fixed_text_and_objects(tmp_path):
    table = made(
        str(tmp_path / "t.lance"),
        {
            "big": np.arange(3, dtype=">f4"),
            "fixed": np.array(["x", "yy", "z"]),
            "stacked": column_of(*np.arange(6.0).reshape(3, 2)),
            "lists": column_of([1, 2], [], [3]),
        },
    )
    found = table.to_columns()
    assert found["big"].tolist() == [0, 1, 2]
    assert found["fixed"].tolist() == ["x", "yy", "z"]
    assert found["stacked"].tolist() == [[0, 1], [2, 3], [4, 5]]
    assert [list(value) for value in found["lists"]] == [[1, 2], [], [3]]
    assert table.numbers == ["big", "stacked"]


def test_batches_that_differ_are_refused_by_column(tmp_path):
    uri = str(tmp_path / "t.lance")
    first = {"x": np.zeros((2, 3), np.float32)}
    for other in ({"x": np.zeros((2, 4), np.float32)}, {"x": np.zeros((2, 3))}, {"y": np.zeros(2)}):
        with pytest.raises(ValueError, match=r"differ between batches: expected .*x: "):
            made(uri, first, other)
    one, two = (
        write_batches(uri, lambda v=v: iter([{"x": v}]), 1).schema
        for v in (np.zeros(1), np.zeros(1, np.int64))
    )
    with pytest.raises(ValueError, match=r"double.*int64"):
        same_schema(one, two)
    assert not PreparedTable(uri).exists()


def test_own_error_of_a_batch_is_raised_as_it_is(tmp_path):
    def batches():
        yield {"x": np.zeros(2)}
        raise KeyError("flux")

    with pytest.raises(KeyError, match="flux"):
        write_batches(str(tmp_path / "t.lance"), batches, 4)


def test_second_to_publish_finds_the_first(tmp_path):
    uri = str(tmp_path / "t.lance")
    ours, theirs = (
        write_batches(uri, lambda v=v: iter([{"x": np.full(3, v)}]), 3) for v in (1.0, 2.0)
    )
    about = {"splits": {"train": [0, 3]}}
    assert publish(uri, [ours], about)
    assert publish(uri, [ours], about)  # an answer that was lost: asked again
    assert not publish(uri, [theirs], about)
    assert PreparedTable(uri).to_columns()["x"].tolist() == [1, 1, 1]


def test_columns_are_read_when_they_are_asked_for(tmp_path):
    wide = np.zeros((400, 5000), np.float32)
    table = made(
        str(tmp_path / "t.lance"), {"wide": wide, "label": np.arange(400)},
        splits={"train": [0, 300], "validation": [300, 400]},
    )  # fmt: skip
    columns = LazyColumns(table, table.rows("validation"))
    table._table.io_stats_incremental()
    assert columns["label"].tolist() == list(range(300, 400))
    assert table._table.io_stats_incremental().read_bytes < 100_000
    assert "nothing" not in columns
    assert list(columns) == ["wide", "label"]
    assert columns["wide"].shape == (100, 5000)
    assert table._table.io_stats_incremental().read_bytes > 1_000_000
