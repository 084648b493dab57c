"""Rest-frame median and rebinning against loops over spectra and pixels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skyray.records import Grid
from skyray.transforms.rest_frame import rebin, rebin_grid, rest_median, to_rest_frame
from skyray.transforms.spectra import coadd_arms

DESI = Grid("linear", 3600.0, 0.8, 7781)


def median_row_by_row(flux, good, wavelength, z, low, high, min_pixels):
    found = []
    for row, ok, redshift in zip(flux, good, z, strict=True):
        rest = wavelength / (1 + redshift)
        part = row[ok & (rest >= low) & (rest <= high)]
        found.append(np.median(part) if len(part) >= min_pixels else np.nan)
    return np.array(found)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.0, 1.0), st.integers(1, 40))
def test_median_equals_a_loop(seed, lost, min_pixels):
    rng = np.random.default_rng(seed)
    wavelength = np.sort(rng.uniform(3600, 9824, 500))
    flux = rng.normal(size=(7, 500)).astype(np.float32)
    good = rng.random((7, 500)) >= lost
    z = rng.uniform(-0.05, 1.0, 7)
    expected = median_row_by_row(flux, good, wavelength, z, 5300, 5850, min_pixels)
    found = rest_median(flux, good, wavelength, z, min_pixels=min_pixels)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_median_is_of_the_rest_frame():
    """A step at 6000 Å rest is in the window 5900–6100 Å at its middle, whatever z."""
    wavelength, z = DESI.wavelength(), np.array([0.0, 0.3, 0.6])
    flux = (wavelength >= 6000.0 * (1 + z[:, None])).astype(np.float32)
    good = np.ones_like(flux, dtype=bool)
    np.testing.assert_array_equal(rest_median(flux, good, wavelength, z, 5900, 5999), [0, 0, 0])
    np.testing.assert_array_equal(rest_median(flux, good, wavelength, z, 6001, 6100), [1, 1, 1])


def test_median_ignores_bad_pixels_and_knows_when_it_cannot():
    wavelength = DESI.wavelength()
    flux = np.full((5, DESI.size), 3.0, dtype=np.float32)
    good = np.ones_like(flux, dtype=bool)
    flux[0, ::2], good[0, ::2] = 1e6, False
    good[1] = False
    flux[2, 100:] = np.nan
    z = np.array([0.1, 0.1, 0.1, np.nan, 0.9])  # the window of the last lies beyond the red end
    found = rest_median(flux, good, wavelength, z)
    np.testing.assert_array_equal(found, [3.0, np.nan, np.nan, np.nan, np.nan])
    assert found.dtype == np.float64
    assert np.isnan(rest_median(flux[:1], good[:1], wavelength, np.array([2.0]))).all()


def test_median_needs_ten_pixels():
    wavelength = DESI.wavelength()
    good = np.zeros((2, DESI.size), dtype=bool)
    first = np.searchsorted(wavelength, 5400.0)
    good[0, first : first + 9] = True
    good[1, first : first + 10] = True
    found = rest_median(np.ones((2, DESI.size)), good, wavelength, np.zeros(2))
    np.testing.assert_array_equal(found, [np.nan, 1.0])


def test_median_refuses_shapes_and_windows():
    flux = np.ones((2, 5))
    with pytest.raises(ValueError, match=r"\(2, 5\)"):
        rest_median(flux, flux[:, :4] > 0, np.arange(5) + 1.0, np.zeros(2))
    with pytest.raises(ValueError, match="low < high"):
        rest_median(flux, flux > 0, np.arange(5) + 1.0, np.zeros(2), 5850, 5300)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.integers(9, 40))
def test_rebin_is_the_coadd_of_single_pixels(seed, factor, size):
    """Every pixel of a group as an arm of its own, put together by `coadd_arms`."""
    rng = np.random.default_rng(seed)
    flux = rng.normal(size=(3, size)).astype(np.float32)
    ivar = np.where(rng.random((3, size)) < 0.4, 0, rng.uniform(0.1, 2, (3, size)))
    flux[ivar == 0] = np.nan  # an unmeasured pixel may hold anything
    found_flux, found_ivar = rebin(flux, ivar.astype(np.float32), factor)
    groups = size // factor
    grid = Grid("linear", 0.0, 1.0, max(groups, 2))
    axis = np.arange(groups, dtype=float)
    cut = slice(0, groups * factor)
    arms = [
        (axis, flux[:, cut][:, k::factor], ivar[:, cut][:, k::factor], np.zeros((3, groups)))
        for k in range(factor)
    ]
    if groups < 2:
        return
    expected_flux, expected_ivar, _ = coadd_arms(grid, arms)
    np.testing.assert_allclose(found_flux, expected_flux, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found_ivar, expected_ivar, rtol=1e-5)
    assert found_flux.dtype == found_ivar.dtype == np.float32


def test_rebinned_noise_is_what_ivar_says():
    rng = np.random.default_rng(0)
    ivar = rng.uniform(0.2, 4.0, (400, 300)).astype(np.float32)
    flux = (5 + rng.normal(size=ivar.shape) / np.sqrt(ivar)).astype(np.float32)
    out, weight = rebin(flux, ivar, 5)
    assert ((out - 5) ** 2 * weight).mean() == pytest.approx(1.0, abs=0.03)


def test_rebin_leaves_chi_square_of_a_flat_model_to_the_scatter():
    """Σ w (y − c)² over pixels = the same over groups + scatter inside the groups ≥ groups."""
    rng = np.random.default_rng(1)
    ivar, flux = rng.uniform(0, 2, (1, 60)), rng.normal(size=(1, 60))
    out, weight = rebin(flux, ivar, 6)
    inside = (ivar * (flux - np.repeat(out, 6, axis=1)) ** 2).sum()
    assert (ivar * (flux - 1) ** 2).sum() == pytest.approx(
        inside + (weight * (out - 1) ** 2).sum(), rel=1e-5
    )


@pytest.mark.parametrize("grid", [DESI, Grid("log10", 3.55, 1e-4, 4700)])
@pytest.mark.parametrize("factor", [1, 2, 4, 7])
def test_grid_has_the_centres_of_the_groups(grid, factor):
    new = rebin_grid(grid, factor)
    axis = grid.wavelength() if grid.kind == "linear" else np.log10(grid.wavelength())
    axis = axis[: new.size * factor].reshape(new.size, factor).mean(axis=1)
    expected = axis if grid.kind == "linear" else 10**axis
    np.testing.assert_allclose(new.wavelength(), expected, rtol=1e-10)
    assert rebin(np.ones((1, grid.size)), np.ones((1, grid.size)), factor)[0].shape[1] == new.size


def test_rebin_refuses_what_makes_no_sense():
    row = np.ones((1, 10))
    for factor in (0, 11):
        with pytest.raises(ValueError, match="factor"):
            rebin(row, row, factor)
        with pytest.raises(ValueError, match="factor"):
            rebin_grid(Grid("linear", 1.0, 1.0, 10), factor)
    with pytest.raises(ValueError, match="arrays"):
        rebin(row, row[:, :9], 2)


def test_rest_frame_equals_numpy_interp_and_puts_a_line_where_it_belongs():
    rng = np.random.default_rng(2)
    wavelength, rest = DESI.wavelength(), np.arange(3000.0, 7000.0, 1.0)
    z = np.array([0.01, 0.2, 0.55])
    flux = rng.normal(size=(3, DESI.size))
    line = 5008.24 * (1 + z)
    flux += 500 * np.exp(-0.5 * ((wavelength - line[:, None]) / 4.0) ** 2)
    out, weight = to_rest_frame(flux, np.ones_like(flux), wavelength, z, rest)
    for row in range(3):
        at = rest * (1 + z[row])
        inside = (at >= wavelength[0]) & (at <= wavelength[-1])
        np.testing.assert_array_equal(weight[row] > 0, inside)
        expected = np.interp(at, wavelength, flux[row])
        np.testing.assert_allclose(out[row, inside], expected[inside], rtol=1e-4, atol=1e-4)
        near = np.abs(rest - 5008.24) < 12
        centre = (rest * out[row])[near].sum() / out[row][near].sum()
        assert centre == pytest.approx(5008.24, abs=0.1)
    assert (weight[weight > 0] >= 1).all()  # interpolation averages noise
    assert weight.max() <= 2.0 + 1e-6


def test_rest_frame_does_not_read_unmeasured_pixels():
    wavelength = DESI.wavelength()
    flux, ivar = np.ones((2, DESI.size)), np.ones((2, DESI.size))
    ivar[0, 3000:3010], flux[0, 3000:3010] = 0.0, np.nan
    rest = np.arange(4000.0, 8000.0, 1.3)
    out, weight = to_rest_frame(flux, ivar, wavelength, np.array([0.1, np.nan]), rest)
    lost = np.abs(rest * 1.1 - wavelength[3000:3010].mean()) < 0.8 * 5.5 - 1e-9
    np.testing.assert_array_equal(weight[0] == 0, lost)
    np.testing.assert_allclose(out[0], ~lost, rtol=1e-6)
    assert not out[1].any()
    assert not weight[1].any()
    with pytest.raises(ValueError, match=r"\(2, 7781\)"):
        to_rest_frame(flux, ivar[:, 1:], wavelength, np.zeros(2), rest)
