"""A machine of a training goes away without a word; the rest goes on, with fewer workers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.ray]
ROOT = Path(__file__).resolve().parents[2]

# A Ray of two machines in a process of its own; the second is killed once a checkpoint is written.
DRIVER = """
import json, sys, threading, time
from pathlib import Path

from skyray.runtime import session
session._prepare_environment()
from ray.cluster_utils import Cluster

folder = sys.argv[1]
cluster = Cluster(initialize_head=True, head_node_args={
    "num_cpus": 1, "object_store_memory": 100_000_000, "include_dashboard": False})
second = cluster.add_node(num_cpus=1, object_store_memory=100_000_000)

from skyray.cards import load_card
from skyray.data.simulate import simulate
from skyray.families.base import load_recipe
from skyray.training.train import train

def kill():
    while not list(Path(folder, "home", "runs").glob("*/stages/*.state")):
        time.sleep(0.01)
    cluster.remove_node(second, allow_graceful=False)

recipe = load_recipe("redshift/sdss_coarse_laptop").override(json.loads(sys.argv[2]))
with session.ray_session(cluster.address):
    simulate(load_card("sdss_coarse"), 120, 5, folder + "/data", progress=False)
    killer = threading.Thread(target=kill, daemon=True)
    if sys.argv[3] == "kill":
        killer.start()
    done = train(recipe, folder + "/data", folder + "/bundle", workers=2, min_workers=1,
                 threads=1, max_failures=2, progress=False)
    if sys.argv[3] == "kill":
        killer.join()
rows = [[r["epoch"], r["train_rows"], r["train_loss"]] for r in done.history]
print(json.dumps({"rows": rows, "restarts": done.restarts}))
cluster.shutdown()
"""
CHANGES = (
    "network.widths=[4,8,8,16,16]", "network.dense=16", "network.dropout=0.0", "input.step=5.0",
    "input.pixels=1001", "redshift_classes=[]", "train.epochs=40", "train.batch_size=16",
    "train.checkpoint_every_steps=2", "train.checkpoint_seconds=0", "train.early_stopping=null",
)  # fmt: skip


def run(folder: Path, what: str) -> dict:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "platform"),
                   "SKYRAY_HOME": str(folder / "home")}  # fmt: skip
    environment.pop("RAY_AUTH_TOKEN_PATH", None)
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, str(folder), json.dumps(CHANGES), what],
        env=environment, capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


def test_training_survives_the_loss_of_a_machine(tmp_path):
    found = run(tmp_path, "kill")
    assert found["restarts"] >= 1
    epochs, rows, losses = zip(*found["rows"], strict=True)
    assert list(epochs) == list(range(40))
    assert len(set(rows)) == 1  # every epoch has seen every row once
    assert losses[-1] < losses[0]
