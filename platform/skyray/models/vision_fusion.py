"""Layers of an image backbone merged for evaluation, on any architecture.

Which layer follows which is seen in one forward pass, so no architecture needs code of its own:

- a batch norm goes into the convolution before it, or into the 1 × 1 convolution after it;
- an activation goes into the convolution or dense layer before it;
- a 1 × 1 convolution, and any on a single pixel, becomes a dense layer, where oneDNN is faster;
- on CPUs, weights are held in oneDNN's own blocked order instead of being sorted at every call.

torch.compile would do the last two as well, but needs a C++ compiler at the user's.

Shape suffixes: B batch, C channels, H and W pixels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Activations (torch's and timm's, by class name) as oneDNN knows them: name, numbers, algorithm.
_ACTIVATIONS: dict[str, tuple[str, list[float], str]] = {
    "ReLU": ("relu", [], ""),
    "ReLU6": ("hardtanh", [0.0, 6.0], ""),
    "SiLU": ("swish", [], ""),
    "GELU": ("gelu", [], "none"),
    "GELUTanh": ("gelu", [], "tanh"),
}


def _is_activation(module: nn.Module) -> bool:
    known = type(module).__name__ in _ACTIVATIONS
    return known and getattr(module, "approximate", "none") == "none"


def _is_norm(module: nn.Module) -> bool:
    known = isinstance(module, nn.BatchNorm2d)
    return known and module.weight is not None and module.running_mean is not None


def _is_convolution(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d)


def is_layer(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d | nn.Linear)


_Test = Callable[[nn.Module], bool]


class _CountUses(TorchDispatchMode):
    """Counts how many operations read each tensor."""

    def __init__(self):
        super().__init__()
        self.uses: Counter[int] = Counter()
        self.kept: list[Any] = []  # so that no id is given to two tensors

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.uses.update(id(arg) for arg in tree_leaves((args, kwargs)) if torch.is_tensor(arg))
        output = function(*args, **(kwargs or {}))
        self.kept.append(output)
        return output


@dataclass(frozen=True)
class _Call:
    module: nn.Module
    input: torch.Tensor
    output: torch.Tensor
    uses: int
    """Operations that had read the input when the call ended."""


class Watch:
    """What happened in one forward pass: which layer's output another layer alone has read."""

    def __init__(self, model: nn.Module, run: Callable[[], object]):
        self.calls: list[_Call] = []
        with torch.no_grad(), _CountUses() as counter:

            def record(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
                call = _Call(module, inputs[0], output, counter.uses[id(inputs[0])])
                self.calls.append(call)

            hooks = [
                module.register_forward_hook(record)
                for module in model.modules()
                if is_layer(module) or _is_activation(module) or _is_norm(module)
            ]
            run()
        for hook in hooks:
            hook.remove()
        self._uses = counter.uses
        self._called = Counter(call.module for call in self.calls)
        self.names = {module: name for name, module in model.named_modules()}
        self.input_of = {call.module: call.input for call in self.calls}
        layers = [call for call in self.calls if is_layer(call.module)]
        self.entrances = [
            self.names[call.module] for call in layers if call.input is layers[0].input
        ]

    def pairs(self, first: _Test, second: _Test) -> list[tuple[nn.Module, nn.Module]]:
        """Return layers (a, b) called once each, where b alone reads the output of a.

        An activation in place counts: what others read afterwards is its result.
        """
        maker = {id(call.output): call.module for call in self.calls if first(call.module)}
        found = []
        for call in self.calls:
            before = maker.get(id(call.input))
            if before is None or not second(call.module):
                continue
            in_place = getattr(call.module, "inplace", False)
            uses = call.uses if in_place else self._uses[id(call.input)]
            if uses == self._called[before] == self._called[call.module] == 1:
                found.append((before, call.module))
        return found


def replace(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put a module where the one of this name is."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def _left_behind(norm: nn.BatchNorm2d) -> nn.Module:
    """Return what timm's norms do after normalising: the activation, if any."""
    act = getattr(norm, "act", nn.Identity())
    return act if isinstance(act, nn.Module) else nn.Identity()


def fold_batch_norms(model: nn.Module, watch: Watch) -> None:
    """Fold batch norms into the convolutions before them, in place (computed in float64)."""
    for conv, norm in watch.pairs(_is_convolution, _is_norm):
        folded = fuse_conv_bn_eval(deepcopy(conv).double(), deepcopy(norm).double())
        replace(model, watch.names[conv], folded.to(conv.weight.dtype))
        replace(model, watch.names[norm], _left_behind(norm))


def fold_pre_norms(model: nn.Module, watch: Watch) -> None:
    """Fold batch norms into the 1 × 1 convolutions after them, in place.

    Only without activation between and without padding, which would have to be normalised too.
    """
    for norm, conv in watch.pairs(_is_norm, _is_convolution):
        plain = isinstance(_left_behind(norm), nn.Identity) and conv.groups == 1
        if not plain or conv.kernel_size != (1, 1) or conv.padding not in ((0, 0), "valid"):
            continue
        scale = norm.weight.double() * torch.rsqrt(norm.running_var.double() + norm.eps)
        shift = norm.bias.double() - norm.running_mean.double() * scale
        weight = conv.weight.double()
        bias = weight.flatten(1) @ shift
        if conv.bias is not None:
            bias += conv.bias.double()
        dtype = conv.weight.dtype
        conv.weight = nn.Parameter((weight * scale[:, None, None]).to(dtype), requires_grad=False)
        conv.bias = nn.Parameter(bias.to(dtype), requires_grad=False)
        replace(model, watch.names[norm], nn.Identity())


def fold_layer_scales(model: nn.Module) -> None:
    """Fold the learned scale of ConvNeXt's blocks into their last dense layer, in place."""
    for block in model.modules():
        if type(block).__name__ != "ConvNeXtBlock" or block.gamma is None:
            continue
        gamma, last = block.gamma, block.mlp.fc2
        shape = (-1,) + (1,) * (last.weight.ndim - 1)
        last.weight = nn.Parameter(last.weight * gamma.view(shape), requires_grad=False)
        if last.bias is not None:
            last.bias = nn.Parameter(last.bias * gamma, requires_grad=False)
        block.gamma = None


class SqueezeExcite(nn.Module):
    """Squeeze-and-excitation whose mean over pixels is a matrix product: fast in bfloat16."""

    def __init__(self, excite: nn.Module):
        super().__init__()
        self.excite = excite

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        """Return the images [B, C, H, W] with their channels weighed."""
        x_BPC = x_BCHW.permute(0, 2, 3, 1).flatten(1, 2)
        share = x_BPC.new_full((1, 1, x_BPC.shape[1]), 1 / x_BPC.shape[1])
        mean_BC = torch.bmm(share.expand(len(x_BPC), -1, -1), x_BPC)[:, 0]
        return x_BCHW * self.excite(mean_BC[:, :, None, None])


_SQUEEZES = (["conv_reduce", "act1", "conv_expand", "gate"], ["fc1", "bn", "act", "fc2", "gate"])


def merge_squeezes(model: nn.Module) -> None:
    """Replace timm's squeeze-and-excitation modules (EfficientNet's and MaxViT's), in place."""
    for name, module in list(model.named_modules()):
        kind, parts = type(module).__name__, dict(module.named_children())
        known = kind in ("SqueezeExcite", "SEModule") and list(parts) in _SQUEEZES
        if known and not getattr(module, "add_maxpool", False):
            replace(model, name, SqueezeExcite(nn.Sequential(*parts.values())))


def _has_onednn() -> bool:
    return torch.backends.mkldnn.is_available() and hasattr(
        torch.ops.mkldnn, "_reorder_linear_weight"
    )


_ONEDNN = _has_onednn()


def _onednn_name(act: nn.Module | None) -> tuple[str, list[float], str]:
    return ("none", [], "") if act is None else _ACTIVATIONS[type(act).__name__]


class _Packed(nn.Module):
    """A layer with its activation; on CPUs with weights in oneDNN's order, made at first use."""

    def __init__(self, layer: nn.Conv2d | nn.Linear, act: nn.Module | None):
        super().__init__()
        self.weight, self.bias, self.act = layer.weight, layer.bias, act
        self._order: torch.Tensor | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_order": None}  # can be neither copied nor pickled

    def _apply(self, fn, recurse=True):
        self._order = None
        return super()._apply(fn, recurse)

    def _activated(self, y: torch.Tensor) -> torch.Tensor:
        return y if self.act is None else self.act(y)


class PackedLinear(_Packed):
    """A dense layer [..., C] → [..., D] and its activation."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the activated output [..., D]."""
        if x.device.type != "cpu" or not _ONEDNN or not x.numel():
            return self._activated(functional.linear(x, self.weight, self.bias))
        if self._order is None:
            rows = x.numel() // x.shape[-1]
            self._order = torch.ops.mkldnn._reorder_linear_weight(self.weight, rows)
        name, numbers, algorithm = _onednn_name(self.act)
        return torch.ops.mkldnn._linear_pointwise(
            x, self._order, self.bias, name, numbers, algorithm
        )


class PackedPointwise(PackedLinear):
    """A 1 × 1 convolution [B, C, H, W] → [B, D, H, W] as a dense layer over its pixels."""

    def __init__(self, conv: nn.Conv2d, act: nn.Module | None, tap: tuple[int, int] = (0, 0)):
        super().__init__(conv, act)
        weight = conv.weight[:, :, tap[0], tap[1]].contiguous()
        self.weight = nn.Parameter(weight, requires_grad=False)

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        """Return the activated output [B, D, H, W], channels-last."""
        return super().forward(x_BCHW.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class PixelScale(nn.Module):
    """A depthwise convolution of one pixel: the rest of its kernel meets padding only."""

    def __init__(self, conv: nn.Conv2d, act: nn.Module | None, tap: tuple[int, int]):
        super().__init__()
        weight = conv.weight[:, 0, tap[0], tap[1]][:, None, None].clone()
        bias = conv.bias if conv.bias is not None else torch.zeros_like(weight)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = nn.Parameter(bias.reshape(weight.shape).clone(), requires_grad=False)
        self.act = act or nn.Identity()

    def forward(self, x_BCHW: torch.Tensor) -> torch.Tensor:
        """Return [B, C, 1, 1]."""
        return self.act(torch.addcmul(self.bias, x_BCHW, self.weight))


class PackedConv(_Packed):
    """A convolution [B, C, H, W] and its activation."""

    def __init__(self, conv: nn.Conv2d, act: nn.Module | None):
        super().__init__(conv, act)
        self.geometry = (conv.padding, conv.stride, conv.dilation, conv.groups)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the activated output, channels-last."""
        padding, stride, dilation, groups = self.geometry
        if x.device.type != "cpu" or not _ONEDNN or not len(x):
            y = functional.conv2d(x, self.weight, self.bias, stride, padding, dilation, groups)
            return self._activated(y)
        if self._order is None:
            self._order = torch.ops.mkldnn._reorder_convolution_weight(
                self.weight, padding, stride, dilation, groups, list(x.shape)
            )
        name, numbers, algorithm = _onednn_name(self.act)
        return torch.ops.mkldnn._convolution_pointwise(
            x, self._order, self.bias, padding, stride, dilation, groups, name, numbers, algorithm
        )


def _lone_tap(conv: nn.Conv2d, image: torch.Tensor) -> tuple[int, int] | None:
    """Return the kernel tap that alone meets the image where it is one pixel, else None."""
    if image.shape[-2:] != (1, 1) or conv.dilation != (1, 1) or isinstance(conv.padding, str):
        return None
    one_output = all(
        (1 + 2 * p - k) // s == 0
        for p, k, s in zip(conv.padding, conv.kernel_size, conv.stride, strict=True)
    )
    inside = all(p < k for p, k in zip(conv.padding, conv.kernel_size, strict=True))
    return conv.padding if one_output and inside else None


def _packed(layer: nn.Module, act: nn.Module | None, image: torch.Tensor) -> nn.Module | None:
    """Return the merged form of a layer that reads `image`, None to leave it as it is."""
    if isinstance(layer, nn.Linear):
        return PackedLinear(layer, act)
    tap = _lone_tap(layer, image)
    if tap is not None and layer.groups == layer.in_channels == layer.out_channels:
        return PixelScale(layer, act, tap)
    if layer.groups == 1 and tap is not None:
        return PackedPointwise(layer, act, tap)
    if layer.groups == 1 and layer.kernel_size == layer.stride == (1, 1) and image.ndim == 4:
        padded = layer.padding not in ((0, 0), "valid", "same")
        return None if padded else PackedPointwise(layer, act)
    if layer.padding_mode != "zeros" or isinstance(layer.padding, str):
        return None
    return PackedConv(layer, act)


def pack(model: nn.Module, watch: Watch) -> None:
    """Replace convolutions and dense layers by their packed forms, with their activations."""
    acts = dict(watch.pairs(is_layer, _is_activation))
    for layer, image in watch.input_of.items():
        # timm's subclasses pad or scale their weights by themselves.
        if type(layer) not in (nn.Conv2d, nn.Linear):
            continue
        act = acts.get(layer)
        merged = _packed(layer, act, image)
        if merged is not None:
            replace(model, watch.names[layer], merged)
            if act is not None:
                replace(model, watch.names[act], nn.Identity())
