"""Configurations: frozen, typed, overridden by dotted keys, errors that name the key."""

from __future__ import annotations

import pytest
from pydantic import Field, ValidationError

from skyray.config import Config, ConfigError


class Optimizer(Config):
    lr: float = Field(1e-3, gt=0)
    betas: tuple[float, float] = (0.9, 0.999)


class Run(Config):
    name: str = "run"
    epochs: int = 5
    widths: tuple[int, ...] = (16, 32)
    limit: float | None = None
    optimizer: Optimizer = Optimizer()


def test_override_reads_types():
    run = Run().override(
        ["epochs=20", "optimizer.lr=1e-4", "widths=[8,16,32]", "name=second", "limit=null"]
    )
    assert (run.epochs, run.optimizer.lr, run.widths) == (20, 1e-4, (8, 16, 32))
    assert (run.name, run.limit) == ("second", None)
    assert run.override(["name="]).name == ""
    assert Run().epochs == 5


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("epochs", "expected key=value"),
        ("epoch=3", "unknown key 'epoch'.*epochs"),
        ("optimiser.lr=1", "no section 'optimiser'.*optimizer"),
        ("epochs.lr=1", "no section 'epochs'"),
        ("epochs=many", "epochs:.*'many'"),
        ("optimizer.lr=-1", r"optimizer\.lr:.*greater than 0"),
    ],
)
def test_override_errors_name_the_key(assignment, message):
    with pytest.raises(ConfigError, match=message):
        Run().override([assignment])


def test_unknown_keys_are_refused():
    with pytest.raises(ConfigError, match="ephocs"):
        Run.load({"ephocs": 3})


def test_frozen():
    with pytest.raises(ValidationError):
        Run().epochs = 3


def test_snapshot_round_trip_and_digest():
    run = Run().override(["optimizer.lr=0.01"])
    again = Run.load(run.snapshot())
    assert again == run
    assert again.digest() == run.digest()
    assert len(run.digest()) == 12
    assert run.digest() != Run().digest()
