"""E(2)-equivariant encoder of images, with escnn (Weiler & Cesa 2019), and its plain torch twin.

Six blocks of steerable convolution, batch-norm and ReLU on regular fields; an anti-aliased average
pool after each pair; pooling over the group; dense layers. The defaults are the D₂ network of
Alexander et al. 2022 (arXiv:2112.12121), except for the readout: the released network flattens the
map, so that the dense layer sees where things are and the output changes when the image is turned;
here the map is averaged and the output is invariant.

Turning an image and then taking every second pixel is the same as the other order only if the
pixels kept lie symmetrically, which needs 4k + 1 pixels a side; images are brought to that size.
"""

from __future__ import annotations

import copy
import re
from typing import Literal

import torch
from pydantic import Field, field_validator
from torch import nn
from torch.nn import functional

from skyray.config import Config, ConfigError
from skyray.models.escnn_import import import_escnn

_PADDINGS = (1, 2, 2, 2, 2, 1)
_SMALLEST = 21
_NORMS = nn.modules.batchnorm._NormBase


class EquivariantConfig(Config):
    """Layer sizes of the encoder; the defaults are the published D₂ network."""

    group: str = Field("D2", description="CN: N rotations; D2: rotations by π and flips")
    fields: tuple[int, ...] = Field((24, 48, 48, 96, 96, 64), min_length=6, max_length=6)
    kernels: tuple[int, ...] = Field((7, 5, 5, 5, 5, 5), min_length=6, max_length=6)
    sigma: float = Field(0.66, gt=0, description="of the anti-aliasing blur, pixels")
    readout: Literal["mean", "flatten"] = Field(
        "mean", description="flatten: as published, not invariant"
    )
    mask: bool = Field(False, description="only the inscribed disc is seen, as published")
    input_size: int | None = Field(
        None, ge=_SMALLEST, description="pixels the network sees; null: next 4k + 1"
    )

    @field_validator("group")
    @classmethod
    def _planar(cls, group: str) -> str:
        found = re.fullmatch(r"([CD])(\d+)", group)
        if not found or int(found[2]) < 2:
            raise ValueError("expected CN with N ≥ 2, or D2")
        if found[1] == "D" and int(found[2]) != 2:
            raise ValueError(
                "expected D2, or CN: escnn 1.0 cannot build larger dihedral groups beside a "
                "scikit-learn that refuses numpy.matrix"
            )
        return group


class EquivariantEncoder(nn.Module):
    """Images [B, C, H, W] → features [B, F].

    escnn's convolutions keep their expanded filters in the state dict in evaluation mode only, and
    then cannot be copied. Here they stay in training mode for good, in which they have nothing but
    their weights; only norms follow `train` and `eval`. `exported` is the form for inference.
    """

    def __init__(self, config: EquivariantConfig, bands: int, image_size: int, features: int):
        super().__init__()
        escnn = import_escnn()
        self.config, self.features = config, features
        self.size = config.input_size or _next_symmetric(image_size)
        space = _space(escnn.gspaces, config.group)
        kind = escnn.nn.FieldType(space, bands * [space.trivial_repr])
        self.input_type = kind
        self.mask = escnn.nn.MaskModule(kind, self.size, margin=1) if config.mask else None
        blocks, side = [], self.size
        for number, (count, kernel, padding) in enumerate(
            zip(config.fields, config.kernels, _PADDINGS, strict=True)
        ):
            wide = escnn.nn.FieldType(space, count * [space.regular_repr])
            blocks += [
                escnn.nn.R2Conv(kind, wide, kernel_size=kernel, padding=padding, bias=False),
                escnn.nn.InnerBatchNorm(wide),
                escnn.nn.ReLU(wide),
            ]
            side += 2 * padding - kernel + 1
            if number % 2:
                last = number == 5
                pool = AntialiasedPool(side, config.sigma, 1 if last else 2, padded=not last)
                blocks.append(pool)
                side = len(pool.band)
            kind = wide
        if side < 1:
            raise ConfigError(f"equivariant: {self.size} pixels are too few for this network")
        self.blocks = nn.ModuleList(blocks)
        self.group_pool = escnn.nn.GroupPooling(kind)
        flat = config.fields[-1] * (side**2 if config.readout == "flatten" else 1)
        self.dense = nn.Sequential(
            nn.Linear(flat, features), nn.BatchNorm1d(features), nn.ELU(),
            nn.Linear(features, features),
        )  # fmt: skip

    def train(self, mode: bool = True) -> EquivariantEncoder:
        """Set the mode of all but the convolutions; a norm that does not learn stays as it is."""
        for module in self.modules():
            rests = isinstance(module, _NORMS) and not module.weight.requires_grad
            module.training = type(module).__name__ == "R2Conv" or (mode and not rests)
        return self

    def maps(self, image: torch.Tensor) -> torch.Tensor:
        """Return the group-pooled maps [B, fields, h, w]: they turn with the image."""
        image = _resized(image, self.size)
        tensor_of = import_escnn().nn.GeometricTensor
        x = tensor_of(image, self.input_type)
        if self.mask is not None:
            x = self.mask(x)
        for block in self.blocks:
            pools = isinstance(block, AntialiasedPool)
            x = tensor_of(block(x.tensor), x.type) if pools else block(x)
        return self.group_pool(x).tensor

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.dense(_read_out(self.maps(image), self.config.readout))

    @torch.no_grad()
    def exported(self, precision: Literal["float32", "bf16"] = "float32") -> PlainEncoder:
        """Return the plain torch network that computes the same, in evaluation mode.

        Norms are folded into the convolutions. `bf16` stores the convolutions' weights in bfloat16
        and leaves the dense layers in float32.
        """
        plain: list[nn.Module] = []
        if self.mask is not None:
            plain.append(_Mask(self.mask.mask.detach().clone()))
        blocks = iter(self.blocks)
        for block in blocks:
            name = type(block).__name__
            if name == "R2Conv":
                plain.append(_folded(block, next(blocks)))
            elif name == "ReLU":
                plain.append(nn.ReLU(inplace=True))
            else:
                plain.append(copy.deepcopy(block))
        order = self.group_pool.in_type.representations[0].size
        return PlainEncoder(
            nn.Sequential(*plain), self.dense, self.size, order, self.config.readout, precision
        )


