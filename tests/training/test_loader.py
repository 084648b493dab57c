"""Batches are a pure function of seed and step, whatever holds the rows and whoever shares them."""

from __future__ import annotations

import gc
import itertools
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from skyray.data.prepared_tables import PreparedTable, mark_of, publish, write_batches
from skyray.families.base import Stage, TrainConfig
from skyray.training.loader import (
    InMemory,
    Rows,
    StageRows,
    Stored,
    batch_bounds,
    share_of,
    stream_seed,
)

CPU = torch.device("cpu")
TRAIN, VALIDATION, TEST = 203, 50, 20
BATCH = 16


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> PreparedTable:
    rows = TRAIN + VALIDATION + TEST
    rng = np.random.default_rng(3)
    columns = {
        "row": np.arange(rows), "x": rng.random((rows, 40), dtype=np.float32),
        "label": rng.integers(0, 3, rows), "good": rng.random(rows) < 0.5,
        "name": np.array([f"object {i}" for i in range(rows)], dtype=object),
    }  # fmt: skip
    uri = str(tmp_path_factory.mktemp("tables") / "t.lance")
    parts = [
        write_batches(uri, lambda a=a, b=b: iter([{k: v[a:b] for k, v in columns.items()}]), b - a)
        for a, b in ((0, 100), (100, 200), (200, rows))
    ]
    splits = {"train": [0, TRAIN], "validation": [TRAIN, TRAIN + VALIDATION],
              "test": [TRAIN + VALIDATION, rows]}  # fmt: skip
    publish(uri, parts, {"splits": splits})
    return PreparedTable(uri)


def stage(rows=None, memory_bytes: int = 0) -> Stage:
    config = TrainConfig(batch_size=BATCH, memory_bytes=memory_bytes)
    return Stage("stage", lambda model: model, None, config, rows=rows)


def ids(batches) -> list[list[int]]:
    return [batch.tensors["row"].tolist() for batch in batches]


