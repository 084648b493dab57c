"""Scores come from all rows, figures from a part of very many, and nothing of it is left behind."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from skyray.bundles.bundle import Predictor
from skyray.data.dataset import Dataset, table_to_columns
from skyray.inference import evaluate as module
from skyray.inference.evaluate import evaluate
from skyray.inference.predict import predict_dataset


@pytest.fixture(scope="module")
def scores(tiny_bundle, mock_dataset, tmp_path_factory):
    out = tmp_path_factory.mktemp("evaluation") / "all"
    return out, evaluate(tiny_bundle, mock_dataset, str(out), split=None)


def test_scores_are_the_familys_of_all_rows_at_once(scores, tiny_bundle, mock_dataset):
    predictor = Predictor.from_bundle(tiny_bundle, "cpu")
    family = predictor.family
    names = list(dict.fromkeys([*family.columns(training=True), *family.truth_columns()]))
    columns = table_to_columns(Dataset.open(mock_dataset).to_table(names))
    output = predictor.predict(columns, training=True)
    table = {name: columns[name] for name in family.truth_columns()}
    table |= {f"{n}_pred" if n in table else n: values for n, values in output.items()}
    _alike(scores[1], family.evaluate(table, predictor.calibration))


def _alike(found, expected, where="scores"):
    assert type(found) is type(expected), where
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), where
        for name, value in expected.items():
            _alike(found[name], value, f"{where}.{name}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), where
        for number, value in enumerate(expected):
            _alike(found[number], value, f"{where}[{number}]")
    elif isinstance(expected, float):
        assert math.isclose(found, expected, rel_tol=1e-5, abs_tol=1e-7), where
    else:
        assert found == expected, where


def test_page_figures_and_numbers_are_there_and_predictions_gone(scores):
    out, metrics = scores
    assert json.loads((out / "metrics.json").read_text()) == json.loads(json.dumps(metrics))
    assert {path.name for path in out.iterdir()} == {"metrics.json", "index.html", "figures"}
    assert "chosen at random" not in (out / "index.html").read_text()


def test_a_part_is_drawn_of_very_many_and_all_are_scored(
    scores, tiny_bundle, mock_dataset, tmp_path, monkeypatch
):
    monkeypatch.setattr(module, "_DRAWN_ROWS", 50)
    found = evaluate(tiny_bundle, mock_dataset, str(tmp_path), split=None)
    assert found == scores[1]
    page = (tmp_path / "index.html").read_text()
    assert "50 objects, chosen at random" in page
    assert "300" in page


def test_arrays_limit_the_part_that_is_drawn(tiny_bundle, mock_dataset, tmp_path, monkeypatch):
    dataset = Dataset.open(mock_dataset)
    results = predict_dataset(tiny_bundle, dataset, str(tmp_path), keep=["flux"], training=True)
    monkeypatch.setattr(module, "_DRAWN_BYTES", 1 << 20)
    drawn = module.drawn_rows(results)
    assert 10 < len(drawn["observation_id"]) < 100
    assert drawn["flux"].nbytes < 1 << 20
    rows = dataset.find(drawn["observation_id"].tolist(), ["observation_id", "flux"])
    flux = dict(zip(rows["observation_id"].to_pylist(), table_to_columns(rows)["flux"],
                    strict=True))  # fmt: skip
    for name, values in zip(drawn["observation_id"], drawn["flux"], strict=True):
        np.testing.assert_array_equal(values, flux[name])


def test_a_split_that_is_none_is_refused_before_any_work(tiny_bundle, mock_dataset, tmp_path):
    with pytest.raises(KeyError, match="unknown"):
        evaluate(tiny_bundle, mock_dataset, str(tmp_path), split="nowhere")
    assert not list(Path(tmp_path).iterdir())
