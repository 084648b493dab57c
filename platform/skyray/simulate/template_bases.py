"""Rest-frame template bases learned from the built-in physics: galaxies, quasars and stars.

Objects are drawn as the mock surveys draw them, in the rest frame and without noise; each class's
basis is their mean and principal components, with the variance of the coefficients as a prior.
Quasars at low redshift get their narrow lines as vectors of their own: their strength varies more
than anything else in these spectra, and independently of it. The basis of stars of any type spans
mixtures of spectral types, as a galaxy's does, so that a star fits as well as starlight at rest.

A few seconds of work, kept in a cache folder until the physics changes.
"""

from __future__ import annotations

import hashlib
import inspect
import os
import tempfile
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np

from skyray.models import template_bases
from skyray.models.template_bases import GALAXY, QSO, STAR, TemplateBasis, from_arrays, to_arrays
from skyray.simulate import (
    dust,
    galaxy_spectra,
    lines,
    quasar_spectra,
    restframe,
    stars,
    stellar_lines,
    stellar_spectra,
)
from skyray.simulate.lines import LIGHT_KMS, add_gaussian

LSF_KMS = 40.0  # sharper than any survey's; `TemplateBasis.broadened` does the rest
BLUE, RED = 3600.0, 10000.0  # Å; the observed range that spectra are normalised in
_SEED, _OBJECTS = 20, 800
_LOOSENED = 2.0  # variances of the prior over those of the mock population
STELLAR_TYPES = {
    "OB": ("O", "B"), "A": ("A", "A0"), "F": ("F", "F5", "F9"), "G": ("G", "G2"),
    "K": ("K", "K1", "K3", "K5"), "M": ("M", "M2"), "WD": ("WD",), "CV": ("CV",),
    "carbon": ("carbon",),
}  # fmt: skip
_ANY = ("O", "B", "A", "F", "G", "K", "M", "A0", "F5", "G2")
# Narrow lines that vary together: name of `quasar_spectra.NARROW_LINES` → relative strength.
_NARROW = (
    {"Hbeta": 0.09, "[O III] 4960": 0.335, "[O III] 5008": 1.0},
    {"[Ne V] 3427": 0.12, "[O II] 3729": 0.22, "[Ne III] 3870": 0.14},
)
_NARROW_KMS, _NARROW_SCATTER = 240.0, (0.2, 0.5)  # σ of the lines; scatter of ln strength
_STAR_DUST, _CALIBRATION = 0.5, (0.06, 0.04)  # A_V; scatter of tilt and bend of ln flux
_OUTFLOW_KMS, _OUTFLOW_VECTORS, _OUTFLOW_SHARE = 23000.0, 7, 0.1
_PHYSICS = (
    dust, galaxy_spectra, lines, quasar_spectra, restframe, stars, stellar_lines, stellar_spectra,
    template_bases,
)  # fmt: skip


@lru_cache(maxsize=1)
def built_in_bases() -> tuple[TemplateBasis, ...]:
    """Return the built-in bases, from the cache folder or made now (about ten seconds).

    The folder is ``SKYRAY_CACHE``, else ``skyray`` in the user's cache folder.
    """
    path = _cache_file()
    if path.is_file():
        with np.load(path, allow_pickle=False) as kept:
            return tuple(from_arrays(kept))
    arrays = to_arrays(make_bases())
    _keep(path, arrays)
    return tuple(from_arrays(arrays))


def _cache_file() -> Path:
    source = "".join(inspect.getsource(module) for module in _PHYSICS)
    digest = hashlib.sha256((source + Path(__file__).read_text("utf-8")).encode()).hexdigest()
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = os.environ.get("SKYRAY_CACHE") or Path(home) / "skyray"
    return Path(folder) / f"template-bases-{digest[:16]}.npz"


