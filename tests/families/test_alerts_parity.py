"""Golden parity: packet, table and dataset columns give one network input; nothing is swapped."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from pyarrow import fs

from skyray.cards import load_card
from skyray.data.rows import columns_of, row_of
from skyray.families.alerts.family import AlertsFamily
from skyray.families.base import DataInfo, load_recipe
from skyray.readers.base import SurveyFile, make_reader
from skyray.transforms.alerts import FEATURES, PADDING, alert_features

# sha256 of the network's input (image, then metadata, float32) of the ten raw packets in the order
# of their names, to four significant digits: any change of reader or transform shows.
GOLDEN = "f9f653e51e51806e"


def read(path) -> list:
    card = load_card("ztf_bts")
    reader = make_reader(card.reader, card.reader_options)
    file = SurveyFile(fs.LocalFileSystem(), str(path))
    return [record for unit in reader.units(file) for record in reader.read(file, unit)]


@pytest.fixture(scope="module")
def family() -> AlertsFamily:
    info = DataInfo(
        card="ztf_bts", record="alert", classes=("OTHER", "BRIGHT_TRANSIENT"), coarse={},
        fingerprint="", bands=("science", "template", "difference"), image_size=63,
        features=FEATURES,
    )  # fmt: skip
    return AlertsFamily(load_recipe("alerts/ztf_cnn_multimodal"), info)


@pytest.fixture(scope="module")
def packets(survey_data) -> list:
    paths = sorted((survey_data / "ztf_alerts" / "raw_avro").glob("*.avro"))
    return [read(path)[0] for path in paths]


@pytest.fixture(scope="module")
def rows(survey_data) -> dict:
    return {alert.object_id: alert for alert in read(survey_data / "ztf_alerts/alerts.parquet")}


def served(family, alerts) -> dict[str, np.ndarray]:
    """What serving makes of records."""
    return family.transform(columns_of(alerts, family.data), training=False)


def trained(family, alerts) -> dict[str, np.ndarray]:
    """What training makes of the dataset's rows."""
    made = [row_of(load_card("ztf_bts"), alert, apply_cuts=False) for alert in alerts]
    names = family.columns(training=True)
    columns = {}
    for name in names:
        values = [row[name] for row in made]
        columns[name] = np.array(values, dtype=object if isinstance(values[0], str) else None)
    return family.transform(columns, training=True)


def test_training_and_serving_see_the_same_numbers(family, packets, rows):
    serving, training = served(family, packets), trained(family, packets)
    table = served(family, [rows[alert.object_id] for alert in packets])
    for name in ("image", "metadata"):
        np.testing.assert_array_equal(serving[name], training[name])
        np.testing.assert_array_equal(serving[name], table[name])


def test_a_batch_of_one_sees_the_same_numbers(family, packets):
    whole = served(family, packets)
    for number, alert in enumerate(packets):
        alone = served(family, [alert])
        for name, values in alone.items():
            np.testing.assert_array_equal(values[0], whole[name][number])


def test_the_numbers_are_those_of_the_first_release(family, packets):
    inputs = served(family, packets)
    text = " ".join(
        f"{value:.3e}" for name in ("image", "metadata") for value in _told(inputs[name])
    )
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == GOLDEN


def _told(values: np.ndarray) -> np.ndarray:
    """Return sums along the first axes, which one changed or moved pixel changes."""
    if values.ndim == 2:
        return values.ravel()
    weight = np.linspace(1, 2, values.shape[2] * values.shape[3]).reshape(values.shape[2:])
    return (values.astype(np.float64) * weight).sum(axis=(2, 3)).ravel()


def test_age_counts_forward_on_every_real_alert(rows):
    ages = np.array([alert_features(alert)[FEATURES.index("age")] for alert in rows.values()])
    assert (ages >= 0).all()
    assert (ages > 0).mean() > 0.85
    assert np.allclose([a.jd - a.candidate["jdstarthist"] for a in rows.values()], ages, atol=1e-2)


def test_edge_stamps_have_the_source_in_the_middle_or_as_published_in_the_corner(family, rows):
    edges = [alert for alert in rows.values() if min(alert.science.shape) < 63]
    assert len(edges) >= 12
    published = AlertsFamily(family.recipe.override(["stamp_position=as_published"]), family.data)
    centred, cornered = (served(made, edges)["image"] for made in (family, published))
    for alert, triplet, corner in zip(edges, centred, cornered, strict=True):
        height, width = alert.science.shape
        inside = corner[:, :height, :width].astype(np.float64)
        np.testing.assert_allclose(np.sqrt((inside**2).sum((1, 2))), 1.0, atol=1e-5)
        assert (corner[:, height:] == np.float32(PADDING)).all()
        assert (corner[:, :, width:] == np.float32(PADDING)).all()
        row, column = map(int, alert.source_pixels()[0])
        np.testing.assert_array_equal(triplet[:, 31, 31], corner[:, row, column])
        known = triplet != np.float32(PADDING)
        assert known.sum() == (corner != np.float32(PADDING)).sum()
        # the detector's first rows or columns are missing, or its last
        assert known[0, 31].sum() == width
        assert known[0, :, 31].sum() == height


def test_every_real_alert_can_be_used(family, rows):
    inputs = served(family, list(rows.values()))
    assert inputs["image"].shape == (569, 3, 63, 63)
    assert np.isfinite(inputs["image"]).all()
    known = np.isfinite(inputs["metadata"]).all(axis=0)
    assert [name for name, good in zip(FEATURES, known, strict=True) if not good] == ["new_drb"]
