"""Scores of alert classifiers on cases done by hand, and against scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as reference

from skyray.families.alerts import metrics
from skyray.families.alerts.recipes import POLICIES, Policy

RNG = np.random.default_rng(1)


@pytest.mark.parametrize("ties", [False, True])
def test_average_precision_as_scikit_learn(ties):
    score = RNG.random(300)
    score = np.round(score, 1) if ties else score
    target = (RNG.random(300) < 0.2 + 0.5 * score).astype(int)
    expected = reference.average_precision_score(target, score)
    assert metrics.average_precision(score, target) == pytest.approx(expected)


def test_decisions_by_hand():
    found = metrics.decision_scores(np.array([1, 1, 1, 0, 0]), np.array([1, 1, 0, 1, 0]))
    assert (found["purity"], found["completeness"], found["accuracy"]) == (2 / 3, 2 / 3, 0.6)
    assert found["f1"] == pytest.approx(2 / 3)
    assert found["false_negatives"] == 1
    nothing = metrics.decision_scores(np.zeros(3), np.array([0, 1, 1]))
    assert np.isnan(nothing["purity"])
    assert (nothing["completeness"], nothing["f1"]) == (0, 0)


def acts(policy: Policy, score, magnitude, jd=None) -> int | None:
    jd = np.arange(len(score)) if jd is None else np.array(jd)
    return metrics.trigger(policy, np.array(score), np.array(magnitude), jd)


def test_published_policies_on_one_source():
    first, second = POLICIES["bts_p1"], POLICIES["bts_p2"]
    assert acts(first, [0.5, 0.9], [18.9, 18.9]) == 1  # the second alert completes it
    assert acts(first, [0.49, 0.9], [18.9, 18.9]) is None
    assert acts(first, [0.9, 0.9], [18.9, 19.0]) is None  # 19.0 is not brighter than 19
    assert acts(second, [0.9, 0.9], [18.9, 18.9]) is None
    assert acts(second, [0.9, 0.9, 0.1], [18.9, 18.9, 18.5]) == 2  # bright enough only then
    assert acts(second, [0.1, 0.9, 0.9], [18.5, 18.9, 18.9]) == 2
    assert acts(POLICIES["prod_p1"], [0.85], [18.0]) is None  # above, not at
    assert acts(POLICIES["prod_p1"], [0.86], [18.0]) == 0
    assert acts(POLICIES["prod_p2"], [0.86], [18.6]) is None


def test_policies_follow_time_not_the_rows_order():
    assert acts(POLICIES["bts_p1"], [0.9, 0.2, 0.8], [18, 18, 18], jd=[9, 5, 1]) == 0
    assert acts(Policy(alerts=1), [0.9, 0.9], [18, 18], jd=[7, 3]) == 1


def test_missing_magnitudes_never_qualify():
    assert acts(Policy(alerts=1), [0.9], [np.nan]) is None
    assert acts(Policy(alerts=1, peak=18.5), [0.9, 0.9], [np.nan, 18.0]) == 1


SOURCES = {
    "object_key": np.array(["a", "b", "a", "c", "c", "d", "e", "e"]),
    "jd": np.array([1.0, 1, 4, 1, 2, 1, 1, 2]),
    "magpsf": np.array([18.0, 18.0, 18.2, 18.0, 18.1, 17.0, 18.8, 18.7]),
    "score": np.array([0.9, 0.9, 0.8, 0.7, 0.6, 0.2, 0.9, 0.9]),
}
TRUTH = np.array([1, 1, 1, 0, 0, 0, 1, 1])


def test_sources_by_hand():
    found = metrics.policy_scores(SOURCES, TRUTH, POLICIES["bts_p1"])
    # a and e rightly, c wrongly; b has one alert and is missed; d is left.
    assert found["sources"] == 5
    assert (found["purity"], found["completeness"]) == (pytest.approx(2 / 3), pytest.approx(2 / 3))
    assert found["days_to_trigger"] == 2.0  # a after 3 days, e after 1
    assert found["trigger_magnitude"] == pytest.approx(18.45)


def test_published_count_leaves_out_short_and_faint_sources():
    found = metrics.policy_scores(SOURCES, TRUTH, POLICIES["bts_p1"], "as_published")
    assert found["sources"] == 2  # a and c: b, d have one alert, e is a positive beyond 18.5
    assert (found["purity"], found["completeness"]) == (0.5, 1.0)


def table() -> dict[str, np.ndarray]:
    score = np.array([0.9, 0.8, 0.3, 0.2, 0.1, 0.6])
    return {
        "label": np.array(["YES", "YES", "NO", "NO", "", "NO"]),
        "score": score, "probability": score, "magpsf": np.array([18, 17.2, 18, 19.2, 20, 17.3]),
        "jd": np.arange(6.0), "object_key": np.array(list("aabbcd")),
        "subset": np.array(["trues", "trues", "vars", "dims", "vars", "vars"]),
        "in_domain": np.array([True, True, False, True, True, True]),
    }  # fmt: skip


def test_table_is_scored_whole_by_magnitude_and_by_subset():
    found = metrics.evaluate_table(table(), ["NO", "YES"], "YES", POLICIES)
    assert (found["rows"], found["unknown_truth"], found["positives"]) == (5, 1, 2)
    assert found["auc"] == 1.0
    assert found["accuracy"] == 0.8
    assert found["inside_fraction"] == 0.8
    bins = {one["low"]: one for one in found["by_magnitude"]}
    assert bins[17.0]["rows"] == 2
    assert bins[18.0]["auc"] == 1.0
    assert bins[19.0]["auc"] is None
    assert found["by_subset"]["vars"] == {
        "rows": 2, "positives": 0, "called_positive": 0.5, "auc": 1.0
    }  # fmt: skip
    assert found["by_subset"]["trues"]["called_positive"] == 1.0
    assert set(found["policies"]) == set(POLICIES)
    assert found["bts_p1_f1"] == 1.0


def test_own_policies_and_tables_without_photometry():
    plain = {name: table()[name] for name in ("label", "score", "probability")}
    found = metrics.evaluate_table(plain, ["NO", "YES"], "YES", POLICIES)
    assert "policies" not in found
    own = metrics.evaluate_table(table(), ["NO", "YES"], "YES", {"any": Policy(score=0.55)})
    assert own["policies"]["any"]["false_positives"] == 1


def test_calibration_error_of_the_positive_class():
    probability = np.repeat([0.2, 0.8], 500)
    target = np.concatenate([np.arange(500) < 100, np.arange(500) < 400]).astype(int)
    assert metrics.calibration_scores(probability, target)["expected_calibration_error"] < 1e-9
    off = metrics.calibration_scores(np.clip(probability + 0.15, 0, 1), target)
    assert off["expected_calibration_error"] == pytest.approx(0.15, abs=0.01)


def test_subset_is_found_in_the_extras():
    assert metrics.subset_of(['{"subset": "vars"}', "{}", "", None]).tolist() == [
        "vars",
        "",
        "",
        "",
    ]
