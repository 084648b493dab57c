"""The rule that makes one answer of networks and templates, and its quality bits."""

import numpy as np
import pytest

from skyray.families.redshift import quality
from skyray.families.redshift.choice import NetworkAnswer, combine, described, network_prior
from skyray.families.redshift.recipes import FitConfig
from skyray.families.redshift.template_fit import Fit
from skyray.models.redshift_minima import Minimum

CLASSES = ("STAR", "GALAXY", "QSO")
COARSE = {name: name for name in CLASSES}


def minimum(spectype="GALAXY", z=0.3, chi2=1000.0, **about) -> Minimum:
    return Minimum(chi2, z, 1e-4, 0, spectype, "", **about)


def fit(best: Minimum | None = None, **about) -> Fit:
    values = {"delta_chi2": 500.0, "delta_chi2_class": 400.0,
              "delta_chi2_hidden": 300.0, "chi2_reduced": 1.0, "sigma": 2e-4,
              "covered": 1.0, "features": 5}  # fmt: skip
    best = best or minimum()
    values["classes"] = {"QSO": 400.0, best.spectype: 0.0}
    return Fit(best, minimum("QSO", 1.2), **{**values, **about})


def network(z=0.8, sigma=0.001, p=(0.0, 0.1, 0.9), in_domain=True) -> NetworkAnswer:
    return NetworkAnswer(np.array([p]), np.array([z]), np.array([sigma]), np.array([in_domain]))


def survey(name="", z=np.nan, warning=-1):
    return {"class": [name], "redshift": np.array([z]), "redshift_err": np.array([1e-4]),
            "zwarning": np.array([warning])}  # fmt: skip


def answer(one: Fit, net: NetworkAnswer | None = None, told=None, measured=0.9):
    found = combine(
        [one], np.array([measured]), net, told or survey(), CLASSES, COARSE, FitConfig()
    )
    return {name: values[0] for name, values in found.items()}


def test_a_clear_fit_is_the_answer_and_carries_no_bit():
    found = answer(fit())
    assert (found["redshift"], found["label"], found["source_of_redshift"]) == (
        0.3,
        "GALAXY",
        "fit",
    )
    assert (found["quality"], found["quality_words"]) == (0, "")
    assert {column.name for column in described()} <= set(found)


def test_a_network_never_replaces_a_clear_fit_but_a_sure_one_is_heard():
    found = answer(fit(), network(p=(0.0, 0.02, 0.98)))
    assert (found["redshift"], found["source_of_redshift"]) == (0.3, "fit")
    assert found["redshift_network"] == 0.8
    assert found["quality_words"] == "network_disagrees"


@pytest.mark.parametrize(
    ("doubt", "word"),
    [({"in_domain": False}, "out_of_domain"), ({"sigma": 0.3}, "members_disagree")],
)
def test_a_doubtful_network_says_nothing(doubt, word):
    open_fit = fit(delta_chi2=2.0)
    found = answer(open_fit, network(**doubt))
    assert found["source_of_redshift"] == "fit"
    assert found["quality_words"] == f"small_delta_chi2,{word}"


def test_where_templates_leave_it_open_a_sound_network_answers_and_is_never_green():
    found = answer(fit(delta_chi2=2.0, delta_chi2_class=3.0, features_prior=5), network())
    assert (found["redshift"], found["label"]) == (0.8, "QSO")
    assert (found["source_of_redshift"], found["redshift_fit"]) == ("network", 0.3)
    assert found["quality_words"] == "small_delta_chi2,class_unsure"


@pytest.mark.parametrize(
    ("about", "words"),
    [({"chi2_reduced": 5.0}, "small_delta_chi2,class_unsure,poor_fit"),
     ({"negative": True}, "small_delta_chi2,class_unsure,negative_model"),
     ({"covered": 0.5, "features": 1}, "small_delta_chi2,class_unsure,outside_templates"),
     ({"delta_chi2_hidden": 3.0, "best": minimum("QSO", 0.8003)}, "one_feature"),
     ({"delta_chi2": 3.0, "features_prior": 1, "best": minimum("QSO", 0.8003)},
      "small_delta_chi2,lines_not_covered")],
)  # fmt: skip
def test_bits_of_a_networks_answer_are_those_of_its_class_and_redshift(about, words):
    found = answer(fit(**{"features_prior": 5} | about), network())
    assert (found["source_of_redshift"], found["redshift"]) == ("network", 0.8)
    assert found["quality_words"] == words


