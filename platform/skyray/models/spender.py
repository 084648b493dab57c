"""SPENDER: an attention autoencoder for galaxy spectra with an explicit redshift layer.

Melchior et al. 2023, AJ 166, 74 (architecture); Liang et al. 2023, arXiv:2307.07664 (DESI BGS). The
encoder never sees the redshift; the decoder makes a rest-frame spectrum, which is then redshifted
and resampled to the instrument. At DESI size (7781 pixels, 9780 rest-frame pixels, 6 latents) it
has 3,159,046 + 10,304,756 = 13,463,802 parameters.

Shape suffixes: B batch, L observed pixels, R rest-frame pixels, S latents, C channels, T positions
left by the pooling.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from torch import nn
from torch.nn import functional

from skyray.models.fused_blocks import first_block, norm_act_pool, pooled
from skyray.models.instrument import Instrument
from skyray.models.instrument import redshift_and_resample as redshift_and_resample
from skyray.records import Grid


class ConvBlock(nn.Module):
    """Conv (same padding) → instance norm without affine → PReLU with one slope a channel."""

    def __init__(self, channels_in: int, channels: int, kernel: int):
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels, (1, kernel), padding=(0, kernel // 2))
        self.norm = nn.InstanceNorm2d(channels)
        self.act = nn.PReLU(channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.norm(self.conv(x)))


def dense_layers(sizes: Sequence[int], activations: Sequence[nn.Module]) -> nn.Sequential:
    """Return Linear → activation for each step of `sizes`."""
    layers: list[nn.Module] = []
    for size_in, size, activation in zip(sizes[:-1], sizes[1:], activations, strict=True):
        layers += [nn.Linear(size_in, size), activation]
    return nn.Sequential(*layers)


class SpectrumEncoder(nn.Module):
    """Observed spectrum → latents, by convolutions and attention over wavelength.

    The last block's channels are split into values and attention; the softmax over positions of
    the attention weighs the values (Serrà et al. 2018, arXiv:1805.03908).

    Parameters
    ----------
    pixels : int
        Length L of the spectra.
    latents : int
        Number S of latents.
    widths, kernels : sequence of int
        Channels and (odd) kernel sizes of the convolutions.
    pools : sequence of int
        Max pooling, kernel and stride, after every convolution but the last.
    hidden : sequence of int
        Hidden layers of the dense part.

    Raises
    ------
    ValueError
        If the lengths of the sequences do not fit, a kernel is even, the last width is odd, or the
        spectrum is too short for the pools.
    """

    def __init__(
        self,
        pixels: int,
        latents: int,
        widths: Sequence[int] = (128, 256, 512),
        kernels: Sequence[int] = (5, 11, 21),
        pools: Sequence[int] = (5, 11),
        hidden: Sequence[int] = (128, 64, 32),
    ):
        super().__init__()
        if not len(widths) == len(kernels) == len(pools) + 1:
            raise ValueError(
                f"expected one pool fewer than widths and kernels, found {len(widths)} widths, "
                f"{len(kernels)} kernels, {len(pools)} pools"
            )
        if any(kernel % 2 == 0 for kernel in kernels) or widths[-1] % 2:
            raise ValueError(
                f"expected odd kernels and an even last width, found {tuple(kernels)}, {widths[-1]}"
            )
        self.lengths: list[int] = []  # positions after each pool
        for pool in pools:
            self.lengths.append(pooled(self.lengths[-1] if self.lengths else pixels, pool))
        if min(self.lengths, default=pixels) < 2:
            raise ValueError(f"pixels: {pixels} are too few for pools of {tuple(pools)}")
        self.pixels, self.latents, self.pools = pixels, latents, tuple(pools)
        channels = (1, *widths)
        self.blocks = nn.ModuleList(
            ConvBlock(*sizes) for sizes in zip(channels[:-1], widths, kernels, strict=True)
        )
        activations = [*(nn.PReLU(units) for units in hidden), nn.Identity()]
        self.dense = dense_layers((widths[-1] // 2, *hidden, latents), activations)
        self.to(memory_format=torch.channels_last)

    def attend(self, y_BL: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return values and attention, both [B, C, T]; the attention sums to 1 over T."""
        y_BL = self.checked(y_BL)
        return self.split(self._blocks_plain(y_BL) if self._plain(y_BL) else self._blocks(y_BL))

    def checked(self, y_BL: torch.Tensor) -> torch.Tensor:
        """Return the spectra as they came; refuse another shape than [B, L]."""
        if y_BL.ndim != 2 or y_BL.shape[1] != self.pixels:
            raise ValueError(f"expected spectra [B, {self.pixels}], found {tuple(y_BL.shape)}")
        return y_BL

    @staticmethod
    def split(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return values and attention [B, C, T] of the last block's output [B, 2C, 1, T]."""
        values, logits = x.squeeze(2).chunk(2, dim=1)
        return values, torch.softmax(logits.float(), dim=-1)

    def _plain(self, y_BL: torch.Tensor) -> bool:
        """Layer by layer where the fused blocks give no input gradients or gain nothing.

        So also in an export: other runtimes know layers only.
        """
        wanted = y_BL.requires_grad and torch.is_grad_enabled()
        return y_BL.device.type != "cpu" or wanted or torch.onnx.is_in_onnx_export()

    def _blocks_plain(self, y_BL: torch.Tensor) -> torch.Tensor:
        x = y_BL[:, None, None, :].contiguous(memory_format=torch.channels_last)
        for block, pool in zip(self.blocks, (*self.pools, 1), strict=True):
            x = functional.max_pool2d(block(x), (1, pool), padding=(0, pool // 2))
        return x

    def _blocks(self, y_BL: torch.Tensor) -> torch.Tensor:
        exact = self.blocks[0].conv.weight.dtype
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else exact
        first, *others = self.blocks
        pool, *pools = (*self.pools, 1)
        x = first_block(y_BL, first.conv, first.norm, first.act, pool, dtype)
        for block, pool in zip(others, pools, strict=True):
            kept = exact if block is self.blocks[-1] else dtype
            x = norm_act_pool(block.conv(x), block.norm, block.act, pool, kept)
        return x

    def head(self, values: torch.Tensor, attention: torch.Tensor) -> torch.Tensor:
        """Return latents [B, S] from values and attention [B, C, T].

        In float32 also under autocast: the latents' spread may be far smaller than their mean.
        """
        with torch.autocast(values.device.type, enabled=False):
            weight = self.dense[0].weight
            return self.dense((values.to(weight.dtype) * attention).sum(dim=-1).to(weight.dtype))

    def forward(self, y_BL: torch.Tensor) -> torch.Tensor:
        """Return latents [B, S] of observed spectra [B, L] (flux normalised, nothing masked)."""
        return self.head(*self.attend(y_BL))


class SpeculatorActivation(nn.Module):
    """[γ + (1 − γ) σ(β x)] x with β, γ learned per unit, plus a constant.

    Alsing et al. 2020, ApJS 249, 5, eq. 8; used by the SDSS version of SPENDER, with ``shift=1`` on
    the output layer.
    """

    def __init__(self, units: int, shift: float = 0.0):
        super().__init__()
        self.beta = nn.Parameter(torch.randn(units))
        self.gamma = nn.Parameter(torch.randn(units))
        self.shift = shift

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.gamma + (1 - self.gamma) * torch.sigmoid(self.beta * x)) * x + self.shift


class SpectrumDecoder(nn.Module):
    """Latents → rest-frame spectrum.

    It always runs in float32: under autocast the output would be rounded to bfloat16, 0.4 % of the
    flux, and the encoder costs far more time.

    Parameters
    ----------
    rest : Grid
        Linear rest-frame grid of R pixels.
    latents : int
        Number S of latents.
    hidden : sequence of int
        Hidden layers.
    activation : {'leaky_relu', 'speculator'}
        'leaky_relu' (slope .01) acts on every layer including the output (DESI); 'speculator' too,
        with +1 on the output (SDSS).

    Raises
    ------
    ValueError
        If the grid is not linear or the activation unknown.
    """

    def __init__(
        self,
        rest: Grid,
        latents: int,
        hidden: Sequence[int] = (64, 256, 1024),
        activation: Literal["leaky_relu", "speculator"] = "leaky_relu",
    ):
        super().__init__()
        if rest.kind != "linear":
            raise ValueError(f"rest: expected a linear grid, found {rest.kind!r}")
        self.rest, self.latents = rest, latents
        sizes = (*hidden, rest.size)
        if activation == "leaky_relu":
            activations: list[nn.Module] = [nn.LeakyReLU(0.01) for _ in sizes]
        elif activation == "speculator":
            activations = [SpeculatorActivation(units) for units in hidden]
            activations.append(SpeculatorActivation(rest.size, shift=1.0))
        else:
            raise ValueError(
                f"activation: expected 'leaky_relu' or 'speculator', found {activation!r}"
            )
        self.dense = dense_layers((latents, *sizes), activations)

    def forward(self, latent_BS: torch.Tensor) -> torch.Tensor:
        """Return rest-frame spectra [B, R]."""
        weight = self.dense[0].weight
        with torch.autocast(latent_BS.device.type, enabled=False):
            return self.dense(latent_BS.to(weight.dtype))


class Reconstruction(NamedTuple):
    """What the autoencoder makes of a batch."""

    latent: torch.Tensor  # [B, S]
    rest: torch.Tensor  # rest-frame model [B, R]
    model: torch.Tensor  # model as observed [B, L], 0 where not valid
    valid: torch.Tensor  # bool [B, L]: inside the rest-frame range


class SpectrumAutoencoder(nn.Module):
    """Encoder, decoder and the instrument that observed the spectra.

    Several instruments may share one decoder: give the same decoder module to each autoencoder.

    Raises
    ------
    ValueError
        If encoder, decoder and instrument disagree on latents or pixels.
    """

    def __init__(self, encoder: SpectrumEncoder, decoder: SpectrumDecoder, instrument: Instrument):
        super().__init__()
        if encoder.latents != decoder.latents or encoder.pixels != instrument.grid.size:
            raise ValueError(
                f"expected equal latents and pixels, found encoder ({encoder.latents}, "
                f"{encoder.pixels}), decoder {decoder.latents}, instrument {instrument.grid.size}"
            )
        self.encoder, self.decoder, self.instrument = encoder, decoder, instrument

    def forward(
        self, y_BL: torch.Tensor, z_B: torch.Tensor, latent_BS: torch.Tensor | None = None
    ) -> Reconstruction:
        """Reconstruct spectra [B, L] at redshifts [B]; given latents are not re-encoded."""
        latent = self.encoder(y_BL) if latent_BS is None else latent_BS
        rest = self.decoder(latent)
        return Reconstruction(latent, rest, *self.instrument.observe(rest, z_B, self.decoder.rest))


def from_spender(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename the weights of a spender 0.3 ``SpectrumAutoencoder`` for ours.

    Buffers of the original (wavelengths) and its line-spread function are left out; load the result
    with ``strict=False`` where the instrument has one.
    """
    ours: dict[str, torch.Tensor] = {}
    for name, value in state.items():
        part, _, rest = name.partition(".")
        if part == "encoder" and rest.startswith("conv"):
            block, layer, kind = rest.removeprefix("conv").split(".")
            target = f"encoder.blocks.{int(block) - 1}.{('conv', 'norm', 'act')[int(layer)]}.{kind}"
            ours[target] = value[:, :, None] if value.ndim == 3 else value
        elif part in ("encoder", "decoder") and rest.startswith("mlp."):
            _, index, kind = rest.split(".")
            # The original has a third, idle module after each activation.
            layer, role = divmod(int(index), 3)
            ours[f"{part}.dense.{2 * layer + role}.{kind}"] = value
    return ours