def _keep(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write a file whole or not at all; a folder that cannot be written costs time only."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".npz", delete=False) as part:
            np.savez(part, **arrays)
        os.replace(part.name, path)
    except OSError:
        return


def make_bases(seed: int = _SEED, objects: int = _OBJECTS) -> list[TemplateBasis]:
    """Learn all bases from drawn objects; the same seed gives the same bases."""
    rng = np.random.default_rng(seed)
    library = restframe.broaden(stellar_spectra.star_library(), LSF_KMS)
    starlight = galaxy_spectra.BuiltInStarlight(library)
    star_source = stars.BuiltInStars(library, LSF_KMS)
    galaxy = _learn(GALAXY, "", _galaxies(rng, objects, starlight), 8, (-0.005, 1.7), rng)
    low = _low_quasars(rng, objects, starlight, (0.01, 1.6))
    high, _ = _quasars(rng, objects, starlight, (1.4, 5.0))
    far = _learn(QSO, "high z", high, 10, (1.4, 7.0), rng, stride=2, forest=True)
    bases = [galaxy, low, far, _with_outflows(far)]
    for name, types in STELLAR_TYPES.items():
        drawn = _stars(rng, objects // 2, star_source, types)
        bases.append(_learn(STAR, name, drawn, 4, (-0.002, 0.002), rng))
    drawn = _stars(rng, objects, star_source, _ANY)
    bases.append(_learn(STAR, "", drawn, 10, (-0.002, 0.002), rng))
    return bases


def _galaxies(rng, count: int, starlight) -> np.ndarray:
    kinds = ("quiescent", "agn", "starforming", "starburst")
    rest = restframe.rest_wavelength()
    drawn = (galaxy_spectra.draw_galaxy(rng, kinds[i % 4], starlight) for i in range(count))
    return np.stack([galaxy_spectra.galaxy_flux(one, rest, 0.0, LSF_KMS) for one in drawn])


def _stars(rng, count: int, source, types: tuple[str, ...]) -> np.ndarray:
    """Return stars [N, LOG_SIZE] behind the dust of all of the Galaxy, through imperfect optics.

    Mock surveys look out of the disc; surveys of stars look into it, and fibres lose light by
    colour, so that the flux calibration of a star is tilted and bent by some per cent.
    """
    rest = restframe.rest_wavelength()
    x = np.clip(np.log(rest / 6000.0) / 0.45, -1.2, 1.2)
    drawn = []
    for number in range(count):
        kind = types[number % len(types)]
        flux = source.flux(rng, kind, rest, 0.0, bool(rng.random() < 0.2))
        flux = dust.redden(flux, rest, float(rng.exponential(_STAR_DUST)))
        tilt, bend = rng.normal(0.0, _CALIBRATION)
        drawn.append(flux * np.exp(tilt * x + bend * (x**2 - 0.4)))
    return np.stack(drawn)


def _quasars(rng, count: int, starlight, limits) -> tuple[np.ndarray, np.ndarray]:
    """Return quasars [N, LOG_SIZE] without narrow lines, forest and outflows, and [O III]'s area.

    The area is that of 5008 Å, float64 [N], in flux · Å.
    """
    rest = restframe.rest_wavelength()
    flux, areas = [], []
    for number in range(count):
        z = float(np.expm1(rng.uniform(*np.log1p(limits))))
        kind = ("broad_lines", "weak_lines")[number % 2]
        drawn = quasar_spectra.draw_traits(rng, kind, z)
        traits = replace(drawn, oiii_ew=0.0)
        light = quasar_spectra.emission(rest, traits, LSF_KMS, rng)
        light = dust.redden(light, rest, traits.a_v)
        level = float(np.median(light) / np.median(quasar_spectra.continuum(rest, traits)))
        at = quasar_spectra.continuum(np.array([5008.24, 5500.0]), traits)
        if traits.host > 0.02 and z < 1.2:
            host = galaxy_spectra.draw_galaxy(rng, "agn", starlight).template
            light = light + traits.host * level * float(at[1]) * stars.host_starlight(host)(rest)
        flux.append(light)
        areas.append(drawn.oiii_ew * level * float(at[0]))
    return np.stack(flux), np.array(areas)


def _low_quasars(rng, count: int, starlight, limits) -> TemplateBasis:
    flux, areas = _quasars(rng, count, starlight, limits)
    scale = _observed_rms(flux, limits, rng)
    basis = _components(QSO, "low z", flux / scale[:, None], 8, limits)
    scatter = np.exp(rng.normal(0.0, 1.0, (len(areas), 2)) * _NARROW_SCATTER)
    power = np.square(scatter * (areas / scale)[:, None]).mean(axis=0)
    return replace(
        basis,
        vectors=np.concatenate([basis.vectors, [_narrow_lines(group) for group in _NARROW]]),
        variance=np.concatenate([basis.variance, _LOOSENED * power]),
        stride=2,
        forest=True,
    )


def _with_outflows(basis: TemplateBasis) -> TemplateBasis:
    """Return the first components of a basis for quasars whose resonance lines are absorbed."""
    reach = 1.0 - _OUTFLOW_KMS / LIGHT_KMS
    troughs = tuple((line * reach, line) for line, _ in quasar_spectra.ABSORBING)
    return replace(
        basis,
        subtype="broad absorption",
        vectors=basis.vectors[:_OUTFLOW_VECTORS],
        variance=basis.variance[:_OUTFLOW_VECTORS],
        redshift=(basis.redshift[0], 5.5),
        troughs=troughs,
        rarity=-2.0 * np.log(_OUTFLOW_SHARE),
    )


def _narrow_lines(group: dict[str, float]) -> np.ndarray:
    rest = restframe.rest_wavelength()
    profile = np.zeros_like(rest)
    for name, center, _ in quasar_spectra.NARROW_LINES:
        if name in group:
            sigma = center * np.hypot(_NARROW_KMS, LSF_KMS) / LIGHT_KMS
            add_gaussian(profile, rest, center, sigma, group[name])
    return profile


def _learn(spectype, subtype, flux, count: int, redshift, rng, **about) -> TemplateBasis:
    scale = _observed_rms(flux, redshift, rng)
    return replace(_components(spectype, subtype, flux / scale[:, None], count, redshift), **about)


def _observed_rms(flux_NL: np.ndarray, redshift, rng) -> np.ndarray:
    """Return each object's rms over what a spectrograph sees of it at a random redshift, [N]."""
    rest, low = restframe.rest_wavelength(), max(redshift[0], 0.0)
    rms = []
    for row in flux_NL:
        z = np.expm1(rng.uniform(np.log1p(low), np.log1p(redshift[1])))
        first, last = np.searchsorted(rest, (BLUE / (1.0 + z), RED / (1.0 + z)))
        rms.append(np.sqrt(np.mean(row[first:last] ** 2)))
    return np.array(rms)


def _components(spectype, subtype, flux_NL, count: int, redshift) -> TemplateBasis:
    """Return the mean and `count` − 1 principal components."""
    mean = flux_NL.mean(axis=0)
    centred = flux_NL - mean
    power, axes = np.linalg.eigh(centred @ centred.T)
    power, axes = power[::-1][: count - 1], axes[:, ::-1][:, : count - 1]
    vectors = (centred.T @ axes / np.sqrt(power)).T
    return TemplateBasis(
        spectype, subtype, round(restframe.LOG_START / restframe.LOG_STEP),
        np.concatenate([mean[None], vectors]),
        _LOOSENED * np.concatenate([[1.0], power / len(flux_NL)]),
        redshift, lsf_kms=LSF_KMS,
    )  # fmt: skip
