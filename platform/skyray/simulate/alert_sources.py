"""What a mock alert survey finds: kinds of sources, their light curves, their surroundings.

Fluxes are 10^(−0.4 mag). Bands have ZTF's numbers: 1 g, 2 r. Every draw comes from the generator
that is passed in, so a source is a function of its seed.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from skyray.simulate.sky_images import Sersic

BOGUS = ("dipole", "cosmic_ray", "hot_pixel", "streak", "edge")
SINGLE = ("moving", "cosmic_ray", "streak")  # seen once at a place: every alert is another source
# The subsets of the training set of Rehemtulla et al. 2024: bright transients, faint ones,
# variables and what people rejected.
SUBSETS = {
    "supernova": "trues", "dim_supernova": "dims", "variable_star": "vars", "agn": "vars",
    "outburst": "vars", "moving": "rejects", **dict.fromkeys(BOGUS, "rejects"),
}  # fmt: skip
KINDS = tuple(SUBSETS)
PIXEL_SCALE_ARCSEC = 1.01
_HOSTED = ("supernova", "dim_supernova", "agn")


@dataclass(frozen=True)
class StaticObject:
    """A star or galaxy of the reference image; x, y in pixels from the alert's position.

    Attributes
    ----------
    mag : tuple of float
        g, r and z.
    shape : Sersic, optional
        None for a star.
    """

    x: float
    y: float
    mag: tuple[float, float, float]
    shape: Sersic | None = None

    @property
    def distance_arcsec(self) -> float:
        return float(np.hypot(self.x, self.y) * PIXEL_SCALE_ARCSEC)


@dataclass(frozen=True)
class LightCurve:
    """The change of flux against the reference image.

    Attributes
    ----------
    kind : str
    peak_jd : float
        Of a supernova; start of an outburst; phase 0 of what varies.
    mag : dict
        Band → magnitude: at the peak, or of the quiet object for what varies.
    rates : array
        Days: e-folding time of the decline, or periods. `amplitudes` go with periods.
    """

    kind: str
    peak_jd: float
    mag: dict[int, float]
    rates: np.ndarray = field(default_factory=lambda: np.ones(1))
    amplitudes: np.ndarray = field(default_factory=lambda: np.ones(1))
    phases: np.ndarray = field(default_factory=lambda: np.zeros(1))

    def difference(self, jd: float, band: int) -> float:
        """Return the flux above the reference's (negative: fainter)."""
        flux = 10 ** (-0.4 * self.mag[band])
        since = jd - self.peak_jd
        if self.kind in ("supernova", "dim_supernova"):
            if since < 0:
                return flux * max(1 + since / 17.0, 0.0) ** 2
            return flux * float(np.exp(-since / (self.rates[0] * (1.0 if band == 1 else 1.5))))
        if self.kind == "outburst":
            return flux * float(np.exp(-since / self.rates[0])) if since >= 0 else 0.0
        if self.kind in ("variable_star", "agn"):
            turns = 2 * np.pi * (since / self.rates + self.phases)
            return flux * float(np.sum(self.amplitudes * np.sin(turns)))
        return flux


@dataclass(frozen=True)
class SourceModel:
    """A source: its kind, light curve, and the objects around it, nearest first."""

    kind: str
    curve: LightCurve
    scene: tuple[StaticObject, ...]
    ra: float
    dec: float


def draw_source(kind: str, jd: float, rng: np.random.Generator) -> SourceModel:
    """Draw a source of a kind whose activity begins about `jd`."""
    counterpart = _counterpart(kind, rng)
    others = [_field_object(rng) for _ in range(int(rng.poisson(3.0)) + 2)]
    scene = sorted([*counterpart, *others], key=lambda item: item.distance_arcsec)
    dec = float(np.degrees(np.arcsin(rng.uniform(np.sin(np.radians(-25)), 0.99))))
    curve = _light_curve(kind, jd, counterpart, rng)
    return SourceModel(kind, curve, tuple(scene), float(rng.uniform(0, 360)), dec)


