"""Built-in quasar spectra: power law, Balmer continuum, Fe II, broad and narrow lines, host, BALs.

Means follow the composite of Vanden Berk et al. (2001, AJ 122, 549, table 2); objects scatter about
them in slope, line strength (Baldwin effect), width and blueshift.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from skyray.simulate import dust, igm
from skyray.simulate.lines import LIGHT_KMS, add_gaussian

# (name, vacuum Å, rest EW Å, σ in km/s, mean velocity shift km/s, family for correlated strengths)
BROAD_LINES = [
    ("O VI 1033", 1033.8, 12.0, 2400, -300, "high"),
    ("Lyalpha", 1215.67, 48.0, 1900, 0, "high"),
    ("Lyalpha base", 1216.5, 36.0, 4800, -100, "high"),
    ("N V 1240", 1240.14, 18.0, 2700, -300, "high"),
    ("Si II 1262", 1262.6, 1.5, 2000, 0, "low"),
    ("O I 1305", 1305.4, 2.8, 2000, 0, "low"),
    ("C II 1335", 1335.3, 1.2, 1800, 0, "low"),
    ("Si IV 1398", 1398.3, 9.5, 2800, -300, "high"),
    ("C IV 1549", 1549.06, 19.0, 1900, -500, "high"),
    ("C IV base", 1545.0, 11.0, 4800, -900, "high"),
    ("He II 1640", 1640.42, 4.5, 3000, -500, "high"),
    ("O III] 1664", 1663.5, 2.8, 2500, -200, "high"),
    ("N III] 1750", 1750.3, 0.8, 2200, 0, "high"),
    ("Al III 1857", 1857.8, 2.6, 2300, -100, "low"),
    ("Si III] 1892", 1892.03, 4.0, 2200, -200, "low"),
    ("C III] 1909", 1908.73, 17.0, 2900, -300, "low"),
    ("C II] 2327", 2326.4, 2.5, 2200, 0, "low"),
    ("[Ne IV] 2424", 2423.8, 1.8, 1500, 0, "high"),
    ("Mg II 2799", 2799.1, 22.0, 1700, 0, "low"),
    ("Mg II base", 2799.1, 12.0, 4200, 0, "low"),
    ("Hdelta", 4102.89, 6.0, 2200, 0, "balmer"),
    ("Hgamma", 4341.68, 15.0, 2200, 0, "balmer"),
    ("Hbeta", 4862.68, 32.0, 1800, 0, "balmer"),
    ("Hbeta base", 4865.0, 18.0, 4200, 100, "balmer"),
    ("He I 5877", 5877.25, 6.0, 2300, 0, "balmer"),
    ("Halpha", 6564.61, 130.0, 1500, 0, "balmer"),
    ("Halpha base", 6566.0, 75.0, 3700, 100, "balmer"),
    ("He I 7067", 7067.2, 3.0, 2200, 0, "balmer"),
    ("O I 8448", 8448.7, 9.0, 1700, 0, "balmer"),
]
NARROW_LINES = [
    ("[Ne V] 3427", 3426.84, 0.12), ("[O II] 3729", 3728.6, 0.22), ("[Ne III] 3870", 3869.86, 0.14),
    ("Hbeta", 4862.68, 0.09), ("[O III] 4960", 4960.30, 0.335), ("[O III] 5008", 5008.24, 1.0),
    ("Halpha", 6564.61, 0.30), ("[N II] 6585", 6585.27, 0.25), ("[N II] 6550", 6549.85, 0.083),
    ("[S II] 6718", 6718.29, 0.10), ("[S II] 6733", 6732.67, 0.10),
]  # fmt: skip
# Ultraviolet and optical Fe II as sums of Gaussian blends: (centre Å, σ Å, relative height).
IRON_BUMPS = [
    (1785.0, 22.0, 0.20), (2080.0, 45.0, 0.32), (2250.0, 50.0, 0.35), (2330.0, 35.0, 0.50),
    (2400.0, 40.0, 0.70), (2490.0, 38.0, 0.85), (2570.0, 38.0, 0.80), (2630.0, 28.0, 0.60),
    (2740.0, 26.0, 0.50), (2880.0, 35.0, 0.50), (2950.0, 45.0, 0.55), (3180.0, 70.0, 0.25),
    (3500.0, 80.0, 0.12), (4180.0, 50.0, 0.15), (4300.0, 40.0, 0.13), (4480.0, 40.0, 0.30),
    (4540.0, 32.0, 0.48), (4600.0, 34.0, 0.46), (4660.0, 30.0, 0.30), (4924.0, 14.0, 0.30),
    (5018.0, 14.0, 0.35), (5175.0, 24.0, 0.48), (5235.0, 28.0, 0.50), (5295.0, 32.0, 0.52),
    (5365.0, 24.0, 0.30), (6240.0, 60.0, 0.10),
]  # fmt: skip
# Resonance doublets that outflows and intervening gas absorb: (vacuum Å, relative depth).
ABSORBING = [(1031.9, 0.8), (1240.0, 0.9), (1396.8, 0.7), (1549.1, 1.0), (1858.0, 0.15)]
LOW_ABSORBING = [(1858.0, 0.6), (2799.1, 0.85)]  # Al III and Mg II of low-ionisation outflows
INTERVENING = [(2796.35, 2803.53, 1.5), (1548.20, 1550.78, 1.4), (2586.65, 2600.17, 0.6)]


@dataclass(frozen=True)
class QuasarTraits:
    """What one quasar looks like; drawn by `draw_traits`."""

    slope: float  # F_λ ∝ λ^slope between Lyα and 5600 Å
    line_scale: dict[str, float]
    width_scale: float
    shift_kms: float
    iron: float
    balmer: float
    oiii_ew: float
    narrow_kms: float
    host: float  # starlight over quasar light at 5500 Å rest
    a_v: float
    bal: float
    narrow_only: bool = False
    low_ions: bool = False  # the outflow absorbs in Al III and Mg II as well


def draw_traits(rng: np.random.Generator, kind: str, redshift: float) -> QuasarTraits:
    """Draw a quasar of a kind: ``broad_lines``, or ``weak_lines`` as the SDSS subclass "" is.

    Fits of faint quasars reach no 10 σ line, hence no subclass: their lines are a little weaker
    and wider on average, never absent.
    """
    weak = kind == "weak_lines"
    base = (0.80 if weak else 1.0) * np.exp(rng.normal(0.0, 0.35))
    scale = {
        "high": base * np.exp(rng.normal(0.0, 0.30)),
        "low": base * np.exp(rng.normal(0.0, 0.20)),
        "balmer": base * np.exp(rng.normal(0.0, 0.25)),
    }
    host_mean = 0.9 * np.exp(-((redshift / 0.45) ** 2)) + (0.15 if redshift < 1.0 else 0.0)
    return QuasarTraits(
        slope=rng.normal(-1.55, 0.38),
        line_scale=scale,
        width_scale=float(np.exp(rng.normal(0.06 if weak else -0.05, 0.28))),
        shift_kms=float(rng.normal(0.0, 1.0)),
        iron=float(np.exp(rng.normal(-0.1, 0.5))),
        balmer=float(rng.uniform(0.05, 0.22)),
        oiii_ew=float(np.exp(rng.normal(2.6, 0.8))),
        narrow_kms=float(rng.uniform(150.0, 380.0)),
        host=float(host_mean * np.exp(rng.normal(0.0, 0.7))),
        a_v=float(rng.exponential(0.09)) if rng.random() < 0.92 else float(rng.uniform(0.3, 1.0)),
        bal=float(rng.uniform(0.3, 1.0)) if rng.random() < 0.13 else 0.0,
    )


def continuum(rest: np.ndarray, traits: QuasarTraits) -> np.ndarray:
    """Return the power-law continuum with its breaks at Lyα and 5600 Å, 1 at 3000 Å rest."""
    log = np.log(rest / 3000.0)
    flux = traits.slope * log
    flux += np.clip(log - np.log(5600.0 / 3000.0), 0, None) * (-0.45 - traits.slope)
    flux += np.clip(np.log(igm.LYA / 3000.0) - log, 0, None) * (0.9 + traits.slope)
    return np.exp(flux)


def emission(
    rest: np.ndarray, traits: QuasarTraits, lsf_kms: float, rng: np.random.Generator
) -> np.ndarray:
    """Return what the nucleus emits at rest wavelengths (Å): continuum, Fe II and lines, [L]."""
    flux = continuum(rest, traits) + _pseudo_continuum(rest, traits)
    _add_broad(flux, rest, traits, rng)
    _add_narrow(flux, rest, traits, lsf_kms)
    return flux


def quasar_flux(
    wavelength: np.ndarray,
    redshift: float,
    traits: QuasarTraits,
    lsf_kms: float,
    rng: np.random.Generator,
    host: Callable[[np.ndarray], np.ndarray] | None = None,
    emitted: Callable[[np.ndarray], np.ndarray] | None = None,
) -> np.ndarray:
    """Return the observed F_λ of a quasar, float64 [L], arbitrary units.

    Parameters
    ----------
    wavelength : float64 [L]
        Observed vacuum Å.
    lsf_kms : float
        σ of the spectrograph's line-spread function.
    host : callable, optional
        Rest wavelength → starlight, 1 near 5500 Å; used where ``traits.host`` > 0.
    emitted : callable, optional
        Rest wavelength → emission of the nucleus, in place of the built-in `emission`.
    """
    rest = wavelength / (1.0 + redshift)
    flux = emitted(rest) if emitted is not None else emission(rest, traits, lsf_kms, rng)
    if traits.bal > 0:
        flux = flux * _outflow(rest, traits, rng)
    flux = dust.redden(flux, rest, traits.a_v)
    if host is not None and traits.host > 0.02 and rest[-1] > 3000.0:
        light = float(np.median(flux) / np.median(continuum(rest, traits)))
        light *= float(continuum(np.array([5500.0]), traits)[0])
        flux = flux + traits.host * light * host(rest)
    return absorb(flux, wavelength, redshift, rng)


def absorb(flux, wavelength, redshift: float, rng: np.random.Generator) -> np.ndarray:
    """Return quasar light after the intergalactic gas and galaxies on the way."""
    flux = flux * igm.forest_transmission(wavelength, redshift, rng)
    if wavelength[0] < igm.LYA * (1.0 + redshift):
        flux *= igm.strong_absorbers(wavelength, redshift, rng)
    return flux * _intervening(wavelength, redshift, rng)


def _pseudo_continuum(rest: np.ndarray, traits: QuasarTraits) -> np.ndarray:
    """Return the Balmer continuum and Fe II in units of the power law at 3000 Å."""
    total = np.zeros_like(rest)
    first, last = np.searchsorted(rest, (1600.0, 4200.0))
    x = rest[first:last]
    edge = 1.0 / (1.0 + np.exp(np.clip((x - 3700.0) / 45.0, -40, 40)))
    total[first:last] += traits.balmer * (x / 3646.0) ** 3 * np.exp((3646.0 - x) / 1500.0) * edge
    smear = 1.0 + 0.3 * (traits.width_scale - 1.0)
    for center, sigma, height in IRON_BUMPS:
        local = height * 0.20 * traits.iron * (center / 3000.0) ** traits.slope
        width = sigma * max(smear, 0.6)
        add_gaussian(total, rest, center, width, local * width * 2.50663)
    return total


def _add_broad(flux, rest, traits: QuasarTraits, rng: np.random.Generator) -> None:
    jitter = np.exp(rng.normal(0.0, 0.18, len(BROAD_LINES)))
    for (_name, center, ew, sigma, shift, family), own in zip(BROAD_LINES, jitter, strict=True):
        if not rest[0] * 0.93 < center < rest[-1] * 1.07:
            continue
        spread = 250.0 if family == "high" else 90.0
        velocity = shift * (1.0 + 0.5 * traits.shift_kms) + spread * traits.shift_kms
        at = center * (1.0 + velocity / LIGHT_KMS)
        width_aa = at * sigma * traits.width_scale / LIGHT_KMS
        level = float(continuum(np.array([center]), traits)[0])
        add_gaussian(flux, rest, at, width_aa, ew * own * traits.line_scale[family] * level)


def _add_narrow(flux, rest, traits: QuasarTraits, lsf_kms: float) -> None:
    for _name, center, relative in NARROW_LINES:
        if not rest[0] < center < rest[-1]:
            continue
        sigma = center * np.hypot(traits.narrow_kms, lsf_kms) / LIGHT_KMS
        level = float(continuum(np.array([5008.0]), traits)[0])
        add_gaussian(flux, rest, center, sigma, relative * traits.oiii_ew * level)


def _outflow(rest: np.ndarray, traits: QuasarTraits, rng: np.random.Generator) -> np.ndarray:
    """Return the transmission of broad absorption troughs blueward of the resonance lines."""
    transmission = np.ones_like(rest)
    fastest = rng.uniform(4000.0, 22000.0)
    slowest = rng.uniform(0.0, 0.5) * fastest
    ripple = 1.0 + 0.3 * np.sin(rng.uniform(0, 6.28) + np.arange(3)[:, None] * 2.1)
    for center, depth in ABSORBING + (LOW_ABSORBING if traits.low_ions else []):
        velocity = (1.0 - rest / center) * LIGHT_KMS
        x = (velocity - slowest) / (fastest - slowest)
        inside = (x > 0) & (x < 1)
        shape = np.clip(6.0 * x[inside] * (1.0 - x[inside]), 0.0, 1.0)
        shape *= ripple[(x[inside] * 2.99).astype(int), 0]
        transmission[inside] *= np.clip(1.0 - traits.bal * depth * shape, 0.02, 1.0)
    return transmission


def _intervening(wavelength, redshift: float, rng: np.random.Generator) -> np.ndarray:
    """Return the transmission of metal absorbers of galaxies on the line of sight."""
    transmission = np.zeros_like(wavelength)
    for _ in range(rng.poisson(0.8 * min(redshift, 2.5))):
        z = rng.uniform(0.35 * redshift, redshift)
        strong = rng.exponential(0.35)
        for blue, red, scale in INTERVENING:
            for center, relative in ((blue, 1.0), (red, 0.75)):
                at = center * (1.0 + z)
                if blue == 1548.20 and z < 0.6 * redshift:
                    continue
                sigma = at * 110.0 / LIGHT_KMS
                add_gaussian(
                    transmission, wavelength, at, sigma, strong * scale * relative * at / center
                )
    return np.exp(-transmission)
