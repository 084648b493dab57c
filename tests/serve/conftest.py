"""A small real bundle, and the spectrum service running on a free port."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from serve.decode import decode
from tests.request_bodies import JSON
from tests.request_bodies import PIXELS as LENGTH

from skyray.cards import load_card

PIXELS = 3800


def make_spectrum(number: int = 0, pixels: int = PIXELS) -> dict:
    """A JSON spectrum on SDSS's wavelengths: a slope, a broad line and noise."""
    rng = np.random.default_rng(number)
    wavelength = 10 ** (3.58 + 1e-4 * np.arange(pixels))
    line = 4 * np.exp(-0.5 * ((wavelength - 5000 - 20 * number) / 40) ** 2)
    flux = 3 * (wavelength / 5000) ** -rng.uniform(0, 2) + line + rng.normal(size=pixels)
    return {
        "object_id": f"mock-{number}",
        "medium": "vacuum",
        "wavelength": wavelength.tolist(),
        "flux": flux.tolist(),
        "ivar": [1.0] * pixels,
    }


@pytest.fixture(scope="module")
def card():
    return load_card("sdss_dr16")


@pytest.fixture
def spectrum() -> dict:
    """A JSON spectrum on SDSS's wavelengths."""
    wavelength = 10 ** (3.6 + 1e-4 * np.arange(LENGTH))
    return {
        "object_id": "a",
        "medium": "vacuum",
        "wavelength": wavelength.tolist(),
        "flux": np.linspace(1, 2, LENGTH).tolist(),
        "ivar": [4.0] * LENGTH,
    }


@pytest.fixture
def read(card):
    def run(body, kind=JSON, max_records=10, max_bytes=10_000_000):
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return decode(kind, content, card, max_records, max_bytes, "")

    return run


@pytest.fixture(scope="session")
def bundle(tmp_path_factory) -> Path:
    """A bundle as training leaves it, of a small network that was calibrated but hardly trained."""
    import torch

    from skyray.bundles.bundle import write_bundle
    from skyray.cards import load_card
    from skyray.families.base import DataInfo, load_recipe
    from skyray.families.redshift.family import RedshiftFamily

    card = load_card("sdss_coarse")
    info = DataInfo(card.name, card.record, tuple(card.classes), card.coarse, "0" * 12,
                    card.grid.grid())  # fmt: skip
    small = ["network.widths=[2,2,4,4,8,8]", "network.dense=16", "members=2"]
    family = RedshiftFamily(load_recipe("redshift/sdss_coarse_laptop").override(small), info)
    torch.manual_seed(0)
    model = family.build_model().eval()
    inputs = family.transform(_training_rows(card, info.grid.size), training=True)
    calibration, tensors = family.calibrate(family.optimise_for_inference(model), inputs)
    folder = tmp_path_factory.mktemp("bundle")
    write_bundle(str(folder), family, model, calibration, tensors, {"version": "test-1"})
    return folder


def _training_rows(card, pixels: int, rows: int = 90) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    labels = np.array(card.classes, dtype=object)[np.arange(rows) % len(card.classes)]
    return {
        "flux": rng.normal(5, 1, (rows, pixels)).astype(np.float32),
        "ivar": np.ones((rows, pixels), np.float32),
        "mask": np.zeros((rows, pixels), np.uint8),
        "label": labels,
        "redshift": rng.uniform(0, 2, rows),
    }


@pytest.fixture(scope="module")  # no longer: Serve cannot change its address while it runs
def service(ray_cluster, bundle) -> Iterator[str]:
    """The service over HTTP with small limits: 2 MiB bodies, 3 s for a body, short queues."""
    from skyray.inference.serving import load_service, running_service

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    limits = {
        "bundle": str(bundle),
        "max_body_mib": 2,
        "max_records": 40,
        "body_timeout_s": 3,
        "max_in_flight": 6,
        "max_batch_size": 8,
        "max_replicas": 1,
        "max_ongoing": 2,
        "max_queued": 4,
        "cpus_per_replica": 0.5,
    }
    root = Path(__file__).resolve().parents[2]
    config = load_service(root / "serve" / "config.yaml", limits, port=port)
    with running_service(config) as url:
        yield url
