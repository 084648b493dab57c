"""The one training loop. It runs on every worker of every family and knows only stages.

A stage trains one part of the model on its rows of the prepared table; every rank takes its share
of each global batch. Every so often, and when a machine is about to go away, rank 0 saves the part,
the best part so far, optimiser and schedule with the position (epoch, step). Batches are a pure
function of (seed, stage, epoch, step), and all other randomness is re-seeded at every step with the
rank as well; a resumed run therefore repeats exactly what an undisturbed one does.
"""

from __future__ import annotations

import json
import math
import re
import time
from typing import Any, Protocol

import torch
from torch import nn

from skyray.config import ConfigError
from skyray.data.prepared_tables import PreparedTable
from skyray.families.base import DataInfo, Family, Stage, Tensors, load_family
from skyray.runtime import tracking
from skyray.training.compiling import compiled
from skyray.training.features import stage_rows
from skyray.training.graph import END, WAIT, StageGraph
from skyray.training.loader import Batch, Rows, StageRows, batch_bounds, stream_seed
from skyray.training.optimizers import Schedule, learning_rate, make_optimizer
from skyray.training.worker import GroupWorker, Worker

PREPARE_ROWS = 100_000  # at most so many does a stage see before its first epoch
_POLL_SECONDS = 0.2  # of a lane that waits for a stage of another
# How often to look whether a save is due, in seconds and at most in steps; how long a step takes is
# measured over the first of an epoch.
_LOOK_SECONDS, _LOOK_STEPS, _TIMED_STEPS = 5.0, 1000, 8
_BESIDE = re.compile(r"_(seconds|rows)$").search  # in the history, and no curve
_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class StageLoss(nn.Module):
    """A stage's loss as one module, so that DDP sees a single forward whatever the part offers."""

    def __init__(self, part: nn.Module, stage: Stage):
        super().__init__()
        self.part = part
        self._loss = stage.loss

    def forward(self, batch: Tensors) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        return self._loss(self.part, batch)


def train_worker(config: dict[str, Any]) -> None:
    """Run stages on this rank of a group, as `skyray.training.train` configures it."""
    worker = GroupWorker.of_this_process(config)
    family_type = load_family(config["family"])
    family = family_type(
        family_type.recipe_type.load(config["recipe"]), DataInfo.from_dict(config["data"])
    )
    run_stages(worker, family, config["table"], config["graph"], config["lane"])


class Graph(Protocol):
    """What hands out stages: a `StageGraph` here, or one that several lanes share."""

    def take(self, lane: int) -> tuple[str, str]: ...
    def finish(self, lane: int) -> None: ...


def run_stages(
    worker: Worker, family: Family, table: PreparedTable, graph: Graph, lane: int = 0
) -> None:
    """Train one stage after another, as `graph` hands them out, until none is left to take."""
    torch.manual_seed(worker.seed)
    model = family.build_model()
    family.initialise(model)
    model.to(worker.device)
    rows = Rows(table)
    order = StageGraph(family.stages())
    stages = {stage.name: stage for stage in family.stages()}
    held = _Held(model, stages, order, worker)
    while True:
        told = worker.gather(_take(worker, graph, lane) if worker.leads else None)[0]
        if told[0] == WAIT:
            time.sleep(_POLL_SECONDS)
            continue
        if told[0] == END:
            break
        stage = stages[told[1]]
        if worker.leads:
            worker.wait(stage.name, "its rows to be read", 0, stage.train.epochs)
        held.bring(order.needs(stage.name))
        torch.manual_seed(stream_seed(worker.seed, stage.name, "begin"))
        model.eval().requires_grad_(False)
        here = stage_rows(rows, family, stage, model, worker)
        held.begin(stage.name)
        _StageRun(worker, stage, model, here).run()
        worker.largest(0)  # nobody goes on before its part is kept
        if worker.leads:
            graph.finish(lane)


def _take(worker: Worker, graph: Graph, lane: int) -> tuple[str, str]:
    """Return what to do; a stage whose part is kept is done, if its group was lost right after."""
    while True:
        what, name = graph.take(lane)
        if what in (WAIT, END) or not worker.files.finished(name):
            return what, name
        worker.end(name)
        graph.finish(lane)


