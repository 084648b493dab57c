"""MLflow: one run for each training, on SQLite by default and on any tracking URI.

A tracking server is a guest: what it is told goes through `skyray.runtime.outbox`, and no training
waits for it or fails with it. Metrics carry explicit steps, so that an epoch redone after a failure
overwrites itself.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import time
import uuid
from typing import Any

from skyray.runtime import outbox, places

PARENT = "mlflow.parentRunId"
_OURS = "skyray.run_id"  # tag: by it a run is found whose server gave no answer when it began
_PARAMS_AT_ONCE = 100  # MLflow's own limit
_START_S = 20.0  # that the beginning of a run waits for a server
_log = logging.getLogger(__name__)


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
    # MLflow's own patience, minutes of it, is for those who have no outbox.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    os.environ.setdefault("MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER", "false")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


def open_experiment(name: str) -> None:
    """Make an experiment, and the store around it, where there is none and a server answers.

    Whoever starts several trainings at once calls this first: a new SQLite store does not bear two
    that make it at the same time.
    """
    uri = tracking_uri()
    if outbox.answers(uri):
        _or_say(uri, lambda: _experiment(uri, name))


def _or_say(uri: str, do):
    """Return what a call to MLflow gives; None, and a line in the log, when it fails."""
    try:
        client(uri)  # its import does not count
        return outbox.bounded(uri, _START_S, do)
    except Exception as error:  # MLflow raises what its stores and its transport raise
        _log.warning("MLflow: %s", error or type(error).__name__)
        return None


def _experiment(uri: str, name: str) -> str:
    """Return an experiment's id; make it where there is none."""
    mlflow = client(uri)
    if found := mlflow.get_experiment_by_name(name):
        return found.experiment_id
    artifacts = None if uri.startswith("http") else places.join(places.home(), "mlartifacts")
    try:
        return mlflow.create_experiment(name, artifact_location=artifacts)
    except Exception:
        if found := mlflow.get_experiment_by_name(name):  # made by another in the meantime
            return found.experiment_id
        raise


def start_run(
    experiment: str,
    name: str,
    params: dict[str, Any],
    tags: dict[str, str],
    data: dict[str, Any] | None = None,
) -> str:
    """Begin a run and return its id; one of ours, where no server answers (`outbox.mlflow_id`).

    Parameters
    ----------
    data : dict, optional
        The dataset that goes in: ``name``, ``digest``, ``source`` and ``profile`` (a dict).
    """
    uri = tracking_uri()
    ours = uuid.uuid4().hex
    about = {"experiment": experiment, "name": name, "tags": tags | {_OURS: ours}, "time": _now()}
    if parent := tags.get(PARENT):
        outbox.send_or_say(uri, parent)
    run_id = _or_say(uri, lambda: _create(uri, about)) if outbox.answers(uri) else None
    if run_id is None:
        run_id = ours
        outbox.post(uri, run_id, outbox.OPEN, about)
    outbox.post(uri, run_id, "params", {"values": flatten(params), "config": params})
    if data:
        outbox.post(uri, run_id, "input", data)
    outbox.send_or_say(uri, run_id)
    return run_id


def _create(uri: str, about: dict[str, Any]) -> str:
    tags = dict(about["tags"])
    if PARENT in tags:
        tags[PARENT] = outbox.mlflow_id(tags[PARENT])
    experiment = _experiment(uri, about["experiment"])
    made = client(uri).create_run(
        experiment, start_time=about["time"], run_name=about["name"], tags=tags
    )
    return made.info.run_id


@outbox.sends(outbox.OPEN)
def _open(uri: str, run_id: str, about: dict[str, Any]) -> None:
    experiment = _experiment(uri, about["experiment"])
    known = client(uri).search_runs([experiment], f"tags.`{_OURS}` = '{run_id}'")
    outbox.given(run_id, known[0].info.run_id if known else _create(uri, about))


@outbox.sends("params")
def _params(uri: str, run_id: str, content: dict[str, Any]) -> None:
    from mlflow.entities import Param

    params, mlflow = [Param(*pair) for pair in content["values"].items()], client(uri)
    for start in range(0, len(params), _PARAMS_AT_ONCE):
        mlflow.log_batch(run_id, params=params[start : start + _PARAMS_AT_ONCE])
    mlflow.log_dict(run_id, content["config"], "config.json")


