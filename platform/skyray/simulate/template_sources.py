"""Stars, starlight and quasars drawn from external templates, mixed with the built-in ones.

Eigenvectors carry no prior: a built-in object is projected onto them, so that the coefficients
scatter as the built-in population does while the shapes are those of real spectra.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from skyray.simulate import dust, restframe
from skyray.simulate.galaxy_spectra import Starlight
from skyray.simulate.quasar_spectra import QuasarTraits, emission
from skyray.simulate.stars import StarSource
from skyray.simulate.templates import Basis, Templates, class_number

_STRIDE = 6  # every 6th rest-frame pixel (414 km/s) resolves what is projected
_WITHIN = 1.6  # spectral subclasses about the wanted one


class TemplateStars:
    """Stars from spEigenStar, MaStar and redrock's archetypes; `share` of the draws.

    Parameters
    ----------
    templates : Templates
    built_in : StarSource
        Draws the others, and types without templates.
    """

    def __init__(self, templates: Templates, built_in: StarSource, share: float = 0.6):
        self._templates = templates
        self._built_in = built_in
        self._share = share
        self._rows = {
            letter: self._rows_of(letter) for letter in {c for c, _ in templates.star_classes}
        }

    def _rows_of(self, letter: str) -> list[int]:
        return [i for i, (found, _) in enumerate(self._templates.star_classes) if found == letter]

    def flux(self, rng, kind: str, wavelength, redshift: float, metal_poor: bool) -> np.ndarray:
        template = None
        if not metal_poor and rng.random() < self._share:
            template = self._draw(rng, kind)
        if template is None:
            return self._built_in.flux(rng, kind, wavelength, redshift, metal_poor)
        flux = restframe.observe(template, np.log10(wavelength), redshift)
        return dust.redden(flux, wavelength, float(rng.exponential(0.15)))

    def _draw(self, rng: np.random.Generator, kind: str) -> np.ndarray | None:
        if kind == "CV":
            return self._cataclysmic(rng)
        letter = kind if kind in ("WD", "carbon") else kind[0]
        whole_class = kind == letter or kind == "M2"
        if whole_class and letter in self._templates.star_bases and rng.random() < 0.6:
            vectors, coefficients = self._templates.star_bases[letter]
            star = coefficients[int(rng.integers(len(coefficients)))] @ vectors
            return np.maximum(star, 0.0)
        rows = self._rows.get(letter, []) if whole_class else self._near(kind)
        if not rows:
            return None
        return self._templates.stars[rows[int(rng.integers(len(rows)))]]

    def _near(self, kind: str) -> list[int]:
        wanted = class_number(kind[0], float(kind[1:]))
        return [
            row
            for row, (letter, number) in enumerate(self._templates.star_classes)
            if np.isfinite(number) and abs(class_number(letter, number) - wanted) <= _WITHIN
        ]

    def _cataclysmic(self, rng: np.random.Generator) -> np.ndarray | None:
        vectors = self._templates.cataclysmic.vectors
        for _ in range(5):
            star = vectors[0] + rng.normal(0, 1.0) * vectors[1] + rng.normal(0, 1.0) * vectors[2]
            if star.min() > 0:
                return star
        return None


class TemplateStarlight:
    """Galaxies' starlight from simple stellar populations and the pipeline's eigenspectra."""

    def __init__(self, templates: Templates, built_in: Starlight, share: float = 0.6):
        self._templates = templates
        self._built_in = built_in
        self._share = share
        self._inside = self._range_mask(*templates.population_range)

    @staticmethod
    def _range_mask(low: float, high: float) -> tuple[int, int]:
        edges = np.searchsorted(restframe.rest_wavelength(), (low * 1.005, high * 0.995))
        return int(edges[0]), int(edges[1])

    def starlight(self, rng: np.random.Generator, weights: Mapping[str, float]) -> np.ndarray:
        base = self._built_in.starlight(rng, weights)
        if rng.random() >= self._share:
            return base
        if weights["old"] > 0.6 and rng.random() < 0.5:
            basis = self._templates.galaxies
            return _splice(basis.project(base[::_STRIDE], 2200.0, 9000.0, _STRIDE), base, basis)
        total = np.zeros(restframe.LOG_SIZE)
        for name, weight in weights.items():
            rows = self._templates.populations[name]
            first, second = rng.integers(len(rows), size=2)
            part = rng.random()
            total += weight * (part * rows[first] + (1 - part) * rows[second])
        first, last = self._inside
        joined = base.copy()
        joined[first:last] = total[first:last]
        joined[:first] *= total[first] / max(np.median(base[first : first + 30]), 1e-6)
        joined[last:] *= total[last - 1] / max(base[last - 1], 1e-6)
        return joined


class TemplateQuasars:
    """Quasar emission from the pipeline's and redrock's eigenspectra."""

    def __init__(self, templates: Templates, share: float = 0.5):
        self._bases = templates.quasars
        self._share = share

    def emission(
        self, rng: np.random.Generator, redshift: float, traits: QuasarTraits
    ) -> Callable[[np.ndarray], np.ndarray] | None:
        """Return rest wavelength → F_λ without absorption; None leaves it to the built-in model."""
        if rng.random() >= self._share:
            return None
        names = ["pipeline", "pipeline10"]
        names += ["high", "high"] if redshift > 1.4 else []
        names += ["low", "low"] if 0.08 < redshift < 1.6 else []
        name = names[int(rng.integers(len(names)))]
        basis = self._bases[name]
        coarse = restframe.rest_wavelength()[::_STRIDE]
        model = emission(coarse, traits, 0.0, rng)
        low = 1060.0 if name == "high" else 1225.0
        template = basis.project(model, low, 7500.0, _STRIDE)
        base = np.interp(restframe.rest_wavelength(), coarse, model)
        # The pipeline's vectors include the forest's mean absorption: the model takes over there.
        usable = Basis(basis.vectors, max(basis.low, low - 25.0), basis.high)
        template = _splice(template, base, usable)
        if template.min() <= 0:
            return None
        return lambda rest: restframe.observe(template, np.log10(rest), 0.0)


def _splice(inside: np.ndarray, outside: np.ndarray, basis: Basis) -> np.ndarray:
    """Return `inside` where the basis was measured and `outside`, scaled to join, elsewhere."""
    grid = restframe.rest_wavelength()
    first, last = np.searchsorted(grid, (basis.low * 1.002, basis.high * 0.99))
    joined = inside.copy()
    near = slice(first, first + 60)
    joined[:first] = outside[:first] * np.median(inside[near]) / np.median(outside[near])
    near = slice(last - 60, last)
    joined[last:] = outside[last:] * np.median(inside[near]) / np.median(outside[near])
    return joined
