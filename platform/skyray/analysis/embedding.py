"""Latent spaces drawn in two dimensions: UMAP (McInnes, Healy & Melville 2018, arXiv:1802.03426).

Neighbours in the picture are mostly neighbours in latent space; distances between groups, and the
size of a group, mean little. Shape suffixes: N objects, S latents or features.
"""

from __future__ import annotations

import numpy as np

MAX_FIT_ROWS = 50_000
MIN_ROWS = 10


def umap_2d(
    latent_NS: np.ndarray,
    seed: int = 0,
    n_neighbors: int = 30,
    min_dist: float = 0.1,
    max_fit_rows: int = MAX_FIT_ROWS,
) -> np.ndarray:
    """Embed latents in a plane; the same arguments give the same picture on one machine.

    The first call of a process takes some 20 s, in which umap compiles itself. Of more than
    `max_fit_rows` objects a random part is embedded and the others are placed among them.

    Parameters
    ----------
    latent_NS : float [N, S]
        Each latent is first divided by its standard deviation.
    seed : int
    n_neighbors : int
        Larger values keep more of the large structure; at most one less than the rows embedded.
    min_dist : float
        0–1; smaller values pack neighbours closer.

    Returns
    -------
    float32 [N, 2]
        NaN for rows that are not finite.

    Raises
    ------
    ValueError
        With fewer than 10 finite rows or fitted rows, or an array that is not two-dimensional.
    """
    latent = np.asarray(latent_NS, dtype=np.float64)
    if latent.ndim != 2:
        raise ValueError(f"umap_2d: expected latents [N, S], found {latent.shape}")
    finite = np.flatnonzero(np.isfinite(latent).all(axis=1))
    rows = min(len(finite), max_fit_rows)
    if rows < MIN_ROWS:
        raise ValueError(f"umap_2d: expected ≥ {MIN_ROWS} finite rows to embed, found {rows}")
    # Imported where used: it takes seconds, and most who import this module draw nothing.
    from umap import UMAP

    used = latent[finite]
    spread = used.std(axis=0)
    used = ((used - used.mean(axis=0)) / np.where(spread > 0, spread, 1.0)).astype(np.float32)
    order = np.random.default_rng(seed).permutation(len(used))
    fitted, placed = np.sort(order[:rows]), np.sort(order[rows:])
    reducer = UMAP(
        n_neighbors=min(n_neighbors, rows - 1),
        min_dist=min_dist,
        random_state=int(seed),
        n_jobs=1,  # more threads would not give the same picture twice
    )
    out = np.full((len(latent), 2), np.nan, dtype=np.float32)
    out[finite[fitted]] = reducer.fit_transform(used[fitted])
    if placed.size:
        out[finite[placed]] = reducer.transform(used[placed])
    return out


def tsne_3d(
    feature_NS: np.ndarray, seed: int = 0, perplexity: float = 30.0, max_rows: int = 1500
) -> tuple[np.ndarray, np.ndarray]:
    """Embed features in space by t-SNE (van der Maaten & Hinton 2008; openTSNE, Barnes-Hut).

    Features are divided by their standard deviation and brought to 50 principal components.

    Parameters
    ----------
    feature_NS : float [N, S]
    max_rows : int
        Of more objects a random part is embedded: in three dimensions t-SNE is slow.

    Returns
    -------
    rows : int64 [M]
        The objects embedded, in their order.
    place : float32 [M, 3]

    Raises
    ------
    ValueError
        With fewer than 10 finite rows, or an array that is not two-dimensional.
    """
    feature = np.asarray(feature_NS, dtype=np.float64)
    if feature.ndim != 2:
        raise ValueError(f"tsne_3d: expected features [N, S], found {feature.shape}")
    finite = np.flatnonzero(np.isfinite(feature).all(axis=1))
    rows = np.sort(np.random.default_rng(seed).permutation(finite)[:max_rows])
    if len(rows) < MIN_ROWS:
        raise ValueError(f"tsne_3d: expected ≥ {MIN_ROWS} finite rows to embed, found {len(rows)}")
    from openTSNE import TSNE
    from sklearn.decomposition import PCA

    used = feature[rows]
    spread = used.std(axis=0)
    used = (used - used.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    parts = min(50, *used.shape)
    used = PCA(parts, random_state=int(seed)).fit_transform(used)
    model = TSNE(
        n_components=3,
        perplexity=min(perplexity, (len(rows) - 1) / 3),
        negative_gradient_method="bh",
        random_state=int(seed),
        n_jobs=1,  # more threads would not give the same picture twice
    )
    return rows, np.asarray(model.fit(used), dtype=np.float32)
