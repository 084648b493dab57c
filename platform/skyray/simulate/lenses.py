"""Mock strong lenses with and without dark-matter substructure, as HST or Euclid would see them.

A galaxy at redshift 1 behind a singular isothermal ellipsoid with shear at redshift 0.5, after
Alexander et al. 2022 (arXiv:2112.12121) and the simulator released with it; where that departs from
what is right or from the paper, a switch decides (see `LensOptions`). The deflector's own light is
left out, as in the paper. Every image is a pure function of (seed, label, index); two cameras draw
the same lens from the same numbers, each with noise of its own.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field, model_validator

from skyray.cards import Card
from skyray.config import Config, ConfigError
from skyray.records import Cutout
from skyray.simulate.base import Simulator, register_simulator
from skyray.simulate.deflection import (
    LensGalaxy,
    Mode,
    Profile,
    SmallMasses,
    effective_einstein_radius,
    einstein_radius_of_unit_mass,
    tidal_truncation,
)
from skyray.simulate.lens_cameras import CAMERAS, Camera, arc_snr, scale_to_snr
from skyray.simulate.lens_sources import Gallery, Source, draw_sersic_galaxy
from skyray.simulate.substructure import MassFunction, PointMasses, draw_subhalos, draw_vortex

CLASSES = ("NO_SUBSTRUCTURE", "CDM", "AXION")
_NOTHING = PointMasses(*np.zeros((3, 0)))


class LensOptions(Config):
    """``mock.options`` of a lens card; the defaults are those of the released simulator."""

    cameras: list[Literal["hst", "euclid"]] = Field(min_length=1)
    paired: bool = Field(False, description="two cameras draw the same lenses instead of different")
    snr: float = Field(20.0, gt=0, description="of a pixel of the arcs (see lens_cameras.arc_snr)")
    supersampling: int = Field(2, ge=1, description="rays along the side of a pixel")
    lens_redshift: float = Field(0.5, gt=0)
    source_redshift: float = Field(1.0, gt=0)
    hubble: float = Field(70.0, gt=0, description="km/s/Mpc")
    omega_matter: float = Field(0.3, gt=0, lt=1)
    lens_mass_solar: float = Field(1e12, gt=0, description="within the Einstein radius")
    ellipticity: float = Field(0.1, ge=0, lt=0.6)
    shear: float = Field(0.05, ge=0, lt=0.4)
    random_orientation: bool = Field(False, description="turn ellipticity and shear together")
    subhalo_count: float = Field(25.0, ge=0, description="mean number")
    subhalo_mass_fraction: float | None = Field(
        None, gt=0, description="of the lens's mass, on average; sets the mean number instead"
    )
    subhalo_slope: float = Field(-1.9, description="of dN/dm")
    subhalo_mass_solar: tuple[float, float] = (1e6, 1e10)
    subhalo_radii_arcsec: tuple[float, float] = (0.25, 2.0)
    subhalo_profile: Profile = "point_mass"
    vortex_mass_solar: float = Field(3e10, gt=0)
    vortex_elements: int = Field(100, ge=2)
    axion_log10_ev: tuple[float, float] = Field((-24.0, -22.0), description="uniform between")
    source_offset_arcsec: float = Field(0.35, ge=0)
    source_radii_arcsec: tuple[float, float] = (0.15, 0.35)
    source_indices: tuple[float, float] = (0.7, 2.0)
    source_clumps: int = Field(3, ge=0, description="largest number of knots in a Sérsic disc")
    picture_size_arcsec: float = Field(2.0, gt=0, description="width of a real galaxy's picture")
    mode: Mode = Field("corrected", description="default of every switch left at null")
    distances: Mode | None = Field(
        None, description="as_published: luminosity distances (1.28″ for 1.66″)"
    )
    subhalo_masses: Mode | None = Field(
        None, description="as_published: a fixed number, slope −0.9 for −1.9"
    )
    noise: Mode | None = Field(
        None, description="as_published: none and doubled (Euclid), Poisson noise twice (HST)"
    )

    def switch(self, name: str) -> Mode:
        """Return a switch's value; null follows `mode`."""
        return getattr(self, name) or self.mode

    @model_validator(mode="after")
    def _behind(self):
        if self.source_redshift <= self.lens_redshift:
            raise ValueError("source_redshift: expected more than lens_redshift")
        return self


