"""Mock alerts: deterministic, labelled by their card, one story in images, numbers and history."""

from __future__ import annotations

import dataclasses

import fastavro
import galsim
import numpy as np
import pytest
from matplotlib.image import imread
from pyarrow import fs

from skyray.cards import load_card
from skyray.config import ConfigError
from skyray.readers.base import SurveyFile, make_reader
from skyray.records import Alert, Cutout, check_alert, check_cutout
from skyray.simulate.alert_gallery import kinds_figure
from skyray.simulate.alert_sources import BOGUS, KINDS
from skyray.simulate.base import make_simulator
from skyray.simulate.sky_images import Sersic, galaxies_image, moffat_image
from skyray.simulate.survey_files import write_survey_files
from skyray.transforms.alerts import FEATURES, alert_features

CARD = load_card("ztf_bts")


@pytest.fixture(scope="module")
def survey():
    return make_simulator(CARD, 3)


@pytest.fixture(scope="module")
def alerts(survey) -> list[Alert]:
    return [survey.record(label, index) for label in CARD.classes for index in range(24)]


@pytest.fixture(scope="module")
def real_bogus() -> list[Alert]:
    card = load_card("ztf_real_bogus")
    made = make_simulator(card, 5)
    return [made.record(label, index) for label in card.classes for index in range(0, 60, 3)]


@pytest.mark.parametrize("fwhm", [1.8, 3.0])
def test_points_as_galsim_draws_them(fwhm):
    ours = moffat_image(63, fwhm, 0.3, -1.2)
    theirs = galsim.Moffat(beta=3, fwhm=fwhm).shift(0.3, -1.2)
    theirs = theirs.drawImage(nx=63, ny=63, scale=1).array
    np.testing.assert_allclose(ours, theirs, atol=0.015 * theirs.max())
    assert ours.sum() == pytest.approx(theirs.sum(), abs=1e-4)


@pytest.mark.parametrize("n", [0.8, 1.0, 2.5, 4.0])
def test_galaxies_as_galsim_draws_them(n):
    ours = galaxies_image(63, [(1.0, 1.3, -2.1, Sersic(3.0, n, 0.5, 0.6))], 2.2)
    shape = galsim.Sersic(n, half_light_radius=3 * np.sqrt(0.5))
    shape = shape.shear(q=0.5, beta=0.6 * galsim.radians).shift(1.3, -2.1)
    both = galsim.Convolve(shape, galsim.Moffat(beta=3, fwhm=2.2))
    theirs = both.drawImage(nx=63, ny=63, scale=1).array
    np.testing.assert_allclose(ours, theirs, atol=0.02 * theirs.max())
    assert ours.sum() == pytest.approx(theirs.sum(), abs=0.01)


def test_every_alert_passes_its_card(alerts):
    assert len({alert.object_id for alert in alerts}) == len(alerts)
    for alert, label in zip(alerts, np.repeat(CARD.classes, 24), strict=True):
        check_alert(alert, CARD.image_size)
        CARD.check_cuts(alert.fields())
        assert CARD.label_of(alert.fields()) == label
        assert np.isfinite(alert_features(alert)).all()


def test_labels_of_the_real_bogus_card(real_bogus):
    card = load_card("ztf_real_bogus")
    for alert in real_bogus:
        expected = "BOGUS" if alert.extra["mock_kind"] in BOGUS else "REAL"
        assert card.label_of(alert.fields()) == expected
    assert {a.extra["mock_kind"] for a in real_bogus} >= {"dipole", "streak", "moving"}


def test_an_alert_is_a_function_of_seed_class_and_number(survey, alerts):
    again = make_simulator(CARD, 3).record("OTHER", 17)
    first = alerts[17]
    np.testing.assert_array_equal(again.science, first.science)
    assert again.candidate == first.candidate
    assert again.history == first.history
    other = make_simulator(CARD, 4).record("OTHER", 17)
    assert other.candid != first.candid
    assert not np.array_equal(other.science, first.science)


def test_a_source_grows_older(alerts):
    for start in range(24, 48, 6):
        source = alerts[start : start + 6]
        assert len({alert.source_id for alert in source}) == 1
        assert (np.diff([alert.jd for alert in source]) > 0).all()
        assert (np.diff([alert.candidate["ndethist"] for alert in source]) > 0).all()
        ages = [alert_features(alert)[FEATURES.index("age")] for alert in source]
        np.testing.assert_allclose(ages, [a.jd - source[0].jd for a in source], atol=1e-3)


