"""Deflection of light by a lens galaxy and by many small masses, in arcseconds.

Positions and angles are arcseconds on the sky. The galaxy is a singular isothermal ellipsoid with
external shear, from lenstronomy; the small masses are summed here, since a call for each of a
hundred of them costs lenstronomy more than the sum.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from astropy import constants, units
from astropy.cosmology import FlatLambdaCDM

Mode = Literal["corrected", "as_published"]
Profile = Literal["point_mass", "pseudo_jaffe"]
_RAYS_AT_ONCE = 1024  # the table of rays and masses stays in a core's cache


@lru_cache(maxsize=16)
def einstein_radius_of_unit_mass(
    z_lens: float, z_source: float, hubble: float, omega_matter: float, distances: Mode
) -> float:
    """Return the Einstein radius of one solar mass, arcsec; it grows with the root of the mass.

    √(4GM/c² · D_ls / (D_l D_s)) with angular-diameter distances in a flat ΛCDM universe. The
    released simulator takes luminosity distances and their difference for D_ls
    (``as_published``): 1.28″ instead of 1.66″ for 10¹² M☉ at z = 0.5 and 1.
    """
    cosmology = FlatLambdaCDM(H0=hubble, Om0=omega_matter)
    if distances == "as_published":
        lens, source = cosmology.luminosity_distance([z_lens, z_source])
        between = source - lens
    else:
        lens, source = cosmology.angular_diameter_distance([z_lens, z_source])
        between = cosmology.angular_diameter_distance(z_lens, z_source)
    scale = 4 * constants.G * constants.M_sun / constants.c**2
    angle = np.sqrt((scale * between / (lens * source)).to_value(units.dimensionless_unscaled))
    return float((angle * units.rad).to_value(units.arcsec))


@dataclass(frozen=True)
class LensGalaxy:
    """A singular isothermal ellipsoid with external shear, centred on 0."""

    theta_e_arcsec: float
    e1: float
    e2: float
    gamma1: float
    gamma2: float

    def deflection(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the deflection of rays at x, y, same shape."""
        from lenstronomy.LensModel.Profiles.sie import SIE  # seconds of import

        dx, dy = SIE().derivatives(x, y, self.theta_e_arcsec, self.e1, self.e2)
        return (
            dx + self.gamma1 * x + self.gamma2 * y,
            dy + self.gamma2 * x - self.gamma1 * y,
        )


@dataclass(frozen=True)
class SmallMasses:
    """Masses that are small against the lens galaxy.

    Attributes
    ----------
    x, y : float [M]
        Positions, arcsec.
    theta_e_arcsec : float [M]
        Einstein radius of each as a point mass.
    truncation_arcsec : float [M] or None
        Truncation radius of pseudo-Jaffe subhalos; None: point masses.
    """

    x: np.ndarray
    y: np.ndarray
    theta_e_arcsec: np.ndarray
    truncation_arcsec: np.ndarray | None = None

    def deflection(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the summed deflection of rays at x, y, same shape."""
        out = np.zeros((2, x.size))
        if len(self.x):
            for start in range(0, x.size, _RAYS_AT_ONCE):
                at = slice(start, start + _RAYS_AT_ONCE)
                out[:, at] = self._sum(x.reshape(-1)[at], y.reshape(-1)[at])
        return out[0].reshape(x.shape), out[1].reshape(x.shape)

    def _sum(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        dx, dy = x[None, :] - self.x[:, None], y[None, :] - self.y[:, None]
        square = dx * dx
        square += dy * dy
        np.maximum(square, 1e-12, out=square)
        weight = (self.theta_e_arcsec**2)[:, None] / square
        if self.truncation_arcsec is not None:
            cut, radius = self.truncation_arcsec[:, None], np.sqrt(square)
            weight *= (radius + cut - np.sqrt(square + cut * cut)) / cut
        return np.einsum("mr,mr->r", weight, dx), np.einsum("mr,mr->r", weight, dy)


def tidal_truncation(theta_e_arcsec: np.ndarray, lens_theta_e_arcsec: float) -> np.ndarray:
    """Return the truncation radius of pseudo-Jaffe subhalos near the Einstein radius, arcsec [M].

    A subhalo of total mass M is an isothermal sphere of strength b cut at a = √(b θ_E), with
    a b = θ² of the point mass (Metcalf & Madau 2001).
    """
    strength = (theta_e_arcsec**2 / np.sqrt(lens_theta_e_arcsec)) ** (2.0 / 3.0)
    return np.sqrt(strength * lens_theta_e_arcsec)


def effective_einstein_radius(alpha_x: np.ndarray, alpha_y: np.ndarray, step_arcsec: float):
    """Return the radius within which a deflection field's mean convergence is 1, arcsec.

    Parameters
    ----------
    alpha_x, alpha_y : float [N, N]
        Deflections on a square grid centred on the lens.
    step_arcsec : float
        Distance of neighbouring rays.
    """
    count = len(alpha_x)
    axis = (np.arange(count) - 0.5 * (count - 1)) * step_arcsec
    x, y = np.meshgrid(axis, axis)
    radius = np.hypot(x, y)
    outward = (alpha_x * x + alpha_y * y) / np.maximum(radius, 1e-9)
    edges = np.arange(0.0, axis[-1], 1.5 * step_arcsec)
    index = np.digitize(radius.reshape(-1), edges)
    rings = np.bincount(index, minlength=len(edges) + 1)[1:-1]
    mean = np.bincount(index, outward.reshape(-1), len(edges) + 1)[1:-1] / np.maximum(rings, 1)
    middle = np.bincount(index, radius.reshape(-1), len(edges) + 1)[1:-1] / np.maximum(rings, 1)
    inside = np.flatnonzero((mean - middle)[2:] < 0)
    if not inside.size or inside[0] == 0:
        return float("nan")
    at = int(inside[0]) + 2
    excess = mean - middle
    share = excess[at - 1] / (excess[at - 1] - excess[at])
    return float(middle[at - 1] + share * (middle[at] - middle[at - 1]))
