"""Scores of morphology against scikit-learn and hand-made tables; figures and the clusters page."""

import json
import re

import numpy as np
import pytest
from sklearn import metrics as reference

from skyray.analysis.embedding import tsne_3d
from skyray.families.morphology import figures, metrics

CLASSES = ("elliptical", "spiral")


def table(rows: int = 400, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth = rng.random(rows) < 0.45
    logit = np.where(truth, 1.2, -1.2) + rng.normal(size=rows) * 1.5
    p = 1 / (1 + np.exp(-logit))
    names = np.array(CLASSES, dtype=object)
    label = names[truth.astype(int)]
    votes = np.clip(rng.normal(0.85, 0.15, rows), 0.5, 1.0)
    extra = [
        json.dumps({"P_CS_DEBIASED": v if t else 1 - v, "P_EL_DEBIASED": 1 - v if t else v})
        for t, v in zip(truth, votes, strict=True)
    ]
    label[:7] = ""
    features = rng.normal(size=(rows, 12)) + np.where(truth, 2.0, 0.0)[:, None]
    return {
        "object_id": np.array([f"o{n}" for n in range(rows)], dtype=object),
        "label": label,
        "label_pred": names[(p > 0.5).astype(int)],
        "p_spiral": p.astype(np.float32),
        "p_elliptical": (1 - p).astype(np.float32),
        "probability": np.maximum(p, 1 - p).astype(np.float32),
        "in_domain": np.ones(rows, bool),
        "extra": np.array(extra, dtype=object),
        "embedding": features.astype(np.float32),
        "thumbnail": rng.integers(0, 256, (rows, 48, 48, 3), dtype=np.uint8),
    }


def test_scores_agree_with_scikit_learn():
    rows = table()
    found = metrics.evaluate_table(rows, CLASSES, "spiral")
    kept = {k: v[7:] for k, v in rows.items()}
    truth, called = kept["label"] == "spiral", kept["label_pred"] == "spiral"
    assert found["objects"] == 393
    expected = {
        "accuracy": reference.accuracy_score(truth, called),
        "precision": reference.precision_score(truth, called),
        "recall": reference.recall_score(truth, called),
        "f1": reference.f1_score(truth, called),
        "fpr": 1 - reference.recall_score(~truth, ~called),
        "auc": reference.roc_auc_score(truth, kept["p_spiral"]),
    }
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-9), name
    half = np.argsort(-kept["probability"], kind="stable")[:196]
    assert found["half_accuracy"] == pytest.approx(np.mean(truth[half] == called[half]))
    assert found["half_accuracy"] > found["accuracy"]
    json.dumps(found)


def test_published_table_from_its_own_counts():
    """HP DES of Table II: 516 spirals, 550 ellipticals, recall .995, precision .998."""
    truth = np.array([True] * 516 + [False] * 550)
    called = truth.copy()
    called[:3] = False  # .9942 of the spirals found
    called[516] = True
    found = metrics.binary_scores(truth, called.astype(float), called)
    assert found["precision"] == pytest.approx(0.998, abs=5e-4)
    assert found["recall"] == pytest.approx(0.995, abs=1e-3)
    assert found["fpr"] == pytest.approx(0.002, abs=5e-4)
    assert np.mean(truth == called) == pytest.approx(0.9962, abs=5e-5)


def test_confidence_curve_ends_at_the_whole_set():
    rows = metrics.labelled(table(), CLASSES)
    curve = metrics.confidence_curve(rows, CLASSES, "spiral")
    found = metrics.evaluate_table(rows, CLASSES, "spiral")
    assert curve["share"][-1] == 1
    assert curve["accuracy"][-1] == pytest.approx(found["accuracy"])
    assert curve["f1"][-1] == pytest.approx(found["f1"])
    middle = int(np.argmin(np.abs(np.array(curve["share"]) - 0.5)))
    assert curve["accuracy"][middle] == pytest.approx(found["half_accuracy"], abs=0.02)


def test_votes_give_the_safe_set_and_bins():
    rows = table()
    found = metrics.evaluate_table(rows, CLASSES, "spiral")
    shares = metrics.vote_shares(metrics.labelled(rows, CLASSES))
    spiral = rows["label"][7:] == "spiral"
    safe = np.where(spiral, shares >= 0.985, shares >= 0.926)
    assert found["hp_objects"] == safe.sum()
    right = (rows["label"] == rows["label_pred"])[7:]
    assert found["hp_accuracy"] == pytest.approx(right[safe].mean())
    assert sum(found["votes"]["rows"]) == 393
    bare = {k: v for k, v in rows.items() if k != "extra"}
    assert "votes" not in metrics.evaluate_table(bare, CLASSES, "spiral")


def test_cluster_agreement_tells_apart_from_mixed():
    rng = np.random.default_rng(0)
    labels = np.array(["a", "b"] * 100)
    mixed = rng.normal(size=(200, 5))
    apart = mixed + np.where(labels == "a", 6.0, 0.0)[:, None]
    scaled = apart / apart.std(axis=0)
    good, bad = (metrics.cluster_agreement(x, labels) for x in (apart, mixed))
    assert good["silhouette"] == pytest.approx(reference.silhouette_score(scaled, labels))
    assert good["knn_accuracy"] == 1.0
    assert bad["knn_accuracy"] < 0.65
    assert abs(bad["silhouette"]) < 0.05


def test_knn_does_not_count_the_object_itself():
    labels = np.array(["a", "b"] * 6)
    alike = np.arange(12.0)[:, None] // 2  # its twin is of the other class
    assert metrics.cluster_agreement(alike, labels)["knn_accuracy"] < 0.6


def test_table_without_labels():
    rows = table()
    rows["label"][:] = ""
    assert metrics.evaluate_table(rows, CLASSES, "spiral") == {"objects": 0}


def test_every_figure_is_written(tmp_path, monkeypatch):
    rows = table(120)
    monkeypatch.setattr(figures, "umap_2d", lambda x: x[:, :2])  # umap compiles for 20 s
    found = metrics.evaluate_table(rows, CLASSES, "spiral")
    paths = figures.write_figures(rows, found, tmp_path, CLASSES, "spiral")
    names = {path.stem for path in paths}
    assert names == {
        "confusion", "roc", "confidence", "reliability", "votes", "mistakes", "clusters"
    }  # fmt: skip
    assert all(path.stat().st_size > 3000 for path in paths)
    page = (tmp_path / "clusters.html").read_text()
    data = json.loads(re.search(r'id="data">(.*?)</script>', page, re.S)[1])
    assert len(data["ids"]) == 113
    assert len(data["ringed"]) == round(113 * (1 - found["accuracy"]))
    assert data["maps"][0]["dimensions"] == 3
    assert data["sheet"].startswith("data:image/jpeg;base64,")
    assert "http" not in page.replace("http-equiv", "")


def test_tsne_keeps_clusters_apart_and_repeats_itself():
    rng = np.random.default_rng(1)
    labels = np.repeat([0, 1], 60)
    features = rng.normal(size=(120, 30)) + 4.0 * labels[:, None]
    features[3, 2] = np.nan
    rows, place = tsne_3d(features, seed=2, max_rows=80)
    assert place.shape == (80, 3)
    assert 3 not in rows
    assert reference.silhouette_score(place, labels[rows]) > 0.4
    np.testing.assert_array_equal(place, tsne_3d(features, seed=2, max_rows=80)[1])
