"""Sizes, limits and colours of images against astropy, torch and brute force."""

import numpy as np
import pytest
import torch
from astropy.visualization import make_lupton_rgb

from skyray.records import InvalidRecord
from skyray.transforms.images import (
    PUBLISHED_MAPPINGS,
    ColourMapping,
    clip_limits,
    display_to_unit,
    fit_image,
    fitted_scale,
    lupton,
    published_mapping,
    scale_unit,
    to_colour,
)

RNG = np.random.default_rng(5)
IMAGE = RNG.normal(size=(3, 30, 30)).astype(np.float32)


def test_exact_passes_its_size_and_refuses_others():
    np.testing.assert_array_equal(fit_image(IMAGE, 30, "exact"), IMAGE)
    with pytest.raises(InvalidRecord, match="expected 32 × 32 pixels, found 30 × 30"):
        fit_image(IMAGE, 32, "exact")


def test_crop_keeps_the_centre():
    np.testing.assert_array_equal(fit_image(IMAGE, 10, "crop"), IMAGE[:, 10:20, 10:20])
    with pytest.raises(InvalidRecord, match="image_size"):
        fit_image(IMAGE, 40, "crop")


@pytest.mark.parametrize("size", [7, 12, 29])
def test_smaller_is_the_mean_over_each_new_pixels_area(size):
    found = fit_image(IMAGE, size, "resize")
    fine = IMAGE.repeat(size, axis=1).repeat(size, axis=2)  # 30·size pixels: old and new edges
    expected = fine.reshape(3, size, 30, size, 30).mean(axis=(2, 4))
    np.testing.assert_allclose(found, expected, atol=2e-6)
    assert found.dtype == np.float32


def test_larger_is_bilinear_as_in_torch():
    expected = torch.nn.functional.interpolate(
        torch.as_tensor(IMAGE)[None], size=(47, 47), mode="bilinear", align_corners=False
    )[0]
    np.testing.assert_allclose(fit_image(IMAGE, 47, "resize"), expected.numpy(), atol=1e-5)


def test_resize_takes_the_central_square_of_a_wide_image():
    wide = RNG.normal(size=(1, 20, 50)).astype(np.float32)
    np.testing.assert_allclose(
        fit_image(wide, 10, "resize"), fit_image(wide[:, :, 15:35], 10, "resize")
    )


def test_unmeasured_pixels_do_not_spread():
    image = np.ones((1, 20, 20), np.float32)
    image[:, 0, 0] = np.nan  # a quarter of the first new pixel
    image[:, 4:6, 4:6] = np.nan  # all of another
    found = fit_image(image, 10, "resize")
    assert np.isnan(found).sum() == 1
    assert np.isnan(found[0, 2, 2])
    np.testing.assert_allclose(found[np.isfinite(found)], 1.0)


def test_pixel_scale_follows_the_resize_only():
    assert fitted_scale(0.4, (40, 60), 20, "resize") == pytest.approx(0.8)
    assert fitted_scale(0.4, (40, 60), 20, "crop") == pytest.approx(0.4)


def test_unknown_fit_is_named():
    with pytest.raises(ValueError, match="expected exact, crop or resize, found 'pad'"):
        fit_image(IMAGE, 10, "pad")


@pytest.mark.parametrize(("stretch", "q"), [(1.0, 1.0), (0.5, 8.0), (5.0, 3.0)])
def test_lupton_agrees_with_astropy(stretch, q):
    red, green, blue = RNG.gamma(1.0, 0.8, (3, 40, 40)) - 0.2
    expected = make_lupton_rgb(red, green, blue, minimum=0, stretch=stretch, Q=q)
    found = lupton(np.stack([red, green, blue]), stretch, q)
    # make_lupton_rgb truncates to whole steps of 1/255
    difference = found.transpose(1, 2, 0) - expected / 255.0
    assert difference.min() >= -1e-5
    assert difference.max() <= 1.01 / 255


