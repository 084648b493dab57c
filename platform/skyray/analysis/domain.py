"""The in-domain gate: does an input look like what the network was trained on?

A network answers any input, noise included. The gate measures how far its penultimate features lie
from the training classes and flags what lies beyond nearly all validation objects.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

MIN_ROWS = 5
FOLDS = 5


@dataclass(frozen=True)
class DomainGate:
    """Mahalanobis distance to the nearest class mean under one shrunk, shared covariance.

    The covariance is shrunk after Ledoit & Wolf instead of cut by a PCA: directions that training
    data hardly fill are where foreign inputs show, so they must stay in the distance.

    Attributes
    ----------
    centre_D : float32 [D]
        Mean feature vector, subtracted first for numerical precision.
    whitener_DD : float32 [D, D]
        W with (x − y) W Wᵀ (x − y)ᵀ = squared Mahalanobis distance.
    means_CD : float32 [C, D]
        Whitened class means.
    threshold : float
        Largest distance that counts as inside.
    quantile : float
        Fraction of in-domain objects the threshold was chosen to keep.

    References
    ----------
    Lee et al. 2018, NeurIPS (Mahalanobis distance of features); Ledoit & Wolf 2004, J. Multivariate
    Anal. 88, 365 (shrinkage).
    """

    centre_D: np.ndarray
    whitener_DD: np.ndarray
    means_CD: np.ndarray
    threshold: float
    quantile: float

    @classmethod
    def fit(
        cls, features_ND: np.ndarray, labels_N: np.ndarray, quantile: float = 0.99, seed: int = 0
    ) -> DomainGate:
        """Fit means, covariance and threshold on in-domain features.

        The threshold is taken from distances of rows that took no part in the fit (5-fold), since
        a covariance flatters the rows it was computed from.

        Parameters
        ----------
        features_ND : float [N, D]
        labels_N : [N]
            Class of each row; a class with fewer than 5 rows gets no mean of its own.
        quantile : float
            Fraction of in-domain objects to keep.
        seed : int
            Order of the folds.

        Raises
        ------
        ValueError
            With fewer than 5 rows, non-finite features or shapes that do not fit.
        """
        # Imported where used: it takes seconds, and every training worker imports this module.
        from sklearn.covariance import ledoit_wolf_shrinkage

        features, labels = _check(features_ND, labels_N, quantile)
        # One amount of shrinkage for all: it falls with N, and distances would rise with it.
        shrinkage = ledoit_wolf_shrinkage(_deviations(features, labels)[0], assume_centered=True)
        order = np.random.default_rng(seed).permutation(len(features))
        held_out = np.empty(len(features))
        for fold in np.array_split(order, FOLDS):
            kept = np.setdiff1d(order, fold)
            part = cls(*_shape(features[kept], labels[kept], shrinkage), np.inf, quantile)
            held_out[fold] = part.score(features[fold])
        rank = min(int(np.ceil((len(held_out) + 1) * quantile)), len(held_out)) - 1
        threshold = float(np.float32(np.sort(held_out)[rank]))
        return cls(*_shape(features, labels, shrinkage), threshold, quantile)

    def score(self, features_ND: np.ndarray) -> np.ndarray:
        """Return the distance to the nearest class mean, float64 [N]; inf for non-finite rows."""
        features = np.asarray(features_ND, dtype=np.float64)
        if features.ndim != 2 or features.shape[1] != self.centre_D.size:
            raise ValueError(
                f"features: expected [N, {self.centre_D.size}], found {features.shape}"
            )
        finite = np.isfinite(features).all(axis=1)
        nearest = np.full(len(features), np.inf)
        white = (features[finite] - self.centre_D) @ self.whitener_DD.astype(np.float64)
        for mean in self.means_CD.astype(np.float64):
            nearest[finite] = np.minimum(nearest[finite], np.square(white - mean).sum(axis=1))
        return np.sqrt(nearest)

    def inside(self, features_ND: np.ndarray) -> np.ndarray:
        """Return whether each row lies in the training domain, bool [N]."""
        return self.score(features_ND) <= self.threshold

    def to_tensors(self) -> dict[str, np.ndarray]:
        """Return the gate as float32 arrays, ready for safetensors."""
        return {
            "domain_centre": self.centre_D,
            "domain_whitener": self.whitener_DD,
            "domain_means": self.means_CD,
            "domain_threshold": np.array([self.threshold, self.quantile], dtype=np.float32),
        }

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, np.ndarray]) -> DomainGate:
        """Rebuild a gate from `to_tensors`; other keys are ignored, torch tensors are welcome."""
        names = ("domain_centre", "domain_whitener", "domain_means", "domain_threshold")
        missing = [name for name in names if name not in tensors]
        if missing:
            raise ValueError(f"domain gate: tensors {missing} are missing")
        centre, whitener, means, threshold = (
            np.asarray(tensors[name], dtype=np.float32) for name in names
        )
        return cls(centre, whitener, means, float(threshold[0]), float(threshold[1]))


def _deviations(features: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return each row minus the mean of its class [N, D], and the class means [C, D]."""
    centre = features.mean(axis=0)
    names, index, count = np.unique(labels, return_inverse=True, return_counts=True)
    means = np.tile(centre, (len(names), 1))
    large = count >= MIN_ROWS
    for i in np.flatnonzero(large):
        means[i] = features[index == i].mean(axis=0)
    return features - means[index], means[large] if large.any() else centre[None]


def _shape(
    features: np.ndarray, labels: np.ndarray, shrinkage: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return centre, whitener and whitened class means."""
    deviation, means = _deviations(features, labels)
    covariance = deviation.T @ deviation / len(deviation)
    mean_variance = np.trace(covariance) / len(covariance)
    covariance = (1.0 - shrinkage) * covariance
    covariance.flat[:: len(covariance) + 1] += shrinkage * mean_variance
    values, vectors = np.linalg.eigh(covariance)
    values = np.maximum(values, max(values.max(), np.finfo(np.float32).tiny) * 1e-6)
    whitener = (vectors / np.sqrt(values)).astype(np.float32)
    centre = features.mean(axis=0).astype(np.float32)
    white_means = (means - centre) @ whitener.astype(np.float64)
    return centre, whitener, white_means.astype(np.float32)


def _check(
    features_ND: np.ndarray, labels_N: np.ndarray, quantile: float
) -> tuple[np.ndarray, np.ndarray]:
    features = np.asarray(features_ND, dtype=np.float64)
    labels = np.asarray(labels_N)
    if features.ndim != 2 or labels.shape != features.shape[:1]:
        raise ValueError(f"expected [N, D] and [N], found {features.shape} and {labels.shape}")
    if len(features) < MIN_ROWS:
        raise ValueError(f"domain gate: expected ≥ {MIN_ROWS} rows, found {len(features)}")
    if not np.isfinite(features).all():
        bad = int((~np.isfinite(features).all(axis=1)).sum())
        raise ValueError(f"domain gate: expected finite features, found {bad} bad rows")
    if not 0 < quantile < 1:
        raise ValueError(f"quantile: expected 0 < quantile < 1, found {quantile}")
    return features, labels
