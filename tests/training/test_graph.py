"""Stages side by side: what may run when, and that order and lane change nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from skyray.config import ConfigError
from skyray.data.prepared_tables import PreparedTable, publish, write_batches
from skyray.families.base import DataInfo, Family, Recipe, Stage, TrainConfig
from skyray.runtime import tracking
from skyray.training import loop
from skyray.training.graph import END, WAIT, StageGraph, lanes_that_fit
from skyray.training.worker import LoneWorker, StageFiles

TRAIN, VALIDATION, PIXELS = 48, 16, 6


def stage(name: str, after: tuple[str, ...] | None = None) -> Stage:
    return Stage(name, lambda model: model, None, TrainConfig(), after=after)


def diamond(**options) -> StageGraph:
    stages = [stage("a", ()), stage("b", ("a",)), stage("c", ("a",)), stage("d", ("b", "c"))]
    return StageGraph([*stages, stage("e", ())], **options)


def test_stages_are_taken_when_what_they_need_is_done():
    graph = diamond()
    assert graph.take(0) == ("train", "a")
    assert graph.take(0) == ("train", "a")  # a lane that was started again
    assert graph.take(1) == ("train", "e")
    assert graph.take(2) == (WAIT, "")
    graph.finish(0)
    assert [graph.take(0)[1], graph.take(2)[1]] == ["b", "c"]
    graph.finish(1)
    graph.finish(2)
    assert graph.take(2)[0] == WAIT  # for b, which d needs beside c
    graph.finish(0)
    assert graph.take(2) == ("train", "d")
    assert graph.take(0) == (END, "")
    assert graph.unfinished() == ["d"]


def test_what_needs_a_failed_stage_is_given_up_and_nothing_else():
    graph = diamond(done=["a"])
    assert [graph.take(lane)[1] for lane in (0, 1)] == ["b", "c"]
    graph.fail(0)
    assert graph.take(0) == ("train", "e")
    graph.finish(1)
    graph.finish(0)
    assert graph.take(1) == (END, "")
    assert graph.unfinished() == ["b", "d"]


def test_stages_follow_one_another_by_default():
    graph = StageGraph([stage("a"), stage("b"), stage("c")])
    assert graph.needs("c") == ["a", "b"]
    assert graph.width() == 1
    assert all(graph.outlives(name) for name in "abc")


def test_last_stage_brings_what_it_needs_alone():
    assert diamond(last="c").names == ["a", "c"]
    assert diamond(last="e").names == ["e"]
    assert diamond().width() == 2
    assert diamond(done="abc").width() == 2
    assert [diamond().outlives(name) for name in "ade"] == [False, False, False]


def test_stage_that_needs_a_later_one_is_refused():
    with pytest.raises(ConfigError, match=r"stage 'a': after: .*found \['b'\]"):
        StageGraph([stage("a", ("b",)), stage("b")])


@pytest.mark.parametrize(
    ("width", "workers", "need", "there_is", "lanes"),
    [
        (61, 1, {"CPU": 1, "cores": 1}, {"CPU": 4, "cores": 2}, 2),
        (61, 1, {"CPU": 1, "GPU": 0.25}, {"CPU": 64, "GPU": 8}, 32),
        (61, 4, {"CPU": 1, "GPU": 1}, {"CPU": 64, "GPU": 8}, 2),
        (3, 1, {"CPU": 1, "GPU": 0.1}, {"CPU": 64, "GPU": 1}, 3),
        (61, 8, {"CPU": 1}, {"CPU": 4}, 1),
    ],
)
def test_lanes_are_what_the_cluster_holds(width, workers, need, there_is, lanes):
    assert lanes_that_fit(width, workers, need, there_is) == lanes


class Fork(nn.Module):
    """Two branches, and what joins them; dropout makes all of it depend on chance."""

    def __init__(self):
        super().__init__()
        self.left, self.right = (
            nn.Sequential(nn.Linear(PIXELS, 8), nn.Dropout(0.3), nn.Linear(8, 1)) for _ in "lr"
        )
        self.joint = nn.Linear(2, 1)


class ForkFamily(Family):
    name = "fork"
    recipe_type = Recipe

    def build_model(self):
        return Fork()

    def stages(self):
        config = TrainConfig(batch_size=8, epochs=2)

        def branch(part, batch):
            return nn.functional.mse_loss(part(batch["x"])[:, 0], batch["y"]), {}

        def both(model, batch):
            sides = torch.cat([model.left(batch["x"]), model.right(batch["x"])], 1)
            return {"sides": sides, "y": batch["y"]}

        def joined(part, batch):
            return nn.functional.mse_loss(part(batch["sides"])[:, 0], batch["y"]), {}

        return [
            Stage("left", lambda model: model.left, branch, config, after=()),
            Stage("right", lambda model: model.right, branch, config, after=()),
            Stage("more", lambda model: model.right, branch, config, after=("right",)),
            Stage("joint", lambda model: model.joint, joined, config, after=("left", "right"),
                  features=both),
        ]  # fmt: skip

    def columns(self, training):
        return []

    transform = raw_outputs = fit_calibration = predict = None
    output_columns = evaluate = figures = None


class InOrder:
    """Hands out stages as another lane's speed would have it."""

    def __init__(self, *names: str):
        self._left = list(names)

    def take(self, lane: int) -> tuple[str, str]:
        return ("train", self._left[0]) if self._left else (END, "")

    def finish(self, lane: int) -> None:
        self._left.pop(0)