def test_nothing_fitted_stays_said_where_networks_answer():
    found = answer(Fit(None, features_prior=5), network(), measured=0.3)
    assert (found["source_of_redshift"], found["redshift"]) == ("network", 0.8)
    assert found["quality_words"] == "few_good_pixels,no_fit"


@pytest.mark.parametrize(
    ("about", "word"),
    [({"delta_chi2": 3.0}, "small_delta_chi2"), ({"delta_chi2_hidden": 3.0}, "one_feature"),
     ({"untried": True}, "class_unsure"), ({"delta_chi2_class": 3.0}, "class_unsure"),
     ({"chi2_reduced": 30.0}, "poor_fit"), ({"covered": 0.5}, "outside_templates"),
     ({"features": 1}, "lines_not_covered"), ({"negative": True}, "negative_model"),
     ({"best": minimum(at_edge=True)}, "outside_templates")],
)  # fmt: skip
def test_each_fault_has_its_word(about, word):
    assert word in answer(fit(**about))["quality_words"].split(",")


def test_differences_count_in_units_of_the_fits_own_chi2():
    assert answer(fit(delta_chi2=40.0))["quality"] == 0
    assert "small_delta_chi2" in answer(fit(delta_chi2=40.0, chi2_reduced=3.0))["quality_words"]


def test_quasars_need_a_larger_difference():
    assert answer(fit(delta_chi2=30.0))["quality"] == 0
    quasar = fit(best=minimum("QSO", 2.1), delta_chi2=30.0)
    assert answer(quasar)["quality_words"] == "small_delta_chi2"


def test_probabilities_of_templates_alone_are_likelihoods_of_the_classes():
    found = answer(fit(classes={"GALAXY": 0.0, "QSO": 3.0, "STAR": 8.0}, chi2_reduced=2.0))
    likelihood = np.exp([0.0, -0.75, -2.0])
    wanted = likelihood / likelihood.sum()
    got = [found[f"p_{name}"] for name in ("GALAXY", "QSO", "STAR")]
    np.testing.assert_allclose(got, wanted, rtol=1e-6)
    assert found["probability"] == pytest.approx(wanted[0])


def test_few_pixels_and_nothing_at_all():
    assert answer(fit(), measured=0.3)["quality_words"] == "few_good_pixels"
    found = answer(Fit(None))
    assert "no_fit" in found["quality_words"]
    assert np.isnan(found["redshift"])
    assert found["class_fit"] == ""


@pytest.mark.parametrize(
    ("told", "disagree"),
    [(("GALAXY", 0.3001, 0), False), (("GALAXY", 0.31, 0), True), (("QSO", 0.3, 0), True),
     (("GALAXY", 0.31, 4), False), (("", 0.3, 0), False)],
)  # fmt: skip
def test_the_surveys_trusted_answer_is_compared_and_never_used(told, disagree):
    found = answer(fit(), told=survey(*told))
    assert (found["quality_words"] == "survey_disagrees") == disagree
    assert (found["redshift"], found["redshift_survey"]) == (0.3, told[1])
    assert found["sigmas_from_survey"] == pytest.approx(
        (0.3 - told[1]) / np.hypot(2e-4, 1e-4), rel=1e-5
    )


def test_a_prior_cannot_weigh_more_than_its_uniform_share_allows():
    prior = network_prior(network(p=(0.0, 0.0, 1.0)), np.array(CLASSES))
    most = -2 * np.log(0.05)
    assert prior.penalty(0, "GALAXY", 0.3, 0.05) == pytest.approx(2 * most)
    assert prior.penalty(0, "QSO", 0.8, 0.05) == pytest.approx(0.0, abs=1e-6)
    distrusted = network_prior(network(in_domain=False), np.array(CLASSES))
    assert distrusted.penalty(0, "GALAXY", 0.3, 0.05) == 0


def test_bits_are_distinct_powers_of_two_with_sentences():
    values = [bit.value for bit in quality.BITS]
    assert values == [1 << n for n in range(len(values))]
    assert all(len(bit.sentence) > 15 for bit in quality.BITS)
    packed = quality.pack({"poor_fit": np.array([True, False]), "no_fit": np.array([True, False])})
    assert quality.words(packed).tolist() == ["poor_fit,no_fit", ""]
