"""Dataset cards: what a survey's data are, in one YAML file of ``datasets/``.

A card names the record type, reader, grid, classes and label rule, cuts, object key, split
fractions, where the files are, whom to cite, and the mock that stands in for the data offline.
"""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, model_validator

from skyray.config import Config, ConfigError
from skyray.records import SPLITS, Grid, InvalidRecord

_COMPARE = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "in": lambda value, options: value in options,
    "not in": lambda value, options: value not in options,
    "startswith": lambda value, prefix: str(value).startswith(prefix),
    "bits": lambda value, mask: bool(int(value) & int(mask)),
}


class Condition(Config):
    """One test on a record's field, e.g. ``{field: zwarning, op: "==", value: 0}``."""

    field: str
    op: Literal["==", "!=", "<", "<=", ">", ">=", "in", "not in", "startswith", "bits"] = "=="
    value: Any
    times_one_plus_z: bool = Field(False, description="scale the value by (1 + redshift)")

    def holds(self, fields: Mapping[str, Any]) -> bool:
        """Return whether the record passes; a missing or NaN field does not.

        Raises
        ------
        InvalidRecord
            ``field_invalid`` for a value that cannot be compared, such as text for a number.
        """
        found = fields.get(self.field)
        if found is None or (isinstance(found, float) and math.isnan(found)):
            return False
        bound = self.value
        if self.times_one_plus_z:
            bound = bound * (1.0 + float(fields.get("redshift", float("nan"))))
        try:
            return bool(_COMPARE[self.op](found, bound))
        except (TypeError, ValueError, OverflowError):
            detail = f"{self.field}: expected a value for {self}, found {found!r}"
            raise InvalidRecord("field_invalid", detail[:300]) from None

    def __str__(self) -> str:
        scale = "·(1+z)" if self.times_one_plus_z else ""
        return f"{self.field} {self.op} {self.value}{scale}"


class LabelRule(Config):
    """A class and the conditions a record must meet to carry it; the first rule that fits wins."""

    label: str
    where: list[Condition]


class GridConfig(Config):
    """The wavelength grid a dataset is written on (see `skyray.records.Grid`)."""

    kind: Literal["linear", "log10"]
    start: float
    step: float = Field(gt=0)
    size: int = Field(ge=2)

    def grid(self) -> Grid:
        return Grid(self.kind, self.start, self.step, self.size)


class ObjectKey(Config):
    """What tells objects apart, so that two spectra of one object never fall into two splits."""

    by: Literal["sky", "id"] = "id"
    radius_arcsec: float = Field(
        1.0, ge=0.01, le=600.0, description="for 'sky': positions so near are of one object"
    )

    def at(self, ra: float, dec: float) -> str:
        """Return the key of an object known from one position, degrees.

        Rounded to cells whose diagonal is no longer than the radius: one cell is one object. Who
        its neighbours in other cells are, `skyray.data.sky_keys` says once all are there.
        """
        digits = math.ceil(math.log10(math.sqrt(2) * 3600 / self.radius_arcsec))
        # Rounded first: 359.9999° is 0° and -0.0001° is 0°, so that neither has two keys.
        ra, dec = round(ra % 360, digits) % 360, round(dec, digits) + 0.0
        return f"{ra:.{digits}f}{dec:+.{digits}f}"


class Files(Config):
    """Where a survey's files are and how to name one."""

    url: str = Field(
        description="template over the columns of the file list, e.g. spec-{plate:04d}"
    )
    columns: list[str] = Field(default_factory=list, description="columns the template needs")
    name: str = Field("", description="name of a fetched file; default: the last part of its url")
    note: str = ""


class Mock(Config):
    """The simulator that stands in for the survey offline."""

    simulator: str
    options: dict[str, Any] = Field(default_factory=dict)


