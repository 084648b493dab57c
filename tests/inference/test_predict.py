"""Batch prediction: operators of their own, numbers alone on the driver, no row lost or double."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
from astropy.table import Table
from tests.object_store import object_store

from skyray.bundles.bundle import Predictor, bundle_digest, read_bundle
from skyray.data.dataset import Dataset, table_to_columns
from skyray.inference import pipeline
from skyray.inference import results as results_module
from skyray.inference.predict import predict, predict_dataset, row_numbers
from skyray.inference.results import OtherResults
from skyray.runtime import places

SMALL_PIECES = 37
SCRIPT = """
import sys
from skyray.inference import results
from skyray.inference.predict import predict
from skyray.runtime.session import ray_session
results._LEAST = results._MOST = 4
with ray_session("local", num_cpus=4):
    print(predict(sys.argv[1], [sys.argv[2]], sys.argv[3], progress=False).rows)
"""


@pytest.fixture
def small_pieces(monkeypatch):
    monkeypatch.setattr(results_module, "_MOST", SMALL_PIECES)


def catalogue(out: str) -> dict[str, np.ndarray]:
    return pq.read_table(f"{out}/catalogue").to_pydict()


@pytest.fixture(scope="module")
def undisturbed(tiny_bundle, mock_dataset, tmp_path_factory) -> str:
    out = str(tmp_path_factory.mktemp("undisturbed") / "out")
    result = predict(tiny_bundle, [mock_dataset], out, progress=False)
    assert (result.rows, result.quarantined, result.note) == (300, 0, "")
    return out


def test_catalogue_holds_the_predictors_answers_in_the_datasets_order(
    undisturbed, tiny_bundle, mock_dataset
):
    found = catalogue(undisturbed)
    predictor = Predictor.from_bundle(tiny_bundle, "cpu")
    rows = Dataset.open(mock_dataset).to_table(
        [*predictor.family.columns(training=False), "observation_id", "ra", "source"]
    )
    output = predictor.predict(table_to_columns(rows))
    for name in ("observation_id", "ra", "source"):
        assert found[name] == rows[name].to_pylist()
    assert found["label"] == output["label"].tolist()
    for name in ("probability", "redshift", "redshift_err", "p_QSO", "domain_distance"):
        np.testing.assert_allclose(found[name], output[name], rtol=1e-5, atol=1e-6, err_msg=name)
    assert set(found["model_version"]) == {predictor.version}
    fits = Table.read(f"{undisturbed}/catalogue.fits")
    assert [str(name).strip() for name in fits["observation_id"]] == found["observation_id"]


def test_arrays_stand_in_a_table_beside_the_catalogue(
    undisturbed, tiny_bundle, mock_dataset, tmp_path
):
    out = str(tmp_path / "out")
    done = predict(tiny_bundle, [mock_dataset], out, arrays=True, progress=False)
    assert done.files[-1] == f"{out}/arrays.fits"
    plain, beside = catalogue(undisturbed), Table.read(f"{out}/arrays.fits")
    assert list(beside["observation_id"]) == plain["observation_id"]
    assert beside["redshift_pdf"].shape == (300, 2080)
    np.testing.assert_allclose(beside["redshift_pdf"].sum(axis=1), 1.0, atol=1e-4)
    assert "redshift_pdf" not in catalogue(out)
    again = predict(tiny_bundle, [mock_dataset], out, arrays=True, progress=False)
    assert again.files == done.files


def test_network_has_an_operator_of_its_own_and_numbers_alone_reach_the_driver(
    tiny_bundle, mock_dataset, tmp_path, small_pieces
):
    dataset = Dataset.open(mock_dataset)
    streams, arrived = [], []
    made = pipeline.stream

    def watched(*arguments):
        streams.append(made(*arguments))
        return streams[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "stream", watched)
        results = predict_dataset(tiny_bundle, dataset, str(tmp_path / "r"), keep=["flux", "label"])
    (stream,) = streams
    operators = [line.split(":")[0].split(" ", 2)[2] for line in stream.stats().splitlines()
                 if line.startswith("Operator ")]  # fmt: skip
    assert "MapBatches(Network)" in operators  # not joined with the steps before or after it
    before, after = (operators[operators.index("MapBatches(Network)") + step] for step in (-1, 1))
    assert before.endswith("MapBatches(Job.transform)")
    assert "MapBatches(Job.finish)" in after
    assert after.endswith("MapBatches(Job.write)")
    job, rows = _job(tiny_bundle, dataset, str(tmp_path / "again"))
    for batch in made(job, rows, job.results.missing(), 1, False).iter_batches(batch_size=None):
        arrived.append(sum(values.nbytes for values in batch.values()))
        assert set(batch) == {"piece", "rows"}
    assert sum(arrived) <= 64 * results.count
    assert results.read(0, ["flux"])["flux"].nbytes > 1000 * sum(arrived)  # what did not come


def _job(bundle: str, dataset: Dataset, out: str) -> tuple[pipeline.Job, np.ndarray]:
    rows = row_numbers(dataset, None)
    results = results_module.Results.claim(out, {}, len(rows), SMALL_PIECES)
    job = pipeline.Job(
        bundle, bundle_digest(read_bundle(bundle)), dataset.uri, dataset.version,
        dataset.manifest.fingerprint, ("flux",), False, False, results,
    )  # fmt: skip
    return job, rows


def test_a_split_or_some_rows_alone_are_predicted(
    tiny_bundle, mock_dataset, tmp_path, small_pieces
):
    dataset = Dataset.open(mock_dataset)
    test = predict_dataset(tiny_bundle, dataset, str(tmp_path / "a"), keep=["split"], split="test")
    found = test.columns(["observation_id", "split", "label"])
    assert set(found["split"]) == {"test"}
    assert len(found["split"]) == dataset.count("test")
    rows = np.array([200, 3, 77])
    some = predict_dataset(tiny_bundle, dataset, str(tmp_path / "b"), keep=[], rows=rows)
    assert some.columns(["observation_id"])["observation_id"].tolist() == (
        dataset.take(rows, ["observation_id"])["observation_id"].to_pylist()
    )


def test_finished_work_is_not_done_again_and_other_work_refused(
    undisturbed, tiny_bundle, mock_dataset, tmp_path
):
    part = Path(undisturbed, "catalogue", "part-00000.parquet")
    before = part.stat().st_mtime_ns
    assert predict(tiny_bundle, [mock_dataset], undisturbed, progress=False).rows == 300
    assert part.stat().st_mtime_ns == before
    other = str(tmp_path / "bundle")
    shutil.copytree(tiny_bundle, other)
    content = places.read_json(f"{other}/bundle.json")
    places.write_json(f"{other}/bundle.json", {**content, "version": "another"})
    with pytest.raises(OtherResults, match="bundle: expected another, found"):
        predict(other, [mock_dataset], undisturbed, progress=False)
    elsewhere = str(tmp_path / "dataset")
    shutil.copytree(mock_dataset, elsewhere)
    with pytest.raises(OtherResults, match=r"dataset: expected .*, found"):
        predict(tiny_bundle, [elsewhere], undisturbed, progress=False)
    assert part.stat().st_mtime_ns == before


@pytest.mark.slow
def test_a_driver_killed_half_way_ends_as_if_it_had_not_been(
    undisturbed, tiny_bundle, mock_dataset, tmp_path
):
    out = tmp_path / "killed"
    command = [sys.executable, "-c", SCRIPT, tiny_bundle, mock_dataset, str(out)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    child = subprocess.Popen(command, env=environment)
    pieces = out / "catalogue" / "_pieces"
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and child.poll() is None:
        if pieces.exists() and len(list(pieces.glob("piece-*.parquet"))) >= 5:
            break
        time.sleep(0.002)
    family = psutil.Process(child.pid).children(recursive=True)
    child.send_signal(signal.SIGKILL)  # the driver alone: Ray has to notice by itself
    child.wait()
    _, alive = psutil.wait_procs(family, timeout=60)
    for process in alive:
        process.kill()
    assert not (out / "catalogue" / "part-00000.parquet").exists()
    done = {path.name: path.stat().st_mtime_ns for path in pieces.glob("piece-*.parquet")}
    assert 5 <= len(done) < 75
    kept = tmp_path / "kept"
    shutil.copytree(out / "catalogue", kept)
    again = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    assert again.stdout.split()[-1] == "300"
    found, expected = catalogue(str(out)), catalogue(undisturbed)
    assert sorted(found["observation_id"]) == sorted(set(expected["observation_id"]))
    assert found["observation_id"] == expected["observation_id"]
    assert found["label"] == expected["label"]
    np.testing.assert_allclose(found["redshift"], expected["redshift"], rtol=1e-5, atol=1e-6)
    assert not pieces.exists()  # joined to parts


def test_pieces_that_are_there_are_not_written_again(
    tiny_bundle, mock_dataset, tmp_path, small_pieces
):
    dataset, out = Dataset.open(mock_dataset), str(tmp_path / "r")
    results = predict_dataset(tiny_bundle, dataset, out, keep=[])
    whole = results.columns(["observation_id"])["observation_id"].tolist()
    gone = Path(results.piece(3))
    gone.unlink()
    before = {n: Path(results.piece(n)).stat().st_mtime_ns for n in range(results.count) if n != 3}
    predict_dataset(tiny_bundle, dataset, out, keep=[])
    after = {n: Path(results.piece(n)).stat().st_mtime_ns for n in range(results.count)}
    assert before == {n: when for n, when in after.items() if n != 3}
    assert results.columns(["observation_id"])["observation_id"].tolist() == whole


@pytest.mark.slow
def test_results_go_to_an_object_store_that_fails_now_and_then(
    undisturbed, tiny_bundle, mock_dataset, tmp_path
):
    with object_store(20) as store:
        out = f"{store.uri}/results"
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **store.environment}
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, tiny_bundle, mock_dataset, out], env=environment,
            cwd=tmp_path, check=False, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        assert store.proxy.made.total() > 3
        with places.read_stream(f"{out}/catalogue/part-00000.parquet") as stream:
            found = pq.read_table(stream).to_pydict()
        names = {places.name(file.uri) for file in places.walk(out)}
    assert names == {"_about.json", "part-00000.parquet", "catalogue.fits"}
    assert found["observation_id"] == catalogue(undisturbed)["observation_id"]
    assert not list(tmp_path.glob("*"))  # no local folder named `s3:`
