"""Mock alert survey: sources followed through a season of visits, seen as alert packets.

Every alert is a pure function of (seed, label, index). Index counts the alerts of a class; each
`alerts_per_source` of them in a row are one source at growing age, whose history holds the visits
of the last 30 days as a real packet does. Metadata and stamps tell the same story: magpsf is the
flux put into the images, fwhm their PSF, diffmaglim their noise.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field, field_validator

from skyray.cards import Card
from skyray.config import Config, ConfigError
from skyray.records import Alert, Cutout
from skyray.simulate.alert_images import SIZE, Visit, draw_stamps, scene_image
from skyray.simulate.alert_metadata import candidate_fields, measured, visit_entry
from skyray.simulate.alert_sources import (
    BOGUS,
    KINDS,
    PIXEL_SCALE_ARCSEC,
    SINGLE,
    SUBSETS,
    SourceModel,
    draw_source,
)
from skyray.simulate.base import Simulator, register_simulator

_SEASON_JD = 2459000.5
_HISTORY_DAYS = 30.0
_GRZ_NOISE = {"g": 24.9, "r": 24.4, "z": 23.4}  # 5 σ of a point source; Dey et al. 2019
_GRZ_FWHM_ARCSEC = 1.3
_MOST_ATTEMPTS = 60


class AlertMockOptions(Config):
    """``mock.options`` of an alert card."""

    alerts_per_source: int = Field(6, ge=1, le=40)
    classes: dict[str, list[Literal[KINDS]]] = Field(
        description="class → kinds in equal shares; repeat a kind to give it more weight"
    )

    @field_validator("classes")
    @classmethod
    def _some_kinds(cls, value: dict[str, list[str]]) -> dict[str, list[str]]:
        if empty := [label for label, kinds in value.items() if not kinds]:
            raise ValueError(f"expected at least one kind for each class, found none for {empty}")
        return value


@dataclass(frozen=True)
class SourceHistory:
    """A source, its visits, and which of them (indices) send the alerts of this mock."""

    model: SourceModel
    visits: tuple[Visit, ...]
    entries: tuple[dict[str, Any], ...]
    alerts: tuple[int, ...]
    visits_before: int
    detections_before: int
    start_jd: float


@register_simulator
class AlertSurvey(Simulator):
    """Alerts (or, for a cutout card, the reference sky in g, r, z) of every class of a card."""

    name = "alerts"

    def __init__(self, card: Card, seed: int, templates: Path | None = None):
        super().__init__(card, seed, templates)
        if card.record not in ("alert", "cutout") or card.image_size != SIZE:
            raise ConfigError(
                f"card {card.name}: mock.simulator alerts: expected alerts or cutouts of {SIZE} "
                f"pixels, found {card.record} of {card.image_size}"
            )
        if card.record == "cutout" and not set(card.bands or ()) <= set(_GRZ_NOISE):
            raise ConfigError(f"card {card.name}: bands: expected of g, r, z, found {card.bands}")
        self.options = AlertMockOptions.load(card.mock.options)
        if set(self.options.classes) != set(card.classes):
            raise ConfigError(
                f"card {card.name}: mock.options.classes: expected {card.classes}, "
                f"found {list(self.options.classes)}"
            )
        # A survey that keeps positive subtractions only shows no source at its faint half.
        self._positive = any(cut.field == "isdiffpos" for cut in card.cuts)

    def record(self, label: str, index: int) -> Alert | Cutout:
        if self.card.record == "cutout":
            return self._cutout(label, index)
        source, epoch = self.source_of(label, index)
        history = self.history(label, source, epoch)
        at = history.alerts[epoch]
        number = self._number(label, source, epoch if history.model.kind in SINGLE else 0)
        rng = np.random.default_rng([self.seed, _stable(label), source, epoch, 1])
        return _packet(history, at, _name(number), _candid(self.seed, number, epoch), rng)

    def source_of(self, label: str, index: int) -> tuple[int, int]:
        """Return the number of the source and of its alert."""
        return divmod(index, self.options.alerts_per_source)

    def history(self, label: str, source: int, epoch: int = 0) -> SourceHistory:
        """Return a source with its visits."""
        kinds = self.options.classes[label]
        seed = [self.seed, _stable(label), source]
        kind = kinds[int(np.random.default_rng(seed).integers(len(kinds)))]
        wanted = 1 if kind in SINGLE else self.options.alerts_per_source
        if kind in SINGLE:  # every alert is another source
            seed.append(epoch)
        found = _history(kind, tuple(seed), wanted, self._positive)
        if kind in SINGLE:
            return _repeated(found, self.options.alerts_per_source)
        return found

    def _number(self, label: str, source: int, part: int) -> int:
        count = self.options.alerts_per_source
        return (source * count + part) * len(self.card.classes) + self.card.classes.index(label)

    def _cutout(self, label: str, index: int) -> Cutout:
        source, epoch = self.source_of(label, index)
        model = self.history(label, source, epoch).model
        rng = np.random.default_rng([self.seed, _stable(label), source, epoch, 2])
        fwhm = _GRZ_FWHM_ARCSEC / PIXEL_SCALE_ARCSEC
        planes = []
        for band in self.card.bands:
            flux = 10 ** (0.4 * 22.5)  # nanomaggies
            noise = flux * 10 ** (-0.4 * _GRZ_NOISE[band]) / 5
            noise /= np.sqrt(4 * np.pi * (fwhm / 2.355) ** 2)
            image = flux * scene_image(model.scene, "grz".index(band) + 1, fwhm, SIZE)
            planes.append(image + rng.normal(0, noise, image.shape))
        number = self._number(label, source, epoch)
        return Cutout(
            _name(number), np.array(planes, dtype=np.float32), tuple(self.card.bands),
            PIXEL_SCALE_ARCSEC, model.ra, model.dec, survey="legacy", source="mock",
            extra={"mock_kind": model.kind, "subset": SUBSETS[model.kind], **_truth(model.kind)},
        )  # fmt: skip


def _packet(
    history: SourceHistory, at: int, name: str, candid: int, rng: np.random.Generator
) -> Alert:
    model, visit, entry = history.model, history.visits[at], history.entries[at]
    recent = [e for e in history.entries[:at] if e["jd"] > visit.jd - _HISTORY_DAYS]
    seen = sum(e["magpsf"] is not None for e in history.entries[: at + 1])
    science, template, difference = draw_stamps(model, visit, entry["true_flux"], rng)
    candidate = candidate_fields(model, visit, entry, rng) | {
        "ndethist": history.detections_before + seen,
        "ncovhist": history.visits_before + at + 1,
        "jdstarthist": history.start_jd, "jdendhist": visit.jd, "candid": candid,
    }  # fmt: skip
    scores = (candidate["sgscore1"], candidate["sgscore2"])
    return Alert(
        object_id=str(candid), source_id=name, candid=candid, jd=visit.jd, fid=visit.band,
        science=science, template=template, difference=difference, candidate=candidate,
        history=[{k: v for k, v in e.items() if not k.startswith("true_")} for e in recent],
        ra=candidate["ra"], dec=candidate["dec"], survey="ztf", source="mock",
        pixel_scale_arcsec=1.01,
        extra={"mock_kind": model.kind, "subset": SUBSETS[model.kind],
               "sgscore_best": max(scores), **_truth(model.kind)},
    )  # fmt: skip


def _truth(kind: str) -> dict[str, int]:
    return {"bts": int(kind == "supernova"), "mock_bogus": int(kind in BOGUS)}


@lru_cache(maxsize=64)
def _history(kind: str, seed: tuple[int, ...], wanted: int, positive: bool) -> SourceHistory:
    """Follow a source until it has sent `wanted` alerts; a dim draw is drawn again."""
    for attempt in range(_MOST_ATTEMPTS):
        rng = np.random.default_rng([*seed, 7, attempt])
        start = _SEASON_JD + float(rng.uniform(0, 900))
        model = draw_source(kind, start, rng)
        visits = _visits(start, rng, patience=40 + 3 * wanted + 10 * attempt)
        entries = tuple(visit_entry(visit, *measured(model, visit, rng)) for visit in visits)
        wanted_signs = ("t",) if positive else ("t", "f")
        detected = [i for i, e in enumerate(entries) if e["isdiffpos"] in wanted_signs]
        if len(detected) < wanted:
            continue
        chosen = [detected[i * len(detected) // wanted] for i in range(wanted)]
        if kind in BOGUS or kind == "moving":
            before, earlier, first = int(rng.integers(0, 400)), 0, entries[detected[0]]["jd"]
        elif kind in ("variable_star", "agn"):
            before = int(rng.integers(200, 1800))
            earlier = int(before * rng.uniform(0.02, 0.5))
            first = visits[0].jd - float(rng.uniform(100, 2000))
        else:
            before, earlier, first = int(rng.integers(100, 1500)), 0, entries[detected[0]]["jd"]
        return SourceHistory(model, visits, entries, tuple(chosen), before, earlier, first)
    raise RuntimeError(f"mock {kind}: no source with {wanted} detections in {_MOST_ATTEMPTS} draws")


def _repeated(history: SourceHistory, count: int) -> SourceHistory:
    return SourceHistory(
        history.model, history.visits, history.entries, history.alerts * count,
        history.visits_before, history.detections_before, history.start_jd,
    )  # fmt: skip


def _visits(start: float, rng: np.random.Generator, patience: int) -> tuple[Visit, ...]:
    """Return visits from 20 days before `start`: every other night or so, in g and r."""
    gaps = rng.choice([0.02, 0.98, 1.99, 2.98, 4.96], patience, p=[0.2, 0.2, 0.4, 0.15, 0.05])
    jd = start - 20 + np.cumsum(gaps + rng.uniform(0, 0.03, patience))
    band = rng.integers(1, 3, patience)
    limit = np.clip(rng.normal(20.3, 0.5, patience), 18.6, 21.2)
    fwhm = np.clip(rng.lognormal(np.log(2.2), 0.22, patience), 1.5, 4.5)
    zero = np.where(band == 1, 26.3, 26.25) + rng.normal(0, 0.05, patience)
    sky = np.clip(rng.lognormal(np.log(165), 0.4, patience), 60, 900)
    return tuple(
        Visit(float(a), int(b), float(c), float(d), float(e), float(f))
        for a, b, c, d, e, f in zip(jd, band, limit, fwhm, zero, sky, strict=True)
    )


def _stable(label: str) -> int:
    return zlib.crc32(label.encode())


def _name(number: int) -> str:
    """Return a ZTF-like name, unique for the number."""
    letters = []
    for _ in range(7):
        number, rest = divmod(number, 26)
        letters.append(chr(ord("a") + rest))
    return f"ZTF20{''.join(reversed(letters))}"


def _candid(seed: int, number: int, epoch: int) -> int:
    return (seed % 9000) * 10**15 + number * 100 + epoch + 1
