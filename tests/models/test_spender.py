"""SPENDER's network against the released package and independent arithmetic."""

import numpy as np
import pytest
import torch
from torch import nn

from skyray.models.spender import (
    Instrument,
    SpectrumAutoencoder,
    SpectrumDecoder,
    SpectrumEncoder,
    from_spender,
)
from skyray.records import Grid

OBSERVED = Grid("linear", 3600.0, 0.8, 7781)
REST = Grid("linear", 2000.0, 7824.0 / 9779, 9780)
SMALL_OBSERVED = Grid("linear", 3600.0, 4.0, 900)
SMALL_REST = Grid("linear", 2000.0, 4.1, 1280)


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def spectra(count: int, pixels: int, seed: int = 0) -> torch.Tensor:
    """Smooth continua, lines and noise near 1."""
    rng = np.random.default_rng(seed)
    x = np.linspace(0, 1, pixels)
    flux = 1 + rng.normal(0, 0.4, (count, 1)) * (x - 0.5) + rng.normal(0, 0.2, (count, pixels))
    for row in flux:
        for centre in rng.uniform(0, 1, 4):
            row += rng.exponential(2) * np.exp(-0.5 * ((x - centre) / 0.002) ** 2)
    return torch.as_tensor(flux, dtype=torch.float32)


def vary_slopes(network: nn.Module, low: float, high: float) -> None:
    """Give every PReLU different slopes: all alike would hide a swapped channel."""
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.PReLU):
                module.weight.uniform_(low, high)


def reference_model(observed: Grid, rest: Grid, latents: int, activation: str, lsf=None):
    """spender's own autoencoder with random weights."""
    spender = pytest.importorskip("spender")

    class Spectrograph(spender.Instrument):
        pass

    act = [nn.LeakyReLU()] * 4 if activation == "leaky_relu" else None
    return spender.SpectrumAutoencoder(
        Spectrograph(torch.as_tensor(observed.wavelength()), lsf=lsf),
        torch.as_tensor(rest.wavelength()),
        n_latent=latents,
        act=act,
    )


def ours(observed: Grid, rest: Grid, latents: int, activation: str, lsf=None):
    return SpectrumAutoencoder(
        SpectrumEncoder(observed.size, latents),
        SpectrumDecoder(rest, latents, activation=activation),
        Instrument(observed, lsf),
    )


