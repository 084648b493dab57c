"""Optimiser and learning-rate schedule of a stage, from torch's own."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn, optim
from torch.optim import lr_scheduler

from skyray.families.base import OptimizerConfig


def make_optimizer(
    config: OptimizerConfig,
    part: nn.Module,
    lr_factor: Callable[[str], float] | None = None,
) -> optim.Optimizer:
    """Return the optimiser a stage asks for, over the parameters of `part` that learn.

    Parameters with the same `lr_factor` form a group with that multiple of the learning rate.
    Updates are fused: with torch's default, one pass an operation, an Adam step of 20 million
    parameters takes 5 × as long on a processor.
    """
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in part.named_parameters():
        if parameter.requires_grad:
            groups.setdefault(lr_factor(name) if lr_factor else 1.0, []).append(parameter)
    options = [
        {"params": parameters, "lr": config.lr * factor} for factor, parameters in groups.items()
    ]
    if config.name == "sgd":
        return optim.SGD(
            options, lr=config.lr, momentum=0.9, weight_decay=config.weight_decay, fused=True
        )
    kind = optim.Adam if config.name == "adam" else optim.AdamW
    return kind(options, lr=config.lr, eps=config.eps, weight_decay=config.weight_decay, fused=True)


class Schedule:
    """A learning-rate schedule, stepped once a training step unless `advance` says otherwise.

    ``plateau`` is stepped once an epoch, with the validation loss.

    Parameters
    ----------
    config : OptimizerConfig
    optimizer : torch optimiser
    epochs, steps_per_epoch : int
        Length of the stage; cosine and one-cycle schedules end with it.
    """

    def __init__(
        self, config: OptimizerConfig, optimizer: optim.Optimizer, epochs: int, steps_per_epoch: int
    ):
        total = max(1, epochs * steps_per_epoch)
        warmup = min(round(config.warmup_epochs * steps_per_epoch), total - 1)
        self._needs_loss = config.schedule == "plateau"
        self._by_epoch = self._needs_loss or config.advance == "epoch"
        match config.schedule:
            case "constant":
                main = lr_scheduler.ConstantLR(optimizer, factor=1.0)
            case "step":
                size = max(1, round(config.step_epochs * steps_per_epoch))
                main = lr_scheduler.StepLR(optimizer, size, config.step_factor)
            case "cosine":
                length = max(1, total - warmup)
                main = lr_scheduler.LambdaLR(optimizer, lambda step: _cosine(step / length))
            case "onecycle":
                main = lr_scheduler.OneCycleLR(
                    optimizer, [group["lr"] for group in optimizer.param_groups], total + 1
                )
            case "plateau":
                main = lr_scheduler.ReduceLROnPlateau(
                    optimizer, factor=config.step_factor, patience=config.patience
                )
        self._rise: lr_scheduler.LinearLR | None = None  # beside a schedule that waits for losses
        if warmup and config.schedule != "onecycle":
            rise = lr_scheduler.LinearLR(optimizer, 0.01, total_iters=warmup)
            if self._needs_loss:
                self._rise = rise
            else:
                main = lr_scheduler.SequentialLR(optimizer, [rise, main], [warmup])
        self._scheduler, self._warmup = main, warmup

    def after_step(self) -> None:
        if not self._by_epoch:
            self._scheduler.step()
        elif self._rise and self._rise.last_epoch < self._warmup:
            self._rise.step()

    def after_epoch(self, loss: float) -> None:
        if self._needs_loss:
            self._scheduler.step(loss)
        elif self._by_epoch:
            self._scheduler.step()

    def state_dict(self) -> dict:
        rise = self._rise.state_dict() if self._rise else None
        return {"main": self._scheduler.state_dict(), "rise": rise}

    def load_state_dict(self, state: dict) -> None:
        self._scheduler.load_state_dict(state["main"])
        if self._rise and state["rise"]:
            self._rise.load_state_dict(state["rise"])


def _cosine(done: float) -> float:
    """Return the factor of the rate when a share `done` of the steps is over: from 1 to 0.01."""
    return 0.01 + 0.99 * 0.5 * (1.0 + math.cos(math.pi * min(done, 1.0)))


def learning_rate(optimizer: optim.Optimizer) -> float:
    """Return the current learning rate of the first parameter group."""
    rate = optimizer.param_groups[0]["lr"]
    return float(rate.item() if isinstance(rate, torch.Tensor) else rate)
