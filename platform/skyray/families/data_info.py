"""What a dataset tells a family. Apart from `skyray.families.base`, which brings torch: processes
that decode need to know what a model takes, and no networks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from skyray.records import Grid


@dataclass(frozen=True)
class DataInfo:
    """What a dataset tells a family: its grid or images, its classes and where it came from.

    `fingerprint` and `version` name the snapshot; `features` the metadata of alerts in their order.
    """

    card: str
    record: str
    classes: tuple[str, ...]
    coarse: Mapping[str, str]
    fingerprint: str
    grid: Grid | None = None
    counts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    min_good_pixels: int = 100
    bands: tuple[str, ...] = ()
    image_size: int | None = None
    image_fit: str = "exact"
    pixel_scale_arcsec: float | None = None
    features: tuple[str, ...] = ()
    version: int = 0

    def to_dict(self) -> dict[str, Any]:
        return {
            **{field.name: getattr(self, field.name) for field in fields(self)},
            **{name: list(getattr(self, name)) for name in ("classes", "bands", "features")},
            "coarse": dict(self.coarse),
            "counts": {k: dict(v) for k, v in self.counts.items()},
            "grid": self.grid.to_dict() if self.grid else None,
        }

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> DataInfo:
        grid = Grid(**value["grid"]) if value.get("grid") else None
        lists = {k: tuple(value.get(k, ())) for k in ("classes", "bands", "features")}
        return cls(**{**value, **lists, "grid": grid})
