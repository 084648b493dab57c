"""Shared fixtures: the test data's folder and one Ray for the whole session."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")


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
    from skyray.engine.session import ray_session

    with ray_session(num_cpus=4):
        yield
