"""``models:/NAME@ALIAS`` and ``models:/NAME/VERSION`` wherever a bundle is asked for.

The files of a registered version never change; they are fetched once into ``SKYRAY_HOME/models``,
where every worker finds them. An alias is looked up once a command, at its beginning.
"""

from __future__ import annotations

import os
import re
import tempfile

from skyray.runtime import places, tracking

SCHEME = "models:/"
_NAMED = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<version>\d+))")
_LAST = "bundle.json"


_ABSENT = {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}  # what MLflow calls it


class NoSuchModel(ValueError):
    """The registry has no such model, version or alias."""


class RegistryAway(RuntimeError):
    """The registry cannot be asked now."""


def located(bundle: str | os.PathLike) -> str:
    """Return the place of a bundle; of one named ``models:/…``, after fetching it if need be.

    Raises
    ------
    NoSuchModel
        For a name that is not well formed or not in the registry.
    RegistryAway
        If the registry cannot be asked.
    """
    text = os.fspath(bundle)
    if not text.startswith(SCHEME):
        return text
    name, version = _version(text)
    place = places.join(places.absolute(places.home()), "models", name, version)
    if not places.exists(places.join(place, _LAST)):
        _fetch(f"{SCHEME}{name}/{version}", place)
    return place


def _version(text: str) -> tuple[str, str]:
    from mlflow.exceptions import MlflowException

    found = _NAMED.fullmatch(text)
    if not found:
        raise NoSuchModel(f"{text}: expected models:/NAME@ALIAS or models:/NAME/VERSION")
    if found["version"]:
        return found["name"], found["version"]
    uri = tracking.tracking_uri()
    try:
        made = tracking.client(uri).get_model_version_by_alias(found["name"], found["alias"])
    except MlflowException as error:
        raise _refusal(text, uri, error) from None
    return found["name"], str(made.version)


def _refusal(model: str, uri: str, error: Exception) -> Exception:
    if getattr(error, "error_code", None) in _ABSENT:
        return NoSuchModel(f"{model}: not in the registry at {uri}: {error}")
    return RegistryAway(f"{model}: the registry at {uri} cannot be asked: {error}")


def _fetch(model: str, place: str) -> None:
    import mlflow
    from mlflow.exceptions import MlflowException

    uri = tracking.tracking_uri()
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    with tempfile.TemporaryDirectory(prefix="skyray-") as folder:
        try:
            got = mlflow.artifacts.download_artifacts(model, dst_path=folder, tracking_uri=uri)
        except (MlflowException, OSError) as error:
            raise _refusal(model, uri, error) from None
        files = sorted(found.uri for found in places.walk(got))
        ends = [uri for uri in files if places.name(uri) == _LAST]
        if len(ends) != 1:
            raise NoSuchModel(f"{model}: expected a bundle with one {_LAST}, found {len(ends)}")
        source = places.parent(ends[0])
        held = [uri for uri in files if uri.startswith(f"{source}/")]
        for uri in sorted(held, key=lambda uri: uri == ends[0]):  # a bundle once that is there
            places.copy(uri, places.join(place, uri[len(source) + 1 :]))
