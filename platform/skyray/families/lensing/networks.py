"""The networks of one run: a source classifier, its adapted twin and what adaptation needs."""

from __future__ import annotations

import copy
from typing import Literal

import torch
from torch import nn

from skyray.families.lensing.recipes import LensingRecipe, NetworkConfig
from skyray.models.discriminator import Discriminator
from skyray.models.equivariant import EquivariantEncoder
from skyray.models.vision import VisionNetwork
from skyray.models.vision_inference import bf16_support, optimised


class LensClassifier(nn.Module):
    """Images [B, C, S, S] → features [B, F] → logits [B, K]."""

    def __init__(self, encoder: nn.Module, classifier: nn.Linear):
        super().__init__()
        self.encoder, self.classifier = encoder, classifier

    @classmethod
    def build(cls, config: NetworkConfig, bands: int, size: int, classes: int) -> LensClassifier:
        """Return an untrained classifier.

        An equivariant encoder ends in its own dense layers; behind a timm backbone a dense layer
        gives the features.
        """
        if config.encoder == "equivariant":
            encoder = EquivariantEncoder(config.equivariant, bands, size, config.features)
        else:
            encoder = VisionNetwork(config.vision, bands, config.features, size)
        return cls(encoder, nn.Linear(config.features, classes))

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return features and logits."""
        features = self.encoder(image)
        return features, self.classifier(features)

    def optimised(self, precision: Literal["float32", "bf16"]) -> LensClassifier:
        """Return a copy for inference; the dense layers stay in float32."""
        if isinstance(self.encoder, EquivariantEncoder):
            encoder = self.encoder.exported(precision)
        else:
            encoder = optimised(self.encoder, precision)
        return LensClassifier(encoder, copy.deepcopy(self.classifier)).eval()

    def plain(self) -> LensClassifier:
        """Return a copy in torch's own layers, float32."""
        if isinstance(self.encoder, EquivariantEncoder):
            return self.optimised("float32")
        return copy.deepcopy(self).eval()


class LensingModel(nn.Module):
    """Everything a run trains; both encoders leave norms that do not learn in evaluation mode.

    Attributes
    ----------
    source : LensClassifier
        Learns the source's labels, then rests.
    adapted : LensClassifier
        Starts as a copy of `source`; what answers on the target. Absent with ``source_only``.
    student : LensClassifier
        With ``self_ensembling``: what learns; `adapted` is its running mean.
    discriminator : Discriminator
        With ``adda`` and ``dann``.
    prior : float [K]
        Running mean of the predictions on target batches.
    """

    def __init__(self, recipe: LensingRecipe, bands: int, size: int, classes: int):
        super().__init__()
        config, method = recipe.network, recipe.method
        self.source = LensClassifier.build(config, bands, size, classes)
        if method != "source_only":
            self.adapted = LensClassifier.build(config, bands, size, classes)
        if method == "self_ensembling":
            self.student = LensClassifier.build(config, bands, size, classes)
        if method in ("adda", "dann"):
            self.discriminator = Discriminator(config.features, config.discriminator)
        self.register_buffer("prior", torch.full((classes,), 1.0 / classes))

    def begin_adaptation(self) -> None:
        """Let the adapted network, and the student, start as the source network is now."""
        state = self.source.state_dict()
        self.adapted.load_state_dict(state)
        if hasattr(self, "student"):
            self.student.load_state_dict(state)

    def optimised(self, precision: Literal["auto", "float32", "bf16"]) -> ServingModel:
        """Return the two classifiers in inference form."""
        if precision == "auto":
            device = next(self.parameters()).device
            precision = "bf16" if bf16_support(device)[0] else "float32"
        source = self.source.optimised(precision)
        return ServingModel(
            source, self.adapted.optimised(precision) if hasattr(self, "adapted") else source
        )

    def plain(self) -> ServingModel:
        """Return the two classifiers in torch's own layers, float32."""
        source = self.source.plain()
        return ServingModel(source, self.adapted.plain() if hasattr(self, "adapted") else source)


class ServingModel(nn.Module):
    """Source and adapted classifier for inference; with ``source_only`` they are one."""

    def __init__(self, source: LensClassifier, adapted: LensClassifier):
        super().__init__()
        self.source, self.adapted = source, adapted
        self.eval().requires_grad_(False)
