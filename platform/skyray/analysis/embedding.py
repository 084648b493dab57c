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
        Each latent is first divided by its standard deviation, as in `NearestLatents`.
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
