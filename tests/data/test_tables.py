"""Lance tables: commits that lose nothing and are not made twice, strangers' types refused."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import lance
import pyarrow as pa
import pytest
from tests.processes import together

from skyray.data.tables import (
    ForeignType,
    commit_append,
    create_table,
    delete_addresses,
    fragment_rows,
    open_table,
    quoted,
    write_fragments,
)

SCHEMA = pa.schema(
    [pa.field("name", pa.string(), nullable=False), pa.field("n", pa.int64())],
    metadata={"of": "this table"},
)


def rows(start: int, stop: int) -> pa.Table:
    numbers = list(range(start, stop))
    return pa.table({"name": [f"it's {n}" for n in numbers], "n": numbers}, schema=SCHEMA)


@pytest.fixture
def uri(tmp_path) -> str:
    place = str(tmp_path / "t.lance")
    assert create_table(place, SCHEMA)
    return place


def test_what_is_written_counts_when_it_is_committed(uri):
    written = write_fragments(uri, rows(0, 5))
    assert open_table(uri).count_rows() == 0
    commit_append(uri, written)
    assert open_table(uri).to_table() == rows(0, 5)


def test_a_commit_whose_answer_was_lost_is_not_made_twice(uri):
    written = write_fragments(uri, rows(0, 5))
    commit_append(uri, written)
    commit_append(uri, written)
    assert open_table(uri).count_rows() == 5


def test_appends_side_by_side_lose_nothing(uri):
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda n: commit_append(uri, write_fragments(uri, rows(n, n + 3))),
                      range(0, 60, 3)))  # fmt: skip
    assert sorted(open_table(uri).to_table()["n"].to_pylist()) == list(range(60))


def test_a_table_is_made_once(uri):
    commit_append(uri, write_fragments(uri, rows(0, 5)))
    assert not create_table(uri, SCHEMA)
    assert open_table(uri).count_rows() == 5


def test_rows_are_deleted_by_address_and_filters_bear_quotes(uri):
    for start in (0, 5):
        commit_append(uri, write_fragments(uri, rows(start, start + 5)))
    only = "name IN (" + quoted(["it's nobody's", "it's 7"]) + ")"
    found = pa.concat_tables(fragment_rows(open_table(uri), ["n"], f"{only} OR n = 4"))
    assert found["n"].to_pylist() == [4, 7]
    delete_addresses(uri, found["_rowaddr"].to_pylist())
    assert sorted(open_table(uri).to_table()["n"].to_pylist()) == [0, 1, 2, 3, 5, 6, 8, 9]


def test_no_table_is_an_error_that_names_the_place(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        open_table(str(tmp_path / "nowhere"))


def test_an_extension_type_of_a_stranger_is_refused(tmp_path):
    class Strange(pa.ExtensionType):
        def __init__(self):
            super().__init__(pa.binary(), "tests.strange")

        def __arrow_ext_serialize__(self):
            return b""

        @classmethod
        def __arrow_ext_deserialize__(cls, storage, serialized):
            return cls()

    pa.register_extension_type(Strange())
    try:
        column = pa.ExtensionArray.from_storage(Strange(), pa.array([b"x"], pa.binary()))
        place = str(Path(tmp_path) / "t.lance")
        lance.write_dataset(pa.table({"good": [1], "bad": column}), place)
        with pytest.raises(ForeignType, match=r"column bad: .*tests\.strange"):
            open_table(place)
    finally:
        pa.unregister_extension_type("tests.strange")


def test_a_table_whose_maker_was_killed_on_the_way_is_made(tmp_path):
    (tmp_path / "t.lance" / "_versions").mkdir(parents=True)
    (tmp_path / "t.lance" / "_versions" / ".tmp.1.manifest_1f").touch()
    assert create_table(str(tmp_path / "t.lance"), SCHEMA)
    assert open_table(str(tmp_path / "t.lance")).schema.metadata == SCHEMA.metadata


def _make(uri: str, number: int) -> bool:
    made = create_table(uri, SCHEMA)
    commit_append(uri, write_fragments(uri, rows(number, number + 1)))
    return made


def test_of_many_makers_of_a_table_one_makes_it_and_all_their_rows_stay(tmp_path):
    uris = [str(tmp_path / f"{attempt}.lance") for attempt in range(40)]
    for uri, made in zip(uris, together(_make, uris, 4), strict=True):
        assert sorted(made) == [False, False, False, True]
        assert sorted(open_table(uri).to_table()["n"].to_pylist()) == [0, 1, 2, 3]
