"""Mock alerts → packets → dataset → training → scores, catalogue and map, through the engine."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from skyray.cards import load_card
from skyray.data.dataset import Dataset
from skyray.data.ingest import ingest
from skyray.data.simulate import simulate
from skyray.families.alerts import embedding
from skyray.families.base import load_recipe
from skyray.inference.evaluate import evaluate
from skyray.inference.predict import predict
from skyray.training.lone import train_alone
from skyray.transforms.alerts import FEATURES
from skyray.workflows.alerts import map_alerts

CHANGES = ("network.architecture=test_resnet", "crop=31", "train.epochs=1", "train.batch_size=32",
           "network.head=[8]")  # fmt: skip


@pytest.fixture(scope="module")
def packets(ray_cluster, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("packets")
    simulate(load_card("ztf_bts"), 180, 2, as_files=folder, progress=False)
    return folder


@pytest.fixture(scope="module")
def dataset(packets, tmp_path_factory) -> str:
    out = str(tmp_path_factory.mktemp("alerts") / "dataset")
    ingest(load_card("ztf_bts"), [str(packets)], out, progress=False)
    return out


@pytest.fixture(scope="module")
def bundle(dataset, tmp_path_factory) -> str:
    out = str(tmp_path_factory.mktemp("bundle") / "bundle")
    recipe = load_recipe("alerts/ztf_laptop_multimodal").override(CHANGES)
    train_alone(recipe, dataset, f"{out}-run", out=out)
    return out


def test_dataset_of_packets_is_whole(packets, dataset):
    found = Dataset.open(dataset)
    assert found.manifest.rows_written == len(list(packets.glob("*.avro"))) == 180
    assert found.info().features == FEATURES
    splits: dict[str, set[str]] = {}
    for table in found.iter_tables(["object_key", "split"], None):
        for key, split in zip(
            *(table[n].to_pylist() for n in ("object_key", "split")), strict=True
        ):
            splits.setdefault(key, set()).add(split)
    assert all(len(found) == 1 for found in splits.values())  # no source in two splits


def test_scores_figures_catalogue_and_map(packets, dataset, bundle, tmp_path, monkeypatch):
    metrics = evaluate(bundle, dataset, str(tmp_path / "scores"), split="train")
    assert 0 <= metrics["auc"] <= 1
    assert {"bts_p1", "prod_p2"} <= set(metrics["policies"])
    assert set(metrics["by_subset"]) >= {"trues"}
    names = {path.name for path in (tmp_path / "scores" / "figures").glob("*.png")}
    assert {"roc.png", "policies.png", "worst_mistakes.png", "training_losses.png"} <= names
    some = sorted(packets.glob("*.avro"))[:5]
    result = predict(bundle, [str(path) for path in some], str(tmp_path / "cat"), progress=False)
    assert (result.rows, result.quarantined) == (5, 0)
    table = pq.read_table(next(f for f in result.files if f.endswith(".parquet")))
    assert {"score", "probability", "in_domain", "model_version"} <= set(table.column_names)
    # UMAP takes 20 s to start; its own tests are elsewhere.
    monkeypatch.setattr(embedding, "umap_2d", lambda values, seed: values[:, :2])
    made = map_alerts([bundle], dataset, str(tmp_path / "map"), split="train", top=0.02)
    assert made["alerts"] > 100
    assert made["outliers"]
    assert json.loads((tmp_path / "map" / "outliers.json").read_text()) == made["outliers"]
    assert np.isfinite([row["isolation"] for row in made["outliers"]]).all()
    assert (tmp_path / "map" / "map.html").stat().st_size > 100_000
