"""The model of the outlier search, and the losses of its three stages.

Shape suffixes: B batch, L observed pixels, R rest-frame pixels, S latents.
"""

from __future__ import annotations

from copy import copy

import numpy as np
import torch
from torch import nn

from skyray.families.base import Tensors
from skyray.families.outliers import losses
from skyray.families.outliers.augment import augment
from skyray.families.outliers.metrics import invariance_ratio
from skyray.families.outliers.recipes import OutliersRecipe
from skyray.models.fast_spender import fast_encoder
from skyray.models.flow import LatentFlow
from skyray.models.spender import (
    Instrument,
    Reconstruction,
    SpectrumAutoencoder,
    SpectrumDecoder,
    SpectrumEncoder,
)
from skyray.records import Grid


class OutlierModel(nn.Module):
    """Autoencoder and flow of a recipe.

    Parameters
    ----------
    recipe : OutliersRecipe
    grid : Grid
        Observed wavelengths of the encoder's input.
    """

    def __init__(self, recipe: OutliersRecipe, grid: Grid):
        super().__init__()
        network, rest = recipe.network, recipe.network.rest()
        kernel = None if network.lsf_kernel is None else torch.tensor(network.lsf_kernel)
        self.autoencoder = SpectrumAutoencoder(
            SpectrumEncoder(
                grid.size, network.latents, network.widths, network.kernels, network.pools,
                network.encoder_hidden,
            ),
            SpectrumDecoder(rest, network.latents, network.decoder_hidden, network.activation),
            Instrument(grid, kernel, subpixels=network.subpixels),
        )  # fmt: skip
        flow = recipe.flow
        standardise = "data" if recipe.switch("flow_scale") == "corrected" else 20.0
        self.flow = LatentFlow(network.latents, flow.layers, flow.hidden, flow.blocks, standardise)

    def fast(self) -> OutlierModel:
        """Return a model that shares all weights but encodes faster; this keeps its encoder."""
        fast, autoencoder = copy(self), copy(self.autoencoder)
        fast._modules, autoencoder._modules = dict(fast._modules), dict(autoencoder._modules)
        autoencoder.encoder = fast_encoder(self.autoencoder.encoder)
        fast.autoencoder = autoencoder
        return fast


class FidelityLoss:
    """Stage 1: how well the reconstruction explains the observed pixels (paper eq. 1)."""

    def __init__(self, recipe: OutliersRecipe, grid: Grid, blind_L: np.ndarray):
        self.recipe, self.grid = recipe, grid
        self._blind_L = torch.as_tensor(blind_L)
        self._sum = recipe.switch("fidelity_reduction") == "as_published"

    def __call__(self, part: SpectrumAutoencoder, batch: Tensors):
        made = part(batch["y"], batch["z"])
        loss, metrics = self._fidelity(made, batch)
        if not part.training:
            metrics["invariance"] = _invariance(made.latent, self._augmented(part, batch))
        return loss, metrics

    def _fidelity(self, made: Reconstruction, batch: Tensors):
        each_B = losses.fidelity(batch["y"], batch["w"], made.model, made.valid, "none")
        used = ((batch["w"] > 0) & made.valid).sum().clamp(min=1)
        chi2 = 2.0 * each_B.detach().sum() * batch["y"].shape[1] / used
        loss = each_B.sum() if self._sum else each_B.mean()
        return loss, {"fidelity": each_B.detach().mean(), "chi2": chi2}

    def _augmented(self, part: SpectrumAutoencoder, batch: Tensors) -> torch.Tensor:
        how = self.recipe.invariance
        moved = augment(
            batch["y"], batch["w"], batch["z"], self.grid,
            z_min=how.redshift_low, z_max=how.redshift_high,
            noise_share=how.noise_share, noise_level=how.noise_level,
            mode=self.recipe.switch("masked_pixels"), masked_L=self._blind_L.to(batch["y"].device),
        )  # fmt: skip
        return part.encoder(moved.y)


class InvarianceLoss(FidelityLoss):
    """Stage 2: fidelity, similarity of decoded spectra and latents, consistency under redshift.

    `begin_epoch` sets the slope k of the similarity loss (see `losses.k_schedule`).
    """

    def __init__(self, recipe: OutliersRecipe, grid: Grid, blind_L: np.ndarray):
        super().__init__(recipe, grid, blind_L)
        how = recipe.invariance
        self.k = 0.0
        self._published = recipe.switch("loss_scale") == "as_published"
        self._scale = "published" if self._published else "relative"
        self._wavelength_R = torch.as_tensor(recipe.network.rest().wavelength()).float()
        self._weight_R = losses.similarity_weight(
            self._wavelength_R, how.similarity_amplitude, 5000.0, how.similarity_width
        )
        rising = recipe.switch("k_schedule") == "corrected"
        self._k_kind = "ramp" if rising else how.k_kind

    def begin_epoch(self, epoch: int) -> None:
        epochs = self.recipe.train_invariance.epochs
        top = self.recipe.invariance.k_maximum if self._k_kind == "ramp" else None
        self.k = losses.k_schedule(epoch, epochs, self._k_kind, top)

    def __call__(self, part: SpectrumAutoencoder, batch: Tensors):
        how, rows = self.recipe.invariance, len(batch["y"])
        made = part(batch["y"], batch["z"])
        fidelity, metrics = self._fidelity(made, batch)
        device = made.latent.device
        wavelength_R, weight_R = self._wavelength_R.to(device), self._weight_R.to(device)
        rest_BR = made.rest / losses.rest_median(made.rest, wavelength_R)
        similarity = losses.similarity(made.latent, rest_BR, weight_R, self.k, self._scale)
        augmented = self._augmented(part, batch)
        consistency = losses.consistency(
            made.latent, augmented, self._scale, how.consistency_tolerance
        )
        if self._published:
            consistency = self.k * consistency
        extra = how.similarity_weight * similarity + how.consistency_weight * consistency
        loss = fidelity + (extra if self._sum else extra / rows)
        metrics |= {
            "similarity": similarity.detach() / rows, "consistency": consistency.detach() / rows,
        }  # fmt: skip
        if not part.training:
            metrics["invariance"] = _invariance(made.latent, augmented)
        return loss, metrics


def _invariance(latent_BS: torch.Tensor, augmented_BS: torch.Tensor) -> torch.Tensor:
    """Return the batch's invariance ratio as a scalar tensor; NaN for a batch of one."""
    pair = (t.float().cpu().numpy() for t in (latent_BS, augmented_BS))
    return torch.tensor(invariance_ratio(*pair), device=latent_BS.device)


def flow_loss(part: LatentFlow, batch: Tensors):
    """Stage 3: mean −log p of the latents."""
    loss = -part.log_prob(batch["latent"].float()).mean()
    return loss, {}