class Card(Config):
    """A dataset card."""

    name: str
    title: str
    record: Literal["spectrum", "cutout", "alert"]
    reader: str
    reader_options: dict[str, Any] = Field(default_factory=dict)
    grid: GridConfig | None = None
    bands: list[str] | None = None
    image_size: int | None = None
    image_fit: Literal["exact", "crop", "resize"] = Field(
        "exact",
        description="how a cutout of another size is brought to image_size, if at all; "
        "of alerts, about the source: exact (no larger ones), crop, or resize: resampled to "
        "pixel_scale_arcsec",
    )
    features: list[str] = Field(
        default_factory=list,
        description="metadata of alerts in their order: fields of the candidate and those that "
        "`alert_features` computes; none: the 25 that BTSbot published",
    )
    pixel_scale_arcsec: float | None = None
    classes: list[str]
    coarse: dict[str, str] = Field(
        default_factory=dict, description="class → STAR, GALAXY or QSO, for collapsed scores"
    )
    labels: list[LabelRule] = Field(default_factory=list)
    label_from: str | None = Field(
        None, description="field that holds the class itself, where no rule fits: folder"
    )
    cuts: list[Condition] = Field(default_factory=list)
    min_good_pixels: int = 100
    object_key: ObjectKey = ObjectKey()
    split: dict[str, float] = Field(
        default_factory=lambda: {"train": 0.70, "validation": 0.15, "test": 0.15}
    )
    files: Files | None = None
    mock: Mock | None = None
    citation: str
    licence: str
    description: str = ""

    @model_validator(mode="after")
    def _consistent(self):
        if set(self.split) != set(SPLITS) or abs(sum(self.split.values()) - 1) > 1e-9:
            raise ValueError(f"split: expected fractions of {SPLITS} that sum to 1")
        unknown = {rule.label for rule in self.labels} - set(self.classes)
        if unknown:
            raise ValueError(f"labels: not among classes: {sorted(unknown)}")
        if self.coarse and set(self.coarse) != set(self.classes):
            raise ValueError("coarse: expected one entry for every class")
        if self.record == "spectrum" and self.grid is None:
            raise ValueError("grid: a spectrum card needs one")
        if len(set(self.features)) < len(self.features):
            raise ValueError("features: expected each name once")
        if self.features and self.record != "alert":
            raise ValueError("features: only alerts have them")
        if self.record != "spectrum" and (self.bands is None or self.image_size is None):
            raise ValueError("bands and image_size: a cutout or alert card needs both")
        return self

    def label_of(self, fields: Mapping[str, Any]) -> str:
        """Return the class of a record, or '' where no rule fits."""
        for rule in self.labels:
            if all(condition.holds(fields) for condition in rule.where):
                return rule.label
        found = fields.get(self.label_from) if self.label_from else None
        return found if found in self.classes else ""

    def check_cuts(self, fields: Mapping[str, Any], source: str = "") -> None:
        """Raise `InvalidRecord` (reason ``cut:<field>``) for a record outside the selection."""
        for cut in self.cuts:
            if not cut.holds(fields):
                found = fields.get(cut.field)
                raise InvalidRecord(
                    f"cut:{cut.field}", f"expected {cut}, found {found!r}", source,
                    str(fields.get("object_id", "")),
                )  # fmt: skip

    def key_of(self, fields: Mapping[str, Any]) -> str:
        """Return the object key; falls back to the identifier where the position is unknown.

        The identifier of an alert is its source's, since many alerts tell of one object. Keys by
        position are final in a published dataset only: see `ObjectKey.at`.
        """
        ra, dec = fields.get("ra", math.nan), fields.get("dec", math.nan)
        if self.object_key.by == "sky" and math.isfinite(ra) and math.isfinite(dec):
            return self.object_key.at(ra, dec)
        return str(fields.get("source_id") or fields["object_id"])


def card_directory() -> Path:
    """Return the folder of cards: ``SKYRAY_CARDS`` or ``datasets/`` beside the sources."""
    if path := os.environ.get("SKYRAY_CARDS"):
        return Path(path)
    return Path(__file__).resolve().parents[2] / "datasets"


def load_card(name_or_path: str | Path) -> Card:
    """Load a card by name (a file of `card_directory`) or by path.

    Raises
    ------
    ConfigError
        If there is no such card, or it is not valid.
    """
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        path = card_directory() / f"{name_or_path}.yaml"
    if not path.exists():
        known = sorted(p.stem for p in card_directory().glob("*.yaml"))
        raise ConfigError(f"card {str(name_or_path)!r}: no such card; known: {known}")
    with path.open(encoding="utf-8") as stream:
        return Card.load(yaml.safe_load(stream))
