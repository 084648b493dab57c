"""The scan against independent least squares at each redshift."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter1d

from skyray.models.redshift_scan import (
    RedshiftScan,
    amplitude,
    fast_length,
    forest_transmission,
)
from skyray.models.template_bases import (
    LOG_STEP,
    LYMAN_ALPHA,
    TemplateBasis,
    from_arrays,
    to_arrays,
)
from skyray.models.template_model import TemplateModel

FIRST, SIZE = 36000, 240


@pytest.fixture
def rng():
    return np.random.default_rng(5)


def smooth_basis(rng, first, size, kind="GALAXY", forest=False, variance=np.inf, z=(0.0, 0.02)):
    vectors = np.cumsum(rng.normal(size=(3, size)), axis=1) / 10 + rng.normal(size=(3, 1))
    return TemplateBasis(kind, "", first, vectors, np.full(3, variance), z, forest)


def observed(rng, rows=3):
    flux = rng.normal(size=(rows, SIZE)) + np.linspace(1, 4, SIZE)
    ivar = rng.uniform(0.5, 3.0, size=(rows, SIZE))
    ivar[:, 50:60] = 0
    return flux, ivar


def least_squares(basis, redshift, flux, ivar, scale):
    """Return χ² by an ordinary least-squares solver on whitened rows, prior as further rows."""
    shift = round(np.log10(1 + redshift) / LOG_STEP)
    rest = FIRST + np.arange(SIZE) - shift
    inside = (rest >= basis.first) & (rest < basis.first + basis.vectors.shape[1])
    design = np.zeros((len(basis.vectors), SIZE))
    design[:, inside] = basis.vectors[:, rest[inside] - basis.first]
    if basis.forest:
        blue = 10.0 ** (LOG_STEP * rest) < LYMAN_ALPHA
        observed_at = 10.0 ** (LOG_STEP * (FIRST + np.arange(SIZE)))
        design = np.where(blue, design * forest_transmission(observed_at), design)
    prior = np.diag(1 / np.sqrt(basis.variance)) / scale
    rows = np.concatenate([(design * np.sqrt(ivar)).T, prior])
    wanted = np.concatenate([flux * np.sqrt(ivar), np.zeros(len(prior))])
    found = np.linalg.lstsq(rows, wanted, rcond=None)[0]
    return np.sum((wanted - rows @ found) ** 2), found


@pytest.mark.parametrize("variance", [np.inf, 0.3])
@pytest.mark.parametrize(
    ("forest", "z"), [(False, (0.0, 0.05)), (False, (-0.002, 0.002)), (True, (2.2, 2.45))],
    ids=["by FFT", "by matrix product", "forest"],
)  # fmt: skip
def test_chi2_is_that_of_least_squares_at_every_redshift(rng, forest, z, variance):
    first = round(np.log10(LYMAN_ALPHA) / LOG_STEP) - 150 if forest else FIRST - 200
    basis = smooth_basis(rng, first, 700, "QSO", forest, variance, z)
    flux, ivar = observed(rng)
    curve = RedshiftScan([basis], FIRST, SIZE).curves(flux, ivar)[0]
    scale = amplitude(torch.as_tensor(flux), torch.as_tensor(ivar)).numpy()
    for row in range(len(flux)):
        for at in range(0, len(curve.redshift), 7):
            wanted, _ = least_squares(basis, curve.redshift[at], flux[row], ivar[row], scale[row])
            assert curve.chi2_BS[row, at] == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("troughs", [(), ((1220.0, 1240.0), (1200.0, 1218.0))])
def test_weights_of_absorbed_pixels_count_with_their_logarithm(rng, troughs):
    first = round(np.log10(LYMAN_ALPHA) / LOG_STEP) - 150
    basis = smooth_basis(rng, first, 700, "QSO", True, np.inf, (2.2, 2.45))
    basis = replace(basis, troughs=troughs)
    flux, ivar = observed(rng, 2)
    forest = ivar / rng.uniform(1.0, 4.0, size=ivar.shape)
    scan = RedshiftScan([basis], FIRST, SIZE)
    curve = scan.curves(flux, ivar, forest)[0]
    for at in range(0, len(curve.redshift), 13):
        shift = round(np.log10(1 + curve.redshift[at]) / LOG_STEP)
        rest = 10.0 ** (LOG_STEP * (FIRST + np.arange(SIZE) - shift))
        blue = rest < LYMAN_ALPHA
        for low, high in troughs:
            blue |= (rest > low) & (rest < high)
        weight = np.where(blue, forest, ivar)
        wanted, _ = least_squares(basis, curve.redshift[at], flux[1], weight[1], 1.0)
        good = blue & (ivar[1] > 0)
        wanted += np.log(ivar[1][good] / forest[1][good]).sum()
        assert curve.chi2_BS[1, at] == pytest.approx(wanted, rel=1e-9)
        alone = scan.fit(0, curve.redshift[at], flux[1], ivar[1], forest[1])
        assert alone.chi2 == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("phase", [0.0, 0.25, 0.5, 0.9])
@pytest.mark.parametrize("begin", [FIRST - 200, FIRST + 30], ids=["covers", "ends inside"])
def test_templates_at_any_phase_of_the_pixels_are_the_function_they_sample(phase, begin):
    """Against the analytic line, as narrow as a spectrograph's spread: it stays as narrow."""

    def function(pixels):
        return 1.0 + 0.1 * np.sin(pixels / 40) + np.exp(-0.5 * ((pixels - FIRST - 60) / 1.0) ** 2)

    grid = begin + np.arange(400)
    basis = TemplateBasis("GALAXY", "", begin, function(grid)[None], np.ones(1), (0.0, 0.1))
    z = 10 ** (LOG_STEP * (12 + phase)) - 1
    found = TemplateModel(basis, FIRST, SIZE).templates(z)[0]
    rest = FIRST + np.arange(SIZE) - 12 - phase
    wanted = np.where((rest >= begin) & (rest <= grid[-1]), function(rest), 0.0)
    np.testing.assert_allclose(found, wanted, atol=0.012)
    linear = np.interp(rest, grid, basis.vectors[0], left=0, right=0)
    assert phase == 0 or np.abs(found - wanted).max() < 0.25 * np.abs(linear - wanted).max()