class _Held:
    """The trained parts in the model: those that a stage builds on, and no others."""

    def __init__(
        self, model: nn.Module, stages: dict[str, Stage], order: StageGraph, worker: Worker
    ):
        self._model, self._stages, self._order, self._worker = model, stages, order, worker
        self._before: dict[str, dict[str, torch.Tensor] | None] = {}  # in the order they came in

    def bring(self, needed: list[str]) -> None:
        """Put the parts of the stages `needed` into the model, and take all others out."""
        common = 0
        for ours, theirs in zip(self._before, needed, strict=False):
            if ours != theirs:
                break
            common += 1
        for name in reversed(list(self._before)[common:]):
            if before := self._before.pop(name):
                self._stages[name].part(self._model).load_state_dict(before)
        for name in needed[common:]:
            self.begin(name)
            self._stages[name].part(self._model).load_state_dict(self._worker.files.part(name))

    def begin(self, name: str) -> None:
        """Remember a part as it is before its stage, unless it will stay in the model."""
        before = None
        if not self._order.outlives(name):
            state = self._stages[name].part(self._model).state_dict()
            before = {k: v.detach().to("cpu", copy=True) for k, v in state.items()}
        self._before[name] = before


def _accumulate(sums: dict[str, Any], metrics: dict[str, torch.Tensor], rows: int) -> None:
    """Add row-weighted metrics; they stay on the device, so that no step waits for the host."""
    if rows == 0:
        return
    for name, value in metrics.items():
        sums[name] = sums.get(name, 0.0) + value.detach().double() * rows
    sums["rows"] = sums.get("rows", 0.0) + rows


def with_synchronous_norms(part: nn.Module) -> None:
    """Replace all batch norms inside a part by ones over the rows of all workers, in place.

    Names, weights and buffers stay; in evaluation they do what the others do.
    """
    for name, child in part.named_children():
        setattr(part, name, nn.SyncBatchNorm.convert_sync_batchnorm(child))


