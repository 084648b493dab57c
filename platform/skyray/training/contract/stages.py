"""Contracts of training: the model, and each stage as the loop runs it, for one step."""

from __future__ import annotations

import itertools
import math

import numpy as np
import torch
from torch import nn

from skyray.families.base import Stage, Tensors, TrainConfig
from skyray.training.contract.case import Asked, Case
from skyray.training.graph import StageGraph
from skyray.training.optimizers import make_optimizer

_SEED = 7


def build(case: Case) -> nn.Module:
    """Return the example's untrained model as a training starts with it."""
    torch.manual_seed(_SEED)
    family = case.family()
    model = family.build_model()
    family.initialise(model)
    return model


def check_model(case: Case) -> None:
    """The model is a module whose start follows torch's seed alone."""
    with case.checking("build_model"):
        first, again = build(case), build(case)
        case.require(isinstance(first, nn.Module), "a torch module", type(first).__name__)
        ours, theirs = first.state_dict(), again.state_dict()
        differ = [name for name in ours if not torch.equal(ours[name], theirs[name])]
        case.require(not differ, "the same weights under the same seed", f"others in {differ[:3]}")
        _require_finite(case, first)


def train_one_step(case: Case) -> nn.Module:
    """Check every stage, in order, on one model; return it after one step of each."""
    with case.checking("stages"):
        family = case.family()
        stages = family.stages()
        names = [stage.name for stage in stages]
        case.require(len(names) > 0, "one stage at least", "none")
        case.require(len(set(names)) == len(names), "unique names", names)
    model, metrics = build(case), {}
    _check_graph(case, stages, model)
    for stage in stages:
        metrics[stage.name] = _check_stage(case, stage, model)
    with case.checking("objective"):
        aim = family.objective()
        case.require(aim.stage in metrics, f"one of the stages {names}", repr(aim.stage))
        known = sorted(metrics[aim.stage])
        case.require(aim.metric in known, f"a metric of stage {aim.stage}: {known}", aim.metric)
        case.require(aim.better in ("min", "max"), "better: min or max", repr(aim.better))
    return model


def _check_graph(case: Case, stages: list[Stage], model: nn.Module) -> None:
    """Stages that may run side by side train parts that share nothing."""
    with case.checking("stages: after"):
        graph = StageGraph(stages)
        parts = {}
        for stage in stages:
            part = stage.part(model)
            parts[stage.name] = {id(v) for v in (*part.parameters(), *part.buffers())}
        for first, second in itertools.combinations(graph.names, 2):
            if first not in graph.needs(second):
                shared = parts[first] & parts[second]
                expected = f"{second} after {first}, or parts that share nothing"
                case.require(not shared, expected, f"{len(shared)} tensors of both")


def _check_stage(case: Case, stage: Stage, model: nn.Module) -> set[str]:
    """Run a stage for one step as the loop does; return the names of its validation metrics."""
    about = f"stage {stage.name}"
    model.eval().requires_grad_(False)
    with case.checking(f"{about}: rows"):
        batch = _stage_batch(case, stage)
    if stage.features:
        with case.checking(f"{about}: features"):
            batch = _features(case, stage, model, batch)
    if stage.arrange:
        with case.checking(f"{about}: arrange"):
            more = stage.arrange(batch)
            case.require(not set(more) & set(batch), "names of its own", sorted(more))
            batch = {**batch, **more}
    with case.checking(f"{about}: part"):
        part = stage.part(model)
        inside = {id(module) for module in model.modules()}
        case.require(isinstance(part, nn.Module), "a torch module", type(part).__name__)
        case.require(id(part) in inside, "a module of the model", "another")
        case.require(isinstance(stage.train, TrainConfig), "train: TrainConfig", stage.train)
    with case.checking(f"{about}: trains"):
        for name, parameter in part.named_parameters():
            parameter.requires_grad_(stage.trains is None or bool(stage.trains(name)))
        learning = {n for n, p in part.named_parameters() if p.requires_grad}
        case.require(len(learning) > 0, "one parameter at least that learns", "none")
    if stage.prepare:
        with case.checking(f"{about}: prepare"):
            stage.prepare(part, Asked(batch))
            _require_finite(case, model)
    if stage.at_epoch:
        with case.checking(f"{about}: at_epoch"):
            for epoch in range(3):
                stage.at_epoch(epoch)
    with case.checking(f"{about}: loss"):
        _step(case, stage, model, part, batch)
        return _validate(case, stage, part, batch)