class AntialiasedPool(nn.Module):
    """Gaussian blur, then every `stride`-th pixel, each channel alone (Zhang 2019).

    What escnn's ``PointwiseAvgPoolAntialiased`` computes, with its kernel of ±3σ and its padding.
    The Gaussian is separable and fixed, so both directions are products with one band matrix: such
    a product learns 5 to 9 × faster than a depthwise convolution on a processor, whose gradient
    cost a third of a training step.

    Attributes
    ----------
    band : float [out, side]
        Kernel weights of every pixel kept.
    """

    band: torch.Tensor

    def __init__(self, side: int, sigma: float, stride: int, padded: bool):
        super().__init__()
        self.sigma, self.stride, self.padded = sigma, stride, padded
        reach = round(3 * sigma)
        edge = 0 if padded else reach
        side = max(side, 0)  # nothing is left: the encoder refuses the image size
        centre = torch.arange(edge, max(side - edge, edge), stride)[:, None]
        away = torch.arange(side)[None, :] - centre
        kernel = torch.exp(-(away**2) / (2 * sigma**2)) * (away.abs() <= reach)
        whole = torch.exp(-(torch.arange(-reach, reach + 1) ** 2) / (2 * sigma**2)).sum()
        self.register_buffer("band", kernel / whole, persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return [B, C, out, out] of [B, C, side, side], in the memory format it came in."""
        if not x.is_contiguous(memory_format=torch.channels_last):
            return self.band @ (x @ self.band.T)
        across = self.band @ x.permute(0, 2, 3, 1)  # [B, side, out, C]
        down = self.band @ across.flatten(2)  # [B, out, out · C]
        return down.unflatten(2, across.shape[2:]).permute(0, 3, 1, 2)


class PlainEncoder(nn.Module):
    """The network of `EquivariantEncoder.exported`: torch's own layers, for inference."""

    def __init__(self, blocks, dense, size: int, order: int, readout: str, precision: str):
        super().__init__()
        self.size, self.order, self.readout = size, order, readout
        # Measured: channels last is 3 × faster in bfloat16 and up to 1.3 × slower in float32.
        self.dtype, self.layout = torch.float32, torch.contiguous_format
        if precision == "bf16":
            self.dtype, self.layout = torch.bfloat16, torch.channels_last
        self.blocks = blocks.to(dtype=self.dtype, memory_format=self.layout)
        self.dense = nn.Sequential(*(_copy_dense(layer) for layer in dense))
        self.eval().requires_grad_(False)

    def maps(self, image: torch.Tensor) -> torch.Tensor:
        """Return the group-pooled maps [B, fields, h, w]."""
        image = _resized(image, self.size).to(self.dtype, memory_format=self.layout)
        maps = self.blocks(image)
        return maps.unflatten(1, (int(maps.shape[1]) // self.order, self.order)).amax(dim=2)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.dense(_read_out(self.maps(image).float(), self.readout))


class _Mask(nn.Module):
    def __init__(self, mask: torch.Tensor):
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image * self.mask


def _space(gspaces, group: str):
    order = int(group[1:])
    return gspaces.flipRot2dOnR2(N=order) if group[0] == "D" else gspaces.rot2dOnR2(N=order)


def _next_symmetric(size: int) -> int:
    return max(size + (1 - size) % 4, _SMALLEST)


def _resized(image: torch.Tensor, size: int) -> torch.Tensor:
    if image.shape[-2:] == (size, size):
        return image
    return functional.interpolate(
        image, (size, size), mode="bilinear", align_corners=False, antialias=True
    )


def _read_out(maps: torch.Tensor, readout: str) -> torch.Tensor:
    return maps.flatten(1) if readout == "flatten" else maps.mean(dim=(2, 3))


def _folded(convolution, norm) -> nn.Conv2d:
    """Return one convolution for an R2Conv and the InnerBatchNorm behind it."""
    weight, _ = convolution.expand_parameters()
    plain = norm.export()
    scale = plain.weight / torch.sqrt(plain.running_var + plain.eps)
    out = nn.Conv2d(weight.shape[1], weight.shape[0], weight.shape[2:], padding=convolution.padding)
    out.weight.copy_(weight * scale[:, None, None, None])
    out.bias.copy_(plain.bias - plain.running_mean * scale)
    return out


def _copy_dense(layer: nn.Module) -> nn.Module:
    if isinstance(layer, nn.Linear):
        out = nn.Linear(layer.in_features, layer.out_features)
    elif isinstance(layer, nn.BatchNorm1d):
        out = nn.BatchNorm1d(layer.num_features, layer.eps)
    else:
        return nn.ELU()
    out.load_state_dict(layer.state_dict())
    return out
