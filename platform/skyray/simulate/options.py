"""What a card says about its mock: ``mock.options``, validated."""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field, model_validator

from skyray.cards import Card, Condition
from skyray.config import Config, ConfigError
from skyray.simulate.stars import STAR_TYPES

TYPES = {
    "star": STAR_TYPES,
    "galaxy": ("quiescent", "agn", "starforming", "starburst"),
    "qso": ("broad_lines", "weak_lines"),
}


class RedshiftOptions(Config):
    """Redshift distribution of a class: normal for stars, Beta between the limits for others."""

    mean: float
    min: float
    max: float
    concentration: float = Field(5.0, gt=0, description="a + b of the Beta distribution")

    @model_validator(mode="after")
    def _ordered(self):
        if not self.min < self.mean < self.max:
            raise ValueError(
                f"redshift: expected min < mean < max, found {self.min}, {self.mean}, {self.max}"
            )
        return self

    def draw(self, rng: np.random.Generator, kind: str) -> float:
        """Draw a redshift; of stars a radial velocity, ±2.4 σ within the limits."""
        if kind == "star":
            sigma = (self.max - self.min) / 4.8
            return float(np.clip(rng.normal(self.mean, sigma), self.min, self.max))
        low = max(self.min, 5e-4)  # nearer, peculiar velocity rules
        fraction = (self.mean - low) / (self.max - low)
        a = fraction * self.concentration
        return float(low + (self.max - low) * rng.beta(a, self.concentration - a))


class SnrOptions(Config):
    """Median signal-to-noise per pixel: log-normal about a mean."""

    mean: float = Field(gt=0)
    sigma: float = Field(0.6, ge=0, description="scatter of ln SNR")
    min: float = Field(0.3, gt=0)
    max: float = Field(300.0, gt=0)

    def draw(self, rng: np.random.Generator, floor: float = 0.0) -> float:
        """Draw an SNR whose mean is `mean`, not below `floor`."""
        drawn = self.mean * np.exp(rng.normal(-0.5 * self.sigma**2, self.sigma))
        return float(np.clip(drawn, max(self.min, floor), self.max))


class ClassOptions(Config):
    """One class of a mock: its kind, and the types that make it up in equal shares."""

    kind: Literal["star", "galaxy", "qso"]
    types: list[str] = Field(min_length=1, description="repeat a type to give it more weight")
    redshift: RedshiftOptions
    snr: SnrOptions
    metal_poor: bool = Field(False, description="stars of the halo: 0.9 dex fewer metals")

    @model_validator(mode="after")
    def _known_types(self):
        unknown = set(self.types) - set(TYPES[self.kind])
        if unknown:
            raise ValueError(
                f"types of kind {self.kind}: unknown {sorted(unknown)}; "
                f"known: {sorted(TYPES[self.kind])}"
            )
        return self


class MockOptions(Config):
    """``mock.options`` of a spectrum card."""

    instrument: Literal["sdss", "desi", "fourmost"]
    target: Literal["", "bgs", "mws"] = Field("", description="DESI programme of the targets")
    classes: dict[str, ClassOptions]


def mock_options(card: Card) -> MockOptions:
    """Return the validated options of a card's mock.

    Raises
    ------
    ConfigError
        If the card has no spectrum mock, an option is not valid, or a class is missing.
    """
    if card.mock is None or card.mock.simulator != "spectra":
        raise ConfigError(f"card {card.name}: expected mock.simulator 'spectra', found {card.mock}")
    options = MockOptions.load(card.mock.options)
    if set(options.classes) != set(card.classes):
        raise ConfigError(
            f"card {card.name}: mock.options.classes: expected {card.classes}, "
            f"found {list(options.classes)}"
        )
    return options


def fields_for(card: Card, label: str) -> list[dict[str, object]]:
    """Return the choices of field values that the card's label rule maps to `label`.

    Raises
    ------
    ConfigError
        If there is no rule for the label, or none of its choices leads back to it.
    """
    rules = [rule for rule in card.labels if rule.label == label]
    choices = [choice for rule in rules for choice in _choices(rule.where)]
    good = [c for c in choices if card.label_of({"spectype": "", "subtype": "", **c}) == label]
    if not good:
        raise ConfigError(f"card {card.name}: no spectype and subtype lead to class {label!r}")
    return good


def _choices(where: list[Condition]) -> list[dict[str, object]]:
    found: list[dict[str, object]] = [{}]
    for condition in where:
        values = condition.value if condition.op == "in" else [condition.value]
        if condition.op not in ("==", "in", "startswith"):
            continue
        found = [{**choice, condition.field: value} for choice in found for value in values]
    return found


def snr_floor(card: Card) -> float:
    """Return the SNR that mock spectra need to pass the card's cuts with a margin of 15 %."""
    bounds = [c.value for c in card.cuts if c.field == "snr" and c.op in (">", ">=")]
    return 1.15 * max(bounds, default=0.0)
