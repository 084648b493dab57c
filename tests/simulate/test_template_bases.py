"""Built-in template bases: what they hold, and that they fit what the mock surveys make."""

import numpy as np
import pytest

from skyray.cards import load_card
from skyray.data.rows import columns_of
from skyray.families.base import DataInfo
from skyray.families.redshift.recipes import FitConfig
from skyray.families.redshift.template_fit import TemplateFit
from skyray.models.template_bases import LOG_STEP
from skyray.simulate import template_bases
from skyray.simulate.spectra import MockSurvey
from skyray.transforms.log_rebin import LogRebin


@pytest.fixture(scope="module")
def bases():
    return template_bases.make_bases(seed=1, objects=60)


def test_every_class_has_bases_with_a_prior(bases):
    assert {basis.spectype for basis in bases} == {"GALAXY", "QSO", "STAR"}
    assert {basis.subtype for basis in bases if basis.spectype == "STAR"} == {
        "", *template_bases.STELLAR_TYPES
    }  # fmt: skip
    for basis in bases:
        assert np.isfinite(basis.vectors).all()
        assert (basis.variance > 0).all()


def test_the_same_seed_makes_the_same_bases(bases):
    again = template_bases.make_bases(seed=1, objects=60)
    for one, other in zip(bases, again, strict=True):
        np.testing.assert_array_equal(one.vectors, other.vectors)


def test_they_are_kept_until_the_physics_changes(tmp_path, monkeypatch, bases):
    made = []
    monkeypatch.setenv("SKYRAY_CACHE", str(tmp_path))
    monkeypatch.setattr(template_bases, "make_bases", lambda: made.append(1) or bases)
    for _ in range(2):
        template_bases.built_in_bases.cache_clear()
        kept = template_bases.built_in_bases()
    template_bases.built_in_bases.cache_clear()
    assert made == [1]
    assert [basis.name for basis in kept] == [basis.name for basis in bases]


def test_mock_spectra_get_their_class_and_redshift(bases):
    card = load_card("sdss_coarse")
    survey = MockSurvey(card, seed=4)
    labels = [label for label in card.classes for _ in range(4)]
    records = [survey.spectrum(label, n) for n, label in enumerate(labels)]
    info = DataInfo(card.name, card.record, tuple(card.classes), card.coarse, "",
                    grid=card.grid.grid())  # fmt: skip
    columns = columns_of(records, info)
    rebin = LogRebin(info.grid, LOG_STEP)
    flux, ivar = rebin(columns["flux"], columns["ivar"], columns["mask"])
    fits = TemplateFit(bases, rebin.first, rebin.size, FitConfig())(flux, ivar)
    right = [fit.best.spectype == label for fit, label in zip(fits, labels, strict=True)]
    assert sum(right) >= 11
    z = np.array([fit.best.redshift for fit in fits])
    far = np.abs(np.log((1 + z) / (1 + np.array([record.redshift for record in records]))))
    assert (far < 0.015).sum() >= 11
    for fit in fits:
        assert fit.pdf.sum() == pytest.approx(1.0, abs=1e-4)
        assert fit.sigma > 0