def test_limits_of_all_pixels_as_the_released_code_takes_them():
    band = RNG.normal(size=(40, 40)) ** 2
    rows = np.sort(band)[: band.size // 2]  # sorts each row; the cut removes none
    assert clip_limits(band, "as_published") == pytest.approx(
        (rows.mean() - rows.std(), rows.mean() + 5 * rows.std())
    )


def test_limits_of_the_fainter_half():
    band = RNG.normal(size=(40, 40)) ** 2
    faint = np.sort(band, axis=None)[:800]
    expected = (faint.mean() - faint.std(), faint.mean() + 5 * faint.std())
    assert clip_limits(band, "corrected") == pytest.approx(expected)
    band[0, 0] = np.nan
    assert np.isfinite(clip_limits(band, "corrected")).all()


def test_scale_unit_clips_and_survives_a_flat_band():
    band = np.array([[-1.0, 0.0, 1.0, 3.0, np.nan]])
    np.testing.assert_allclose(scale_unit(band, (0, 2)), [[0, 0, 0.5, 1, 0]])
    np.testing.assert_allclose(scale_unit(band, (0, 2), clipped=False), [[0, 0, 0.5, 1.5, 0]])
    assert (scale_unit(band, (1, 1)) == 0).all()


def test_published_mappings_differ_between_the_surveys():
    assert published_mapping("sdss_dr7").bands == ("z", "r", "g")
    assert published_mapping("DES DR1").stretch == "lupton"
    with pytest.raises(ValueError, match=r"\['des', 'sdss'\], found 'hsc'"):
        published_mapping("hsc")


def test_colour_of_sdss_as_the_released_code_makes_it():
    bands = {name: RNG.gamma(2.0, 1.0, (32, 32)) for name in "griz"}
    image = np.stack(list(bands.values()))
    found = to_colour(image, tuple("griz"), PUBLISHED_MAPPINGS["sdss"], "as_published")
    for channel, name in zip(found, "zrg", strict=True):
        x = bands[name]
        low, high = x.mean() - x.std(), x.mean() + 5 * x.std()
        np.testing.assert_allclose(channel, np.clip((x - low) / (high - low), 0, 1), atol=1e-5)


def test_colour_of_des_as_the_released_code_makes_it():
    image = RNG.gamma(2.0, 1.0, (4, 32, 32))
    found = to_colour(image, tuple("griz"), PUBLISHED_MAPPINGS["des"], "as_published")
    i, r, g = (scale_unit(image[k], clip_limits(image[k], "as_published")) for k in (2, 1, 0))
    expected = make_lupton_rgb(i, r, g, Q=1, stretch=1).transpose(2, 0, 1) / 255
    assert np.abs(found - expected).max() <= 1.01 / 255


def test_corrected_colour_is_one_for_both_surveys_and_names_a_missing_band():
    image = RNG.gamma(2.0, 1.0, (3, 32, 32))
    found = to_colour(image, ("g", "r", "i"), ColourMapping())
    assert found.shape == (3, 32, 32)
    assert 0 <= found.min() <= found.max() <= 1
    limits = [clip_limits(image[k], "corrected") for k in (2, 1, 0)]
    scaled = [
        np.clip((image[k] - low) / (high - low), 0, None)
        for k, (low, high) in zip((2, 1, 0), limits, strict=True)
    ]
    expected = make_lupton_rgb(*scaled, stretch=3.0, Q=8.0).transpose(2, 0, 1) / 255
    assert np.abs(found - expected).max() <= 1.01 / 255
    with pytest.raises(ValueError, match=r"no \['z'\]"):
        to_colour(image, ("g", "r", "i"), PUBLISHED_MAPPINGS["sdss"])


def test_display_image_is_divided_by_255():
    image = np.array([[[0.0, 255.0, 51.0, np.nan]]], np.float32)
    np.testing.assert_allclose(display_to_unit(image), [[[0, 1, 0.2, 0]]])
