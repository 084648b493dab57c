"""Triplets and features against the published training table and an independent loop."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from skyray.records import Alert, InvalidRecord
from skyray.transforms.alerts import (
    FEATURES,
    PADDING,
    alert_features,
    check_features,
    crop_triplet,
    cutout_input,
    history_features,
    place_stamp,
    triplet_input,
)

STAMP = np.ones((63, 63), np.float32)
# Detections of the example's two objects that its table leaves out, as far as the features of the
# rows around them tell: peak (with its jd) and two faintest ones (some jd between two rows).
DAYS = ("age", "days_since_peak", "days_to_peak")
LEFT_OUT = {
    "ZTF23abhvlji": [(2460222.9904398 - 0.04809, 18.047249)],
    "ZTF23abdsfms": [(2460206.9, 16.047548), (2460214.9, 16.970409)],
}


def made(jd: float = 100.0, history=(), **candidate) -> Alert:
    candidate = {"magpsf": 18.0, **candidate}
    return Alert("1", "s", 1, jd, 1, STAMP, STAMP, STAMP, candidate, history, 10.0, 20.0)


def feature(alert: Alert, name: str) -> float:
    return float(alert_features(alert)[FEATURES.index(name)])


def test_features_equal_the_published_table(survey_data):
    table = pd.read_csv(survey_data / "ztf_btsbot_example" / "candidates.csv")
    for source, rows in table.groupby("objectId"):
        withheld = [{"jd": jd, "magpsf": mag} for jd, mag in LEFT_OUT[source]]
        for _, row in rows.iterrows():
            history = [
                {"jd": other.jd, "magpsf": other.magpsf}
                for _, other in rows.iterrows()
                if other.jd != row.jd  # later ones too: they must not count
            ]
            alert = Alert(
                str(row.candid), source, int(row.candid), row.jd, int(row.fid), STAMP, STAMP, STAMP,
                row.to_dict(), history + withheld, row.ra, row.dec,
            )  # fmt: skip
            # The table gives jd and jdstarthist to .001 d, the day features in full.
            expected = row[list(FEATURES)].to_numpy(np.float64)
            rounding = 1e-6 * np.maximum(1, np.abs(expected))
            limit = np.where(np.isin(FEATURES, DAYS), 1.1e-3, rounding)
            assert (np.abs(alert_features(alert) - expected) <= limit).all()


def test_stored_triplets_pass_unchanged(survey_data):
    stored = np.load(survey_data / "ztf_btsbot_example" / "triplets.npz")["triplets"]
    ours = triplet_input(stored.transpose(0, 3, 1, 2), np.full((len(stored), 2), 63))
    np.testing.assert_allclose(ours, stored.transpose(0, 3, 1, 2), atol=1e-6)


def test_there_are_25_features_in_the_published_order():
    assert len(FEATURES) == len(set(FEATURES)) == 25
    assert FEATURES[:4] == ("sgscore1", "distpsnr1", "sgscore2", "distpsnr2")
    assert FEATURES[13:16] == ("age", "days_since_peak", "days_to_peak")
    assert FEATURES[-1] == "maxmag_so_far"


def test_age_is_positive_and_counts_from_the_earliest():
    history = [{"jd": 96.0, "magpsf": 18.5}, {"jd": 90.0, "magpsf": None, "diffmaglim": 20.0}]
    assert feature(made(jdstarthist=93.0, history=history), "age") == 7.0
    assert feature(made(jdstarthist=99.0, history=history), "age") == 4.0  # not the upper limit
    assert feature(made(jdstarthist=None), "age") == 0.0


def test_peak_so_far_looks_back_only():
    history = [{"jd": 95.0, "magpsf": 17.5}, {"jd": 97.0, "magpsf": 19.0},
               {"jd": 101.0, "magpsf": 14.0}, {"jd": 96.0, "magpsf": float("nan")}]  # fmt: skip
    found = history_features(made(jdstarthist=94.0, history=history))
    assert found == {"age": 6.0, "peakmag_so_far": 17.5, "maxmag_so_far": 19.0,
                     "days_since_peak": 5.0, "days_to_peak": 1.0}  # fmt: skip


def test_days_to_and_since_peak_sum_to_age():
    rng = np.random.default_rng(0)
    for _ in range(20):
        jd = np.sort(rng.uniform(0, 50, 8))
        history = [{"jd": a, "magpsf": b} for a, b in zip(jd, rng.normal(18, 1, 8), strict=True)]
        found = history_features(made(60.0, history, jdstarthist=rng.uniform(0, 60)))
        total = found["days_since_peak"] + found["days_to_peak"]
        assert total == pytest.approx(found["age"])
        assert found["peakmag_so_far"] <= 18.0 <= found["maxmag_so_far"]


def test_real_bogus_score_is_the_deep_one():
    assert feature(made(drb=0.9, rb=0.1), "new_drb") == np.float32(0.9)
    assert feature(made(drb=0.9, new_drb=0.7), "new_drb") == np.float32(0.7)
    assert np.isnan(feature(made(rb=0.5), "new_drb"))


def test_unknown_fields_are_nan_and_counts_are_subtracted():
    alert = made(ncovhist=30, ndethist=4)
    assert feature(alert, "nnotdet") == 26.0
    assert np.isnan(feature(alert, "scorr"))
    assert (feature(alert, "ra"), feature(alert, "dec")) == (10.0, 20.0)


def test_stamp_is_divided_by_its_norm_before_padding_below_and_right():
    rng = np.random.default_rng(1)
    raw = np.full((1, 3, 63, 63), np.nan, np.float32)
    raw[0, :, :40, :50] = rng.normal(100, 10, (3, 40, 50))
    raw[0, 1, 5, 5] = np.nan
    ours = triplet_input(raw, np.array([[40, 50]]))[0]
    for stamp, out in zip(raw[0], ours, strict=True):
        part = np.nan_to_num(stamp[:40, :50])
        expected = np.pad(part / np.linalg.norm(part), [(0, 23), (0, 13)], constant_values=1e-9)
        np.testing.assert_allclose(out, expected, rtol=1e-6)
    assert (ours[:, 40:] == np.float32(PADDING)).all()
    assert (ours[:, :, 50:] == np.float32(PADDING)).all()
    assert ours[1, 5, 5] == 0
    assert ours.dtype == np.float32


def test_rows_do_not_depend_on_each_other():
    raw = np.random.default_rng(2).normal(1, 1, (5, 3, 63, 63)).astype(np.float32)
    shape = np.array([[63, 63], [50, 63], [63, 40], [9, 9], [63, 63]])
    whole = triplet_input(raw, shape)
    for row in range(5):
        alone = triplet_input(raw[row : row + 1], shape[row : row + 1])
        np.testing.assert_array_equal(alone[0], whole[row])


def test_empty_stamp_is_refused_unless_as_published():
    raw = np.ones((2, 3, 63, 63), np.float32)
    raw[1, 1] = 0
    shape = np.full((2, 2), 63)
    with pytest.raises(InvalidRecord, match="template of row 1") as refused:
        triplet_input(raw, shape)
    assert refused.value.reason == "stamp_empty"
    published = triplet_input(raw, shape, "as_published")
    assert np.isnan(published[1, 1]).all()
    assert np.isfinite(published[1, [0, 2]]).all()


@pytest.mark.parametrize("shape", [(2, 63, 63), (2, 3, 63, 62), (2, 63, 63, 3)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(ValueError, match="expected"):
        triplet_input(np.ones(shape, np.float32), np.full((2, 2), 63))


def test_swapped_feature_order_is_refused():
    check_features(FEATURES)
    swapped = list(FEATURES)
    swapped[1], swapped[2] = swapped[2], swapped[1]
    with pytest.raises(ValueError, match="position 1: expected 'distpsnr1', found 'sgscore2'"):
        check_features(swapped)
    with pytest.raises(ValueError, match=r"unknown \['rb'\]"):
        check_features([*FEATURES[:-1], "rb"])


def test_cropped_stamps_are_normalised_again():
    raw = np.random.default_rng(3).normal(100, 9, (2, 3, 63, 63)).astype(np.float32)
    image = triplet_input(raw, np.array([[63, 63], [10, 63]]))
    found = crop_triplet(image, 35)
    expected = raw[0, :, 14:49, 14:49]
    expected = expected / np.linalg.norm(expected, axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(found[0], expected, rtol=1e-5)
    np.testing.assert_array_equal(found[1], image[1, :, 14:49, 14:49])  # only padding is left


def test_colour_cutouts_are_in_units_of_their_noise():
    sky = np.random.default_rng(4).normal(5, 2, (1, 3, 63, 63)).astype(np.float32)
    sky[0, 1] *= 10
    sky[0, 2, 4, 4] = np.nan
    found = cutout_input(sky, "asinh")
    np.testing.assert_allclose(found.std(axis=(2, 3)), 1 / 9, rtol=0.1)
    assert found[0, 2, 4, 4] == 0
    assert (cutout_input(np.zeros((1, 3, 9, 9)), "asinh") == 0).all()


@pytest.mark.parametrize("shape", [(30, 30), (31, 33), (102, 64), (5, 80), (1, 1)])
@pytest.mark.parametrize("size", [63, 64, 35])
def test_the_source_lands_in_the_middle_whatever_surrounds_it(shape, size):
    rng = np.random.default_rng(7)
    for at in ((shape[0] // 2, shape[1] // 2), (0, shape[1] - 1)):
        stamp = rng.normal(0, 1, shape).astype(np.float32)
        stamp[at] = 1e6
        canvas, (top, left, height, width) = place_stamp(stamp, at, size)
        assert canvas[size // 2, size // 2] == 1e6
        inside = canvas[top : top + height, left : left + width]
        assert inside.size == np.isfinite(canvas).sum()
        row, column = at[0] - size // 2 + top, at[1] - size // 2 + left
        expected = stamp[row : row + height, column : column + width]
        np.testing.assert_array_equal(inside, expected)
    other = np.full(shape, 3.0, np.float32)  # all else overwritten
    other[at] = 1e6
    again, _ = place_stamp(other, at, size)
    assert again[size // 2, size // 2] == 1e6
    cropped = crop_triplet(np.nan_to_num(again)[None, None], 21)
    assert np.unravel_index(cropped[0, 0].argmax(), (21, 21)) == (10, 10)


@pytest.mark.parametrize("zoom", [0.2 / 1.01, 0.5, 1.7])
def test_resampling_keeps_flux_and_place(zoom):
    rows, columns = np.mgrid[:101, :90]
    at = (47.3, 40.8)
    stamp = np.exp(-((rows - at[0]) ** 2 + (columns - at[1]) ** 2) / (2 * 6.0**2))
    canvas, (top, left, height, width) = place_stamp(stamp.astype(np.float32), at, 201, zoom)
    assert np.nansum(canvas) == pytest.approx(stamp.sum(), rel=1e-3)
    grid = np.mgrid[:201, :201]
    weight = np.nan_to_num(canvas)
    centre = [(part * weight).sum() / weight.sum() for part in grid]
    assert centre == pytest.approx([100, 100], abs=0.02)
    assert (height, width) == pytest.approx((101 * zoom, 90 * zoom), abs=2)
    inside = canvas[top : top + height, left : left + width]
    assert np.isfinite(inside).mean() > 0.85
    holed = stamp.copy()
    holed[40:60, 35:50] = np.nan
    assert np.isnan(place_stamp(holed, at, 201, zoom)[0][100, 100])


def test_published_stamps_lie_in_the_corner():
    raw = np.random.default_rng(1).normal(100, 10, (1, 3, 63, 63)).astype(np.float32)
    box = np.full((1, 3, 4), (12, 5, 40, 50))
    corner = np.full_like(raw, np.nan)
    corner[..., :40, :50] = raw[..., 12:52, 5:55]
    expected = triplet_input(corner, np.array([[40, 50]]))
    np.testing.assert_array_equal(triplet_input(raw, box, position="as_published"), expected)
    moved = triplet_input(raw, box)
    np.testing.assert_array_equal(moved[..., 12:52, 5:55], expected[..., :40, :50])
    assert (moved[..., :12, :] == np.float32(PADDING)).all()


def test_a_survey_names_its_own_features():
    alert = made(reliability=0.5, isDipole=True, snr=7)
    found = alert_features(alert, ["snr", "reliability", "isDipole", "dec", "age", "unknown"])
    np.testing.assert_array_equal(found, np.float32([7, 0.5, 1, 20, 0, np.nan]))
    with pytest.raises(InvalidRecord, match="reliability: expected a number, found 'high'"):
        alert_features(made(reliability="high"), ["reliability"])
