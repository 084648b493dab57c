"""Learning rates: schedules, warm-up, groups."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from skyray.families.base import OptimizerConfig, TrainConfig, load_recipe
from skyray.training.optimizers import Schedule, learning_rate, make_optimizer


def rates(config: OptimizerConfig, epochs: int, steps: int, losses=()) -> list[float]:
    """Return the rate of every step."""
    optimizer = make_optimizer(config, nn.Linear(2, 2))
    schedule = Schedule(config, optimizer, epochs, steps)
    found = []
    for epoch in range(epochs):
        for _ in range(steps):
            found.append(learning_rate(optimizer))
            optimizer.step()
            schedule.after_step()
        schedule.after_epoch(losses[epoch] if epoch < len(losses) else 0.0)
    return found


def test_warm_up_then_cosine_ends_at_a_hundredth():
    config = OptimizerConfig(lr=0.1, schedule="cosine", warmup_epochs=1)
    found = rates(config, 5, 10)
    assert found[0] == pytest.approx(0.001)
    assert found[10] == pytest.approx(0.1)
    assert found[30] == pytest.approx(0.1 * (0.01 + 0.99 * 0.5), rel=1e-6)  # half-way
    assert found[-1] < 0.0012


def test_plateau_warms_up_too_and_falls_when_nothing_is_gained():
    config = OptimizerConfig(lr=0.1, schedule="plateau", patience=1, warmup_epochs=2)
    found = rates(config, 8, 5, losses=[1.0] * 8)
    assert found[0] == pytest.approx(0.001)
    assert found[10] == pytest.approx(0.1)
    assert found[-1] < 0.06


def test_schedule_state_survives():
    config = OptimizerConfig(lr=0.1, schedule="plateau", warmup_epochs=2)

    def made():
        optimizer = make_optimizer(config, nn.Linear(2, 2))
        return optimizer, Schedule(config, optimizer, 4, 5)

    (one, first), (other, second) = made(), made()
    for _ in range(7):
        first.after_step()
    second.load_state_dict(first.state_dict())
    other.load_state_dict(one.state_dict())
    first.after_step()
    second.after_step()
    assert learning_rate(one) == pytest.approx(learning_rate(other))


def test_only_what_learns_is_optimised_each_at_its_own_rate():
    part = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    part[0].requires_grad_(False)
    config = OptimizerConfig(lr=0.1, schedule="onecycle")
    optimizer = make_optimizer(config, part, lambda name: 0.01 if name.startswith("1.") else 1.0)
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert held == {id(p) for p in [*part[1].parameters(), *part[2].parameters()]}
    schedule = Schedule(config, optimizer, 2, 5)
    peak = [0.0, 0.0]
    for _ in range(10):
        for group, values in enumerate(optimizer.param_groups):
            peak[group] = max(peak[group], float(values["lr"]))
        optimizer.step()
        schedule.after_step()
    assert min(peak) == pytest.approx(0.01 * max(peak), rel=0.05)
    assert max(peak) == pytest.approx(0.1, rel=0.05)
    assert isinstance(optimizer, torch.optim.Adam)


def test_each_worker_keeps_its_batch_where_the_recipe_says_so():
    recipe = load_recipe("morphology/sdss_xception").override(
        [f"{name}.batch_rule=per_worker" for name in ("train_head", "train_middle", "train")]
    )
    for phase in (recipe.train_head, recipe.train_middle, recipe.train):
        scaled = phase.for_workers(64)
        assert scaled.batch_size == 16 * 64
        assert scaled.optimizer.lr == pytest.approx(64e-4)
        assert scaled.optimizer.warmup_epochs == 2
        assert phase.for_workers(1) is phase
    shared = TrainConfig()
    assert shared.for_workers(64) is shared
