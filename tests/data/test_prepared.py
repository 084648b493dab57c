"""Prepared tables: what is in them, who shares them, and what a killed maker leaves."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from skyray.data import prepared
from skyray.data.dataset import Dataset, table_to_columns
from skyray.data.prepared import KEY, prepare, prepared_place, sources_digest, transform_digest
from skyray.data.prepared_space import prepared_tables
from skyray.data.prepared_tables import NotPrepared, PreparedTable
from skyray.families.base import Family, load_family
from skyray.records import SPLITS
from skyray.runtime import places

ROOT = Path(__file__).resolve().parents[2]

# Makes the table of a dataset in a process of its own, without Ray, in blocks of 64 rows.
MAKER = """
import json, os, signal, sys
from skyray.data import prepared
from skyray.data.dataset import Dataset
from skyray.families.base import load_family
prepared.BATCH_ROWS = 16
data, recipe, kill_at = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])
dataset = Dataset.open(data)
kind = load_family(recipe["family"])
family = kind(kind.recipe_type.load(recipe), dataset.info())
transform, calls = family.transform, []
def counted(columns, training):
    calls.append(len(columns["flux"]))
    if len(calls) == kill_at:
        os.kill(os.getpid(), signal.SIGKILL)
    return transform(columns, training)
family.transform = counted
print("ready", flush=True)
sys.stdin.readline()
prepared.prepare(dataset, family, progress=False, on_ray=False)
print(sum(calls))
"""


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """A home of its own, so that nothing is prepared yet."""
    monkeypatch.setenv("SKYRAY_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture(scope="module")
def dataset(mock_dataset) -> Dataset:
    return Dataset.open(mock_dataset)


@pytest.fixture(scope="module")
def family(dataset, tiny_recipe) -> Family:
    return load_family(tiny_recipe.family)(tiny_recipe, dataset.info())


def maker(dataset: Dataset, recipe, kill_at: int = 0) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "platform")}
    arguments = [dataset.uri, json.dumps(recipe.snapshot()), str(kill_at)]
    return subprocess.Popen(
        [sys.executable, "-c", MAKER, *arguments], env=environment, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip


def files(table: PreparedTable) -> set[str]:
    return {path.name for path in Path(table.uri, "data").iterdir()}


def same(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> None:
    assert list(ours) == list(theirs)
    for name, values in theirs.items():
        assert ours[name].dtype == values.dtype, name
        np.testing.assert_array_equal(ours[name], values, err_msg=name)


@pytest.mark.parametrize("on_ray", [False, True])
def test_table_holds_what_the_transform_returns_in_canonical_order(
    on_ray, home, dataset, family, monkeypatch
):
    monkeypatch.setattr(prepared, "BATCH_ROWS", 32)  # several files
    table = prepare(dataset, family, progress=False, on_ray=on_ray)
    order = np.concatenate([dataset.rows(split) for split in SPLITS])
    columns = table_to_columns(dataset.take(order))
    wanted = {name: columns[name] for name in family.columns(training=True)}
    expected = family.transform(wanted, training=True)
    same(table.to_columns(), {KEY: columns[KEY], "split": columns["split"], **expected})
    start = 0
    for split in SPLITS:
        rows = table.rows(split)
        assert rows == range(start, start + dataset.count(split))
        assert set(table.take(rows, ["split"])["split"]) == {split}
        names = table.take(rows, [KEY])[KEY].tolist()
        assert names == sorted(names)
        start = rows.stop
    assert len(files(table)) > 2
    assert table.about["fingerprint"] == dataset.manifest.fingerprint


def test_rows_are_taken_in_any_order_in_any_process(home, dataset, family):
    table = prepare(dataset, family, progress=False, on_ray=False)
    whole = table.to_columns()
    rows = np.array([5, 200, 5, 0, 299])
    again = pickle.loads(pickle.dumps(table))  # as Ray does
    same(again.take(rows), {name: values[rows] for name, values in whole.items()})
    assert {k: v.shape for k, v in table.take([]).items()} == {
        name: (0, *values.shape[1:]) for name, values in whole.items()
    }
    pieces = list(table.scan(table.rows("train"), ["x"], size=70))
    assert max(len(piece["x"]) for piece in pieces) == 70
    np.testing.assert_array_equal(
        np.concatenate([piece["x"] for piece in pieces]), whole["x"][: table.count("train")]
    )


def test_what_is_there_is_not_made_again(home, dataset, family):
    table = prepare(dataset, family, progress=False, on_ray=False)
    stamps = {path: path.stat().st_mtime_ns for path in Path(table.uri).rglob("*.*")}
    again = prepare(dataset, family, progress=False, on_ray=False)
    assert again.uri == table.uri
    assert stamps == {path: path.stat().st_mtime_ns for path in Path(table.uri).rglob("*.*")}


def test_two_at_once_give_one_table(home, dataset, tiny_recipe, family):
    makers = [maker(dataset, tiny_recipe) for _ in range(2)]
    for process in makers:
        assert process.stdout.readline() == "ready\n"
    for process in makers:
        process.stdin.write("\n")
        process.stdin.flush()
    done = [process.communicate(timeout=120)[0] for process in makers]
    assert [process.returncode for process in makers] == [0, 0]
    assert max(map(int, done)) >= dataset.count()  # rows that each has transformed
    table = prepare(dataset, family, progress=False, on_ray=False)
    assert table.count() == dataset.count() == len(set(table.to_columns(None, [KEY])[KEY]))
    named = {f.path for part in table._table.get_fragments() for f in part.metadata.files}
    assert files(table) == named  # the second's own files are gone
    assert len(list(Path(table.uri, "_versions").glob("*.manifest"))) == 1


def test_killed_maker_leaves_nothing_that_counts(home, dataset, tiny_recipe, family):
    killed = maker(dataset, tiny_recipe, kill_at=8)
    killed.communicate("\n", timeout=120)
    assert killed.returncode == -signal.SIGKILL
    table = PreparedTable(prepared_place(dataset, family))
    left = files(table)
    assert left
    assert not table.exists()
    with pytest.raises(NotPrepared, match="expected a prepared table"):
        table.count()
    assert [info.made_for for info in prepared_tables()] == ["unfinished"]
    made = prepare(dataset, family, progress=False, on_ray=False)
    assert made.count() == dataset.count()
    assert not left & files(made)


def test_name_follows_what_decides_the_content(dataset, family, tiny_recipe):
    def digest(*changes: str) -> str:
        return transform_digest(type(family)(tiny_recipe.override(changes), dataset.info()))

    assert digest("train.optimizer.lr=0.5", "seed=7", "train.epochs=1") == digest()
    assert digest("input.pixels=900") != digest()
    assert digest("masked_pixels=as_published") != digest()
    assert dataset.manifest.fingerprint[:16] in prepared_place(dataset, family)
    assert f"-{dataset.version}-" in prepared_place(dataset, family)


def test_changed_sources_are_another_transform(tmp_path, monkeypatch):
    source = tmp_path / "stranger" / "family.py"
    source.parent.mkdir()
    source.write_text(
        "from skyray.families.base import Family\nclass Stranger(Family): name = 's'\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    from stranger.family import Stranger

    before = sources_digest(Stranger, ["transforms"])
    assert before != sources_digest(Stranger, ["transforms", "records"])
    assert before == sources_digest(Stranger, ["transforms"])
    (source.parent / "deeper").mkdir()
    (source.parent / "deeper" / "filter.py").write_text("WIDTH = 3\n")
    assert before != sources_digest(Stranger, ["transforms"])


def test_transform_must_give_a_row_for_each_row(home, dataset, family, monkeypatch):
    transform = family.transform

    def shorter(columns, training):
        return {name: values[1:] for name, values in transform(columns, training).items()}

    monkeypatch.setattr(family, "transform", shorter)
    with pytest.raises(ValueError, match="a row for each"):
        prepare(dataset, family, progress=False, on_ray=False)
    assert not PreparedTable(prepared_place(dataset, family)).exists()
    assert not places.exists(f"{prepared_place(dataset, family)}.used")
