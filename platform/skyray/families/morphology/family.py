"""Galaxy morphology as a family: staged transfer of an image network, calibrated classes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from skyray.analysis.calibration import apply_temperature, fit_temperature
from skyray.analysis.domain import DomainGate
from skyray.config import ConfigError
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
from skyray.families.morphology import metrics
from skyray.families.morphology.export import exported
from skyray.families.morphology.recipes import MorphologyRecipe, examples
from skyray.families.morphology.views import unit, views_of
from skyray.models.vision import VisionNetwork, unfreeze_from
from skyray.models.vision_inference import optimised
from skyray.models.vision_weights import load_pretrained
from skyray.transforms.augment import AugmentConfig, augment
from skyray.transforms.images import (
    DISPLAY_BANDS,
    PUBLISHED_MAPPINGS,
    display_to_unit,
    fit_image,
    published_mapping,
    to_colour,
)

_CHUNK, _CHUNK_CUDA = 16, 128
_THUMBNAIL = 48
_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)


class MorphologyLoss:
    """Cross-entropy of images, changed at random in training, or of cached base features."""

    def __init__(self, augmentation: AugmentConfig | None, label_smoothing: float):
        self.augmentation, self.label_smoothing = augmentation, label_smoothing

    def __call__(
        self, part: nn.Module, batch: Tensors
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        if "base" in batch:
            logits = part.from_base(batch["base"])
        else:
            image = unit(batch["image"])
            if part.training and self.augmentation:
                image = augment(image, self.augmentation)
            logits = part(image)
        target = batch["label_index"]
        smoothing = self.label_smoothing if part.training else 0.0
        loss = functional.cross_entropy(logits.float(), target, label_smoothing=smoothing)
        return loss, {"accuracy": (logits.argmax(dim=1) == target).float().mean()}


def base_features(model: VisionNetwork, batch: Tensors) -> Tensors:
    """Return what the head trains on while the base is frozen."""
    return {"base": model.base(unit(batch["image"])), "label_index": batch["label_index"]}


class MorphologyFamily(Family):
    """Spiral or elliptical (or any other classes of cutouts)."""

    name = "morphology"
    recipe_type = MorphologyRecipe
    recipe: MorphologyRecipe

    def __init__(self, recipe: MorphologyRecipe, data: DataInfo):
        if data.record != "cutout" or not data.image_size:
            raise ConfigError(f"morphology: expected a dataset of cutouts, found {data.record!r}")
        if len(data.classes) < 2:
            raise ConfigError(f"morphology: expected two classes or more, found {data.classes}")
        super().__init__(recipe, data)
        if not self.display:
            self._check_bands()

    def _check_bands(self) -> None:
        wanted = set(self.recipe.colour.bands)
        if self.recipe.switch("colours") == "as_published":
            wanted = {band for mapping in PUBLISHED_MAPPINGS.values() for band in mapping.bands}
        if missing := wanted - set(self.data.bands):
            raise ConfigError(
                f"card {self.data.card!r}: bands: expected {sorted(wanted)}, found "
                f"{list(self.data.bands)}; set colour.bands to three of them"
                + (" and colours=corrected" if self.recipe.mode == "as_published" else "")
                + f" (missing: {sorted(missing)})"
            )

    @property
    def display(self) -> bool:
        """Whether the images are display images (JPEG, PNG), coloured already."""
        return tuple(self.data.bands) == DISPLAY_BANDS

    @property
    def positive(self) -> str:
        """The class that precision, recall and ROC speak of."""
        found = self.recipe.positive
        return found if found in self.data.classes else self.data.classes[-1]

    # training ------------------------------------------------------------------------------
    def build_model(self) -> VisionNetwork:
        return VisionNetwork(self.recipe.vision(), 3, len(self.data.classes), self.data.image_size)

    def initialise(self, model: nn.Module) -> None:
        load_pretrained(model, self.recipe.network.weights)

    @cached_property
    def _skeleton(self) -> VisionNetwork:
        """The network's names without its numbers, to choose layers by position."""
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            return self.build_model()

    def stages(self) -> list[Stage]:
        recipe = self.recipe
        cached = not (recipe.augment_head and recipe.augment.active)
        phases = [
            ("head", recipe.train_head, 1.0),
            ("middle", recipe.train_middle, recipe.middle_frozen),
            ("whole", recipe.train, recipe.whole_frozen),
        ]
        return [
            Stage(
                name=name,
                part=lambda model: model,
                loss=MorphologyLoss(
                    recipe.augment if recipe.augment.active else None, recipe.label_smoothing
                ),
                train=train,
                rows=self.training_rows,
                features=base_features if name == "head" and cached else None,
                trains=self._trains(frozen),
                monitor="loss",
                better="min",
            )
            for name, train, frozen in phases
            if train is not None
        ]

    def _trains(self, frozen: float) -> Callable[[str], bool]:
        unfrozen = unfreeze_from(self._skeleton, frozen)
        fixed: set[str] = set()
        if not self.recipe.train_norms:
            fixed = {
                f"backbone.{module}.{name}"
                for module, layer in self._skeleton.backbone.named_modules()
                if isinstance(layer, _NORMS)
                for name, _ in layer.named_parameters()
            }
        return lambda name: name not in fixed and unfrozen(name)

    def training_rows(self, columns: Columns) -> np.ndarray:
        """Return which rows are used: labelled, of training the chosen share of the objects."""
        known = columns["label_index"] >= 0
        chosen = columns["object_hash"] < self.recipe.fraction * 2**62
        return known & (~columns["is_train"] | chosen)

    @classmethod
    def examples(cls) -> list[Example]:
        return examples()

    @classmethod
    def search_space(cls, recipe: Recipe) -> dict[str, Choice | Range]:
        return {
            "train.optimizer.lr": Range(1e-5, 1e-3, log=True),
            "network.dropout": Range(0.0, 0.7),
            "network.head": Choice(((), (256,), (1024, 1024))),
            "whole_frozen": Choice((0.0, 2 / 132, 0.3)),
        }

    def columns(self, training: bool) -> list[str]:
        needed = ["image", "survey"]
        return [*needed, "label", "split", "object_key"] if training else needed

    def transform(self, columns: Columns, training: bool) -> Columns:
        """Return ``image`` uint8 [B, 3, S, S], coloured, in 8 bits as the released code's PNG.

        With `training` also ``label_index`` int64 [B] (-1 = none), ``is_train`` bool [B] and
        ``object_hash`` int64 [B] in [0, 2⁶²).
        """
        images = columns["image"]
        surveys = columns.get("survey", np.full(len(images), "", dtype=object))
        colour = [
            self._colour(image, str(name)) for image, name in zip(images, surveys, strict=True)
        ]
        size = self.data.image_size
        stacked = np.stack(colour) if colour else np.zeros((0, 3, size, size), np.float32)
        inputs: Columns = {"image": np.rint(255.0 * stacked).astype(np.uint8)}
        if training:
            order = {name: index for index, name in enumerate(self.data.classes)}
            inputs |= {
                "label_index": np.array([order.get(n, -1) for n in columns["label"]], np.int64),
                "is_train": np.asarray(columns["split"], dtype=str) == "train",
                "object_hash": _hashes(columns["object_key"]),
            }
        return inputs

    def transform_settings(self) -> dict[str, Any]:
        settings: dict[str, Any] = {"classes": list(self.data.classes), "display": self.display}
        if self.display:
            return settings
        published = self.recipe.switch("colours") == "as_published"
        return settings | {
            "bands": list(self.data.bands),
            "colour": "as_published" if published else self.recipe.colour.snapshot(),
            "clip": self.recipe.switch("clip"),
        }

    def _colour(self, image: np.ndarray, survey: str) -> np.ndarray:
        if self.display:
            return display_to_unit(image)
        if self.recipe.switch("colours") == "as_published":
            mapping = published_mapping(survey)
        else:
            mapping = self.recipe.colour.mapping()
        return to_colour(image, self.data.bands, mapping, self.recipe.switch("clip"))

    # after training ------------------------------------------------------------------------
    def optimise_for_inference(self, model: nn.Module) -> nn.Module:
        return optimised(model.eval(), self.recipe.precision)

    def export(self, model: nn.Module, calibration: dict[str, Any], tensors: Tensors) -> Export:
        return exported(self, model, calibration, tensors)

    def raw_outputs(self, model: nn.Module, inputs: Columns) -> Columns:
        known = inputs["label_index"] >= 0
        logits, features = forward(model, inputs["image"][known], self.recipe.views)
        return {"target": inputs["label_index"][known], "logits": logits, "features": features}

    def fit_calibration(self, found: Columns) -> tuple[dict[str, Any], Tensors]:
        target = found["target"]
        corrected = self.recipe.switch("probabilities") == "corrected"
        values = {"temperature": fit_temperature(found["logits"], target) if corrected else 1.0}
        gate = DomainGate.fit(found["features"], target)
        return values, {k: torch.as_tensor(v) for k, v in gate.to_tensors().items()}

    def predict(
        self, model: nn.Module, inputs: Columns, calibration: dict[str, Any], tensors: Tensors
    ) -> Columns:
        logits, features = forward(model, inputs["image"], self.recipe.views)
        probability = apply_temperature(logits, calibration["temperature"])
        gate = DomainGate.from_tensors({k: v.cpu().numpy() for k, v in tensors.items()})
        distance = gate.score(features)
        best = probability.argmax(axis=1)
        output: Columns = {
            "label": np.array(self.data.classes, dtype=object)[best],
            "probability": probability.max(axis=1).astype(np.float32),
            "in_domain": distance <= gate.threshold,
            "domain_distance": distance.astype(np.float32),
            "features": features,
        }
        for index, name in enumerate(self.data.classes):
            output[f"p_{name}"] = probability[:, index].astype(np.float32)
        if "label_index" in inputs:  # scoring: what maps and galleries show
            output["embedding"] = features
            output["thumbnail"] = thumbnails(inputs["image"], top_first=self.display)
        return output

    def output_columns(self) -> list[OutputColumn]:
        described = [
            ("label", "str", "", "most probable class"),
            ("probability", "float32", "", "calibrated probability of that class"),
            ("in_domain", "bool", "", "the image resembles the training data"),
            ("domain_distance", "float32", "", "Mahalanobis distance to the nearest class"),
        ]
        described += [(f"p_{c}", "float32", "", f"probability of {c}") for c in self.data.classes]
        return [OutputColumn(*entry) for entry in described]

    def detail_columns(self) -> list[str]:
        return ["features"]

    def truth_columns(self) -> list[str]:
        return ["label", "survey", "extra"]

    def scoring_table(self, table: Columns) -> Columns:
        """Return ``vote_share`` in place of the extras."""
        shares = metrics.vote_shares(table)
        found = {name: values for name, values in table.items() if name != "extra"}
        unknown = np.full(len(table["label"]), np.nan)
        return {**found, "vote_share": unknown if shares is None else shares}

    def evaluate(self, table: Columns, calibration: dict[str, Any]) -> dict[str, Any]:
        return metrics.evaluate_table(table, self.data.classes, self.positive)

    def figures(self, table: Columns, metrics: dict[str, Any], folder: Path) -> list[Path]:
        from skyray.families.morphology import figures  # matplotlib is no business of workers

        return figures.write_figures(table, metrics, folder, self.data.classes, self.positive)


