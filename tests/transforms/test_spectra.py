"""Spectrum transforms: published values, independent computations, and properties of any input."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from skyray.records import Grid, Spectrum
from skyray.transforms.resampling import resample
from skyray.transforms.spectra import (
    LinearResampler,
    _copy_aligned,
    air_to_vacuum,
    coadd_arms,
    inpaint,
    ivar_of_error,
    median_snr,
    place_on_grid,
    unit_rms,
    vacuum_to_air,
)

LINEAR = Grid("linear", 4000.0, 1.0, 501)
LOG = Grid("log10", 3.6, 1e-4, 400)


def spectrum(wavelength, flux, ivar=None, mask=None) -> Spectrum:
    size = len(wavelength)
    return Spectrum(
        object_id="1",
        wavelength=np.asarray(wavelength, dtype=np.float64),
        flux=np.asarray(flux, dtype=np.float32),
        ivar=np.ones(size, dtype=np.float32) if ivar is None else np.asarray(ivar, np.float32),
        mask=np.zeros(size, dtype=bool) if mask is None else np.asarray(mask, dtype=bool),
    )


# Air and vacuum ---------------------------------------------------------------------------------

# SDSS's table of lines (vacuum) and the same lines in air (Moore's multiplet tables, NIST).
LINES = {
    "[OII]": (3726.03, 3727.09), "Hdelta": (4101.74, 4102.89), "Hgamma": (4340.47, 4341.68),
    "Hbeta": (4861.33, 4862.68), "[OIII]": (5006.84, 5008.24), "NaD": (5895.92, 5897.56),
    "[OI]": (6300.30, 6302.05), "Halpha": (6562.80, 6564.61), "[SII]": (6730.81, 6732.67),
}  # fmt: skip


@pytest.mark.parametrize("line", LINES)
def test_lines_in_air_and_vacuum(line):
    air, vacuum = LINES[line]
    assert air_to_vacuum(air) == pytest.approx(vacuum, abs=0.02)
    assert vacuum_to_air(vacuum) == pytest.approx(air, abs=0.02)


@given(st.floats(2001.0, 25000.0))
def test_air_round_trip(wavelength):
    assert vacuum_to_air(air_to_vacuum(wavelength)) == pytest.approx(wavelength, abs=1e-4)
    assert air_to_vacuum(wavelength) > wavelength


def test_ultraviolet_is_always_vacuum():
    assert air_to_vacuum(1215.67) == vacuum_to_air(1215.67) == 1215.67


# Placing on a grid ------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", [LINEAR, LOG])
def test_aligned_pixels_are_copied_bit_by_bit(grid):
    rng = np.random.default_rng(0)
    part = slice(37, 250)
    wavelength = grid.wavelength()[part].astype(np.float32)  # as rounded as in survey files
    given_flux = rng.normal(size=213).astype(np.float32)
    given_ivar = rng.uniform(0, 2, 213).astype(np.float32)
    given_ivar[5] = 0.0
    flagged = rng.random(213) < 0.1
    flux, ivar, mask = place_on_grid(spectrum(wavelength, given_flux, given_ivar, flagged), grid)
    assert (flux.dtype, ivar.dtype, mask.dtype) == (np.float32, np.float32, np.uint8)
    np.testing.assert_array_equal(flux[part], given_flux)
    np.testing.assert_array_equal(ivar[part], given_ivar)
    np.testing.assert_array_equal(mask[part], flagged | (given_ivar == 0))
    outside = np.r_[0:37, 250 : grid.size]
    assert not flux[outside].any()
    assert not ivar[outside].any()
    assert mask[outside].all()


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from([LINEAR, LOG]),
    st.integers(-700, 700),
    st.integers(2, 700),
    st.sampled_from([0.0, 0.01, 0.0189, 0.0195, 0.021, 0.5]),
    st.booleans(),
    st.integers(0, 2**32 - 1),
)
def test_pixels_in_a_row_are_placed_as_any_others(grid, first, size, jitter, gap, seed):
    rng = np.random.default_rng(seed)
    pixel = first + np.arange(size) + (gap & (np.arange(size) > size // 2))
    axis = grid.start + grid.step * (pixel + jitter * rng.uniform(-1, 1, size))
    wavelength = axis if grid.kind == "linear" else 10.0**axis
    flux = rng.normal(size=size).astype(np.float32)
    flux[rng.random(size) < 0.1] = rng.choice([np.nan, np.inf, -np.inf])
    source = spectrum(wavelength, flux, rng.integers(0, 3, size), rng.random(size) < 0.2)
    position = (axis - grid.start) / grid.step
    nearest = np.rint(position)
    if np.abs(position - nearest).max() < 0.02:
        expected = _copy_aligned(source, nearest.astype(np.int64), grid)
    else:
        edges = grid.start + grid.step * (np.arange(grid.size + 1) - 0.5)
        edges = edges if grid.kind == "linear" else 10.0**edges
        resampled = resample(wavelength, source.flux, source.ivar, source.mask, edges)
        kinds = (np.float32, np.float32, np.uint8)
        expected = [a.astype(kind) for a, kind in zip(resampled, kinds, strict=True)]
    for found, right in zip(place_on_grid(source, grid), expected, strict=True):
        assert found.dtype == right.dtype
        np.testing.assert_allclose(found, right, rtol=1e-5, atol=1e-6)
        if jitter < 0.0195:
            np.testing.assert_array_equal(found, right)


def test_wider_spectrum_is_cut():
    wide = Grid("linear", 3990.0, 1.0, 600)
    flux, _, mask = place_on_grid(spectrum(wide.wavelength(), np.arange(600)), LINEAR)
    np.testing.assert_array_equal(flux, np.arange(10, 511))
    assert not mask.any()


def test_spectrum_beside_the_grid_is_all_masked():
    flux, ivar, mask = place_on_grid(spectrum(np.arange(6000.0, 6200.0), np.ones(200)), LINEAR)
    assert not flux.any()
    assert not ivar.any()
    assert mask.all()


def test_interpolation_equals_numpy_and_propagates_variance():
    wavelength = np.arange(3950.3, 4600, 1.7)
    rng = np.random.default_rng(1)
    given_flux, given_ivar = rng.normal(size=len(wavelength)), rng.uniform(1, 2, len(wavelength))
    source = spectrum(wavelength, given_flux, given_ivar)
    flux, ivar, mask = place_on_grid(source, LINEAR)
    expected = np.interp(LINEAR.wavelength(), wavelength, source.flux)
    np.testing.assert_allclose(flux, expected, rtol=1e-5, atol=1e-6)
    assert not mask.any()
    k = np.searchsorted(wavelength, 4100.0)
    w = (4100.0 - wavelength[k - 1]) / (wavelength[k] - wavelength[k - 1])
    variance = (1 - w) ** 2 / source.ivar[k - 1] + w**2 / source.ivar[k]
    assert ivar[100] == pytest.approx(1 / variance, rel=1e-5)


def test_unmeasured_neighbour_makes_unmeasured_and_flag_spreads():
    wavelength = np.arange(3990.5, 4520, 1.0)
    ivar = np.ones(len(wavelength))
    flag = np.zeros(len(wavelength), dtype=bool)
    ivar[100], flag[200] = 0.0, True  # 4090.5 and 4190.5 Å
    _, placed_ivar, mask = place_on_grid(spectrum(wavelength, ivar, ivar, flag), LINEAR)
    assert np.flatnonzero(placed_ivar == 0).tolist() == [90, 91]
    assert np.flatnonzero(mask).tolist() == [90, 91, 190, 191]


@settings(max_examples=60, deadline=None)
@given(st.integers(20, 200), st.floats(3900, 4300), st.floats(0.3, 5.0), st.integers(0, 2**32 - 1))
def test_placed_spectra_are_always_sound(size, start, step, seed):
    rng = np.random.default_rng(seed)
    flux = rng.normal(size=size).astype(np.float32)
    flux[rng.random(size) < 0.1] = np.nan
    ivar = np.where(np.isnan(flux), 0, rng.uniform(0, 3, size)).astype(np.float32)
    wavelength = start + step * np.arange(size)
    placed, placed_ivar, mask = place_on_grid(spectrum(wavelength, flux, ivar), LINEAR)
    assert np.isfinite(placed).all()
    assert np.isfinite(placed_ivar).all()
    assert (placed_ivar >= 0).all()
    assert ((placed_ivar > 0) | (mask == 1)).all()
    assert np.nanmin(flux, initial=0) - 1e-5 <= placed.min()
    assert placed.max() <= np.nanmax(flux, initial=0) + 1e-5


# In-painting ------------------------------------------------------------------------------------


def inpaint_by_rows(flux: np.ndarray, bad: np.ndarray) -> np.ndarray:
    out = flux.astype(np.float32).copy()
    pixels = np.arange(flux.shape[1])
    for row, flagged in zip(out, bad, strict=True):
        if flagged.all():
            row[:] = 0
        elif flagged.any():
            row[flagged] = np.interp(pixels[flagged], pixels[~flagged], row[~flagged])
    return out


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_inpaint_equals_interpolation_row_by_row(data):
    shape = data.draw(st.tuples(st.integers(1, 5), st.integers(1, 12)))
    flux = data.draw(arrays(np.float32, shape, elements=st.floats(-100, 100, width=32)))
    bad = data.draw(arrays(bool, shape))
    before = flux.copy()
    np.testing.assert_allclose(inpaint(flux, bad), inpaint_by_rows(flux, bad), atol=1e-4)
    np.testing.assert_array_equal(flux, before)  # the input is not touched


def test_inpaint_does_not_read_bad_values():
    flux = np.array([[np.nan, 1, np.inf, 3, np.nan], [np.nan] * 5], dtype=np.float32)
    bad = ~np.isfinite(flux)
    expected = [[1, 1, 2, 3, 3], [0] * 5]
    np.testing.assert_array_equal(inpaint(flux, bad), expected)
    np.testing.assert_array_equal(inpaint(np.asfortranarray(flux), bad), expected)


def test_inpaint_names_a_wrong_shape():
    with pytest.raises(ValueError, match=r"\(1, 3\)"):
        inpaint(np.zeros((1, 3)), np.zeros((1, 4), dtype=bool))


# Resampling and scaling -------------------------------------------------------------------------


@pytest.mark.parametrize("source", [LINEAR, Grid("log10", 3.6, 1e-4, 600)])
def test_resampler_equals_numpy_interp(source):
    target = Grid("linear", 3900.0, 0.7, 900)
    rng = np.random.default_rng(2)
    flux = rng.normal(size=(3, source.size)).astype(np.float32)
    axis = source.wavelength() if source.kind == "linear" else np.log10(source.wavelength())
    wanted = target.wavelength() if source.kind == "linear" else np.log10(target.wavelength())
    expected = np.stack([np.interp(wanted, axis, row) for row in flux])
    found = LinearResampler.between(source, target)(flux)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_resampler_keeps_the_same_grid():
    flux = np.random.default_rng(3).normal(size=(2, LINEAR.size)).astype(np.float32)
    np.testing.assert_allclose(LinearResampler.between(LINEAR, LINEAR)(flux), flux, rtol=1e-6)


def test_unit_rms_is_the_papers_norm():
    flux = np.random.default_rng(4).normal(3, 2, (4, 5001)).astype(np.float32)
    expected = np.sqrt(5001) * flux / np.linalg.norm(flux.astype(np.float64), axis=1)[:, None]
    np.testing.assert_allclose(unit_rms(flux), expected, rtol=1e-6)


@given(arrays(np.float32, (2, 30), elements=st.floats(-1e3, 1e3, width=32)), st.floats(0.01, 1e4))
def test_unit_rms_forgets_the_scale(flux, scale):
    power = np.sqrt(np.mean(flux.astype(np.float64) ** 2, axis=1))
    scaled = unit_rms(flux)
    for row, size in zip(scaled, power, strict=True):
        assert np.sqrt(np.mean(row.astype(np.float64) ** 2)) == pytest.approx(float(size > 0))
    if (power > 1e-3).all():
        np.testing.assert_allclose(unit_rms(flux * np.float32(scale)), scaled, atol=1e-4)


# Signal, errors and arms ------------------------------------------------------------------------


def test_median_snr_counts_good_pixels_only():
    flux, ivar = np.array([1.0, 2, 3, 100, 100]), np.array([4.0, 4, 4, 4, 0])
    assert median_snr(flux, ivar, np.array([0, 0, 0, 1, 0])) == 4.0
    assert np.isnan(median_snr(flux, 0 * ivar, np.zeros(5)))


def test_ivar_of_error():
    error = np.array([0.5, 0.0, np.nan, np.nan, -2.0, np.inf])
    mask = np.array([0, 0, 1, 0, 0, 0], dtype=bool)
    np.testing.assert_array_equal(ivar_of_error(error, mask), [4, 0, 0, np.nan, -0.25, 0])


def coadd_pixel_by_pixel(grid: Grid, arms) -> tuple[np.ndarray, np.ndarray]:
    flux, ivar = np.zeros((2, grid.size))
    for pixel, wavelength in enumerate(grid.wavelength()):
        for axis, arm_flux, arm_ivar, arm_mask in arms:
            for k in np.flatnonzero(np.abs(axis - wavelength) < 0.01 * grid.step):
                if arm_mask[k] == 0 and arm_ivar[k] > 0:
                    ivar[pixel] += arm_ivar[k]
                    flux[pixel] += arm_ivar[k] * arm_flux[k]
        if ivar[pixel] <= 1e-6:
            flux[pixel] = ivar[pixel] = 0.0
        else:
            flux[pixel] /= ivar[pixel]
    return flux, ivar


def make_arms(seed: int, grid: Grid, spans: tuple) -> list:
    rng = np.random.default_rng(seed)
    found = []
    for first, last in spans:
        size = last - first
        axis = grid.start + grid.step * np.arange(first, last)
        found.append((axis, rng.normal(2, 1, size), rng.uniform(-0.1, 2, size).clip(0),
                      (rng.random(size) < 0.2).astype(np.uint32)))  # fmt: skip
    return found


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(20, 50), st.integers(20, 50))
def test_coadd_equals_a_pixel_by_pixel_sum(seed, left, right):
    grid = Grid("linear", 3600.0, 0.8, 70)
    arms = make_arms(seed, grid, ((0, left), (15, right), (45, 70)))
    flux, ivar, mask = coadd_arms(grid, arms)
    expected_flux, expected_ivar = coadd_pixel_by_pixel(grid, arms)
    np.testing.assert_allclose(flux, expected_flux, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(ivar, expected_ivar, rtol=1e-5)
    np.testing.assert_array_equal(mask, expected_ivar == 0)


def test_coadd_works_on_many_rows():
    grid = Grid("linear", 3600.0, 0.8, 70)
    one, two = (make_arms(seed, grid, ((0, 40), (30, 70))) for seed in (1, 2))
    both = [
        (a[0], *(np.stack([x, y]) for x, y in zip(a[1:], b[1:], strict=True)))
        for a, b in zip(one, two, strict=True)
    ]
    for k, single in enumerate((one, two)):
        for together, alone in zip(coadd_arms(grid, both), coadd_arms(grid, single), strict=True):
            np.testing.assert_array_equal(together[k], alone)


def test_coadd_noise_falls_where_arms_overlap():
    grid = Grid("linear", 3600.0, 0.8, 10)
    axis = grid.wavelength()
    arm = (axis, np.full(10, 3.0), np.full(10, 2.0), np.zeros(10))
    flux, ivar, _ = coadd_arms(grid, [arm, arm])
    np.testing.assert_array_equal(flux, np.full(10, 3.0, dtype=np.float32))
    np.testing.assert_array_equal(ivar, np.full(10, 4.0, dtype=np.float32))


def test_coadd_drops_tiny_ivar_and_ignores_masked_rubbish():
    grid = Grid("linear", 3600.0, 0.8, 4)
    arm = (grid.wavelength(), np.array([1, np.nan, 3, 4.0]), np.array([1e-6, 9, np.nan, 1.0]),
           np.array([0, 1, 1, 0]))  # fmt: skip
    flux, ivar, mask = coadd_arms(grid, [arm])
    np.testing.assert_array_equal(flux, [0, 0, 0, 4])
    np.testing.assert_array_equal(ivar, [0, 0, 0, 1])
    np.testing.assert_array_equal(mask, [True, True, True, False])


def test_coadd_refuses_wavelengths_off_the_grid():
    grid = Grid("linear", 3600.0, 0.8, 10)
    arm = (grid.wavelength() + 0.2, *np.ones((2, 10)), np.zeros(10))
    with pytest.raises(ValueError, match="on the grid"):
        coadd_arms(grid, [arm])
    with pytest.raises(ValueError, match="linear"):
        coadd_arms(LOG, [arm])
