"""Components of noisy spectra with missing pixels."""

import numpy as np
import pytest

from skyray.analysis.weighted_components import weighted_components


def test_the_space_of_the_data_is_found_despite_gaps_and_noise():
    rng = np.random.default_rng(0)
    x = np.linspace(0, 1, 200)
    truth = np.stack([1 + x, np.sin(9 * x), np.exp(-(((x - 0.5) / 0.05) ** 2))])
    coefficients = rng.normal([1.0, 0.0, 0.0], [0.2, 0.5, 0.4], size=(120, 3))
    clean = coefficients @ truth
    sigma = rng.uniform(0.02, 0.1, size=clean.shape)
    ivar = sigma**-2.0
    ivar[rng.random(clean.shape) < 0.3] = 0
    noisy = np.where(ivar > 0, clean + sigma * rng.normal(size=clean.shape), 1e6)
    vectors, variance, seen = weighted_components(noisy, ivar, 3)
    assert (seen == (ivar > 0).sum(axis=0)).all()
    assert (variance > 0).all()
    basis = np.linalg.qr(vectors.T)[0]
    left = truth - (truth @ basis) @ basis.T
    assert np.sqrt((left**2).mean() / (truth**2).mean()) < 0.02


def test_pixels_nobody_saw_are_zero():
    flux, ivar = np.ones((20, 30)), np.ones((20, 30))
    ivar[:, 10:15] = 0
    vectors, _, seen = weighted_components(flux, ivar, 2)
    assert (seen[10:15] == 0).all()
    assert np.abs(vectors[:, 10:15]).max() == pytest.approx(0, abs=1e-9)