@outbox.sends("input")
def _input(uri: str, run_id: str, data: dict[str, Any]) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    found = Dataset(
        name=data["name"], digest=data["digest"], source_type="skyray",
        source=json.dumps({"uri": data["source"]}), profile=json.dumps(data["profile"]),
    )  # fmt: skip
    client(uri).log_inputs(
        run_id, [DatasetInput(found, [InputTag("mlflow.data.context", "train")])]
    )


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
    """Post finite metrics at one step, and send them from a thread."""
    values = {name: float(value) for name, value in metrics.items() if math.isfinite(value)}
    outbox.post(uri, run_id, "metrics", {"values": values, "step": step, "time": _now()})
    outbox.send_soon(run_id)


@outbox.sends("metrics")
def _metrics(uri: str, run_id: str, content: dict[str, Any]) -> None:
    from mlflow.entities import Metric

    at = content["time"], content["step"]
    batch = [Metric(name, value, *at) for name, value in content["values"].items()]
    client(uri).log_batch(run_id, metrics=batch)


def log_files(run_id: str, source: str, names: list[str], under: str) -> None:
    """Post files (or folders) `names` at the place `source` as artifacts of a run."""
    source = places.absolute(source)
    digests = {name: _digest(places.join(source, name)) for name in names}
    content = {"source": source, "names": names, "under": under, "digests": digests}
    outbox.post(tracking_uri(), run_id, "files", content)


def _digest(place: str) -> str:
    """Return a digest of a file, or of the names and contents of a folder; "" where nothing is."""
    found = hashlib.sha256()
    if not places.exists(place):
        return ""
    for file in sorted(file.uri for file in places.walk(place)):
        found.update(file.removeprefix(place).encode() + b"\0" + places.read_bytes(file))
    return found.hexdigest()


@outbox.sends("files")
def _files(uri: str, run_id: str, content: dict[str, Any]) -> None:
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    digests = content.get("digests", {})
    for name in content["names"]:
        place = places.join(content["source"], name)
        with places.local_copy(place) as copy:
            if name in digests and _digest(place) != digests[name]:
                raise outbox.Never(f"{place}: is not what the run left there: written again since")
            if copy.is_dir():
                client(uri).log_artifacts(run_id, copy, f"{content['under']}/{name}")
            else:
                client(uri).log_artifact(run_id, copy, content["under"])


def knows(run_id: str) -> bool:
    """Return whether a run is of this ``SKYRAY_HOME`` or tracking store; bundles travel further."""
    uri = tracking_uri()
    if places.exists(outbox.folder(run_id)):
        return True
    try:
        if not outbox.answers(uri):
            return False
        return outbox.bounded(uri, _START_S, lambda: client(uri).get_run(run_id)) is not None
    except Exception as error:  # MLflow raises what its stores and its transport raise
        _log.info("MLflow: run %s: %s", run_id, error)
        return False


def finish_run(run_id: str, failed: bool) -> None:
    """Close a run, and send what is still to be told of it."""
    status = "FAILED" if failed else "FINISHED"
    outbox.post(tracking_uri(), run_id, "finish", {"status": status, "time": _now()})
    outbox.send_or_say(tracking_uri(), run_id)


@outbox.sends("finish")
def _finish(uri: str, run_id: str, content: dict[str, Any]) -> None:
    client(uri).set_terminated(run_id, content["status"], content["time"])


def delete_other_children(parent: str, kept: set[str]) -> None:
    """Delete the runs below a run that nothing knows of: a kill came before their ids were kept."""
    outbox.post(tracking_uri(), parent, "children", {"kept": sorted(kept - {""})})
    outbox.send_or_say(tracking_uri(), parent)


@outbox.sends("children")
def _children(uri: str, parent: str, content: dict[str, Any]) -> None:
    mlflow, kept = client(uri), {outbox.mlflow_id(run_id) for run_id in content["kept"]}
    experiment = mlflow.get_run(parent).info.experiment_id
    for run in mlflow.search_runs([experiment], f"tags.`{PARENT}` = '{parent}'"):
        if run.info.run_id not in kept:
            mlflow.delete_run(run.info.run_id)


def _now() -> int:
    return int(time.time() * 1000)
