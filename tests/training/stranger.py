"""A family as a stranger would write one: colour classes of spectra, by a linear network."""

from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import nn
from torch.nn import functional

from skyray.cards import load_card
from skyray.families.base import Choice, Example, Family, OutputColumn, Range, Recipe, Stage


class ColourRecipe(Recipe):
    """Everything a run depends on."""

    family: Literal["colour"] = "colour"
    bins: int = Field(6, ge=2)
    hidden: int = Field(4, ge=1)


class ColourLoss:
    """Cross-entropy."""

    def __call__(self, part, batch):
        logits = part(batch["x"])
        loss = functional.cross_entropy(logits, batch["label_index"])
        right = (logits.argmax(1) == batch["label_index"]).float().mean()
        return loss, {"accuracy": right}


class ColourFamily(Family):
    """Mean flux in a few bins of wavelength → class."""

    name = "colour"
    recipe_type = ColourRecipe

    @classmethod
    def examples(cls):
        return [Example(ColourRecipe(name="tiny"), load_card("sdss_coarse"), rows=18)]

    @classmethod
    def search_space(cls, recipe):
        return {"train.optimizer.lr": Range(1e-4, 1e-2, log=True), "hidden": Choice((2, 8))}

    def build_model(self):
        hidden = self.recipe.hidden
        classes = len(self.data.classes)
        return nn.Sequential(nn.Linear(self.recipe.bins, hidden), nn.ReLU(),
                             nn.Linear(hidden, classes))  # fmt: skip

    def stages(self):
        return [
            Stage(
                "classifier", lambda model: model, ColourLoss(), self.recipe.train,
                rows=lambda columns: columns["label_index"] >= 0, monitor="accuracy", better="max",
            ),
            Stage(
                "last", lambda model: model[2], ColourLoss(), self.recipe.train,
                features=self.features, trains=lambda name: name == "bias",
            ),
        ]  # fmt: skip

    def features(self, model, batch):
        return {"x": model[1](model[0](batch["x"])), "label_index": batch["label_index"]}

    def columns(self, training):
        return ["flux", "label"] if training else ["flux"]

    def transform(self, columns, training):
        parts = np.array_split(columns["flux"], self.recipe.bins, axis=1)
        x = np.stack([np.ascontiguousarray(part).mean(axis=1) for part in parts], axis=1)
        inputs = {"x": x.astype(np.float32)}
        if training:
            order = {name: index for index, name in enumerate(self.data.classes)}
            inputs["label_index"] = np.array([order[n] for n in columns["label"]], np.int64)
        return inputs

    def transform_settings(self):
        return {"bins": self.recipe.bins, "classes": list(self.data.classes)}

    def raw_outputs(self, model, inputs):
        return {"x": inputs["x"]}

    def fit_calibration(self, found):
        return {"temperature": 1.0}, {"mean": torch.as_tensor(found["x"].mean(0))}

    @torch.inference_mode()
    def predict(self, model, inputs, calibration, tensors):
        logits = model(torch.as_tensor(inputs["x"])) / calibration["temperature"]
        probability, best = logits.softmax(1).max(1)
        distance = (torch.as_tensor(inputs["x"]) - tensors["mean"]).norm(dim=1)
        return {
            "label": np.array(self.data.classes, dtype=object)[best.numpy()],
            "probability": probability.numpy(),
            "distance": distance.numpy(),
        }

    def output_columns(self):
        return [
            OutputColumn("label", "str", "", "most probable class"),
            OutputColumn("probability", "float32", "", "of that class"),
            OutputColumn("distance", "float32", "", "to the mean of training"),
        ]

    def truth_columns(self):
        return ["label"]

    def evaluate(self, table, calibration):
        right = np.asarray(table["label"], str) == np.asarray(table["label_pred"], str)
        return {"accuracy": float(right.mean())}

    def figures(self, table, metrics, folder):
        return []
