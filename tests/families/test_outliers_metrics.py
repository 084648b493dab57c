"""Metrics of the outlier search against scikit-learn, scipy and cases worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import auc, roc_auc_score

from skyray.families.outliers import metrics

# latents --------------------------------------------------------------------------------------


def test_invariance_ratio_by_hand():
    latent = np.array([[0.0, 0.0], [3.0, 4.0], [0.0, 8.0]])  # pairs 5, 8, 5
    augmented = latent + np.array([[1.0, 0.0], [0.0, 2.0], [0.0, 0.0]])  # 1, 2, 0
    assert metrics.invariance_ratio(latent, augmented) == pytest.approx(6.0)
    broken = np.vstack([latent, [[np.nan, 0.0]]])
    with_bad_row = metrics.invariance_ratio(broken, np.vstack([augmented, [[0.0, 0.0]]]))
    assert with_bad_row == pytest.approx(6.0)
    assert metrics.invariance_ratio(latent, latent) == np.inf
    assert np.isnan(metrics.invariance_ratio(latent[:1], augmented[:1]))
    with pytest.raises(ValueError, match="two arrays"):
        metrics.invariance_ratio(latent, augmented[:, :1])


def test_invariance_ratio_of_many_rows_is_that_of_a_subset():
    rng = np.random.default_rng(0)
    latent = rng.normal(size=(6000, 6))
    augmented = latent + 0.1 * rng.normal(size=latent.shape)
    # the two distances differ by √2 / 0.1 for Gaussians of any dimension
    assert metrics.invariance_ratio(latent, augmented) == pytest.approx(np.sqrt(2) / 0.1, rel=0.02)


def test_redshift_correlation_is_taken_at_fixed_type():
    rng = np.random.default_rng(1)
    kind = np.repeat(["red", "blue", "rare"], [400, 300, 29])
    z = rng.uniform(0, 0.5, len(kind))
    latent = rng.normal(size=(len(kind), 3))
    latent[:, 0] += 10 * (kind == "red")
    z[kind == "red"] += 5  # type and redshift go together: no leak
    blue = kind == "blue"
    latent[blue, 2] = np.exp(8 * z[blue]) + 0.1 * latent[blue, 2]  # a leak, monotone but bent
    found = metrics.redshift_correlation(latent, z, kind)
    assert set(found) == {"red", "blue"}
    assert found["red"]["spearman"] < 0.2
    assert found["blue"]["latent"] == 2
    assert found["blue"]["spearman"] > 0.95
    assert found["blue"]["pearson"] < found["blue"]["spearman"]
    expected = abs(stats.spearmanr(latent[blue, 2], z[blue]).statistic)
    assert found["blue"]["spearman"] == pytest.approx(expected, abs=1e-12)
    expected = max(abs(np.corrcoef(latent[blue, i], z[blue])[0, 1]) for i in range(3))
    assert found["blue"]["pearson"] == pytest.approx(expected, abs=1e-12)
    assert found["blue"]["rows"] == 300


def test_redshift_correlation_bears_gaps_and_constants():
    latent = np.stack([np.arange(40.0), np.ones(40)], axis=1)
    z = np.arange(40.0)
    z[0] = latent[1, 0] = np.nan
    found = metrics.redshift_correlation(latent, z, np.full(40, "a"))
    assert found["a"] == {"spearman": pytest.approx(1), "pearson": pytest.approx(1),
                          "latent": 0, "rows": 38}  # fmt: skip
    assert metrics.redshift_correlation(latent, z, np.full(40, "a"), min_rows=39) == {}


# reconstruction -------------------------------------------------------------------------------


def noisy(rows: int, pixels: int, seed: int = 2):
    rng = np.random.default_rng(seed)
    w = rng.uniform(1, 100, (rows, pixels))
    model = rng.normal(1, 0.3, w.shape)
    y = model + rng.normal(size=w.shape) / np.sqrt(w)
    valid = np.ones(w.shape, dtype=bool)
    return y, w, model, valid


def test_reduced_chi2_of_noise_is_one_and_counts_used_pixels_only():
    y, w, model, valid = noisy(100, 3000)
    w[:, ::4], valid[:, :300], y[:, ::4] = 0, False, np.nan
    chi2, pixels = metrics.reduced_chi2(y, w, model, valid)
    assert (pixels == 2700 * 3 / 4).all()
    assert chi2.mean() == pytest.approx(1, abs=0.01)
    assert chi2.std() == pytest.approx(np.sqrt(2 / 2025), rel=0.25)


def test_reduced_chi2_by_hand_and_empty():
    y, w = np.array([[1.0, 2.0, 9.0], [1.0, 1.0, 1.0]]), np.array([[4.0, 1.0, 0.0], [0, 0, 0]])
    chi2, pixels = metrics.reduced_chi2(y, w, np.zeros((2, 3)), np.ones((2, 3), bool))
    assert chi2[0] == pytest.approx((4 + 4) / 2)
    assert np.isnan(chi2[1])
    assert pixels.tolist() == [2, 0]


def test_windowed_chi2_is_the_maximum_over_all_windows():
    rng = np.random.default_rng(3)
    residual = rng.normal(size=(5, 120))
    residual[rng.random(residual.shape) < 0.3] = np.nan
    found, centre = metrics.windowed_chi2(residual, 11)
    for row, score, middle in zip(residual, found, centre, strict=True):
        scores = {}
        for start in range(120 - 11 + 1):
            part = row[start : start + 11]
            part = part[np.isfinite(part)]
            if len(part) >= 5.5:
                excess = (part**2).sum() - len(part)
                scores[start + 5] = excess / np.sqrt(2 * len(part))
        best = max(scores, key=scores.get)
        assert score == pytest.approx(scores[best], rel=1e-9)
        assert middle == best


def test_windowed_chi2_sees_a_local_misfit_the_whole_does_not():
    rng = np.random.default_rng(4)
    residual = rng.normal(size=(400, 3000))
    residual[:40, 1500:1512] += 2.5  # an extra line: Σ grows by 75 of 3000
    wrong = np.arange(400) < 40
    score, centre = metrics.windowed_chi2(residual, 12)
    assert roc_auc_score(wrong, score) > 0.97
    assert roc_auc_score(wrong, (residual**2).sum(1)) < 0.95
    assert np.abs(np.median(centre[wrong]) - 1506) < 3


def test_windowed_chi2_without_data():
    residual = np.full((2, 50), np.nan)
    residual[1, 10:30] = 1.0
    score, centre = metrics.windowed_chi2(residual, 10)
    assert np.isnan(score[0])
    assert centre[0] == -1
    assert score[1] == pytest.approx(0)
    with pytest.raises(ValueError, match="width"):
        metrics.windowed_chi2(residual, 51)


def test_residual_over_sigma_gives_the_chi2():
    y, w, model, valid = noisy(4, 500)
    w[0, :100], valid[1, :50] = 0, False
    residual = metrics.residual_over_sigma(y, w, model, valid)
    chi2, pixels = metrics.reduced_chi2(y, w, model, valid)
    np.testing.assert_allclose(np.nansum(residual**2, axis=1), chi2 * pixels, rtol=1e-5)
    assert np.isnan(residual[0, :100]).all()
    assert np.isnan(residual[1, :50]).all()


# ranks ----------------------------------------------------------------------------------------


def test_combined_rank_of_one_score_is_its_order():
    values = np.array([3.0, -1.0, np.inf, 0.5, 7.0])
    combined = metrics.combined_rank({"a": values})
    assert combined.argsort().tolist() == values.argsort().tolist()
    assert combined[2] == pytest.approx(-np.log10(0.5 / 5), rel=1e-9)


def test_combined_rank_finds_what_only_one_score_sees():
    rng = np.random.default_rng(5)
    scores = {name: rng.normal(size=5000) for name in "abcd"}
    kind = np.full(5000, "")
    for i, name in enumerate(scores):
        kind[25 * i : 25 * i + 25] = name
        scores[name][25 * i : 25 * i + 25] += 4.5
    found = metrics.planted_auc(metrics.combined_rank(scores), kind)
    assert all(found[name] > 0.98 for name in scores)
    assert all(metrics.planted_auc(scores[name], kind)["all"] < 0.75 for name in scores)
    mean_rank = np.mean([stats.rankdata(v) for v in scores.values()], axis=0)
    assert metrics.planted_auc(mean_rank, kind)["all"] < found["all"]


def test_combined_rank_does_not_change_with_units():
    rng = np.random.default_rng(6)
    scores = {"a": rng.normal(size=300), "b": rng.lognormal(size=300)}
    bent = {"a": np.exp(scores["a"]), "b": 1e5 * scores["b"] - 3}
    np.testing.assert_array_equal(metrics.combined_rank(scores), metrics.combined_rank(bent))


def test_combined_rank_settles_ties_by_the_other_scores_and_bears_gaps():
    scores = {
        "a": np.array([9.0, 1.0, 2.0, 3.0, np.nan]),
        "b": np.array([1.0, 9.0, 2.0, 0.0, np.nan]),
    }
    combined = metrics.combined_rank(scores)
    assert np.isnan(combined[4])
    # rows 0 and 1 are first in one score each; row 0 is third in b, row 1 last in a
    assert combined[:4].argsort().tolist()[-2:] == [1, 0]
    scores["a"][2] = np.nan  # not known: only b speaks
    alone = metrics.combined_rank({"b": scores["b"]})
    assert metrics.combined_rank(scores)[2] == pytest.approx(alone[2])


def test_combined_rank_against_a_reference():
    rng = np.random.default_rng(7)
    reference = {"a": rng.normal(size=999)}
    found = metrics.combined_rank({"a": np.array([-10.0, 10.0, np.nan])}, reference)
    assert found[0] == pytest.approx(-np.log10(999.5 / 1000))
    assert found[1] == pytest.approx(-np.log10(0.5 / 1000))
    assert np.isnan(found[2])
    with pytest.raises(ValueError, match="lacks"):
        metrics.combined_rank({"b": np.zeros(2)}, reference)
    with pytest.raises(ValueError, match="at least one"):
        metrics.combined_rank({})
    with pytest.raises(ValueError, match="length"):
        metrics.combined_rank({"a": np.zeros(2), "b": np.zeros(3)})


def test_planted_auc_is_scikit_learns():
    rng = np.random.default_rng(8)
    planted = np.where(rng.random(500) < 0.1, rng.choice(["blend", "bal"], 500), "").astype(object)
    score = np.round(rng.normal(size=500) + 1.5 * (planted != ""), 1)  # with ties
    score[:3] = np.nan
    found = metrics.planted_auc(score, planted)
    known = np.isfinite(score)
    expected = roc_auc_score(planted[known] != "", score[known])
    assert found["all"] == pytest.approx(expected, abs=1e-12)
    for kind in ("blend", "bal"):
        rows = known & np.isin(planted, ["", kind])
        expected = roc_auc_score(planted[rows] == kind, score[rows])
        assert found[kind] == pytest.approx(expected, abs=1e-12)
    assert found["unscored"] == 3
    assert found["normal"] + found["planted"] == 497
    assert np.isnan(metrics.planted_auc(score, np.full(500, ""))["all"])


def test_star_galaxy_roc_is_scikit_learns():
    rng = np.random.default_rng(9)
    star = rng.random(600) < 0.3
    log_p_star = rng.normal(size=600) + 2.0 * star
    log_p_galaxy = rng.normal(size=600) - 1.0 * star + 1
    log_p_star[0] = -np.inf
    found = metrics.star_galaxy_roc(log_p_star, log_p_galaxy, star)
    ratio = (log_p_star - log_p_galaxy)[1:]
    assert found["rows"] == 599
    assert found["auc"] == pytest.approx(roc_auc_score(star[1:], ratio), abs=1e-12)
    area = auc(found["false_positive_rate"], found["true_positive_rate"])
    assert area == pytest.approx(found["auc"], abs=1e-12)
    assert found["accuracy"] == pytest.approx(((ratio > 0) == star[1:]).mean())
    with pytest.raises(ValueError, match="expected stars"):
        metrics.star_galaxy_roc(log_p_star, log_p_galaxy, np.zeros(600, bool))
