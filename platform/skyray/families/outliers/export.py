"""Autoencoder and flow as one graph: a normalised spectrum and its redshift in, scores out.

What ranks an object among others (isolation forest, percentile, strangeness) and what whitens by
the model's own error stays with skyray: it needs the population, not the network.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from skyray.families.base import Export, Port
from skyray.families.outliers.networks import OutlierModel

if TYPE_CHECKING:
    from skyray.families.outliers.family import OutliersFamily


class ExportedOutliers(nn.Module):
    """Latents, their density and how well the reconstruction fits."""

    def __init__(self, model: OutlierModel):
        super().__init__()
        self.model = model

    def forward(self, y: torch.Tensor, w: torch.Tensor, z: torch.Tensor):
        """Return latent, neg_log_p, chi2_reduced, fidelity and missing; NaN without any weight."""
        made = self.model.autoencoder(y, z)
        latent = made.latent.float()
        log_p = self.model.flow.log_prob(latent)
        used = made.valid & (w > 0)
        weight = torch.where(used, w, torch.zeros_like(w)).double()
        pixels = used.double().sum(dim=1)
        chi2 = ((y.double() - made.model.double()).square() * weight).sum(dim=1)
        size = y.shape[1]

        def known(values: torch.Tensor, where: torch.Tensor) -> torch.Tensor:
            return torch.where(where, values.float(), torch.full_like(values.float(), torch.nan))

        good = (w > 0).any(dim=1)
        fitted = good & (pixels > 0)
        return (
            known(latent, good[:, None]), known(-log_p, good),
            known(chi2 / pixels.clamp(min=1.0), fitted), known(0.5 * chi2 / size, fitted),
            (1.0 - pixels / size).float(),
        )  # fmt: skip


def exported(family: OutliersFamily, model: OutlierModel) -> Export:
    """Return the graph of a population's model (see `Family.export`)."""
    grid, how = family.grid, family.recipe.input
    first, last = grid.wavelength()[[0, -1]]
    low, high = how.normalise_low, how.normalise_high
    flux = f"flux at {grid.size} wavelengths, {first:.1f} to {last:.1f} Angstrom, over the median"
    latents = family.recipe.network.latents
    inputs = (
        Port("y", "float32", (grid.size,), "", f"{flux} at rest {low:g}-{high:g}; 0 if impossible"),
        Port("w", "float32", (grid.size,), "", "inverse variance of y; 0 where not measured"),
        Port("z", "float32", (), "", "redshift"),
    )  # fmt: skip
    outputs = (
        Port("latent", "float32", (latents,), "", "latents of the autoencoder; NaN if w is all 0",
             tuple(f"latent_{i}" for i in range(latents))),
        Port("neg_log_p", "float32", (), "", "-log density of the latent (natural logarithm)"),
        Port("chi2_reduced", "float32", (), "", "chi2 of the reconstruction per measured pixel"),
        Port("fidelity", "float32", (), "", "chi2 / 2 over all pixels"),
        Port("missing", "float32", (), "", "share of pixels without weight"),
    )  # fmt: skip
    return Export(ExportedOutliers(model).eval(), inputs, outputs)
