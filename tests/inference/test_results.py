"""Results tables: pieces whole or not at all, nobody else's work gone on with, rows by position."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from skyray.cards import load_card
from skyray.data.rows import schema_of
from skyray.inference.results import OtherResults, Results, piece_rows

ROWS, SIZE = 23, 5


def columns(start: int, stop: int) -> dict[str, np.ndarray]:
    rows = np.arange(start, stop)
    return {
        "observation_id": np.array([f"o{row}" for row in rows], object),
        "label": np.array(["GALAXY" if row % 3 else None for row in rows], object),
        "score": rows / 7,
        "features": np.stack([rows, rows + 0.5], axis=1).astype(np.float32),
    }


@pytest.fixture
def results(tmp_path) -> Results:
    made = Results.claim(str(tmp_path / "results"), {"bundle": "a"}, ROWS, SIZE)
    for number in range(made.count):
        made.write(number, columns(number * SIZE, number * SIZE + made.rows_of(number)))
    return made


def test_pieces_cover_all_rows_once(results):
    assert results.count == 5
    assert [results.rows_of(number) for number in range(5)] == [5, 5, 5, 5, 3]
    assert not len(results.missing())
    names = [name for t in results.tables(["observation_id"]) for name in t[0].to_pylist()]
    assert names == [f"o{row}" for row in range(ROWS)]


def test_missing_pieces_are_those_that_are_not_whole(results, tmp_path):
    folder = tmp_path / "results" / "_pieces"
    (folder / "piece-00000002.parquet").rename(folder / "piece-00000002.parquet.1a2b.tmp")
    (folder / "piece-00000004.parquet").unlink()
    again = Results.claim(results.uri, {"bundle": "a"}, ROWS, SIZE)
    assert again.missing().tolist() == [2, 4]


def test_a_piece_lacking_rows_is_not_written(results):
    with pytest.raises(RuntimeError, match=r"piece-00000004\.parquet: expected 3 rows, found 2"):
        results.write(4, columns(20, 22))
    assert results.read(4).num_rows == 3


def test_other_work_is_refused_or_replaced(results):
    with pytest.raises(OtherResults, match="bundle: expected b, found a"):
        Results.claim(results.uri, {"bundle": "b"}, ROWS, SIZE)
    with pytest.raises(OtherResults, match="rows: expected 24, found 23"):
        Results.claim(results.uri, {"bundle": "a"}, ROWS + 1, SIZE)
    assert not len(results.missing())
    other = Results.claim(results.uri, {"bundle": "b"}, ROWS, SIZE, replace=True)
    assert len(other.missing()) == other.count


def test_narrow_columns_are_all_rows_and_share_texts(results):
    assert results.narrow() == ["observation_id", "label", "score"]
    found = results.columns(["label", "score"])
    np.testing.assert_array_equal(found["score"], np.arange(ROWS) / 7)
    assert found["label"].tolist() == ["GALAXY" if row % 3 else "" for row in range(ROWS)]
    assert len({id(text) for text in found["label"]}) == 2


def test_rows_are_taken_by_position(results, ray_cluster):
    chosen = np.array([0, 4, 5, 17, 22])
    found = results.take(chosen)
    assert found["observation_id"].tolist() == [f"o{row}" for row in chosen]
    np.testing.assert_array_equal(found["features"], columns(0, ROWS)["features"][chosen])
    one = results.take(np.array([21]), ["score"])
    assert one["score"].tolist() == [3.0]


def test_pieces_are_some_megabytes_and_alike():
    schema = schema_of(load_card("desi_bgs"))
    size = piece_rows(schema, ["flux", "ivar", "mask"], 10**6)
    width = sum(np.prod(schema.field(n).type.shape) * schema.field(n).type.value_type.bit_width / 8
                for n in ("flux", "ivar", "mask"))  # fmt: skip
    assert 16e6 < size * width < 34e6
    assert piece_rows(schema, ["flux"], 5) == 5
    narrow = pa.schema([("ra", pa.float64())])
    size = piece_rows(narrow, ["ra"], 10_001)
    count = -(-10_001 // size)
    assert size <= 1024
    assert 0 <= count * size - 10_001 < count  # pieces of nearly one size
