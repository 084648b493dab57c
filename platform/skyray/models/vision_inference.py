"""Image networks for evaluation: the same answers in less time.

Batch norms are folded into the convolutions before them, images and weights lie channels-last, and
with ``bf16`` convolutions and matrix products run in bfloat16 where the processor has it.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from copy import deepcopy
from typing import Literal

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from skyray.models.vision import VisionNetwork

Precision = Literal["float32", "bf16"]


def bf16_support(device: torch.device | str = "cpu") -> tuple[bool, str]:
    """Return whether bfloat16 is fast on a device, and the reason in words."""
    if torch.device(device).type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
        return fast, "CUDA device with bfloat16" if fast else "CUDA device without bfloat16"
    capabilities = torch.cpu.get_capabilities()
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
        fold_batch_norms(self.network)
        self.network.to(memory_format=torch.channels_last)

    def train(self, mode: bool = True) -> OptimisedVision:
        """Stay in evaluation mode: folded networks cannot train."""
        return super().train(False)

    def _autocast(self, tensor: torch.Tensor):
        if self.precision == "float32":
            return contextlib.nullcontext()
        return torch.autocast(tensor.device.type, dtype=torch.bfloat16)

    @torch.no_grad()
    def base(self, image: torch.Tensor) -> torch.Tensor:
        """Return pooled backbone features [B, F], float32."""
        image = self.network.prepare(image).contiguous(memory_format=torch.channels_last)
        with self._autocast(image):
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


class _CountUses(TorchDispatchMode):
    """Counts how many operations read each tensor."""

    def __init__(self):
        super().__init__()
        self.uses: Counter[int] = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.uses.update(id(arg) for arg in tree_leaves((args, kwargs)) if torch.is_tensor(arg))
        return function(*args, **(kwargs or {}))


def fold_batch_norms(network: VisionNetwork) -> None:
    """Fold every batch norm into the convolution before it, in place.

    Which follows which is seen in a forward pass, so any architecture will do. A convolution whose
    output is read elsewhere too stays as it is. timm's norms with an activation leave that behind.
    """
    calls: list[tuple[nn.Module, torch.Tensor, torch.Tensor]] = []

    def watch(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        calls.append((module, inputs[0], output))  # also keeps them: no id is used twice

    kinds = (nn.Conv2d, nn.BatchNorm2d)
    hooks = [m.register_forward_hook(watch) for m in network.modules() if isinstance(m, kinds)]
    weight = next(network.parameters())
    size = (1, network.bands, network.image_size, network.image_size)
    with torch.no_grad(), _CountUses() as counter:
        network.base(torch.zeros(size, device=weight.device, dtype=weight.dtype))
    for hook in hooks:
        hook.remove()
    made_by = {id(output): module for module, _, output in calls if isinstance(module, nn.Conv2d)}
    called = Counter(module for module, _, _ in calls)
    names = {module: name for name, module in network.named_modules()}
    for norm, image, _ in calls:
        conv = made_by.get(id(image))
        if not isinstance(norm, nn.BatchNorm2d) or conv is None:
            continue
        if counter.uses[id(image)] == called[norm] == called[conv] == 1:
            folded = fuse_conv_bn_eval(deepcopy(conv).double(), deepcopy(norm).double())
            _replace(network, names[conv], folded.to(weight.dtype))
            after = [getattr(norm, part, nn.Identity()) for part in ("drop", "act")]
            _replace(network, names[norm], nn.Sequential(*after))


def _replace(network: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(network.get_submodule(parent), child, module)
