"""Principal components of noisy data with missing pixels."""

from __future__ import annotations

import numpy as np


def weighted_components(
    flux_NL: np.ndarray, ivar_NL: np.ndarray, count: int, rounds: int = 15, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return vectors that describe spectra best, each pixel with its own weight.

    Alternates between the coefficients of every spectrum and the vectors at every pixel (Bailey
    2012, PASP 124, 1015), both least squares with a small ridge that keeps what no pixel tells at
    0. Weights are capped at 100 times their median, so that one bright object does not rule.

    Parameters
    ----------
    flux_NL, ivar_NL : float [N, L]
        Of unit scale; ivar 0 where nothing was measured.
    count : int
        Vectors wanted, K.

    Returns
    -------
    vectors : float64 [K, L]
        The first is near the mean.
    variance : float64 [K]
        Mean square of the coefficients, doubled as a prior.
    seen : int [L]
        Spectra that measured each pixel.
    """
    flux, weight = np.asarray(flux_NL, np.float64), np.asarray(ivar_NL, np.float64)
    used = weight > 0
    typical = np.median(weight[used]) if used.any() else 1.0
    weight = np.minimum(weight / typical, 100.0)
    rng = np.random.default_rng(seed)
    total = weight.sum(axis=0)
    mean = np.divide((weight * flux).sum(axis=0), total, out=np.zeros_like(total), where=total > 0)
    filled = np.where(used, flux, mean)
    other = (rng.normal(size=(count - 1, len(flux))) @ (filled - mean)) / np.sqrt(len(flux))
    vectors = np.concatenate([mean[None], other])
    ridge = 1e-3 * np.eye(count)
    coefficients = np.zeros((len(flux), count))
    for _ in range(rounds):
        vectors /= np.sqrt(np.mean(vectors**2, axis=1, keepdims=True)) + 1e-30
        products = np.einsum("kl,jl->kjl", vectors, vectors).reshape(count * count, -1)
        matrix = (weight @ products.T).reshape(-1, count, count)
        right = (weight * flux) @ vectors.T
        coefficients = np.linalg.solve(matrix + ridge, right[..., None])[..., 0]
        products = np.einsum("nk,nj->nkj", coefficients, coefficients).reshape(len(flux), -1)
        matrix = (weight.T @ products).reshape(-1, count, count)
        right = (weight * flux).T @ coefficients
        vectors = np.linalg.solve(matrix + ridge, right[..., None])[..., 0].T
    return vectors, 2.0 * np.mean(coefficients**2, axis=0) + 1e-12, used.sum(axis=0)
