"""The morphology classifier as one graph: 8-bit images in, calibrated classes out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from skyray.families.base import Export, Port, Tensors, tolerance_behind
from skyray.families.morphology.views import unit, views_of
from skyray.models.domain_distance import DomainDistance
from skyray.models.vision import VisionNetwork

if TYPE_CHECKING:
    from skyray.families.morphology.family import MorphologyFamily


class ExportedMorphology(nn.Module):
    """Network, mean over the image's views, temperature and gate."""

    def __init__(
        self, network: VisionNetwork, calibration: dict[str, Any], tensors: Tensors, views: int
    ):
        super().__init__()
        self.network, self.gate = network, DomainDistance(tensors)
        self.temperature, self.views = calibration["temperature"], views

    def forward(self, image: torch.Tensor):
        """Return class, probabilities, in_domain, domain_distance and features."""
        views = views_of(unit(image), self.views)
        hidden = sum(self.network.features(view) for view in views) / self.views
        logits = self.network.output(hidden).double()
        probability = torch.softmax(logits / self.temperature, dim=1)
        distance, inside = self.gate(hidden)
        return probability.argmax(1), probability.float(), inside, distance.float(), hidden


def exported(
    family: MorphologyFamily, network: VisionNetwork, calibration: dict[str, Any], tensors: Tensors
) -> Export:
    """Return the graph of a classifier (see `Family.export`)."""
    classes = tuple(family.data.classes)
    size, width = network.image_size, (network.output.in_features,)
    about = "red, green, blue as the settings colour them, 0 to 255; row 0 is that of the file"
    outputs = (
        Port("class", "int64", (), "", "number of the most probable class", ("label",)),
        Port("probabilities", "float32", (len(classes),), "", "calibrated, of each class",
             tuple(f"p_{name}" for name in classes)),
        Port("in_domain", "bool", (), "", "the image resembles the training data"),
        Port("domain_distance", "float32", (), "", "Mahalanobis distance to the nearest class",
             tolerance=tolerance_behind(tensors["domain_whitener"])),
        Port("features", "float32", width, "", "penultimate features", ("features",)),
    )  # fmt: skip
    graph = ExportedMorphology(network, calibration, tensors, family.recipe.views)
    image = Port("image", "uint8", (3, size, size), "", about)
    return Export(graph.eval(), (image,), outputs, classes)