def _counterpart(kind: str, rng: np.random.Generator) -> list[StaticObject]:
    """Return what the reference image shows at the place of the source, if anything."""
    if kind in _HOSTED:
        mag = float(np.clip(rng.normal(17.8, 1.3), 14.0, 21.0))
        radius = float(np.clip(rng.lognormal(0.0, 0.4) * 10 ** (-0.12 * (mag - 18)) * 2.2, 0.7, 9))
        distance = 0.0 if kind == "agn" else radius * float(rng.rayleigh(0.9))
        return [_galaxy(mag, radius, distance, rng)]
    if kind == "outburst":
        return [_star(float(rng.uniform(19.5, 22.0)), 0.0, rng)]
    if kind in ("variable_star", "dipole"):
        low, high = (14.0, 18.5) if kind == "variable_star" else (13.0, 16.5)
        return [_star(float(rng.uniform(low, high)), float(rng.rayleigh(0.12)), rng)]
    return []


def _field_object(rng: np.random.Generator) -> StaticObject:
    mag = float(np.clip(21.5 - rng.exponential(1.8), 14.0, 21.5))
    distance = float(30 * np.sqrt(rng.uniform(0.02, 1.0)))
    if rng.random() < 0.55:
        return _star(mag, distance, rng)
    return _galaxy(mag, float(rng.uniform(0.7, 2.5)), distance, rng)


def _star(mag: float, distance: float, rng: np.random.Generator) -> StaticObject:
    x, y = _place(distance, rng)
    return StaticObject(x, y, _colours(mag, float(rng.normal(0.7, 0.35)), rng))


def _galaxy(mag: float, radius: float, distance: float, rng: np.random.Generator) -> StaticObject:
    x, y = _place(distance, rng)
    return StaticObject(
        x, y, _colours(mag, float(rng.normal(0.65, 0.2)), rng),
        Sersic(radius, float(rng.uniform(0.8, 4)), float(rng.uniform(0.3, 1.0)),
               float(rng.uniform(0, np.pi))),
    )  # fmt: skip


def _place(distance: float, rng: np.random.Generator) -> tuple[float, float]:
    turn = rng.uniform(0, 2 * np.pi)
    return float(distance * np.cos(turn)), float(distance * np.sin(turn))


def _colours(r: float, g_minus_r: float, rng: np.random.Generator) -> tuple[float, float, float]:
    return (r + g_minus_r, r, r - 0.6 * g_minus_r + float(rng.normal(0, 0.05)))


def _light_curve(
    kind: str, jd: float, counterpart: list[StaticObject], rng: np.random.Generator
) -> LightCurve:
    if kind in ("supernova", "dim_supernova"):
        low, high = (15.5, 18.2) if kind == "supernova" else (18.9, 19.9)
        mag = float(rng.uniform(low, high))
        colour = float(rng.normal(0.0, 0.15))
        return LightCurve(
            kind, jd + 17.0, {1: mag + max(colour, 0), 2: mag + max(-colour, 0)},
            rates=np.array([rng.uniform(16, 28)]),
        )  # fmt: skip
    if kind == "outburst":
        mag = float(rng.uniform(15.5, 19.0))
        return LightCurve(kind, jd, {1: mag, 2: mag + 0.1}, np.array([rng.uniform(3, 7)]))
    if kind in ("variable_star", "agn"):
        count = 1 if kind == "variable_star" else 4
        low, high = (0.2, 40.0) if kind == "variable_star" else (30.0, 900.0)
        mag = dict(zip((1, 2), counterpart[0].mag[:2], strict=True))
        if kind == "agn":  # the nucleus is a part of its galaxy
            mag = {band: value + float(rng.uniform(0.3, 1.2)) for band, value in mag.items()}
        return LightCurve(
            kind, jd, mag, np.exp(rng.uniform(np.log(low), np.log(high), count)),
            rng.uniform(0.12, 0.5, count) / np.sqrt(count), rng.random(count),
        )  # fmt: skip
    if kind == "dipole":  # a tenth or so of the star's light is left over
        lost = float(rng.uniform(1.8, 3.2))
        return LightCurve(
            kind, jd, {1: counterpart[0].mag[0] + lost, 2: counterpart[0].mag[1] + lost}
        )
    mag = float(rng.uniform(15.0, 19.5))
    return LightCurve(kind, jd, {1: mag, 2: mag})
