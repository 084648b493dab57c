"""The one training loop. It runs on every worker of every family and knows only stages.

A stage trains one part of the model on its rows of the shard. After each epoch (and inside epochs,
when asked) rank 0 saves the part, the best part so far, optimiser and schedule with the position
(stage, epoch, step). All randomness is re-seeded at every step as a pure function of (seed, stage,
epoch, step, rank); a resumed run therefore repeats exactly what an undisturbed one does.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from abc import ABC, abstractmethod
from typing import Any

import ray.train
import torch
import torch.distributed as dist
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import nn
from torch.distributed.algorithms.join import Join

from skyray.families.base import Columns, DataInfo, Family, Stage, Tensors, load_family
from skyray.runtime import places, tracking
from skyray.training import shards
from skyray.training.optimizers import Schedule, learning_rate, make_optimizer
from skyray.training.worker import GroupWorker, Position, Worker

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class StageLoss(nn.Module):
    """A stage's loss as one module, so that DDP sees a single forward whatever the part offers."""

    def __init__(self, part: nn.Module, stage: Stage):
        super().__init__()
        self.part = part
        self._loss = stage.loss

    def forward(self, batch: Tensors) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        return self._loss(self.part, batch)


def stage_file(run_uri: str, stage: Stage) -> str:
    """Return where the finished part of a stage is kept."""
    return places.join(run_uri, "stages", stage.name.replace("/", "--") + ".safetensors")


def train_worker(config: dict[str, Any]) -> None:
    """Run all stages on this rank of a group, as `skyray.training.train` configures it."""
    worker = GroupWorker.of_this_process(config)
    family_type = load_family(config["family"])
    family = family_type(
        family_type.recipe_type.load(config["recipe"]), DataInfo.from_dict(config["data"])
    )
    run_stages(worker, family, GroupRows(family.recipe.train.cache))


def run_stages(
    worker: Worker, family: Family, rows: TrainingRows, last: str | None = None
) -> Position:
    """Train a family's stages (up to `last`) from where the run stands; return where it ended."""
    torch.manual_seed(worker.seed)
    model = family.build_model()
    family.initialise(model)
    model.to(worker.device)
    position, saved = worker.restore()
    for number, stage in enumerate(family.stages()):
        if number < position.stage:
            part = load_tensors(places.read_bytes(stage_file(worker.run_uri, stage)))
            stage.part(model).load_state_dict(part)
            continue
        position.stage = number
        _StageRun(worker, stage, model, rows, position).run(saved)
        saved = None
        position = Position(stage=number + 1, history=position.history, resumed=position.resumed)
        if stage.name == last:
            break
    worker.save(position, None)
    return position


def _accumulate(sums: dict[str, Any], metrics: dict[str, torch.Tensor], rows: int) -> None:
    """Add row-weighted metrics; they stay on the device, so that no step waits for the host."""
    for name, value in metrics.items():
        sums[name] = sums.get(name, 0.0) + value.detach().double() * rows
    sums["rows"] = sums.get("rows", 0.0) + rows


class TrainingRows(ABC):
    """Where this rank's transformed rows come from: fetched once and kept in memory."""

    cache = True

    def __init__(self):
        self._kept: dict[str, tuple[Columns, Tensors]] = {}

    @abstractmethod
    def fetch(self, split: str) -> Columns:
        """Return all transformed rows of a split that are this rank's."""

    def shard(self, split: str, stage: Stage, model: nn.Module, device: torch.device):
        """Return the rows a stage uses, with its frozen features where it has any."""
        if split not in self._kept:
            columns = self.fetch(split)
            self._kept[split] = columns, shards.to_tensors(columns)
        columns, tensors = self._kept[split]
        cached = shards.CachedShard(tensors, shards.stage_rows(stage, columns))
        return cached.with_features(stage, model, device) if stage.features else cached


class GroupRows(TrainingRows):
    """The shards Ray Train gives this rank; streamed anew at every epoch unless `cache` is set."""

    def __init__(self, cache: bool):
        super().__init__()
        self.cache = cache

    def fetch(self, split: str) -> Columns:
        return shards.fetch(ray.train.get_dataset_shard(split))

    def shard(self, split: str, stage: Stage, model: nn.Module, device: torch.device):
        if self.cache:
            return super().shard(split, stage, model, device)
        return shards.StreamedShard(ray.train.get_dataset_shard(split), stage, model)


