"""The mock surveys: reproducible, labelled as their cards say, and as noisy as they claim."""

from __future__ import annotations

import numpy as np
import pytest

from skyray.cards import card_directory, load_card
from skyray.config import ConfigError
from skyray.records import check_spectrum
from skyray.simulate.spectra import MockSurvey


def spectrum_mocks() -> list[str]:
    cards = {path.stem: load_card(path) for path in sorted(card_directory().glob("*.yaml"))}
    return [name for name, card in cards.items() if card.mock and card.mock.simulator == "spectra"]


@pytest.fixture(scope="module")
def sdss() -> MockSurvey:
    return MockSurvey(load_card("sdss_dr16"), seed=11)


@pytest.mark.parametrize("label", ["STAR_F5", "GALAXY_AGN", "QSO_BROADLINE"])
def test_spectrum_depends_on_seed_label_and_index_only(sdss, label):
    again = MockSurvey(load_card("sdss_dr16"), seed=11)
    again.spectrum(label, 5)  # what was made before must not matter
    one, two = sdss.spectrum(label, 3), again.spectrum(label, 3)
    for name in ("wavelength", "flux", "ivar", "mask"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
    assert one.fields() == two.fields()
    other_seed = MockSurvey(load_card("sdss_dr16"), seed=12).spectrum(label, 3)
    assert one.object_id != other_seed.object_id
    assert not np.array_equal(one.flux[:3000], other_seed.flux[:3000])
    assert not np.array_equal(one.flux[:3000], sdss.spectrum(label, 4).flux[:3000])


@pytest.mark.parametrize("name", spectrum_mocks())
def test_every_class_of_every_card_carries_its_label_and_passes_the_cuts(name):
    survey = MockSurvey(load_card(name), seed=2)
    seen = set()
    for label in survey.classes:
        for index in range(6):
            spectrum = survey.spectrum(label, index)
            check_spectrum(spectrum, survey.card.min_good_pixels)
            survey.card.check_cuts(spectrum.fields())
            assert survey.card.label_of(spectrum.fields()) == label
            seen.add(spectrum.object_id)
    assert len(seen) == 6 * len(survey.classes)


def test_sdss_pixels_are_steps_of_the_card_grid(sdss):
    starts = []
    for index in range(40):
        position = (np.log10(sdss.spectrum("STAR_G2", index).wavelength) - 3.55) / 1e-4
        np.testing.assert_allclose(position, np.rint(position), atol=1e-6)
        starts.append(position[0])
    assert min(starts) < 110
    assert max(starts) > 290  # some begin where the first spectrographs did
    assert max(starts) <= 335


@pytest.mark.parametrize("label", ["STAR_K1", "GALAXY_nan", "QSO_nan"])
def test_mean_snr_is_the_cards(sdss, label):
    wanted = sdss.options.classes[label].snr.mean
    measured = np.mean([sdss.spectrum(label, index).snr for index in range(250)])
    assert measured == pytest.approx(wanted, rel=0.12)


def test_ivar_describes_the_noise(sdss):
    ratios = []
    for index in range(25):
        exposure = sdss.mock_object("QSO_BROADLINE", index).exposure
        used = exposure.ivar > 0
        pull = (exposure.flux - exposure.truth)[used] * np.sqrt(exposure.ivar[used])
        ratios.append(np.mean(np.clip(pull, -5, 5) ** 2))  # cosmic rays left in are no noise
    assert np.mean(ratios) == pytest.approx(1.0, abs=0.08)


def test_class_missing_from_the_mock_is_named():
    card = load_card("sdss_coarse")
    options = {**card.mock.options, "classes": {"STAR": card.mock.options["classes"]["STAR"]}}
    broken = card.model_copy(update={"mock": card.mock.model_copy(update={"options": options})})
    with pytest.raises(ConfigError, match=r"sdss_coarse.*'GALAXY', 'QSO'"):
        MockSurvey(broken, seed=0)


def test_galaxies_and_only_they_carry_the_dispersion_of_their_stars():
    survey = MockSurvey(load_card("sdss_dr16"), 5)
    found = [survey.record("GALAXY_nan", i).extra["vdisp"] for i in range(6)]
    assert len(set(found)) == 6
    assert all(60 < v <= 380 for v in found)
    assert all("vdisp" not in survey.record(n, 0).extra for n in ("STAR_F5", "QSO_nan"))
