"""What every simulator offers: the records of a mock survey, each a function of its number."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar

from skyray.cards import Card
from skyray.config import ConfigError
from skyray.records import Record


class Simulator(ABC):
    """The mock survey of a card.

    Parameters
    ----------
    card : Card
        With ``mock: {simulator: NAME, options: ...}``.
    seed : int
    templates : Path, optional
        Folder of external templates, where a simulator uses any.

    Raises
    ------
    ConfigError
        If the card's mock options are not valid, or a template file is missing.
    """

    name: ClassVar[str]

    def __init__(self, card: Card, seed: int, templates: Path | None = None):
        self.card, self.seed, self.templates = card, int(seed), templates

    @abstractmethod
    def record(self, label: str, index: int) -> Record:
        """Return mock object `index` of a class: a pure function of (seed, label, index)."""


# Each is imported when a card names it: none needs the libraries of the others.
_MODULES = {
    "spectra": "skyray.simulate.spectra",
    "alerts": "skyray.simulate.alerts",
    "galaxies": "skyray.simulate.galaxies",
    "lenses": "skyray.simulate.lenses",
}
_SIMULATORS: dict[str, type[Simulator]] = {}


def register_simulator(cls: type[Simulator]) -> type[Simulator]:
    """Class decorator: make a simulator known to cards by its name."""
    _SIMULATORS[cls.name] = cls
    return cls


def make_simulator(card: Card, seed: int, templates: Path | None = None) -> Simulator:
    """Return the simulator a card names.

    Raises
    ------
    ConfigError
        If the card has no mock, or its simulator is unknown or refuses its options.
    """
    if card.mock is None:
        raise ConfigError(f"card {card.name}: has no mock; nothing stands in for this survey")
    name = card.mock.simulator
    if name not in _MODULES:
        raise ConfigError(
            f"card {card.name}: simulator {name!r}: unknown; known: {sorted(_MODULES)}"
        )
    importlib.import_module(_MODULES[name])
    return _SIMULATORS[name](card, seed, templates)
