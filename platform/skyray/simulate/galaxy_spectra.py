"""Built-in galaxy spectra: old, intermediate and young starlight, dust, and ionised gas.

Gas follows the diagram of Baldwin, Phillips & Terlevich (1981): star-forming galaxies along the
abundance sequence of Kewley et al. (2013, ApJ 774, L10), active nuclei above the maximum starburst
line of Kewley et al. (2001, ApJ 556, 121). Subclasses are those of the SDSS pipeline: active where
log [O III]/Hβ > 0.7 − 1.2 (log [N II]/Hα + 0.4), starburst where EW(Hα) > 50 Å.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from skyray.simulate import dust, restframe
from skyray.simulate.lines import LIGHT_KMS, NARROW, add_gaussian, width
from skyray.simulate.stellar_spectra import star_between

# Populations as light-weighted mixtures of stars at 5500 Å: (Teff, [Fe/H] offset, weight).
POPULATIONS = {
    "old": [(3500, 0.0, 0.06), (4200, 0.1, 0.24), (4600, 0.1, 0.30), (5100, 0.0, 0.18),
            (5700, 0.0, 0.15), (6200, -0.2, 0.07)],
    "mid": [(4300, 0.0, 0.15), (4900, 0.0, 0.13), (6200, 0.0, 0.17), (7200, 0.0, 0.22),
            (8300, 0.0, 0.20), (9500, 0.0, 0.13)],
    "young": [(3700, 0.0, 0.04), (4500, 0.0, 0.06), (9000, 0.0, 0.15), (12000, 0.0, 0.25),
              (18000, 0.0, 0.25), (30000, 0.0, 0.25)],
}  # fmt: skip


class Starlight(Protocol):
    """Where a galaxy's stellar continuum comes from."""

    def starlight(self, rng: np.random.Generator, weights: Mapping[str, float]) -> np.ndarray:
        """Return a mixture of ``old``, ``mid`` and ``young`` stars, [LOG_SIZE], 1 near 5500 Å."""
        ...


class BuiltInStarlight:
    """Populations mixed from the built-in star grid at three metallicities."""

    def __init__(self, library: np.ndarray):
        self._fractions = (-0.6, 0.0, 0.3)
        self._grid = {
            name: np.stack([self._mix(library, parts, feh) for feh in self._fractions])
            for name, parts in POPULATIONS.items()
        }

    @staticmethod
    def _mix(library, parts, feh: float) -> np.ndarray:
        return sum(
            (weight * star_between(library, teff, feh + offset) for teff, offset, weight in parts),
            start=np.zeros(restframe.LOG_SIZE),
        ).astype(np.float32)

    def starlight(self, rng: np.random.Generator, weights: Mapping[str, float]) -> np.ndarray:
        position = float(np.clip(rng.normal(1.2, 0.5), 0.0, 1.999))
        low = int(position)
        total = np.zeros(restframe.LOG_SIZE)
        for name, weight in weights.items():
            if weight > 0:
                pair = self._grid[name]
                total += weight * (1 - position + low) * pair[low]
                total += weight * (position - low) * pair[low + 1]
        return total


@dataclass(frozen=True)
class GasTraits:
    """Ionised gas: strengths as measured, after dust."""

    halpha_ew: float  # Å, rest frame
    log_nii_ha: float
    log_oiii_hb: float
    log_sii_ha: float
    log_oi_ha: float
    log_oii_hb: float
    sii_ratio: float
    a_v: float
    sigma_kms: float


@dataclass(frozen=True)
class Galaxy:
    """A drawn galaxy: its starlight in the rest frame, its gas, and σ of its stars in km/s."""

    template: np.ndarray
    gas: GasTraits
    dispersion_kms: float = 0.0


_WEIGHTS = {  # mean light fractions of old, mid, young and their concentration (Dirichlet)
    "quiescent": ((0.93, 0.06, 0.01), 25.0),
    "agn": ((0.72, 0.21, 0.07), 12.0),
    "starforming": ((0.38, 0.40, 0.22), 9.0),
    "starburst": ((0.13, 0.33, 0.54), 9.0),
}


