"""The map of a labelled alert set under one or several models, and the outliers they agree on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from skyray.bundles.bundle import Predictor
from skyray.config import ConfigError
from skyray.data.dataset import Dataset, table_to_columns
from skyray.families.alerts.embedding import (
    Embedding,
    agreed_table,
    embed,
    embedding_figure,
    write_map_page,
)
from skyray.families.alerts.family import thumbnails
from skyray.pages.scatter_map import MAX_POINTS
from skyray.runtime import places

FIGURE, PAGE, OUTLIERS = "embedding.png", "map.html", "outliers.json"


def map_alerts(
    bundles: Sequence[str],
    data: str,
    out: str,
    *,
    split: str | None = "test",
    seed: int = 0,
    top: float = 0.01,
    limit: int = MAX_POINTS,
) -> dict[str, Any]:
    """Write ``embedding.png``, ``map.html`` and ``outliers.json``; runs in this process.

    Parameters
    ----------
    bundles : sequence of str
        Models of the alerts family; each gets a map of its own.
    limit : int
        At most so many alerts, the first of the split.

    Returns
    -------
    dict
        ``alerts``, ``models``, the ``outliers`` all models agree on, and the ``files``.

    Raises
    ------
    ConfigError
        If a bundle is not of the alerts family, or the split is empty.
    """
    dataset = Dataset.open(data)
    predictors = {bundle.rstrip("/").rpartition("/")[2]: Predictor.from_bundle(bundle)
                  for bundle in bundles}  # fmt: skip
    for name, predictor in predictors.items():
        if predictor.family.name != "alerts":
            raise ConfigError(f"{name}: expected a bundle of alerts, is {predictor.family.name!r}")
    features, told = _collected(dataset, predictors, split, limit)
    if not told:
        raise ConfigError(f"{data}: split {split!r} holds no alerts")
    return _write(embed(features, told["subset"], seed, top), told, Path(out))


def _collected(
    dataset: Dataset, predictors: dict[str, Predictor], split: str | None, limit: int
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return the features of every model, and what the page tells of the alerts."""
    features: dict[str, list[np.ndarray]] = {name: [] for name in predictors}
    told: dict[str, list[np.ndarray]] = {}
    family = next(iter(predictors.values())).family
    rows = 0
    for columns in _batches(dataset, list(predictors.values()), split):
        for name, predictor in predictors.items():
            output = predictor.predict(columns, detail=True)
            features[name].append(output["features"])
            told.setdefault(f"score {name}", []).append(output["score"])
        known = family.scoring_table(columns)
        label = np.asarray(columns["label"], dtype=str)
        subset = np.asarray(known.get("subset", label), dtype=str)
        known["subset"] = np.where(subset == "", label, subset)
        known["thumbnail"] = thumbnails(family.transform(columns, training=False)["image"])
        for name in ("object_id", "subset", "thumbnail", "label", "magpsf"):
            if name in known:
                told.setdefault(name, []).append(np.asarray(known[name]))
        rows += len(label)
        if rows >= limit:
            break
    return _joined(features, limit) if rows else {}, _joined(told, limit)


def _joined(parts: dict[str, list[np.ndarray]], limit: int) -> dict[str, np.ndarray]:
    return {name: np.concatenate(values)[:limit] for name, values in parts.items()}


def _batches(dataset: Dataset, predictors: Sequence[Predictor], split: str | None):
    names = ["object_id", "label"]
    for predictor in predictors:
        names += [*predictor.family.columns(training=False), *predictor.family.truth_columns()]
    for table in dataset.iter_tables(list(dict.fromkeys(names)), split):
        yield table_to_columns(table)


def _write(embedding: Embedding, told: dict[str, np.ndarray], folder: Path) -> dict[str, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    ids, subset, thumbnail = (told.pop(name) for name in ("object_id", "subset", "thumbnail"))
    outliers = agreed_table(embedding, ids, subset)
    places.write_json(str(folder / OUTLIERS), outliers)
    embedding_figure(embedding, subset, folder / FIGURE)
    write_map_page(folder / PAGE, embedding, ids, subset, thumbnail, told)
    return {"alerts": len(ids), "models": list(embedding.names), "outliers": outliers,
            "files": [str(folder / name) for name in (FIGURE, PAGE, OUTLIERS)]}  # fmt: skip
