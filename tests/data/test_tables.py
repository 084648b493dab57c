"""Tables are made once and lose no rows, however many write to them at once."""

from __future__ import annotations

import pyarrow as pa
from tests.processes import together

from skyray.data.tables import commit_append, create_table, open_table, write_fragments

SCHEMA = pa.schema([("a", pa.int64())], metadata={"of": "this table"})


def test_a_table_whose_maker_was_killed_on_the_way_is_made(tmp_path):
    (tmp_path / "t.lance" / "_versions").mkdir(parents=True)
    (tmp_path / "t.lance" / "_versions" / ".tmp.1.manifest_1f").touch()
    assert create_table(str(tmp_path / "t.lance"), SCHEMA)
    assert open_table(str(tmp_path / "t.lance")).schema.metadata == SCHEMA.metadata


def _make(uri: str, number: int) -> bool:
    made = create_table(uri, SCHEMA)
    commit_append(uri, write_fragments(uri, pa.table({"a": [number]}, schema=SCHEMA)))
    return made


def test_of_many_makers_of_a_table_one_makes_it_and_all_their_rows_stay(tmp_path):
    uris = [str(tmp_path / f"{attempt}.lance") for attempt in range(40)]
    for uri, made in zip(uris, together(_make, uris, 4), strict=True):
        assert sorted(made) == [False, False, False, True]
        assert sorted(open_table(uri).to_table()["a"].to_pylist()) == [0, 1, 2, 3]