def draw_galaxy(
    rng: np.random.Generator, kind: str, source: Starlight, extra_lsf_kms: float = 0.0
) -> Galaxy:
    """Draw a galaxy of a kind: quiescent, agn, starforming or starburst."""
    mean, concentration = _WEIGHTS[kind]
    drawn = rng.dirichlet(np.array(mean) * concentration)
    template = source.starlight(rng, dict(zip(("old", "mid", "young"), drawn, strict=True)))
    dispersion = {"quiescent": 215.0, "agn": 160.0}.get(kind, 90.0) * np.exp(rng.normal(0, 0.25))
    stellar = float(min(dispersion, 380))
    template = restframe.broaden(template, float(np.hypot(stellar, extra_lsf_kms)))
    stellar_a_v = {"quiescent": 0.12, "agn": 0.3}.get(kind, 0.45) * rng.gamma(2.0, 0.5)
    template = dust.redden(template, restframe.rest_wavelength(), stellar_a_v)
    return Galaxy(template, _draw_gas(rng, kind, stellar_a_v, dispersion), stellar)


def _draw_gas(rng: np.random.Generator, kind: str, stellar_a_v: float, dispersion: float):
    a_v = float(min(2.2 * stellar_a_v + 0.1, 3.0))
    if kind in ("agn", "quiescent"):
        nii, oiii = _draw_active_ratios(rng)
        sii, oi = rng.normal(-0.25, 0.13), rng.normal(-0.9, 0.25)
        oii = rng.normal(0.55, 0.25)
    else:
        nii, oiii = _draw_starforming_ratios(rng, kind)
        sii, oi = rng.normal(-0.45, 0.1), rng.normal(-1.5, 0.2)
        oii = rng.normal(0.45, 0.17)
    sigma = {"quiescent": 0.8, "agn": 1.1}.get(kind, 0.9) * dispersion
    return GasTraits(
        _draw_halpha(rng, kind), nii, oiii, sii, oi, oii,
        float(rng.uniform(1.05, 1.45)), a_v, float(np.clip(sigma, 40, 400)),
    )  # fmt: skip


def _draw_halpha(rng: np.random.Generator, kind: str) -> float:
    if kind == "quiescent":  # two thirds without gas, one third with traces
        return float(rng.exponential(0.8)) if rng.random() < 0.35 else 0.0
    if kind == "agn":
        return float(np.clip(np.exp(rng.normal(np.log(11.0), 0.75)), 2.5, 120.0))
    if kind == "starforming":
        return float(np.clip(np.exp(rng.normal(np.log(21.0), 0.5)), 4.0, 49.0))
    return (
        float(50.0 + rng.exponential(55.0)) if rng.random() < 0.9 else float(rng.uniform(150, 600))
    )


def _draw_starforming_ratios(rng: np.random.Generator, kind: str) -> tuple[float, float]:
    """Return log [N II]/Hα and log [O III]/Hβ along the abundance sequence (Kewley et al. 2013)."""
    mean, spread = (-0.50, 0.17) if kind == "starforming" else (-0.85, 0.30)
    while True:
        nii = min(rng.normal(mean, spread), -0.22)
        oiii = 0.61 / (nii + 0.08) + 1.10 + rng.normal(0.0, 0.10)
        kauffmann = 0.61 / (nii - 0.05) + 1.30
        if nii > -2.0 and -1.2 < oiii < min(kauffmann, 0.7 - 1.2 * (nii + 0.4)):
            return float(nii), float(oiii)


def _draw_active_ratios(rng: np.random.Generator) -> tuple[float, float]:
    """Return log [N II]/Hα and log [O III]/Hβ of Seyferts (60 %) and LINERs."""
    while True:
        seyfert = rng.random() < 0.6
        nii = rng.normal(-0.05, 0.14) if seyfert else rng.normal(0.06, 0.12)
        oiii = rng.normal(0.78, 0.2) if seyfert else rng.normal(0.36, 0.13)
        if nii > 0.4:
            continue
        if oiii > 0.61 / (nii - 0.47) + 1.19 and oiii > 0.7 - 1.2 * (nii + 0.4):
            return float(nii), float(oiii)


