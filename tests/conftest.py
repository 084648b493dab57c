"""Shared fixtures: the test data's folder, one Ray for the session, a mock dataset, a bundle."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
# Ray's workers yield to other processes by default: here to the tests that run beside Ray's.
os.environ.setdefault("RAY_worker_niceness", "0")
# Ray Train looks every 2 s whether its workers are done: long for trainings of a second.
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.3")

# The real network's shape, small enough to train in seconds.
TINY = (
    "network.widths=[4,8,8,16,16]",
    "network.dense=16",
    "network.dropout=0.3",
    "input.step=5.0",
    "input.pixels=1001",
    "members=2",
    "train.epochs=2",
    "train.batch_size=32",
    "train_redshift.epochs=2",
    "train_redshift.batch_size=32",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests of the shared Ray, so that `make test` can run the others beside them."""
    for item in items:
        if "ray_cluster" in getattr(item, "fixturenames", ()):
            item.add_marker("ray")


@pytest.fixture(scope="session")
def survey_data() -> Path:
    """Folder of real survey data; tests that need it skip where it is not given."""
    folder = os.environ.get("SKYRAY_TEST_DATA", "")
    if not folder or not Path(folder).is_dir():
        pytest.skip("real survey data: set SKYRAY_TEST_DATA to their folder")
    return Path(folder)


@pytest.fixture(scope="session")
def ray_cluster(tmp_path_factory) -> Iterator[None]:
    """One private Ray with 4 logical CPUs, shared by all tests that need it."""
    os.environ["SKYRAY_HOME"] = str(tmp_path_factory.mktemp("home"))
    from skyray.runtime.session import ray_session

    with ray_session(num_cpus=4):
        yield


@pytest.fixture(scope="session")
def tiny_recipe():
    """A recipe of the redshift family that trains in seconds."""
    from skyray.families.base import load_recipe

    return load_recipe("redshift/sdss_coarse_laptop").override(TINY)


@pytest.fixture(scope="session")
def mock_dataset(ray_cluster, tmp_path_factory) -> str:
    """A dataset of 300 mock SDSS spectra: stars, galaxies, quasars."""
    from skyray.cards import load_card
    from skyray.data.simulate import simulate

    out = str(tmp_path_factory.mktemp("mock") / "dataset")
    simulate(load_card("sdss_coarse"), 300, 5, out)
    return out


@pytest.fixture(scope="session")
def tiny_bundle(mock_dataset, tiny_recipe, tmp_path_factory) -> str:
    """A bundle trained on `mock_dataset` for two epochs: real, and bad at its job."""
    from skyray.training.train import train

    out = str(tmp_path_factory.mktemp("bundle") / "bundle")
    train(tiny_recipe, mock_dataset, out, threads=1, side_by_side=1, progress=False)
    return out


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory):
    """A real MLflow server on loopback with SQLite: started, and up again after each test."""
    from tests.mlflow_server import MlflowServer

    server = MlflowServer(tmp_path_factory.mktemp("mlflow"))
    yield server
    server.kill()
