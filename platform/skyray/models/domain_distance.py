"""The in-domain gate as layers, for networks that are given to other runtimes."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn


class DomainDistance(nn.Module):
    """What `skyray.analysis.domain.DomainGate` measures, in torch.

    Parameters
    ----------
    tensors : mapping
        Of `DomainGate.to_tensors`, other names are ignored.
    prefix : str
        Before each name.
    """

    centre: torch.Tensor
    whitener: torch.Tensor
    means: torch.Tensor

    def __init__(self, tensors: Mapping[str, torch.Tensor], prefix: str = ""):
        super().__init__()
        for name in ("centre", "whitener", "means"):
            value = tensors[f"{prefix}domain_{name}"].detach().cpu().double()
            self.register_buffer(name, value)
        self.threshold = float(tensors[f"{prefix}domain_threshold"][0])

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the distance to the nearest class mean, float64 [B], and whether it is inside.

        The distance is infinite where features [B, D] are not finite.
        """
        white = (features.double() - self.centre) @ self.whitener
        nearest = (white[:, None] - self.means).square().sum(dim=2).amin(dim=1).sqrt()
        finite = torch.isfinite(features).all(dim=1)
        distance = nearest.masked_fill(~finite, torch.inf)
        return distance, distance <= self.threshold