def fork_table(home) -> PreparedTable:
    rows, rng = TRAIN + VALIDATION, np.random.default_rng(1)
    x = rng.normal(size=(rows, PIXELS)).astype(np.float32)
    names = np.array([f"o{i}" for i in range(rows)], dtype=object)
    columns = {"observation_id": names, "x": x, "y": np.sin(x).sum(1)}
    uri = str(home / "prepared" / "fork.lance")
    splits = {"train": [0, TRAIN], "validation": [TRAIN, rows]}
    about = {
        "splits": splits,
        "card": "c",
        "data": "d",
        "fingerprint": "f",
        "version": 1,
        "recipe": "r",
    }
    publish(uri, [write_batches(uri, lambda: iter([columns]), rows)], about)
    return PreparedTable(uri)


def test_order_and_company_of_stages_change_nothing(tmp_path, monkeypatch):
    """Also where a lane must take a trained part out of its model again, as `joint` asks."""
    monkeypatch.setenv("SKYRAY_HOME", str(tmp_path / "home"))
    table, uri = fork_table(tmp_path / "home"), tracking.tracking_uri()
    run_id = tracking.start_run("fork", "fork", {}, {})
    family = ForkFamily(Recipe(family="fork", name="fork"), DataInfo("c", "spectrum", (), {}, "f"))

    def trained(name: str, *orders: tuple[str, ...]) -> dict[str, torch.Tensor]:
        run = str(tmp_path / name)
        for order in orders:  # each by a lane of its own
            worker = LoneWorker(
                rank=0, world_size=1, device=torch.device("cpu"), seed=4, run_uri=run,
                run_id=run_id, tracking_uri=uri,
            )  # fmt: skip
            loop.run_stages(worker, family, table, InOrder(*order))
        files = StageFiles(run)
        stages = ("left", "right", "more", "joint")
        history, resumed = files.history(stages)
        assert [row["epoch"] for row in history] == [0, 1] * 4
        assert resumed == 0
        return {f"{s}.{key}": value for s in stages for key, value in files.part(s).items()}

    one = trained("one", ("left", "right", "more", "joint"))
    assert not torch.equal(one["more.0.weight"], one["right.0.weight"])
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "one").rglob("*.*")}
    trained("one", ("left", "joint"))  # by a group that was lost before it said what it had kept
    assert kept == {path: path.stat().st_mtime_ns for path in (tmp_path / "one").rglob("*.*")}
    for name, orders in {
        "turned": (("right", "left", "joint", "more"),),
        "lanes": (("right", "more"), ("left", "joint")),
    }.items():
        other = trained(name, *orders)
        assert all(torch.equal(other[key], value) for key, value in one.items()), name


def test_synchronous_norms_keep_names_and_weights():
    part = nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.BatchNorm1d(4), nn.ReLU()))
    before = {name: value.clone() for name, value in part.state_dict().items()}
    x = torch.randn(5, 3)
    expected = part.eval()(x)
    loop.with_synchronous_norms(part)
    assert isinstance(part[1][0], nn.SyncBatchNorm)
    assert part.state_dict().keys() == before.keys()
    torch.testing.assert_close(part.eval()(x), expected)
