"""What a verb can refuse before Ray is started: it takes seconds, and Ray would cost a minute."""

from __future__ import annotations

import os
import tempfile
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from skyray.config import ConfigError
from skyray.runtime import places

if TYPE_CHECKING:
    from skyray.families.base import Recipe


def check_there(sources: Sequence[str]) -> None:
    """Refuse survey files, folders or datasets that are not there.

    Raises
    ------
    FileNotFoundError
        If one is not.
    """
    for source in sources:
        if not places.exists(source):
            raise FileNotFoundError(f"{source}: no such file or folder")


def check_writable(*outs: str | None) -> None:
    """Refuse places that cannot be written to, by writing something and taking it away again.

    Nothing is made of a folder that is not there yet: its nearest parent is tried.

    Raises
    ------
    ConfigError
        If one is a file, or cannot be written to.
    """
    for out in filter(None, outs):
        try:
            if places.is_local(out):
                _try_folder(Path(places.absolute(out)))
            else:
                probe = places.join(out, f"_skyray-{uuid.uuid4().hex}")
                places.write_bytes(probe, b"")
                places.remove(probe)
        except OSError as error:
            raise ConfigError(f"{out}: expected a place to write to: {error}") from None


def check_file(out: str | os.PathLike) -> None:
    """Refuse a file that cannot be written: a folder is there, or its own folder takes none.

    Raises
    ------
    ConfigError
        If so.
    """
    if places.is_local(out) and Path(places.absolute(out)).is_dir():
        raise ConfigError(f"{out}: expected a file to write, found a folder")
    check_writable(places.parent(places.absolute(out)))


def _try_folder(folder: Path) -> None:
    there = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
    if not there.is_dir():
        raise NotADirectoryError(f"{there} is a file")
    with tempfile.TemporaryFile(dir=there):
        pass


def check_training(recipe: Recipe, data: str, resume: str | None = None) -> None:
    """Refuse a dataset that a recipe cannot be trained on, and a home that cannot keep its run.

    Raises
    ------
    ConfigError, ValueError
        If the family takes no such data, or no row is there to train on; if the run to `resume` is
        unknown, or was begun with another recipe or other data.
    NotADataset
        If `data` is none.
    """
    from skyray.families.base import load_family
    from skyray.training.run_file import data_of_run, run_to_resume

    dataset = data_of_run(data, None if resume is None else run_to_resume(resume, recipe))
    family = load_family(recipe.family)(recipe, dataset.info())
    missing = sorted(set(family.columns(training=True)) - set(dataset.schema.names))
    if missing:
        raise ConfigError(
            f"{data}: {recipe.family}/{recipe.name} needs column {missing[0]!r}; found "
            f"{sorted(dataset.schema.names)}"
        )
    family.stages()
    if not dataset.count("train"):
        raise ConfigError(f"{data}: expected rows of split 'train', found none")
    check_writable(places.home())


def check_bundle(bundle: str, data: str | None = None, split: str | None = None) -> None:
    """Refuse a place that holds no bundle, and a dataset that is not of its kind.

    Raises
    ------
    NotABundle, NotADataset
        If one is none.
    ValueError
        If the dataset has other pixels or features than the bundle, or no row in `split`.
    """
    from skyray.bundles.bundle import check_layout, read_bundle
    from skyray.data.dataset import Dataset

    read_bundle(bundle)
    if data is None:
        return
    dataset = Dataset.open(data)
    check_layout(bundle, dataset)
    if not dataset.count(split):
        raise ValueError(f"{data}: split {split!r} holds no rows; nothing to score")


def check_sources_of(bundle: str, sources: Sequence[str], card: str | None) -> None:
    """Refuse what no bundle can be asked about: no files, no dataset of its kind, no such card.

    Raises
    ------
    ConfigError, FileNotFoundError, NotABundle, ValueError
        If so.
    """
    from skyray.bundles.bundle import check_layout, read_bundle
    from skyray.cards import load_card
    from skyray.data.dataset import Dataset

    known = read_bundle(bundle)["data"]["card"]
    check_there(sources)
    if len(sources) == 1 and Dataset.exists(sources[0]):
        check_layout(bundle, Dataset.open(sources[0]))
    else:
        load_card(card or known)
