"""Built-in stellar spectra: continuum, hydrogen, metals and molecules along the spectral sequence.

Not model atmospheres: black bodies with the Balmer and Paschen jumps, line blanketing and the lines
and bands that make up spectral classification, on the rest-frame grid of
`skyray.simulate.restframe`. Every function returns F_λ in arbitrary units.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from skyray.simulate import stellar_lines as features
from skyray.simulate.restframe import LOG_SIZE, rest_wavelength
from skyray.transforms.spectra import air_to_vacuum

TEFF_NODES = np.array([3000, 3200, 3400, 3600, 3800, 4000, 4200, 4400, 4650, 4900, 5200, 5500, 5800,
                       6100, 6400, 6800, 7200, 7700, 8300, 9000, 9800, 11000, 13000, 16000, 20000,
                       26000, 35000], dtype=float)  # fmt: skip
FEH_NODES = np.array([-2.0, -1.0, 0.0, 0.4])
_C2 = 1.438777e8  # hc/k, Å K
_BALMER_SHAPE = 2.2662  # ∫ exp(-|x|^0.8) dx


def black_body(wavelength: np.ndarray, teff: float) -> np.ndarray:
    """Return Planck's F_λ at `teff` K, 1 at 5500 Å."""

    def planck(lam):
        return lam**-5.0 / np.expm1(_C2 / (lam * teff))

    return planck(wavelength) / planck(5500.0)


def _stark(wavelength: np.ndarray, center: float, ew: float, depth: float) -> np.ndarray:
    """Return the optical depth of a line with the wide wings of Stark broadening."""
    scale = ew / (depth * _BALMER_SHAPE)
    profile = depth * np.exp(-((np.abs(wavelength - center) / scale) ** 0.8))
    return -np.log1p(-profile)


def hydrogen_depth(
    wavelength: np.ndarray, hbeta_ew: float, lines: int = 16, core: float | None = None
) -> np.ndarray:
    """Return the optical depth of the Balmer lines for a given equivalent width of Hβ (Å).

    Parameters
    ----------
    lines : int
        Highest line seen: 16 in normal stars, about 7 at the pressure of a white dwarf.
    core : float, optional
        Central depth of Hβ; by default it grows with the strength to 0.72.
    """
    depth = core if core is not None else min(0.72, 0.22 + 0.05 * hbeta_ew)
    total = np.zeros_like(wavelength)
    relative = [0.85, 1.0, 1.0, 0.95, 0.85, 0.75, 0.65, 0.55]
    for number, center in enumerate(features.hydrogen_series(2, lines)):
        factor = relative[number] if number < 8 else 0.55 * 0.85 ** (number - 7)
        total += _stark(wavelength, center, hbeta_ew * factor, depth * min(1.0, 0.6 + factor * 0.4))
    return total


def _jump(wavelength: np.ndarray, dex: float, edge: float, width: float) -> np.ndarray:
    """Return the optical depth below a series limit, smeared by the merging last lines."""
    ramp = 1.0 / (1.0 + np.exp(np.clip((wavelength - edge) / width, -60, 60)))
    return dex * np.log(10.0) * ramp


def _metal_depth(wavelength: np.ndarray, teff: float, feh: float) -> np.ndarray:
    total = np.zeros_like(wavelength)
    abundance = 10.0 ** (0.45 * feh)  # between the linear and the damping part of the growth curve
    for air, ew_strongest, kind in features.METAL_LINES:
        ew = ew_strongest * features.strength(features.METAL_STRENGTH, kind, teff)
        ew *= 1.0 if kind in ("HeI", "HeII") else abundance
        if ew < 0.02:
            continue
        center = float(air_to_vacuum(np.array([air]))[0])
        sigma = max(1.3, 0.28 * ew)  # strong lines are wide: depth saturates near 0.85
        first, last = np.searchsorted(wavelength, (center - 12 * sigma, center + 12 * sigma))
        x = (wavelength[first:last] - center) / sigma
        total[first:last] += ew / (sigma * 3.1416) * 1.6 / (1.0 + x * x) ** 1.5
    return total


def _molecule_depth(wavelength: np.ndarray, teff: float, feh: float) -> np.ndarray:
    total = np.zeros_like(wavelength)
    abundance = 10.0 ** (0.35 * feh)
    for center, sigma, depth, kind in features.BROAD_BANDS:
        scale = depth * features.strength(features.BAND_STRENGTH, kind, teff) * abundance
        total += scale * np.exp(-0.5 * ((wavelength - center) / sigma) ** 2)
    tio = np.interp(teff, [3000, 3200, 3400, 3700, 4000, 4300], [1.6, 1.25, 0.9, 0.42, 0.12, 0.0])
    if tio > 0:
        for head, width, depth in features.TIO_HEADS:
            beyond = np.clip((wavelength - air_to_vacuum(np.array([head]))[0]) / width, 0, 30)
            total += tio * abundance * depth * np.where(beyond > 0, np.exp(-beyond), 0.0)
    return total