def largest_difference(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference relative to the scale of what is expected."""
    return ((found - expected).abs().max() / expected.abs().max()).item()


def test_parameter_counts_at_desi_size():
    model = ours(OBSERVED, REST, 6, "leaky_relu")
    assert parameters(model.encoder) == 3_159_046
    assert parameters(model.decoder) == 10_304_756
    assert parameters(model) == 13_463_802


@pytest.mark.parametrize("activation", ["leaky_relu", "speculator"])
@pytest.mark.parametrize("kind", ["linear", "log10"])
def test_copied_weights_agree_with_spender(activation, kind):
    torch.manual_seed(1)
    observed = SMALL_OBSERVED if kind == "linear" else Grid("log10", 3.58, 4e-4, 900)
    reference = reference_model(observed, SMALL_REST, 6, activation).eval()
    vary_slopes(reference, -0.2, 0.5)
    model = ours(observed, SMALL_REST, 6, activation)
    model.load_state_dict(from_spender(reference.state_dict()), strict=True)
    y, z = spectra(5, 900), torch.tensor([0.001, 0.05, 0.3, 0.79, 2.0103], dtype=torch.float64)
    with torch.no_grad():
        latent, rest, expected, valid = reference._forward(y, z=z)
        found = model(y, z)
    assert largest_difference(found.latent, latent) < 1e-5
    assert largest_difference(model.decoder(latent), rest) < 1e-5
    assert largest_difference(found.rest, rest) < 1e-5
    assert largest_difference(found.model, expected) < 1e-5
    assert torch.equal(found.valid, valid)
    given = model(y, z, latent_BS=latent + 1)
    assert largest_difference(given.rest, reference.decode(latent + 1)) < 1e-5


def test_desi_size_agrees_with_spender():
    torch.manual_seed(2)
    reference = reference_model(OBSERVED, REST, 6, "leaky_relu")
    model = ours(OBSERVED, REST, 6, "leaky_relu")
    model.load_state_dict(from_spender(reference.state_dict()), strict=True)
    assert parameters(model) == parameters(reference)
    y, z = spectra(2, OBSERVED.size), torch.tensor([0.1, 0.6], dtype=torch.float64)
    with torch.no_grad():
        latent, _, expected, valid = reference._forward(y, z=z)
        found = model(y, z)
    assert largest_difference(found.latent, latent) < 1e-5
    assert largest_difference(found.model, expected) < 1e-5
    assert torch.equal(found.valid, valid)


def test_encoder_gradients_agree_with_spender():
    torch.manual_seed(3)
    reference = reference_model(SMALL_OBSERVED, SMALL_REST, 4, "leaky_relu")
    vary_slopes(reference, 0.05, 0.5)
    model = ours(SMALL_OBSERVED, SMALL_REST, 4, "leaky_relu")
    model.load_state_dict(from_spender(reference.state_dict()), strict=True)
    y, z = spectra(6, 900), torch.linspace(0.01, 0.5, 6, dtype=torch.float64)
    w = torch.rand(6, 900) * 20
    reference.loss(y, w, z=z).backward()
    made = model(y, z)
    (0.5 * w * made.valid * (y - made.model).square()).sum(dim=1).div(900).sum().backward()
    expected = from_spender({name: p.grad for name, p in reference.named_parameters()})
    for name, parameter in model.named_parameters():
        if name.endswith("conv.bias"):  # a norm follows: the true gradient is 0
            continue
        assert largest_difference(parameter.grad, expected[name]) < 1e-3, name


def test_attention_is_a_distribution_over_positions():
    encoder = SpectrumEncoder(900, 3)
    y = spectra(2, 900)
    values, attention = encoder.attend(y)
    assert values.shape == attention.shape == (2, 256, 17)
    assert torch.allclose(attention.sum(-1), torch.ones(2, 256), atol=1e-5)
    assert torch.equal(encoder.head(values, attention), encoder(y))


def test_encoder_ignores_scale_and_offset_of_the_flux():
    """The first instance norm removes both, up to its eps and the zero padding at the ends."""
    torch.manual_seed(4)
    encoder = SpectrumEncoder(900, 3).eval()
    y = spectra(4, 900) - 1.0
    with torch.no_grad():
        assert largest_difference(encoder(100 * y), encoder(1000 * y)) < 1e-3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"widths": (8, 16)}, "one pool fewer"),
        ({"kernels": (5, 10, 21)}, "odd kernels"),
        ({"widths": (8, 16, 31)}, "even last width"),
        ({"pixels": 20}, "too few"),
    ],
)
def test_encoder_refuses_what_does_not_fit(arguments, message):
    with pytest.raises(ValueError, match=message):
        SpectrumEncoder(**{"pixels": 900, "latents": 3} | arguments)


def test_wrong_sizes_are_refused():
    encoder = SpectrumEncoder(900, 3, (4, 8, 8), hidden=(8,))
    with pytest.raises(ValueError, match=r"expected spectra \[B, 900\]"):
        encoder(torch.zeros(2, 901))
    decoder = SpectrumDecoder(SMALL_REST, 4, (8,))
    with pytest.raises(ValueError, match="equal latents and pixels"):
        SpectrumAutoencoder(encoder, decoder, Instrument(SMALL_OBSERVED))
    with pytest.raises(ValueError, match="linear grid"):
        SpectrumDecoder(Grid("log10", 3.5, 1e-4, 100), 4)
    with pytest.raises(ValueError, match="activation"):
        SpectrumDecoder(SMALL_REST, 4, activation="relu")


def test_decoder_stays_in_float32_under_autocast():
    decoder = SpectrumDecoder(SMALL_REST, 4)
    latent = torch.randn(3, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = decoder(latent.bfloat16())
    assert found.dtype == torch.float32
    assert largest_difference(found, decoder(latent.bfloat16().float())) < 1e-6


def test_two_instruments_train_one_decoder():
    torch.manual_seed(5)
    decoder = SpectrumDecoder(SMALL_REST, 3, (16, 32))
    grids = SMALL_OBSERVED, Grid("log10", 3.6, 5e-4, 700)
    models = nn.ModuleList(
        SpectrumAutoencoder(
            SpectrumEncoder(grid.size, 3, (4, 8, 16), hidden=(8,)), decoder, Instrument(grid)
        )
        for grid in grids
    )
    assert parameters(models) == sum(parameters(m.encoder) for m in models) + parameters(decoder)
    data = [(spectra(8, grid.size, i), torch.full((8,), 0.1)) for i, grid in enumerate(grids)]

    def losses() -> list[torch.Tensor]:
        made = [model(y, z) for model, (y, z) in zip(models, data, strict=True)]
        return [
            ((m.model - y) * m.valid).square().mean() for m, (y, _) in zip(made, data, strict=True)
        ]

    # Each instrument alone reaches the shared decoder.
    for loss in losses():
        models.zero_grad()
        loss.backward()
        assert decoder.dense[-2].weight.grad.abs().sum() > 0
    optimizer = torch.optim.Adam(models.parameters(), 1e-2)
    before = [loss.item() for loss in losses()]
    for _ in range(20):
        optimizer.zero_grad()
        sum(losses()).backward()
        optimizer.step()
    after = [loss.item() for loss in losses()]
    assert all(b < 0.6 * a for a, b in zip(before, after, strict=True)), (before, after)