@torch.inference_mode()
def forward(
    model: nn.Module, image_B3SS: np.ndarray, views: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Return logits float64 [B, C] and penultimate features float32 [B, P] of 8-bit images.

    With 8 `views` both are means over the image's flips and quarter turns: a galaxy has no up.
    """
    network = getattr(model, "network", model)
    device = network.output.weight.device
    size = _CHUNK_CUDA if device.type == "cuda" else _CHUNK
    logits = [np.zeros((0, network.output.out_features))]
    features = [np.zeros((0, network.output.in_features), np.float32)]
    for start in range(0, len(image_B3SS), size):
        chunk = torch.as_tensor(image_B3SS[start : start + size]).to(device)
        hidden = sum(model.features(unit(view)).float() for view in views_of(chunk, views)) / views
        features.append(hidden.cpu().numpy())
        logits.append(network.output(hidden).double().cpu().numpy())
    return np.concatenate(logits), np.concatenate(features)


def thumbnails(image_B3SS: np.ndarray, top_first: bool) -> np.ndarray:
    """Return small colour images with row 0 on top, uint8 [B, 48, 48, 3].

    `top_first` says where row 0 of the images is: on top in JPEG, at the bottom in FITS.
    """
    small = [fit_image(image, _THUMBNAIL, "resize") for image in image_B3SS]
    stacked = np.stack(small) if small else np.zeros((0, 3, _THUMBNAIL, _THUMBNAIL), np.float32)
    pictures = np.clip(np.rint(stacked), 0, 255).astype(np.uint8).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(pictures if top_first else pictures[:, ::-1])


def _hashes(names: Sequence[str]) -> np.ndarray:
    """Return a number in [0, 2⁶²) for each name, int64: always the same for the same name."""
    digests = (hashlib.sha256(f"fraction/{name}".encode()).digest() for name in names)
    return np.array([int.from_bytes(d[:8], "big") >> 2 for d in digests], dtype=np.int64)


FAMILY = MorphologyFamily