def test_around_a_redshift_each_pixel_keeps_its_weight(rng):
    first = round(np.log10(LYMAN_ALPHA) / LOG_STEP) - 150
    basis = smooth_basis(rng, first, 700, "QSO", True, 0.4, (2.2, 2.45))
    basis = replace(basis, troughs=((1220.0, 1240.0),))
    flux, ivar = observed(rng, 1)
    forest = ivar / rng.uniform(1.0, 4.0, size=ivar.shape)
    z = 2.3
    curve = RedshiftScan([basis], FIRST, SIZE).around(0, z, flux[0], ivar[0], forest[0], 6)
    assert len(curve.redshift) == 13
    shift = round(np.log10(1 + curve.redshift[6]) / LOG_STEP)
    assert abs(np.log10(1 + z) / LOG_STEP - shift) <= 0.5
    rest = 10.0 ** (LOG_STEP * (FIRST + np.arange(SIZE) - shift))
    weight = np.where(basis.absorbed(rest), forest[0], ivar[0])
    scale = amplitude(torch.as_tensor(flux), torch.as_tensor(ivar)).item()
    steps = curve.redshift
    wanted = [least_squares(basis, one, flux[0], weight, scale)[0] for one in steps]
    difference = curve.chi2_BS[0] - wanted
    np.testing.assert_allclose(difference, difference[0], rtol=1e-8)


def test_templates_that_end_inside_the_spectrum_count_as_nothing_there(rng):
    basis = smooth_basis(rng, FIRST + 30, 100)
    flux, ivar = observed(rng, 1)
    curve = RedshiftScan([basis], FIRST, SIZE).curves(flux, ivar)[0]
    wanted, _ = least_squares(basis, curve.redshift[10], flux[0], ivar[0], 1.0)
    assert curve.chi2_BS[0, 10] == pytest.approx(wanted, rel=1e-9)


