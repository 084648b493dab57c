"""GaSNet-II's network of networks: one classifier and, for each extragalactic class, an ensemble.

Loss functions and the redshift target are here beside them (paper §3.2, eqs. 3–6).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from skyray.families.base import Tensors
from skyray.families.redshift.recipes import RedshiftRecipe
from skyray.models.gasnet import GasNet, fold_batch_norm

# Rows per forward pass: the working set of a chunk stays in a CPU core's cache.
_CHUNK = 32
_CHUNK_CUDA = 1024


class GasNetPipeline(nn.Module):
    """The classifier and the redshift ensembles of a recipe.

    Parameters
    ----------
    recipe : RedshiftRecipe
    classes : number of classes
    redshift_classes : names of the classes with redshift networks
    """

    def __init__(self, recipe: RedshiftRecipe, classes: int, redshift_classes: list[str]):
        super().__init__()

        def network(outputs: int) -> GasNet:
            return GasNet(
                recipe.input.pixels,
                outputs,
                recipe.network.widths,
                recipe.network.dense,
                recipe.network.dropout,
                "published" if recipe.switch("init") == "as_published" else "he",
            )

        self.classifier = network(classes)
        self.redshift = nn.ModuleDict(
            {
                name: nn.ModuleList(network(1) for _ in range(recipe.members))
                for name in redshift_classes
            }
        )

    def folded(self) -> GasNetPipeline:
        """Return an evaluation copy with all batch norms folded."""
        made = GasNetPipeline.__new__(GasNetPipeline)
        nn.Module.__init__(made)
        made.classifier = fold_batch_norm(self.classifier)
        made.redshift = nn.ModuleDict(
            {
                name: nn.ModuleList(fold_batch_norm(member) for member in members)
                for name, members in self.redshift.items()
            }
        )
        return made.eval()


def encode_redshift(z: torch.Tensor, recipe: RedshiftRecipe) -> torch.Tensor:
    """Return the network's target: scale·clip(z), or scale·ln(1 + clip(z))."""
    clipped = z.clamp(0.0, recipe.redshift_max)
    if recipe.redshift_target == "log":
        clipped = torch.log1p(clipped)
    return recipe.redshift_scale * clipped


def decode_redshift(y, recipe: RedshiftRecipe):
    """Invert `encode_redshift` (not clipped); tensor in, tensor out, or numpy array likewise."""
    z = y / recipe.redshift_scale
    if recipe.redshift_target == "linear":
        return z
    return torch.expm1(z) if isinstance(z, torch.Tensor) else np.expm1(z)


def augment(x_BP: torch.Tensor, share: float, training: bool) -> torch.Tensor:
    """Add white noise of a random level up to `share` of the unit rms, in training only."""
    if not training or share == 0:
        return x_BP
    level = share * torch.rand(len(x_BP), 1, device=x_BP.device)
    noisy = x_BP + level * torch.randn_like(x_BP)
    return noisy / noisy.square().mean(dim=1, keepdim=True).sqrt()


class ClassifierLoss:
    """Categorical cross-entropy (eq. 5) and accuracy."""

    def __init__(self, recipe: RedshiftRecipe):
        self.recipe = recipe

    def __call__(self, network: nn.Module, batch: Tensors):
        x = augment(batch["x"], self.recipe.noise_augmentation, network.training)
        logits = network(x).float()
        loss = functional.cross_entropy(logits, batch["label_index"])
        accuracy = (logits.argmax(1) == batch["label_index"]).float().mean()
        return loss, {"accuracy": accuracy}


class RedshiftLoss:
    """Huber loss of the scaled redshift (eq. 6), one network or several on the same batch.

    Several members are independent: the sum's gradient with respect to each is its own.
    """

    def __init__(self, recipe: RedshiftRecipe):
        self.recipe = recipe

    def __call__(self, part: nn.Module, batch: Tensors):
        members = list(part) if isinstance(part, nn.ModuleList) else [part]
        target = encode_redshift(batch["redshift"].float(), self.recipe)
        x = augment(batch["x"], self.recipe.noise_augmentation, part.training)
        outputs = torch.stack([member(x)[:, 0].float() for member in members])
        loss = functional.huber_loss(
            outputs, target.expand_as(outputs), delta=self.recipe.huber_delta
        )
        z = decode_redshift(outputs.detach(), self.recipe)
        mae = (z.mean(0) - batch["redshift"].float()).abs().mean()
        return loss * len(members), {"mae": mae}


@torch.inference_mode()
def forward(network: GasNet, x: np.ndarray) -> np.ndarray:
    """Return the single output of a redshift network, float64 [B]."""
    return np.concatenate([network(chunk)[:, 0].double().cpu() for chunk in _chunks(network, x)])


@torch.inference_mode()
def classify(network: GasNet, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return logits float64 [B, C] and penultimate features float32 [B, F]."""
    if len(x) == 0:
        return np.zeros((0, network.outputs)), np.zeros((0, network.head.in_features), np.float32)
    logits, features = [], []
    for chunk in _chunks(network, x):
        hidden = network.features(chunk)
        features.append(hidden.float().cpu().numpy())
        logits.append(network.head(hidden).double().cpu().numpy())
    return np.concatenate(logits), np.concatenate(features)


def _chunks(network: GasNet, x: np.ndarray):
    device = network.head.weight.device
    size = _CHUNK_CUDA if device.type == "cuda" else _CHUNK
    for start in range(0, len(x), size):
        yield torch.as_tensor(x[start : start + size]).to(device)


def softmax(logits: np.ndarray) -> np.ndarray:
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)
