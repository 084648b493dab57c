"""UMAP: groups stay groups, the same seed draws the same picture, late rows find their place."""

from __future__ import annotations

import numpy as np
import pytest

from skyray.analysis.embedding import umap_2d


def test_refusals():
    with pytest.raises(ValueError, match="found 9"):
        umap_2d(np.zeros((9, 6)))
    with pytest.raises(ValueError, match="found 0"):
        umap_2d(np.full((50, 6), np.nan))
    with pytest.raises(ValueError, match=r"\(50,\)"):
        umap_2d(np.zeros(50))


@pytest.fixture(scope="module")
def groups():
    """Three groups in 6-D; the scale of the last latent would hide them if it counted."""
    rng = np.random.default_rng(0)
    label = np.repeat([0, 1, 2], 120)
    latent = rng.normal(size=(360, 6)) + 8 * np.eye(6)[label]
    latent[:, 5] *= 1e3
    latent[[7, 200]] = np.nan
    return latent, label


def purity(place, label, k=5) -> float:
    """Share of each object's `k` nearest in the plane that are of its group."""
    apart = np.linalg.norm(place[:, None] - place, axis=-1)
    nearest = np.argsort(apart, axis=1)[:, 1 : k + 1]
    return (label[nearest] == label[:, None]).mean()


@pytest.mark.slow
def test_groups_stay_groups_and_the_picture_is_reproducible(groups):
    pytest.importorskip("umap")
    latent, label = groups
    place = umap_2d(latent, seed=3, n_neighbors=15)
    assert place.shape == (360, 2)
    assert place.dtype == np.float32
    bad = np.isnan(place).any(axis=1)
    np.testing.assert_array_equal(np.flatnonzero(bad), [7, 200])
    assert purity(place[~bad], label[~bad]) > 0.98
    np.testing.assert_array_equal(place, umap_2d(latent, seed=3, n_neighbors=15))


@pytest.mark.slow
def test_rows_beyond_the_limit_are_placed_among_their_like(groups):
    pytest.importorskip("umap")
    latent, label = groups
    place = umap_2d(latent, seed=1, n_neighbors=15, max_fit_rows=150)
    good = np.isfinite(place).all(axis=1)
    assert good.sum() == 358
    assert purity(place[good], label[good]) > 0.98
    few = umap_2d(latent[:20], seed=1)  # fewer rows than neighbours wanted
    assert np.isfinite(few).all(axis=1).sum() == 19