def line_fluxes(gas: GasTraits) -> dict[str, float]:
    """Return line fluxes relative to Hα = 1, as observed through the galaxy's dust.

    Recombination ratios are case B at 10⁴ K (Osterbrock & Ferland 2006); Hα/Hβ = 2.86, 3.0 in AGN
    is not distinguished.
    """
    intrinsic = {
        "Halpha": 1.0, "Hbeta": 1 / 2.86, "Hgamma": 0.468 / 2.86, "Hdelta": 0.259 / 2.86,
        "Hepsilon": 0.159 / 2.86, "H8": 0.105 / 2.86, "He I 5877": 0.115 / 2.86,
        "He I 6680": 0.033 / 2.86,
    }  # fmt: skip
    names = list(intrinsic)
    curve = dust.extinction_curve(np.array([NARROW[name] for name in names]))
    through = 10 ** (-0.4 * gas.a_v * (curve - curve[0]))
    flux = {name: intrinsic[name] * t for name, t in zip(names, through, strict=True)}
    nii, sii = 10**gas.log_nii_ha, 10**gas.log_sii_ha
    oiii = 10**gas.log_oiii_hb * flux["Hbeta"]
    curve_oii = float(dust.extinction_curve(np.array([3728.5]))[0] - curve[1])
    oii = 10 ** (gas.log_oii_hb - 0.4 * gas.a_v * curve_oii) * flux["Hbeta"]
    flux["[N II] 6585"], flux["[N II] 6550"] = nii, nii / 2.95
    flux["[O III] 5008"], flux["[O III] 4960"] = oiii, oiii / 2.98
    flux["[S II] 6718"] = sii * gas.sii_ratio / (1 + gas.sii_ratio)
    flux["[S II] 6733"] = sii / (1 + gas.sii_ratio)
    flux["[O II] 3730"] = oii * gas.sii_ratio / (1 + gas.sii_ratio)
    flux["[O II] 3727"] = oii / (1 + gas.sii_ratio)
    flux["[O I] 6302"] = 10**gas.log_oi_ha
    flux["[Ne III] 3869"] = 0.09 * oiii
    flux["[Ar III] 7138"] = 0.025 * oiii + 0.01
    flux["[S III] 9071"], flux["[S III] 9533"] = 0.07, 0.17
    return flux


def galaxy_flux(
    galaxy: Galaxy, wavelength: np.ndarray, redshift: float, lsf_kms: float
) -> np.ndarray:
    """Return the observed F_λ of a galaxy, float64 [L], arbitrary units.

    Parameters
    ----------
    wavelength : float64 [L]
        Observed vacuum Å.
    lsf_kms : float
        σ of the line-spread function, added to the gas's own width.
    """
    flux = restframe.observe(galaxy.template, np.log10(wavelength), redshift)
    add_gas(flux, galaxy, wavelength, redshift, lsf_kms)
    return flux


def add_gas(
    flux: np.ndarray,
    galaxy: Galaxy,
    wavelength: np.ndarray,
    redshift: float,
    lsf_kms: float,
    velocity_kms: float = 0.0,
    share: float = 1.0,
) -> None:
    """Add a `share` of the emission lines of a galaxy to its starlight [L] in place.

    `velocity_kms` is that of the gas relative to the stars.
    """
    gas = galaxy.gas
    if gas.halpha_ew <= 0.02:
        return
    at_halpha = np.log10(np.array([NARROW["Halpha"]]))
    level = float(restframe.observe(galaxy.template, at_halpha, 0.0)[0])
    halpha = share * gas.halpha_ew * (1.0 + redshift) * level
    shift = (1.0 + redshift) * (1.0 + velocity_kms / LIGHT_KMS)
    for name, relative in line_fluxes(gas).items():
        center = NARROW[name] * shift
        if wavelength[0] - 50 < center < wavelength[-1] + 50:
            sigma = width(center, gas.sigma_kms, lsf_kms)
            add_gaussian(flux, wavelength, center, sigma, halpha * relative)
