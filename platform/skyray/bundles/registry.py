"""Bundles in the MLflow model registry: logged as artifacts, versioned, with aliases.

The registered model is a models-from-code pyfunc (`skyray.bundles.pyfunc_model`): MLflow stores the
bundle's files and this small script, never a pickle.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

from skyray.bundles.bundle import read_bundle
from skyray.runtime import places, tracking

CHAMPION = "champion"


def register(bundle: str, run_id: str, alias: str = CHAMPION) -> str:
    """Log a bundle to its run, register it as a new version and point `alias` at it.

    Returns the name of the registered model, ``skyray-FAMILY-RECIPE``.
    """
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    import mlflow

    for noisy in ("mlflow.pyfunc", "mlflow.tracking", "mlflow.store"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    content = read_bundle(bundle)
    name = f"skyray-{content['family']}-{content['recipe']['name']}"
    uri = tracking.tracking_uri()
    mlflow.set_tracking_uri(uri)
    with (
        places.local_copy(bundle) as copy,
        mlflow.start_run(run_id=run_id, log_system_metrics=False),
    ):
        mlflow.pyfunc.log_model(
            name="bundle",
            python_model=str(Path(__file__).with_name("pyfunc_model.py")),
            artifacts={"bundle": str(copy)},
            pip_requirements=["skyray"],
            registered_model_name=name,
        )
    client = tracking.client(uri)
    newest = max(
        client.search_model_versions(f"name='{name}'"), key=lambda found: int(found.version)
    )
    client.set_registered_model_alias(name, alias, newest.version)
    return name
