"""Mock galaxies before the telescope: bulge, disc, spiral arms, bar; what each looks like in gri z.

A galaxy is drawn from its own random numbers and knows no survey, so that several surveys can see
the same one. Lengths in arcsec, angles in radians, brightness in AB magnitudes.

Sizes and brightness follow the SDSS galaxies with Galaxy Zoo votes (r 14–17.8, Petrosian radii of
4–25″; Lintott et al. 2008); colours Strateva et al. 2001 (red and blue sequence); arms are
logarithmic spirals with pitch angles of 8–30° (Kennicutt 1981). The shapes are ours and simple.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import galsim
import numpy as np

Kind = Literal["spiral", "barred", "edge_on", "elliptical", "lenticular"]
KINDS: tuple[Kind, ...] = ("spiral", "barred", "edge_on", "elliptical", "lenticular")
BANDS = ("g", "r", "i", "z")
# magnitudes relative to r of an old and of a young population
_OLD = {"g": 0.78, "r": 0.0, "i": -0.39, "z": -0.66}
_YOUNG = {"g": 0.28, "r": 0.0, "i": -0.12, "z": -0.18}
# A few values, since GalSim tabulates each Sérsic index once.
_SERSIC = (1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5)
_FIELD_STARS_PER_ARCMIN2 = 2.0
_GRID = 128
_GRID_SCALE_LENGTHS = 5.0


@dataclass(frozen=True)
class Galaxy:
    """A mock galaxy.

    Attributes
    ----------
    kind : str
        One of `KINDS`.
    r_mag : float
        Total.
    half_light_arcsec : float
        Of the brighter component, along the major axis.
    petro_rad_arcsec : float
        About what SDSS would list as ``petroRad_r``.
    inclination : float
        0 = face on.
    clockwise : bool
        How the arms turn on the sky with north up and east left.
    bulge_fraction, arm_fraction, bar_fraction : float
        Shares of the light in r.
    """

    kind: Kind
    r_mag: float
    half_light_arcsec: float
    petro_rad_arcsec: float
    redshift: float
    sersic: float
    bulge_fraction: float
    bulge_radius_arcsec: float
    ellipticity: float
    inclination: float
    position_angle: float
    arms: int
    pitch: float
    arm_fraction: float
    arm_phase: float
    bar_fraction: float
    clockwise: bool
    reddening: float
    stars: tuple[tuple[float, float, float, float], ...]

    @property
    def scale_length_arcsec(self) -> float:
        """Scale length of the exponential disc."""
        return self.half_light_arcsec / 1.678


def draw_galaxy(rng: np.random.Generator, kind: Kind) -> Galaxy:
    """Draw a galaxy of a kind; its magnitude and size are correlated."""
    r_mag = 17.8 - 4.0 * rng.beta(1.0, 3.0)  # counts rise towards the limit of the main sample
    size = 3.4 * 10 ** (0.14 * (17.3 - r_mag)) * np.exp(rng.normal(0, 0.22))
    late = kind in ("spiral", "barred", "edge_on")
    half_light = float(np.clip(size * (1.25 if late else 1.0), 1.6, 16.0))
    if kind == "edge_on":
        inclination = np.radians(rng.uniform(82, 90))
    else:
        inclination = np.arccos(rng.uniform(0.32 if late else 0.45, 1.0))
    bulge = {"spiral": (0.03, 0.35), "barred": (0.03, 0.3), "edge_on": (0.02, 0.35),
             "lenticular": (0.35, 0.7), "elliptical": (1.0, 1.0)}[kind]  # fmt: skip
    return Galaxy(
        kind=kind,
        r_mag=float(r_mag),
        half_light_arcsec=half_light,
        petro_rad_arcsec=half_light * (1.95 if late else 2.15),
        redshift=float(np.clip(0.085 * rng.gamma(4.0, 0.25), 0.01, 0.25)),
        sersic=float(rng.choice(_SERSIC[2:] if not late else _SERSIC[:5])),
        bulge_fraction=float(rng.uniform(*bulge)),
        bulge_radius_arcsec=half_light * float(rng.uniform(0.12, 0.3)),
        ellipticity=float(rng.beta(1.6, 4.0)) * 0.75,
        inclination=float(inclination),
        position_angle=float(rng.uniform(0, np.pi)),
        arms=int(rng.choice([2, 2, 2, 3, 4])),
        pitch=float(np.radians(rng.uniform(8, 30))),
        arm_fraction=float(rng.uniform(0.2, 0.6)),
        arm_phase=float(rng.uniform(0, 2 * np.pi)),
        bar_fraction=float(rng.uniform(0.12, 0.3)) if kind == "barred" else 0.0,
        clockwise=bool(rng.random() < 0.5),
        reddening=float(rng.normal(0.0, 0.12)),
        stars=_field(rng, half_light),
    )


def _field(rng: np.random.Generator, half_light: float) -> tuple[tuple[float, ...], ...]:
    """Draw foreground stars: x, y in arcsec, r, and colour g − r."""
    half = 6.0 * half_light
    count = rng.poisson(_FIELD_STARS_PER_ARCMIN2 * (2 * half / 60) ** 2)
    return tuple(
        (float(rng.uniform(-half, half)), float(rng.uniform(-half, half)),
         float(14.5 + 8.5 * rng.beta(3.0, 1.2)), float(rng.uniform(0.3, 1.4)))
        for _ in range(min(int(count), 20))
    )  # fmt: skip


def visibility(galaxy: Galaxy, fwhm_arcsec: float, snr: float) -> float:
    """Return how plainly a person sees the type, about −2 … 3; 0 is doubtful.

    Better with resolution elements across the galaxy and with signal-to-noise; arms are seen less
    when weak or steeply inclined. What our mock votes follow; not a model of the volunteers.
    """
    elements = np.log2(max(galaxy.petro_rad_arcsec / fwhm_arcsec, 1e-3))
    depth = np.log2(max(snr, 1.0) / 30.0)
    sign = 0.0
    if galaxy.kind in ("spiral", "barred"):
        sign = 3.0 * (galaxy.arm_fraction - 0.3) + 1.5 * (np.cos(galaxy.inclination) - 0.6)
    elif galaxy.kind == "lenticular":
        sign = -0.7
    return float(1.3 * (elements - 3.4) + 0.5 * depth + sign)


def band_magnitudes(galaxy: Galaxy, band: str) -> dict[str, float]:
    """Return the magnitude of each component (old, young) in a band, total light as in r."""
    young = young_fraction(galaxy)
    redder = {"g": 1.0, "r": 0.0, "i": -0.5, "z": -0.8}[band] * galaxy.reddening
    shares = {"old": 1.0 - young, "young": young}
    colours = {"old": _OLD[band], "young": _YOUNG[band]}
    return {
        name: galaxy.r_mag - 2.5 * np.log10(share) + colours[name] + redder
        for name, share in shares.items()
        if share > 0
    }


def young_fraction(galaxy: Galaxy) -> float:
    """Return the share of the r light in young stars: the arms, and half of an edge-on disc."""
    disc = 1.0 - galaxy.bulge_fraction - galaxy.bar_fraction
    if galaxy.kind in ("spiral", "barred"):
        return disc * galaxy.arm_fraction
    return 0.4 * disc if galaxy.kind == "edge_on" else 0.0


def profiles(galaxy: Galaxy) -> dict[str, galsim.GSObject]:
    """Return the old and the young stars as GalSim objects of flux 1 each, above the atmosphere."""
    turn = galaxy.position_angle * galsim.radians
    if galaxy.kind == "elliptical":
        return {"old": _sersic(galaxy.sersic, galaxy.half_light_arcsec, galaxy.ellipticity, turn)}
    old_disc, young_disc = disc_images(galaxy)
    pixel = 2 * _GRID_SCALE_LENGTHS * galaxy.scale_length_arcsec / _GRID
    old = 1.0 - young_fraction(galaxy)
    flattened = 0.35 * np.sin(galaxy.inclination) ** 2
    bulge = _sersic(galaxy.sersic, galaxy.bulge_radius_arcsec, flattened, turn)
    found = {
        "old": bulge * (galaxy.bulge_fraction / old)
        + _interpolated(old_disc, pixel, turn) * (1 - galaxy.bulge_fraction / old)
    }
    if young_fraction(galaxy) > 0:
        found["young"] = _interpolated(young_disc, pixel, turn)
    return found


def _sersic(index: float, radius: float, ellipticity: float, turn: galsim.Angle) -> galsim.GSObject:
    round_ = galsim.Sersic(index, half_light_radius=radius, trunc=8 * radius)
    return round_.shear(e=min(ellipticity, 0.8), beta=turn)


def _interpolated(image: np.ndarray, pixel: float, turn: galsim.Angle) -> galsim.GSObject:
    made = galsim.InterpolatedImage(
        galsim.Image(image), scale=pixel, flux=1.0, x_interpolant="linear", normalization="flux"
    )
    return made.rotate(turn)


def disc_images(galaxy: Galaxy) -> tuple[np.ndarray, np.ndarray]:
    """Return the discs of old (with bar) and young stars, float64 [128, 128], major axis in x."""
    axis = (np.arange(_GRID) - (_GRID - 1) / 2) * (2 * _GRID_SCALE_LENGTHS / _GRID)
    x, y = np.meshgrid(axis, axis)  # in scale lengths
    if galaxy.kind == "edge_on":
        return _edge_on(x, y, galaxy)
    y = y / np.cos(galaxy.inclination) * (1.0 if galaxy.clockwise else -1.0)
    radius, angle = np.hypot(x, y), np.arctan2(y, x)
    disc = np.exp(-radius) * (radius < _GRID_SCALE_LENGTHS)
    if galaxy.kind == "lenticular":
        return disc, disc
    winding = np.log(np.maximum(radius, 0.05)) / np.tan(galaxy.pitch)
    phase = galaxy.arms * (angle - winding) + galaxy.arm_phase
    crest = np.exp(4.0 * (np.cos(phase) - 1.0))
    inner = 1.0 if galaxy.kind == "barred" else 0.35
    young = disc * crest * (1.0 - np.exp(-((radius / inner) ** 4)))
    old = disc * (0.55 + crest)
    if galaxy.bar_fraction:
        # The bar ends where the arms begin.
        along = galaxy.arm_phase / galaxy.arms
        u = x * np.cos(along) - y * np.sin(along)
        v = x * np.sin(along) + y * np.cos(along)
        bar = np.exp(-((np.abs(u) / 0.9) ** 4) - (v / 0.22) ** 2)
        share = galaxy.bar_fraction / (1 - galaxy.bulge_fraction - young_fraction(galaxy))
        old = old / old.sum() * (1 - share) + bar / bar.sum() * share
    return old, young


def _edge_on(x: np.ndarray, y: np.ndarray, galaxy: Galaxy) -> tuple[np.ndarray, np.ndarray]:
    """Exponential along, sech² across the disc; a dust lane lies in front of the old stars."""
    tilt = np.cos(galaxy.inclination)
    along = np.exp(-np.abs(x)) * (np.abs(x) + 0.3)  # K₁-like: less peaked than exp
    old_height, young_height = 0.16 + 0.5 * tilt, 0.07 + 0.5 * tilt
    old = along / np.cosh(np.clip(y / old_height, -30, 30)) ** 2
    dust = 0.6 * np.exp(-0.5 * ((y - 0.4 * tilt) / 0.05) ** 2) * np.exp(-np.abs(x) / 1.5)
    young = along / np.cosh(np.clip(y / young_height, -30, 30)) ** 2
    return old * (1 - dust), young
