"""Planted outliers: strange spectra of known kinds, to test a search for outliers with.

Every kind passes the card's cuts as a galaxy does, since that is how outliers come into a sample.
The kinds are those that Liang et al. (2023, AJ 166, 75) and the DESI BGS paper after them report:

- ``blend``: a star in front of a galaxy, 0.3 to 1 of its flux at 5500 Å;
- ``double_peaked``: emission lines split by 300–900 km/s;
- ``bal_quasar``: a broad-absorption-line quasar that the pipeline took for a nearby galaxy;
- ``wrong_redshift``: a galaxy whose catalogued redshift is off by 0.02 or more;
- ``arm_missing``: nothing measured in one arm of the spectrograph;
- ``arm_scaled``: one arm calibrated wrongly, by 0.4–0.7 or 1.4–2.2.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from skyray.cards import Card
from skyray.config import ConfigError
from skyray.records import Spectrum
from skyray.simulate import quasar_spectra
from skyray.simulate.instruments import Pixels
from skyray.simulate.lines import LIGHT_KMS
from skyray.simulate.options import ClassOptions, snr_floor
from skyray.simulate.spectra import MockObject, MockSurvey

KINDS = (
    "blend", "double_peaked", "bal_quasar", "wrong_redshift", "arm_missing", "arm_scaled"
)  # fmt: skip
_EMISSION = ("agn", "starforming", "starburst")
_BLENDED_STARS = ("A", "F", "G", "K", "K", "M", "M", "M")  # faint stars are mostly cool
_NORM_WINDOW = (5300.0, 5850.0)  # rest-frame Å; see transforms.rest_frame
_OVERLAP = 30.0  # Å to either side of a joint where neighbouring arms are averaged


@dataclass(frozen=True)
class Planted:
    """A planted outlier before it is catalogued.

    Attributes
    ----------
    mock : MockObject
        ``mock.redshift`` is the catalogue's.
    label : str
        The class of the card it passes for.
    true_redshift : float
        That of the galaxy or quasar.
    note : str
        What was done, in words.
    """

    mock: MockObject
    label: str
    true_redshift: float
    note: str


class PlantedSurvey:
    """Planted outliers among the galaxies of a mock survey.

    As in `MockSurvey` every spectrum is a pure function of (seed, kind, index).

    Parameters
    ----------
    card : Card
        With a spectrum mock that has a galaxy class.
    seed : int
    templates : Path, optional
        Folder of external templates, as for `MockSurvey`.

    Raises
    ------
    ConfigError
        If the card's mock makes no galaxies with emission lines.
    """

    def __init__(self, card: Card, seed: int, templates: Path | None = None):
        self.survey = MockSurvey(card, seed, templates)
        self.card, self.seed = card, int(seed)
        classes = self.survey.options.classes
        self._galaxies = [label for label, found in classes.items() if found.kind == "galaxy"]
        self._emission = [k for k in self._galaxies if set(classes[k].types) & set(_EMISSION)]
        if not self._emission:
            raise ConfigError(
                f"card {card.name}: mock.options.classes: planted outliers need a class of kind "
                f"galaxy with one of the types {_EMISSION}"
            )
        self._snr_floor = snr_floor(card)

    def record(self, kind: str, index: int) -> Spectrum:
        return self.spectrum(kind, index)

    def spectrum(self, kind: str, index: int) -> Spectrum:
        """Return planted outlier `index` of a kind.

        ``redshift`` is the catalogue's. ``extra`` holds ``planted`` (the kind), ``planted_note``
        (what was done) and ``planted_redshift`` (the true one).

        Raises
        ------
        ValueError
            If there is no such kind.
        """
        rng, planted = self._make(kind, index)
        number = int(index) * len(KINDS) + KINDS.index(kind)
        source = f"mock:{self.card.name}/{self.seed}/planted-{kind}/{index}"
        ids = self.survey.identity(number, planted=True)
        made = self.survey.catalogued(rng, planted.mock, planted.label, ids, source)
        extra: dict[str, Any] = {
            **made.extra,
            "planted": kind,
            "planted_note": planted.note,
            "planted_redshift": planted.true_redshift,
        }
        return replace(made, extra=extra)

    def planted(self, kind: str, index: int) -> Planted:
        """Return what lies behind `spectrum`."""
        return self._make(kind, index)[1]

    def _make(self, kind: str, index: int) -> tuple[np.random.Generator, Planted]:
        if kind not in KINDS:
            raise ValueError(f"planted outlier: expected a kind of {KINDS}, found {kind!r}")
        rng = np.random.default_rng([self.seed, zlib.crc32(f"planted {kind}".encode()), int(index)])
        make: Callable[[np.random.Generator], Planted] = getattr(self, f"_{kind}")
        return rng, make(rng)

    def _pick(self, rng, labels: list[str]) -> tuple[str, ClassOptions]:
        label = labels[int(rng.integers(len(labels)))]
        return label, self.survey.options.classes[label]

    def _observe(self, rng, light, pixels: Pixels, redshift: float, options) -> MockObject:
        snr = options.snr.draw(rng, self._snr_floor)
        return self.survey.observe(rng, light, pixels, redshift, snr)

    def _galaxy(self, rng) -> tuple[str, MockObject]:
        """Return an ordinary galaxy of the survey and its class."""
        label, options = self._pick(rng, self._galaxies)
        pixels = self.survey.instrument.exposure(rng)
        redshift = options.redshift.draw(rng, "galaxy")
        subtype = options.types[int(rng.integers(len(options.types)))]
        light = self.survey.light.of(rng, "galaxy", subtype, pixels, redshift)
        return label, self._observe(rng, light, pixels, redshift, options)

    def _blend(self, rng) -> Planted:
        label, options = self._pick(rng, self._galaxies)
        pixels = self.survey.instrument.exposure(rng)
        redshift = options.redshift.draw(rng, "galaxy")
        subtype = options.types[int(rng.integers(len(options.types)))]
        galaxy = self.survey.light.of(rng, "galaxy", subtype, pixels, redshift)
        star_type = str(rng.choice(_BLENDED_STARS))
        velocity = float(rng.normal(0.0, 80.0)) / LIGHT_KMS
        star = self.survey.light.of(rng, "star", star_type, pixels, velocity)
        ratio = float(np.exp(rng.uniform(np.log(0.3), 0.0)))
        near = np.abs(pixels.wavelength - 5500.0) < 50.0
        light = galaxy + ratio * star * (np.median(galaxy[near]) / np.median(star[near]))
        mock = self._observe(rng, light, pixels, redshift, options)
        note = f"{star_type} star, {ratio:.2f} of the galaxy's flux at 5500 Å"
        return Planted(mock, label, redshift, note)

    def _double_peaked(self, rng) -> Planted:
        label, options = self._pick(rng, self._emission)
        pixels = self.survey.instrument.exposure(rng)
        redshift = options.redshift.draw(rng, "galaxy")
        types = [name for name in options.types if name in _EMISSION]
        galaxy = self.survey.light.galaxy(rng, types[int(rng.integers(len(types)))])
        split = float(rng.uniform(300.0, 900.0))
        # narrow enough for a dip between the peaks, strong enough to be seen
        gas = replace(
            galaxy.gas,
            sigma_kms=min(galaxy.gas.sigma_kms, split / 3.5),
            halpha_ew=max(galaxy.gas.halpha_ew, float(rng.uniform(15.0, 40.0))),
        )
        share = float(rng.uniform(0.35, 0.65))
        light = self.survey.light.double_peaked(
            replace(galaxy, gas=gas), pixels, redshift, split, share
        )
        mock = self._observe(rng, light, pixels, redshift, options)
        note = f"lines split by {split:.0f} km/s, {share:.2f} of the flux in the blue peak"
        return Planted(mock, label, redshift, note)

    def _bal_quasar(self, rng) -> Planted:
        label, options = self._pick(rng, self._galaxies)
        pixels = self.survey.instrument.exposure(rng)
        true = float(rng.uniform(1.45, 2.6))  # the trough of C IV is inside the spectrum
        traits = quasar_spectra.draw_traits(rng, "broad_lines", true)
        low_ions = bool(rng.random() < 0.4)
        traits = replace(traits, bal=float(rng.uniform(0.75, 1.0)), low_ions=low_ions)
        light = self.survey.light.quasar(rng, traits, pixels, true)
        catalogued = options.redshift.draw(rng, "galaxy")
        mock = self._observe(rng, light, pixels, catalogued, options)
        ions = "C IV and Mg II" if low_ions else "C IV"
        return Planted(mock, label, true, f"z = {true:.3f}, troughs of {ions}")

    def _wrong_redshift(self, rng) -> Planted:
        label, mock = self._galaxy(rng)
        limits = self.survey.options.classes[label].redshift
        catalogued = mock.redshift
        while abs(catalogued - mock.redshift) < 0.02:
            catalogued = float(rng.uniform(max(limits.min, 5e-4), min(limits.max, 0.8)))
        wrong = replace(mock, redshift=catalogued)
        return Planted(wrong, label, mock.redshift, f"z = {mock.redshift:.4f}")

    def _arm_missing(self, rng) -> Planted:
        label, mock = self._galaxy(rng)
        wavelength, edges = mock.pixels.wavelength, self._edges()
        rest = wavelength / (1.0 + mock.redshift)
        window = (rest > _NORM_WINDOW[0]) & (rest < _NORM_WINDOW[1])
        arms = [(wavelength >= low) & (wavelength < high) for low, high in edges]
        # A spectrum that cannot be normalised gets no score: part of that window stays.
        choices = [i for i, arm in enumerate(arms) if (window & ~arm).sum() > 0.3 * window.sum()]
        arm = choices[int(rng.integers(len(choices)))]
        lost, exposure = arms[arm], mock.exposure
        dead = replace(
            exposure,
            flux=np.where(lost, np.float32(0), exposure.flux),
            ivar=np.where(lost, np.float32(0), exposure.ivar),
            mask=exposure.mask | lost,
        )
        note = f"no data in the {self._arm_name(arm)} arm"
        return Planted(replace(mock, exposure=dead), label, mock.redshift, note)

    def _arm_scaled(self, rng) -> Planted:
        label, mock = self._galaxy(rng)
        edges = self._edges()
        arm = int(rng.integers(len(edges)))
        low, high = (0.4, 0.7) if rng.random() < 0.5 else (1.4, 2.2)
        factor = float(rng.uniform(low, high))
        wavelength, exposure = mock.pixels.wavelength, mock.exposure
        begin, end = edges[arm]
        ramp = np.minimum(wavelength - begin, end - wavelength) / (2 * _OVERLAP) + 0.5
        scale = 1.0 + (factor - 1.0) * np.clip(ramp, 0.0, 1.0)
        scaled = replace(
            exposure,
            truth=exposure.truth * scale,
            flux=(exposure.flux * scale).astype(np.float32),
            ivar=(exposure.ivar / scale**2).astype(np.float32),
        )
        note = f"{self._arm_name(arm)} arm times {factor:.2f}"
        return Planted(replace(mock, exposure=scaled), label, mock.redshift, note)

    def _edges(self) -> list[tuple[float, float]]:
        """Return where the arms begin and end, Å; the first and last reach past every pixel."""
        ends = (-1e9, *self.survey.instrument.joints, 1e9)
        return list(itertools.pairwise(ends))

    def _arm_name(self, arm: int) -> str:
        count = len(self._edges())
        return ("blue", "red")[arm] if count == 2 else ("b", "r", "z")[arm]


def mixed_order(card: Card, normal: int, share: float, seed: int) -> list[tuple[str, int, bool]]:
    """Return what a mixed survey holds, in its order: (class or kind, index, planted or not).

    Parameters
    ----------
    normal : int
        Ordinary objects, shared evenly among the card's classes.
    share : float
        0 ≤ share < 1; fraction of the whole that is planted, the kinds in equal numbers (± 1).
    seed : int
        Of the order.
    """
    if normal < 1 or not 0 <= share < 1:
        raise ValueError(
            f"mixed: expected normal ≥ 1 and 0 ≤ share < 1, found {normal} and {share}"
        )
    classes = list(card.classes)
    count = round(normal * share / (1.0 - share))
    entries = [(classes[i % len(classes)], i // len(classes), False) for i in range(normal)]
    entries += [(KINDS[i % len(KINDS)], i // len(KINDS), True) for i in range(count)]
    order = np.random.default_rng([int(seed), zlib.crc32(b"mixed")]).permutation(len(entries))
    return [entries[i] for i in order]


def mixed(
    card: Card, normal: int, share: float = 0.02, seed: int = 0, templates: Path | None = None
) -> Iterator[Spectrum]:
    """Yield a mock survey with planted outliers in a random but reproducible order.

    The ordinary spectra are those of ``MockSurvey(card, seed, templates)``, the same numbers of
    each class as a simulation of `normal` objects has.
    """
    planted = PlantedSurvey(card, seed, templates)
    for name, index, strange in mixed_order(card, normal, share, seed):
        source = planted if strange else planted.survey
        yield source.spectrum(name, index)
