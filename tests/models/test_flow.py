"""The latent flow against nflows' own assembly, a Jacobian, integrals and the released package."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from nflows import distributions as nflows_distributions
from nflows import flows as nflows_flows
from nflows import transforms as nflows_transforms
from safetensors.torch import load_file, save_file
from torch import nn

from skyray.models.flow import PUBLISHED_FACTOR, LatentFlow


def strong(latents: int, seed: int = 0, std: float = 0.4, **options) -> LatentFlow:
    """A flow whose weights are large enough to bend space."""
    torch.manual_seed(seed)
    flow = LatentFlow(latents, **options)
    for parameter in flow.parameters():
        nn.init.normal_(parameter, std=std)
    return flow


def draw(rows: int, latents: int = 6, seed: int = 1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    spread = torch.tensor([0.01, 0.3, 5.0, 1.0, 2.0, 0.1])[:latents]
    return torch.randn(rows, latents, generator=generator) * spread + 3 * spread


@torch.no_grad()
def test_published_flow_is_nflows_own_assembly():
    flow = strong(6, standardise=PUBLISHED_FACTOR)
    scaled = nflows_transforms.PointwiseAffineTransform(shift=0.0, scale=20.0)
    whole = nflows_transforms.CompositeTransform([scaled, copy.deepcopy(flow.transform)])
    reference = nflows_flows.Flow(whole, nflows_distributions.StandardNormal((6,)))
    latent = 0.05 * torch.randn(200, 6)
    expected = reference.log_prob(latent).float()
    torch.testing.assert_close(flow.log_prob(latent), expected, rtol=1e-5, atol=1e-4)


@torch.no_grad()
def test_published_value_carries_six_ln_twenty():
    flow = strong(6, standardise=20.0)
    latent = 0.05 * torch.randn(50, 6)
    bare = nflows_flows.Flow(flow.transform, nflows_distributions.StandardNormal((6,)))
    carried = flow.log_prob(latent) - bare.log_prob(20 * latent)
    assert carried.mean().item() == pytest.approx(17.97, abs=0.01)
    assert carried.std().item() < 1e-4


@torch.no_grad()
def test_agrees_with_spender_seed_for_seed():
    released = pytest.importorskip("spender.flow")
    position = {"bounds": [[0, 0]] * 6, "std": [0.05] * 6}
    torch.manual_seed(7)
    reference = released.NeuralDensityEstimator(dim=6, initial_pos=position)
    torch.manual_seed(7)
    flow = LatentFlow(6, standardise=20.0)
    latent = 0.05 * torch.randn(200, 6)
    expected = reference.log_prob(latent)
    torch.testing.assert_close(flow.log_prob(latent), expected, rtol=1e-5, atol=1e-4)


def test_log_prob_is_the_change_of_variables():
    """Against the base density and the determinant of the Jacobian, in float64."""
    flow = strong(4).double()
    data = draw(300, 4).double()
    flow.set_standardisation(data)

    def to_base(latent_S):
        u = (latent_S - flow.mean) / flow.scale
        return flow.transform(u[None])[0][0]

    for row in data[:8]:
        jacobian = torch.autograd.functional.jacobian(to_base, row)
        base = torch.distributions.Normal(0.0, 1.0).log_prob(to_base(row)).sum()
        expected = base + torch.linalg.slogdet(jacobian).logabsdet
        assert flow.log_prob(row[None]).item() == pytest.approx(expected.item(), abs=1e-9)


@torch.no_grad()
@pytest.mark.parametrize("latents", [1, 2])
def test_density_integrates_to_one(latents):
    flow = strong(latents, std=0.2, seed=3, layers=2, hidden=16)
    flow.set_standardisation(draw(500, latents))
    sample = flow.sample(5000).double()  # only to know where to look
    low, high = sample.amin(0), sample.amax(0)
    margin = 0.5 * (high - low)
    points = {1: 20_001, 2: 301}[latents]
    axes = [
        torch.linspace(a, b, points, dtype=torch.float64)
        for a, b in zip(low - margin, high + margin, strict=True)
    ]
    latent = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).reshape(-1, latents)
    density = flow.double().log_prob(latent).exp()
    cell = torch.stack([axis[1] - axis[0] for axis in axes]).prod()
    assert (density.sum() * cell).item() == pytest.approx(1.0, abs=2e-3)
    assert density.max() * cell < 0.01  # the grid resolves the peak


@torch.no_grad()
def test_units_of_the_latents_only_shift_the_density():
    data = draw(1000).double()
    factor = torch.tensor([1e-3, 7.0, 1.0, 1e4, 0.5, 20.0], dtype=torch.float64)
    plain, rescaled = strong(6).double(), strong(6).double()
    plain.set_standardisation(data)
    other = (data - 2.0) * factor
    rescaled.set_standardisation(other)
    expected = plain.log_prob(data) - factor.log().sum()
    torch.testing.assert_close(rescaled.log_prob(other), expected, rtol=1e-9, atol=1e-6)


@torch.no_grad()
def test_far_latents_stay_finite_and_unlikely():
    flow = strong(6)
    data = draw(1000)
    flow.set_standardisation(data)
    direction = torch.randn(200, 6)
    usual = flow.log_prob(data).min()
    for far in (1e3, 1e6, 1e12):
        log_p = flow.log_prob(flow.mean + far * direction * flow.scale)
        assert log_p.isfinite().all()
        assert (log_p < usual).all()
    assert flow.log_prob(torch.full((1, 6), float("nan"))).isnan().all()


def test_state_dict_is_the_whole_flow(tmp_path):
    flow = strong(6)
    flow.set_standardisation(draw(100))
    save_file(flow.state_dict(), tmp_path / "flow.safetensors")
    torch.manual_seed(99)
    other = LatentFlow(6)  # other permutations
    permutation = "transform._transforms.1._permutation"
    assert not torch.equal(other.state_dict()[permutation], flow.state_dict()[permutation])
    other.load_state_dict(load_file(tmp_path / "flow.safetensors"))
    latent = draw(20)
    assert torch.equal(flow.log_prob(latent), other.log_prob(latent))
    for name in ("mean", "scale"):
        assert torch.equal(getattr(flow, name), getattr(other, name))


def test_chance_follows_torchs_seed():
    flows, samples = [], []
    for _ in range(2):
        torch.manual_seed(11)
        flow = LatentFlow(5)
        flows.append(flow.state_dict())
        samples.append(flow.sample(10))
    assert all(torch.equal(flows[0][name], flows[1][name]) for name in flows[0])
    assert torch.equal(*samples)
    assert not torch.equal(flow.sample(10), samples[0])


def test_autocast_changes_nothing():
    flow, latent = strong(6), draw(50)
    flow.set_standardisation(latent)
    plain = flow.log_prob(latent)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = flow(latent)
    assert torch.equal(plain, under)
    assert under.dtype == torch.float32


def test_learns_a_bent_density():
    """A banana x₂ = x₁² + noise: the entropy is known, and samples follow the curve."""
    rng = np.random.default_rng(0)
    width, spread, units = 0.3, 1.0, np.array([0.02, 50.0])

    def bent(rows):
        x = rng.normal(size=rows) * spread
        return torch.tensor(np.stack([x, x**2 + width * rng.normal(size=rows)], 1) * units)

    torch.manual_seed(0)
    flow = LatentFlow(2, layers=2, hidden=16)
    train, held_out = bent(6000), bent(3000)
    flow.set_standardisation(train)
    optimiser = torch.optim.Adam(flow.parameters(), lr=5e-3)
    for step in range(250):
        batch = train[torch.randint(len(train), (256,))]
        loss = -flow(batch).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if step == 180:
            optimiser.param_groups[0]["lr"] = 1e-3
    entropy = math.log(2 * math.pi * math.e * width * spread * units.prod())
    with torch.no_grad():
        assert -flow(held_out).mean().item() == pytest.approx(entropy, abs=0.1)
    sample = flow.sample(3000).numpy() / units
    residual = sample[:, 1] - sample[:, 0] ** 2
    assert np.median(np.abs(residual)) == pytest.approx(0.6745 * width, rel=0.2)
    assert sample[:, 0].std() == pytest.approx(spread, rel=0.1)


def test_bad_input_is_refused():
    flow = LatentFlow(3)
    with pytest.raises(ValueError, match="latents"):
        flow.log_prob(torch.zeros(4, 2))
    with pytest.raises(ValueError, match="do not vary"):
        flow.set_standardisation(torch.tensor([[1.0, 5.0, 0.0], [2.0, 5.0, 1.0]]))
    with pytest.raises(ValueError, match="finite"):
        flow.set_standardisation(torch.full((3, 3), float("nan")))
    with pytest.raises(ValueError, match="standardise"):
        LatentFlow(3, standardise=0.0)
    with pytest.raises(ValueError, match="≥ 1"):
        LatentFlow(3, layers=0)


def test_a_factor_leaves_the_data_alone():
    flow = LatentFlow(3, standardise=20.0)
    flow.set_standardisation(draw(50, 3))
    assert not flow.mean.any()
    torch.testing.assert_close(flow.scale, torch.full((3,), 0.05))
