"""How strange is an object? Isolation forest, PCA as the baseline to beat, percentiles.

All scores rise with strangeness. Shape suffixes: N objects, S features or latents, R rest-frame
pixels, K components.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

MAX_FIT_ROWS = 20_000
_CHUNK = 1024  # spectra projected at once: K² · R products would not fit for all


@dataclass(frozen=True)
class IsolationScore:
    """Isolation forest (Liu, Ting & Zhou 2008, ICDM) over latents or any other features.

    Only the rows it was fitted to and the seed are kept; loading fits again, which takes a fraction
    of a second and gives the same trees under one version of scikit-learn.

    Attributes
    ----------
    sample_NS : float32 [N, S]
        Rows the forest was fitted to, at most `MAX_FIT_ROWS`.
    seed, trees : int
    """

    sample_NS: np.ndarray
    seed: int
    trees: int
    _forest: Any = field(repr=False, compare=False)

    @classmethod
    def fit(cls, latent_NS: np.ndarray, seed: int = 0, trees: int = 200) -> IsolationScore:
        """Fit a forest; of more than `MAX_FIT_ROWS` rows a random part is used.

        Rows that are not finite are left out.

        Raises
        ------
        ValueError
            If the array is not two-dimensional or has fewer than 2 finite rows.
        """
        latent = np.asarray(latent_NS, dtype=np.float32)
        if latent.ndim != 2:
            raise ValueError(f"isolation forest: expected [N, S], found {latent.shape}")
        sample = latent[np.isfinite(latent).all(axis=1)]
        if len(sample) < 2:
            raise ValueError(f"isolation forest: expected ≥ 2 finite rows, found {len(sample)}")
        if len(sample) > MAX_FIT_ROWS:
            chosen = np.random.default_rng(seed).choice(len(sample), MAX_FIT_ROWS, replace=False)
            sample = sample[np.sort(chosen)]
        return cls._grow(np.ascontiguousarray(sample), int(seed), int(trees))

    @classmethod
    def _grow(cls, sample: np.ndarray, seed: int, trees: int) -> IsolationScore:
        # Imported where used: it takes seconds, and every training worker imports this module.
        from sklearn.ensemble import IsolationForest

        forest = IsolationForest(n_estimators=trees, random_state=seed, n_jobs=1)
        return cls(sample, seed, trees, forest.fit(sample))

    def score(self, latent_NS: np.ndarray) -> np.ndarray:
        """Return the anomaly score 2^(−E[h]/c), float64 [N] in (0, 1]; NaN for non-finite rows."""
        latent = np.asarray(latent_NS, dtype=np.float32)
        if latent.ndim != 2 or latent.shape[1] != self.sample_NS.shape[1]:
            raise ValueError(
                f"isolation forest: expected [N, {self.sample_NS.shape[1]}], found {latent.shape}"
            )
        found = np.full(len(latent), np.nan)
        finite = np.isfinite(latent).all(axis=1)
        if finite.any():
            found[finite] = -self._forest.score_samples(latent[finite])
        return found

    def to_tensors(self) -> dict[str, np.ndarray]:
        """Return what is needed to grow the same forest again, ready for safetensors."""
        return {
            "isolation_sample": self.sample_NS,
            "isolation_settings": np.array([self.seed, self.trees], dtype=np.int64),
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, np.ndarray]) -> IsolationScore:
        """Grow the forest of `to_tensors` again; other keys are ignored, torch is welcome."""
        sample, settings = _take(tensors, ("isolation_sample", "isolation_settings"))
        seed, trees = (int(value) for value in settings)
        return cls._grow(np.ascontiguousarray(sample, dtype=np.float32), seed, trees)


@dataclass(frozen=True)
class PcaBaseline:
    """Principal components of normalised rest-frame spectra with gaps.

    The mean and components come from an iterated fit that fills gaps with its own reconstruction
    (Yip et al. 2004, AJ 128, 585). Coefficients of a spectrum are the most probable ones given its
    weights and the spread of the training coefficients, so gaps and noise need no special case.

    Attributes
    ----------
    mean_R : float32 [R]
    components_KR : float32 [K, R]
        Orthonormal rows.
    variance_K : float32 [K]
        Of the training coefficients, falling.
    """

    mean_R: np.ndarray
    components_KR: np.ndarray
    variance_K: np.ndarray

    @classmethod
    def fit(
        cls,
        y_NR: np.ndarray,
        w_NR: np.ndarray,
        components: int = 10,
        iterations: int = 5,
        seed: int = 0,
    ) -> PcaBaseline:
        """Fit mean and components.

        Parameters
        ----------
        y_NR : float [N, R]
            Normalised spectra on one rest-frame grid (see `transforms.rest_frame`).
        w_NR : float [N, R]
            Inverse variances of y; 0 where nothing was measured, whatever y is there.
        components : int
            1 ≤ K ≤ min(N − 1, R).
        iterations : int
            Rounds of filling gaps and fitting again.

        Raises
        ------
        ValueError
            If shapes or numbers do not fit.
        """
        y, w = _spectra(y_NR, w_NR)
        if not 1 <= components <= min(len(y) - 1, y.shape[1]) or iterations < 1:
            raise ValueError(
                f"PCA: expected 1 ≤ components ≤ {min(len(y) - 1, y.shape[1])} and iterations ≥ 1, "
                f"found {components} and {iterations}"
            )
        measured = w > 0
        count = measured.sum(axis=0)
        mean = np.divide((y * measured).sum(axis=0), count, out=np.zeros(y.shape[1]),
                         where=count > 0)  # fmt: skip
        filled = np.where(measured, y, mean.astype(np.float32))
        for _ in range(iterations):
            found = cls(*_components(filled, components, seed))
            filled = np.where(measured, y, found.reconstruct(found.coefficients(y, w)))
        return found

    def coefficients(self, y_NR: np.ndarray, w_NR: np.ndarray) -> np.ndarray:
        """Return the most probable coefficients, float32 [N, K]; 0 without any measured pixel."""
        y, w = _spectra(y_NR, w_NR, self.mean_R.size)
        basis = self.components_KR
        size = len(basis)
        products = (basis[:, None] * basis).reshape(size * size, -1).T
        prior = np.diag(1.0 / np.maximum(self.variance_K.astype(np.float64), 1e-12))
        found = np.zeros((len(y), size), dtype=np.float32)
        for start in range(0, len(y), _CHUNK):
            part = slice(start, start + _CHUNK)
            right = (w[part] * (y[part] - self.mean_R)) @ basis.T
            left = (w[part] @ products).reshape(-1, size, size).astype(np.float64) + prior
            found[part] = np.linalg.solve(left, right.astype(np.float64)[..., None])[..., 0]
        return found

    def reconstruct(self, coefficients_NK: np.ndarray) -> np.ndarray:
        """Return mean + Σ coefficient · component, float32 [N, R]."""
        return (self.mean_R + coefficients_NK @ self.components_KR).astype(np.float32)

    def reconstruction_error(self, y_NR: np.ndarray, w_NR: np.ndarray) -> np.ndarray:
        """Return Σ w (y − ŷ)² per measured pixel, float64 [N]; NaN without any."""
        y, w = _spectra(y_NR, w_NR, self.mean_R.size)
        model = self.reconstruct(self.coefficients(y, w))
        total = np.einsum("nr,nr,nr->n", w, y - model, y - model, dtype=np.float64)
        count = (w > 0).sum(axis=1)
        return np.divide(total, count, out=np.full(len(y), np.nan), where=count > 0)

    def to_tensors(self) -> dict[str, np.ndarray]:
        """Return the baseline as float32 arrays, ready for safetensors."""
        return {
            "pca_mean": self.mean_R,
            "pca_components": self.components_KR,
            "pca_variance": self.variance_K,
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, np.ndarray]) -> PcaBaseline:
        """Rebuild a baseline from `to_tensors`; other keys are ignored, torch is welcome."""
        names = ("pca_mean", "pca_components", "pca_variance")
        return cls(*(np.asarray(a, dtype=np.float32) for a in _take(tensors, names)))


def percentile(score_N: np.ndarray, reference_M: np.ndarray) -> np.ndarray:
    """Return the percentage of a reference sample that scores lower, float64 [N] in 0–100.

    Of equal scores half count as lower. NaN where the score is NaN; NaN in the reference is left
    out.

    Raises
    ------
    ValueError
        If the reference holds no number.
    """
    score = np.asarray(score_N, dtype=np.float64)
    reference = np.asarray(reference_M, dtype=np.float64).ravel()
    reference = np.sort(reference[~np.isnan(reference)])
    if reference.size == 0:
        raise ValueError("percentile: expected a reference sample, found no number in it")
    rank = np.searchsorted(reference, score, "left") + np.searchsorted(reference, score, "right")
    return np.where(np.isnan(score), np.nan, 50.0 * rank / reference.size)


def _components(filled: np.ndarray, count: int, seed: int):
    """Return mean, components and their variances of spectra without gaps, float32."""
    from sklearn.utils.extmath import randomized_svd

    mean = filled.mean(axis=0, dtype=np.float64).astype(np.float32)
    _, singular, rows = randomized_svd(filled - mean, count, n_iter=4, random_state=seed)
    variance = singular.astype(np.float64) ** 2 / (len(filled) - 1)
    # safetensors writes memory as it lies, so the order of axes must be C's
    return mean, np.ascontiguousarray(rows, dtype=np.float32), variance.astype(np.float32)


def _spectra(y_NR, w_NR, pixels: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return y and w as float32 with y = 0 where w = 0."""
    y, w = np.asarray(y_NR, dtype=np.float32), np.asarray(w_NR, dtype=np.float32)
    if y.ndim != 2 or y.shape != w.shape or (pixels is not None and y.shape[1] != pixels):
        raise ValueError(f"PCA: expected y and w [N, {pixels or 'R'}], found {y.shape}, {w.shape}")
    y = np.where(w > 0, y, 0.0)
    if not (np.isfinite(y).all() and np.isfinite(w).all() and (w >= 0).all()):
        raise ValueError("PCA: expected finite w ≥ 0 and y finite where w > 0")
    return y, w


def _take(tensors: Mapping[str, np.ndarray], names: tuple[str, ...]) -> list[np.ndarray]:
    missing = [name for name in names if name not in tensors]
    if missing:
        raise ValueError(f"anomaly: tensors {missing} are missing")
    return [np.asarray(tensors[name]) for name in names]
