"""cluster.yaml passes Ray's own checks, and says what the platform needs of a cluster."""

from __future__ import annotations

import copy
from pathlib import Path

import jsonschema
import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def cluster() -> dict:
    return yaml.safe_load((ROOT / "cluster.yaml").read_text(encoding="utf-8"))


def test_ray_accepts_the_cluster(cluster):
    validate_config(prepare_config(cluster))


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ((), "max_worker", 3),
        (("available_node_types", "gpu"), "min_worker", 1),
        (("docker",), "images", "x"),
    ],
)
def test_ray_refuses_an_unknown_key(cluster, section, key, value):
    broken = copy.deepcopy(cluster)
    node = broken
    for name in section:
        node = node[name]
    node[key] = value
    with pytest.raises(jsonschema.ValidationError, match=key):
        validate_config(prepare_config(broken))


def test_gpu_workers_grow_and_shrink(cluster):
    gpu = cluster["available_node_types"]["gpu"]
    assert gpu["min_workers"] < gpu["max_workers"] <= cluster["max_workers"]
    assert cluster["head_node_type"] in cluster["available_node_types"]


def test_image_has_the_locked_ray(cluster):
    locked = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    version = next(line.partition("==")[2] for line in locked if line.startswith("ray=="))
    assert f":{version}-py311" in cluster["docker"]["image"]


def test_every_node_knows_home_token_and_sources(cluster):
    for commands in ("head_start_ray_commands", "worker_start_ray_commands"):
        start = " ".join(cluster[commands])
        for word in ("SKYRAY_HOME=s3://", "RAY_AUTH_MODE=token", "/skyray/platform"):
            assert word in start
