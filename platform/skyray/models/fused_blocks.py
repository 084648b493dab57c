"""Convolution blocks of SPENDER's encoder, one spectrum at a time: same numbers, less time.

A block is convolution → instance norm → PReLU → max pool. Written layer by layer, the first one
moves 4 MB per spectrum and layer (128 channels × 7781 pixels) through main memory. Here

- the pool comes before norm and PReLU. Both keep the order of values, and a PReLU of negative slope
  turns it round below 0, so that its window's largest value is that of the largest or of the
  smallest input;
- each spectrum is normalised while it lies in the processor's cache;
- the first convolution is never stored: mean and variance of its output are a quadratic form of the
  input's moments at lags 0 … kernel − 1, and the backward pass makes it again.

Where several inputs of a window are equal and largest, they share the gradient.

Shape suffixes: B batch, P positions before and T after the pool, C channels, K taps, W taps of all
convolution outputs that share a pool window.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

_INF = float("inf")


def pooled(positions: int, pool: int) -> int:
    """Return the length a max pool of kernel and stride `pool`, padding pool // 2, leaves."""
    return (positions + 2 * (pool // 2) - pool) // pool + 1


def _extreme(x_TpC: torch.Tensor, slope_C: torch.Tensor, falling: torch.Tensor) -> torch.Tensor:
    """Return the value of each window whose PReLU is largest [T, C]; padding is −inf.

    `falling` lists the channels of negative slope.
    """
    best_TC = x_TpC.amax(dim=1)
    if len(falling):
        some = x_TpC[:, :, falling]
        low = some.masked_fill_(some == -_INF, _INF).amin(dim=1)
        high, slope = best_TC[:, falling], slope_C[falling]
        best_TC[:, falling] = torch.where(
            functional.prelu(low, slope) > functional.prelu(high, slope), low, high
        )
    return best_TC


def _prelu_backward(grad_TC: torch.Tensor, norm_TC: torch.Tensor, slope_C: torch.Tensor):
    """Return the gradients with respect to PReLU's input [T, C] and to its slopes [C]."""
    below = torch.le(norm_TC, 0, out=torch.empty_like(norm_TC))  # as numbers: bools are slower
    slope_grad_C = (grad_TC * norm_TC).mul_(below).sum(dim=0)
    return below.mul_(slope_C - 1).add_(1).mul_(grad_TC), slope_grad_C


def _share(
    x_TpC: torch.Tensor, best_TC: torch.Tensor, grad_TC: torch.Tensor, out: torch.Tensor
) -> torch.Tensor:
    """Hand each window's gradient to the inputs that made its value, in `out` [T, p, C]."""
    torch.eq(x_TpC, best_TC[:, None], out=out)  # as numbers: bools are slower
    return out.mul_((grad_TC / out.sum(dim=1))[:, None])


class _NormActPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_BPC, slope_C, pool: int, eps: float, dtype: torch.dtype):
        batch, positions, channels = x_BPC.shape
        length, pad = pooled(positions, pool), pool // 2
        work = slope_C.dtype
        out_BTC = x_BPC.new_empty(batch, length, channels, dtype=dtype)
        best_BTC = slope_C.new_empty(batch, length, channels)
        mean_BC, rstd_BC = slope_C.new_empty(2, batch, channels)
        falling = (slope_C < 0).nonzero()[:, 0]
        buffer = slope_C.new_full((max(length * pool, pad + positions), channels), -_INF)
        centred = buffer[pad : pad + positions]
        windows = buffer[: length * pool].view(length, pool, channels)
        with torch.autocast(x_BPC.device.type, enabled=False):
            for b in range(batch):
                x_PC = x_BPC[b].to(work)
                mean = mean_BC[b] = x_PC.mean(dim=0)
                torch.sub(x_PC, mean, out=centred)
                rstd_BC[b] = (centred * centred).mean(dim=0).add_(eps).rsqrt_()
                best = _extreme(windows, slope_C, falling)
                out_BTC[b] = functional.prelu(best * rstd_BC[b], slope_C)
                best_BTC[b] = best
        ctx.save_for_backward(x_BPC, slope_C, best_BTC, mean_BC, rstd_BC)
        ctx.pool = pool
        return out_BTC

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_BTC):
        x_BPC, slope_C, best_BTC, mean_BC, rstd_BC = ctx.saved_tensors
        batch, positions, channels = x_BPC.shape
        length, pool, pad = best_BTC.shape[1], ctx.pool, ctx.pool // 2
        grad_BPC, slope_grad_C = torch.empty_like(x_BPC), torch.zeros_like(slope_C)
        buffer = slope_C.new_full((max(length * pool, pad + positions), channels), -_INF)
        centred = buffer[pad : pad + positions]
        windows = buffer[: length * pool].view(length, pool, channels)
        shared = torch.empty_like(windows)
        with torch.autocast(x_BPC.device.type, enabled=False):
            for b in range(batch):
                best, rstd = best_BTC[b], rstd_BC[b]
                torch.sub(x_BPC[b].to(slope_C.dtype), mean_BC[b], out=centred)
                norm = best * rstd
                grad, slope_grad = _prelu_backward(grad_BTC[b].to(slope_C.dtype), norm, slope_C)
                slope_grad_C += slope_grad
                spread = _share(windows, best, grad * rstd, out=shared)
                spread = spread.view(length * pool, channels)[pad : pad + positions]
                # The pool may leave out positions at the end: they get the norm's part only.
                whole = functional.pad(spread, (0, 0, 0, positions - len(spread)))
                along = rstd.square() * (grad * norm).sum(dim=0) / positions
                whole.addcmul_(centred, along, value=-1).sub_(grad.sum(dim=0) * rstd / positions)
                grad_BPC[b] = whole
        return grad_BPC, slope_grad_C, None, None, None


