"""How the outliers family is judged: one function for tests, jobs, tracking and figures.

Scores of strangeness are larger for stranger objects. Pure numpy, scipy and scikit-learn.

Shape suffixes: N objects, B batch, L observed pixels, S latents.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy import stats
from scipy.spatial.distance import pdist

from skyray.analysis.classification import roc_auc

# Scores of strangeness; the combined rank is made of those that say different things.
SCORES = ("neg_log_p", "chi2_reduced", "chi2_whitened", "chi2_window", "isolation", "missing")
RANKED = ("neg_log_p", "chi2_whitened", "chi2_window", "missing")
MIN_ROWS = 30
# Above this many rows the mean pair distance is taken from a fixed random subset.
_PAIR_ROWS = 3000


def invariance_ratio(latent_BS: np.ndarray, augmented_BS: np.ndarray) -> float:
    """Return mean pair distance ÷ mean original–augmented distance (21 in the BGS paper).

    Distances are Euclidean in the latents as they are. Rows that are not finite are left out; NaN
    with fewer than two rows, inf where augmentation changes nothing.

    Raises
    ------
    ValueError
        If the shapes differ.
    """
    latent, augmented = (np.asarray(a, np.float64) for a in (latent_BS, augmented_BS))
    if latent.ndim != 2 or latent.shape != augmented.shape:
        raise ValueError(f"expected two arrays [B, S], found {latent.shape}, {augmented.shape}")
    finite = np.isfinite(latent).all(axis=1) & np.isfinite(augmented).all(axis=1)
    latent, augmented = latent[finite], augmented[finite]
    if len(latent) < 2:
        return float("nan")
    own = np.linalg.norm(latent - augmented, axis=1).mean()
    if len(latent) > _PAIR_ROWS:
        chosen = np.random.default_rng(0).choice(len(latent), _PAIR_ROWS, replace=False)
        latent = latent[chosen]
    with np.errstate(divide="ignore"):
        return float(pdist(latent).mean() / own)


def redshift_correlation(
    latent_NS: np.ndarray, z_N: np.ndarray, kind_N: np.ndarray, min_rows: int = MIN_ROWS
) -> dict[str, dict[str, float | int]]:
    """Return how strongly any latent follows redshift among objects of one type.

    Only at fixed type: across types latents should differ, and types differ in redshift. With n
    rows chance alone gives |ρ| ≈ 1/√n per latent, and the largest of six about 2/√n.

    Parameters
    ----------
    latent_NS : float [N, S]
    z_N : float [N]
    kind_N : str [N]
        Type of each object.
    min_rows : int
        Types with fewer finite rows are left out.

    Returns
    -------
    dict
        type → ``spearman`` and ``pearson`` (largest |ρ| over the latents), ``latent`` (the one with
        the largest |Spearman|) and ``rows``. A latent or z that does not vary counts as 0.
    """
    latent, z = np.asarray(latent_NS, np.float64), np.asarray(z_N, np.float64)
    kinds = np.asarray(kind_N).astype(str)
    finite = np.isfinite(latent).all(axis=1) & np.isfinite(z)
    found: dict[str, dict[str, float | int]] = {}
    for kind in np.unique(kinds):
        rows = finite & (kinds == kind)
        if rows.sum() < min_rows:
            continue
        spearman = _correlation(stats.rankdata(latent[rows], axis=0), stats.rankdata(z[rows]))
        found[str(kind)] = {
            "spearman": float(spearman.max()),
            "pearson": float(_correlation(latent[rows], z[rows]).max()),
            "latent": int(spearman.argmax()),
            "rows": int(rows.sum()),
        }
    return found


def _correlation(x_NS: np.ndarray, z_N: np.ndarray) -> np.ndarray:
    """Return |Pearson's ρ| of each column with z, [S]."""
    x, z = x_NS - x_NS.mean(axis=0), z_N - z_N.mean()
    size = np.sqrt((x**2).sum(axis=0) * (z**2).sum())
    return np.abs(np.divide(z @ x, size, out=np.zeros(x.shape[1]), where=size > 0))


