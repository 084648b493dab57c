"""GaSNet-II as a family: stages, transform, calibrated predictions, scores and figures."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from skyray.analysis.calibration import fit_sigma_scale, fit_temperature
from skyray.analysis.domain import DomainGate
from skyray.config import ConfigError
from skyray.families.base import (
    Choice,
    Columns,
    DataInfo,
    Example,
    Family,
    Objective,
    OutputColumn,
    Range,
    Stage,
    Tensors,
)
from skyray.families.redshift import metrics
from skyray.families.redshift.networks import (
    ClassifierLoss,
    GasNetPipeline,
    RedshiftLoss,
    decode_redshift,
)
from skyray.families.redshift.recipes import RedshiftRecipe, examples
from skyray.models.gasnet import GasNet, fold_batch_norm
from skyray.transforms.spectra import LinearResampler, inpaint, unit_rms

# Rows per forward pass: the working set of a chunk stays in a CPU core's cache.
_CHUNK = 32
_CHUNK_CUDA = 1024
_MIN_COVERAGE = 0.5
STAR = "STAR"


class RedshiftFamily(Family):
    """Classes and redshifts of 1-D spectra (GaSNet-II)."""

    name = "redshift"
    recipe_type = RedshiftRecipe
    recipe: RedshiftRecipe

    def __init__(self, recipe: RedshiftRecipe, data: DataInfo):
        if data.record != "spectrum" or data.grid is None:
            raise ConfigError(f"redshift: expected a dataset of spectra, found {data.record!r}")
        super().__init__(recipe, data)
        source, target = data.grid.wavelength(), recipe.input.grid().wavelength()
        if target[0] > source[-1] or target[-1] < source[0]:
            raise ConfigError(
                f"input: {target[0]:.0f}–{target[-1]:.0f} Å lies outside the dataset's "
                f"{source[0]:.0f}–{source[-1]:.0f} Å"
            )

    @cached_property
    def redshift_classes(self) -> list[str]:
        """Classes with redshift networks: those of the recipe, or all non-stars with data."""
        if self.recipe.redshift_classes is not None:
            return list(self.recipe.redshift_classes)
        counts = self.data.counts.get("train", {})
        return [
            name
            for name in self.data.classes
            if self.data.coarse.get(name, name) != STAR and (not counts or counts.get(name, 0))
        ]

    @cached_property
    def _resampler(self) -> LinearResampler:
        return LinearResampler.between(self.data.grid, self.recipe.input.grid())

    @classmethod
    def examples(cls) -> list[Example]:
        return examples()

    @classmethod
    def search_space(cls, recipe: RedshiftRecipe) -> dict[str, Choice | Range]:
        return {
            "train.optimizer.lr": Range(2e-4, 1e-2, log=True),
            "train.optimizer.weight_decay": Range(1e-4, 0.1, log=True),
            "train.batch_size": Choice((32, 64, 128)),
            "network.dropout": Range(0.0, 0.6),
            "network.dense": Choice((64, 128, 256)),
            "noise_augmentation": Range(0.0, 0.5),
        }

    def objective(self) -> Objective:
        return Objective("classifier", "accuracy", "max")

    # training ------------------------------------------------------------------------------
    def build_model(self) -> GasNetPipeline:
        return GasNetPipeline(self.recipe, len(self.data.classes), self.redshift_classes)

    def stages(self) -> list[Stage]:
        stages = [
            Stage(
                name="classifier",
                part=lambda model: model.classifier,
                loss=ClassifierLoss(self.recipe),
                train=self.recipe.train,
                rows=lambda columns: columns["label_index"] >= 0,
                monitor="accuracy",
                better="max",
            )
        ]
        for name in self.redshift_classes:
            if self.recipe.switch("ensemble") == "as_published":
                stages.append(self._redshift_stage(name, None))
            else:
                members = range(self.recipe.members)
                stages += [self._redshift_stage(name, member) for member in members]
        return stages

    def _redshift_stage(self, name: str, member: int | None) -> Stage:
        index = self.data.classes.index(name)

        def part(model: GasNetPipeline) -> nn.Module:
            members = model.redshift[name]
            return members if member is None else members[member]

        def rows(columns: Columns) -> np.ndarray:
            return (columns["label_index"] == index) & np.isfinite(columns["redshift"])

        return Stage(
            name=f"redshift/{name}" + ("" if member is None else f"/{member}"),
            part=part,
            loss=RedshiftLoss(self.recipe),
            train=self.recipe.train_redshift,
            rows=rows,
            monitor="mae",
            better="min",
        )

    def columns(self, training: bool) -> list[str]:
        needed = ["flux", "ivar", "mask"]
        return [*needed, "label", "redshift"] if training else needed

    def transform(self, columns: Columns, training: bool) -> Columns:
        """Fill bad pixels, resample to the network's grid, scale to unit rms (paper eq. 2).

        Returns ``x`` float32 [B, P] and ``coverage`` float32 [B], the measured share of x; with
        `training` also ``label_index`` int64 [B] (-1 = none) and ``redshift`` float64 [B].
        """
        flux = np.asarray(columns["flux"], dtype=np.float32)
        bad = (np.asarray(columns["mask"]) != 0) | (np.asarray(columns["ivar"]) <= 0)
        if self.recipe.switch("masked_pixels") == "corrected":
            flux = inpaint(flux, bad)
        good = self._resampler((~bad).astype(np.float32))
        inputs = {
            "x": unit_rms(self._resampler(flux)),
            "coverage": good.mean(axis=1, dtype=np.float32),
        }
        if training:
            order = {name: index for index, name in enumerate(self.data.classes)}
            inputs["label_index"] = np.array(
                [order.get(label, -1) for label in columns["label"]], dtype=np.int64
            )
            inputs["redshift"] = np.asarray(columns["redshift"], dtype=np.float64)
        return inputs

    def transform_settings(self) -> dict[str, Any]:
        return {
            "input": self.recipe.input.snapshot(),
            "masked_pixels": self.recipe.switch("masked_pixels"),
            "grid": self.data.grid.to_dict(),
            "classes": list(self.data.classes),
        }

    # after training ------------------------------------------------------------------------
    def optimise_for_inference(self, model: GasNetPipeline) -> GasNetPipeline:
        folded = GasNetPipeline.__new__(GasNetPipeline)
        nn.Module.__init__(folded)
        folded.classifier = fold_batch_norm(model.classifier)
        folded.redshift = nn.ModuleDict(
            {
                name: nn.ModuleList(fold_batch_norm(member) for member in members)
                for name, members in model.redshift.items()
            }
        )
        return folded.eval()

    def calibrate(self, model: nn.Module, inputs: Columns) -> tuple[dict[str, Any], Tensors]:
        known = inputs["label_index"] >= 0
        label = inputs["label_index"][known]
        logits, features = _classify(model.classifier, inputs["x"][known])
        corrected = self.recipe.switch("probabilities") == "corrected"
        values: dict[str, Any] = {
            "temperature": fit_temperature(logits, label) if corrected else 1.0,
            "star_redshift_err": self._star_spread(inputs),
            "sigma": {},
        }
        for name in self.redshift_classes:
            rows = (inputs["label_index"] == self.data.classes.index(name)) & np.isfinite(
                inputs["redshift"]
            )
            if not rows.any():
                continue
            mean, std = self._redshift(model, name, inputs["x"][rows])
            residual = mean - inputs["redshift"][rows]
            entry = {"scale": 1.0, "floor": 0.0, "mae": float(np.abs(residual).mean())}
            if self.recipe.switch("redshift_errors") == "corrected":
                entry["scale"], entry["floor"] = fit_sigma_scale(residual, std)
            values["sigma"][name] = entry
        gate = DomainGate.fit(features, label)
        tensors = {k: torch.as_tensor(v) for k, v in gate.to_tensors().items()}
        return values, tensors

    def _star_spread(self, inputs: Columns) -> float:
        stars = [i for i, c in enumerate(self.data.classes) if self.data.coarse.get(c, c) == STAR]
        z = inputs["redshift"][np.isin(inputs["label_index"], stars)]
        z = z[np.isfinite(z)]
        return float(np.sqrt(np.mean(z**2))) if len(z) else 0.001

    def _redshift(self, model, name: str, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return mean and standard deviation (ddof 0) over the members (eqs. 7, 8)."""
        z = np.stack(
            [decode_redshift(_forward(member, x), self.recipe) for member in model.redshift[name]]
        )
        return z.mean(axis=0), z.std(axis=0)

    def predict(
        self, model: nn.Module, inputs: Columns, calibration: dict[str, Any], tensors: Tensors
    ) -> Columns:
        logits, features = _classify(model.classifier, inputs["x"])
        probability = _softmax(logits / calibration["temperature"])
        best = probability.argmax(axis=1)
        gate = DomainGate.from_tensors({k: v.cpu().numpy() for k, v in tensors.items()})
        distance = gate.score(features)
        redshift, error = self._route(model, inputs["x"], best, calibration)
        output: Columns = {
            "label": np.array(self.data.classes, dtype=object)[best],
            "probability": probability.max(axis=1).astype(np.float32),
            "redshift": redshift,
            "redshift_err": error,
            "in_domain": (distance <= gate.threshold) & (inputs["coverage"] >= _MIN_COVERAGE),
            "domain_distance": distance.astype(np.float32),
            "coverage": inputs["coverage"],
        }
        for index, name in enumerate(self.data.classes):
            output[f"p_{name}"] = probability[:, index].astype(np.float32)
        if "label_index" in inputs:  # scoring: the published routing by the true class
            route = self._route(model, inputs["x"], inputs["label_index"], calibration)
            output["redshift_true_route"], output["redshift_err_true_route"] = route
        return output

    def _route(self, model, x: np.ndarray, classes: np.ndarray, calibration: dict[str, Any]):
        """Return z and σ of each row from the ensemble of its class; stars are at rest."""
        redshift = np.full(len(x), np.nan)
        error = np.full(len(x), np.nan)
        for index, name in enumerate(self.data.classes):
            rows = classes == index
            if not rows.any():
                continue
            if self.data.coarse.get(name, name) == STAR:
                redshift[rows], error[rows] = 0.0, calibration["star_redshift_err"]
            elif name in model.redshift and name in calibration["sigma"]:
                sigma = calibration["sigma"][name]
                redshift[rows], std = self._redshift(model, name, x[rows])
                error[rows] = sigma["scale"] * np.hypot(std, sigma["floor"])
        return redshift, error

    def output_columns(self) -> list[OutputColumn]:
        described = [
            ("label", "str", "", "most probable class"),
            ("probability", "float32", "", "calibrated probability of that class"),
            ("redshift", "float64", "", "mean redshift of the class's ensemble; 0 for stars"),
            ("redshift_err", "float64", "", "1 sigma uncertainty of the redshift"),
            ("in_domain", "bool", "", "the spectrum resembles the training data"),
            ("domain_distance", "float32", "", "Mahalanobis distance to the nearest class"),
            ("coverage", "float32", "", "measured share of the network's wavelength range"),
        ]
        described += [(f"p_{c}", "float32", "", f"probability of {c}") for c in self.data.classes]
        return [OutputColumn(*entry) for entry in described]

    def truth_columns(self) -> list[str]:
        return ["label", "spectype", "redshift", "redshift_err", "snr", "zwarning"]

    def evaluate(self, table: Columns, calibration: dict[str, Any]) -> dict[str, Any]:
        mae = {name: entry["mae"] for name, entry in calibration["sigma"].items()}
        return metrics.evaluate_table(table, self.data.classes, self.data.coarse, mae)

    def figures(self, table: Columns, metrics: dict[str, Any], folder: Path) -> list[Path]:
        from skyray.families.redshift import figures  # matplotlib is no business of workers

        return figures.write_figures(table, metrics, folder, self.data.classes, self.data.coarse)


@torch.inference_mode()
def _forward(network: GasNet, x: np.ndarray) -> np.ndarray:
    """Return the single output of a redshift network, float64 [B]."""
    return np.concatenate([network(chunk)[:, 0].double().cpu() for chunk in _chunks(network, x)])


@torch.inference_mode()
def _classify(network: GasNet, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return logits float64 [B, C] and penultimate features float32 [B, F]."""
    if len(x) == 0:
        return np.zeros((0, network.outputs)), np.zeros((0, network.head.in_features), np.float32)
    logits, features = [], []
    for chunk in _chunks(network, x):
        hidden = network.features(chunk)
        features.append(hidden.float().cpu().numpy())
        logits.append(network.head(hidden).double().cpu().numpy())
    return np.concatenate(logits), np.concatenate(features)


def _chunks(network: GasNet, x: np.ndarray):
    device = network.head.weight.device
    size = _CHUNK_CUDA if device.type == "cuda" else _CHUNK
    for start in range(0, len(x), size):
        yield torch.as_tensor(x[start : start + size]).to(device)


def _softmax(logits: np.ndarray) -> np.ndarray:
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)


FAMILY = RedshiftFamily
