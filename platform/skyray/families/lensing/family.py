"""Lens classes under domain adaptation as a family: transform, stages, predictions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.special import expit

from skyray.analysis.calibration import apply_temperature, fit_temperature
from skyray.analysis.domain import MIN_ROWS, DomainGate
from skyray.config import ConfigError
from skyray.families.base import (
    Choice,
    Columns,
    DataInfo,
    Example,
    Export,
    Family,
    Objective,
    OutputColumn,
    Range,
    Stage,
    Tensors,
)
from skyray.families.lensing import metrics
from skyray.families.lensing.adaptation import (
    LOSSES,
    SOURCE,
    TARGET,
    SourceLoss,
    begin,
    domain_rows,
    learns,
)
from skyray.families.lensing.export import exported
from skyray.families.lensing.networks import LensClassifier, LensingModel, ServingModel
from skyray.families.lensing.recipes import LensingRecipe, examples
from skyray.models.vision_weights import load_pretrained
from skyray.transforms.field import to_field

_CHUNK = 8  # rows of a forward pass: their maps stay near the core
_CHUNK_CUDA = 256
_ELSEWHERE = 2
ROUTES = ("source", "adapted")
PROJECTION = 8


class LensingFamily(Family):
    """Dark-matter classes of strong lenses, learnt on one survey and answered on another.

    Images of the source survey are answered by the source network, all others, those of no survey
    included, by the adapted one.
    """

    name = "lensing"
    recipe_type = LensingRecipe
    recipe: LensingRecipe

    def __init__(self, recipe: LensingRecipe, data: DataInfo):
        if data.record != "cutout" or data.image_size is None:
            raise ConfigError(f"lensing: expected a dataset of cutouts, found {data.record!r}")
        super().__init__(recipe, data)

    # training ------------------------------------------------------------------------------
    def build_model(self) -> LensingModel:
        bands, size = len(self.data.bands), self.data.image_size
        return LensingModel(self.recipe, bands, size, len(self.data.classes))

    def initialise(self, model: LensingModel) -> None:
        network = self.recipe.network
        if network.encoder == "vision" and network.vision.weights:
            load_pretrained(model.source.encoder, network.vision.weights)

    def stages(self) -> list[Stage]:
        recipe = self.recipe
        source = Stage(
            name="source",
            part=lambda model: model,
            loss=SourceLoss(recipe),
            train=recipe.train,
            rows=lambda columns: (columns["domain"] == SOURCE) & (columns["label_index"] >= 0),
            monitor="accuracy",
            better="max",
            trains=lambda name: name.startswith("source."),
        )
        if recipe.method == "source_only":
            return [source]
        adda = recipe.method == "adda"
        loss = LOSSES[recipe.method](recipe)
        published = recipe.switch("selection") == "as_published"
        adaptation = Stage(
            name=recipe.method,
            part=lambda model: model,
            loss=loss,
            train=recipe.train_adaptation,
            rows=lambda columns: (
                (columns["domain"] == TARGET)
                | ((columns["domain"] == SOURCE) & (columns["label_index"] >= 0))
            ),
            monitor="oracle" if published else "selection",
            better="max",
            arrange=domain_rows,
            features=_with_source_features if adda else None,
            prepare=begin(recipe),
            at_epoch=getattr(loss, "at_epoch", None),
            trains=learns(recipe.method),
            lr_factor=self._rate if adda else None,
        )
        return [source, adaptation]

    def _rate(self, name: str) -> float:
        encoder = name.startswith("adapted.")
        return self.recipe.adaptation.encoder_lr_factor if encoder else 1.0

    def columns(self, training: bool) -> list[str]:
        needed = ["image", "survey", "pixel_scale_arcsec"]
        return [*needed, "label"] if training else needed

    def transform(self, columns: Columns, training: bool) -> Columns:
        """Bring images to one field and unit rms, and say which domain each is of.

        Returns ``image`` float32 [B, C, S, S] without NaN and ``domain`` int64 [B]: 0 source,
        1 target, 2 neither. With `training` also ``label_index`` int64 [B], −1 for all that is not
        of the source, and ``oracle_index``, the label of every row, for scoring alone.
        """
        image = np.nan_to_num(np.asarray(columns["image"], dtype=np.float32))
        if self.recipe.field_arcsec is not None:
            image = to_field(image, columns["pixel_scale_arcsec"], self.recipe.field_arcsec)
        if self.recipe.switch("scaling") == "corrected":
            rms = np.sqrt(np.mean(np.square(image, dtype=np.float64), axis=(1, 2, 3)))
            image = (image / np.maximum(rms, 1e-12)[:, None, None, None]).astype(np.float32)
        survey = np.array([str(name) for name in columns["survey"]], dtype=object)
        domain = np.full(len(survey), _ELSEWHERE, dtype=np.int64)
        domain[survey == self.recipe.source] = SOURCE
        domain[survey == self.recipe.target] = TARGET
        inputs = {"image": image, "domain": domain}
        if training:
            order = {name: index for index, name in enumerate(self.data.classes)}
            index = np.array([order.get(label, -1) for label in columns["label"]], dtype=np.int64)
            inputs["label_index"] = np.where(domain == SOURCE, index, -1)
            inputs["oracle_index"] = index
        return inputs

    def transform_settings(self) -> dict[str, Any]:
        recipe = self.recipe
        return {
            "field_arcsec": recipe.field_arcsec,
            "scaling": recipe.switch("scaling"),
            "surveys": [recipe.source, recipe.target],
            "classes": list(self.data.classes),
        }

    @classmethod
    def examples(cls) -> list[Example]:
        return examples()

    @classmethod
    def search_space(cls, recipe: LensingRecipe) -> dict[str, Choice | Range]:
        space: dict[str, Choice | Range] = {
            "train.optimizer.lr": Range(3e-4, 1e-2, log=True),
            "train.optimizer.weight_decay": Range(1e-6, 1e-3, log=True),
            "train.batch_size": Choice((32, 64, 128)),
        }
        if recipe.method != "source_only":
            space["train_adaptation.optimizer.lr"] = Range(1e-5, 3e-3, log=True)
        if recipe.method == "adda":
            space["adaptation.encoder_lr_factor"] = Range(0.003, 0.3, log=True)
        return space

    def objective(self) -> Objective:
        """Return the label-free score, whatever chooses the epoch."""
        last = self.stages()[-1]
        metric = "accuracy" if self.recipe.method == "source_only" else "selection"
        return Objective(last.name, metric, "max")

    # after training ------------------------------------------------------------------------
    def optimise_for_inference(self, model: LensingModel) -> ServingModel:
        return model.eval().optimised(self.recipe.serving)

    def plain(self, model: LensingModel) -> ServingModel:
        return model.eval().plain()

    def export(self, model: ServingModel, calibration: dict[str, Any], tensors: Tensors) -> Export:
        return exported(self, model, calibration, tensors)

    def raw_outputs(self, model: ServingModel, inputs: Columns) -> Columns:
        before, logits = classify(model.source, inputs["image"])
        after, adapted = before, logits
        if model.adapted is not model.source:
            after, adapted = classify(model.adapted, inputs["image"])
        return {
            "label_index": inputs["label_index"], "domain": inputs["domain"], "before": before,
            "logits": logits, "after": after, "adapted": adapted,
        }  # fmt: skip

    def fit_calibration(self, found: Columns) -> tuple[dict[str, Any], Tensors]:
        """Fit temperature, gates of both networks, the domain's classifier and two projections.

        The target has no labels here: its probabilities carry the source's temperature, and its
        gate groups features by the predicted class.
        """
        label, before, after = found["label_index"], found["before"], found["after"]
        logits, adapted = found["logits"], found["adapted"]
        source, target = found["domain"] == SOURCE, found["domain"] == TARGET
        known = source & (label >= 0)
        values = {"temperature": fit_temperature(logits[known], label[known])}
        tensors: dict[str, np.ndarray] = {}
        for route, features, rows, groups in (
            ("source", before, known, label),
            ("adapted", after, target, adapted.argmax(1)),
        ):
            if rows.sum() < MIN_ROWS:  # a run without that survey: one gate for both
                rows, groups = known, label
            gate = DomainGate.fit(features[rows], groups[rows])
            tensors |= {f"{route}_{name}": value for name, value in gate.to_tensors().items()}
        tensors |= _domain_classifier(before, source, target)
        for name, features in (("before", before), ("after", self._meeting(before, after, target))):
            tensors |= _projection(name, features[source | target])
        return values, {name: torch.as_tensor(value) for name, value in tensors.items()}

    def predict(
        self, model: ServingModel, inputs: Columns, calibration: dict[str, Any], tensors: Tensors
    ) -> Columns:
        kept = {name: value.cpu().numpy() for name, value in tensors.items()}
        image, temperature = inputs["image"], calibration["temperature"]
        route = np.where(inputs["domain"] == SOURCE, 0, 1)
        scoring = "oracle_index" in inputs
        before, logits = classify(model.source, image)
        features, chosen = before.copy(), logits.copy()
        after, adapted = before, logits
        if model.adapted is not model.source:
            rows = np.ones(len(route), bool) if scoring else route == 1
            after, adapted = before.copy(), logits.copy()
            after[rows], adapted[rows] = classify(model.adapted, image[rows])
            features[route == 1], chosen[route == 1] = after[route == 1], adapted[route == 1]
        probability = apply_temperature(chosen, temperature)
        distance, inside = _gate(kept, features, route)
        output: Columns = {
            "label": np.array(self.data.classes, dtype=object)[probability.argmax(1)],
            "probability": probability.max(axis=1).astype(np.float32),
            "network": np.array(ROUTES, dtype=object)[route],
            "p_target_survey": expit(
                (before - kept["domain_mean"]) @ kept["domain_weight"] + kept["domain_bias"]
            ).astype(np.float32),
            "in_domain": inside,
            "domain_distance": distance.astype(np.float32),
        }
        for index, name in enumerate(self.data.classes):
            output[f"p_{name}"] = probability[:, index].astype(np.float32)
        if scoring:
            met = self._meeting(before, after, route == 1)
            for when, found, values in (("before", before, logits), ("after", met, adapted)):
                scores = apply_temperature(values, temperature)
                for index, name in enumerate(self.data.classes):
                    output[f"{when}_{name}"] = scores[:, index].astype(np.float32)
                flat = (found - kept[f"{when}_centre"]) @ kept[f"{when}_axes"]
                output |= {f"{when}_axis_{i}": flat[:, i] for i in range(flat.shape[1])}
        return output

    def _meeting(self, before: np.ndarray, after: np.ndarray, moved: np.ndarray) -> np.ndarray:
        """Return the features in which both surveys should look alike after adaptation.

        ADDA leaves the source its own encoder; the other methods have one for both.
        """
        return np.where(moved[:, None], after, before) if self.recipe.method == "adda" else after

    def output_columns(self) -> list[OutputColumn]:
        described = [
            ("label", "str", "", "most probable class"),
            ("probability", "float32", "", "calibrated probability of that class"),
            ("network", "str", "", "which network answered: source, or adapted to the target"),
            ("p_target_survey", "float32", "", "probability that the target's telescope took it"),
            ("in_domain", "bool", "", "the image resembles those the network learnt from"),
            ("domain_distance", "float32", "", "Mahalanobis distance to the nearest class"),
        ]
        described += [(f"p_{c}", "float32", "", f"probability of {c}") for c in self.data.classes]
        return [OutputColumn(*entry) for entry in described]

    def truth_columns(self) -> list[str]:
        return ["label", "survey"]

    def evaluate(self, table: Columns, calibration: dict[str, Any]) -> dict[str, Any]:
        return metrics.evaluate_table(
            table, self.data.classes, self.recipe.source, self.recipe.target
        )

    def figures(self, table: Columns, metrics: dict[str, Any], folder: Path) -> list[Path]:
        from skyray.families.lensing import figures  # matplotlib is no business of workers

        surveys = {"source": self.recipe.source, "target": self.recipe.target}
        return figures.write_figures(table, metrics, folder, self.data.classes, surveys)


def _with_source_features(model: LensingModel, batch: Tensors) -> Tensors:
    """Add what the frozen source encoder makes of each image; ADDA needs it at every step."""
    return {**batch, "source_features": model.source.encoder(batch["image"])}


@torch.inference_mode()
def classify(network: LensClassifier, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return features float32 [N, F] and logits float64 [N, K] of images."""
    weight = network.classifier.weight
    if not len(image):
        return np.zeros((0, weight.shape[1]), np.float32), np.zeros((0, weight.shape[0]))
    size = _CHUNK_CUDA if weight.device.type == "cuda" else _CHUNK
    parts: list[list[np.ndarray]] = [[], []]
    for start in range(0, len(image), size):
        chunk = torch.as_tensor(image[start : start + size]).to(weight.device)
        for kept, found in zip(parts, network(chunk), strict=True):
            kept.append(found.float().cpu().numpy())
    return np.concatenate(parts[0]), np.concatenate(parts[1]).astype(np.float64)