def norm_act_pool(
    x: torch.Tensor,
    norm: nn.Module,
    act: nn.PReLU,
    pool: int = 1,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Return max pool(PReLU(instance norm(x))) for x [B, C, 1, P], channels-last like the result.

    Statistics are computed in the slopes' precision; the result is of `dtype`, or that of `x`.
    """
    x_BPC = x.squeeze(2).transpose(1, 2).contiguous()
    out_BTC = _NormActPool.apply(x_BPC, act.weight, pool, norm.eps, dtype or x.dtype)
    return out_BTC.transpose(1, 2)[:, :, None]


class _FirstBlock(torch.autograd.Function):
    @staticmethod
    def forward(ctx, y_BP, weight_CK, bias_C, slope_C, pool: int, eps: float, dtype):
        positions, kernel = y_BP.shape[1], weight_CK.shape[1]
        length = pooled(positions, pool)
        with torch.autocast(y_BP.device.type, enabled=False):
            windows_BTW = _windows(y_BP.to(weight_CK.dtype), kernel, pool)
            mean_BK, covariance_BKK = _moments(y_BP, kernel)
            variance_BC = torch.einsum(
                "ck,bkl,cl->bc", weight_CK.double(), covariance_BKK, weight_CK.double()
            )
            rstd_BC = (variance_BC.clamp_(min=0) + eps).rsqrt_()
            shift_BC = (-(mean_BK @ weight_CK.double().T) * rstd_BC).to(weight_CK.dtype)
            rstd_BC = rstd_BC.to(weight_CK.dtype)
            ctx.save_for_backward(
                windows_BTW, weight_CK, slope_C, rstd_BC, shift_BC, mean_BK, covariance_BKK
            )
            ctx.pool, ctx.positions = pool, positions
            falling = (slope_C < 0).nonzero()[:, 0]
            norm_TpC = slope_C.new_empty(length, pool, len(slope_C))
            out_BTC = torch.empty(len(y_BP), length, len(slope_C), dtype=dtype, device=y_BP.device)
            for b in range(len(y_BP)):
                scaled_CK = weight_CK * rstd_BC[b, :, None]
                _convolve(windows_BTW[b], scaled_CK, shift_BC[b], positions, out=norm_TpC)
                best_TC = _extreme(norm_TpC, slope_C, falling)
                out_BTC[b] = functional.prelu(best_TC, slope_C)
        return out_BTC

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_BTC):
        windows_BTW, weight_CK, slope_C, rstd_BC, shift_BC, mean_BK, covariance_BKK = (
            ctx.saved_tensors
        )
        kernel, channels, pool = weight_CK.shape[1], len(slope_C), ctx.pool
        weight_grad, slope_grad_C = torch.zeros_like(weight_CK), torch.zeros_like(slope_C)
        taps_WpC = slope_C.new_zeros(windows_BTW.shape[2], pool, channels)
        falling = (slope_C < 0).nonzero()[:, 0]
        mean_BK, covariance_BKK = mean_BK.to(slope_C.dtype), covariance_BKK.to(slope_C.dtype)
        norm_TpC = slope_C.new_empty(windows_BTW.shape[1], pool, channels)
        with torch.autocast(windows_BTW.device.type, enabled=False):
            for b, (windows_TW, rstd) in enumerate(zip(windows_BTW, rstd_BC, strict=True)):
                scaled_CK = weight_CK * rstd[:, None]
                _convolve(windows_TW, scaled_CK, shift_BC[b], ctx.positions, out=norm_TpC)
                best_TC = _extreme(norm_TpC, slope_C, falling)
                grad, slope_grad = _prelu_backward(grad_BTC[b].to(slope_C.dtype), best_TC, slope_C)
                slope_grad_C += slope_grad
                along = (grad * best_TC).sum(dim=0) * rstd.square()
                weight_grad -= along[:, None] * (weight_CK @ covariance_BKK[b])
                weight_grad -= (grad.sum(dim=0) * rstd)[:, None] * mean_BK[b]
                _share(norm_TpC, best_TC, grad * rstd, out=norm_TpC)
                taps_WpC += (windows_TW.T @ norm_TpC.flatten(1)).view(taps_WpC.shape)
        for offset in range(pool):
            weight_grad += taps_WpC[offset : offset + kernel, offset].T
        return None, weight_grad, torch.zeros_like(slope_C), slope_grad_C, None, None, None


def _windows(y_BP: torch.Tensor, kernel: int, pool: int) -> torch.Tensor:
    """Return the inputs of all convolution outputs of each pool window and a column of 1."""
    length = pooled(y_BP.shape[1], pool)
    left, width = pool // 2 + kernel // 2, pool + kernel - 1
    right = length * pool + kernel - 1 - left - y_BP.shape[1]
    windows_BTW = functional.pad(y_BP, (left, right)).unfold(1, width, pool)
    return functional.pad(windows_BTW, (0, 1), value=1.0)


def _moments(y_BP: torch.Tensor, kernel: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean [B, K] and covariance [B, K, K] of a convolution's inputs (zero padded), double.

    Float64, as the covariance is a small difference of large sums.
    """
    padded = functional.pad(y_BP.double(), (kernel // 2, kernel // 2))
    taps_BKP = padded.unfold(1, y_BP.shape[1], 1)
    mean_BK = taps_BKP.mean(dim=2)
    product_BKK = torch.stack([t @ t.T for t in taps_BKP]) / y_BP.shape[1]
    return mean_BK, product_BKK - mean_BK[:, :, None] * mean_BK[:, None, :]


def _convolve(
    windows_TW: torch.Tensor,
    weight_CK: torch.Tensor,
    shift_C: torch.Tensor,
    positions: int,
    out: torch.Tensor,
) -> None:
    """Write conv(y) + shift, window by window, to `out` [T, p, C].

    The last column of `windows_TW` is 1 and takes the shift. What lies before and after the
    `positions` of the convolution's output is −inf, as a max pool pads.
    """
    length, pool, channels = out.shape
    stacked = weight_CK.new_zeros(windows_TW.shape[1], pool, channels)
    for offset in range(pool):
        stacked[offset : offset + weight_CK.shape[1], offset] = weight_CK.T
    stacked[-1] = shift_C
    torch.mm(windows_TW, stacked.flatten(1), out=out.view(length, -1))
    before = pool // 2
    out[0, :before] = -_INF
    out[-1, positions + before - (length - 1) * pool :] = -_INF


def first_block(
    y_BP: torch.Tensor,
    conv: nn.Conv2d,
    norm: nn.Module,
    act: nn.PReLU,
    pool: int,
    dtype: torch.dtype,
) -> torch.Tensor:
    """Return max pool(PReLU(instance norm(conv(y)))) for y [B, P], as [B, C, 1, T] in `dtype`.

    Computed in the weights' precision. No gradient flows to `y_BP`, and the norm removes the bias:
    its gradient is 0.
    """
    weight_CK = conv.weight[:, 0, 0]
    out_BTC = _FirstBlock.apply(y_BP, weight_CK, conv.bias, act.weight, pool, norm.eps, dtype)
    return out_BTC.transpose(1, 2)[:, :, None]
