"""The in-domain gate: keeps what it should, catches what is foreign, survives storage."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.numpy import load, save

from skyray.analysis.domain import DomainGate


def draw_features(rows: int, seed: int, width: int = 48) -> tuple[np.ndarray, np.ndarray]:
    """ReLU features of three classes that fill 10 of `width` directions."""
    world = np.random.default_rng(100)
    mixing, centres = world.normal(size=(10, width)), world.normal(size=(3, 10)) * 4
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, rows)
    hidden = centres[labels] + rng.normal(size=(rows, 10))
    return np.maximum(hidden @ mixing + 0.1 * rng.normal(size=(rows, width)), 0), labels


@pytest.fixture(scope="module")
def gate() -> DomainGate:
    return DomainGate.fit(*draw_features(2000, seed=1), quantile=0.99)


def test_held_out_objects_are_kept_at_the_quantile(gate):
    features, _ = draw_features(5000, seed=2)
    assert gate.inside(features).mean() == pytest.approx(0.99, abs=0.006)


def test_small_sets_keep_the_quantile_too():
    # 60 rows in 48 dimensions: without held-out folds the threshold would be far too tight.
    kept = []
    for seed in range(10):
        small = DomainGate.fit(*draw_features(60, seed=seed), quantile=0.95)
        kept.append(small.inside(draw_features(1000, seed=50)[0]).mean())
    assert np.mean(kept) > 0.93


def test_foreign_inputs_are_caught(gate):
    features, _ = draw_features(500, seed=3)
    rng = np.random.default_rng(4)
    noise = np.abs(rng.normal(size=features.shape)) * features.std()
    permuted = rng.permuted(features, axis=1)
    for foreign in (noise, permuted, features + 5.0, np.zeros_like(features), features * 3):
        assert gate.inside(foreign).mean() < 0.05


def test_activity_in_dimensions_the_training_never_used_is_caught():
    features, labels = draw_features(1000, seed=5)
    features[:, -4:] = 0.0  # dead units
    gate = DomainGate.fit(features, labels)
    fresh = draw_features(300, seed=6)[0]
    fresh[:, -4:] = 0.0
    assert gate.inside(fresh).mean() > 0.95
    fresh[:, -1] = 3.0
    assert gate.inside(fresh).mean() < 0.05


def test_distance_is_mahalanobis_to_the_nearest_class():
    rng = np.random.default_rng(7)
    covariance = np.array([[2.0, 0.6], [0.6, 0.5]])
    labels = np.repeat([0, 1], 20_000)
    features = rng.multivariate_normal([0, 0], covariance, 40_000) + labels[:, None] * 30.0
    gate = DomainGate.fit(features, labels)
    point = np.array([[31.0, 29.0]])
    offset = point[0] - 30.0
    expected = np.sqrt(offset @ np.linalg.solve(covariance, offset))
    assert gate.score(point)[0] == pytest.approx(expected, rel=0.03)


def test_unfinished_features_are_outside(gate):
    features, _ = draw_features(3, seed=8)
    features[1, 5] = np.nan
    assert np.isinf(gate.score(features)[1])
    assert not gate.inside(features)[1]


def test_storage_keeps_every_decision_bit_for_bit(gate):
    features, _ = draw_features(200, seed=9)
    stored = load(save({**gate.to_tensors(), "other": np.zeros(1, np.float32)}))
    np.testing.assert_array_equal(
        DomainGate.from_tensors(stored).score(features), gate.score(features)
    )
    as_torch = {name: torch.from_numpy(value) for name, value in stored.items()}
    rebuilt = DomainGate.from_tensors(as_torch)
    np.testing.assert_array_equal(rebuilt.inside(features), gate.inside(features))
    assert {value.dtype for value in gate.to_tensors().values()} == {np.dtype(np.float32)}


def test_bad_input_is_refused_with_the_reason(gate):
    with pytest.raises(ValueError, match=r"expected \[N, 48\], found \(2, 3\)"):
        gate.score(np.zeros((2, 3)))
    with pytest.raises(ValueError, match="5 rows"):
        DomainGate.fit(np.zeros((4, 2)), np.zeros(4))
    with pytest.raises(ValueError, match="finite"):
        DomainGate.fit(np.full((9, 2), np.nan), np.zeros(9))
    with pytest.raises(ValueError, match="missing"):
        DomainGate.from_tensors({})
