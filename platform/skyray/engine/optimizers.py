"""Optimiser and learning-rate schedule of a stage, from torch's own."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn, optim
from torch.optim import lr_scheduler

from skyray.families.base import OptimizerConfig


def make_optimizer(config: OptimizerConfig, parameters: Iterable[nn.Parameter]) -> optim.Optimizer:
    """Return the optimiser a stage asks for."""
    parameters = list(parameters)
    if config.name == "sgd":
        return optim.SGD(parameters, lr=config.lr, momentum=0.9, weight_decay=config.weight_decay)
    kind = optim.Adam if config.name == "adam" else optim.AdamW
    return kind(parameters, lr=config.lr, eps=config.eps, weight_decay=config.weight_decay)


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
                main = lr_scheduler.CosineAnnealingLR(
                    optimizer, max(1, total - warmup), eta_min=config.lr * 0.01
                )
            case "onecycle":
                main = lr_scheduler.OneCycleLR(optimizer, config.lr, total_steps=total + 1)
            case "plateau":
                main = lr_scheduler.ReduceLROnPlateau(
                    optimizer, factor=config.step_factor, patience=config.patience
                )
        if warmup and not self._needs_loss and config.schedule != "onecycle":
            rise = lr_scheduler.LinearLR(optimizer, 0.01, total_iters=warmup)
            main = lr_scheduler.SequentialLR(optimizer, [rise, main], [warmup])
        self._scheduler = main

    def after_step(self) -> None:
        if not self._by_epoch:
            self._scheduler.step()

    def after_epoch(self, loss: float) -> None:
        if self._needs_loss:
            self._scheduler.step(loss)
        elif self._by_epoch:
            self._scheduler.step()

    def state_dict(self) -> dict:
        return self._scheduler.state_dict()

    def load_state_dict(self, state: dict) -> None:
        self._scheduler.load_state_dict(state)


def learning_rate(optimizer: optim.Optimizer) -> float:
    """Return the current learning rate of the first parameter group."""
    rate = optimizer.param_groups[0]["lr"]
    return float(rate.item() if isinstance(rate, torch.Tensor) else rate)
