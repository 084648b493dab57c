"""Explanations: the map peaks where a toy encoder looks; χ² parts add up to the whole."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from skyray.families.outliers.explain import (
    ELSEWHERE,
    RANGES,
    attention_map,
    chi2_by_range,
    explain_figure,
)
from skyray.models.spender import SpectrumEncoder

PIXELS, STRIDE = 660, 11


class ToyEncoder(nn.Module):
    """Values are position means of the flux; attention is given, one channel a region."""

    def __init__(self, centres: tuple[int, ...], width: float = 1.5):
        super().__init__()
        position = torch.arange(PIXELS // STRIDE)
        logits = torch.stack([-0.5 * ((position - c) / width) ** 2 for c in centres])
        self.attention_CT = torch.softmax(logits, dim=-1)
        self.weight_CS = torch.eye(len(centres))

    def attend(self, y_BL):
        values = y_BL.reshape(len(y_BL), 1, -1, STRIDE).mean(-1)
        shape = (len(y_BL), *self.attention_CT.shape)
        return values.expand(shape), self.attention_CT.expand(shape)

    def head(self, values, attention):
        return (values * attention).sum(-1) @ self.weight_CS


def test_map_peaks_where_the_latent_looks():
    encoder, y = ToyEncoder((10, 45)), torch.rand(3, PIXELS) + 1.0
    for latent, centre in ((0, 10), (1, 45)):
        shown = attention_map(encoder, torch.ones(3, PIXELS), latent)
        assert shown.shape == (3, PIXELS)
        assert (shown.argmax(dim=1) - (centre + 0.5) * STRIDE).abs().max() <= STRIDE
        far = (torch.arange(PIXELS) / STRIDE - centre - 0.5).abs() > 8
        assert shown[:, far].max() < 1e-3 * shown.max()
    both = attention_map(encoder, y, lambda s: 2.0 * s[:, 0] - s[:, 1])
    apart = 2.0 * attention_map(encoder, y, 0) - attention_map(encoder, y, 1)
    torch.testing.assert_close(both, apart)
    assert (both[:, 45 * STRIDE + 5] < 0).all(), "what lowers the score is negative"


def test_positions_share_out_a_linear_target():
    """For a linear head Σ_t of the map is the latent itself: nothing is lost on the way."""
    encoder, y = ToyEncoder((10, 45)), torch.rand(4, PIXELS)
    latent = encoder.head(*encoder.attend(y))
    shown = attention_map(encoder, y, 1)
    torch.testing.assert_close(shown.sum(dim=1) / STRIDE, latent[:, 1], rtol=1e-3, atol=0)


def test_a_padded_pool_has_its_centres_at_multiples_of_the_stride():
    encoder = ToyEncoder((20,), width=0.1)
    encoder.pools = (STRIDE,)
    assert int(attention_map(encoder, torch.ones(1, PIXELS), 0).argmax()) == 20 * STRIDE


def test_target_must_be_one_number_a_row():
    with pytest.raises(
        ValueError, match=r"expected one number a row, shape \(2,\), found \(2, 1\)"
    ):
        attention_map(ToyEncoder((3,)), torch.ones(2, PIXELS), lambda s: s)


def test_map_leaves_no_trace_on_the_network():
    torch.manual_seed(0)
    encoder = SpectrumEncoder(PIXELS, 2, (8, 16, 16), (5, 5, 5), (5, 5), (8,)).eval()
    y = torch.rand(3, PIXELS)
    with torch.no_grad():
        shown = attention_map(encoder, y, 1)
        values, attention = encoder.attend(y)
        # independent: the change of the latent when a position's attention is raised by 0.1 %
        position, step = 7, 1e-3
        raised = attention.clone()
        raised[:, :, position] *= 1 + step
        change = (encoder.head(values, raised) - encoder.head(values, attention))[:, 1] / step
    torch.testing.assert_close(shown[:, position * 25], change, rtol=0.05, atol=2e-3)
    assert all(p.grad is None for p in encoder.parameters())
    assert not shown.requires_grad


def draw(rows: int = 5, pixels: int = 2000, seed: int = 0):
    rng = np.random.default_rng(seed)
    rest = np.linspace(3600.0, 9824.0, pixels) / (1 + rng.uniform(0, 0.5, (rows, 1)))
    w = rng.uniform(0, 4, (rows, pixels)) * (rng.random((rows, pixels)) > 0.2)
    model = rng.random((rows, pixels))
    y = model + rng.normal(size=w.shape) / np.sqrt(np.maximum(w, 1e-9))
    return y, w, model, rng.random((rows, pixels)) > 0.1, rest


def test_parts_add_up_to_the_whole():
    y, w, model, valid, rest = draw()
    names, chi2, pixels = chi2_by_range(y, w, model, valid, rest)
    assert names == (*RANGES, ELSEWHERE)
    np.testing.assert_allclose(chi2.sum(axis=1), (valid * w * (y - model) ** 2).sum(axis=1))
    assert (pixels.sum(axis=1) == (valid & (w > 0)).sum(axis=1)).all()


def test_a_misfit_lands_in_its_range():
    y, w, model, valid, rest = draw()
    line = np.abs(rest - 6564.6) < 15
    names, before, pixels = chi2_by_range(y, w, model, valid, rest)
    after = chi2_by_range(y + 9.0 * line, w, model, valid, rest).chi2_BK
    changed = after - before > 1e-6
    assert {names[k] for k in np.flatnonzero(changed.any(axis=0))} == {"Hα, [N II], [S II]"}
    row, k = 2, names.index("TiO bands")
    inside = sum((rest[row] >= a) & (rest[row] < b) for a, b in RANGES["TiO bands"]) > 0
    assert pixels[row, k] == (inside & valid[row] & (w[row] > 0)).sum()


def test_unused_pixels_may_hold_anything():
    y, w, model, valid, rest = draw()
    expected = chi2_by_range(y, w, model, valid, rest)
    y[w == 0], model[~valid] = np.nan, np.inf
    np.testing.assert_allclose(chi2_by_range(y, w, model, valid, rest).chi2_BK, expected.chi2_BK)
    one = chi2_by_range(y[0], w[0], model[0], valid[0], rest[0])
    np.testing.assert_allclose(one.chi2_BK, expected.chi2_BK[:1])


@pytest.mark.parametrize(
    ("ranges", "message"),
    [
        ({"a": [(1, 3)], "b": [(2, 4)]}, "overlaps"),
        ({"a": [(3, 3)]}, "empty"),
        ({ELSEWHERE: [(1, 2)]}, "kept for"),
    ],
)
def test_wrong_ranges_are_refused(ranges, message):
    with pytest.raises(ValueError, match=message):
        chi2_by_range(*draw(1, 50), ranges)


def test_touching_ranges_are_half_open():
    rest = np.array([1.0, 2.0, 3.0])
    ones = np.ones(3)
    ranges = {"low": [(1.0, 2.0)], "high": [(2.0, math.inf)]}
    pixels = chi2_by_range(ones, ones, 0 * ones, ones > 0, rest, ranges).pixels_BK
    assert pixels.tolist() == [[1, 2, 0]]


def test_figure_copes_with_gaps(tmp_path):
    y, w, model, valid, rest = (values[0] for values in draw())
    y[w == 0] = np.nan
    for attention in (np.sin(rest / 300), np.zeros(rest.size)):
        path = explain_figure(tmp_path / "e.png", rest, y, w, model, valid, attention, "one")
        with Image.open(path) as image:
            assert image.width > 1000
    explain_figure(tmp_path / "e.png", rest, y, 0 * w, model, valid, attention)