def reduced_chi2(
    y_BL: np.ndarray, w_BL: np.ndarray, model_BL: np.ndarray, valid_BL: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return each spectrum's χ² per used pixel, float64 [B], and the number of those pixels.

    Used are pixels with w > 0 where the model is valid; without any, χ² is NaN. The paper's 0.77
    is twice the fidelity loss, which divides by all pixels: with a quarter masked it means ≈ 1.03
    per used pixel. The few latents are not subtracted from the pixels.
    """
    residual = _residual_over_sigma(y_BL, w_BL, model_BL, valid_BL)
    pixels = np.isfinite(residual).sum(axis=1)
    chi2 = np.nansum(residual**2, axis=1)
    return np.divide(chi2, pixels, out=np.full(len(chi2), np.nan), where=pixels > 0), pixels


def residual_over_sigma(
    y_BL: np.ndarray, w_BL: np.ndarray, model_BL: np.ndarray, valid_BL: np.ndarray
) -> np.ndarray:
    """Return (y − model) √w, float32 [B, L]; NaN where w = 0 or the model is not valid."""
    return _residual_over_sigma(y_BL, w_BL, model_BL, valid_BL).astype(np.float32)


def _residual_over_sigma(y_BL, w_BL, model_BL, valid_BL) -> np.ndarray:
    y, w, model = (np.asarray(a, np.float64) for a in (y_BL, w_BL, model_BL))
    used = np.asarray(valid_BL, bool) & (w > 0)
    return np.where(used, (y - model) * np.sqrt(np.where(used, w, 0.0)), np.nan)


def windowed_chi2(
    residual_over_sigma_BL: np.ndarray, width: int, min_share: float = 0.5
) -> tuple[np.ndarray, np.ndarray]:
    """Return the largest local excess of χ² and where it is.

    In every window of `width` pixels, (Σ r² − n) / √(2n) over its n used pixels: for pure noise
    nearly standard normal. A broad, low misfit shows in the whole χ²; a wrong line shows here.

    Parameters
    ----------
    residual_over_sigma_BL : float [B, L]
        (y − model) √w; not finite where unused.
    width : int
        Pixels; near the width of what is looked for. As the maximum over L / width independent
        windows, pure noise reaches about √(2 ln(L / width)) and more (χ² has a heavy tail).
    min_share : float
        Windows with fewer used pixels than this share of `width` do not count.

    Returns
    -------
    excess_B : float64 [B]
        NaN where no window counts.
    centre_B : int64 [B]
        Middle pixel of that window, −1 where none counts.

    Raises
    ------
    ValueError
        If `width` does not fit into the spectrum.
    """
    residual = np.asarray(residual_over_sigma_BL, dtype=np.float64)
    if residual.ndim != 2 or not 1 <= width <= residual.shape[1]:
        raise ValueError(f"expected [B, L] and 1 ≤ width ≤ L, found {residual.shape}, {width}")
    used = np.isfinite(residual)
    # The excess r² − 1 is summed, not r²: the running sum then stays small and exact.
    excess = np.where(used, np.square(np.where(used, residual, 0.0)) - 1.0, 0.0)
    pixels = _window_sum(used.astype(np.float64), width)
    counts = pixels >= max(1.0, min_share * width)
    score = _window_sum(excess, width) / np.sqrt(2 * np.maximum(pixels, 1))
    score = np.where(counts, score, -np.inf)
    start = score.argmax(axis=1)
    best = score[np.arange(len(score)), start]
    any_window = counts.any(axis=1)
    return np.where(any_window, best, np.nan), np.where(any_window, start + width // 2, -1)


def _window_sum(values_BL: np.ndarray, width: int) -> np.ndarray:
    total = np.cumsum(np.pad(values_BL, ((0, 0), (1, 0))), axis=1)
    return total[:, width:] - total[:, :-width]


def combined_rank(
    scores: Mapping[str, np.ndarray], reference: Mapping[str, np.ndarray] | None = None
) -> np.ndarray:
    """Return one score of strangeness from several: how rare the object is by its rarest score.

    Each score becomes the share p of reference objects at least as strange, and the result is the
    largest −log10 p over the scores (Tippett's combination). Different outliers show in different
    scores: a broken arm in χ², a rare type in −log p; sums would dilute the one that sees it.
    The mean of the other scores' −log10 p, times 1e-3, settles ties. No score needs units, a
    distribution or a weight, but a score that sees nothing still costs its share of the top places.

    Parameters
    ----------
    scores : mapping of name → float [N]
        Larger is stranger. NaN counts as not known (p = 1), +inf as the strangest.
    reference : mapping of name → float [M], optional
        The scores of the sample to compare with (for single objects in service); default `scores`.

    Returns
    -------
    float64 [N]
        NaN where no score is known.

    Raises
    ------
    ValueError
        Without scores, with differing lengths, or if `reference` lacks a score or is empty.
    """
    if not scores:
        raise ValueError("combined_rank: expected at least one score, found none")
    lengths = {len(np.asarray(values)) for values in scores.values()}
    if len(lengths) != 1:
        raise ValueError(f"combined_rank: expected scores of one length, found {sorted(lengths)}")
    if reference is not None and set(scores) - set(reference):
        raise ValueError(f"combined_rank: reference lacks {sorted(set(scores) - set(reference))}")
    rarity = np.stack([
        _rarity(np.asarray(values, np.float64),
                None if reference is None else np.asarray(reference[name], np.float64))
        for name, values in scores.items()
    ])  # fmt: skip
    known = np.isfinite(rarity)
    rarity = np.where(known, rarity, 0.0)
    largest = rarity.max(axis=0)
    others = (rarity.sum(axis=0) - largest) / max(len(rarity) - 1, 1)
    return np.where(known.any(axis=0), largest + 1e-3 * others, np.nan)


def _rarity(values: np.ndarray, reference: np.ndarray | None) -> np.ndarray:
    """Return −log10 of the share of the reference at least as large; ties share their middle."""
    sample = values if reference is None else reference
    sample = np.sort(sample[~np.isnan(sample)])
    if not len(sample):
        if reference is not None:
            raise ValueError("combined_rank: expected some known reference scores, found none")
        return np.full(values.shape, np.nan)
    below = np.searchsorted(sample, values, side="left")
    above = len(sample) - np.searchsorted(sample, values, side="right")
    equal = len(sample) - below - above
    if reference is None:  # the object itself is one of the sample: p from 1/(2N)
        share = (above + 0.5 * equal) / len(sample)
    else:
        share = (above + 0.5 * equal + 0.5) / (len(sample) + 1)
    return -np.log10(np.where(np.isnan(values), np.nan, share))


def planted_auc(score_N: np.ndarray, planted_N: np.ndarray) -> dict[str, float | int]:
    """Return the ROC AUC of planted outliers against normal objects, for all and per kind.

    Parameters
    ----------
    score_N : float [N]
        Larger is stranger. Rows with NaN are left out and counted as ``unscored``; infinite scores
        are ranked.
    planted_N : str [N]
        The kind of planted outlier, '' for normal objects.

    Returns
    -------
    dict
        ``all``, each kind (against all normal objects), ``unscored``, ``normal`` and ``planted``
        (row counts). NaN where one side is missing.
    """
    score, planted = np.asarray(score_N, np.float64), np.asarray(planted_N).astype(str)
    known = ~np.isnan(score)
    normal = known & (planted == "")
    found: dict[str, float | int] = {"all": roc_auc(score[known], planted[known] != "")}
    for kind in np.unique(planted[planted != ""]):
        rows = normal | (known & (planted == kind))
        found[str(kind)] = roc_auc(score[rows], planted[rows] != "")
    found["unscored"] = int((~known).sum())
    found["normal"], found["planted"] = int(normal.sum()), int((known & ~normal).sum())
    return found


def evaluate_table(table: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Return the metrics of a table of predictions joined with the truth.

    ``chi2_median`` and ``chi2_mean`` per used pixel, the ``invariance_ratio`` of augmented copies
    (columns ``moved_latent_i``), the largest ``redshift_correlation`` at fixed type, the number of
    objects ``unscored``, and, where outliers were planted, ``planted_auc`` of every score.
    """
    table = with_notes(table)
    scored = table["problem"] == ""
    latent = stacked(table, "latent_")
    planted, kinds = np.asarray(table["planted"], str), table["type"]
    found: dict[str, Any] = {
        "objects": len(scored),
        "unscored": int((~scored).sum()),
        "fidelity_mean": float(np.nanmean(table["fidelity"])),
        "chi2_median": float(np.nanmedian(table["chi2_reduced"])),
        "chi2_mean": float(np.nanmean(table["chi2_reduced"])),
        "neg_log_p_median": float(np.nanmedian(table["neg_log_p"])),
        "in_domain_share": float(np.mean(table["in_domain"])),
    }
    if "moved_latent_0" in table:
        found["invariance_ratio"] = invariance_ratio(latent, stacked(table, "moved_latent_"))
    ordinary = planted == ""
    by_kind = redshift_correlation(latent[ordinary], table["redshift"][ordinary], kinds[ordinary])
    found["redshift_correlation"] = max((k["spearman"] for k in by_kind.values()), default=np.nan)
    found["redshift_correlation_by_type"] = by_kind
    if (planted != "").any():
        names = ("strangeness", *SCORES)
        found["planted_auc"] = {name: planted_auc(table[name], planted) for name in names}
        found["planted_auc_strangeness"] = found["planted_auc"]["strangeness"]["all"]
    return found


def stacked(table: Mapping[str, np.ndarray], prefix: str) -> np.ndarray:
    """Return the columns prefix0, prefix1 … as one array [N, S]."""
    count = sum(name.startswith(prefix) and name[len(prefix) :].isdigit() for name in table)
    return np.stack([table[f"{prefix}{i}"] for i in range(count)], axis=1)


def notes(extra_N: np.ndarray, name: str) -> np.ndarray:
    """Return one entry of the JSON column ``extra``, '' where it is not there, str [N].

    Mock objects carry ``planted`` (kind of planted outlier) and ``mock_type`` there.
    """
    return np.array([str(json.loads(text or "{}").get(name, "")) for text in extra_N])


def with_notes(table: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return planted kinds and types (mock types, else labels) in place of ``extra``."""
    if "extra" not in table:
        return dict(table)
    types = notes(table["extra"], "mock_type")
    found = {name: values for name, values in table.items() if name != "extra"}
    found["planted"] = notes(table["extra"], "planted")
    found["type"] = np.where(types == "", np.asarray(table["label"], str), types)
    return found


def star_galaxy_roc(
    log_p_star_N: np.ndarray, log_p_galaxy_N: np.ndarray, is_star_N: np.ndarray
) -> dict[str, np.ndarray | float | int]:
    """Return the ROC of the decision "star" by ln p(s | star) − ln p(s | galaxy).

    Returns
    -------
    dict
        ``false_positive_rate``, ``true_positive_rate``, ``threshold`` (arrays, stars positive),
        ``auc``, ``accuracy`` of the threshold 0 (equal priors), ``rows``. Rows without a finite
        ratio are left out (``rows`` counts the others).

    Raises
    ------
    ValueError
        If stars or galaxies are missing among the rows left.
    """
    from sklearn.metrics import roc_curve  # takes a second: imported where used

    ratio = np.asarray(log_p_star_N, np.float64) - np.asarray(log_p_galaxy_N, np.float64)
    finite = np.isfinite(ratio)
    ratio, star = ratio[finite], np.asarray(is_star_N, bool)[finite]
    if not star.any() or star.all():
        raise ValueError(f"star_galaxy_roc: expected stars and galaxies, found {star.sum()} stars"
                         f" of {len(star)} rows")  # fmt: skip
    false_positive, true_positive, threshold = roc_curve(star, ratio)
    return {
        "false_positive_rate": false_positive,
        "true_positive_rate": true_positive,
        "threshold": threshold,
        "auc": roc_auc(ratio, star),
        "accuracy": float(((ratio > 0) == star).mean()),
        "rows": len(star),
    }