@pytest.mark.parametrize("rows", [1, 2, 15, 16, 17, 31, 32, 33, 130, 203, 1000])
def test_batches_are_full_but_the_last_two_which_share(rows):
    bounds = batch_bounds(rows, BATCH)
    sizes = np.diff(bounds)
    assert bounds[0] == 0
    assert bounds[-1] == rows
    assert len(sizes) == -(-rows // BATCH)
    assert set(sizes[:-2]) <= {BATCH}
    assert sizes.max() <= BATCH
    if len(sizes) > 1:
        assert sizes[-2] - sizes[-1] in (0, 1)
        assert sizes[-1] >= BATCH // 2


@pytest.mark.parametrize(("rows", "world"), itertools.product([0, 1, 5, 16, 203], [1, 2, 3, 8]))
def test_shares_are_even_and_the_first_has_most(rows, world):
    shares = [share_of(10, 10 + rows, rank, world) for rank in range(world)]
    assert [low for low, _ in shares] == [10] + [high for _, high in shares[:-1]]
    assert shares[-1][1] == 10 + rows
    sizes = [high - low for low, high in shares]
    assert max(sizes) - min(sizes) <= 1
    assert sizes == sorted(sizes, reverse=True)


@pytest.mark.parametrize("world", [2, 3, 7])
def test_workers_share_the_batches_of_one(table, world):
    rows = Rows(table).of(stage())["train"]
    alone = ids(rows.batches(BATCH, 0, 1, CPU, seed=5))
    assert sorted(itertools.chain(*alone)) == list(range(TRAIN))
    assert alone != ids(rows.batches(BATCH, 0, 1, CPU, seed=6))
    shares = [list(rows.batches(BATCH, rank, world, CPU, seed=5)) for rank in range(world)]
    for step, batch in enumerate(alone):
        parts = [share[step] for share in shares]
        assert list(itertools.chain(*ids(p for p in parts if p.rows))) == batch
        assert {part.whole for part in parts} == {len(batch)}
    later = ids(rows.batches(BATCH, 1, world, CPU, seed=5, start=4))
    assert later == ids(shares[1])[4:]


def test_worker_without_rows_holds_one_that_does_not_count(table):
    rows = Rows(table).of(stage(lambda columns: columns["row"] < 2))["train"]
    (batch,) = rows.batches(BATCH, 2, 3, CPU, seed=1)
    assert (batch.rows, batch.whole) == (0, 2)
    assert batch.tensors["x"].shape == (1, 40)


def test_memory_or_disk_gives_the_same_batches(table):
    def chosen(columns):
        return (columns["label"] == 1) & columns["good"]

    found = {}
    for memory_bytes, kind in ((1 << 30, InMemory), (10_000, InMemory), (0, Stored)):
        both = Rows(table).of(stage(chosen, memory_bytes))
        source, _ = both["train"]._sources[0]
        assert type(source) is kind
        batches = [
            *both["train"].batches(BATCH, 0, 2, CPU, seed=8),
            *both["validation"].batches(BATCH, 0, 2, CPU),
        ]
        found[memory_bytes] = [{**batch.tensors} for batch in batches]
    for ours, theirs in itertools.combinations(found.values(), 2):
        assert len(ours) == len(theirs)
        for a, b in zip(ours, theirs, strict=True):
            assert list(a) == list(b) == ["row", "x", "label", "good"]
            assert all(torch.equal(a[name], b[name]) for name in a)


def test_stages_share_what_memory_holds_of_all_rows(table):
    rows = Rows(table)
    first, second = (
        rows.of(stage(lambda c, k=k: c["label"] == k, 1 << 30))["train"]._sources[0][0]
        for k in (0, 1)
    )
    assert first._tensors is second._tensors


def test_rows_are_chosen_before_batches_are_cut(table):
    both = Rows(table).of(stage(lambda columns: columns["label"] == 2))
    label = table.to_columns("train", ["label"])["label"]
    assert len(both["train"]) == (label == 2).sum()
    batches = ids(both["train"].batches(BATCH, 0, 1, CPU, seed=0))
    assert [len(batch) for batch in batches[:-2]] == [BATCH] * (len(batches) - 2)
    assert set(itertools.chain(*batches)) == set(np.flatnonzero(label == 2))


def test_validation_comes_once_and_in_order(table):
    rows = Rows(table).of(stage())["validation"]
    expected = list(range(TRAIN, TRAIN + VALIDATION))
    assert list(itertools.chain(*ids(rows.batches(BATCH, 0, 1, CPU)))) == expected
    shares = [ids(rows.batches(BATCH, rank, 2, CPU)) for rank in range(2)]
    assert sorted(itertools.chain(*shares[0], *shares[1])) == expected


def test_stage_without_rows_has_no_batches(table):
    both = Rows(table).of(stage(lambda columns: columns["label"] == 9))
    assert [len(rows) for rows in both.values()] == [0, 0]
    assert list(both["validation"].batches(BATCH, 0, 1, CPU)) == []


def test_sample_is_bounded_seeded_and_reads_what_is_asked_for(table):
    rows = Rows(table).of(stage())["train"]
    whole = rows.sample(1000, seed=1)
    assert whole["row"].tolist() == list(range(TRAIN))
    some = rows.sample(50, seed=1)["row"].tolist()
    assert len(set(some)) == 50
    assert some == sorted(some)
    assert (
        some == rows.sample(50, seed=1)["row"].tolist() != rows.sample(50, seed=2)["row"].tolist()
    )
    assert "name" not in whole
    table._table.io_stats_incremental()
    assert rows.sample(50, seed=1)["label"].shape == (50,)
    assert table._table.io_stats_incremental().read_bytes < 40 * 4 * TRAIN


class Failing:
    """A source whose third read fails, as a storage does."""

    columns = ("x",)
    reads = 0

    def read(self, rows, columns=None):
        self.reads += 1
        if self.reads == 3:
            raise OSError("storage went away")
        return {"x": torch.zeros(len(rows))}


def test_failure_of_the_reading_thread_is_raised(table):
    class Slow(Failing, Stored):
        def __init__(self):
            pass

    rows = StageRows([(Slow(), np.arange(100))])
    batches = rows.batches(10, 0, 1, CPU)
    assert len(next(batches).tensors["x"]) == 10
    next(batches)
    with pytest.raises(OSError, match="storage went away"):
        next(batches)


def test_reading_ahead_ends_with_the_loop(table):
    batches = Rows(table).of(stage())["train"].batches(4, 0, 1, CPU, seed=0)
    next(batches)
    assert any(thread.name.startswith("loader") for thread in threading.enumerate())
    batches.close()
    gc.collect()
    assert not any(thread.name.startswith("loader") for thread in threading.enumerate())


def test_a_table_that_memory_holds_is_marked_as_used(table):
    both = Rows(table).of(stage(memory_bytes=1 << 30))
    mark = Path(mark_of(table.uri))
    mark.unlink()
    table._touched = -np.inf  # as it is minutes later
    next(both["train"].batches(BATCH, 0, 1, CPU, seed=0))
    assert mark.exists()


def test_seed_is_a_pure_function_of_its_parts():
    assert stream_seed(0, "stage", 1) == stream_seed(0, "stage", 1)
    assert len({stream_seed(0, "s", epoch) for epoch in range(100)}) == 100
    assert 0 <= stream_seed("x") < 2**63
