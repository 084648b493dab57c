"""Augmented spectra: lines land where they must, masks hold, chance repeats itself."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from skyray.families.outliers.augment import augment, inpaint, source_position
from skyray.records import Grid
from skyray.transforms import spectra

LINEAR = Grid("linear", 3600.0, 0.8, 7781)
LOG = Grid("log10", 3.58, 1e-4, 4000)
COARSE = Grid("linear", 3600.0, 8.0, 779)
QUIET = {"noise_share": 0.0}


def draw(rows: int = 12, grid: Grid = COARSE, seed: int = 0):
    """Noisy spectra with sky-line masks and an unmeasured arm."""
    rng = np.random.default_rng(seed)
    y = 1 + 0.2 * np.sin(np.arange(grid.size) / 15) + 0.1 * rng.normal(size=(rows, grid.size))
    w = rng.uniform(20, 100, y.shape)
    w[:, 200:207] = 0
    w[:, ::31] = 0
    w[0, 400:600] = 0
    z = rng.uniform(0, 0.7, rows)
    return tuple(torch.tensor(a, dtype=torch.float32) for a in (y, w, z))


def interpolated(values: torch.Tensor, grid: Grid, z, z_new) -> np.ndarray:
    """numpy.interp at λ (1 + z) / (1 + z_new), NaN outside."""
    wavelength = grid.wavelength()
    at = wavelength * (1 + z[:, None].double().numpy()) / (1 + z_new[:, None].double().numpy())
    rows = zip(at, values.double().numpy(), strict=True)
    return np.array([np.interp(a, wavelength, v, np.nan, np.nan) for a, v in rows])


@pytest.mark.parametrize("grid", [LINEAR, LOG], ids=["linear", "log10"])
def test_a_line_lands_at_its_new_wavelength(grid):
    wavelength = grid.wavelength()
    z = torch.tensor([0.05, 0.2, 0.4, 0.7], dtype=torch.float64)
    rest, width = 4861.3, 4.0
    centre = rest * (1 + z[:, None].numpy())
    y = torch.tensor(np.exp(-0.5 * ((wavelength - centre) / width) ** 2))
    copy = augment(y, torch.ones_like(y), z, grid, z_min=0.1, z_max=0.6, **QUIET)
    assert (copy.z - z).abs().min() > 1e-3
    found = (copy.y.numpy() * wavelength).sum(1) / copy.y.numpy().sum(1)
    pixel = np.gradient(wavelength)[np.searchsorted(wavelength, found)]
    # on a grid even in log λ the centroid of a line is not its centre: compare in that axis
    if grid.kind == "log10":
        axis = np.arange(grid.size)
        found = (copy.y.numpy() * axis).sum(1) / copy.y.numpy().sum(1)
        before = (y.numpy() * axis).sum(1) / y.numpy().sum(1)
        shift = np.log10((1 + copy.z.numpy()) / (1 + z.numpy())) / grid.step
        assert np.abs(found - before - shift).max() < 0.02
    else:
        assert np.abs((found - rest * (1 + copy.z.numpy())) / pixel).max() < 0.02


def test_published_resampling_is_linear_interpolation():
    y, w, z = draw()
    copy = augment(y, w, z, COARSE, mode="as_published", **QUIET)
    expected = interpolated(y, COARSE, z, copy.z)
    inside = np.isfinite(expected)
    np.testing.assert_allclose(copy.y.numpy()[inside], expected[inside], atol=2e-5)
    # with no noise w' = w + 1e-6, the released code's floor
    weight = interpolated(w, COARSE, z, copy.z)
    np.testing.assert_allclose(copy.w.numpy()[inside], weight[inside] + 1e-6, rtol=1e-4, atol=1e-4)
    assert not copy.y.numpy()[~inside].any()
    assert not copy.w.numpy()[~inside].any()
    assert (~inside).any()


def test_published_resampling_agrees_with_spender():
    desi = pytest.importorskip("spender.data.desi")
    y, w, z = draw()
    z = z.double()  # or the package's float32 positions are what differs
    copy = augment(y, w, z, COARSE, mode="as_published", **QUIET)
    instrument = SimpleNamespace(_wave_obs=torch.tensor(COARSE.wavelength()))
    reference = desi.DESI.augment_spectra.__func__
    their_y, their_w, _ = reference(instrument, (y, w, z), noise=False, z_new=copy.z)
    torch.testing.assert_close(copy.y, their_y, atol=2e-5, rtol=1e-5)
    floor = torch.where(their_w > 0, 1e-6, 0.0)
    torch.testing.assert_close(copy.w, their_w + floor, atol=2e-3, rtol=1e-4)


def test_masked_stays_masked():
    y, w, z = draw()
    copy = augment(y, w, z, COARSE)
    # interpolating the mask itself: a share of an unmeasured pixel above rounding masks the copy
    touched = interpolated((w == 0).float(), COARSE, z, copy.z)
    inside = np.isfinite(touched)
    good = copy.w.numpy() > 0
    assert not good[~inside].any()
    assert not good[inside & (touched > 1e-4)].any()
    assert good[inside & (touched == 0)].all()
    published = augment(y, w, z, COARSE, mode="as_published")
    assert (published.w.numpy()[inside & (touched > 1e-4)] > 0).any()


def test_no_pixel_claims_more_weight_than_its_neighbours():
    y, w, z = draw()
    copy = augment(y, w, z, COARSE, **QUIET)
    variance = np.where(w > 0, 1 / w.clamp_min(1e-9), 1e9)
    expected = 1 / interpolated(torch.tensor(variance), COARSE, z, copy.z)
    good = copy.w.numpy() > 0
    np.testing.assert_allclose(copy.w.numpy()[good], expected[good], rtol=1e-3)


@pytest.mark.parametrize("mode", ["corrected", "as_published"])
def test_unchanged_redshift_leaves_the_spectrum_unchanged(mode):
    y, w, z = draw()
    z[:] = 0.3
    copy = augment(y, w, z, COARSE, z_min=0.3, z_max=0.3, mode=mode, fill="keep", **QUIET)
    assert torch.equal(copy.y, y)
    floor = 1e-6 if mode == "as_published" else 0.0
    torch.testing.assert_close(copy.w, w + floor, atol=1e-8, rtol=1e-5)


def test_noise_is_what_the_paper_says():
    grid = Grid("linear", 3600.0, 0.8, 7781)
    y = torch.full((40, grid.size), 2.0, dtype=torch.float64)
    y[:, :100] = 50.0  # a masked sky residual
    w = torch.full_like(y, 1e4)
    w[:, :100] = 0
    z = torch.full((40,), 0.2, dtype=torch.float64)
    options = {"z_min": 0.2, "z_max": 0.2, "fill": "keep"}
    copy = augment(y, w, z, grid, **options)
    noise = (copy.y - y)[:, 101:-1].numpy()
    chosen = noise != 0
    assert chosen.mean() == pytest.approx(0.05, abs=0.002)
    assert noise[chosen].std() == pytest.approx(0.2 * 2, rel=0.03)
    assert abs(noise[chosen].mean()) < 0.02
    expected = 1 / (1e-4 + noise[chosen] ** 2)
    np.testing.assert_allclose(copy.w[:, 101:-1].numpy()[chosen], expected, rtol=1e-3)
    assert not copy.w[:, :100].any()
    published = augment(y, w, z, grid, mode="as_published", **options)
    noise = (published.y - y)[:, 101:-1].numpy()
    assert noise[noise != 0].std() == pytest.approx(0.2 * 50, rel=0.03)


def test_new_redshifts_are_uniform_and_stars_may_go_both_ways():
    y, w = torch.ones(4000, 12), torch.ones(4000, 12)
    grid = Grid("linear", 3600.0, 500.0, 12)
    z = augment(y, w, torch.zeros(4000), grid).z.numpy()
    assert 0 <= z.min() < 0.01
    assert 0.79 < z.max() <= 0.8
    assert np.abs(np.sort(z) / 0.8 - np.linspace(0, 1, 4000)).max() < 0.03
    star = augment(y, w, torch.zeros(4000), grid, z_min=-0.003, z_max=0.003).z
    assert star.min() < -0.0029
    assert star.max() > 0.0029


def test_chance_follows_the_global_seed_or_the_generator():
    y, w, z = draw()
    torch.manual_seed(3)
    first = augment(y, w, z, COARSE)
    second = augment(y, w, z, COARSE)
    torch.manual_seed(3)
    again = augment(y, w, z, COARSE)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first.z, second.z)
    state = torch.get_rng_state()
    own = [augment(y, w, z, COARSE, generator=torch.Generator().manual_seed(5)) for _ in "ab"]
    assert all(torch.equal(a, b) for a, b in zip(*own, strict=True))
    assert torch.equal(state, torch.get_rng_state())


def test_fill_decides_what_the_encoder_sees_under_the_mask():
    y, w, z = draw()
    y = torch.where(w > 0, y, 1e3)  # sky residuals
    seed = {"generator": torch.Generator()}
    copies = {}
    for fill in ("keep", "zero", "inpaint"):
        seed["generator"].manual_seed(1)
        copies[fill] = augment(y, w, z, COARSE, fill=fill, **seed)
    bad = copies["keep"].w == 0
    assert copies["keep"].y.max() > 100
    assert not copies["zero"].y[bad].any()
    assert copies["inpaint"].y.abs().max() < 3
    good = copies["keep"].y[~bad]
    assert all(torch.equal(copy.y[~bad], good) for copy in copies.values())


def test_the_instruments_own_mask_stays_in_place():
    y, w, z = draw()
    masked = torch.zeros(COARSE.size, dtype=torch.bool)
    masked[300:330] = True
    copy = augment(y, w, z, COARSE, masked_L=masked)
    assert not copy.w[:, 300:330].any()
    bent = np.diff(copy.y[:, 300:330].numpy(), n=2)  # straight lines under the mask, or outside
    assert np.abs(bent).max() < 1e-4 or not copy.y[:, 300:330].any()


def test_inpaint_is_the_twin_of_the_transform():
    rng = np.random.default_rng(4)
    y = rng.normal(size=(50, 90)).astype(np.float32)
    bad = rng.random(y.shape) < np.linspace(0, 1, 50)[:, None]
    expected = spectra.inpaint(y, bad)
    found = inpaint(torch.tensor(y), torch.tensor(~bad)).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert bad[-1].all()
    assert not found[-1].any()


def test_source_positions_on_both_grids_name_the_same_wavelength():
    z, z_new = torch.tensor([0.1, 0.5]), torch.tensor([0.3, 0.2])
    for grid in (LINEAR, LOG):
        position = source_position(grid, z, z_new).numpy()
        axis = grid.start + grid.step * position
        source = axis if grid.kind == "linear" else 10**axis
        ratio = ((1 + z.double()) / (1 + z_new.double())).numpy()[:, None]
        np.testing.assert_allclose(source, grid.wavelength() * ratio, rtol=1e-12)


def test_bad_input_is_refused():
    y, w, z = draw()
    with pytest.raises(ValueError, match="pixels"):
        augment(y, w, z, LOG)
    with pytest.raises(ValueError, match="z_min"):
        augment(y, w, z, COARSE, z_min=0.9)
    with pytest.raises(ValueError, match="expected y"):
        augment(y, w, z[1:], COARSE)
    with pytest.raises(ValueError, match="noise_share"):
        augment(y, w, z, COARSE, noise_share=5.0)
    with pytest.raises(ValueError, match="fill"):
        augment(y, w, z, COARSE, fill="mean")