def _gate(kept: Columns, features: np.ndarray, route: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return distance and whether it is inside, by the gate of each row's network."""
    distance, inside = np.zeros(len(route)), np.zeros(len(route), bool)
    for number, name in enumerate(ROUTES):
        rows = route == number
        prefix = f"{name}_"
        gate = DomainGate.from_tensors(
            {k.removeprefix(prefix): v for k, v in kept.items() if k.startswith(prefix)}
        )
        distance[rows] = gate.score(features[rows])
        inside[rows] = distance[rows] <= gate.threshold
    return distance, inside


def _domain_classifier(features: np.ndarray, source: np.ndarray, target: np.ndarray) -> Columns:
    """Fit a logistic regression of target against source; one survey alone gives 0.5."""
    width = features.shape[1]
    rows = source | target
    mean, spread = features[rows].mean(0), features[rows].std(0) + 1e-6
    weight, bias = np.zeros(width, np.float32), 0.0
    if source.any() and target.any():
        from sklearn.linear_model import LogisticRegression  # seconds of import

        fit = LogisticRegression(C=0.1, max_iter=1000, class_weight="balanced")
        fit.fit((features[rows] - mean) / spread, target[rows])
        weight, bias = fit.coef_[0] / spread, fit.intercept_[0]
    return {
        "domain_mean": mean.astype(np.float32),
        "domain_weight": np.asarray(weight, np.float32),
        "domain_bias": np.float32(bias),
    }


def _projection(name: str, features: np.ndarray) -> Columns:
    """Return centre and main axes of the features: what maps of both domains are drawn from."""
    centre = features.mean(0)
    axes = np.linalg.svd(features - centre, full_matrices=False)[2][:PROJECTION].T
    return {f"{name}_centre": centre, f"{name}_axes": np.ascontiguousarray(axes)}


FAMILY = LensingFamily
