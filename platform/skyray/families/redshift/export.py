"""GaSNet-II's network of networks as one graph: classifier, routing, ensembles, calibration.

Every row passes the classifier and the members of its own class alone, as in the bundle: rows are
gathered by class, so that the graph costs one class's ensemble and not all of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from skyray.families.base import Export, NotExportable, Port, Tensors, tolerance_behind
from skyray.families.redshift.networks import GasNetPipeline
from skyray.models.domain_distance import DomainDistance

if TYPE_CHECKING:
    from skyray.families.redshift.family import RedshiftFamily

MIN_COVERAGE = 0.5  # smallest measured share of a spectrum in the domain


class ExportedRedshift(nn.Module):
    """All networks and what makes an answer of them."""

    def __init__(
        self, family: RedshiftFamily, model: GasNetPipeline, calibration: dict[str, Any],
        tensors: Tensors,
    ):  # fmt: skip
        super().__init__()
        self.recipe, self.classes = family.recipe, list(family.data.classes)
        self.model, self.gate = model, DomainDistance(tensors)
        self.temperature = calibration["temperature"]
        self.star_error = calibration["star_redshift_err"]
        moving = [name for i, name in enumerate(self.classes) if i not in family.star_classes]
        self.sigma = {
            name: calibration["sigma"][name]
            for name in moving
            if name in model.redshift and name in calibration["sigma"]
        }
        self.register_buffer("stars", torch.tensor(family.star_classes, dtype=torch.int64))

    def forward(self, x: torch.Tensor, coverage: torch.Tensor):
        """Return class, probabilities, redshift, its error, in_domain and domain_distance."""
        features = self.model.classifier.features(x)
        logits = self.model.classifier.head(features).double()
        probability = torch.softmax(logits / self.temperature, dim=1)
        best = probability.argmax(dim=1)
        redshift, error = self._at_rest(best, probability)
        for name, sigma in self.sigma.items():
            rows = torch.nonzero(best == self.classes.index(name))[:, 0]
            z, spread = self._ensemble(name, x[rows])
            redshift = redshift.index_put((rows,), z)
            wide = (spread.square() + sigma["floor"] ** 2).sqrt()
            error = error.index_put((rows,), sigma["scale"] * wide)
        distance, inside = self.gate(features)
        inside = inside & (coverage >= MIN_COVERAGE)
        return best, probability.float(), redshift, error, inside, distance.float()

    def _at_rest(self, best: torch.Tensor, like: torch.Tensor):
        """Return redshift and error of stars, NaN for all others; float64 [B]."""
        star = (best[:, None] == self.stars).any(dim=1)
        none = torch.full_like(like[:, 0], torch.nan)
        width = torch.full_like(none, self.star_error)
        return torch.where(star, torch.zeros_like(none), none), torch.where(star, width, none)

    def _ensemble(self, name: str, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return mean and standard deviation over the members of a class, float64 [B]."""
        outputs = [member(x)[:, 0].double() for member in self.model.redshift[name]]
        z = torch.stack(outputs) / self.recipe.redshift_scale
        if self.recipe.redshift_target == "log":
            z = torch.exp(z) - 1.0  # ONNX has no expm1; nothing is lost in double
        mean = z.mean(dim=0)
        return mean, (z - mean).square().mean(dim=0).sqrt()


def exported(
    family: RedshiftFamily, model: GasNetPipeline, calibration: dict[str, Any], tensors: Tensors
) -> Export:
    """Return the graph of the networks; templates are fitted by skyray alone.

    Raises
    ------
    NotExportable
        For a recipe without networks.
    """
    recipe, classes = family.recipe, tuple(family.data.classes)
    if not recipe.networks:
        raise NotExportable(f"recipe {recipe.name}: fits templates; there is no network to export")
    first, last = recipe.input.grid().wavelength()[[0, -1]]
    grid = f"flux at {recipe.input.pixels} wavelengths, {first:.1f} to {last:.1f} Angstrom"
    inputs = (
        Port("x", "float32", (recipe.input.pixels,), "", f"{grid} (settings: input), of rms 1"),
        Port("coverage", "float32", (), "", "measured share of these wavelengths"),
    )
    # beside templates the catalogue's redshift is that of both, and the networks' has another name
    z = "redshift_network" if family.fits_templates else "redshift"
    outputs = (
        Port("class", "int64", (), "", "number of the networks' most probable class", ("label",)),
        Port("probabilities", "float32", (len(classes),), "", "calibrated, of each class",
             tuple(f"p_{name}" for name in classes)),
        Port(z, "float64", (), "", "redshift of that class's networks; 0 for stars, NaN for none"),
        Port(f"{z}_err", "float64", (), "", "its 1 sigma uncertainty"),
        Port("in_domain", "bool", (), "", "the spectrum resembles the training data"),
        Port("domain_distance", "float32", (), "", "Mahalanobis distance to the nearest class",
             tolerance=tolerance_behind(tensors["domain_whitener"])),
    )  # fmt: skip
    graph = ExportedRedshift(family, model, calibration, tensors)
    return Export(graph.eval(), inputs, outputs, classes)
