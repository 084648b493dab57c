"""Training, batch prediction and HTTP must give the same numbers for the same spectra."""

import json
import socket
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from skyray.bundles.bundle import Predictor
from skyray.cards import load_card
from skyray.data.dataset import Dataset, table_to_columns
from skyray.data.ingest import ingest
from skyray.data.prepared import prepare
from skyray.data.simulate import simulate
from skyray.inference.predict import predict_dataset
from skyray.inference.serving import load_service, running_service

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
OBJECTS = 100
NUMBERS = ("p_STAR", "p_GALAXY", "p_QSO", "redshift", "redshift_err", "coverage")


@pytest.fixture(scope="module")
def files(ray_cluster, tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("parity") / "survey"
    simulate(load_card("sdss_coarse"), OBJECTS, 11, None, as_files=str(folder))
    found = sorted(folder.rglob("spec-*.fits"))
    assert len(found) >= OBJECTS
    return found[:OBJECTS]


@pytest.fixture(scope="module")
def dataset(files, tmp_path_factory) -> Dataset:
    out = str(tmp_path_factory.mktemp("parity-data") / "dataset")
    return ingest(load_card("sdss_coarse"), [str(f) for f in files], out, progress=False)


@pytest.fixture(scope="module")
def batch(tiny_bundle, dataset, tmp_path_factory) -> dict[str, np.ndarray]:
    """Predictions of the batch job, in the order of object_id."""
    out = str(tmp_path_factory.mktemp("predictions") / "table")
    results = predict_dataset(tiny_bundle, dataset, out, keep=["object_id"])
    table = results.columns(results.narrow())
    order = np.argsort(table["object_id"])
    return {name: values[order] for name, values in table.items()}


def test_batch_equals_the_training_transform(tiny_bundle, dataset, batch):
    predictor = Predictor.from_bundle(tiny_bundle)
    prepared = prepare(dataset, predictor.family, progress=False)
    columns = prepared.to_columns()
    row = {name: number for number, name in enumerate(columns["observation_id"])}
    found = table_to_columns(
        dataset.to_table(["observation_id", *predictor.family.columns(training=False)])
    )
    order = np.argsort([row[name] for name in found.pop("observation_id")])
    records = {name: values[order] for name, values in found.items()}
    columns |= predictor.family.answer_inputs(records)
    output = predictor.family.predict(
        predictor.model, columns, predictor.calibration, predictor.tensors
    )
    order = [row[name] for name in batch["observation_id"]]
    assert len(order) == OBJECTS
    assert output["label"][order].tolist() == batch["label"].tolist()
    for name in NUMBERS:
        np.testing.assert_allclose(output[name][order], batch[name], atol=1e-6, err_msg=name)


def test_http_equals_batch(tiny_bundle, files, batch):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = load_service(ROOT / "serve" / "config.yaml", {"bundle": tiny_bundle}, port=port)
    answers = {}
    with running_service(config) as url:
        for file in files:
            request = urllib.request.Request(
                f"{url}/predict?name={file.name}",
                data=file.read_bytes(),
                headers={"Content-Type": "application/fits"},
            )
            with urllib.request.urlopen(request, timeout=60) as response:
                answer = json.load(response)["predictions"][0]
            answers[answer["object_id"]] = answer
    assert sorted(answers) == batch["object_id"].tolist()
    ordered = [answers[name] for name in batch["object_id"]]
    assert [answer["label"] for answer in ordered] == batch["label"].tolist()
    assert {answer["model_version"] for answer in ordered} == set(batch["model_version"])
    np.testing.assert_allclose(
        [answer["redshift"] for answer in ordered], batch["redshift"], atol=1e-6
    )
    np.testing.assert_allclose(
        [answer["redshift_err"] for answer in ordered], batch["redshift_err"], atol=1e-6
    )
    for index, answer in enumerate(ordered):
        for name, value in answer["probabilities"].items():
            assert value == pytest.approx(batch[f"p_{name}"][index], abs=1e-6)


def test_bundle_from_elsewhere_is_scored_without_its_run(
    tiny_bundle, dataset, tmp_path, monkeypatch
):
    """A bundle that somebody sends comes without the tracking store its run is in."""
    from skyray.inference.evaluate import evaluate

    monkeypatch.setenv("SKYRAY_HOME", str(tmp_path / "home"))
    scores = evaluate(tiny_bundle, dataset.uri, str(tmp_path / "scores"), split=None, figures=False)
    assert 0 <= scores["accuracy"] <= 1
    assert (tmp_path / "scores" / "metrics.json").exists()