def test_history_is_of_the_last_month_and_holds_upper_limits(alerts):
    entries = [(alert, entry) for alert in alerts for entry in alert.history]
    assert all(alert.jd - 30 < entry["jd"] < alert.jd for alert, entry in entries)
    assert any(entry["magpsf"] is None for _, entry in entries)
    assert any(entry["magpsf"] is not None for _, entry in entries)
    assert {name for _, entry in entries for name in entry} == {
        "jd", "fid", "magpsf", "sigmapsf", "diffmaglim", "isdiffpos"
    }  # fmt: skip


def test_bright_transients_reach_the_surveys_limit(alerts):
    for start in range(24, 48, 6):
        assert min(alert.candidate["magpsf"] for alert in alerts[start : start + 6]) < 18.6


def test_stated_magnitude_is_in_the_difference_image(alerts):
    rows, columns = np.mgrid[:63, :63]
    inside = np.hypot(rows - 31, columns - 31) < 9
    found = []
    for alert in alerts:
        candidate = alert.candidate
        bright = candidate["magpsf"] < 18.5 and alert.science.shape == (63, 63)
        if bright and alert.extra["mock_kind"] in ("supernova", "moving"):
            counts = 10 ** (0.4 * (candidate["magzpsci"] - candidate["magpsf"]))
            found.append(alert.difference[inside].sum() / counts)
    assert len(found) >= 8
    assert np.median(found) == pytest.approx(0.96, abs=0.05)
    assert np.std(found) < 0.15


def test_stated_depth_is_the_images_noise(alerts):
    for alert in alerts[:30]:
        noise = 1.4826 * np.median(np.abs(alert.difference - np.median(alert.difference)))
        sigma = alert.candidate["fwhm"] / 2.355
        limit = 10 ** (0.4 * (alert.candidate["magzpsci"] - alert.candidate["diffmaglim"])) / 5
        ratio = noise / (limit / np.sqrt(4 * np.pi * sigma**2))
        assert 0.3 < ratio < 1.5  # .26 to 1.03 on the real stream


def test_packets_bring_the_alerts_back(alerts, tmp_path):
    chosen = alerts[::7]
    paths = write_survey_files(CARD, chosen, tmp_path)
    reader = make_reader(CARD.reader, CARD.reader_options)
    signs = set()
    for alert, path in zip(chosen, paths, strict=True):
        (found,) = reader.read(SurveyFile(fs.LocalFileSystem(), str(path)))
        np.testing.assert_array_equal(alert_features(found), alert_features(alert))
        for a, b in zip(found.stamps(), alert.stamps(), strict=True):
            np.testing.assert_array_equal(a, b)
        assert found.source_id == alert.source_id
        assert CARD.label_of(found.fields()) == CARD.label_of(alert.fields())
        CARD.check_cuts(found.fields())
        with path.open("rb") as stream:
            signs.add(next(fastavro.reader(stream))["candidate"]["isdiffpos"])
    assert signs == {"t", "1"}


def test_a_packet_without_history_comes_back(alerts, tmp_path):
    alert = dataclasses.replace(alerts[0], history=[])
    (path,) = write_survey_files(CARD, [alert], tmp_path)
    reader = make_reader(CARD.reader, CARD.reader_options)
    (found,) = reader.read(SurveyFile(fs.LocalFileSystem(), str(path)))
    assert found.history == []
    assert found.candid == alert.candid


def test_reference_sky_as_cutouts():
    card = load_card("legacy_survey_cutouts")
    made = make_simulator(card, 2)
    for label in card.classes:
        cutout = made.record(label, 1)
        assert isinstance(cutout, Cutout)
        check_cutout(cutout, card.bands)
        assert cutout.image.shape == (3, 63, 63)
        assert card.label_of(cutout.fields()) == label


def test_gallery_shows_every_kind(survey, tmp_path):
    image = imread(kinds_figure(survey, tmp_path / "kinds.png", columns=1))
    assert image.shape[0] > 1000
    assert image[..., :3].std() > 0.05


def test_options_are_checked():
    options = CARD.mock.options
    for change, match in (
        ({"classes": {**options["classes"], "OTHER": ["comet"]}}, "comet"),
        ({"classes": {"OTHER": ["agn"]}}, "expected .*BRIGHT_TRANSIENT"),
        ({"alerts_per_source": 0}, "alerts_per_source"),
    ):
        mock = CARD.mock.model_copy(update={"options": {**options, **change}})
        with pytest.raises(ConfigError, match=match):
            make_simulator(CARD.model_copy(update={"mock": mock}), 1)
    assert "supernova" in KINDS
