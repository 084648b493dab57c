"""Both lens classifiers as one graph: images and their survey in, calibrated classes out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from skyray.families.base import Export, Port, Tensors, tolerance_behind
from skyray.families.lensing.adaptation import SOURCE
from skyray.families.lensing.networks import ServingModel
from skyray.models.domain_distance import DomainDistance

if TYPE_CHECKING:
    from skyray.families.lensing.family import LensingFamily


class ExportedLensing(nn.Module):
    """Source and adapted network, the route between them, temperature, gates, survey's odds."""

    def __init__(self, model: ServingModel, temperature: float, tensors: Tensors):
        super().__init__()
        self.model, self.temperature = model, temperature
        self.source_gate = DomainDistance(tensors, "source_")
        self.adapted_gate = DomainDistance(tensors, "adapted_")
        for name in ("mean", "weight", "bias"):
            self.register_buffer(name, tensors[f"domain_{name}"].detach().cpu().double())

    def forward(self, image: torch.Tensor, domain: torch.Tensor):
        """Return class, probabilities, p_target_survey, in_domain and domain_distance."""
        before, logits = self.model.source(image)
        after, inside = before, domain == SOURCE
        distance, known = self.source_gate(before)
        if self.model.adapted is not self.model.source:
            after, adapted = self.model.adapted(image)
            logits = torch.where(inside[:, None], logits, adapted)
        others, others_known = self.adapted_gate(after)
        probability = torch.softmax(logits.double() / self.temperature, dim=1)
        return (
            probability.argmax(1), probability.float(),
            torch.sigmoid((before.double() - self.mean) @ self.weight + self.bias).float(),
            (inside & known) | (~inside & others_known),
            torch.where(inside, distance, others).float(),
        )  # fmt: skip


def exported(
    family: LensingFamily, model: ServingModel, calibration: dict[str, Any], tensors: Tensors
) -> Export:
    """Return the graph of both classifiers (see `Family.export`)."""
    recipe, data = family.recipe, family.data
    classes, size = tuple(data.classes), data.image_size
    field = f", brought to {recipe.field_arcsec} arcsec" if recipe.field_arcsec else ""
    rms = ", divided by their rms" if recipe.switch("scaling") == "corrected" else ""
    bands = f"bands {', '.join(data.bands)}"
    whiteners = [tensors[f"{which}_domain_whitener"] for which in ("source", "adapted")]
    inputs = (
        Port("image", "float32", (len(data.bands), size, size), "",
             f"{bands}; NaN as 0{field}{rms}"),
        Port("domain", "int64", (), "",
             f"0 {recipe.source}, 1 {recipe.target}, 2 any other survey"),
    )  # fmt: skip
    outputs = (
        Port("class", "int64", (), "", "number of the most probable class", ("label",)),
        Port("probabilities", "float32", (len(classes),), "", "calibrated, of each class",
             tuple(f"p_{name}" for name in classes)),
        Port("p_target_survey", "float32", (), "", "probability of the target's telescope",
             tolerance=tolerance_behind(tensors["domain_weight"])),
        Port("in_domain", "bool", (), "", "the image resembles those the network learnt from"),
        Port("domain_distance", "float32", (), "", "Mahalanobis distance to the nearest class",
             tolerance=tolerance_behind(*whiteners)),
    )  # fmt: skip
    graph = ExportedLensing(model, calibration["temperature"], tensors)
    return Export(graph.eval(), inputs, outputs, classes)
