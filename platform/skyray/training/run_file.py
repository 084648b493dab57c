"""What a run is of, kept beside its checkpoints: it goes on as what it was begun as, or not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from skyray.config import ConfigError
from skyray.data.dataset import Dataset
from skyray.families.base import Family, Recipe
from skyray.runtime import places

RUN_FILE = "run.json"
_NOTHING = "nothing"  # in place of a setting that one of two recipes does not have


def record_run(run_uri: str, run_id: str, family: Family, workers: int = 1) -> None:
    """Keep what a run is of beside its checkpoints, for going on with it."""
    about = {"recipe": family.recipe.snapshot(), "fingerprint": family.data.fingerprint}
    places.write_json(
        places.join(run_uri, RUN_FILE),
        {"run_id": run_id, "version": family.data.version, "workers": workers, **about},
    )


def folder_of_run(run_id: str) -> str:
    """Return where a run keeps its checkpoints."""
    return places.join(places.home(), "runs", run_id)


def run_to_resume(run_id: str, recipe: Recipe) -> str:
    """Return the folder of a run to go on with.

    Raises
    ------
    ConfigError
        If there is none, or it was begun with another recipe.
    """
    runs = places.join(places.home(), "runs")
    named = run_id and "/" not in run_id and run_id not in (".", "..")
    place = places.join(runs, run_id, RUN_FILE) if named else None
    if place is None or not places.exists(place):
        raise ConfigError(
            f"resume: expected the id of a training that was begun, in {runs}, found {run_id!r}"
        )
    check_recipe(f"resume {run_id}", places.read_json(place)["recipe"], recipe)
    return folder_of_run(run_id)


def check_recipe(where: str, begun: dict[str, Any], recipe: Recipe) -> None:
    """Refuse to go on with another recipe than a run was begun with.

    Raises
    ------
    ConfigError
        It names each setting that differs, and both values.
    """
    given = json.loads(json.dumps(recipe.snapshot()))
    if changed := list(_changes(begun, given)):
        raise ConfigError(
            f"{where}: was begun with another recipe: {'; '.join(changed)}. Give the settings that "
            "it was begun with, or begin a new run"
        )


def _changes(begun: Any, given: Any, name: str = "") -> Iterator[str]:
    if isinstance(begun, dict) and isinstance(given, dict):
        for key in sorted(begun.keys() | given.keys()):
            pair = (tree.get(key, _NOTHING) for tree in (begun, given))
            yield from _changes(*pair, f"{name}.{key}" if name else key)
    elif json.dumps(begun) != json.dumps(given):  # so that NaN is the same as NaN
        yield f"{name}: begun with {begun!r}, found {given!r}"


def data_of_run(data: str, run_uri: str | None) -> Dataset:
    """Return the dataset at the version a run began with; the newest for a run that begins now.

    Raises
    ------
    ConfigError
        If the run was of another dataset.
    """
    place = places.join(run_uri, RUN_FILE) if run_uri else None
    if place is None or not places.exists(place):
        return Dataset.open(data)
    begun = places.read_json(place)
    dataset = Dataset.open(data, begun["version"])
    check_data(f"{data}, the run in {run_uri}", begun, dataset.manifest.fingerprint)
    return dataset


def check_data(where: str, begun: dict[str, Any], fingerprint: str) -> None:
    """Refuse to go on with other data than a run was begun with.

    Raises
    ------
    ConfigError
        If the fingerprints differ.
    """
    if fingerprint != begun["fingerprint"]:
        raise ConfigError(
            f"{where}: is of another dataset: expected fingerprint {begun['fingerprint'][:12]}, "
            f"found {fingerprint[:12]}"
        )