class _StageRun:
    """One stage on one worker."""

    def __init__(
        self,
        worker: Worker,
        stage: Stage,
        model: nn.Module,
        rows: dict[str, StageRows],
    ):
        self.worker, self.stage = worker, stage
        self.position, self._saved = worker.restore(stage.name)
        self.train_rows, self.validation_rows = rows["train"], rows["validation"]
        self.config = stage.train.for_workers(worker.planned)
        self.steps = len(batch_bounds(len(self.train_rows), self.config.batch_size)) - 1
        self.part = stage.part(model)
        for name, parameter in self.part.named_parameters():
            parameter.requires_grad_(stage.trains is None or stage.trains(name))
        self.best: dict[str, torch.Tensor] | None = None
        self._left = False  # a save was made for a machine that goes away

    def run(self) -> None:
        saved, self._saved = self._saved, None
        if not len(self.train_rows):  # a class the data do not hold
            self.position.history.append({"stage": self.stage.name, "skipped": "no rows"})
            self._finish(self.part.state_dict())
            return
        if self.stage.prepare and not saved:
            seed = stream_seed(self.worker.seed, self.stage.name, "prepare")
            self.stage.prepare(self.part, self.train_rows.sample(PREPARE_ROWS, seed))
        self._prepare()
        if saved:
            self._load(saved)
            saved = None  # it holds a second copy of all
        if self.worker.leads:
            at = self.position.epoch
            self.worker.wait(self.stage.name, f"epoch {at + 1} to end", at, self.config.epochs)
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

    def _prepare(self) -> None:
        self.optimizer = make_optimizer(self.config.optimizer, self.part, self.stage.lr_factor)
        self.schedule = Schedule(
            self.config.optimizer, self.optimizer, self.config.epochs, self.steps
        )
        self.scaler = torch.amp.GradScaler(
            self.worker.device.type, enabled=self.config.precision == "fp16"
        )
        tf32 = self.config.precision == "tf32"
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
        if self.config.sync_norms and self.worker.world_size > 1:
            if self.worker.device.type != "cuda":
                raise ConfigError(
                    f"stage {self.stage.name}: sync_norms: expected CUDA workers (torch has no "
                    "SyncBatchNorm for CPUs), found CPUs; set it to false"
                )
            with_synchronous_norms(self.part)
        self.module: nn.Module = StageLoss(self.part, self.stage)
        if self.config.compile:
            self.module = compiled(self.module, self.worker.device)
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
        self.worker.save(self.stage.name, self.position, tensors)

    def _save_is_due(self) -> bool:
        """Return whether to save now; rank 0 decides for all. Once more before a machine goes."""
        leaving = self.worker.is_leaving()
        due = self.worker.pace.due(self.config.checkpoint_seconds) or (leaving and not self._left)
        self._left = leaving
        return bool(self.worker.largest(int(due and self.worker.leads)))

    def _look_every(self, seconds: float) -> int:
        """Return after how many steps of so many seconds to look again whether to save."""
        steps = int(_LOOK_SECONDS / max(seconds, 1e-6))
        return self.worker.largest(max(1, min(steps, _LOOK_STEPS)))

    def _seed(self, *more: int) -> int:
        at = (self.worker.seed, self.stage.name, self.position.epoch, *more)
        return stream_seed(*at)

    def _autocast(self):
        dtype = _AUTOCAST.get(self.config.precision)
        return torch.autocast(self.worker.device.type, dtype=dtype, enabled=dtype is not None)

    def _train_epoch(self) -> dict[str, float]:
        self.part.train()
        worker, position = self.worker, self.position
        resumed = position.step and worker.leads  # what was summed belongs to all, and counts once
        sums: dict[str, Any] = dict(position.epoch_sums) if resumed else {}
        every, begun, look = self.config.checkpoint_every_steps, time.monotonic(), 0
        timed = position.step + _TIMED_STEPS
        for batch in self.train_rows.batches(
            self.config.batch_size, worker.rank, worker.world_size, worker.device,
            seed=self._seed(), start=position.step,
        ):  # fmt: skip
            torch.manual_seed(self._seed(position.step, worker.rank))
            _accumulate(sums, self._step(batch), batch.rows)
            position.step += 1
            if position.step == timed:
                look = self._look_every((time.monotonic() - begun) / _TIMED_STEPS)
            due = every and position.step % every == 0
            if due or (look and position.step % look == 0 and self._save_is_due()):
                position.epoch_sums = self._totals(sums)
                self._save()
        return self._means(sums)

    def _step(self, batch: Batch) -> dict[str, torch.Tensor]:
        with self._autocast():
            loss, metrics = self.module(batch.tensors)
        self.optimizer.zero_grad(set_to_none=True)
        # DDP takes the plain mean over ranks: a rank counts by its rows, as in one process.
        weight = batch.rows * self.worker.world_size / batch.whole
        self.scaler.scale(loss if weight == 1.0 else loss * weight).backward()
        if self.config.clip_norm:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.part.parameters(), self.config.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.schedule.after_step()
        return {"loss": loss.detach(), **metrics}

    @torch.no_grad()
    def _validate(self) -> dict[str, float]:
        worker = self.worker
        worker.agree(self.part.buffers())  # running means of rank 0, as they are saved
        self.part.eval()
        sums: dict[str, Any] = {}
        loss_of = StageLoss(self.part, self.stage)
        for batch in self.validation_rows.batches(
            self.config.batch_size, worker.rank, worker.world_size, worker.device
        ):
            with self._autocast():
                loss, metrics = loss_of(batch.tensors)
            _accumulate(sums, {"loss": loss, **metrics}, batch.rows)
        return self._means(sums)

    def _totals(self, sums: dict[str, Any]) -> dict[str, float]:
        return self.worker.sum({name: float(value) for name, value in sums.items()})

    def _means(self, sums: dict[str, Any]) -> dict[str, float]:
        """Return means over all rows of all workers; NaN where there were none."""
        total = {"loss": math.nan, "rows": 0.0} | self._totals(sums)
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
        if self._save_is_due():
            self._save()

    def _log(self, row: dict[str, Any]) -> None:
        values = {k: v for k, v in row.items() if isinstance(v, float) and not _BESIDE(k)}
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
            self.worker.files.finish(self.stage.name, part, self.position)
            self.worker.end(self.stage.name)


def history_json(history: list[dict[str, Any]]) -> bytes:
    """Return the history of all epochs as JSON lines."""
    return "".join(json.dumps(row) + "\n" for row in history).encode()
