"""The normalizing flow over latents: a masked autoregressive flow with affine layers.

As in the DESI BGS outlier search (Liang et al. 2023): 5 × [affine MADE of 50 hidden units and 2
blocks with tanh → fixed random permutation] and a standard normal base. The layers are nflows' own
(Papamakarios et al. 2017; scale = softplus + 1e-3).

Shape suffixes: B batch, N rows, S latents.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from nflows.transforms import (
    CompositeTransform,
    MaskedAffineAutoregressiveTransform,
    RandomPermutation,
)
from torch import nn

PUBLISHED_FACTOR = 20.0


class LatentFlow(nn.Module):
    """A density over latents, in the latents' own units.

    Parameters
    ----------
    latents : int
        Number of latents S.
    layers : int
        Pairs of affine MADE and permutation.
    hidden, blocks : int
        Units of a MADE's hidden layers, and its hidden layers after the first.
    standardise : 'data' or float
        'data': `set_standardisation` takes mean and standard deviation from the training latents;
        until then mean 0 and scale 1. A number: latents are multiplied by it, as published (20),
        which suits latents of that spread only.

    Raises
    ------
    ValueError
        If a size is below 1 or the factor is not positive.

    Notes
    -----
    Weights and permutations follow torch's global random state; permutations and standardisation
    are buffers, so a state dict is the whole flow.
    """

    def __init__(
        self,
        latents: int,
        layers: int = 5,
        hidden: int = 50,
        blocks: int = 2,
        standardise: Literal["data"] | float = "data",
    ):
        super().__init__()
        if min(latents, layers, hidden, blocks) < 1:
            found = latents, layers, hidden, blocks
            raise ValueError(f"flow: expected latents, layers, hidden, blocks ≥ 1, found {found}")
        if standardise != "data" and not standardise > 0:
            raise ValueError(f"standardise: expected 'data' or a factor > 0, found {standardise}")
        self.latents, self.standardise = latents, standardise
        steps = []
        for _ in range(layers):
            made = MaskedAffineAutoregressiveTransform(
                features=latents,
                hidden_features=hidden,
                num_blocks=blocks,
                use_residual_blocks=False,
                activation=torch.tanh,
            )
            steps += [made, RandomPermutation(features=latents)]
        self.transform = CompositeTransform(steps)
        factor = 1.0 if standardise == "data" else float(standardise)
        self.register_buffer("mean", torch.zeros(latents))
        self.register_buffer("scale", torch.full((latents,), 1.0 / factor))

    @torch.no_grad()
    def set_standardisation(self, latent_NS: torch.Tensor) -> None:
        """Take mean and standard deviation from training latents; nothing to do with a factor.

        Raises
        ------
        ValueError
            With fewer than 2 rows, non-finite values or a latent that does not vary.
        """
        self._check(latent_NS)
        if self.standardise != "data":
            return
        latent = latent_NS.double()
        if len(latent) < 2 or not bool(latent.isfinite().all()):
            raise ValueError(f"flow: expected ≥ 2 finite rows, found {len(latent)} rows")
        scale = latent.std(dim=0)
        constant = torch.nonzero(scale <= 1e-7 * latent.abs().amax(dim=0)).flatten().tolist()
        if constant:
            raise ValueError(f"flow: latents {constant} do not vary, they cannot be standardised")
        self.mean.copy_(latent.mean(dim=0))
        self.scale.copy_(scale)

    def log_prob(self, latent_BS: torch.Tensor) -> torch.Tensor:
        """Return the natural log of the density per unit of latent space, float32 [B].

        The standardisation is part of the density: − Σ ln scale is included (with the published
        factor that is 6 ln 20 = 17.97 for 6 latents). Computed in float32 whatever the autocast
        state. Finite up to some 1e15 standard deviations; rows that are not finite give NaN.
        """
        self._check(latent_BS)
        with torch.autocast(device_type=latent_BS.device.type, enabled=False):
            u_BS = (latent_BS.to(self.mean.dtype) - self.mean) / self.scale
            base_BS, log_det_B = self.transform(u_BS)
            constant = 0.5 * self.latents * math.log(2.0 * math.pi)
            log_base_B = -0.5 * base_BS.square().sum(dim=1) - constant
            return log_base_B + log_det_B - self.scale.log().sum()

    def forward(self, latent_BS: torch.Tensor) -> torch.Tensor:
        """Return `log_prob`: training wrappers call the module itself."""
        return self.log_prob(latent_BS)

    @torch.no_grad()
    def sample(self, n: int) -> torch.Tensor:
        """Draw latents, float32 [n, S], from torch's global random state."""
        base = torch.randn(n, self.latents, device=self.mean.device, dtype=self.mean.dtype)
        with torch.autocast(device_type=base.device.type, enabled=False):
            u_NS, _ = self.transform.inverse(base)
            return u_NS * self.scale + self.mean

    def _check(self, latent: torch.Tensor) -> None:
        if latent.ndim != 2 or latent.shape[1] != self.latents:
            raise ValueError(f"flow: expected latents [B, {self.latents}], found {latent.shape}")
