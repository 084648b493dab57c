"""The gallery draws one readable picture per class."""

from __future__ import annotations

from matplotlib.image import imread

from skyray.cards import load_card
from skyray.simulate.gallery import class_figure
from skyray.simulate.spectra import MockSurvey


def test_one_figure_per_class(tmp_path):
    survey = MockSurvey(load_card("sdss_coarse"), seed=1)
    paths = class_figure(survey, tmp_path / "figures", candidates=6)
    assert [path.stem for path in paths] == list(survey.classes)
    for path in paths:
        image = imread(path)
        assert image.shape[0] > 800
        assert image[..., :3].std() > 0.05  # something was drawn
