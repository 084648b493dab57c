"""SPENDER's encoder for evaluation in float32, its convolutions done by short Fourier transforms.

A convolution of kernel k costs k multiplications per output and pair of channels. In tiles of t
outputs, with the discrete Fourier transform of t + k − 1 inputs, it costs (3/2)(t + k − 1) / t, as
each complex product is made of three real ones (Karatsuba). The transforms are small real matrices,
the sums of those products included, so that all work is matrix products. For kernels 11 and 21 that
is a fifth of the multiplications; results differ by float32 rounding.

In bfloat16 the processor's own convolutions are faster: there the encoder itself is used.

Shape suffixes: B batch, P positions, C channels in, D channels out, M tiles, N inputs and T outputs
of a tile, K real products of a tile.
"""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from skyray.models.fused_blocks import first_block, norm_act_pool
from skyray.models.spender import SpectrumEncoder

# Spectra encoded together: bfloat16 convolutions gain from more.
CHUNK, BFLOAT16_CHUNK = 8, 32
# Tiles transformed together: enough for efficient matrix products, few enough for the caches.
ROWS = 256
# Outputs a tile: for kernels 11 and 21, larger tiles lose more in the transforms than they gain.
TILE = 36


def _transforms(tile: int, kernel: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return matrices E [K, N], G [K, k], A [T, K] with A (E x · G w) = Σ_j w_j x[t + j].

    The product of spectra is X · conj(W) (a correlation): (a + ib)(c + id) from p = ac, q = bd and
    r = (a + b)(c + d). Inputs wrap round only beyond the T outputs that are kept.
    """
    size = tile + kernel - 1
    size += size % 2
    inputs, outputs, taps = (np.arange(n, dtype=np.float64) for n in (size, tile, kernel))
    angle = 2 * np.pi * np.arange(1, size // 2)[:, None] / size
    a, b = np.cos(angle * inputs), -np.sin(angle * inputs)
    c, d = np.cos(angle * taps), np.sin(angle * taps)
    cos, sin = np.cos(angle * outputs), np.sin(angle * outputs)

    def ends(n: np.ndarray) -> np.ndarray:  # frequencies 0 and N/2 are real
        return np.stack([np.ones_like(n), np.cos(np.pi * n)])

    enter = np.concatenate([ends(inputs), a, b, a + b])
    weigh = np.concatenate([ends(taps), c, d, c + d])
    leave = np.concatenate([ends(outputs), 2 * (cos + sin), 2 * (sin - cos), -2 * sin])
    return enter, weigh, leave.T / size


class TiledConv(nn.Module):
    """A same-padded convolution (1 × kernel, without its bias) by Fourier transforms of tiles.

    Parameters
    ----------
    conv : nn.Conv2d
        Kernel (1, k), k odd, padding k // 2. Its weights are copied.
    positions : int
        Length P of the inputs.
    """

    def __init__(self, conv: nn.Conv2d, positions: int):
        super().__init__()
        weight_DCk = conv.weight.detach()[:, :, 0]
        kernel = weight_DCk.shape[2]
        self.tile = min(TILE, positions)
        self.kernel, self.positions = kernel, positions
        enter, weigh, leave = _transforms(self.tile, kernel)
        weight_KCD = torch.einsum("kj,dcj->kcd", torch.as_tensor(weigh), weight_DCk.double())
        for name, value in (("enter", enter), ("weight", weight_KCD), ("leave", leave)):
            value = torch.as_tensor(value).to(weight_DCk.dtype).contiguous()
            self.register_buffer(name, value, persistent=False)

    def forward(self, x_BPC: torch.Tensor) -> torch.Tensor:
        """Return the convolution [B, P, D] of [B, P, C]."""
        tiles = -(-self.positions // self.tile)
        return torch.cat([self._convolve(x, tiles) for x in x_BPC.split(max(1, ROWS // tiles))])

    def _convolve(self, x_BPC: torch.Tensor, tiles: int) -> torch.Tensor:
        batch, positions, channels_in = x_BPC.shape
        size, left = self.enter.shape[1], self.kernel // 2
        right = (tiles - 1) * self.tile + size - left - positions
        padded = functional.pad(x_BPC, (0, 0, left, right))
        x_NBMC = padded.unfold(1, size, self.tile).permute(3, 0, 1, 2).reshape(size, -1)
        spectrum = (self.enter @ x_NBMC).view(len(self.enter), batch * tiles, channels_in)
        product = torch.bmm(spectrum, self.weight)
        y_TBMD = (self.leave @ product.flatten(1)).view(self.tile, batch, tiles, -1)
        return y_TBMD.permute(1, 2, 0, 3).reshape(batch, tiles * self.tile, -1)[:, :positions]


class FastEncoder(nn.Module):
    """What `fast_encoder` returns: the encoder's `attend`, `head` and `forward`, for evaluation."""

    def __init__(self, encoder: SpectrumEncoder):
        super().__init__()
        self.encoder = deepcopy(encoder).eval().requires_grad_(False)
        self.pixels, self.latents = encoder.pixels, encoder.latents
        convolutions, length = [], encoder.pixels
        for block, length in zip(encoder.blocks[1:], encoder.lengths, strict=True):
            convolutions.append(TiledConv(block.conv, length))
        self.convolutions = nn.ModuleList(convolutions)

    @torch.no_grad()
    def attend(self, y_BL: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return values and attention, both [B, C, T]."""
        if y_BL.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
            return self.encoder.attend(y_BL)
        first, *others = self.encoder.blocks
        pool, *pools = (*self.encoder.pools, 1)
        y_BL = self.encoder.checked(y_BL)
        x = first_block(y_BL, first.conv, first.norm, first.act, pool, first.conv.weight.dtype)
        for block, convolve, pool in zip(others, self.convolutions, pools, strict=True):
            x_BPC = x.squeeze(2).transpose(1, 2)
            y = convolve(x_BPC).transpose(1, 2)[:, :, None]
            x = norm_act_pool(y, block.norm, block.act, pool)
        return self.encoder.split(x)

    def head(self, values: torch.Tensor, attention: torch.Tensor) -> torch.Tensor:
        """Return latents [B, S] from values and attention [B, C, T]."""
        return self.encoder.head(values, attention)

    @torch.no_grad()
    def forward(self, y_BL: torch.Tensor) -> torch.Tensor:
        """Return latents [B, S] of observed spectra [B, L]; large batches are cut in chunks."""
        chunk = BFLOAT16_CHUNK if torch.is_autocast_enabled("cpu") else CHUNK
        return torch.cat([self.head(*self.attend(part)) for part in y_BL.split(chunk)])


def fast_encoder(encoder: SpectrumEncoder) -> FastEncoder:
    """Return an evaluation copy of `encoder` with the same outputs to float32 rounding.

    It keeps its own transformed weights (five times the encoder's memory), does not follow later
    changes of `encoder` and gives no gradients. Under bfloat16 autocast it runs the encoder's own
    convolutions.
    """
    return FastEncoder(encoder)