@dataclass(frozen=True)
class MockLens:
    """A lens before any camera: what bends the light, what shines, and what was drawn."""

    galaxy: LensGalaxy
    masses: SmallMasses
    source: Source
    ra: float
    dec: float
    drawn: dict[str, float]

    def deflection(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the deflection of rays at x, y (arcsec), same shape."""
        (gx, gy), (mx, my) = self.galaxy.deflection(x, y), self.masses.deflection(x, y)
        return gx + mx, gy + my


@dataclass(frozen=True)
class Exposed:
    """A lens through a camera: the light without noise and the image, e⁻/s [S, S]."""

    camera: Camera
    signal: np.ndarray
    image: np.ndarray
    deflection: tuple[np.ndarray, np.ndarray]


@register_simulator
class LensSurvey(Simulator):
    """Mock lenses of a card; `templates` may be pictures of real galaxies for the sources."""

    name = "lenses"

    def __init__(self, card: Card, seed: int, templates: Path | None = None):
        super().__init__(card, seed, templates)
        self.options = LensOptions.load(dict(card.mock.options) if card.mock else {})
        strange = set(card.classes) - set(CLASSES)
        if card.record != "cutout" or len(card.bands or ()) != 1 or strange:
            raise ConfigError(
                f"card {card.name}: simulator lenses: expected cutouts of one band with classes "
                f"among {CLASSES}, found {card.record}, {card.bands}, {card.classes}"
            )
        self.cameras = [CAMERAS[name] for name in self.options.cameras]
        self._gallery = Gallery(templates) if templates else None

    def record(self, label: str, index: int) -> Cutout:
        camera = self.cameras[index % len(self.cameras)]
        number = index // len(self.cameras) if self.options.paired else index
        lens = self.lens(label, number)
        seen = self.expose(lens, camera, label, number)
        theta_found = effective_einstein_radius(
            *seen.deflection, camera.pixel_scale_arcsec / self.options.supersampling
        )
        return Cutout(
            object_id=f"lens{self.seed}-{label}-{camera.name}-{number:07d}",
            image=seen.image[None].astype(np.float32),
            bands=tuple(self.card.bands),
            pixel_scale_arcsec=camera.pixel_scale_arcsec,
            ra=lens.ra,
            dec=lens.dec,
            redshift=self.options.lens_redshift,
            survey=camera.name,
            source=f"mock:{self.card.name}/{self.seed}/{label}/{index}",
            extra={
                **lens.drawn,
                "substructure": label,
                "theta_e_found_arcsec": theta_found,
                "snr_asked": self.options.snr,
                "snr": arc_snr(seen.signal, camera.noise_sigma(seen.signal)),
                "magnitude": camera.magnitude(float(seen.signal.sum())),
            },
        )

    def lens(self, label: str, number: int) -> MockLens:
        """Return lens `number` of a class, the same for every camera."""
        options, rng = self.options, self._rng(label, number)
        unit = einstein_radius_of_unit_mass(
            options.lens_redshift, options.source_redshift, options.hubble, options.omega_matter,
            options.switch("distances"),
        )  # fmt: skip
        theta_e = unit * np.sqrt(options.lens_mass_solar)
        turn = rng.uniform(0, 2 * np.pi) if options.random_orientation else 0.0
        ellipticity, shear = (
            value * np.array([np.cos(turn), np.sin(turn)])
            for value in (options.ellipticity, options.shear)
        )
        source = self._draw_source(rng)
        masses, drawn = self._draw_substructure(rng, label)
        small = SmallMasses(masses.x, masses.y, unit * np.sqrt(masses.mass_solar))
        if label == "CDM" and options.subhalo_profile == "pseudo_jaffe":
            cut = tidal_truncation(small.theta_e_arcsec, theta_e)
            small = replace(small, truncation_arcsec=cut)
        return MockLens(
            LensGalaxy(theta_e, *ellipticity, *shear),
            small,
            source,
            ra=float(rng.uniform(0.0, 360.0)),
            dec=float(np.degrees(np.arcsin(rng.uniform(-1.0, 1.0)))),
            drawn={"theta_e_arcsec": float(theta_e), **drawn},
        )

    def expose(self, lens: MockLens, camera: Camera, label: str, number: int) -> Exposed:
        """Look at a lens: trace rays, blur, bin, scale to the SNR asked for and add noise."""
        factor = self.options.supersampling
        x, y = camera.rays(self.card.image_size, factor)
        alpha = lens.deflection(x, y)
        signal = camera.detect(lens.source(x - alpha[0], y - alpha[1]), factor)
        signal = scale_to_snr(signal, camera, self.options.snr)
        rng = np.random.default_rng(
            [self.seed, zlib.crc32(label.encode()), int(number), zlib.crc32(camera.name.encode())]
        )
        return Exposed(camera, signal, self._noisy(signal, camera, rng), alpha)

    def _noisy(self, signal: np.ndarray, camera: Camera, rng) -> np.ndarray:
        if self.options.switch("noise") == "corrected":
            return camera.expose(signal, rng)
        if camera.name == "euclid":
            return 2.0 * signal
        once = camera.expose(signal, rng)
        return rng.poisson(np.maximum(once, 0.0) * camera.seconds) / camera.seconds

    def _rng(self, label: str, number: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, zlib.crc32(label.encode()), int(number)])

    def _draw_source(self, rng: np.random.Generator) -> Source:
        options = self.options
        if self._gallery:
            return self._gallery.draw(
                rng, options.picture_size_arcsec, options.source_offset_arcsec
            )
        return draw_sersic_galaxy(
            rng, options.source_radii_arcsec, options.source_indices, options.source_clumps,
            options.source_offset_arcsec,
        )  # fmt: skip

    def _draw_substructure(self, rng, label: str) -> tuple[PointMasses, dict[str, float]]:
        options = self.options
        if label == "CDM":
            function = MassFunction(options.subhalo_slope, *options.subhalo_mass_solar)
            count = options.subhalo_count
            if options.subhalo_mass_fraction:
                total = options.subhalo_mass_fraction * options.lens_mass_solar
                count = total / function.mean()
            found = draw_subhalos(
                rng, function, count, options.subhalo_radii_arcsec, options.switch("subhalo_masses")
            )
            mass = float(found.mass_solar.sum())
            return found, {"subhalos": len(found.mass_solar), "subhalo_mass_solar": mass}
        if label == "AXION":
            log10_ev = float(rng.uniform(*options.axion_log10_ev))
            found = draw_vortex(
                rng, options.vortex_mass_solar, 10.0**log10_ev, options.vortex_elements
            )
            return found, {"axion_log10_ev": log10_ev}
        return _NOTHING, {}
