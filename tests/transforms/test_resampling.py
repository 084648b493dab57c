"""Resampling against SpectRes's published algorithm, exact integrals and noise that is counted."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skyray.records import Grid, Spectrum
from skyray.transforms.resampling import pixel_edges, resample
from skyray.transforms.spectra import place_on_grid


def spectres(target, source, flux, error):
    """Carnall 2017 (arXiv:1705.05165): loops over whole and broken pixels, NaN outside."""

    def bins(wavelength):
        edges = np.zeros(len(wavelength) + 1)
        edges[0] = wavelength[0] - (wavelength[1] - wavelength[0]) / 2
        edges[-1] = wavelength[-1] + (wavelength[-1] - wavelength[-2]) / 2
        edges[1:-1] = (wavelength[1:] + wavelength[:-1]) / 2
        return edges, np.diff(edges)

    old, old_widths = bins(source)
    new, _ = bins(target)
    out, out_error = np.full((2, len(target)), np.nan)
    for j in range(len(target)):
        if new[j] < old[0] or new[j + 1] > old[-1]:
            continue
        start = np.searchsorted(old, new[j], side="right") - 1
        stop = np.searchsorted(old, new[j + 1], side="left") - 1
        widths = old_widths[start : stop + 1].copy()
        if start == stop:
            out[j], out_error[j] = flux[start], error[start]
            continue
        widths[0] *= (old[start + 1] - new[j]) / (old[start + 1] - old[start])
        widths[-1] *= (new[j + 1] - old[stop]) / (old[stop + 1] - old[stop])
        out[j] = np.sum(widths * flux[start : stop + 1]) / widths.sum()
        out_error[j] = np.sqrt(np.sum((widths * error[start : stop + 1]) ** 2)) / widths.sum()
    return out, out_error


def edges_of(grid: Grid) -> np.ndarray:
    axis = grid.start + grid.step * (np.arange(grid.size + 1) - 0.5)
    return axis if grid.kind == "linear" else 10.0**axis


def placed(wavelength, flux, ivar, grid, mask=None):
    mask = np.zeros(len(wavelength), bool) if mask is None else mask
    record = Spectrum("1", wavelength, flux.astype(np.float32), ivar.astype(np.float32), mask)
    return place_on_grid(record, grid)


@settings(max_examples=60, deadline=None)
@given(
    st.floats(1.0, 12.0), st.floats(0, 1), st.sampled_from(["linear", "log10"]), st.integers(0, 99)
)
def test_wider_pixels_are_those_of_spectres(ratio, shift, kind, seed):
    rng = np.random.default_rng(seed)
    wavelength = 4000.0 + 0.5 * np.arange(900)
    flux, ivar = rng.normal(2, 1, 900), rng.uniform(0.5, 2, 900)
    step = 0.5 * ratio if kind == "linear" else np.log10(1 + 0.5 * ratio / 3950)
    start = 3990 + 0.5 * shift if kind == "linear" else np.log10(3990 + shift)
    grid = Grid(kind, start, step, int(400 / (0.5 * ratio)))
    # SpectRes halves the distance between centres; the grid's own edges differ by less than 1e-6
    expected, error = spectres(grid.wavelength(), wavelength, flux, ivar**-0.5)
    found, found_ivar, bad = resample(wavelength, flux, ivar, np.zeros(900, bool), edges_of(grid))
    inside = np.isfinite(expected)
    assert inside.sum() > 5
    assert not bad[inside].any()
    np.testing.assert_allclose(found[inside], expected[inside], atol=5e-3)
    np.testing.assert_allclose(found_ivar[inside] ** -0.5, error[inside], rtol=5e-3)


@pytest.mark.parametrize("ratio", [1.0, 1.7, 3.0, 10.3])
def test_the_flux_of_a_line_and_the_noise_are_kept(ratio):
    wavelength = np.arange(4000.0, 6000.0, 0.4)
    grid = Grid("linear", 4010.1, 0.4 * ratio, int(1900 / (0.4 * ratio)))
    line = 7.0 * np.exp(-0.5 * ((wavelength - 5000.0) / 1.3) ** 2)
    flux, _, _ = placed(wavelength, line, np.ones(len(wavelength)), grid)
    assert flux.sum() * grid.step == pytest.approx(line.sum() * 0.4, rel=1e-4)

    rng = np.random.default_rng(5)
    sigma = 0.5 + (wavelength - 4000) / 2000
    pulls = []
    for _ in range(20):
        noise = rng.normal(0, sigma)
        flux, ivar, mask = placed(wavelength, noise, sigma**-2, grid)
        pulls.append((flux * np.sqrt(ivar))[mask == 0])
    assert np.std(pulls) == pytest.approx(1.0, abs=0.02)


def test_narrower_pixels_are_interpolated_with_the_variance_of_the_sum():
    wavelength = np.arange(4000.0, 5000.0, 2.0)
    grid = Grid("linear", 4100.3, 0.5, 1000)
    rng = np.random.default_rng(6)
    pulls = []
    for _ in range(50):
        flux, ivar, mask = placed(wavelength, rng.normal(size=500), np.ones(500), grid)
        pulls.append((flux * np.sqrt(ivar))[mask == 0])
    assert np.std(pulls) == pytest.approx(1.0, abs=0.02)
    smooth = np.sin(wavelength / 50)
    flux, _, _ = placed(wavelength, smooth, np.ones(500), grid)
    np.testing.assert_allclose(flux, np.interp(grid.wavelength(), wavelength, smooth), atol=1e-6)


@pytest.mark.parametrize("step", [0.3, 0.5, 1.0, 2.5])
@pytest.mark.parametrize("shift", [0.0, 0.3])
def test_a_gap_stays_a_gap(step, shift):
    wavelength = np.r_[np.arange(4000.0, 4700, 1.0), np.arange(6200.0, 7000, 1.0)] + shift
    grid = Grid("linear", 4000.0, step, int(3000 / step))
    flux = np.where(wavelength < 5000, 2.0, 10.0)
    found, ivar, mask = placed(wavelength, flux, np.full(len(flux), 9.0), grid)
    centres = grid.wavelength()
    # of a wide pixel beside the gap more than half may have been measured
    gap = (centres > 4699.5 + shift + step / 2) & (centres < 6199.5 + shift - step / 2)
    assert mask[gap].all()
    assert not ivar[gap].any()
    assert not found[gap].any()
    known = mask == 0
    assert set(np.round(found[known], 4)) == {2.0, 10.0}
    assert known[(centres > 4001) & (centres < 4698)].all()
    assert known[(centres > 6202) & (centres < 6998)].all()


def test_single_dropped_pixels_and_a_change_of_step_are_told_apart():
    steps = np.r_[np.full(100, 0.5), np.full(100, 1.0), np.full(50, 0.6)]
    wavelength = 4000 + np.concatenate([[0], np.cumsum(steps)])
    left, right = pixel_edges(wavelength)
    assert (left[1:] - right[:-1]).max() < 0.3  # no more than a part of a pixel at the changes
    dropped = np.delete(wavelength, 30)
    left, right = pixel_edges(dropped)
    assert np.flatnonzero(left[1:] - right[:-1] > 0.4).tolist() == [29]


def test_masked_pixels_give_no_value_to_good_ones():
    wavelength = np.arange(4000.0, 4400.0, 1.0)
    flux, ivar = np.ones(400), np.ones(400)
    bad = np.zeros(400, dtype=bool)
    bad[100:102], flux[100:102] = True, 1e6  # flagged, measured
    ivar[200], flux[200] = 0.0, -1e6  # not measured
    for step in (0.7, 1.0, 1.3, 4.0):
        grid = Grid("linear", 4003.33, step, int(380 / step))
        found, found_ivar, mask = placed(wavelength, flux, ivar, grid, bad)
        np.testing.assert_allclose(found[mask == 0], 1.0, rtol=1e-6)
        assert (found_ivar[mask == 0] > 0).all()
        near = np.abs(grid.wavelength() - 4100.5) < step / 2
        assert (step > 3) | mask[near].all()


def test_every_second_pixel_of_the_grid_is_no_gap():
    grid = Grid("linear", 4000.0, 1.0, 201)
    wavelength = np.arange(4000.0, 4201.0, 2.0)
    flux, ivar, mask = placed(wavelength, wavelength / 1000, np.ones(101), grid)
    assert not mask.any()
    np.testing.assert_allclose(flux, grid.wavelength() / 1000, rtol=1e-6)
    np.testing.assert_allclose(ivar[1::2], 2.0)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_any_sampling_gives_sound_pixels(data):
    size = data.draw(st.integers(2, 60))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    steps = rng.choice([1e-6, 0.01, 1.0, 1.5, 40.0, 1e5], size - 1)
    wavelength = 3900 + np.concatenate([[0.0], np.cumsum(steps)])
    flux, ivar = rng.normal(size=size), rng.choice([0.0, 1e-30, 1.0, 1e30], size)
    flux[rng.random(size) < 0.2] = np.nan
    grid = Grid("linear", 3950.0, data.draw(st.sampled_from([0.01, 1.0, 300.0])), 80)
    bad = rng.random(size) < 0.2
    found, found_ivar, mask = resample(wavelength, flux, ivar, bad, edges_of(grid))
    good = np.isfinite(flux) & (ivar > 0) & ~bad
    assert np.isfinite(found).all()
    assert np.isfinite(found_ivar).all()
    assert (found_ivar[~mask] > 0).all()
    if good.any():
        assert (found[~mask] >= flux[good].min() - 1e-9).all()
        assert (found[~mask] <= flux[good].max() + 1e-9).all()
    else:
        assert mask.all()
