"""``models:/NAME@ALIAS`` and ``models:/NAME/VERSION`` wherever a bundle is asked for.

The files of a registered version never change; they are fetched once into ``SKYRAY_HOME/models``,
where every worker finds them. A version is kept by its registry, its number and when it was made
there: another registry's, or one that was set up anew, is another. An alias is looked up once a
command, at its beginning.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile

from skyray.runtime import outbox, places, tracking

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

    A version that was fetched is found without its registry.

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
    uri = tracking.tracking_uri()
    registry = hashlib.sha256(uri.encode()).hexdigest()[:16]
    kept = places.join(places.absolute(places.home()), "models", registry)
    try:
        name, version, made_ms = _version(text, uri)
    except RegistryAway:
        if found := _fetched(text, kept):
            return found
        raise
    place = places.join(kept, name, f"{version}-{made_ms}")
    if not places.exists(places.join(place, _LAST)):
        _fetch(f"{SCHEME}{name}/{version}", uri, place)
    return place


def pinned(bundle: str) -> str:
    """Return ``models:/NAME/VERSION`` for an alias, which may move; anything else as it is.

    Raises
    ------
    NoSuchModel, RegistryAway
        As `located`.
    """
    found = _NAMED.fullmatch(bundle)
    if not found or found["version"]:
        return bundle
    name, version, _ = _version(bundle, tracking.tracking_uri())
    return f"{SCHEME}{name}/{version}"


def _version(text: str, uri: str) -> tuple[str, str, int]:
    """Return what a name means to the registry: the model, its version, when that was made, ms."""
    from mlflow.exceptions import MlflowException

    found = _NAMED.fullmatch(text)
    if not found:
        raise NoSuchModel(f"{text}: expected models:/NAME@ALIAS or models:/NAME/VERSION")
    if not outbox.answers(uri):
        raise RegistryAway(f"{text}: the registry at {uri} cannot be asked: no answer")
    try:
        registry, name = tracking.client(uri), found["name"]
    except MlflowException as error:  # no address that it knows
        raise RegistryAway(f"{text}: the registry at {uri} cannot be asked: {error}") from None
    try:
        if found["version"]:
            made = registry.get_model_version(name, found["version"])
        else:
            made = registry.get_model_version_by_alias(name, found["alias"])
    except MlflowException as error:
        raise _refusal(text, uri, error) from None
    return name, str(made.version), made.creation_timestamp


def _fetched(text: str, kept: str) -> str | None:
    """Return the place of a version that was fetched before, the newest that had its number."""
    found = _NAMED.fullmatch(text)
    folder = places.join(kept, found["name"])
    if not found["version"] or not places.exists(folder):
        return None
    ends = (file.uri for file in places.walk(folder) if places.name(file.uri) == _LAST)
    versions = {places.name(place): place for place in map(places.parent, ends)}
    numbered = [name for name in versions if name.partition("-")[0] == found["version"]]
    return versions[max(numbered)] if numbered else None


def _refusal(model: str, uri: str, error: Exception) -> Exception:
    if getattr(error, "error_code", None) in _ABSENT:
        return NoSuchModel(f"{model}: not in the registry at {uri}: {error}")
    return RegistryAway(f"{model}: the registry at {uri} cannot be asked: {error}")


def _fetch(model: str, uri: str, place: str) -> None:
    import mlflow
    from mlflow.exceptions import MlflowException

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
