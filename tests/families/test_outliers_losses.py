"""SPENDER's losses against their definitions, numbers by hand and the released package."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy.special import expit

from skyray.families.outliers import losses

B, R, S = 24, 400, 6


def similarity_direct(latent, rest, weight, k, scale):
    """The definition, with its B × B × R tensor."""
    D = (weight * (rest[:, None, :] - rest[None, :, :]) ** 2).sum(-1) / rest.shape[1]
    d = ((latent[:, None, :] - latent[None, :, :]) ** 2).sum(-1) / latent.shape[1]
    off = ~torch.eye(len(latent), dtype=torch.bool)
    if scale == "relative":
        D, d = D / D[off].mean(), d / d[off].mean()
    x = (d - D)[off]
    return (torch.sigmoid(k * x - 2.5) + torch.sigmoid(-k * x - 2.5)).sum() / len(latent)


def draw(seed: int = 0, contrast: float = 0.15, dtype=torch.float32):
    """Latents and rest-frame spectra that resemble galaxies: a common shape plus small features."""
    generator = torch.Generator().manual_seed(seed)
    wavelength = torch.linspace(2000.0, 9824.0, R, dtype=torch.float64)
    latent = torch.randn(B, S, generator=generator, dtype=torch.float64)
    features = torch.randn(S, R, generator=generator, dtype=torch.float64)
    rest = 1.0 + (wavelength - 5000.0) / 8000.0 + contrast * latent.tanh() @ features
    weight = losses.similarity_weight(wavelength)
    return latent.to(dtype), rest.to(dtype), weight.to(dtype), wavelength


def gradients(loss, *tensors):
    return torch.autograd.grad(loss, tensors)


# fidelity -------------------------------------------------------------------------------------


def test_fidelity_of_pure_noise_is_half_the_share_of_used_pixels():
    rng = np.random.default_rng(1)
    w = rng.uniform(0.5, 50, (200, 2000))
    model = rng.normal(1, 1, w.shape)
    y = model + rng.normal(size=w.shape) / np.sqrt(w)
    w[:, ::4] = 0  # a quarter masked, as in the paper: ½ · ¾ = .375, published .384–.391
    tensors = [torch.tensor(a, dtype=torch.float32) for a in (y, w, model)]
    loss = losses.fidelity(*tensors, torch.ones(w.shape, dtype=torch.bool), reduce="mean")
    assert loss.item() == pytest.approx(0.375, rel=5e-3)


def test_fidelity_by_hand():
    y = torch.tensor([[1.0, 2.0, 3.0, 4.0], [0.0, 1.0, 0.0, 1.0]])
    w = torch.tensor([[2.0, 0.0, 1.0, 4.0], [1.0, 1.0, 1.0, 1.0]])
    model = torch.tensor([[0.0, 9.0, 1.0, 3.0], [1.0, 1.0, 2.0, 9.0]])
    valid = torch.tensor([[True, True, True, True], [True, True, True, False]])
    # (2·1 + 0 + 1·4 + 4·1)/8 and (1 + 0 + 4 + [outside])/8
    expected = torch.tensor([10 / 8, 5 / 8])
    torch.testing.assert_close(losses.fidelity(y, w, model, valid, "none"), expected)
    assert losses.fidelity(y, w, model, valid).item() == pytest.approx(15 / 8)
    assert losses.fidelity(y, w, model, valid, "mean").item() == pytest.approx(15 / 16)


def test_masked_pixels_reach_neither_loss_nor_gradient():
    y = torch.tensor([[1.0, float("nan"), 2.0, float("inf")]])
    w = torch.tensor([[1.0, 0.0, 1.0, 1.0]])
    model = torch.zeros(1, 4, requires_grad=True)
    valid = torch.tensor([[True, True, True, False]])
    loss = losses.fidelity(y, w, model, valid)
    assert loss.item() == pytest.approx(5 / 8)
    (gradient,) = gradients(loss, model)
    torch.testing.assert_close(gradient, torch.tensor([[-1.0, 0.0, -2.0, 0.0]]) / 4)


# similarity -----------------------------------------------------------------------------------


def test_similarity_of_three_spectra_by_hand():
    latent = torch.tensor([[0.0, 0.0], [1.0, 1.0], [2.0, 0.0]])
    rest = torch.tensor([[1.0, 1.0], [1.0, 3.0], [1.0, 1.0]])
    weight = torch.tensor([30.0, 0.5])
    k = 1.3
    # d: 01 → 2/2, 02 → 4/2, 12 → 2/2. D = Σ W Δ²/2: 01 → .5·4/2, 02 → 0, 12 → .5·4/2.
    x = np.array([1.0 - 1.0, 2.0 - 0.0, 1.0 - 1.0])
    expected = 2 * np.sum(expit(k * x - 2.5) + expit(-k * x - 2.5)) / 3
    found = losses.similarity(latent, rest, weight, k, "published")
    assert found.item() == pytest.approx(expected, rel=1e-6)
    # relative: mean d = 4/3, mean D = 2/3
    x = np.array([1.0, 2.0, 1.0]) / (4 / 3) - np.array([1.0, 0.0, 1.0]) / (2 / 3)
    expected = 2 * np.sum(expit(k * x - 2.5) + expit(-k * x - 2.5)) / 3
    found = losses.similarity(latent, rest, weight, k, "relative")
    assert found.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("scale", ["published", "relative"])
@pytest.mark.parametrize("k", [0.1, 1.9, 5.0])
def test_gram_form_equals_the_definition(scale, k):
    latent, rest, weight, _ = draw()
    latent.requires_grad_()
    rest.requires_grad_()
    exact = [t.detach().double().requires_grad_() for t in (latent, rest)]
    expected = similarity_direct(*exact, weight.double(), k, scale)
    found = losses.similarity(latent, rest, weight, k, scale)
    assert found.item() == pytest.approx(expected.item(), rel=2e-6)
    pairs = zip(gradients(found, latent, rest), gradients(expected, *exact), strict=True)
    for ours, truth in pairs:
        assert (ours - truth).abs().max() < 2e-6 * truth.abs().max()


def test_precision_survives_nearly_equal_spectra():
    """Differences of 1e-3 on spectra of order 1: the Gram matrix of uncentred rows loses them."""
    latent, rest, weight, _ = draw(contrast=1e-3)
    expected = similarity_direct(latent.double(), rest.double(), weight.double(), 1.9, "relative")
    found = losses.similarity(latent, rest, weight, 1.9, "relative")
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("scale", ["published", "relative"])
def test_similarity_gradcheck(scale):
    latent, rest, weight, _ = draw(dtype=torch.float64)
    latent, rest = latent[:5].requires_grad_(), rest[:5, ::40].clone().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda s, x: losses.similarity(s, x, weight[::40], 1.1, scale), (latent, rest)
    )


def test_similarity_has_no_gradient_at_k_zero():
    latent, rest, weight, _ = draw()
    latent.requires_grad_()
    rest.requires_grad_()
    loss = losses.similarity(latent, rest, weight, 0.0)
    assert loss.item() == pytest.approx((B - 1) * 2 * expit(-2.5), rel=1e-5)
    assert all(not g.any() for g in gradients(loss, latent, rest))


def test_autocast_changes_nothing():
    latent, rest, weight, _ = draw()
    mask = torch.ones(B, R, dtype=torch.bool)
    plain = (
        losses.similarity(latent, rest, weight, 1.9),
        losses.fidelity(rest, rest.abs(), rest + 0.01, mask),
        losses.consistency(latent, latent + 0.1, "relative"),
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = (
            losses.similarity(latent, rest, weight, 1.9),
            losses.fidelity(rest, rest.abs(), rest + 0.01, mask),
            losses.consistency(latent, latent + 0.1, "relative"),
        )
    assert [t.item() for t in plain] == [t.item() for t in under]
    assert all(t.dtype == torch.float32 for t in under)


def test_similarity_of_one_spectrum_or_of_equal_ones_is_finite():
    latent, rest, weight, _ = draw()
    for scale in ("published", "relative"):
        assert losses.similarity(latent[:1], rest[:1], weight, 1.0, scale).item() == 0
        same = latent[:1].repeat(4, 1).requires_grad_()
        loss = losses.similarity(same, rest[:1].repeat(4, 1), weight, 1.0, scale)
        assert loss.item() == pytest.approx(3 * 2 * expit(-2.5), rel=1e-5)
        assert gradients(loss, same)[0].isfinite().all()


def test_similarity_rejects_what_does_not_fit():
    latent, rest, weight, _ = draw()
    with pytest.raises(ValueError, match="latents"):
        losses.similarity(latent[1:], rest, weight, 1.0)
    with pytest.raises(ValueError, match="weight"):
        losses.similarity(latent, rest, weight[1:], 1.0)
    with pytest.raises(ValueError, match="scale"):
        losses.similarity(latent, rest, weight, 1.0, "absolute")


def test_weight_and_median():
    wavelength = torch.tensor([1000.0, 5000.0, 9000.0])
    # ½·4000/2000 = 1 on both sides
    expected = torch.tensor([30 / np.e, 30.0, 30 / np.e], dtype=torch.float32)
    torch.testing.assert_close(losses.similarity_weight(wavelength), expected)
    rest = torch.tensor([[9.0, 1.0, 5.0, 2.0, 9.0], [0.0, 3.0, 1.0, 2.0, 0.0]])
    grid = torch.tensor([4000.0, 4500.0, 5000.0, 6900.0, 7000.0])  # edges are outside
    torch.testing.assert_close(losses.rest_median(rest, grid), torch.tensor([[2.0], [2.0]]))
    with pytest.raises(ValueError, match="no pixel"):
        losses.rest_median(rest, grid + 5000)


# consistency ----------------------------------------------------------------------------------


def test_consistency_by_hand():
    s = torch.tensor([[0.0, 0.0], [1.0, 2.0]])
    augmented = torch.tensor([[0.0, 1.0], [1.0, 2.0]])
    expected = expit(1 / (0.25 * 2)) - 0.5
    assert losses.consistency(s, augmented).item() == pytest.approx(expected, rel=1e-6)
    expected = expit(1 / (0.01 * 2)) - 0.5
    sdss = losses.consistency(s, augmented, tolerance=losses.SDSS_TOLERANCE)
    assert sdss.item() == pytest.approx(expected, rel=1e-6)
    expected = expit(0.5 / np.mean([0.5, 2.0])) - 0.5  # variances of the columns: ½ and 2
    relative = losses.consistency(s, augmented, "relative")
    assert relative.item() == pytest.approx(expected, rel=1e-6)


def test_relative_losses_do_not_change_with_the_units_of_the_latents():
    latent, rest, weight, _ = draw()
    augmented = latent + 0.2 * torch.roll(latent, 1, dims=0)
    for factor in (1e-3, 1e3):
        for ours, scaled in (
            (losses.consistency(latent, augmented, "relative"),
             losses.consistency(factor * latent, factor * augmented, "relative")),
            (losses.similarity(latent, rest, weight, 2.0, "relative"),
             losses.similarity(factor * latent, rest, weight, 2.0, "relative")),
        ):  # fmt: skip
            assert scaled.item() == pytest.approx(ours.item(), rel=1e-5)
    # ... while the published ones do
    shrunk = losses.consistency(1e-3 * latent, 1e-3 * augmented)
    assert shrunk < 1e-3 * losses.consistency(latent, augmented)


def test_consistency_of_one_spectrum_and_bad_input():
    s = torch.zeros(1, 3)
    assert losses.consistency(s, s + 1, "relative").item() == 0
    with pytest.raises(ValueError, match="two tensors"):
        losses.consistency(s, torch.zeros(2, 3))
    with pytest.raises(ValueError, match="tolerance"):
        losses.consistency(s, s, tolerance=0.0)


# the released package -------------------------------------------------------------------------


@pytest.mark.parametrize("slope", [0.5, 5.0])
def test_relative_similarity_agrees_with_spender(slope):
    reference = pytest.importorskip("spender.loss")
    latent, rest, _, wavelength = draw()
    latent.requires_grad_()
    weight = losses.similarity_weight(wavelength)
    model = SimpleNamespace(
        decode=lambda s: rest, decoder=SimpleNamespace(wave_rest=wavelength.float())
    )
    config = reference.LossConfig(similarity_slope=slope)
    expected = reference.similarity_restframe_loss(model, latent, config=config)
    normalised = rest / losses.rest_median(rest, wavelength)
    found = losses.similarity(latent, normalised, weight, slope, "relative")
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    ours, theirs = gradients(found, latent)[0], gradients(expected, latent)[0]
    assert (ours - theirs).abs().max() < 1e-5 * theirs.abs().max()


def test_relative_consistency_agrees_with_spender():
    reference = pytest.importorskip("spender.loss")
    latent, *_ = draw()
    augmented = (latent + 0.3 * torch.flip(latent, dims=(0,))).requires_grad_()
    latent.requires_grad_()
    expected = reference.consistency_loss(latent, augmented)
    found = losses.consistency(latent, augmented, "relative")
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    pairs = zip(
        gradients(found, latent, augmented), gradients(expected, latent, augmented), strict=True
    )
    for ours, theirs in pairs:
        assert (ours - theirs).abs().max() < 1e-5 * theirs.abs().max()


# schedule -------------------------------------------------------------------------------------


def test_published_schedules():
    desi = [losses.k_schedule(e, 800, "desi") for e in range(800)]
    assert desi[:20] == pytest.approx(np.arange(20) / 10)
    assert desi[20:40] == desi[:20]
    assert not any(desi[790:])
    assert desi[789] == pytest.approx(0.9)
    sdss = [losses.k_schedule(e, 300, "sdss") for e in range(300)]
    assert max(sdss) == pytest.approx(9.9)
    assert sdss[100] == 0
    assert not any(sdss[290:])


def test_ramp_never_rests_and_ends_at_its_maximum():
    for epochs in (1, 2, 7, 30):
        ramp = np.array([losses.k_schedule(e, epochs, "ramp") for e in range(epochs)])
        assert (ramp > 0).all()
        assert (np.diff(ramp) >= 0).all()
        assert ramp[-1] == pytest.approx(1.9)
        assert np.ptp(ramp[(epochs + 1) // 2 - 1 :]) == 0  # the second half is one function
    assert losses.k_schedule(3, 5, "constant", 5.0) == 5.0


def test_schedule_rejects_what_does_not_apply():
    with pytest.raises(ValueError, match="own"):
        losses.k_schedule(0, 10, "desi", 1.0)
    with pytest.raises(ValueError, match="epoch"):
        losses.k_schedule(10, 10, "ramp")
    with pytest.raises(ValueError, match="kind"):
        losses.k_schedule(0, 10, "cosine")
    with pytest.raises(ValueError, match="maximum"):
        losses.k_schedule(0, 10, "ramp", 0.0)