def _stage_batch(case: Case, stage: Stage) -> Tensors:
    columns = case.inputs(training=True)
    chosen = np.ones(case.rows, bool)
    if stage.rows:
        asked = Asked(columns)
        chosen = np.asarray(stage.rows(asked))
        wide = sorted(name for name in asked.names if columns[name].ndim > 1)
        case.require(not wide, "columns of one value a row asked for, no pixels", wide)
        case.require(
            chosen.dtype == bool and chosen.shape == (case.rows,), f"bool [{case.rows}]",
            f"{chosen.dtype} {list(chosen.shape)}",
        )  # fmt: skip
    case.require(chosen.any(), f"some of the example's {case.rows} rows", "none")
    return {name: torch.as_tensor(values[chosen]) for name, values in columns.items()}


def _features(case: Case, stage: Stage, model: nn.Module, batch: Tensors) -> Tensors:
    rows = len(next(iter(batch.values())))
    with torch.no_grad():
        made = stage.features(model, batch)
        half = stage.features(model, {name: v[: (rows + 1) // 2] for name, v in batch.items()})
    for name, values in made.items():
        case.require(
            isinstance(values, torch.Tensor) and len(values) == rows, f"{name}: {rows} rows", values
        )
        if values.is_floating_point():
            alike = torch.allclose(values[: len(half[name])], half[name], rtol=1e-3, atol=1e-4)
            case.require(alike, f"{name}: the same whatever else the batch holds", "others")
    return made


def _step(case: Case, stage: Stage, model: nn.Module, part: nn.Module, batch: Tensors) -> None:
    """Take one step of the stage's optimiser; what may not learn stays as it is."""
    factors = [stage.lr_factor(n) for n, _ in part.named_parameters()] if stage.lr_factor else [1.0]
    case.require(
        all(math.isfinite(f) and f > 0 for f in factors), "lr_factor: positive", factors[:3]
    )
    optimizer = make_optimizer(stage.train.optimizer, part, stage.lr_factor)
    part.train()
    with _autocast(stage):
        loss, metrics = stage.loss(part, batch)
    _require_scalars(case, {"loss": loss, **metrics})
    case.require(loss.requires_grad, "a differentiable loss", "one without gradient")
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    gradients = [p.grad for p in part.parameters() if p.grad is not None]
    case.require(len(gradients) > 0, "gradients of what learns", "none")
    finite = all(bool(torch.isfinite(gradient).all()) for gradient in gradients)
    case.require(finite, "finite gradients", "NaN or infinite ones")
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer.step()
    model.eval()
    _require_finite(case, model)
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    learning = {n for n, p in model.named_parameters() if p.requires_grad}
    frozen = sorted(moved - learning)
    case.require(not frozen, "what does not learn stays as it is", f"moved: {frozen[:3]}")
    case.require(len(moved & learning) > 0, "a step moves what learns", "nothing moved")


@torch.no_grad()
def _validate(case: Case, stage: Stage, part: nn.Module, batch: Tensors) -> set[str]:
    part.eval()
    losses = []
    for _ in range(2):
        torch.manual_seed(_SEED)
        with _autocast(stage):
            loss, metrics = stage.loss(part, batch)
        losses.append(float(loss))
    _require_scalars(case, {"loss": loss, **metrics})
    case.require(losses[0] == losses[1], "in validation the same under the same seed", losses)
    known = {"loss", *metrics}
    case.require(stage.monitor in known, f"monitor: one of {sorted(known)}", repr(stage.monitor))
    case.require(stage.better in ("min", "max"), "better: min or max", repr(stage.better))
    case.require(stage.keep in ("best", "last"), "keep: best or last", repr(stage.keep))
    return known


def _autocast(stage: Stage) -> torch.autocast:
    bf16 = stage.train.precision == "bf16"  # fp16 scales gradients, on CUDA only
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16)


def _require_scalars(case: Case, values: Tensors) -> None:
    for name, value in values.items():
        found = f"{type(value).__name__} {list(getattr(value, 'shape', ()))}"
        scalar = isinstance(value, torch.Tensor) and value.ndim == 0
        case.require(scalar, f"{name}: a scalar tensor", found)
        case.require(bool(torch.isfinite(value)), f"{name}: finite", value.item())


def _require_finite(case: Case, model: nn.Module) -> None:
    for name, values in model.state_dict().items():
        if values.is_floating_point():
            case.require(bool(torch.isfinite(values).all()), f"{name}: finite", "NaN or infinity")
