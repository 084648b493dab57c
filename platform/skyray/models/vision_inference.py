"""Image networks for evaluation: the same answers in less time.

Batch norms are folded into the convolutions before them, images and weights lie channels-last, and
with ``bf16`` convolutions and matrix products run in bfloat16 where the processor has it.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Literal

import torch
from torch import nn

from skyray.models import vision_fusion as fusion
from skyray.models.vision import VisionNetwork

Precision = Literal["float32", "bf16"]


def bf16_support(device: torch.device | str = "cpu") -> tuple[bool, str]:
    """Return whether bfloat16 is fast on a device, and the reason in words."""
    if torch.device(device).type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
        return fast, "CUDA device with bfloat16" if fast else "CUDA device without bfloat16"
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()  # torch 2.6 has none
    names = [name for name in ("amx_bf16", "avx512_bf16") if capabilities.get(name)]
    if names:
        return True, f"processor with {', '.join(names)}"
    return False, "processor with neither avx512_bf16 nor amx_bf16"


class OptimisedVision(nn.Module):
    """What `optimised` returns: `base`, `features`, `from_base` and `forward` of the network.

    Attributes
    ----------
    precision : str
        What is used: ``bf16`` only where it was asked for and is fast.
    reason : str
        Why `precision` is what it is.
    """

    def __init__(self, network: VisionNetwork, precision: Precision = "float32"):
        super().__init__()
        self.network = deepcopy(network).eval().requires_grad_(False)
        self.precision, self.reason = "float32", "asked for"
        if precision == "bf16":
            device = next(network.parameters()).device
            fast, self.reason = bf16_support(device)
            self.precision = "bf16" if fast else "float32"
        self._merge_layers()

    def train(self, mode: bool = True) -> OptimisedVision:
        """Stay in evaluation mode: folded networks cannot train."""
        return super().train(False)

    def _merge_layers(self) -> None:
        network = self.network
        weight = next(network.parameters())
        size = (1, network.bands, network.image_size, network.image_size)
        image = torch.zeros(size, device=weight.device, dtype=weight.dtype)

        def watch() -> fusion.Watch:
            return fusion.Watch(network.backbone, lambda: network.base(image))

        fusion.fold_batch_norms(network.backbone, watch())
        fusion.fold_pre_norms(network.backbone, watch())
        fusion.fold_layer_scales(network.backbone)
        fusion.merge_squeezes(network.backbone)
        network.backbone.to(memory_format=torch.channels_last)
        last = watch()
        fusion.pack(network.backbone, last)
        if self.precision == "bf16":
            to_bfloat16(network.backbone, last)

    @torch.no_grad()
    def base(self, image: torch.Tensor) -> torch.Tensor:
        """Return pooled backbone features [B, F], float32."""
        image = self.network.prepare(image.contiguous(memory_format=torch.channels_last))
        return self.network.backbone(image).float()

    @torch.no_grad()
    def join(self, base: torch.Tensor, metadata: torch.Tensor | None = None) -> torch.Tensor:
        """Return the penultimate features [B, P], float32."""
        return self.network.join(base, metadata)

    @torch.no_grad()
    def features(self, image: torch.Tensor, metadata: torch.Tensor | None = None) -> torch.Tensor:
        """Return the penultimate features [B, P], float32."""
        return self.join(self.base(image), metadata)

    @torch.no_grad()
    def from_base(self, base: torch.Tensor, metadata: torch.Tensor | None = None) -> torch.Tensor:
        """Return logits [B, outputs] of base features."""
        return self.network.from_base(base, metadata)

    @torch.no_grad()
    def forward(self, image: torch.Tensor, metadata: torch.Tensor | None = None) -> torch.Tensor:
        """Return logits [B, outputs], float32."""
        return self.from_base(self.base(image), metadata)


def optimised(network: VisionNetwork, precision: Precision = "float32") -> OptimisedVision:
    """Return an evaluation copy of the network.

    ``float32`` outputs agree with the network's to rounding. With ``bf16``, backbones run in
    bfloat16 where the device has it (see `OptimisedVision.reason`); heads stay in float32.
    The copy does not follow later changes of `network` and gives no gradients.
    """
    return OptimisedVision(network, precision)


class _Float32(nn.Module):
    """A module that stays in float32 and hands on bfloat16."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the module's output, rounded."""
        return self.module(x.float()).to(torch.bfloat16)


class _Rounded(nn.Module):
    """A layer in bfloat16 that reads float32."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the layer's output, bfloat16."""
        return self.layer(x.to(torch.bfloat16))


def to_bfloat16(model: nn.Module, watch: fusion.Watch) -> None:
    """Convert a packed model to bfloat16, in place; images are still given in float32.

    Two kinds of modules stay in float32: one that holds nothing but the first layer and its norm
    (ConvNeXt's stem), and those called ``downsample``. No shortcut leads past them: on ConvNeXt
    they make half of the rounding and little of the time.
    """
    exact, rounded = set(), set()
    for name in watch.entrances:
        parent = name.rpartition(".")[0]
        inside = [other for other in watch.input_of if watch.names[other].startswith(parent + ".")]
        alone = parent and sum(map(fusion.is_layer, inside)) == 1
        (exact if alone else rounded).add(parent if alone else name)
    for name, module in model.named_modules():
        if name.endswith(".downsample") and list(module.parameters()):
            exact.add(name)
    kept = {name: deepcopy(model.get_submodule(name)) for name in exact}
    model.to(torch.bfloat16)
    for name, module in kept.items():
        fusion.replace(model, name, _Float32(module))
    for name in rounded:
        fusion.replace(model, name, _Rounded(model.get_submodule(name)))
