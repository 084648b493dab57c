"""The loop in groups of processes: any number of workers, and any change of it, is one training."""

from __future__ import annotations

import contextlib
import itertools
import json
import multiprocessing
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import nn

from skyray.config import ConfigError
from skyray.data.prepared_space import prepared_tables
from skyray.data.prepared_tables import PreparedTable, publish, write_batches
from skyray.families.base import (
    DataInfo,
    Family,
    OptimizerConfig,
    Recipe,
    Stage,
    TrainConfig,
)
from skyray.runtime import tracking
from skyray.training import features, loop
from skyray.training.features import frozen_state
from skyray.training.graph import StageGraph
from skyray.training.worker import LoneWorker

TRAIN, VALIDATION = 101, 30
PIXELS = 12


pytestmark = pytest.mark.slow
multiprocessing.set_forkserver_preload(
    ["torch", "ray.train.torch", "mlflow.store.tracking.sqlalchemy_store", "lance"]
)  # a process of a group then starts at once


class LineRecipe(Recipe):
    family: str = "line"
    name: str = "line"
    width: int = 5


class Line(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.base = nn.Linear(PIXELS, width)
        self.head = nn.Linear(width, 1)
        self.register_buffer("mean", torch.zeros(width))


class LineFamily(Family):
    """A network without chance: a frozen layer, and one that learns on what it gives."""

    name = "line"
    recipe_type = LineRecipe

    def build_model(self) -> nn.Module:
        return Line(self.recipe.width)

    def stages(self) -> list[Stage]:
        def whole(part, batch):
            found = part.head(torch.tanh(part.base(batch["x"])))[:, 0]
            return self.loss(part, found, batch)

        def ahead(part, batch):
            return self.loss(part, part.head(batch["hidden"] - part.mean)[:, 0], batch)

        def frozen(model, batch):
            note("features", len(batch["x"]))
            hidden = torch.tanh(model.base(batch["x"]))
            return {"hidden": hidden, "y": batch["y"], "row": batch["row"]}

        def prepare(part, rows):
            part.mean.copy_(rows["hidden"].mean(0))

        config = self.recipe.train
        return [
            Stage("whole", lambda model: model, whole, config,
                  rows=lambda columns: columns["label"] == 1),
            Stage("head", lambda model: model, ahead, config, features=frozen, prepare=prepare,
                  after=("whole",), trains=lambda name: name.startswith("head."), keep="last"),
        ]  # fmt: skip

    def loss(self, part, found, batch):
        if part.training:
            note("batch", batch["row"].tolist())
        error = (found - batch["y"]) ** 2
        return error.mean(), {"mae": error.detach().sqrt().mean()}

    def columns(self, training):
        return []

    def transform(self, columns, training):
        return columns

    def raw_outputs(self, model, inputs):
        return {}

    def fit_calibration(self, found):
        return {}, {}

    def predict(self, model, inputs, calibration, tensors):
        return {}

    def output_columns(self):
        return []

    def evaluate(self, table, calibration):
        return {}

    def figures(self, table, metrics, folder):
        return []


def note(what: str, value) -> None:
    """Write down what happened on this rank, in the order it did."""
    with open(os.environ["NOTES"], "a", encoding="utf-8") as stream:
        stream.write(json.dumps([what, value]) + "\n")


class Stopped(Exception):
    """The machine went away."""


@dataclass(frozen=True)
class Rank(LoneWorker):
    """A rank of a group without Ray Train: rank 0 saves; the whole group stops after `saves`."""

    saves: int = 1_000_000

    def save(self, stage, position, tensors):
        super().save(stage, position, tensors)
        self.largest(0)
        object.__setattr__(self, "saves", self.saves - 1)
        if self.saves == 0:
            raise Stopped


@dataclass(frozen=True)
class Job:
    """A training; ``A+B`` goes on in the folder of ``A``."""

    name: str
    recipe: LineRecipe
    saves: int = 1_000_000
    planned: int = 1

    @property
    def run(self) -> str:
        return "run-" + self.name.partition("+")[0]


def one_rank(
    rank: int, world: int, folder: str, meeting: int, table, jobs: list[Job], tracked
) -> None:
    torch.set_num_threads(1)
    features._BATCH_ROWS, features._BLOCK_BATCHES = 16, 2  # of these few rows a part for each
    if world > 1:
        store = f"file://{folder}/meeting-{meeting}"
        dist.init_process_group("gloo", store, rank=rank, world_size=world)
    for job in jobs:
        os.environ["NOTES"] = f"{folder}/{job.name}.rank-{rank}"
        Path(os.environ["NOTES"]).touch()
        family = LineFamily(job.recipe, DataInfo("c", "spectrum", (), {}, "f"))
        worker = Rank(
            rank=rank, world_size=world, device=torch.device("cpu"), seed=job.recipe.seed,
            run_uri=f"{folder}/{job.run}", tracking_uri=tracked[0], run_id=tracked[1],
            saves=job.saves, planned=job.planned,
        )  # fmt: skip
        with contextlib.suppress(Stopped, ConfigError):
            files, stages = worker.files, family.stages()
            done = [stage.name for stage in stages if files.finished(stage.name)]
            loop.run_stages(worker, family, table, StageGraph(stages, done))
            if rank == 0:
                history, _ = files.history(stage.name for stage in stages)
                Path(folder, f"{job.name}.history").write_text(json.dumps(history))


def line_table(home: Path) -> PreparedTable:
    rows = TRAIN + VALIDATION
    rng = np.random.default_rng(3)
    x = rng.normal(size=(rows, PIXELS)).astype(np.float32)
    columns = {
        "observation_id": np.array([f"o{i}" for i in range(rows)], dtype=object),
        "x": x, "y": x @ rng.normal(size=PIXELS).astype(np.float32),
        "row": np.arange(rows), "label": (np.arange(rows) % 3 > 0).astype(np.int64),
    }  # fmt: skip
    uri = str(home / "prepared" / "line.lance")
    splits = {"train": [0, TRAIN], "validation": [TRAIN, rows]}
    about = {"splits": splits, "card": "c", "data": "d", "fingerprint": "f", "version": 1,
             "recipe": "line/line"}  # fmt: skip
    publish(uri, [write_batches(uri, lambda: iter([columns]), rows)], about)
    return PreparedTable(uri)


def recipe(
    batch: int = 16, memory_bytes: int = 0, every: int | None = None, lr: float = 1e-2,
    warmup: float = 0.0, **options,
) -> LineRecipe:  # fmt: skip
    train = TrainConfig(
        batch_size=batch, epochs=3, checkpoint_seconds=1e9, memory_bytes=memory_bytes,
        checkpoint_every_steps=every, **options,
        optimizer=OptimizerConfig(lr=lr, schedule="cosine", warmup_epochs=warmup),
    )  # fmt: skip
    return LineRecipe(train=train)


# Saves that a run of two workers sees before it stops, and the steps it has done by then: inside an
# epoch of the first stage (5 steps each), and of the second (7 steps).
STOPS = {2: 8, 6: 25}


@dataclass
class Trained:
    """Trainings of one table by groups of processes of three sizes."""

    folder: Path
    table: PreparedTable

    def history(self, name: str) -> list[dict]:
        return json.loads((self.folder / f"{name}.history").read_text())

    def noted(self, name: str, what: str) -> list[list]:
        """Return what each rank has written down."""
        files = sorted(self.folder.glob(f"{name}.rank-*"))
        lines = [[json.loads(line) for line in file.read_text().splitlines()] for file in files]
        return [[value for kind, value in rank if kind == what] for rank in lines]

    def batches(self, name: str) -> list[set[int]]:
        """Return the rows of every global batch, in the order of the steps."""
        ranks = self.noted(name, "batch")
        assert len({len(rank) for rank in ranks}) == 1
        return [set().union(*parts) for parts in zip(*ranks, strict=True)]

    def weights(self, name: str) -> dict[str, torch.Tensor]:
        files = sorted((self.folder / f"run-{name}" / "stages").glob("*.safetensors"))
        assert len(files) == 2
        return {f"{f.stem}/{k}": v for f in files for k, v in load_file(f).items()}


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Iterator[Trained]:
    folder = tmp_path_factory.mktemp("trained")
    often = recipe(every=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SKYRAY_HOME", str(folder / "home"))
        tracked = tracking.tracking_uri(), tracking.start_run("line", "line", {}, {})
        table = line_table(folder / "home")

        meetings = itertools.count()

        def start(world: int, *jobs: Job) -> None:
            arguments = (world, str(folder), next(meetings), table, list(jobs), tracked)
            torch.multiprocessing.start_processes(
                one_rank, arguments, nprocs=world, start_method="forkserver"
            )

        start(
            2, Job("two", recipe()), Job("again", recipe()), Job("two-small", recipe(batch=2)),
            *(Job(f"stop{n}", often, n) for n in STOPS),
            Job("each", recipe(batch_rule="per_worker", batch=8), planned=2),
            Job("twice", recipe(lr=2e-2, warmup=2.0)),
            Job("norms", recipe(sync_norms=True)),
        )  # fmt: skip
        for stop in STOPS:
            for world in (1, 2, 3):
                shutil.copytree(folder / f"run-stop{stop}", folder / f"run-stop{stop}by{world}")
        start(2, *(Job(f"stop{n}by2+", often) for n in STOPS))
        start(
            1, Job("one", recipe()), Job("one-small", recipe(batch=2)),
            Job("memory", recipe(memory_bytes=1 << 30)),
            *(Job(f"stop{n}by1+", often) for n in STOPS),
        )  # fmt: skip
        start(
            3, Job("three", recipe()), Job("three-small", recipe(batch=2)),
            *(Job(f"stop{n}by3+", often) for n in STOPS),
        )  # fmt: skip
        yield Trained(folder, table)


NUMBERS = ("train_loss", "validation_loss", "train_mae", "validation_mae", "lr", "train_rows")


def same_history(ours: list[dict], theirs: list[dict]) -> None:
    assert [(row["stage"], row["epoch"]) for row in ours] == [
        (row["stage"], row["epoch"]) for row in theirs
    ]
    for name in NUMBERS:
        a, b = ([row[name] for row in history] for history in (ours, theirs))
        np.testing.assert_allclose(a, b, rtol=1e-5, err_msg=name)


def same_weights(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, values in theirs.items():
        torch.testing.assert_close(ours[name], values, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("world", ["two", "three"])
@pytest.mark.parametrize("batch", ["", "-small"])
def test_any_number_of_workers_trains_alike(world, batch, trained):
    """Of small batches, of two rows, three workers have one or none each."""
    alone = trained.history(f"one{batch}")
    assert [row["stage"] for row in alone] == ["whole"] * 3 + ["head"] * 3
    assert alone[0]["train_rows"] == np.sum(np.arange(TRAIN) % 3 > 0)
    assert alone[3]["train_rows"] == TRAIN
    assert alone[5]["validation_rows"] == VALIDATION
    same_history(trained.history(world + batch), alone)
    same_weights(trained.weights(world + batch), trained.weights(f"one{batch}"))
    assert trained.batches(world + batch) == trained.batches(f"one{batch}")


def test_memory_and_disk_train_alike(trained):
    for name in NUMBERS:
        memory, disk = ([row[name] for row in trained.history(n)] for n in ("memory", "one"))
        assert memory == disk


@pytest.mark.parametrize("stop", STOPS)
@pytest.mark.parametrize("world", [1, 2, 3])
def test_training_goes_on_with_another_number_of_workers(stop, world, trained):
    """Two workers stop inside an epoch, of the first and of the second stage; others go on."""
    begun = f"stop{stop}"
    assert not (trained.folder / f"{begun}.history").exists()
    same_history(trained.history(f"{begun}by{world}+"), trained.history("one"))
    same_weights(trained.weights(f"{begun}by{world}"), trained.weights("one"))
    done, later = trained.batches(begun), trained.batches(f"{begun}by{world}+")
    assert len(done) == STOPS[stop]
    assert done + later == trained.batches("one")


def test_a_batch_for_each_worker_is_a_larger_one_at_a_larger_rate(trained):
    """Eight rows for each of two are sixteen for both, at twice the rate, with a warm-up."""
    assert trained.batches("each") == trained.batches("one")
    same_history(trained.history("each"), trained.history("twice"))


def test_norms_over_all_workers_are_refused_without_cuda(trained):
    """At the first stage; nothing is trained."""
    assert not (trained.folder / "norms.history").exists()
    assert trained.batches("norms") == []


def test_features_are_made_by_all_workers_once(trained):
    parts = [sum(rank) for rank in trained.noted("two", "features")]
    assert sum(parts) == TRAIN + VALIDATION
    assert min(parts) > 40
    assert trained.noted("again", "features") == [[], []]  # the same frozen weights
    assert sum(map(sum, trained.noted("two-small", "features"))) == TRAIN + VALIDATION


def test_features_hold_what_the_frozen_part_gives_and_no_more(trained, monkeypatch):
    monkeypatch.setenv("SKYRAY_HOME", str(trained.folder / "home"))
    made = [info for info in prepared_tables() if "stage head" in info.made_for]
    assert {info.rows for info in made} == {TRAIN + VALIDATION}
    x = torch.tensor(trained.table.to_columns(None, ["x"])["x"])
    hidden = []
    for info in made:
        found = PreparedTable(info.uri).to_columns()
        assert list(found) == ["observation_id", "hidden"]  # y and row are read where they were
        assert found["observation_id"].tolist() == [f"o{i}" for i in range(len(x))]
        hidden.append(torch.tensor(found["hidden"]))
    for name in ("one", "two", "three"):
        expected = frozen_layer(trained.weights(name), x)
        assert any(torch.allclose(found, expected, atol=1e-6) for found in hidden)


def frozen_layer(weights: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    base = nn.Linear(PIXELS, 5)
    base.load_state_dict({k: weights[f"whole/base.{k}"] for k in ("weight", "bias")})
    return torch.tanh(base(x)).detach()


def test_stage_prepares_on_its_training_rows(trained):
    weights = trained.weights("two")
    x = torch.tensor(trained.table.to_columns("train", ["x"])["x"])
    expected = frozen_layer(weights, x).mean(0)
    torch.testing.assert_close(weights["head/mean"], expected, rtol=1e-5, atol=1e-6)


def test_frozen_state_is_what_a_stage_does_not_train():
    family = LineFamily(recipe(), DataInfo("c", "spectrum", (), {}, "f"))
    whole, head = family.stages()
    model = family.build_model()
    assert set(frozen_state(whole, model)) == {"mean"}
    assert set(frozen_state(head, model)) == {"base.weight", "base.bias", "mean"}
