"""What data-parallel training costs on N workers: a model of one epoch, and its prediction.

An epoch of ``rows`` images on N workers of ``batch`` images each takes

    rows / (N · batch) · (compute + input + exposed communication(N)) + per_epoch

Gradients are averaged by a ring all-reduce: 2 (N − 1)/N · bytes / bandwidth + 2 (N − 1) · latency
(Patarasuk & Yuan 2009). DDP and Horovod send gradients while the backward pass still runs, so only
what exceeds `overlap` · compute is exposed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

# Khan et al. 2019 (arXiv:1812.02183), Table III: GPUs (K80) → seconds an epoch, 36,620 images,
# batch 16 a GPU: head alone, from layer 40 on, from layer 2 on.
PUBLISHED_ROWS = 36_620
PUBLISHED_BATCH = 16
PUBLISHED_EPOCHS: dict[int, tuple[float, float, float]] = {
    1: (410, 922, 1626),
    2: (231, 481, 830),
    4: (119, 246, 427),
    8: (64, 124, 214),
    16: (35, 63, 109),
    32: (20, 31, 53),
    64: (13, 15, 27),
}
# "4 h 44 m" … "8 m" of all stages; they differ in their number of epochs.
PUBLISHED_MINUTES: dict[int, float] = {1: 284, 2: 107, 4: 72, 8: 42, 16: 36, 32: 14, 64: 8}


@dataclass(frozen=True)
class CostModel:
    """What one step costs, in seconds, and what the network between the workers can do.

    Attributes
    ----------
    compute_s : float
        Forward, backward and optimiser of one worker's batch.
    input_s : float
        Fetching that batch, where it is not hidden behind the computation.
    gradient_bytes : float
        Sent by every worker in every step.
    bandwidth_bytes_s, latency_s : float
        Of one link.
    per_epoch_s : float
        Validation, checkpoint and log, once an epoch; independent of N.
    overlap : float
        Share of the computation behind which communication hides, 0–1.
    """

    rows: int
    batch: int
    compute_s: float
    gradient_bytes: float
    bandwidth_bytes_s: float
    latency_s: float = 0.0
    input_s: float = 0.0
    per_epoch_s: float = 0.0
    overlap: float = 0.5

    def communication_s(self, workers: int) -> float:
        """Return the seconds of one ring all-reduce."""
        if workers == 1:
            return 0.0
        volume = 2 * (workers - 1) / workers * self.gradient_bytes
        return volume / self.bandwidth_bytes_s + 2 * (workers - 1) * self.latency_s

    def exposed_s(self, workers: int) -> float:
        """Return the seconds of a step that wait for communication."""
        return max(0.0, self.communication_s(workers) - self.overlap * self.compute_s)

    def steps(self, workers: int) -> int:
        return math.ceil(self.rows / (workers * self.batch))

    def epoch_s(self, workers: int) -> float:
        """Return the seconds of one epoch."""
        step = self.compute_s + self.input_s + self.exposed_s(workers)
        return self.steps(workers) * step + self.per_epoch_s

    def speed_up(self, workers: int) -> float:
        return self.epoch_s(1) / self.epoch_s(workers)

    def efficiency(self, workers: int) -> float:
        """Return the speed-up over N."""
        return self.speed_up(workers) / workers

    def limit(self) -> int:
        """Return the number of workers beyond which less than half of each works for the epoch."""
        workers = 1
        while self.efficiency(2 * workers) >= 0.5 and workers < 1 << 16:
            workers *= 2
        return workers

    def on(self, **changes: float) -> CostModel:
        """Return the model of other hardware or data."""
        return replace(self, **changes)


def fit_published(stage: int = 2) -> CostModel:
    """Return the cost model of the paper's K80s, from its one- and sixty-four-GPU epochs.

    Two numbers are fitted, the computation of a step and a cost a epoch that does not shrink with
    N; the other five rows of Table III test the model.

    Parameters
    ----------
    stage : int
        0, 1 or 2: head, from layer 40, from layer 2.
    """
    one, many = PUBLISHED_EPOCHS[1][stage], PUBLISHED_EPOCHS[64][stage]
    probe = CostModel(PUBLISHED_ROWS, PUBLISHED_BATCH, 1.0, 0.0, 1.0)
    step = (one - many) / (probe.steps(1) - probe.steps(64))
    return probe.on(compute_s=step, per_epoch_s=one - step * probe.steps(1))


def speed_ups(seconds: Mapping[int, float]) -> dict[int, float]:
    """Return the speed-up of every number of workers over the smallest one."""
    base = min(seconds)
    return {workers: base * seconds[base] / value for workers, value in sorted(seconds.items())}
