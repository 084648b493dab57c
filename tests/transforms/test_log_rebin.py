"""Flux-conserving rebinning onto the log grid, against a matrix of pixel overlaps."""

import numpy as np
import pytest

from skyray.records import Grid
from skyray.transforms.log_rebin import LogRebin

STEP = 1e-4


def test_a_survey_on_these_pixels_is_copied():
    grid = Grid("log10", 3.55, 1e-4, 400)
    rng = np.random.default_rng(0)
    flux, ivar = rng.normal(size=(2, 400)), rng.uniform(1, 2, (2, 400))
    mask = np.zeros((2, 400), np.uint8)
    mask[:, 7] = 1
    rebin = LogRebin(grid, STEP)
    assert (rebin.first, rebin.size) == (35500, 400)
    found, weight = rebin(flux, ivar, mask)
    good = mask == 0
    np.testing.assert_allclose(found[good], flux[good].astype(np.float32))
    np.testing.assert_allclose(weight[good], ivar[good].astype(np.float32))
    assert (weight[~good] == 0).all()


@pytest.mark.parametrize(
    "grid",
    [
        Grid("linear", 3600.0, 0.8, 700),
        Grid("log10", 3.56803, 1e-4, 300),
        Grid("linear", 5000.0, 3.0, 90),
    ],
    ids=["fine", "shifted", "wide"],
)
def test_each_pixel_is_the_mean_of_what_falls_on_it(grid):
    rng = np.random.default_rng(1)
    flux, ivar = rng.normal(size=(1, grid.size)), rng.uniform(1, 2, (1, grid.size))
    mask = np.zeros((1, grid.size), np.uint8)
    mask[0, 40:45] = 1
    rebin = LogRebin(grid, STEP)
    found, weight = rebin(flux, ivar, mask)
    axis = grid.start + grid.step * (np.arange(grid.size + 1) - 0.5)
    wanted = 10.0 ** (STEP * (rebin.first - 0.5 + np.arange(rebin.size + 1)))
    wanted = np.log10(wanted) if grid.kind == "log10" else wanted
    low = np.maximum(axis[:-1][None], wanted[:-1, None])
    high = np.minimum(axis[1:][None], wanted[1:, None])
    share = np.clip(high - low, 0, None) / grid.step * (mask[0] == 0)
    np.testing.assert_allclose(weight[0], share @ ivar[0], rtol=1e-4, atol=1e-6)
    seen = share.sum(axis=1) > 1e-6
    expected = (share @ flux[0])[seen] / share.sum(axis=1)[seen]
    np.testing.assert_allclose(found[0][seen], expected, rtol=1e-4, atol=1e-4)
    assert (found[0][~seen] == 0).all()


def test_information_is_kept():
    grid = Grid("linear", 3600.0, 0.8, 5000)
    ivar = np.ones((1, grid.size))
    _, weight = LogRebin(grid, STEP)(np.ones((1, grid.size)), ivar, np.zeros((1, grid.size)))
    assert weight.sum() == pytest.approx(grid.size, rel=1e-3)


def test_bad_pixels_never_count():
    grid = Grid("linear", 3600.0, 0.8, 500)
    flux = np.ones((1, 500))
    flux[0, 100], flux[0, 200] = np.nan, 1e30
    mask = np.zeros((1, 500))
    mask[0, 200] = 1
    found, _ = LogRebin(grid, STEP)(flux, np.ones((1, 500)), mask)
    np.testing.assert_allclose(found, 1.0, rtol=1e-5)