def _blanketing(wavelength: np.ndarray, teff: float, feh: float) -> np.ndarray:
    """Return the optical depth of the countless weak lines that eat the blue of cool stars."""
    amount = np.interp(teff, [3500, 4000, 4500, 5000, 5800, 6500, 7500, 9000],
                       [1.2, 1.05, 0.9, 0.68, 0.36, 0.2, 0.06, 0.0])  # fmt: skip
    blue = np.clip((4700.0 - wavelength) / 1000.0, 0.0, None) ** 1.2
    ultraviolet = np.clip((3000.0 - wavelength) / 500.0, 0.0, 5.0)
    break_4000 = 0.35 / (1.0 + np.exp((wavelength - 3990.0) / 18.0))
    return amount * 10 ** (0.3 * feh) * (blue + 1.2 * ultraviolet + break_4000)


def stellar_flux(
    wavelength: np.ndarray, teff: float, feh: float = 0.0, hydrogen: float = 1.0
) -> np.ndarray:
    """Return the spectrum of a normal star, F_λ, 1 near 5500 Å.

    Parameters
    ----------
    wavelength : float64 [L]
        Vacuum Å.
    teff, feh : float
        K, and the metallicity in dex relative to the Sun.
    hydrogen : float
        Factor on the Balmer lines: above 1 in dwarfs of high gravity, below 1 in supergiants.
    """
    log_teff = np.log10(teff)
    hbeta = np.interp(log_teff, features.BALMER_LOG_TEFF, features.HBETA_EW) * hydrogen
    jump = np.interp(log_teff, features.BALMER_LOG_TEFF, features.BALMER_JUMP_DEX)
    depth = _metal_depth(wavelength, teff, feh) + _molecule_depth(wavelength, teff, feh)
    depth += _blanketing(wavelength, teff, feh)
    if hbeta > 0.1:
        depth += hydrogen_depth(wavelength, hbeta)
        for center in features.hydrogen_series(3, 14)[3:]:
            depth += _stark(wavelength, center, 0.3 * hbeta, min(0.3, 0.02 * hbeta + 0.02))
    depth += _jump(wavelength, jump, 3680.0, 14.0) + _jump(wavelength, jump / 7, 8270.0, 60.0)
    return black_body(wavelength, teff) * np.exp(-depth)


@lru_cache(maxsize=1)
def star_library() -> np.ndarray:
    """Return the grid of normal stars, float32 [len(TEFF_NODES), len(FEH_NODES), LOG_SIZE]."""
    wavelength = rest_wavelength()
    grid = np.empty((len(TEFF_NODES), len(FEH_NODES), LOG_SIZE), dtype=np.float32)
    for i, teff in enumerate(TEFF_NODES):
        for j, feh in enumerate(FEH_NODES):
            grid[i, j] = stellar_flux(wavelength, teff, feh)
    return grid


def star_between(library: np.ndarray, teff: float, feh: float) -> np.ndarray:
    """Interpolate a grid of stars linearly in log Teff and in [Fe/H], [LOG_SIZE].

    Beyond the nodes the nearest ones hold.
    """
    i, u = _bracket(np.log10(TEFF_NODES), np.log10(teff))
    j, v = _bracket(FEH_NODES, feh)
    low = (1 - v) * library[i, j] + v * library[i, j + 1]
    high = (1 - v) * library[i + 1, j] + v * library[i + 1, j + 1]
    return (1 - u) * low + u * high


def _bracket(nodes: np.ndarray, value: float) -> tuple[int, float]:
    left = int(np.clip(np.searchsorted(nodes, value) - 1, 0, len(nodes) - 2))
    return left, float(np.clip((value - nodes[left]) / (nodes[left + 1] - nodes[left]), 0.0, 1.0))


def white_dwarf(wavelength: np.ndarray, kind: str, teff: float) -> np.ndarray:
    """Return a white dwarf: 'DA' (hydrogen), 'DB' (helium), 'DC' (no lines) or 'DZ' (Ca II).

    Pressure makes the lines tens of Å wide and leaves few of the series.
    """
    flux = black_body(wavelength, teff)
    if kind == "DA":
        hbeta = np.interp(teff, [6000, 8000, 10000, 13000, 18000, 30000, 60000],
                          [4.0, 16.0, 36.0, 46.0, 38.0, 24.0, 12.0])  # fmt: skip
        flux = flux * np.exp(-hydrogen_depth(wavelength, hbeta, lines=7, core=0.55))
    elif kind == "DB":
        for air, ew, line in features.METAL_LINES:
            if line == "HeI":
                center = float(air_to_vacuum(np.array([air]))[0])
                flux = flux * np.exp(-_stark(wavelength, center, 16.0 * ew, 0.32))
    elif kind == "DZ":
        for center, ew in ((3934.78, 25.0), (3969.59, 18.0), (4227.92, 5.0)):
            flux = flux * np.exp(-_stark(wavelength, center, ew, 0.6))
    return flux


def carbon_star(wavelength: np.ndarray, teff: float, bands: float) -> np.ndarray:
    """Return a carbon star: C2 and CN bands of relative strength `bands` over a cool continuum."""
    depth = np.zeros_like(wavelength)
    for head, width, band in features.CARBON_HEADS:
        below = np.clip((air_to_vacuum(np.array([head]))[0] - wavelength) / width, 0, 30)
        depth += 2.2 * bands * band * np.where(below > 0, np.exp(-below), 0.0)
    return stellar_flux(wavelength, max(teff, 4350.0), -0.2, 0.7) * np.exp(-depth)
