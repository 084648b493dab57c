"""The encoder's fused blocks and its fast evaluation against the same layers written out."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional

from skyray.models.fast_spender import TiledConv, fast_encoder
from skyray.models.fused_blocks import first_block, norm_act_pool, pooled
from skyray.models.spender import SpectrumEncoder


def slopes_of(channels: int, sign: str) -> torch.Tensor:
    low, high = {"positive": (0.05, 0.9), "negative": (-2.0, -0.1), "mixed": (-1.5, 1.5)}[sign]
    return torch.empty(channels, dtype=torch.float64).uniform_(low, high)


def layers(x: torch.Tensor, slope: torch.Tensor, pool: int) -> torch.Tensor:
    """Instance norm → PReLU → max pool as published, for x [B, C, 1, P]."""
    y = functional.prelu(functional.instance_norm(x, eps=1e-5), slope)
    return functional.max_pool1d(y[:, :, 0], pool, padding=pool // 2)[:, :, None]


def activation(slope: torch.Tensor) -> SimpleNamespace:
    return SimpleNamespace(weight=slope)


@pytest.mark.parametrize("sign", ["positive", "negative", "mixed"])
@pytest.mark.parametrize(
    ("positions", "pool"), [(40, 1), (40, 5), (41, 5), (43, 4), (47, 11), (7, 11), (44, 2)]
)
def test_norm_act_pool_is_the_three_layers_and_their_gradients(positions, pool, sign):
    torch.manual_seed(positions + pool)
    norm = nn.InstanceNorm2d(6)
    x = torch.randn(3, 6, 1, positions, dtype=torch.float64).mul_(3).add_(5).requires_grad_()
    slope = slopes_of(6, sign).requires_grad_()
    expected = layers(x, slope, pool)
    found = norm_act_pool(x, norm, activation(slope), pool)
    assert found.shape == expected.shape == (3, 6, 1, pooled(positions, pool))
    assert torch.allclose(found, expected, rtol=0, atol=1e-12)
    weight = torch.randn_like(expected)
    wanted = torch.autograd.grad((expected * weight).sum(), (x, slope))
    got = torch.autograd.grad((found * weight).sum(), (x, slope))
    for a, b in zip(got, wanted, strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-10)


@pytest.mark.parametrize("sign", ["positive", "negative", "mixed"])
@pytest.mark.parametrize(
    ("pixels", "kernel", "pool"), [(50, 5, 5), (53, 5, 5), (51, 3, 4), (60, 7, 1), (50, 1, 5)]
)
def test_first_block_is_the_four_layers_and_their_gradients(pixels, kernel, pool, sign):
    torch.manual_seed(pixels + kernel)
    conv = nn.Conv2d(1, 6, (1, kernel), padding=(0, kernel // 2)).double()
    y = 4 + torch.randn(3, pixels, dtype=torch.float64)
    slope = slopes_of(6, sign).requires_grad_()
    expected = layers(conv(y[:, None, None]), slope, pool)
    norm = nn.InstanceNorm2d(6)
    found = first_block(y, conv, norm, activation(slope), pool, torch.float64)
    assert found.shape == expected.shape
    assert torch.allclose(found, expected, rtol=0, atol=1e-11)
    weight, inputs = torch.randn_like(expected), (conv.weight, conv.bias, slope)
    wanted = torch.autograd.grad((expected * weight).sum(), inputs)
    got = torch.autograd.grad((found * weight).sum(), inputs)
    for a, b in zip(got, wanted, strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-9)


def test_equal_inputs_of_a_window_share_the_gradient():
    """A stretch without data is flat: its gradient must not be counted once a pixel."""
    x = torch.zeros(1, 1, 1, 10, dtype=torch.float64)
    x[..., 5:] = torch.tensor([3.0, 3.0, 1.0, 0.0, 2.0])
    x.requires_grad_()
    slope = torch.tensor([0.5], dtype=torch.float64)
    tied = norm_act_pool(x, nn.InstanceNorm2d(1), activation(slope), 5)
    (gradient,) = torch.autograd.grad(tied[..., 1].sum(), x)
    with torch.no_grad():
        apart = x.detach().clone()
        apart[..., 5] += 1e-9
    apart.requires_grad_()
    clear = norm_act_pool(apart, nn.InstanceNorm2d(1), activation(slope), 5)
    (expected,) = torch.autograd.grad(clear[..., 1].sum(), apart)
    assert gradient.sum().item() == pytest.approx(expected.sum().item(), abs=1e-6)
    assert gradient[..., 5].item() == pytest.approx(gradient[..., 6].item())
    assert (gradient[..., 5] + gradient[..., 6]).item() == pytest.approx(
        (expected[..., 5] + expected[..., 6]).item(), abs=1e-6
    )


def test_a_spectrum_of_zeros_stays_finite():
    encoder = SpectrumEncoder(400, 3, (8, 16, 16), hidden=(8,))
    latent = encoder(torch.zeros(2, 400))
    latent.sum().backward()
    assert latent.isfinite().all()
    assert all(p.grad.isfinite().all() for p in encoder.parameters())


def trained_like(pixels: int, **sizes) -> SpectrumEncoder:
    """An encoder whose PReLU slopes have left their common start, some to below 0."""
    torch.manual_seed(11)
    encoder = SpectrumEncoder(pixels, 4, **sizes).eval()
    with torch.no_grad():
        for module in encoder.modules():
            if isinstance(module, nn.PReLU):
                module.weight.uniform_(-0.4, 0.6)
    return encoder


def test_fused_encoder_is_the_layered_one():
    encoder = trained_like(900)
    y = 1 + 0.3 * torch.randn(6, 900)
    fused = encoder(y)
    layered = encoder(y.clone().requires_grad_())  # input gradients need the layers
    assert layered.requires_grad
    spread = layered.std(dim=0)
    assert ((fused - layered).abs() < 1e-4 * spread).all()


def test_input_gradients_flow():
    encoder = trained_like(900)
    y = (1 + 0.3 * torch.randn(2, 900)).requires_grad_()
    (gradient,) = torch.autograd.grad(encoder(y).sum(), y)
    assert gradient.abs().sum() > 0


@pytest.mark.parametrize(
    ("kernel", "positions"), [(11, 1557), (21, 142), (21, 17), (5, 36), (3, 2)]
)
def test_tiled_convolution_is_the_convolution(kernel, positions):
    torch.manual_seed(kernel)
    conv = nn.Conv2d(16, 24, (1, kernel), padding=(0, kernel // 2))
    x = 2 + torch.randn(9, positions, 16)
    with torch.no_grad():
        expected = functional.conv1d(
            x.transpose(1, 2).double(), conv.weight[:, :, 0].double(), padding=kernel // 2
        ).transpose(1, 2)
        found = TiledConv(conv, positions)(x)
        direct = conv(x.transpose(1, 2)[:, :, None])[:, :, 0].transpose(1, 2) - conv.bias
    assert found.shape == expected.shape
    error = (found - expected).abs().max()
    assert error < 1e-5 * expected.abs().max()
    # No more than a few times the rounding of the direct sum.
    assert error < 20 * (direct - expected).abs().max()


def test_fast_encoder_is_the_encoder():
    encoder = trained_like(3000)
    y = 1 + 0.3 * torch.randn(21, 3000)  # more than a chunk
    fast = fast_encoder(encoder)
    with torch.no_grad():
        expected, (values, attention) = encoder(y), encoder.attend(y)
    found = fast(y)
    assert ((found - expected).abs() < 1e-4 * expected.std(dim=0)).all()
    fast_values, fast_attention = fast.attend(y)
    assert torch.allclose(fast_values, values, atol=1e-4)
    assert torch.allclose(fast_attention, attention, atol=1e-5)
    assert not any(parameter.requires_grad for parameter in fast.parameters())
    assert all(parameter.requires_grad for parameter in encoder.parameters())
    with pytest.raises(ValueError, match="expected spectra"):
        fast(y[:, 1:])


def test_bfloat16_stays_near_float32():
    encoder = trained_like(3000)
    y = 1 + 0.3 * torch.randn(8, 3000)
    fast = fast_encoder(encoder)
    exact = fast(y)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = fast(y)
    assert (rounded.float() - exact).abs().max() < 0.05 * exact.abs().max()
