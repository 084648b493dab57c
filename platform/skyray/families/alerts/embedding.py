"""What the networks make of alerts: a map of their features, and the outliers they agree on.

Rehemtulla et al., "Pre-training vision models for the classification of alerts", section 5: UMAP
of the penultimate features; an isolation forest on the map of each subset and model; the alerts in
the top 1 % of every model.

Shape suffixes: N alerts, P features, M models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib import rc_context

from skyray.analysis import plots
from skyray.analysis.anomaly import IsolationScore
from skyray.analysis.embedding import umap_2d
from skyray.pages.scatter_map import Points, write_scatter_map

TOP = 0.01
MIN_ROWS = 20


@dataclass(frozen=True)
class Embedding:
    """Maps and anomaly scores of the same alerts under several models.

    Attributes
    ----------
    names : tuple of str
        The models.
    place_MN2 : float32 [M, N, 2]
        UMAP coordinates.
    isolation_MN : float64 [M, N]
        Isolation score within the alert's own subset; NaN in subsets too small to tell.
    outlier_MN : bool [M, N]
        In the top share of its subset.
    """

    names: tuple[str, ...]
    place_MN2: np.ndarray
    isolation_MN: np.ndarray
    outlier_MN: np.ndarray

    @property
    def agreed_N(self) -> np.ndarray:
        """Whether all models call an alert an outlier, bool [N]."""
        return self.outlier_MN.all(axis=0)


def embed(
    features: Mapping[str, np.ndarray], subset_N: np.ndarray, seed: int = 0, top: float = TOP
) -> Embedding:
    """Map alerts and find the outliers of each subset.

    Parameters
    ----------
    features : mapping
        Model → penultimate features [N, P]; P may differ.
    subset_N : str [N]
        ``trues``, ``dims``, ``vars``, ``rejects``, or labels.
    top : float
        Share of each subset that counts as outlying; at least one alert.

    Raises
    ------
    ValueError
        Without models, or where rows do not agree.
    """
    if not features:
        raise ValueError("features: expected those of at least one model, found none")
    subset = np.asarray(subset_N, dtype=str)
    for name, values in features.items():
        if len(values) != len(subset):
            raise ValueError(
                f"features of {name}: expected {len(subset)} rows, found {len(values)}"
            )
    places = [umap_2d(values, seed) for values in features.values()]
    scores = [isolation_by_subset(place, subset, seed) for place in places]
    outliers = [top_of_subsets(score, subset, top) for score in scores]
    return Embedding(tuple(features), np.stack(places), np.stack(scores), np.stack(outliers))


def isolation_by_subset(values_NS: np.ndarray, subset_N: np.ndarray, seed: int = 0) -> np.ndarray:
    """Return isolation-forest scores, one forest a subset; NaN with fewer than 20 rows."""
    found = np.full(len(values_NS), np.nan)
    for name in np.unique(subset_N):
        rows = np.flatnonzero((subset_N == name) & np.isfinite(values_NS).all(axis=1))
        if len(rows) >= MIN_ROWS:
            found[rows] = IsolationScore.fit(values_NS[rows], seed).score(values_NS[rows])
    return found


def top_of_subsets(score_N: np.ndarray, subset_N: np.ndarray, top: float = TOP) -> np.ndarray:
    """Return which alerts are among the highest scores of their subset, bool [N]."""
    found = np.zeros(len(score_N), dtype=bool)
    for name in np.unique(subset_N):
        rows = np.flatnonzero((subset_N == name) & np.isfinite(score_N))
        if len(rows):
            count = max(1, round(top * len(rows)))
            found[rows[np.argsort(-score_N[rows], kind="stable")[:count]]] = True
    return found


def embedding_figure(embedding: Embedding, subset_N: np.ndarray, path: Path) -> Path:
    """Draw the map of every model, coloured by subset, with the agreed outliers marked."""
    subset, names = np.asarray(subset_N, dtype=str), np.unique(subset_N)
    with rc_context({**plots.STYLE, "axes.grid": False}):
        figure, axes = plots.panels(1, len(embedding.names))
        for axis, model, place in zip(axes[0], embedding.names, embedding.place_MN2, strict=True):
            for number, name in enumerate(names):
                x, y = place[subset == name].T
                color = plots.CYCLE[number % len(plots.CYCLE)]
                axis.scatter(x, y, s=5, alpha=0.6, color=color, label=name or "unlabelled", lw=0)
            x, y = place[embedding.agreed_N].T
            axis.scatter(x, y, s=60, facecolor="none", edgecolor=plots.INK, label="agreed outliers")
            axis.set(xticks=[], yticks=[], title=model)
        axes[0, 0].legend(fontsize=7, markerscale=1.5)
        return plots.save(figure, path)


def write_map_page(
    path: Path,
    embedding: Embedding,
    object_id_N: Sequence[str],
    subset_N: Sequence[str],
    thumbnail_NCTT: np.ndarray,
    columns: Mapping[str, np.ndarray] | None = None,
) -> Path:
    """Write the map of every model as a page, the stamps of each alert side by side.

    Parameters
    ----------
    thumbnail_NCTT : uint8 [N, C, T, T]
        Stamps, row 0 below, as `family.thumbnails` makes them; N up to `MAX_POINTS`.
    columns : mapping, optional
        Name → values [N] that are shown beside the stamps.
    """
    rows, _, side, _ = thumbnail_NCTT.shape
    stamps = thumbnail_NCTT[:, :, ::-1].transpose(0, 2, 1, 3).reshape(rows, side, -1)
    told = {"object_id": np.asarray(object_id_N), "subset": np.asarray(subset_N, str)}
    told["subset"] = np.where(told["subset"] == "", "unlabelled", told["subset"])
    points = Points(
        dict(zip(embedding.names, embedding.place_MN2, strict=True)),
        told | {name: np.asarray(values) for name, values in (columns or {}).items()},
        pictures=stamps,
        ringed=embedding.agreed_N,
    )
    return write_scatter_map(
        path, points, "Alerts as the networks see them", color_by="subset",
        ringed_title="outliers all models agree on", note="UMAP of the penultimate features",
    )  # fmt: skip


def agreed_table(
    embedding: Embedding, object_id_N: Sequence[str], subset_N: np.ndarray
) -> list[dict[str, object]]:
    """Return the agreed outliers, the most isolated (mean over models) first."""
    mean = embedding.isolation_MN.mean(axis=0)
    rows = np.flatnonzero(embedding.agreed_N)
    return [
        {"object_id": str(object_id_N[row]), "subset": str(subset_N[row]),
         "isolation": float(mean[row])}
        for row in rows[np.argsort(-mean[rows])]
    ]  # fmt: skip
