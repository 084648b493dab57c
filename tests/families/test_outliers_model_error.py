"""The error the model itself makes, measured on the population and added to the noise."""

import numpy as np
import pytest

from skyray.families.outliers.metrics import reduced_chi2
from skyray.families.outliers.model_error import ModelError

WAVELENGTH = np.linspace(4000.0, 9000.0, 500)
LINE = (4900.0, 5100.0)  # rest-frame Å where the model is wrong by a fifth


def population(rows: int = 300, seed: int = 0):
    """Return y, w, model and z of spectra the model follows to the noise except in one band."""
    rng = np.random.default_rng(seed)
    z = rng.uniform(0.0, 0.4, rows)
    model = rng.uniform(0.5, 2.0, (rows, 1)) * np.ones(500)
    sigma = rng.uniform(0.02, 0.2, (rows, 1)) * np.ones(500)
    rest = WAVELENGTH / (1 + z[:, None])
    wrong = (rest > LINE[0]) & (rest < LINE[1])
    error = np.where(wrong, 0.2 * model, 0.0) * rng.normal(size=(rows, 500))
    y = model + error + sigma * rng.normal(size=(rows, 500))
    w = np.where(rng.random((rows, 500)) < 0.1, 0.0, 1 / sigma**2)
    return y, w, model, z


def test_error_is_found_where_it_is_and_nowhere_else():
    y, w, model, z = population()
    error = ModelError.fit(y, w, model, z, WAVELENGTH)
    rest = np.exp(error.edges_R)
    inside = (rest > LINE[0] + 10) & (rest < LINE[1] - 10)
    outside = (rest > 3500) & (rest < LINE[0] - 30)
    assert np.sqrt(np.median(error.variance_R[inside])) == pytest.approx(0.2, rel=0.1)
    assert np.sqrt(error.variance_R[outside].mean()) < 0.03  # what noise alone leaves


def test_whitened_chi2_of_the_population_is_one():
    y, w, model, z = population(seed=1)
    error = ModelError.fit(y, w, model, z, WAVELENGTH)
    white = error.whitened(w, model, z, WAVELENGTH)
    assert (white <= w).all()
    assert ((white == 0) == (w == 0)).all()
    used = np.ones_like(w, dtype=bool)
    raw = reduced_chi2(y, w, model, used)[0]
    chi2 = reduced_chi2(y, white, model, used)[0]
    assert raw.mean() > 1.5
    assert chi2.mean() == pytest.approx(1.0, abs=0.05)
    inner = np.abs(WAVELENGTH / (1 + z[:, None]) - 5000) < 70  # bins at the edges are mixed
    residual = ((y - model) ** 2 * white)[inner & (w > 0)]
    assert residual.mean() == pytest.approx(1.0, abs=0.15)


def test_defects_are_not_taken_for_the_models_error():
    y, w, model, z = population(seed=2)
    spoilt = y.copy()
    spoilt[:, 100] += 1e4
    clean = ModelError.fit(y, w, model, z, WAVELENGTH)
    robust = ModelError.fit(spoilt, w, model, z, WAVELENGTH)
    assert np.abs(robust.variance_R - clean.variance_R).max() < 0.05


def test_survives_a_bundle():
    y, w, model, z = population(30)
    error = ModelError.fit(y, w, model, z, WAVELENGTH)
    again = ModelError.from_tensors(error.to_tensors())
    np.testing.assert_array_equal(
        again.whitened(w, model, z, WAVELENGTH), error.whitened(w, model, z, WAVELENGTH)
    )
