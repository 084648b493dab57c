"""What every recipe says: how a stage trains, and which of the paper's slips are repeated."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from skyray.config import Config

Mode = Literal["corrected", "as_published"]


class OptimizerConfig(Config):
    """Optimiser and learning-rate schedule of a stage."""

    name: Literal["adam", "adamw", "sgd"] = "adam"
    lr: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    eps: float = Field(1e-8, gt=0)
    schedule: Literal["constant", "step", "cosine", "onecycle", "plateau"] = "constant"
    advance: Literal["step", "epoch"] = Field(
        "step", description="when the schedule, sized in steps, moves on; 'epoch' is SPENDER's slip"
    )
    step_epochs: float = Field(5, gt=0, description="'step': epochs between two drops")
    step_factor: float = Field(0.5, gt=0, le=1, description="'step', 'plateau': factor of a drop")
    warmup_epochs: float = Field(0, ge=0, description="linear warm-up from 1 % of lr")
    patience: int = Field(2, ge=0, description="'plateau': epochs without gain before a drop")


class TrainConfig(Config):
    """What the engine needs to know about any training."""

    batch_size: int = Field(128, gt=0, description="rows of a batch; whose, says batch_rule")
    batch_rule: Literal["global", "per_worker"] = Field(
        "global",
        description="global: the workers share a batch; per_worker: each has one, and the learning "
        "rate grows with their number, with two warm-up epochs (Goyal et al. 2017)",
    )
    sync_norms: bool = Field(
        False, description="batch norms over all workers' rows (SyncBatchNorm, CUDA only)"
    )
    compile: bool = Field(
        False,
        description="torch.compile the step; needs a C++ compiler, and goes without where none is",
    )
    epochs: int = Field(50, gt=0)
    optimizer: OptimizerConfig = OptimizerConfig()
    precision: Literal["float32", "tf32", "bf16", "fp16"] = Field(
        "float32",
        description="autocast type; fp16 scales its gradients (CUDA only); tf32 is float32 with "
        "products of 10-bit mantissas (CUDA only)",
    )
    clip_norm: float | None = Field(None, description="gradient norm limit")
    early_stopping: int | None = Field(
        None, ge=1, description="epochs without gain before stopping"
    )
    checkpoint_seconds: float = Field(
        30.0, ge=0, description="save when the last save is this old, also inside an epoch"
    )
    checkpoint_every_steps: int | None = Field(
        None, description="also save inside an epoch, every so many steps"
    )
    memory_bytes: int = Field(
        1 << 30, ge=0,
        description="rows that take no more than this stay in a worker's memory; others are read "
        "batch by batch, in the same order",
    )  # fmt: skip

    def for_workers(self, workers: int) -> TrainConfig:
        """Return the configuration of a run that was planned for so many workers.

        With ``batch_rule=per_worker`` the global batch and the learning rate grow with them, with
        two warm-up epochs at least (Goyal et al. 2017, arXiv:1706.02677).
        """
        if self.batch_rule == "global" or workers == 1:
            return self
        warmup = max(2.0, self.optimizer.warmup_epochs)
        rate = {"lr": self.optimizer.lr * workers, "warmup_epochs": warmup}
        optimizer = self.optimizer.model_copy(update=rate)
        size = self.batch_size * workers
        return self.model_copy(update={"batch_size": size, "optimizer": optimizer})


class Recipe(Config):
    """The full configuration of a run; families derive theirs from it."""

    family: str
    name: str
    seed: int = 0
    mode: Mode = Field("corrected", description="default of every switch left at null")
    train: TrainConfig = TrainConfig()

    def switch(self, name: str) -> Mode:
        """Return a switch's value; null follows `mode`."""
        return getattr(self, name) or self.mode
