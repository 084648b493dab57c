"""Redshift metrics against the published definitions, scikit-learn, scipy and hand-made tables."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as reference

from skyray.families.redshift import metrics
from skyray.families.redshift.contamination import contaminate_labels, contamination_effect

CLASSES = ("STAR_A0", "GALAXY_AGN", "GALAXY_nan", "QSO_nan")
COARSE = {
    "STAR_A0": "STAR",
    "GALAXY_AGN": "GALAXY",
    "GALAXY_nan": "GALAXY",
    "QSO_nan": "QSO",
}


def draw_table(rows: int = 800, seed: int = 0) -> dict[str, np.ndarray]:
    """A table as prediction leaves it, with class confusion that grows towards low SNR."""
    rng = np.random.default_rng(seed)
    label = rng.choice(CLASSES, rows)
    snr = rng.lognormal(2, 1, rows)
    wrong = rng.random(rows) < np.exp(-snr / 3)
    called = np.where(wrong, rng.choice(CLASSES, rows), label)
    coarse = np.array([COARSE[name] for name in label])
    truth = np.where(coarse == "STAR", 0.0, np.where(coarse == "QSO", 2.0, 0.3))
    truth = truth * rng.uniform(0.5, 1.5, rows)
    sigma = np.where(coarse == "QSO", 0.02, 0.001)
    own = np.where(coarse == "STAR", 0.0, truth + rng.normal(size=rows) * sigma)
    star = np.array([COARSE[name] for name in called]) == "STAR"
    probability = {f"p_{name}": np.where(called == name, 0.85, 0.05) for name in CLASSES}
    return {
        "label": label.astype(object), "label_pred": called.astype(object), "spectype": coarse,
        "redshift": truth, "snr": snr, "in_domain": rng.random(rows) < 0.99,
        "redshift_pred": np.where(star, 0.0, np.where(wrong, own + 0.3, own)),
        "redshift_err_pred": sigma, "redshift_true_route": own,
        "redshift_err_true_route": sigma, **probability,
    }  # fmt: skip


@pytest.fixture(scope="module")
def table() -> dict[str, np.ndarray]:
    return draw_table()


@pytest.fixture(scope="module")
def found(table) -> dict:
    return metrics.evaluate_table(table, CLASSES, COARSE)


def test_nmad_is_the_sigma_of_a_gaussian_and_deaf_to_outliers():
    rng = np.random.default_rng(0)
    values = rng.normal(0.01, 0.002, 20_000)
    assert metrics.nmad(values) == pytest.approx(0.002, rel=0.02)
    assert metrics.nmad(values) == pytest.approx(
        stats.median_abs_deviation(values, scale="normal"), rel=1e-4
    )
    assert metrics.nmad(np.r_[values, np.full(500, 3.0)]) == pytest.approx(0.002, rel=0.05)


def test_bias_is_the_logarithm_of_equation_9():
    # ln((1+z_t)/(1+z_p)) is the velocity shift over c: symmetric, unlike Δz.
    assert metrics.log_bias([1.0], [2.0])[0] == pytest.approx(np.log(1.5))
    assert metrics.log_bias([2.0], [1.0])[0] == pytest.approx(np.log(1.5))
    assert np.isinf(metrics.log_bias([-1.0], [0.5])[0])
    assert np.isnan(metrics.log_bias([np.nan], [0.5])[0])


def test_good_limits_are_those_of_the_paper():
    truth = np.array([0.5, 0.5, 0.5, 0.5])
    shift = np.array([0.00149, 0.00151, 0.0149, 0.0151])
    predicted = (1 + truth) * np.exp(shift) - 1
    coarse = np.array(["GALAXY", "GALAXY", "QSO", "QSO"])
    assert metrics.good_rows(predicted, truth, coarse).tolist() == [True, False, True, False]
    assert not metrics.good_rows([np.nan], [0.5], ["QSO"])[0]


def test_scores_of_a_hand_made_group():
    truth = np.array([0.0, 1.0, 1.0, 3.0])
    predicted = np.array([0.001, 1.01, 1.5, np.nan])
    sigma = np.array([0.001, 0.001, 1.0, 0.1])
    scores = metrics.redshift_scores(predicted, truth, sigma, np.full(4, "GALAXY"))
    assert scores["rows"] == 4
    assert scores["missing"] == 1
    assert scores["mae"] == pytest.approx((0.001 + 0.01 + 0.5) / 3)
    assert scores["delta_z_mean"] == pytest.approx((0.001 + 0.005 + 0.25) / 3)
    assert scores["delta_z_median"] == pytest.approx(0.005)
    assert scores["bias_median"] == pytest.approx(0.005)
    assert scores["good_fraction"] == 0.25
    assert scores["catastrophic_fraction"] == 0.5, "far off, and missing"
    assert scores["catastrophic_015_fraction"] == 0.5
    assert scores["tau_below_3"] == pytest.approx(2 / 3), "0.01 is ten of its sigmas"
    assert scores["coverage_1sigma"] == pytest.approx(2 / 3)
    assert scores["robust_fraction"] == 0.5, "sigma below the MAE of 0.17"
    assert scores["robust_good_fraction"] == 0.5


def test_robust_limit_may_come_from_validation(table):
    strict = metrics.evaluate_table(table, CLASSES, COARSE, dict.fromkeys(CLASSES, 1e-9))
    assert strict["redshift"]["true_class"]["QSO"]["robust_fraction"] == 0.0
    loose = metrics.evaluate_table(table, CLASSES, COARSE, dict.fromkeys(CLASSES, 9.0))
    assert loose["redshift"]["true_class"]["QSO"]["robust_fraction"] == 1.0


def test_classification_matches_scikit_learn(table, found):
    truth, predicted = table["label"].astype(str), table["label_pred"].astype(str)
    section = found["classification"]
    assert found["accuracy"] == section["accuracy"] == reference.accuracy_score(truth, predicted)
    np.testing.assert_array_equal(
        section["confusion"], reference.confusion_matrix(truth, predicted, labels=CLASSES)
    )
    assert section["balanced_accuracy"] == pytest.approx(
        reference.balanced_accuracy_score(truth, predicted)
    )
    probability = np.stack([table[f"p_{name}"] for name in CLASSES], axis=1)
    order = np.argsort(CLASSES)
    expected = reference.log_loss(truth, probability[:, order], labels=np.array(CLASSES)[order])
    assert section["probability"]["negative_log_likelihood"] == pytest.approx(expected)


def test_coarse_collapse_forgives_confusion_inside_a_group(table, found):
    truth = np.array([COARSE[name] for name in table["label"]])
    predicted = np.array([COARSE[name] for name in table["label_pred"]])
    assert found["coarse"]["accuracy"] == np.mean(truth == predicted)
    assert found["coarse"]["accuracy"] > found["classification"]["accuracy"]
    assert found["coarse"]["classes"] == ["STAR", "GALAXY", "QSO"]


def test_accuracy_rises_with_snr(found):
    bins = found["classification"]["by_snr"]
    assert sum(bins["rows"]) == found["rows"]
    assert bins["rate"][1] < bins["rate"][9]


def test_both_routings_are_reported(table, found):
    end_to_end, true_class = (found["redshift"][name] for name in ("end_to_end", "true_class"))
    assert true_class["GALAXY"]["delta_z_mean"] < 0.2 * end_to_end["GALAXY"]["delta_z_mean"]
    assert true_class["all"]["coverage_1sigma"] == pytest.approx(0.6827, abs=0.05)
    rows = np.isin(table["spectype"], ["GALAXY", "QSO"]).sum()
    assert end_to_end["all"]["rows"] == true_class["all"]["rows"] == rows
    assert set(true_class["per_class"]) == {"GALAXY_AGN", "GALAXY_nan", "QSO_nan"}
    assert found["true_class_galaxy_delta_z_mean"] == true_class["GALAXY"]["delta_z_mean"]


def test_unknown_truth_is_left_out_and_counted(table):
    partial = {name: values.copy() for name, values in table.items()}
    partial["label"][:100] = ""
    partial["redshift"][100:150] = np.nan
    found = metrics.evaluate_table(partial, CLASSES, COARSE)
    assert found["classification"]["rows"] == 700
    assert found["classification"]["unknown_truth"] == 100
    assert found["coarse"]["rows"] == 800, "spectype stands in for the missing subclass"
    lost = np.isin(table["spectype"][100:150], ["GALAXY", "QSO"]).sum()
    assert found["redshift"]["end_to_end"]["unknown_truth"] == lost


def test_fine_model_is_scored_on_a_coarsely_labelled_set(table):
    coarse_only = {**table, "label": table["spectype"].astype(object)}
    del coarse_only["spectype"]
    found = metrics.evaluate_table(coarse_only, CLASSES, COARSE)
    assert "accuracy" not in found
    assert found["classification"]["unknown_truth"] == 800
    assert found["coarse"]["rows"] == 800
    assert found["redshift"]["end_to_end"]["per_class"] == {}


def test_optional_columns_may_be_absent(table):
    needed = ("label", "label_pred", "redshift", "redshift_pred", "redshift_err_pred")
    found = metrics.evaluate_table({name: table[name] for name in needed}, CLASSES, COARSE)
    assert set(found["redshift"]) == {"end_to_end"}
    assert "domain" not in found
    assert "probability" not in found["classification"]


def test_missing_column_is_named(table):
    rest = {name: values for name, values in table.items() if name != "redshift_pred"}
    with pytest.raises(ValueError, match="redshift_pred"):
        metrics.evaluate_table(rest, CLASSES, COARSE)


def test_result_is_strict_json(found):
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_empty_table_gives_no_numbers(table):
    empty = {name: values[:0] for name, values in table.items()}
    found = metrics.evaluate_table(empty, CLASSES, COARSE)
    assert found["classification"]["accuracy"] is None
    assert found["redshift"]["end_to_end"]["all"]["mae"] is None


@pytest.mark.parametrize(("mode", "wrong"), [("corrected", 0.10), ("as_published", 0.05)])
def test_contamination_changes_the_stated_share(mode, wrong):
    labels = np.repeat(["AGN", "STARFORMING", "OTHER"], 4000)
    dirty = contaminate_labels(labels, 0.10, ["AGN", "STARFORMING"], seed=1, mode=mode)
    assert (dirty[8000:] == "OTHER").all()
    for name in ("AGN", "STARFORMING"):
        changed = np.mean(dirty[labels == name] != name)
        assert changed == pytest.approx(wrong, abs=1e-12 if mode == "corrected" else 0.02)
    again = contaminate_labels(labels, 0.10, ["AGN", "STARFORMING"], seed=1, mode=mode)
    np.testing.assert_array_equal(dirty, again)


def test_contamination_goes_to_all_other_classes_and_keeps_long_names():
    labels = np.repeat(["A", "LONGER_NAME", "MID"], 3000)
    dirty = contaminate_labels(labels, 0.5, ["A", "LONGER_NAME", "MID"])
    moved = dirty[(labels == "A") & (dirty != "A")]
    assert np.mean(moved == "LONGER_NAME") == pytest.approx(0.5, abs=0.05)
    assert set(dirty) == set(labels)
    with pytest.raises(ValueError, match="fraction"):
        contaminate_labels(labels, 1.5, ["A", "MID"])


def test_what_is_right_without_a_warning_is_judged_by_the_class_chosen(table):
    """Not by the templates' class, which is another one where networks answer."""
    chosen = {**table, "label_pred": table["label"], "redshift_pred": table["redshift"]}
    chosen |= {"quality": np.zeros(800, int), "class_fit": np.full(800, "STAR", dtype=object)}
    scores = metrics.evaluate_table(chosen, CLASSES, COARSE)
    assert (scores["clean_rows"], scores["clean_catastrophic"]) == (800, 0.0)
    chosen["label_pred"], chosen["class_fit"] = table["label_pred"], table["spectype"]
    wrong = [COARSE[name] for name in table["label_pred"]] != table["spectype"]
    scores = metrics.evaluate_table(chosen, CLASSES, COARSE)
    assert scores["clean_catastrophic"] == pytest.approx(wrong.mean())


def test_contamination_effect_is_in_points(table, found):
    worse = {**table, "label_pred": np.full(800, "GALAXY_AGN", dtype=object)}
    worse["redshift_true_route"] = table["redshift_true_route"] + 1.0
    after = metrics.evaluate_table(worse, CLASSES, COARSE)
    effect = contamination_effect(found, after, ["GALAXY_AGN", "GALAXY_nan"])
    before = found["classification"]["per_class"]
    mean = (before["GALAXY_AGN"]["recall"] + before["GALAXY_nan"]["recall"]) / 2
    assert effect["accuracy"] == pytest.approx(100 * (0.5 - mean))
    good = found["redshift"]["true_class"]["per_class"]
    mean = (good["GALAXY_AGN"]["good_fraction"] + good["GALAXY_nan"]["good_fraction"]) / 2
    assert effect["good_fraction"] == pytest.approx(-100 * mean)
