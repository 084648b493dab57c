"""What dark matter adds to a lens: subhalos of cold dark matter, or a vortex of axions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from skyray.simulate.deflection import Mode

# Released simulator: half-length .03″ for 10⁻²² eV, inversely with the mass (lens at z = 0.5).
_VORTEX_HALF_LENGTH_ARCSEC = 0.03
_VORTEX_REFERENCE_EV = 1e-22


@dataclass(frozen=True)
class PointMasses:
    """Masses (M☉) and their places (arcsec from the lens's centre), all [M]."""

    mass_solar: np.ndarray
    x: np.ndarray
    y: np.ndarray


@dataclass(frozen=True)
class MassFunction:
    """dN/dm ∝ m^slope between two masses (M☉)."""

    slope: float
    minimum: float
    maximum: float

    def draw(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Draw masses by inverting the cumulative distribution, float64 [count]."""
        power = self.slope + 1.0
        low, high = self.minimum**power, self.maximum**power
        return (low + (high - low) * rng.uniform(size=count)) ** (1.0 / power)

    def mean(self) -> float:
        """Return the mean mass."""
        return self._moment(1) / self._moment(0)

    def _moment(self, order: int) -> float:
        power = self.slope + 1.0 + order
        if abs(power) < 1e-9:
            return float(np.log(self.maximum / self.minimum))
        return (self.maximum**power - self.minimum**power) / power


def draw_subhalos(
    rng: np.random.Generator,
    masses: MassFunction,
    mean_count: float,
    radii_arcsec: tuple[float, float],
    mode: Mode,
) -> PointMasses:
    """Draw subhalos, uniform in radius and angle about the lens.

    ``corrected``: a Poisson number with the slope of `masses`. ``as_published``: always the mean
    number, and the slope plus 1, since the released simulator passes −0.9 for a stated −1.9; with
    25 subhalos of 10⁶–10¹⁰ M☉ they hold 3.8 × 10¹⁰ M☉ instead of 3.4 × 10⁸.
    """
    if mode == "as_published":
        count = round(mean_count)
        masses = MassFunction(masses.slope + 1.0, masses.minimum, masses.maximum)
    else:
        count = int(rng.poisson(mean_count))
    radius = rng.uniform(*radii_arcsec, size=count)
    angle = rng.uniform(0.0, 2.0 * np.pi, size=count)
    return PointMasses(masses.draw(rng, count), radius * np.sin(angle), radius * np.cos(angle))


def vortex_half_length_arcsec(axion_mass_ev: float) -> float:
    """Return the half-length of a vortex, arcsec, inversely proportional to the axion's mass."""
    return _VORTEX_HALF_LENGTH_ARCSEC * _VORTEX_REFERENCE_EV / axion_mass_ev


def draw_vortex(
    rng: np.random.Generator, mass_solar: float, axion_mass_ev: float, elements: int
) -> PointMasses:
    """Return a vortex: equal masses along a line through the centre, at a random angle."""
    half = vortex_half_length_arcsec(axion_mass_ev)
    along = np.linspace(-half, half, elements)
    angle = rng.uniform(0.0, 2.0 * np.pi)
    mass = np.full(elements, mass_solar / elements)
    return PointMasses(mass, along * np.cos(angle), along * np.sin(angle))
