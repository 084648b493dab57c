"""Alert classification as a family: one network on triplets, metadata or colour cutouts.

It tells one class of a card from the others: `positive`, by default the last."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from skyray.analysis.calibration import fit_temperature
from skyray.analysis.domain import DomainGate
from skyray.config import ConfigError
from skyray.families.alerts import metrics
from skyray.families.alerts.export import exported
from skyray.families.alerts.recipes import AlertsRecipe, examples
from skyray.families.base import (
    Choice,
    Columns,
    DataInfo,
    Example,
    Export,
    Family,
    OutputColumn,
    Range,
    Recipe,
    Stage,
    Tensors,
)
from skyray.models.vision import VisionNetwork
from skyray.models.vision_inference import optimised
from skyray.models.vision_weights import load_pretrained
from skyray.transforms.alerts import (
    check_features,
    crop_triplet,
    cutout_input,
    triplet_input,
)
from skyray.transforms.augment import SYMMETRIES, augment

_CHUNK, _CHUNK_CUDA = 32, 256
_THUMBNAIL = 42  # central pixels kept for the gallery of mistakes


class AlertLoss:
    """Weighted binary cross-entropy on logits, of batches flipped and turned at random."""

    def __init__(self, recipe: AlertsRecipe, positive_weight: float):
        self.augment, self.positive_weight = recipe.augment, positive_weight

    def __call__(
        self, part: nn.Module, batch: Tensors
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        image = batch["image"]
        if part.training and self.augment:
            image = augment(image, SYMMETRIES)
        logit = part(image, batch.get("metadata"))[:, 0].float()
        target = batch["target"].float()
        weight = logit.new_tensor(self.positive_weight)
        loss = functional.binary_cross_entropy_with_logits(logit, target, pos_weight=weight)
        return loss, {"accuracy": ((logit > 0) == (target > 0.5)).float().mean()}


class AlertsFamily(Family):
    """Bright transients, or real detections, among the alerts of a stream."""

    name = "alerts"
    recipe_type = AlertsRecipe
    recipe: AlertsRecipe

    def __init__(self, recipe: AlertsRecipe, data: DataInfo):
        if data.record not in ("alert", "cutout") or not data.image_size:
            raise ConfigError(f"alerts: expected alerts or cutouts, found {data.record!r}")
        if len(data.classes) < 2:
            raise ConfigError(f"alerts: expected two classes or more, found {list(data.classes)}")
        super().__init__(recipe, data)
        if self.positive not in data.classes:
            raise ConfigError(
                f"positive: expected one of {list(data.classes)}, found {self.positive!r}"
            )
        crop = recipe.crop
        if crop and (data.record != "alert" or crop > data.image_size):
            raise ConfigError(
                f"crop: expected at most {data.image_size} pixels of an alert's stamps, found "
                f"{crop} for {data.record}s"
            )
        if self.multimodal:
            self._check_metadata()

    def _check_metadata(self) -> None:
        if self.data.record != "alert":
            raise ConfigError("network.metadata: cutouts carry no metadata; expected 0")
        if self.recipe.network.metadata != len(self.features):
            raise ConfigError(
                f"network.metadata: expected {len(self.features)}, the features of card "
                f"{self.data.card!r} (or 0 for images alone), found {self.recipe.network.metadata}"
            )
        if self.recipe.features is None:
            return
        try:
            check_features(self.data.features, self.recipe.features)
        except ValueError as error:
            raise ConfigError(f"dataset of card {self.data.card!r}: {error}") from None

    @property
    def features(self) -> tuple[str, ...]:
        """The metadata that are used, in their order: the recipe's, else all of the card's."""
        return self.recipe.features or self.data.features

    @property
    def multimodal(self) -> bool:
        return self.recipe.network.metadata > 0

    @property
    def positive(self) -> str:
        """The class that is sought."""
        return self.recipe.positive or self.data.classes[-1]

    @property
    def negative(self) -> str:
        """The other class; of several, all of them together."""
        others = [name for name in self.data.classes if name != self.positive]
        return others[0] if len(others) == 1 else f"not {self.positive}"

    @property
    def positive_weight(self) -> float:
        """Negatives over positives of the training split (of all of it, whatever the fraction)."""
        counts = self.data.counts.get("train", {})
        if not counts:
            return 1.0
        positives = counts.get(self.positive, 0)
        negatives = sum(counts.get(name, 0) for name in self.data.classes) - positives
        if not positives or not negatives:
            raise ConfigError(
                f"card {self.data.card!r}: train split: expected both, found "
                f"{positives} {self.positive} and {negatives} {self.negative}"
            )
        return negatives / positives

    # training ------------------------------------------------------------------------------
    def build_model(self) -> VisionNetwork:
        bands = 3 if self.data.record == "alert" else len(self.data.bands)
        size = self.recipe.crop or self.data.image_size
        return VisionNetwork(self.recipe.network, bands, 1, size)

    def initialise(self, model: nn.Module) -> None:
        load_pretrained(model, self.recipe.network.weights)

    def stages(self) -> list[Stage]:
        factor = self.recipe.backbone_lr_factor
        return [
            Stage(
                name="classifier",
                part=lambda model: model,
                loss=AlertLoss(self.recipe, self.positive_weight),
                train=self.recipe.train,
                rows=self.training_rows,
                lr_factor=lambda name: factor if name.startswith("backbone.") else 1.0,
            )
        ]

    def training_rows(self, columns: Columns) -> np.ndarray:
        """Return which labelled rows are used: all of validation, the chosen part of training.

        A share of the objects (or alerts) is chosen by a hash, so that a smaller share is a part of
        every larger one; of an object with too many alerts those of the smallest hash stay.
        """
        known = columns["target"] >= 0
        train = columns["is_train"]
        kind = "alert" if self.recipe.switch("fractions") == "as_published" else "object"
        used = known & (~train | (columns[f"{kind}_hash"] < self.recipe.fraction * 2**62))
        if self.recipe.alerts_per_object is None:
            return used
        order = np.lexsort((columns["alert_hash"], columns["object_hash"]))
        order = order[(used & train)[order]]
        objects = columns["object_hash"][order]
        first = np.append(True, objects[1:] != objects[:-1]) if len(order) else np.zeros(0, bool)
        start = np.maximum.accumulate(np.where(first, np.arange(len(order)), 0))
        surplus = np.arange(len(order)) - start >= self.recipe.alerts_per_object
        used[order[surplus]] = False
        return used

    @classmethod
    def examples(cls) -> list[Example]:
        return examples()

    @classmethod
    def search_space(cls, recipe: Recipe) -> dict[str, Choice | Range]:
        """Return Table 1 of the paper, or a wide space for small networks and data."""
        if recipe.search == "wide":
            return {
                "train.optimizer.lr": Range(1e-4, 5e-3, log=True),
                "train.batch_size": Choice((16, 32, 64)),
                "network.head": Choice(((), (16,), (32,), (64, 16))),
                "network.dropout": Range(0.0, 0.6),
            }
        heads = tuple(itertools.product((128, 256, 512), (8, 16, 32)))
        return {
            "train.optimizer.lr": Choice((1e-6, 5e-6, 1e-7, 5e-7)),
            "train.optimizer.warmup_epochs": Choice((2, 4, 6)),
            "train.batch_size": Choice((16, 64, 256)),
            "network.head": Choice(heads),
            "network.dropout": Range(0.3, 0.9),
        }

    def columns(self, training: bool) -> list[str]:
        if self.data.record == "alert":
            needed = ["triplet", "stamp_box", *(["metadata"] if self.multimodal else [])]
        else:
            needed = ["image"]
        return [*needed, "label", "split", "object_key", "object_id"] if training else needed

    def transform(self, columns: Columns, training: bool) -> Columns:
        """Return ``image`` float32 [B, C, S, S] and, where used, ``metadata`` float32 [B, M].

        With `training` also ``target`` int64 [B] (1 sought, 0 not, -1 unlabelled), ``is_train``
        bool [B], and ``object_hash``, ``alert_hash``: int64 [B] in [0, 2⁶²).
        """
        if self.data.record == "alert":
            mode = self.recipe.switch("empty_stamps")
            position = self.recipe.switch("stamp_position")
            image = triplet_input(
                _stack(columns["triplet"]), _stack(columns["stamp_box"]), mode, position
            )
            if self.recipe.crop:
                image = crop_triplet(image, self.recipe.crop)
            if self.recipe.input_scale == "rms":
                image = image * np.float32(image.shape[-1])
        else:
            image = cutout_input(_stack(columns["image"]), self.recipe.cutout_stretch)
        inputs = {"image": image}
        if self.multimodal:
            inputs["metadata"] = np.array(_stack(columns["metadata"]), dtype=np.float32)
        if training:
            target = {name: int(name == self.positive) for name in self.data.classes}
            inputs |= {
                "target": np.array([target.get(name, -1) for name in columns["label"]], np.int64),
                "is_train": np.asarray(columns["split"], dtype=str) == "train",
                "object_hash": _hashes(columns["object_key"]),
                "alert_hash": _hashes(columns["object_id"]),
            }
        return inputs

    def transform_settings(self) -> dict[str, Any]:
        recipe = self.recipe
        if self.data.record == "alert":
            image = {name: getattr(recipe, name) for name in ("crop", "input_scale")}
            switches = ("empty_stamps", "stamp_position")
            image |= {name: recipe.switch(name) for name in switches}
        else:
            image = {"cutout_stretch": recipe.cutout_stretch}
        return {
            "image": {"record": self.data.record, **image},
            "metadata": list(self.data.features) if self.multimodal else None,
            "classes": [self.negative, self.positive],
        }

    # after training ------------------------------------------------------------------------
    def optimise_for_inference(self, model: nn.Module) -> nn.Module:
        return optimised(model.eval(), self.recipe.precision)

    def export(self, model: nn.Module, calibration: dict[str, Any], tensors: Tensors) -> Export:
        return exported(self, model, calibration, tensors)

    def raw_outputs(self, model: nn.Module, inputs: Columns) -> Columns:
        known = inputs["target"] >= 0
        logit, features = forward(model, {name: inputs[name][known] for name in _given(inputs)})
        return {"target": inputs["target"][known], "logit": logit, "features": features}

    def fit_calibration(self, found: Columns) -> tuple[dict[str, Any], Tensors]:
        target = found["target"]
        values = {"offset": 0.0, "temperature": 1.0}
        if self.recipe.switch("probabilities") == "corrected":
            # Weighting positives by w moves the logit by ln w; p(positive) needs it back.
            values["offset"] = math.log(self.positive_weight)
            centred = found["logit"] - values["offset"]
            both = np.stack([np.zeros_like(centred), centred], axis=1)
            values["temperature"] = fit_temperature(both, target)
        gate = DomainGate.fit(found["features"], target)
        return values, {k: torch.as_tensor(v) for k, v in gate.to_tensors().items()}

    def predict(
        self, model: nn.Module, inputs: Columns, calibration: dict[str, Any], tensors: Tensors
    ) -> Columns:
        logit, features = forward(model, {name: inputs[name] for name in _given(inputs)})
        gate = DomainGate.from_tensors({k: v.cpu().numpy() for k, v in tensors.items()})
        distance = gate.score(features)
        honest = (logit - calibration["offset"]) / calibration["temperature"]
        probability = _sigmoid(honest).astype(np.float32)
        names = np.array([self.negative, self.positive], dtype=object)
        output: Columns = {
            "label": names[(probability >= 0.5).astype(int)],
            "score": _sigmoid(logit).astype(np.float32),
            "probability": probability,
            "in_domain": distance <= gate.threshold,
            "domain_distance": distance.astype(np.float32),
            "features": features,
        }
        if "target" in inputs:  # scoring: what the gallery of mistakes shows
            output["thumbnail"] = thumbnails(inputs["image"])
        return output

    def output_columns(self) -> list[OutputColumn]:
        described = [
            ("label", "str", "", f"{self.positive} where its probability is 0.5 or more"),
            ("score", "float32", "", f"network score of {self.positive}, as policies use it"),
            ("probability", "float32", "", f"calibrated probability of {self.positive}"),
            ("in_domain", "bool", "", "the alert resembles the training data"),
            ("domain_distance", "float32", "", "Mahalanobis distance to the nearest class"),
        ]
        return [OutputColumn(*entry) for entry in described]

    def detail_columns(self) -> list[str]:
        return ["features"]

    def truth_columns(self) -> list[str]:
        columns = ["label", "object_key", "extra"]
        return [*columns, "jd", "fid", "metadata"] if self.data.record == "alert" else columns

    def evaluate(self, table: Columns, calibration: dict[str, Any]) -> dict[str, Any]:
        return metrics.evaluate_table(
            self.scoring_table(table), self.data.classes, self.positive, self.recipe.policies,
            self.recipe.switch("scored_sources"),
        )  # fmt: skip

    def scoring_table(self, table: Columns) -> Columns:
        """Return ``magpsf`` in place of the metadata and ``subset`` in place of the extras."""
        found = dict(table)
        if "metadata" in found:
            metadata = _stack(found.pop("metadata"))
            found["magpsf"] = np.full(len(metadata), np.nan)
            if "magpsf" in self.data.features:
                at = self.data.features.index("magpsf")
                found["magpsf"] = metadata[:, at].astype(np.float64)
        if "extra" in found:
            found["subset"] = metrics.subset_of(found.pop("extra"))
        return found

    def figures(self, table: Columns, metrics: dict[str, Any], folder: Path) -> list[Path]:
        from skyray.families.alerts import figures  # matplotlib is no business of workers

        return figures.write_figures(self.scoring_table(table), metrics, folder, self.positive)


@torch.inference_mode()
def forward(model: nn.Module, inputs: Columns) -> tuple[np.ndarray, np.ndarray]:
    """Return logits float64 [B] and penultimate features float32 [B, P]."""
    network = getattr(model, "network", model)
    device = network.output.weight.device
    size = _CHUNK_CUDA if device.type == "cuda" else _CHUNK
    logits = [np.zeros(0)]
    features = [np.zeros((0, network.output.in_features), np.float32)]
    for start in range(0, len(inputs["image"]), size):
        part = {k: torch.as_tensor(v[start : start + size]).to(device) for k, v in inputs.items()}
        hidden = model.features(part["image"], part.get("metadata"))
        features.append(hidden.float().cpu().numpy())
        logits.append(network.output(hidden)[:, 0].double().cpu().numpy())
    return np.concatenate(logits), np.concatenate(features)


def thumbnails(image_BCSS: np.ndarray) -> np.ndarray:
    """Return the central pixels on an asinh scale about the sky, uint8 [B, C, T, T], T ≤ 42."""
    size = image_BCSS.shape[-1]
    side = min(size, _THUMBNAIL)
    start = (size - side) // 2
    centre = image_BCSS[..., start : start + side, start : start + side]
    middle = np.median(centre, axis=(2, 3), keepdims=True)
    noise = 1.4826 * np.median(np.abs(centre - middle), axis=(2, 3), keepdims=True)
    scaled = np.arcsinh((centre - middle) / np.maximum(3 * noise, 1e-9))
    return np.clip(64 + 48 * scaled, 0, 255).astype(np.uint8)


def _given(inputs: Columns) -> list[str]:
    return [name for name in ("image", "metadata") if name in inputs]


def _stack(column: np.ndarray) -> np.ndarray:
    """Return a column of arrays as one array."""
    return np.stack(list(column)) if column.dtype == object else column


def _hashes(names: Sequence[str]) -> np.ndarray:
    """Return a number in [0, 2⁶²) for each name, int64: always the same for the same name."""
    digests = (hashlib.sha256(f"fraction/{name}".encode()).digest() for name in names)
    return np.array([int.from_bytes(d[:8], "big") >> 2 for d in digests], dtype=np.int64)


def _sigmoid(logit: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(0.5 * logit))


FAMILY = AlertsFamily
