"""Which domain do features come from? The discriminator of adversarial adaptation."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn


class Discriminator(nn.Module):
    """Features [B, F] → logits [B, 2] of source and target, through dense layers with ReLU.

    256-256-256-2 in Alexander et al. 2022; after Tzeng et al. 2017 (arXiv:1702.05464).
    """

    def __init__(self, features: int = 256, hidden: tuple[int, ...] = (256, 256)):
        super().__init__()
        widths = (features, *hidden)
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Linear(before, after), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], 2))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.layers(features)