class _StageRun:
    """One stage on one worker."""

    def __init__(
        self,
        worker: Worker,
        stage: Stage,
        model: nn.Module,
        source: TrainingRows,
        position: Position,
    ):
        self.worker, self.stage, self.position = worker, stage, position
        model.eval().requires_grad_(False)
        self.train_rows = source.shard("train", stage, model, worker.device)
        self.validation_rows = source.shard("validation", stage, model, worker.device)
        self.cached = source.cache
        self.config = stage.train
        self.batch_size = max(1, self.config.batch_size // worker.world_size)
        self.part = stage.part(model)
        for name, parameter in self.part.named_parameters():
            parameter.requires_grad_(stage.trains is None or stage.trains(name))
        self.best: dict[str, torch.Tensor] | None = None

    def run(self, saved: dict[str, Any] | None) -> None:
        if self.cached and self._skip_or_refuse():
            self._finish(self.part.state_dict())
            return
        self.steps = self._steps_per_epoch()
        if self.stage.prepare and not saved:
            self._prepare_part()
        self._prepare()
        if saved:
            self._load(saved)
        ended = time.monotonic()
        while self.position.epoch < self.config.epochs and not self._should_stop():
            started = time.monotonic()
            if self.stage.at_epoch:
                self.stage.at_epoch(self.position.epoch)
            training = self._train_epoch()
            trained = time.monotonic()
            validation = self._validate()
            times = {
                "train_seconds": trained - started,
                "validation_seconds": time.monotonic() - trained,
                "between_seconds": started - ended,  # checkpoint and log of the epoch before
            }
            ended = time.monotonic()
            self._end_epoch(training, validation, times)
        best = self.best if self.stage.keep == "best" else None
        self._finish(best or self.part.state_dict())

    def _skip_or_refuse(self) -> bool:
        """Skip a stage without rows (a class the data do not hold); refuse a split too thin."""
        here = len(self.train_rows)
        if self.worker.largest(here) == 0:
            self.position.history.append({"stage": self.stage.name, "skipped": "no rows"})
            return True
        if self.worker.smallest(here) == 0:
            raise ValueError(
                f"stage {self.stage.name}: a worker has no training rows; expected at least one on "
                f"each of {self.worker.world_size}: use fewer workers or more data"
            )
        return False

    def _prepare_part(self) -> None:
        """Let the part look at the data it starts from; all ranks then hold what rank 0 saw."""
        if not self.cached:
            raise ValueError(f"stage {self.stage.name}: needs train.cache=true")
        self.stage.prepare(self.part, self.train_rows.selected())

    def _steps_per_epoch(self) -> int:
        if self.cached:
            return math.ceil(self.worker.largest(len(self.train_rows)) / self.batch_size)
        # Streamed batches are cut before a stage chooses its rows: this many, or one fewer.
        return self.worker.streamed_rows // (self.batch_size * self.worker.world_size) + 2

    def _prepare(self) -> None:
        self.optimizer = make_optimizer(self.config.optimizer, self.part, self.stage.lr_factor)
        self.schedule = Schedule(
            self.config.optimizer, self.optimizer, self.config.epochs, self.steps
        )
        self.scaler = torch.amp.GradScaler(
            self.worker.device.type, enabled=self.config.precision == "fp16"
        )
        self.module: nn.Module = StageLoss(self.part, self.stage)
        if self.worker.world_size > 1:
            ids = [self.worker.device] if self.worker.device.type == "cuda" else None
            self.module = nn.parallel.DistributedDataParallel(
                self.module, device_ids=ids, gradient_as_bucket_view=True
            )

    def _load(self, saved: dict[str, Any]) -> None:
        self.part.load_state_dict(saved["part"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.schedule.load_state_dict(saved["schedule"])
        self.scaler.load_state_dict(saved["scaler"])
        self.best = saved["best"]

    def _save(self) -> None:
        tensors = None
        if self.worker.leads:
            tensors = {
                "part": self.part.state_dict(),
                "best": self.best,
                "optimizer": self.optimizer.state_dict(),
                "schedule": self.schedule.state_dict(),
                "scaler": self.scaler.state_dict(),
            }
        self.worker.save(self.position, tensors)

    def _save_if_due(self) -> None:
        due = self.worker.leads and self.worker.pace.due(self.config.checkpoint_seconds)
        if self.worker.largest(int(due)):  # rank 0 decides for all
            self._save()

    def _seed(self, step: int) -> int:
        at = (self.worker.seed, self.stage.name, self.position.epoch, step, self.worker.rank)
        return shards.stream_seed(*at)

    def _batches(self):
        if self.cached:
            yield from self.train_rows.epoch(
                self._seed(-1), self.batch_size, self.steps, self.position.step, self.worker.device
            )
            return
        self.position.step = 0
        yield from self.train_rows.passes(self.batch_size, self.worker.device, self._seed(-1))

    def _autocast(self):
        dtype = _AUTOCAST.get(self.config.precision)
        return torch.autocast(self.worker.device.type, dtype=dtype, enabled=dtype is not None)

    def _train_epoch(self) -> dict[str, float]:
        self.part.train()
        sums: dict[str, Any] = dict(self.position.epoch_sums) if self.position.step else {}
        every = self.config.checkpoint_every_steps
        with self._uneven():
            for batch in self._batches():
                torch.manual_seed(self._seed(self.position.step))
                metrics = self._step(batch)
                _accumulate(sums, metrics, len(next(iter(batch.values()))))
                self.position.step += 1
                if every and self.cached and self.position.step % every == 0:
                    self.position.epoch_sums = {k: float(v) for k, v in sums.items()}
                    self._save()
        return self._means(sums, expect=not self.cached)

    def _uneven(self):
        """Let streaming ranks run out of batches one by one; cached ranks have equally many."""
        if self.cached or self.worker.world_size == 1:
            return contextlib.nullcontext()
        return Join([self.module])

    def _step(self, batch: Tensors) -> dict[str, torch.Tensor]:
        with self._autocast():
            loss, metrics = self.module(batch)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        if self.config.clip_norm:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.part.parameters(), self.config.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.schedule.after_step()
        return {"loss": loss.detach(), **metrics}

    @torch.no_grad()
    def _validate(self) -> dict[str, float]:
        self.part.eval()
        size = self.batch_size
        rows = self.validation_rows
        device = self.worker.device
        batches = rows.in_order(size, device) if self.cached else rows.passes(size, device)
        sums: dict[str, Any] = {}
        loss_of = StageLoss(self.part, self.stage)
        for batch in batches:
            with self._autocast():
                loss, metrics = loss_of(batch)
            _accumulate(sums, {"loss": loss, **metrics}, len(next(iter(batch.values()))))
        return self._means(sums, expect=True)

    def _means(self, sums: dict[str, Any], expect: bool = False) -> dict[str, float]:
        """Return means over all rows of all workers; NaN where there were none."""
        names = sorted({"loss", "rows", *sums})
        if expect and self.worker.world_size > 1:  # a rank without validation rows knows no names
            gathered: list[list[str]] = [[] for _ in range(self.worker.world_size)]
            dist.all_gather_object(gathered, names)
            names = sorted({name for part in gathered for name in part})
        total = self.worker.sum({name: float(sums.get(name, 0.0)) for name in names})
        rows = total.pop("rows")
        return {k: v / rows if rows else math.nan for k, v in total.items()} | {"rows": rows}

    def _end_epoch(self, training, validation, times: dict[str, float]) -> None:
        position = self.position
        value = validation.get(self.stage.monitor, math.nan)
        if math.isnan(value):  # no validation rows: judge by the training loss
            value = training.get(self.stage.monitor, training["loss"])
        sign = 1.0 if self.stage.better == "min" else -1.0
        if math.isnan(position.best_value) or sign * value < sign * position.best_value:
            position.best_value, position.best_epoch = value, position.epoch
            self.best = {k: v.detach().clone() for k, v in self.part.state_dict().items()}
        self.schedule.after_epoch(value * sign)
        row: dict[str, Any] = {"stage": self.stage.name, "epoch": position.epoch}
        row |= {f"train_{k}": v for k, v in training.items()}
        row |= {f"validation_{k}": v for k, v in validation.items()}
        row |= {"lr": learning_rate(self.optimizer), **times}
        position.history.append(row)
        if self.worker.leads:
            self._log(row)
        position.epoch, position.step, position.epoch_sums = position.epoch + 1, 0, {}
        if not math.isfinite(training["loss"]):
            raise FloatingPointError(
                f"stage {self.stage.name}, epoch {row['epoch']}: training loss is "
                f"{training['loss']}; lower the learning rate or set train.clip_norm"
            )
        self._save_if_due()

    def _log(self, row: dict[str, Any]) -> None:
        values = {k: v for k, v in row.items() if isinstance(v, float)}
        metrics = {f"{self.stage.name}/{k}": v for k, v in values.items()}
        tracking.log_metrics(self.worker.tracking_uri, self.worker.run_id, metrics, row["epoch"])
        monitor = f"validation_{self.stage.monitor}"
        note = f"loss {row['train_loss']:.4f}, {monitor} {row.get(monitor, math.nan):.4f}"
        self.worker.show(row, self.config.epochs, note)

    def _should_stop(self) -> bool:
        patience = self.config.early_stopping
        waited = self.position.epoch - 1 - self.position.best_epoch
        return patience is not None and waited >= patience

    def _finish(self, part: dict[str, torch.Tensor]) -> None:
        """Keep the best part: in the model for later stages, in storage for resuming."""
        self.part.load_state_dict(part)
        if self.worker.leads:
            tensors = {k: v.detach().cpu().contiguous() for k, v in part.items()}
            places.write_bytes(stage_file(self.worker.run_uri, self.stage), save_tensors(tensors))


def history_json(history: list[dict[str, Any]]) -> bytes:
    """Return the history of all epochs as JSON lines."""
    return "".join(json.dumps(row) + "\n" for row in history).encode()
