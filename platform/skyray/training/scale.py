"""How much of a cluster a training takes; checked when it is said, before Ray is started."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Self

from skyray.config import ConfigError


@dataclass(frozen=True)
class Scale:
    """How much of a cluster a training takes; see `skyray.training.train.train`.

    Attributes
    ----------
    workers, min_workers : int
        Of a group, and how many of them it goes on with where there are no more.
    gpus : float
        GPUs a worker; 0 to train on CPUs.
    threads : int, optional
        CPU threads a worker; default: its share of its machine.
    side_by_side : int, optional
        Stages at once, at most.

    Raises
    ------
    ConfigError
        If a number cannot be, or they do not fit together.
    """

    workers: int = 1
    min_workers: int = 1
    gpus: float = 0.0
    threads: int | None = None
    side_by_side: int | None = None

    @classmethod
    def asked(
        cls,
        workers: int,
        min_workers: int | None,
        use_gpu: bool,
        gpus: float | None,
        threads: int | None = None,
        side_by_side: int | None = None,
    ) -> Self:
        """Return what a person asks for, who leaves out what is usual.

        Raises
        ------
        ConfigError
            Also if GPUs are asked for and refused at once.
        """
        if gpus is not None and use_gpu != (gpus > 0):
            expected = "a number above 0 with --gpu" if use_gpu else "--gpu beside it"
            raise ConfigError(f"gpus-per-worker: expected {expected}, found {gpus:g}")
        share = (1.0 if gpus is None else gpus) if use_gpu else 0.0
        least = workers if min_workers is None else min_workers
        return cls(workers, least, share, threads, side_by_side)

    def __post_init__(self) -> None:
        for name in ("workers", "threads", "side_by_side"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name}: expected 1 or more, found {value}")
        if not 1 <= self.min_workers <= self.workers:
            raise ConfigError(
                f"min_workers: expected 1 to {self.workers} (workers), found {self.min_workers}"
            )
        share = self.gpus
        if not (0 <= share <= 1 or (math.isfinite(share) and share > 1 and share == int(share))):
            raise ConfigError(
                f"gpus-per-worker: expected a share of one, or whole ones, found {share:g}"
            )
        if 0 < share < 1 < self.workers:
            raise ConfigError(
                f"gpus-per-worker: expected whole GPUs for {self.workers} workers of one group, "
                f"found {share:g}: NCCL lets no two of them share one"
            )

    @property
    def per_worker(self) -> dict[str, float]:
        """Resources that Ray keeps for a worker."""
        return {"CPU": 1, **({"GPU": self.gpus} if self.gpus else {})}

    @property
    def least_gpus(self) -> int:
        """GPUs without which no group starts."""
        return math.ceil(self.min_workers * self.gpus)
