"""Mock galaxy surveys: the same galaxies through SDSS and DES.

A galaxy is a pure function of (seed, label, index) and the same in every survey; only point-spread
function, pixels, depth, noise and units differ. Point-spread functions and depths are the surveys'
published medians: SDSS DR7 (Abazajian et al. 2009, ApJS 182, 543) and DES DR1 (Abbott et al. 2018,
ApJS 239, 18).
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import galsim
import numpy as np
from pydantic import Field, model_validator

from skyray.cards import Card
from skyray.config import Config, ConfigError
from skyray.records import Cutout
from skyray.simulate import galaxy_images
from skyray.simulate.base import Simulator, register_simulator
from skyray.simulate.galaxy_images import BANDS, Galaxy, Kind
from skyray.transforms.cutting import des_half_width, sdss_half_width

_STAR_COLOURS = {"g": 1.0, "r": 0.0, "i": -0.45, "z": -0.7}  # in units of g − r
_VOTERS = 40
_LARGEST_PIXELS = 512
_FFT_SIZES = (64, 96, 128, 160, 192, 240, 288, 360, 432, 512, 640, 768, 864)


@dataclass(frozen=True)
class Camera:
    """How a survey sees.

    Attributes
    ----------
    pixel_arcsec : float
    zero_point : float
        Magnitude of a flux of 1: 22.5 for nanomaggies, 30 for DES counts.
    fwhm_arcsec : dict
        Of the point-spread function, by band.
    beta : float
        Moffat exponent.
    sky_sigma : dict
        Noise of the sky in a pixel, in flux units.
    electrons : dict
        Per flux unit, for the noise of the sources themselves.
    """

    name: str
    pixel_arcsec: float
    zero_point: float
    fwhm_arcsec: dict[str, float]
    beta: float
    sky_sigma: dict[str, float]
    electrons: dict[str, float]

    def flux(self, magnitude: float) -> float:
        return 10 ** (0.4 * (self.zero_point - magnitude))


def _per_pixel(limit: dict[str, float], zero_point: float, sigmas: float, area_pixels: dict):
    """Return the noise of one pixel from a limiting magnitude at `sigmas` in an area."""
    return {
        band: 10 ** (0.4 * (zero_point - magnitude)) / sigmas / math.sqrt(area_pixels[band])
        for band, magnitude in limit.items()
    }


_SDSS_FWHM = {"g": 1.44, "r": 1.32, "i": 1.26, "z": 1.29}
_DES_FWHM = {"g": 1.12, "r": 0.96, "i": 0.88, "z": 0.84}
SDSS = Camera(
    "sdss", 0.396, 22.5, _SDSS_FWHM, 3.0,
    # 5 σ for a point source: 2.27 FWHM² of noise
    _per_pixel({"g": 22.2, "r": 22.2, "i": 21.3, "z": 20.5}, 22.5, 5.0,
               {b: 2.27 * (f / 0.396) ** 2 for b, f in _SDSS_FWHM.items()}),
    {"g": 1300.0, "r": 1200.0, "i": 850.0, "z": 150.0},
)  # fmt: skip
DES = Camera(
    "des", 0.263, 30.0, _DES_FWHM, 3.5,
    # 10 σ in an aperture of 1.95″
    _per_pixel({"g": 24.33, "r": 24.08, "i": 23.44, "z": 22.69}, 30.0, 10.0,
               dict.fromkeys(BANDS, math.pi * (0.975 / 0.263) ** 2)),
    # some 25,000 electrons at magnitude 22.5
    {"g": 18.0, "r": 25.0, "i": 22.0, "z": 13.0},
)  # fmt: skip
CAMERAS = {"sdss": SDSS, "des": DES}


class ClassOptions(Config):
    """What the galaxies of a class may be; each kind is as likely."""

    kinds: tuple[Kind, ...] = Field(min_length=1)


class GalaxyOptions(Config):
    """``mock.options`` of a card with the simulator ``galaxies``."""

    survey: Literal["sdss", "des"]
    classes: dict[str, ClassOptions]
    half_width: Literal["corrected", "as_published"] = Field(
        "corrected", description="size rule of DES cutouts (see transforms.cutting)"
    )
    spiral: str = Field("spiral", description="class that votes for spirals speak for")
    min_vote: float = Field(
        0.0, ge=0, lt=1, description="only galaxies whose class got this share of votes"
    )

    @model_validator(mode="after")
    def _known(self):
        if self.spiral not in self.classes:
            raise ValueError(f"spiral: expected one of {sorted(self.classes)}")
        return self


@register_simulator
class GalaxySurvey(Simulator):
    """Mock galaxies of every class of a card, in one survey's images."""

    name = "galaxies"

    def __init__(self, card: Card, seed: int, templates: Path | None = None):
        super().__init__(card, seed, templates)
        self.options = GalaxyOptions.load(card.mock.options)
        if set(self.options.classes) != set(card.classes):
            raise ConfigError(
                f"card {card.name}: mock.options.classes: expected {sorted(card.classes)}, "
                f"found {sorted(self.options.classes)}"
            )
        if strange := set(card.bands) - set(BANDS):
            raise ConfigError(
                f"card {card.name}: bands: the simulator knows {BANDS}, found {sorted(strange)}"
            )
        self.camera = CAMERAS[self.options.survey]
        # Made once: GalSim tabulates the transform of a profile when it is first used.
        self._psf = {
            band: galsim.Moffat(beta=self.camera.beta, fwhm=fwhm, trunc=5 * fwhm)
            for band, fwhm in self.camera.fwhm_arcsec.items()
        }
        self._transforms: dict[tuple[str, int], np.ndarray] = {}

    def galaxy(self, label: str, index: int) -> tuple[Galaxy, float]:
        """Return what lies behind `record` and the share of votes its class got."""
        kinds = self.options.classes[label].kinds
        for attempt in range(1000):
            rng = _rng(self.seed, label, index, attempt)
            galaxy = galaxy_images.draw_galaxy(rng, kinds[int(rng.integers(len(kinds)))])
            vote = _vote(galaxy, rng)
            if vote >= self.options.min_vote:
                return galaxy, vote
        raise ConfigError(
            f"card {self.card.name}: min_vote {self.options.min_vote}: no such galaxy in 1000 draws"
        )

    def record(self, label: str, index: int) -> Cutout:
        """Return mock galaxy `index` of a class as the survey sees it."""
        galaxy, vote = self.galaxy(label, index)
        rng = _rng(self.seed, f"{self.options.survey}:{label}", index, 0)
        place = _rng(self.seed, f"place:{label}", index, 0)
        ra = float(place.uniform(0, 360))
        dec = float(np.degrees(np.arcsin(place.uniform(-0.35, 0.05))))
        jitter = rng.normal(0, 0.1 / 3600, 2)  # astrometry differs between surveys
        number = int(index) * len(self.card.classes) + self.card.classes.index(label)
        spiral = label == self.options.spiral
        return Cutout(
            object_id=f"mock-{self.seed}-{number}",
            image=self.image(galaxy, rng),
            bands=tuple(self.card.bands),
            pixel_scale_arcsec=self.camera.pixel_arcsec,
            ra=ra + jitter[0] / math.cos(math.radians(dec)),
            dec=dec + jitter[1],
            redshift=galaxy.redshift,
            survey=self.camera.name,
            source=f"mock:{self.card.name}/{self.seed}/{label}/{index}",
            extra={
                "kind": galaxy.kind, "r_mag": galaxy.r_mag, "truth": label,
                "petro_rad_arcsec": galaxy.petro_rad_arcsec,
                "P_CS_DEBIASED": vote if spiral else 1.0 - vote,
                "P_EL_DEBIASED": 1.0 - vote if spiral else vote,
            },
        )  # fmt: skip

    def image(self, galaxy: Galaxy, rng: np.random.Generator) -> np.ndarray:
        """Return the cutout, float32 [bands, S, S], in the survey's flux units."""
        camera = self.camera
        if camera is SDSS:
            half = sdss_half_width(galaxy.petro_rad_arcsec)
        else:
            # KRON_RADIUS · A_IMAGE of a galaxy whose cutout should show 2 Petrosian radii
            a_image = 2 * galaxy.petro_rad_arcsec / (1.08 * 3.5) / camera.pixel_arcsec
            half = des_half_width(3.5, a_image, self.options.half_width)
        side = int(np.clip(round(2 * half), 24, _LARGEST_PIXELS))
        offset = rng.uniform(-0.5, 0.5, 2) * camera.pixel_arcsec
        size = next(n for n in _FFT_SIZES if n >= 1.6 * side)
        parts = {
            name: transform(light.shift(*offset), size, camera.pixel_arcsec)
            for name, light in galaxy_images.profiles(galaxy).items()
        }
        return np.stack([self._band(galaxy, parts, band, side, rng) for band in self.card.bands])

    def _band(self, galaxy, parts, band: str, side: int, rng) -> np.ndarray:
        camera = self.camera
        size = next(iter(parts.values())).shape[0]
        magnitudes = galaxy_images.band_magnitudes(galaxy, band)
        light = sum(parts[name] * camera.flux(magnitude) for name, magnitude in magnitudes.items())
        seen = np.fft.fftshift(np.fft.irfft2(light * self._psf_transform(band, size), (size, size)))
        low = size // 2 - side // 2
        image = galsim.ImageD(seen[low : low + side, low : low + side].copy())
        for x, y, r_mag, colour in galaxy.stars:
            flux = camera.flux(r_mag + colour * _STAR_COLOURS[band])
            _add_star(image, self._psf[band] * flux, x, y, camera.pixel_arcsec)
        pixels = image.array
        sigma = np.sqrt(
            camera.sky_sigma[band] ** 2 + np.maximum(pixels, 0) / camera.electrons[band]
        )
        return (pixels + rng.normal(size=pixels.shape) * sigma).astype(np.float32)

    def _psf_transform(self, band: str, size: int) -> np.ndarray:
        """Return the transform of the point-spread function on a grid, float64 [size, size/2+1]."""
        if (band, size) not in self._transforms:
            step = 2 * np.pi / (size * self.camera.pixel_arcsec)
            k = np.fft.fftfreq(size) * size * step
            radius = np.hypot(k[:, None], np.abs(k[None, : size // 2 + 1]))
            table = np.linspace(0, radius.max(), 400)
            values = [self._psf[band].kValue(value, 0).real for value in table]
            self._transforms[band, size] = np.interp(radius, table, values)
        return self._transforms[band, size]


def transform(light: galsim.GSObject, size: int, pixel_arcsec: float) -> np.ndarray:
    """Return the Fourier transform of a light profile on a grid, complex [size, size/2+1].

    Each component is transformed once and serves all bands: the bands differ in brightness and
    point-spread function only.
    """
    half = size // 2
    bounds = galsim.BoundsI(-half, half - 1, -half, half - 1)
    step = 2 * np.pi / (size * pixel_arcsec)
    image = light.drawKImage(image=galsim.ImageCD(bounds, scale=step)).array
    return np.fft.ifftshift(image)[:, : half + 1]


def _add_star(
    image: galsim.ImageD, star: galsim.GSObject, x: float, y: float, pixel_arcsec: float
) -> None:
    place = galsim.PositionD(x, y) / pixel_arcsec + galsim.PositionD(image.center)
    centre = galsim.PositionI(round(place.x), round(place.y))
    stamp = star.drawImage(
        nx=33, ny=33, scale=pixel_arcsec, method="no_pixel",
        offset=galsim.PositionD(place.x - centre.x, place.y - centre.y),
    )  # fmt: skip
    stamp.setCenter(centre)
    shared = stamp.bounds & image.bounds
    if shared.isDefined():
        image[shared] += stamp[shared]


def _vote(galaxy: Galaxy, rng: np.random.Generator) -> float:
    """Draw the share of volunteers who name the class, from what SDSS shows."""
    snr = 10 ** (0.4 * (20.5 - galaxy.r_mag)) * 5.0
    seen = galaxy_images.visibility(galaxy, SDSS.fwhm_arcsec["r"], snr)
    chance = 0.5 + 0.5 / (1.0 + math.exp(-1.5 * seen))
    return float(rng.binomial(_VOTERS, chance) / _VOTERS)


def _rng(seed: int, label: str, index: int, attempt: int) -> np.random.Generator:
    return np.random.default_rng([seed, zlib.crc32(label.encode()), int(index), attempt])
