"""External templates: the real files load, and survey mocks made of them keep their promises."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from skyray.cards import load_card
from skyray.config import ConfigError
from skyray.records import check_spectrum
from skyray.simulate import restframe
from skyray.simulate.spectra import MockSurvey
from skyray.simulate.templates import class_number, load_templates, spectral_class


@pytest.fixture(scope="module")
def templates(survey_data):
    return load_templates(survey_data / "templates")


def test_spectral_classes_are_read_from_template_names():
    assert spectral_class("K1III (18322)") == ("K", 1.0)
    assert spectral_class("B9.5V+... (37269)") == ("B", 9.5)
    assert spectral_class("WDcooler")[0] == "WD"
    assert spectral_class("Ldwarf") is None
    assert class_number("G", 2.0) == 42.0


def test_templates_load_and_are_on_the_rest_frame_grid(templates):
    assert len(templates.star_classes) == len(templates.stars) >= 180
    assert templates.stars.shape[1] == restframe.LOG_SIZE
    assert np.isfinite(templates.stars).all()
    # the populations come in air: Hδ must be where it is in vacuum after loading
    young = templates.populations["mid"].mean(axis=0)
    grid = restframe.rest_wavelength()
    window = (grid > 4090) & (grid < 4116)
    assert grid[window][np.argmin(young[window])] == pytest.approx(4102.89, abs=1.5)


def test_redder_classes_have_redder_templates(templates):
    grid = restframe.rest_wavelength()
    blue, red = ((grid > low) & (grid < low + 300) for low in (4500, 7000))
    number = [
        class_number(*found) if np.isfinite(found[1]) else np.nan
        for found in templates.star_classes
    ]
    known = np.isfinite(number)
    colour = np.log(templates.stars[:, red].mean(axis=1) / templates.stars[:, blue].mean(axis=1))
    assert np.corrcoef(np.array(number)[known], colour[known])[0, 1] > 0.85


def test_mocks_of_templates_are_valid_reproducible_and_differ_from_built_in(survey_data):
    card = load_card("sdss_dr16")
    survey = MockSurvey(card, seed=1, templates=survey_data / "templates")
    built_in = MockSurvey(card, seed=1)
    for label in survey.classes:
        made = [survey.spectrum(label, index) for index in range(8)]
        for spectrum in made:
            check_spectrum(spectrum)
            assert card.label_of(spectrum.fields()) == label
        np.testing.assert_array_equal(made[3].flux, survey.spectrum(label, 3).flux)
        plain = [built_in.spectrum(label, index) for index in range(8)]
        assert any(not np.array_equal(a.flux, b.flux) for a, b in zip(made, plain, strict=True))


def test_missing_template_file_is_named(survey_data, tmp_path):
    folder = tmp_path / "templates"
    shutil.copytree(survey_data / "templates", folder)
    (folder / "redrock" / "star_bases.npz").unlink()
    with pytest.raises(ConfigError, match=r"star_bases\.npz"):
        load_templates(folder)
