"""Maps of alerts: planted outliers are found by all models, the page holds what it shows."""

from __future__ import annotations

import base64
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from skyray.families.alerts import embedding as maps

N = 300
SUBSET = np.array(["trues"] * 100 + ["vars"] * 200)


@pytest.fixture(scope="module")
def planted() -> maps.Embedding:
    """Two models whose maps (here: their first two features) both put rows 7 and 150 far off."""
    rng = np.random.default_rng(0)
    features = {}
    for name in ("cnn", "convnext"):
        values = rng.normal(0, 1, (N, 4))
        values[:, 0] += np.where(SUBSET == "trues", 20, 0)
        values[[7, 150], 1] += 12
        features[name] = values
    features["convnext"][200, 1] -= 12  # one model alone
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(maps, "umap_2d", lambda values, seed: values[:, :2].astype(np.float32))
        return maps.embed(features, SUBSET, top=0.01)


def test_outliers_all_models_agree_on(planted):
    found = planted
    assert found.place_MN2.shape == (2, N, 2)
    assert found.agreed_N[[7, 150]].all()
    assert not found.agreed_N[200]
    assert (found.outlier_MN.sum(axis=1) == 3).all()  # 1 % of 100 and of 200
    table = maps.agreed_table(found, [f"alert{i}" for i in range(N)], SUBSET)
    assert {row["object_id"] for row in table} >= {"alert7", "alert150"}
    assert [row["isolation"] for row in table] == sorted(r["isolation"] for r in table)[::-1]


def test_a_whole_subset_far_away_is_no_outlier(planted):
    # one forest for all would call the smaller group strange
    found = planted
    share = found.outlier_MN[:, SUBSET == "trues"].mean()
    assert share == pytest.approx(0.01)


def test_small_subsets_tell_nothing():
    values = np.random.default_rng(1).normal(0, 1, (30, 2))
    subset = np.array(["few"] * 5 + ["many"] * 25)
    score = maps.isolation_by_subset(values, subset)
    assert np.isnan(score[:5]).all()
    assert np.isfinite(score[5:]).all()
    assert maps.top_of_subsets(score, subset).sum() == 1


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="found none"):
        maps.embed({}, SUBSET)
    with pytest.raises(ValueError, match="expected 300 rows, found 4"):
        maps.embed({"a": np.zeros((4, 2))}, SUBSET)


def test_page_holds_points_stamps_and_values(planted, tmp_path):
    stamps = np.zeros((N, 3, 42, 42), np.uint8)
    stamps[7, 1, :10] = 255  # the lowest rows of the template of alert 7
    ids = [f"alert{i}" for i in range(N)]
    path = maps.write_map_page(
        tmp_path / "map.html", planted, ids, SUBSET, stamps, {"magpsf": np.full(N, 18.25)}
    )
    data = json.loads(re.search(r'id="data">(.*?)</script>', path.read_text(), re.S)[1])
    assert data["ids"] == ids
    assert [one["name"] for one in data["maps"]] == list(planted.names)
    assert [column["name"] for column in data["columns"]] == ["subset", "magpsf"]
    assert data["columns"][0]["kinds"] == ["trues", "vars"]
    assert {7, 150} <= set(data["ringed"])
    sheet = Image.open(io.BytesIO(base64.b64decode(data["sheet"].partition(",")[2])))
    pixels = np.asarray(sheet)
    assert pixels.shape == (6 * 42, 50 * 3 * 42)
    tile = pixels[:42, 7 * 126 : 8 * 126]
    assert tile[34:, 42 + 5 : 84 - 5].mean() > 240
    assert tile[:30].max() < 20


def test_figure_is_drawn(planted, tmp_path):
    path = maps.embedding_figure(planted, SUBSET, tmp_path / "map.png")
    assert np.asarray(Image.open(path)).std() > 5
