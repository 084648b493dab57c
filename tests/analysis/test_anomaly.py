"""Isolation forest and PCA with gaps: against known structure, plain SVD and planted outliers."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import load, save
from sklearn.metrics import roc_auc_score

from skyray.analysis.anomaly import MAX_FIT_ROWS, IsolationScore, PcaBaseline, percentile
from skyray.cards import load_card
from skyray.simulate.planted import PlantedSurvey
from skyray.transforms.rest_frame import rebin, rebin_grid, rest_median, to_rest_frame

# Isolation forest -------------------------------------------------------------------------------


def test_far_points_are_isolated_first():
    rng = np.random.default_rng(0)
    normal, strange = rng.normal(size=(800, 6)), 6.0 + rng.normal(size=(20, 6))
    scorer = IsolationScore.fit(normal, seed=1)
    score = scorer.score(np.concatenate([normal, strange]))
    assert roc_auc_score(np.r_[np.zeros(800), np.ones(20)], score) > 0.999
    radius = np.linalg.norm(normal, axis=1)
    assert np.corrcoef(radius.argsort().argsort(), score[:800].argsort().argsort())[0, 1] > 0.8
    assert ((score > 0) & (score <= 1)).all()


def test_forest_comes_back_from_tensors_bit_by_bit():
    rng = np.random.default_rng(1)
    latent = np.asfortranarray(rng.normal(size=(500, 4)))
    scorer = IsolationScore.fit(latent, seed=7, trees=50)
    again = IsolationScore.from_tensors({**load(save(scorer.to_tensors())), "other": latent})
    assert (again.seed, again.trees) == (7, 50)
    new = rng.normal(size=(100, 4))
    np.testing.assert_array_equal(again.score(new), scorer.score(new))
    assert not np.array_equal(IsolationScore.fit(latent, 8, 50).score(new), scorer.score(new))


def test_forest_keeps_a_bounded_sample_and_skips_bad_rows():
    rng = np.random.default_rng(2)
    latent = rng.normal(size=(MAX_FIT_ROWS + 500, 2))
    latent[::100, 0] = np.nan
    scorer = IsolationScore.fit(latent, seed=0, trees=10)
    assert scorer.sample_NS.shape == (MAX_FIT_ROWS, 2)
    assert np.isfinite(scorer.sample_NS).all()
    assert scorer.sample_NS.dtype == np.float32
    score = scorer.score(latent[:200])
    np.testing.assert_array_equal(np.flatnonzero(np.isnan(score)), [0, 100])
    assert np.isnan(scorer.score(np.full((3, 2), np.nan))).all()


def test_forest_refuses():
    with pytest.raises(ValueError, match="≥ 2 finite rows, found 1"):
        IsolationScore.fit(np.array([[1.0, 2], [np.nan, 1]]))
    with pytest.raises(ValueError, match=r"\[N, S\]"):
        IsolationScore.fit(np.zeros(5))
    scorer = IsolationScore.fit(np.random.default_rng(0).normal(size=(20, 3)), trees=5)
    with pytest.raises(ValueError, match=r"\[N, 3\]"):
        scorer.score(np.zeros((4, 2)))
    with pytest.raises(ValueError, match="isolation_settings"):
        IsolationScore.from_tensors({"isolation_sample": np.zeros((3, 2))})


# PCA --------------------------------------------------------------------------------------------


def low_rank(rng, rows=300, pixels=120, rank=3, noise=0.05):
    basis = np.linalg.qr(rng.normal(size=(pixels, rank)))[0].T
    coefficients = rng.normal(size=(rows, rank)) * [10.0, 5.0, 2.5][:rank]
    truth = 1.0 + np.sin(np.arange(pixels) / 9) + coefficients @ basis
    y = truth + noise * rng.normal(size=truth.shape)
    return y, np.full(y.shape, noise**-2), truth, basis


def overlap(found, basis) -> float:
    """Smallest cosine between two subspaces."""
    return np.linalg.svd(found @ basis.T)[1].min()


def test_pca_without_gaps_is_the_svd():
    y, w, _, _ = low_rank(np.random.default_rng(3))
    found = PcaBaseline.fit(y, w, components=3)
    rows = np.linalg.svd(y - y.mean(axis=0), full_matrices=False)
    np.testing.assert_allclose(found.mean_R, y.mean(axis=0), atol=1e-4)
    assert overlap(found.components_KR, rows[2][:3]) > 0.9999
    np.testing.assert_allclose(found.variance_K, rows[1][:3] ** 2 / 299, rtol=1e-3)
    projected = (y - found.mean_R) @ found.components_KR.T
    np.testing.assert_allclose(found.coefficients(y, w), projected, rtol=1e-3, atol=1e-2)


def test_pca_finds_the_components_behind_gaps():
    rng = np.random.default_rng(4)
    y, w, truth, basis = low_rank(rng)
    first = rng.integers(0, 80, len(y))  # every row sees 40 to 120 of 120 pixels, in one piece
    seen = (np.arange(120) >= first[:, None] - 20) & (np.arange(120) < first[:, None] + 60)
    gappy, weight = np.where(seen, y, 1e9), np.where(seen, w, 0)
    found = PcaBaseline.fit(gappy, weight, components=3, iterations=25)
    assert overlap(found.components_KR, basis) > 0.98
    model = found.reconstruct(found.coefficients(gappy, weight))
    assert np.abs(model - truth)[seen].mean() < 0.15
    assert np.median(found.reconstruction_error(gappy, weight)) < 2.0
    once = PcaBaseline.fit(gappy, weight, components=3, iterations=1)
    assert overlap(found.components_KR, basis) > overlap(once.components_KR, basis)


def test_reconstruction_error_is_chi_square_per_pixel():
    rng = np.random.default_rng(5)
    y, w, truth, _ = low_rank(rng, rows=600)
    found = PcaBaseline.fit(y[:500], w[:500], components=3)
    error = found.reconstruction_error(y[500:], w[500:])
    assert error.mean() == pytest.approx(1 - 3 / 120, abs=0.03)  # three parameters of 120 pixels
    odd = truth[500:] + 0.3 * (np.arange(120) == 60)
    shifted = found.reconstruction_error(odd, w[500:])
    assert shifted.mean() == pytest.approx((0.3 / 0.05) ** 2 / 120, rel=0.15)
    assert np.isnan(found.reconstruction_error(y[:1], 0 * w[:1])).all()


def test_pca_is_kept_as_tensors():
    y, w, _, _ = low_rank(np.random.default_rng(6))
    found = PcaBaseline.fit(y, w, components=2)
    again = PcaBaseline.from_tensors(load(save(found.to_tensors())))
    np.testing.assert_array_equal(
        again.reconstruction_error(y, w), found.reconstruction_error(y, w)
    )
    with pytest.raises(ValueError, match="pca_mean"):
        PcaBaseline.from_tensors({})


def test_pca_refuses():
    y, w, _, _ = low_rank(np.random.default_rng(7), rows=10)
    with pytest.raises(ValueError, match="components ≤ 9"):
        PcaBaseline.fit(y, w, components=10)
    with pytest.raises(ValueError, match="finite"):
        PcaBaseline.fit(np.full_like(y, np.nan), w, components=2)
    with pytest.raises(ValueError, match="finite"):
        PcaBaseline.fit(y, -w, components=2)
    found = PcaBaseline.fit(y, w, components=2)
    with pytest.raises(ValueError, match=r"\[N, 120\]"):
        found.coefficients(y[:, :100], w[:, :100])


def rest_spectra(spectra, factor=8):
    """Normalised spectra on one rest-frame grid, as the baseline takes them."""
    card = load_card("desi_bgs")
    flux, ivar = rebin(
        np.stack([s.flux for s in spectra]), np.stack([s.ivar for s in spectra]), factor
    )
    wavelength = rebin_grid(card.grid, factor).wavelength()
    z = np.array([s.redshift for s in spectra])
    norm = rest_median(flux, ivar > 0, wavelength, z)[:, None]
    rest = np.arange(3000.0, 7000.0, 8.0)
    return to_rest_frame(flux / norm, ivar * norm**2, wavelength, z, rest)


def test_baseline_finds_what_is_no_galaxy_at_its_redshift():
    survey = PlantedSurvey(load_card("desi_bgs"), seed=3)
    normal = [survey.survey.spectrum("GALAXY", i) for i in range(240)]
    strange = [survey.spectrum(kind, i) for kind in ("bal_quasar", "arm_scaled") for i in range(12)]
    y, w = rest_spectra(normal[:200])
    found = PcaBaseline.fit(y, w, components=8)
    y, w = rest_spectra(normal[200:] + strange)
    planted = np.r_[np.zeros(40), np.ones(24)]
    assert roc_auc_score(planted, found.reconstruction_error(y, w)) > 0.75


# Percentiles ------------------------------------------------------------------------------------


def test_percentile_counts_the_reference():
    reference = np.array([1.0, 2, 2, 3, np.nan])
    found = percentile(np.array([0.5, 1, 2, 3, 9, np.nan]), reference)
    np.testing.assert_array_equal(found, [0, 12.5, 50, 87.5, 100, np.nan])


def test_percentile_of_a_sample_in_itself_is_even():
    score = np.random.default_rng(8).normal(size=1000)
    np.testing.assert_allclose(
        np.sort(percentile(score, score)), 100 * (np.arange(1000) + 0.5) / 1e3
    )
    with pytest.raises(ValueError, match="reference"):
        percentile(score, [np.nan])
