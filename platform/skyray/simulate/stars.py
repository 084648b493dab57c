"""Drawing stars by type: temperature, metallicity, line strength, dust; and the odd ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from skyray.simulate import dust, restframe
from skyray.simulate.lines import LIGHT_KMS, add_gaussian
from skyray.simulate.stellar_lines import hydrogen_series
from skyray.simulate.stellar_spectra import (
    carbon_star,
    star_between,
    stellar_flux,
    white_dwarf,
)


@dataclass(frozen=True)
class StarType:
    """Effective temperature (K) and metallicity (dex) of a spectral type, means and scatter."""

    teff: float
    teff_scatter: float
    feh: float
    feh_scatter: float = 0.4


# Temperatures after Pecaut & Mamajek (2013); F and G stars of SDSS are halo and thick-disc stars.
NORMAL_TYPES = {
    "O": StarType(32000, 2500, 0.0, 0.1),
    "B": StarType(14500, 3000, 0.0, 0.2),
    "A": StarType(8700, 700, -0.9, 0.6),
    "F": StarType(6500, 350, -1.0, 0.6),
    "G": StarType(5650, 200, -0.5, 0.4),
    "K": StarType(4700, 330, -0.3, 0.3),
    "M": StarType(3400, 230, -0.1, 0.25),
    "A0": StarType(9500, 420, -0.6, 0.6),
    "F5": StarType(6500, 110, -1.0, 0.5),
    "F9": StarType(6070, 100, -0.8, 0.5),
    "G2": StarType(5790, 95, -0.4, 0.4),
    "K1": StarType(5100, 90, -0.4, 0.3),
    "K3": StarType(4790, 90, -0.3, 0.3),
    "K5": StarType(4420, 110, -0.2, 0.25),
    "M2": StarType(3520, 110, -0.1, 0.25),
}
ODD_TYPES = ("WD", "CV", "carbon")
STAR_TYPES = (*NORMAL_TYPES, *ODD_TYPES)


class StarSource(Protocol):
    """Where stellar spectra come from."""

    def flux(
        self,
        rng: np.random.Generator,
        kind: str,
        wavelength: np.ndarray,
        redshift: float,
        metal_poor: bool,
    ) -> np.ndarray:
        """Return the F_λ of a star of a type at observed wavelengths (Å), arbitrary units."""
        ...


class BuiltInStars:
    """Stars from the built-in grid and formulae.

    Parameters
    ----------
    library : float32 [teff, feh, LOG_SIZE]
        `star_library`, broadened to the instrument.
    lsf_kms : float
        σ of the line-spread function, for emission lines.
    """

    def __init__(self, library: np.ndarray, lsf_kms: float):
        self._library = library
        self._smooth = restframe.broaden(library, 60 * restframe.PIXEL_KMS)
        self._lsf_kms = lsf_kms

    def flux(self, rng, kind: str, wavelength, redshift: float, metal_poor: bool) -> np.ndarray:
        if kind == "WD":
            flux = _draw_white_dwarf(rng, wavelength / (1 + redshift))
        elif kind == "CV":
            flux = _draw_cataclysmic(rng, wavelength / (1 + redshift), self._lsf_kms)
        elif kind == "carbon":
            rest = wavelength / (1 + redshift)
            flux = carbon_star(rest, rng.uniform(4400, 5300), rng.uniform(0.4, 1.1))
        else:
            flux = self._normal(rng, NORMAL_TYPES[kind], np.log10(wavelength), redshift, metal_poor)
            if kind in ("M", "M2") and rng.random() < 0.35:
                _add_activity(rng, flux, wavelength, redshift, self._lsf_kms)
        return dust.redden(flux, wavelength, float(rng.exponential(0.15)))

    def _normal(self, rng, kind: StarType, log_wavelength, redshift: float, metal_poor: bool):
        teff = rng.normal(kind.teff, kind.teff_scatter)
        feh = rng.normal(kind.feh - (0.9 if metal_poor else 0.0), kind.feh_scatter)
        star = star_between(self._library, teff, feh)
        smooth = star_between(self._smooth, teff, feh)
        # gravity and abundance ratios: all lines a little stronger or weaker than the grid's
        contrast = np.clip(rng.normal(1.0, 0.15), 0.6, 1.5)
        star = star * (star / np.maximum(smooth, 1e-6)) ** (contrast - 1.0)
        return restframe.observe(star, log_wavelength, redshift)


def _draw_white_dwarf(rng: np.random.Generator, rest: np.ndarray) -> np.ndarray:
    kind = str(rng.choice(["DA", "DB", "DC", "DZ"], p=[0.80, 0.09, 0.07, 0.04]))
    low, high = {"DA": (7000, 60000), "DB": (12000, 30000), "DC": (5500, 10000)}.get(
        kind, (6000, 10000)
    )
    teff = float(np.exp(rng.uniform(np.log(low), np.log(high))))
    flux = white_dwarf(rest, kind, teff)
    if rng.random() < 0.12:  # an M dwarf beside it
        companion = stellar_flux(rest, rng.uniform(3050, 3600))
        flux = flux + companion * rng.uniform(0.1, 1.5)
    return flux


def _draw_cataclysmic(rng: np.random.Generator, rest: np.ndarray, lsf_kms: float) -> np.ndarray:
    """Return a disc (F_λ ∝ λ^−7/3 when steady) with wide emission lines, often double-peaked."""
    flux = (rest / 5500.0) ** rng.normal(-1.7, 0.6)
    if rng.random() < 0.4:
        flux = flux + rng.uniform(0.1, 0.8) * stellar_flux(rest, rng.uniform(3050, 3700))
    if rng.random() < 0.3:
        flux = flux + rng.uniform(0.3, 1.5) * white_dwarf(rest, "DA", rng.uniform(10000, 20000))
    base = flux.copy()
    width, split = rng.uniform(300, 800), rng.choice([0.0, 1.0]) * rng.uniform(250, 600)
    ew = np.exp(rng.normal(3.6, 0.6))
    strengths = [(c, r) for c, r in zip(hydrogen_series(2, 7), (1.3, 1, 0.8, 0.6, 0.45, 0.35, 0.25),
                                        strict=True)]  # fmt: skip
    helium = rng.uniform(0.1, 0.35)
    strengths += [(5877.25, helium), (6680.0, 0.6 * helium), (7067.2, 0.5 * helium),
                  (4472.7, 0.6 * helium), (4687.0, rng.uniform(0.0, 0.5))]  # fmt: skip
    for center, relative in strengths:
        if rest[0] < center < rest[-1]:
            level = float(np.interp(center, rest, base))
            sigma = center * np.hypot(width, lsf_kms) / LIGHT_KMS
            for side in (-1, 1):
                at = center * (1 + side * split / LIGHT_KMS)
                add_gaussian(flux, rest, at, sigma, 0.5 * ew * relative * level)
    jump = np.where(rest < 3680.0, rng.uniform(0.0, 0.5), 0.0)
    return flux + jump * base


def _add_activity(rng, flux, wavelength, redshift: float, lsf_kms: float) -> None:
    """Add the chromospheric Balmer emission of an active M dwarf in place."""
    ew = rng.uniform(1.0, 8.0)
    for center, relative in zip(hydrogen_series(2, 4), (1.0, 1.0, 0.8, 0.7), strict=True):
        at = center * (1 + redshift)
        sigma = at * np.hypot(40.0, lsf_kms) / LIGHT_KMS
        level = float(np.interp(at, wavelength, flux))
        add_gaussian(flux, wavelength, at, sigma, ew * relative * level)


def host_starlight(template: np.ndarray):
    """Return rest wavelength → starlight of a galaxy template, 1 near 5500 Å (quasar hosts)."""
    log = np.log10(np.array([5500.0]))
    level = float(restframe.observe(template, log, 0.0)[0])
    return lambda rest: restframe.observe(template, np.log10(rest), 0.0) / level
