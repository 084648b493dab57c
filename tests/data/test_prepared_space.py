"""The space of prepared tables is bounded: what rests longest goes, what is in use stays."""

from __future__ import annotations

import datetime
import os
import time
from pathlib import Path

import numpy as np
import pytest
from tests.object_store import object_store

from skyray.config import ConfigError
from skyray.data.prepared_space import (
    bound_bytes,
    folder,
    keep_within_bound,
    prepared_tables,
    vacuum_prepared,
)
from skyray.data.prepared_tables import PreparedTable, publish, write_batches
from skyray.runtime import places

HOUR = 3600.0
ROWS = 50


@pytest.fixture
def three(tmp_path, monkeypatch) -> list[PreparedTable]:
    """Tables last used 5, 3 and 0 hours ago."""
    monkeypatch.setenv("SKYRAY_HOME", str(tmp_path / "home"))
    return [made(name, hours) for name, hours in (("a", 5), ("b", 3), ("c", 0))]


def made(name: str, hours: float) -> PreparedTable:
    uri = f"{folder()}/{name}.lance"
    batch = {"x": np.random.default_rng(0).random((ROWS, 1000))}
    written = write_batches(uri, lambda: iter([batch]), ROWS)
    about = {"splits": {"train": [0, ROWS]}, "recipe": "redshift/none", "card": "mock"}
    publish(uri, [written], about | ({"stage": "flow"} if name == "b" else {}))
    rest(uri, hours)
    return PreparedTable(uri)


def rest(uri: str, hours: float) -> None:
    """Let a table look unused for so long."""
    then = time.time() - hours * HOUR
    for path in [Path(f"{uri}.used"), *Path(uri).rglob("*")]:
        if path.exists():
            os.utime(path, (then, then))


def names(infos) -> list[str]:
    return [info.name.removesuffix(".lance") for info in infos]


def test_listing_says_size_use_and_purpose(three):
    found = prepared_tables()
    assert names(found) == ["a", "b", "c"]
    assert all(info.rows == ROWS and info.finished for info in found)
    assert [info.made_for for info in found] == [
        "redshift/none on mock", "redshift/none on mock, stage flow", "redshift/none on mock"
    ]  # fmt: skip
    for info in found:
        size = sum(p.stat().st_size for p in Path(info.uri).rglob("*") if p.is_file())
        assert info.bytes == size > 8 * ROWS * 1000
    idle = datetime.datetime.now(datetime.UTC) - found[0].last_used
    assert idle.total_seconds() == pytest.approx(5 * HOUR, abs=60)


def test_no_tables_no_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("SKYRAY_HOME", str(tmp_path / "nothing"))
    assert prepared_tables() == vacuum_prepared(keep_bytes=0) == []


def test_least_recently_used_go_until_the_rest_fits(three):
    size = prepared_tables()[0].bytes
    assert names(vacuum_prepared(keep_bytes=5 * size)) == []
    assert names(vacuum_prepared(keep_bytes=int(2.5 * size), dry_run=True)) == ["a"]
    assert names(prepared_tables()) == ["a", "b", "c"]
    assert names(vacuum_prepared(keep_bytes=int(2.5 * size))) == ["a"]
    assert not Path(three[0].uri).exists()
    assert not Path(f"{three[0].uri}.used").exists()
    assert not three[0].exists()
    assert three[1].count() == ROWS


def test_tables_in_use_stay_whatever_the_bound(three):
    three[0].take([1, 2])  # marks it as used now
    assert names(vacuum_prepared(keep_bytes=0)) == ["b"]
    assert names(prepared_tables()) == ["c", "a"]


def test_old_ones_go(three):
    assert names(vacuum_prepared(older_than=datetime.timedelta(hours=4))) == ["a"]


def test_leftovers_of_killed_makers_go_after_a_day(three):
    uri = f"{folder()}/d.lance"
    write_batches(uri, lambda: iter([{"x": np.zeros(9)}]), 9)
    assert prepared_tables()[-1].made_for == "unfinished"
    assert names(vacuum_prepared()) == []
    rest(uri, 25)
    assert names(vacuum_prepared()) == ["d"]
    stray = write_batches(three[2].uri, lambda: iter([{"x": np.zeros((9, 1000))}]), 9)
    assert len(list(Path(three[2].uri, "data").iterdir())) == 2
    vacuum_prepared()
    assert len(list(Path(three[2].uri, "data").iterdir())) == 1
    assert stray.rows == 9
    assert three[2].count() == ROWS


def test_removed_table_can_be_made_anew(three):
    vacuum_prepared(keep_bytes=0)
    assert made("a", 0).count() == ROWS


def test_space_of_an_object_store(monkeypatch):
    """Through a proxy that fails one call in twenty."""
    with object_store(20, seed=3) as store:
        monkeypatch.setenv("SKYRAY_HOME", places.join(store.uri, "home"))
        uri = places.join(folder(), "a.lance")
        batch = {"x": np.random.default_rng(0).random((ROWS, 1000))}
        ours, theirs = (write_batches(uri, lambda: iter([batch]), ROWS) for _ in range(2))
        about = {"splits": {"train": [0, ROWS]}, "recipe": "redshift/none", "card": "mock"}
        assert publish(uri, [ours], about)
        assert not publish(uri, [theirs], about)
        np.testing.assert_array_equal(PreparedTable(uri).take([7, 3])["x"], batch["x"][[7, 3]])
        (info,) = prepared_tables()
        assert info.bytes > 8 * ROWS * 1000
        assert info.bytes < 1.2 * 8 * ROWS * 1000  # what the second had written is gone
        assert vacuum_prepared(keep_bytes=0) == []  # in use
        (gone,) = vacuum_prepared(keep_bytes=0, in_use=datetime.timedelta(0))
        assert gone.uri == uri
        assert prepared_tables() == []
        assert sum(store.proxy.made.values()) > 0


def test_bound_is_a_setting(three, monkeypatch):
    assert bound_bytes() == 200_000_000_000
    monkeypatch.setenv("SKYRAY_PREPARED_BYTES", "1e6")
    assert bound_bytes() == 1_000_000
    assert names(keep_within_bound()) == ["a"]
    monkeypatch.setenv("SKYRAY_PREPARED_BYTES", "200 GB")
    with pytest.raises(ConfigError, match="expected a number of bytes"):
        bound_bytes()
