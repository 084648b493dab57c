"""The map of a labelled alert set under one or several models, and the outliers they agree on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from skyray.bundles.bundle import Predictor, read_bundle
from skyray.bundles.named import located
from skyray.config import ConfigError
from skyray.data.dataset import Dataset
from skyray.families.alerts.embedding import (
    Embedding,
    agreed_table,
    embed,
    embedding_figure,
    write_map_page,
)
from skyray.families.base import Columns
from skyray.inference.predict import predict_dataset, row_numbers
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
    workers: int | None = None,
    use_gpu: bool = False,
) -> dict[str, Any]:
    """Write ``embedding.png``, ``map.html`` and ``outliers.json``; Ray must be running.

    Parameters
    ----------
    bundles : sequence of str
        Models of the alerts family; each gets a map of its own.
    limit : int
        At most so many alerts of the split, chosen at random.
    workers : int, optional
        Networks at work at most; default: as many as there are GPUs, or half as many as CPUs.

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
    named = {places.name(bundle): located(bundle) for bundle in bundles}
    for name, bundle in named.items():
        if (family := read_bundle(bundle)["family"]) != "alerts":
            raise ConfigError(f"{name}: expected a bundle of alerts, is {family!r}")
    rows = row_numbers(dataset, split)
    if not len(rows):
        raise ConfigError(f"{data}: split {split!r} holds no alerts")
    rows = np.sort(np.random.default_rng(seed).permutation(rows)[:limit])
    how = {"workers": workers, "use_gpu": use_gpu}
    found = {
        name: _features(bundle, dataset, rows, places.join(out, f"_{name}"), how)
        for name, bundle in named.items()
    }
    told = next(iter(found.values()))
    label = np.asarray(told["label"], dtype=str)
    subset = np.asarray(told.get("subset", label), dtype=str)
    told = {name: told[name] for name in ("object_id", "thumbnail", "label", "magpsf")
            if name in told}  # fmt: skip
    told["subset"] = np.where(subset == "", label, subset)
    told |= {f"score {name}": table["score"] for name, table in found.items()}
    features = {name: table["features"] for name, table in found.items()}
    return _write(embed(features, told["subset"], seed, top), told, out)


def _features(
    bundle: str, dataset: Dataset, rows: np.ndarray, place: str, how: dict[str, Any]
) -> Columns:
    """Return a model's features, scores and what is told of some alerts, in the order of `rows`."""
    family = Predictor.without_network(bundle).family
    results = predict_dataset(
        bundle, dataset, place, keep=["object_id", *family.truth_columns()], rows=rows,
        training=True, detail=True, replace=True, **how,
    )  # fmt: skip
    found = results.take(np.arange(results.rows))
    places.remove(place)
    return found


def _write(embedding: Embedding, told: Columns, out: str) -> dict[str, Any]:
    ids, subset, thumbnail = (told.pop(name) for name in ("object_id", "subset", "thumbnail"))
    outliers = agreed_table(embedding, ids, subset)
    with places.local_folder(out) as folder:
        embedding_figure(embedding, subset, folder / FIGURE)
        write_map_page(folder / PAGE, embedding, ids, subset, thumbnail, told)
        places.write_json(folder / OUTLIERS, outliers)
    return {"alerts": len(ids), "models": list(embedding.names), "outliers": outliers,
            "files": [places.join(out, name) for name in (FIGURE, PAGE, OUTLIERS)]}  # fmt: skip
