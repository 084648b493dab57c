"""MLflow: one run for each training, on SQLite by default and on any tracking URI.

Metrics carry explicit steps, so that an epoch redone after a failure overwrites itself.
"""

from __future__ import annotations

import json
import logging
import os
from typing import Any

from skyray.runtime import places


def tracking_uri() -> str:
    """Return ``MLFLOW_TRACKING_URI``, or a SQLite file in ``SKYRAY_HOME``."""
    if uri := os.environ.get("MLFLOW_TRACKING_URI"):
        return uri
    base = places.home()
    if not places.is_local(base):
        raise ValueError(
            f"SKYRAY_HOME={base}: an object store cannot hold the SQLite tracking database; "
            "set MLFLOW_TRACKING_URI to a tracking server"
        )
    with places.local_folder(base) as folder:
        return f"sqlite:///{folder}/mlflow.db"


def client(uri: str):
    """Return an MLflow client; its import takes seconds, so it happens here."""
    for noisy in ("mlflow.store.db.utils", "alembic"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


def open_experiment(name: str) -> str:
    """Return an experiment's id; make it, and the store around it, where there is none.

    Whoever starts several trainings at once calls this first: a new SQLite store does not bear two
    that make it at the same time.
    """
    uri = tracking_uri()
    mlflow = client(uri)
    if found := mlflow.get_experiment_by_name(name):
        return found.experiment_id
    artifacts = None if uri.startswith("http") else places.join(places.home(), "mlartifacts")
    return mlflow.create_experiment(name, artifact_location=artifacts)


def start_run(experiment: str, name: str, params: dict[str, Any], tags: dict[str, str]) -> str:
    """Create a run and return its id."""
    experiment_id = open_experiment(experiment)
    mlflow = client(tracking_uri())
    run_id = mlflow.create_run(experiment_id, run_name=name, tags=tags).info.run_id
    for key, value in flatten(params).items():
        mlflow.log_param(run_id, key, value)
    mlflow.log_dict(run_id, params, "config.json")
    return run_id


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Return nested settings as dotted names with short text values."""
    flat: dict[str, str] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = json.dumps(value)[:500]
    return flat


def log_metrics(uri: str, run_id: str, metrics: dict[str, float], step: int) -> None:
    """Log a batch of finite metrics at one step."""
    import math
    import time

    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    batch = [Metric(k, float(v), now, step) for k, v in metrics.items() if math.isfinite(v)]
    client(uri).log_batch(run_id, metrics=batch)


def has_run(run_id: str) -> bool:
    """Return whether this tracking store knows a run; bundles travel further than their runs."""
    from mlflow.exceptions import MlflowException

    try:
        client(tracking_uri()).get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return False
    return True


def finish_run(run_id: str, failed: bool) -> None:
    """Close a run."""
    client(tracking_uri()).set_terminated(run_id, "FAILED" if failed else "FINISHED")


def delete_other_children(parent: str, kept: set[str]) -> None:
    """Delete the runs below a run that nothing knows of: a kill came before their ids were kept."""
    mlflow = client(tracking_uri())
    experiment = mlflow.get_run(parent).info.experiment_id
    for run in mlflow.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{parent}'"):
        if run.info.run_id not in kept:
            mlflow.delete_run(run.info.run_id)
