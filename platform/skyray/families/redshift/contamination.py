"""The contamination test of GaSNet-II, Appendix A: train on partly wrong labels, compare scores.

Published with 5 % / 10 %: accuracy −3.3 / −7.7 points over AGN, starburst and star-forming
galaxies, good fraction −2 / −3.3 points.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np


def contaminate_labels(
    label_N: np.ndarray,
    fraction: float,
    among: Sequence[str],
    seed: int = 0,
    mode: Literal["corrected", "as_published"] = "corrected",
) -> np.ndarray:
    """Return labels of which a random `fraction` of every class of `among` is wrong, str [N].

    Other classes keep their labels. Apply it to the training split only.

    Parameters
    ----------
    fraction : float
        Rows picked in each class, rounded to the nearest whole number.
    mode : str
        ``corrected``: every picked row gets a label of another class of `among`, each as likely.
        ``as_published`` ("randomly selected and shuffled labels"): the labels of all picked rows
        are shuffled among them, so that about 1/len(among) of them stay right by chance.
    """
    if not 0 <= fraction <= 1:
        raise ValueError(f"fraction: expected 0 … 1, found {fraction}")
    labels = np.array(label_N, dtype=str)
    if len(set(among)) < 2:
        raise ValueError(f"among: expected at least two classes, found {list(among)}")
    rng = np.random.default_rng(seed)
    picked = []
    for name in among:
        rows = np.flatnonzero(labels == name)
        picked.append(rng.permutation(rows)[: round(fraction * len(rows))])
    chosen = np.concatenate(picked)
    if mode == "as_published":
        labels[chosen] = rng.permutation(labels[chosen])
        return labels
    own = np.concatenate([np.full(len(rows), i) for i, rows in enumerate(picked)])
    step = rng.integers(1, len(among), size=len(own))
    labels = labels.astype(f"<U{max(map(len, [*among, *labels]))}")
    labels[chosen] = np.asarray(among)[(own + step) % len(among)]
    return labels


def contamination_effect(
    clean: Mapping[str, Any], contaminated: Mapping[str, Any], among: Sequence[str]
) -> dict[str, float]:
    """Return the change, in percentage points, from one `evaluate_table` result to another.

    ``accuracy``: mean recall over `among`; ``good_fraction``: mean over its extragalactic classes
    with true-class routing, as published, NaN without any. Negative = contamination made it worse.
    """

    def recall(metrics: Mapping[str, Any]) -> float:
        return float(np.mean([metrics["classification"]["per_class"][c]["recall"] for c in among]))

    def good(metrics: Mapping[str, Any]) -> float:
        per_class = metrics["redshift"]["true_class"]["per_class"]
        found = [per_class[c]["good_fraction"] for c in among if c in per_class]
        return float(np.mean(found)) if found else float("nan")

    return {
        "accuracy": 100.0 * (recall(contaminated) - recall(clean)),
        "good_fraction": 100.0 * (good(contaminated) - good(clean)),
    }
