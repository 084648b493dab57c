"""Bundles in the MLflow model registry: logged as artifacts, versioned, with aliases.

The registered model is a models-from-code pyfunc (`skyray.bundles.pyfunc_model`): MLflow stores the
bundle's files, skyray's own sources and this small script, never a pickle. A new version is the
`CANDIDATE`; only `promote` moves the `CHAMPION`.
"""

from __future__ import annotations

import importlib.metadata
import logging
import os
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from packaging.requirements import Requirement

import skyray
from skyray.bundles.bundle import CARD_FILE, NotABundle, read_bundle
from skyray.families.base import DataInfo
from skyray.records import alert_schema, cutout_schema, spectrum_schema
from skyray.runtime import outbox, places, tracking
from skyray.transforms.alerts import FEATURES

CANDIDATE, CHAMPION = "candidate", "champion"
_DESCRIPTION = 5000  # characters that MLflow's databases hold


def model_name(content: dict[str, Any]) -> str:
    """Return the name a bundle is registered under: ``skyray-FAMILY-RECIPE``."""
    return f"skyray-{content['family']}-{content['recipe']['name']}"


def register(bundle: str, run_id: str) -> None:
    """Post a bundle to be logged to its run and registered as the newest candidate."""
    content = {"bundle": places.absolute(bundle), "alias": CANDIDATE}
    outbox.post(tracking.tracking_uri(), run_id, "register", content)


def describe(bundle: str, run_id: str) -> None:
    """Post a bundle's model card, as the description of its run and registered version."""
    outbox.post(tracking.tracking_uri(), run_id, "card", {"bundle": places.absolute(bundle)})


def version_of(uri: str, content: dict[str, Any], run_id: str) -> str | None:
    """Return the version a bundle is registered as; None if it is not."""
    name = model_name(content)
    found = tracking.client(uri).search_model_versions(f"name='{name}' and run_id='{run_id}'")
    return max((made.version for made in found), key=int, default=None)


def run_of(content: dict[str, Any]) -> str:
    """Return MLflow's id of the run that left a bundle, which MLflow must have to register it.

    Raises
    ------
    NotYet
        If MLflow has not been told of the run.
    ValueError
        If it does not know the run or cannot be asked.
    """
    from mlflow.exceptions import MlflowException

    uri, run_id = tracking.tracking_uri(), outbox.mlflow_id(content["run_id"])
    try:
        tracking.client(uri).get_run(run_id)
    except MlflowException as error:
        raise ValueError(
            f"the bundle's run {run_id}: expected it in MLflow at {uri} (MLFLOW_TRACKING_URI): "
            f"{error}"
        ) from None
    return run_id


def crown(bundle: str, why: dict[str, str]) -> str:
    """Make a bundle the champion of its name, registered if need be, and return its version.

    Parameters
    ----------
    why : dict of str
        Tags of the version.

    Raises
    ------
    MlflowException
        If the server is away or refuses.
    """
    content, uri = read_bundle(bundle), tracking.tracking_uri()
    run_id, name = run_of(content), model_name(content)
    if version_of(uri, content, run_id) is None:
        _register(uri, run_id, {"bundle": places.absolute(bundle), "alias": None})
    version, client = version_of(uri, content, run_id), tracking.client(uri)
    for key, value in why.items():
        client.set_model_version_tag(name, version, key, value)
    client.set_registered_model_alias(name, CHAMPION, version)
    return version


@outbox.sends("register")
def _register(uri: str, run_id: str, message: dict[str, Any]) -> None:
    content = _of_run(message["bundle"], run_id)
    if version_of(uri, content, run_id) is None:
        _log_model(uri, run_id, message["bundle"], content)
    _card(uri, run_id, message)
    if message["alias"]:
        version = version_of(uri, content, run_id)
        client = tracking.client(uri)
        client.set_registered_model_alias(model_name(content), message["alias"], version)


