"""Planted outliers: what was done to each can be measured from the spectrum, and all pass as
galaxies of the survey."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.image import imread

from skyray.cards import load_card
from skyray.config import ConfigError
from skyray.records import check_spectrum
from skyray.simulate.gallery import planted_figure
from skyray.simulate.lines import LIGHT_KMS, NARROW
from skyray.simulate.planted import KINDS, PlantedSurvey, mixed, mixed_order
from skyray.simulate.spectra import MockSurvey
from skyray.transforms.rest_frame import rest_median

CARD = load_card("desi_bgs")
ARMS = {"b": (3600.0, 5780.0), "r": (5780.0, 7570.0), "z": (7570.0, 9824.1)}


@pytest.fixture(scope="module")
def survey() -> PlantedSurvey:
    return PlantedSurvey(CARD, seed=7)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_passes_as_a_galaxy_of_the_card(survey, kind):
    for index in range(8):
        made = survey.spectrum(kind, index)
        check_spectrum(made, CARD.min_good_pixels)
        CARD.check_cuts(made.fields())
        assert CARD.label_of(made.fields()) == "GALAXY"
        assert 0 < made.redshift < 0.8
        assert made.extra["planted"] == kind
        assert made.extra["planted_note"]
        norm = rest_median(
            made.flux[None], (made.ivar > 0)[None], made.wavelength, np.array([made.redshift])
        )
        assert np.isfinite(norm).all()


@pytest.fixture(scope="module")
def others() -> tuple[PlantedSurvey, PlantedSurvey]:
    """The same survey made again, and one of another seed."""
    return PlantedSurvey(CARD, seed=7), PlantedSurvey(CARD, seed=8)


@pytest.mark.parametrize("kind", KINDS)
def test_pure_function_of_seed_kind_and_index(survey, others, kind):
    again, other = others
    again.spectrum(kind, 9)  # what was made before must not matter
    one, two = survey.spectrum(kind, 2), again.spectrum(kind, 2)
    for name in ("flux", "ivar", "mask"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
    assert one.fields() == two.fields()
    assert not np.array_equal(one.flux, survey.spectrum(kind, 3).flux)
    assert not np.array_equal(one.flux, other.spectrum(kind, 2).flux)


@pytest.mark.parametrize("name", ["desi_bgs", "sdss_dr16", "fourmost_mock"])
def test_object_ids_are_their_own(name):
    planted = PlantedSurvey(load_card(name), seed=7)
    ids = [planted.spectrum(kind, i).object_id for kind in KINDS for i in range(4)]
    ids += [planted.survey.spectrum(k, i).object_id for k in planted.survey.classes for i in (0, 1)]
    assert len(set(ids)) == len(ids)


def flux_near(made, wavelength, width=50.0):
    """Mean noiseless flux around observed wavelengths."""
    near = np.abs(made.mock.pixels.wavelength - wavelength) < width
    return made.mock.exposure.truth[near].mean()


def test_share_of_starlight_is_log_uniform_and_redshift_the_galaxys(survey):
    ratios = []
    for index in range(40):
        made = survey.planted("blend", index)
        ratios.append(float(made.note.split(", ")[1].split()[0]))
        assert made.mock.redshift == made.true_redshift
    assert min(ratios) >= 0.3
    assert max(ratios) <= 1.0
    assert np.mean(ratios) == pytest.approx(0.7 / np.log(1 / 0.3), abs=0.1)  # log-uniform


def test_blend_shows_titanium_oxide_of_the_m_star_at_rest(survey):
    """TiO at 7050 Å (band head 7053 Å) stays where it is, whatever the galaxy's redshift."""
    steps = []
    for index in range(60):
        made = survey.planted("blend", index)
        if made.note.startswith("M"):
            steps.append(flux_near(made, 7100.0, 30) / flux_near(made, 7030.0, 15))
    assert len(steps) > 10
    plain = [survey.survey.mock_object("GALAXY", i) for i in range(20)]
    usual = [
        o.exposure.truth[np.abs(o.pixels.wavelength - 7100) < 30].mean()
        / o.exposure.truth[np.abs(o.pixels.wavelength - 7030) < 15].mean()
        for o in plain
    ]
    assert np.median(steps) < 0.95 * np.median(usual)


def peaks_kms(made, line: str) -> np.ndarray:
    """Velocities of the two highest local maxima of the light within 800 km/s of a line."""
    wavelength, light = made.mock.pixels.wavelength, made.mock.light
    velocity = (wavelength / (NARROW[line] * (1 + made.true_redshift)) - 1) * LIGHT_KMS
    inner = np.flatnonzero(np.abs(velocity) < 800)
    top = [k for k in inner if light[k] > light[k - 1] and light[k] > light[k + 1]]
    top = sorted(top, key=lambda k: -light[k])[:2]
    return np.sort(velocity[top])


def test_double_peaks_are_as_far_apart_as_stated(survey):
    splits = []
    for index in range(25):
        made = survey.planted("double_peaked", index)
        split = float(made.note.split("by ")[1].split()[0])
        splits.append(split)
        blue, red = peaks_kms(made, "[O III] 5008")
        assert red - blue == pytest.approx(split, abs=90)  # a pixel is 40–60 km/s
        assert blue < 0 < red
    assert min(splits) > 300
    assert max(splits) < 900


def test_bal_quasar_has_a_dark_trough_and_a_galaxys_redshift(survey):
    for index in range(10):
        made = survey.planted("bal_quasar", index)
        assert made.true_redshift > 1.4
        assert made.mock.redshift < 0.8
        wavelength = made.mock.pixels.wavelength
        rest, light = wavelength / (1 + made.true_redshift), made.mock.light
        blueward = light[(rest > 1440) & (rest < 1545)]  # up to 21,000 km/s from C IV
        assert blueward.min() < 0.5 * np.median(light[(rest > 1700) & (rest < 1800)])


