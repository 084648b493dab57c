"""The alert classifier as one graph: images and metadata in, calibrated answers out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from skyray.families.alerts.recipes import AlertsRecipe
from skyray.families.base import DataInfo, Export, Port, Tensors, tolerance_behind
from skyray.models.domain_distance import DomainDistance
from skyray.models.vision import VisionNetwork

if TYPE_CHECKING:
    from skyray.families.alerts.family import AlertsFamily


class ExportedAlerts(nn.Module):
    """Network, prior of the training, temperature and gate."""

    def __init__(self, network: VisionNetwork, calibration: dict[str, Any], tensors: Tensors):
        super().__init__()
        self.network, self.gate = network, DomainDistance(tensors)
        self.offset, self.temperature = calibration["offset"], calibration["temperature"]

    def forward(self, image: torch.Tensor, metadata: torch.Tensor | None = None):
        """Return class, score, probability, in_domain, domain_distance and features."""
        hidden = self.network.features(image, metadata)
        logit = self.network.output(hidden)[:, 0].double()
        probability = torch.sigmoid((logit - self.offset) / self.temperature).float()
        distance, inside = self.gate(hidden)
        return (
            (probability >= 0.5).long(), torch.sigmoid(logit).float(), probability, inside,
            distance.float(), hidden,
        )  # fmt: skip


def exported(
    family: AlertsFamily, network: VisionNetwork, calibration: dict[str, Any], tensors: Tensors
) -> Export:
    """Return the graph of a classifier (see `Family.export`)."""
    positive, features = family.positive, family.features if family.multimodal else ()
    size = (network.bands, network.image_size, network.image_size)
    width = (network.output.in_features,)
    inputs = [Port("image", "float32", size, "", _image(family.recipe, family.data))]
    if features:
        about = "the card's features, NaN where unknown; see docs/alerts.md"
        inputs.append(Port("metadata", "float32", (len(features),), "", about, features))
    outputs = (
        Port("class", "int64", (), "", "number in classes", ("label",)),
        Port("score", "float32", (), "", f"network score of {positive}"),
        Port("probability", "float32", (), "", f"calibrated probability of {positive}"),
        Port("in_domain", "bool", (), "", "the alert resembles the training data"),
        Port(
            "domain_distance",
            "float32",
            (),
            "",
            "Mahalanobis distance to the nearest class",
            tolerance=tolerance_behind(tensors["domain_whitener"]),
        ),
        Port("features", "float32", width, "", "penultimate features", ("features",)),
    )
    graph = ExportedAlerts(network, calibration, tensors)
    return Export(graph.eval(), tuple(inputs), outputs, (family.negative, positive))


def _image(recipe: AlertsRecipe, data: DataInfo) -> str:
    if data.record != "alert":
        scale = "asinh((flux − median) / 3σ) / 3" if recipe.cutout_stretch == "asinh" else "flux"
        return f"bands {', '.join(data.bands)}, each {scale}, σ = 1.4826 MAD; NaN as 0"
    crop = f", the central {recipe.crop} pixels" if recipe.crop else ""
    times = f", times {recipe.crop or data.image_size}" if recipe.input_scale == "rms" else ""
    return f"science, template, difference{crop}; NaN as 0, each divided by its norm{times}"