def _of_run(bundle: str, run_id: str) -> dict[str, Any]:
    """Return the content of the bundle at a place, which MLflow's run `run_id` is to have left.

    Raises
    ------
    Never
        If it is gone, or another run's by now.
    """
    try:
        content = read_bundle(bundle)
    except NotABundle as error:
        raise outbox.Never(str(error)) from None
    try:
        same = outbox.mlflow_id(content.get("run_id", "")) == run_id
    except outbox.NotYet:  # of a run that MLflow does not know; it knows this one
        same = False
    if not same:
        raise outbox.Never(
            f"{bundle}: expected the bundle of run {run_id}, found run {content.get('run_id')}'s"
        )
    return content


def _log_model(uri: str, run_id: str, bundle: str, content: dict[str, Any]) -> None:
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    import mlflow

    for noisy in ("mlflow.pyfunc", "mlflow.tracking", "mlflow.store", "mlflow.models"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    mlflow.set_tracking_uri(uri)
    with (
        places.local_copy(bundle) as copy,
        mlflow.start_run(run_id=run_id, log_system_metrics=False),
    ):
        mlflow.pyfunc.log_model(
            name="bundle",
            python_model=str(Path(__file__).with_name("pyfunc_model.py")),
            artifacts={"bundle": str(copy)},
            code_paths=[str(Path(skyray.__file__).parent)],
            pip_requirements=requirements(),
            signature=signature(content),
            registered_model_name=model_name(content),
        )


@outbox.sends("card")
def _card(uri: str, run_id: str, message: dict[str, Any]) -> None:
    content, client = _of_run(message["bundle"], run_id), tracking.client(uri)
    card = places.read_bytes(places.join(message["bundle"], CARD_FILE)).decode()
    client.set_tag(run_id, "mlflow.note.content", card[:_DESCRIPTION])
    if version := version_of(uri, content, run_id):
        client.update_model_version(model_name(content), version, card[:_DESCRIPTION])


def requirements() -> list[str]:
    """Return what a registered model needs, as pip installs it: skyray's own sources are in it.

    The packages that skyray declares, in the versions that are installed here.
    """
    try:
        declared = [Requirement(text) for text in importlib.metadata.requires("skyray") or ()]
    except importlib.metadata.PackageNotFoundError:  # sources alone, as on a cluster's workers
        about = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())
        declared = [Requirement(text) for text in about["project"]["dependencies"]]
    pinned = []
    for needed in declared:
        if needed.marker is None or needed.marker.evaluate({"extra": ""}):
            version = importlib.metadata.version(needed.name).partition("+")[0]  # not on PyPI: +cpu
            extras = f"[{','.join(sorted(needed.extras))}]" if needed.extras else ""
            pinned.append(f"{needed.name}{extras}=={version}")
    return sorted(pinned)


def signature(content: dict[str, Any]):
    """Return the MLflow signature of a bundle: record columns in, catalogue columns out."""
    from mlflow.models import ModelSignature
    from mlflow.types.schema import ColSpec, Schema

    schema = _record_schema(DataInfo.from_dict(content["data"]))
    into = [
        ColSpec(_mlflow_type(schema.field(name).type), name) for name in content["input_columns"]
    ]
    out = [
        ColSpec(_plain_type(np.dtype(column["dtype"])), column["name"])
        for column in content["output"]
    ]
    return ModelSignature(Schema(into), Schema([*out, ColSpec("string", "model_version")]))


def _record_schema(data: DataInfo) -> pa.Schema:
    if data.record == "spectrum":
        return spectrum_schema(data.grid)
    if data.record == "cutout":
        return cutout_schema(data.bands, data.image_size, data.image_size)
    return alert_schema(data.image_size, data.features or FEATURES)


def _mlflow_type(kind: pa.DataType):
    from mlflow.types.schema import Array

    if not isinstance(kind, pa.FixedShapeTensorType):
        return _plain_type(np.dtype(kind.to_pandas_dtype()))
    made = _plain_type(np.dtype(kind.value_type.to_pandas_dtype()))
    for _ in kind.shape:
        made = Array(made)
    return made


def _plain_type(dtype: np.dtype):
    from mlflow.types.schema import DataType

    if dtype.kind in "OU":
        return DataType.string
    return DataType.from_numpy_type(dtype) or DataType.integer  # it knows no integers of 8 bits