def test_wrong_redshift_differs_and_the_spectrum_is_an_ordinary_one(survey):
    found = [survey.planted("wrong_redshift", index) for index in range(40)]
    offset = np.array([made.mock.redshift - made.true_redshift for made in found])
    assert np.abs(offset).min() >= 0.02
    assert np.abs(offset).max() > 0.2
    catalogued = np.array([made.mock.redshift for made in found])
    assert ((catalogued > 0) & (catalogued < 0.8)).all()


def test_one_arm_is_missing_and_no_other(survey):
    lost = Counter()
    for index in range(30):
        made = survey.spectrum("arm_missing", index)
        name = made.extra["planted_note"].split()[-2]
        for arm, (low, high) in ARMS.items():
            inside = (made.wavelength >= low) & (made.wavelength < high)
            if arm == name:
                assert not made.flux[inside].any()
                assert not made.ivar[inside].any()
                assert made.mask[inside].all()
            else:
                assert (made.ivar[inside] > 0).mean() > 0.8
        lost[name] += 1
    assert set(lost) == set("brz")


def test_scaled_arm_keeps_its_signal_to_noise(survey):
    """Flux and σ grow alike, and flux against light jumps by the stated factor in one arm."""
    seen = set()
    for index in range(30):
        made = survey.planted("arm_scaled", index)
        name, factor = made.note[0], float(made.note.split()[-1])
        assert 0.4 <= factor <= 0.7 or 1.4 <= factor <= 2.2
        exposure, wavelength = made.mock.exposure, made.mock.pixels.wavelength
        used = exposure.ivar > 0
        pull = (exposure.flux - exposure.truth)[used] * np.sqrt(exposure.ivar[used])
        assert np.mean(np.clip(pull, -4, 4) ** 2) == pytest.approx(1.0, abs=0.25)
        gain = exposure.truth / np.maximum(made.mock.light, 1e-12)
        low, high = ARMS[name]
        at = low if name != "b" else high  # where it meets its neighbour
        inside, outside = (at + 60, at - 60) if name != "b" else (at - 60, at + 60)
        step = np.interp(inside, wavelength, gain) / np.interp(outside, wavelength, gain)
        assert step == pytest.approx(factor, rel=0.06)  # calibration errors at the joints
        seen.add(name)
    assert seen == set("brz")


def test_noise_is_what_ivar_says_for_blends_too(survey):
    values = []
    for index in range(15):
        exposure = survey.planted("blend", index).mock.exposure
        used = exposure.ivar > 0
        pull = (exposure.flux - exposure.truth)[used] * np.sqrt(exposure.ivar[used])
        values.append(np.mean(np.clip(pull, -5, 5) ** 2))
    assert np.mean(values) == pytest.approx(1.0, abs=0.08)


# Mixed surveys ----------------------------------------------------------------------------------


def test_mixed_order_has_all_normals_once_and_all_kinds_equally():
    order = mixed_order(CARD, 980, 0.02, 3)
    assert len(order) == 1000
    assert len(set(order)) == 1000
    kinds = Counter(name for name, _, strange in order if strange)
    assert set(kinds) == set(KINDS)
    assert max(kinds.values()) - min(kinds.values()) <= 1
    assert {index for _, index, strange in order if not strange} == set(range(980))
    where = [i for i, (_, _, strange) in enumerate(order) if strange]
    assert min(where) < 250
    assert max(where) > 750
    assert order == mixed_order(CARD, 980, 0.02, 3)
    assert order != mixed_order(CARD, 980, 0.02, 4)


def test_mixed_yields_the_mock_surveys_own_spectra():
    made = list(mixed(CARD, normal=8, share=0.43, seed=5))
    ordinary = {s.object_id: s for s in made if "planted" not in s.extra}
    assert sorted(s.extra["planted"] for s in made if "planted" in s.extra) == sorted(KINDS)
    plain = MockSurvey(CARD, seed=5)
    assert len(ordinary) == 8
    for index in range(8):
        expected = plain.spectrum("GALAXY", index)
        np.testing.assert_array_equal(ordinary[expected.object_id].flux, expected.flux)


# Refusals and the figure ------------------------------------------------------------------------


def test_refusals(survey):
    with pytest.raises(ValueError, match="'comet'"):
        survey.spectrum("comet", 0)
    with pytest.raises(ConfigError, match=r"desi_mws.*galaxy"):
        PlantedSurvey(load_card("desi_mws"), seed=1)
    for normal, share in ((0, 0.1), (5, 1.0), (5, -0.1)):
        with pytest.raises(ValueError, match="share"):
            mixed_order(CARD, normal, share, 0)


def test_figure_has_a_row_of_every_kind(survey, tmp_path):
    path = planted_figure(survey, tmp_path / "figures" / "planted.png")
    image = imread(path)
    assert image.shape[0] > 200 * len(KINDS)
    rows = np.array_split(image[..., :3], len(KINDS))
    assert min(row.std() for row in rows) > 0.05


def test_mock_behind_is_what_is_delivered(survey):
    for kind in KINDS:
        made, planted = survey.spectrum(kind, 1), survey.planted(kind, 1)
        np.testing.assert_array_equal(made.flux, planted.mock.exposure.flux)
        assert made.redshift == planted.mock.redshift
        assert replace(made, extra={}).fields()["redshift"] == planted.mock.redshift