def test_coefficients_and_model_are_those_of_least_squares(rng):
    basis = smooth_basis(rng, FIRST - 200, 700, variance=0.5)
    flux, ivar = observed(rng)
    scan = RedshiftScan([basis], FIRST, SIZE)
    z = 10 ** (LOG_STEP * 40) - 1
    scale = amplitude(torch.as_tensor(flux), torch.as_tensor(ivar)).numpy()
    for row in range(3):
        found = scan.fit(0, z, flux[row], ivar[row])
        chi2, wanted = least_squares(basis, z, flux[row], ivar[row], scale[row])
        assert found.chi2 == pytest.approx(chi2, rel=1e-9)
        np.testing.assert_allclose(found.coefficients, wanted, rtol=1e-6)
        rest = FIRST + np.arange(SIZE) - 40 - basis.first
        np.testing.assert_allclose(found.model, wanted @ basis.vectors[:, rest], rtol=1e-6)


def test_wide_steps_agree_where_spectrum_and_templates_are_smooth(rng):
    basis = smooth_basis(rng, FIRST - 600, 1400, z=(0.0, 0.1))
    smooth = replace(basis, vectors=gaussian_filter1d(basis.vectors, 25, axis=1))
    flux, ivar = observed(rng)
    fine, wide = RedshiftScan([smooth, replace(smooth, stride=2)], FIRST, SIZE).curves(flux, ivar)
    np.testing.assert_allclose(wide.redshift, fine.redshift[::2])
    np.testing.assert_allclose(wide.chi2_BS, fine.chi2_BS[:, ::2], rtol=5e-3)


def test_a_redundant_template_changes_nothing(rng):
    basis = smooth_basis(rng, FIRST - 200, 700)
    doubled = TemplateBasis(
        "GALAXY", "", basis.first, np.concatenate([basis.vectors, basis.vectors[:1]]),
        np.full(4, np.inf), basis.redshift,
    )  # fmt: skip
    flux, ivar = observed(rng)
    curves = RedshiftScan([basis, doubled], FIRST, SIZE).curves(flux, ivar)
    np.testing.assert_allclose(curves[0].chi2_BS, curves[1].chi2_BS, rtol=1e-8)


def test_rows_do_not_depend_on_their_batch(rng):
    scan = RedshiftScan([smooth_basis(rng, FIRST - 200, 700)], FIRST, SIZE)
    flux, ivar = observed(rng, 5)
    whole = scan.curves(flux, ivar)[0].chi2_BS
    alone = scan.curves(flux[3:4], ivar[3:4])[0].chi2_BS
    np.testing.assert_allclose(whole[3:4], alone, rtol=1e-12)


def test_nothing_measured_gives_zero_everywhere(rng):
    scan = RedshiftScan([smooth_basis(rng, FIRST - 200, 700, variance=1.0)], FIRST, SIZE)
    curve = scan.curves(np.zeros((1, SIZE)), np.zeros((1, SIZE)))[0]
    assert (curve.chi2_BS == 0).all()


def test_bases_survive_as_arrays(rng):
    basis = smooth_basis(rng, FIRST, 100, "QSO", True, 0.5)
    basis = replace(basis, troughs=((1400.0, 1549.0),), stride=2)
    back = from_arrays(to_arrays([basis, basis]))
    assert [one.name for one in back] == [basis.name] * 2
    assert back[1].forest
    assert (back[1].troughs, back[1].stride) == (basis.troughs, 2)
    np.testing.assert_allclose(back[1].vectors, basis.vectors, rtol=1e-6)
    np.testing.assert_array_equal(back[0].variance, basis.variance)


def test_fast_length_is_a_product_of_small_primes():
    assert [fast_length(n) for n in (1, 7, 4447, 8750)] == [1, 8, 4500, 9000]
