"""A machine of a training goes away without a word; the rest goes on, with fewer workers."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from skyray.data.dataset import Dataset
from skyray.data.prepared import prepare
from skyray.families.base import load_family
from skyray.runtime import places

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
SECONDS = 420  # it takes one minute, and more on a busy machine; then it is ended

# A Ray of two machines in a process of its own; the second is killed once a checkpoint is written.
DRIVER = """
import json, os, sys, threading, time
from pathlib import Path

from skyray.families.redshift.recipes import RedshiftRecipe
from skyray.runtime import places, session

session._prepare_environment()
from ray.cluster_utils import Cluster

recipe, data, out = sys.argv[1:]
machine = {"num_cpus": 1, "object_store_memory": 100_000_000}
cluster = Cluster(initialize_head=True, head_node_args={**machine, "include_dashboard": False})
second = cluster.add_node(**machine)
def states():
    return set(Path(places.home(), "runs").glob("*/stages/*.state"))

before = states()

def kill():
    while not states() - before:
        time.sleep(0.01)
    cluster.remove_node(second, allow_graceful=False)

with session.ray_session(cluster.address):
    from skyray.training.train import train

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    done = train(RedshiftRecipe.load(json.loads(recipe)), data, out, workers=2, min_workers=1,
                 threads=1, max_failures=2, progress=False)
    killer.join(10)
Path(out, "told.json").write_text(json.dumps({"history": done.history, "restarts": done.restarts}))
os._exit(0)
"""


def end(leader: int) -> None:
    """End all processes of a session: those of Ray outlive the one that began them."""
    for pid in psutil.pids():
        with contextlib.suppress(OSError):
            if os.getsid(pid) == leader:
                os.kill(pid, signal.SIGKILL)


def test_training_survives_the_loss_of_a_machine(mock_dataset, tiny_recipe, tmp_path):
    recipe = tiny_recipe.override([
        "redshift_classes=[]", "network.dropout=0.0", "train.epochs=16", "train.batch_size=16",
        "train.checkpoint_every_steps=10", "train.early_stopping=null",
    ])  # fmt: skip
    dataset = Dataset.open(mock_dataset)
    prepare(dataset, load_family("redshift")(recipe, dataset.info()), progress=False)
    # A driver that joins a cluster shows a token, and asks one of whoever calls it.
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "platform"), "RAY_AUTH_MODE": "token"}
    command = [sys.executable, "-c", DRIVER, json.dumps(recipe.snapshot()), mock_dataset,
               str(tmp_path)]  # fmt: skip
    with (tmp_path / "log").open("w") as log:
        driver = subprocess.Popen(
            command, env=environment, stdout=log, stderr=log, start_new_session=True
        )
        try:
            status = driver.wait(SECONDS)
        finally:
            end(driver.pid)
            driver.wait()
    assert status == 0, (tmp_path / "log").read_text()[-3000:]
    told = places.read_json(str(tmp_path / "told.json"))
    assert told["restarts"] >= 1
    assert [row["epoch"] for row in told["history"]] == list(range(16))
    assert {row["train_rows"] for row in told["history"]} == {dataset.count("train")}
    losses = [row["train_loss"] for row in told["history"]]
    assert losses[-1] < losses[0]
