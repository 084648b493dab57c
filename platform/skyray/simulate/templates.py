"""External template files, loaded onto the rest-frame grid.

The folder holds, as their projects publish them:

- ``boss_pipeline/spEigenStar-55734.fits.gz`` (123 stars), ``spEigenCVstar-55734.fits.gz``,
  ``spEigenGal-55740.fits.gz``, ``spEigenQSO-55732.fits.gz``, ``spEigenQSO-58596.fits.gz``: the
  templates of the SDSS pipeline (Bolton et al. 2012), log λ, vacuum;
- ``redrock/rrtemplate-QSO-HIZ-v1.1.fits.gz``, ``…-LOZ-…`` (Brodzeller et al. 2023; the forest's
  absorption is taken out of HIZ), ``redrock/star_bases.npz`` (five-vector bases of the redrock star
  templates with the coefficients of their archetypes);
- ``libraries/mastar_hc.npz`` (MaStar stars, vacuum) and ``libraries/bc03_ssp.npz`` (simple stellar
  populations of Bruzual & Charlot 2003, in air).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from astropy.io import fits

from skyray.config import ConfigError
from skyray.simulate import restframe
from skyray.transforms.spectra import air_to_vacuum

_SPECTRAL_ORDER = "OBAFGKM"
_TYPE = re.compile(r"^(?:sd:?)?([OBAFGKM])(\d(?:\.\d)?)?")
_SSP_NAME = re.compile(r"_z([\d.]+)_a([\d.]+)$")


@dataclass(frozen=True)
class Basis:
    """Vectors [K, LOG_SIZE] on the rest-frame grid and the range they were measured in, Å."""

    vectors: np.ndarray
    low: float
    high: float

    def project(self, spectrum: np.ndarray, low: float, high: float, stride: int) -> np.ndarray:
        """Return the combination of the vectors nearest to `spectrum` between low and high.

        Parameters
        ----------
        spectrum : [LOG_SIZE // stride, rounded up]
            On every `stride`-th pixel of the rest-frame grid.

        Returns
        -------
        float64 [LOG_SIZE]
        """
        grid = restframe.rest_wavelength()[::stride]
        used = (grid > max(low, self.low)) & (grid < min(high, self.high))
        design = self.vectors[:, ::stride][:, used]
        coefficients = np.linalg.lstsq(design.T, spectrum[used], rcond=None)[0]
        return coefficients @ self.vectors


@dataclass(frozen=True)
class Templates:
    """Everything the folder holds.

    Attributes
    ----------
    stars : float32 [N, LOG_SIZE], star_classes : list of (letter, number)
        Single stars with their spectral class; letters also ``WD`` and ``carbon``. Number NaN
        where the name gives none.
    star_bases : dict
        Letter → (vectors [5, LOG_SIZE], archetype coefficients [M, 5]).
    cataclysmic, galaxies : Basis
    quasars : dict
        ``pipeline``, ``pipeline10``, ``high`` and ``low`` redshift bases.
    populations : dict
        ``old``, ``mid``, ``young`` → float32 [N, LOG_SIZE], 1 near 5500 Å.
    population_range : tuple of float
        Å, where the populations are measured.
    """

    stars: np.ndarray
    star_classes: list[tuple[str, float]]
    star_bases: dict[str, tuple[np.ndarray, np.ndarray]]
    cataclysmic: Basis
    galaxies: Basis
    quasars: dict[str, Basis]
    populations: dict[str, np.ndarray]
    population_range: tuple[float, float]


def load_templates(folder: Path) -> Templates:
    """Load a folder of templates.

    Raises
    ------
    ConfigError
        If a file is missing or does not hold what its name promises; names file and field.
    """
    boss, redrock, libraries = (folder / n for n in ("boss_pipeline", "redrock", "libraries"))
    stars, classes = _named_stars(boss / "spEigenStar-55734.fits.gz")
    mastar, mastar_classes = _mastar(libraries / "mastar_hc.npz", stars, classes)
    populations, measured = _populations(libraries / "bc03_ssp.npz")
    return Templates(
        stars=np.concatenate([stars, mastar]),
        star_classes=classes + mastar_classes,
        star_bases=_star_bases(redrock / "star_bases.npz"),
        cataclysmic=_fits_basis(boss / "spEigenCVstar-55734.fits.gz"),
        galaxies=_fits_basis(boss / "spEigenGal-55740.fits.gz"),
        quasars={
            "pipeline": _fits_basis(boss / "spEigenQSO-55732.fits.gz"),
            "pipeline10": _fits_basis(boss / "spEigenQSO-58596.fits.gz"),
            "high": _fits_basis(redrock / "rrtemplate-QSO-HIZ-v1.1.fits.gz"),
            "low": _fits_basis(redrock / "rrtemplate-QSO-LOZ-v1.1.fits.gz"),
        },
        populations=populations,
        population_range=measured,
    )


def spectral_class(name: str) -> tuple[str, float] | None:
    """Return (letter, number) of a template's name, None where it is of no use (L dwarfs)."""
    if "WD" in name:
        return "WD", float("nan")
    if name.startswith("Carbon"):
        return "carbon", float("nan")
    found = _TYPE.match(name)
    if not found:
        return None
    return found[1], float(found[2]) if found[2] else float("nan")


def class_number(letter: str, number: float) -> float:
    """Return a position on the spectral sequence: O0 = 0, B0 = 10 … M0 = 60."""
    return 10.0 * _SPECTRAL_ORDER.index(letter) + number


def _need(path: Path) -> Path:
    if not path.is_file():
        raise ConfigError(f"templates: no file {path}; see skyray.simulate.templates for the set")
    return path


def _fits_vectors(path: Path) -> tuple[np.ndarray, np.ndarray, fits.Header]:
    with fits.open(_need(path)) as hdus:
        hdu = hdus[0] if hdus[0].data is not None else hdus[1]
        vectors, header = np.asarray(hdu.data, dtype=np.float64), hdu.header
    start = header.get("COEFF0", header.get("CRVAL1"))
    step = header.get("COEFF1", header.get("CDELT1"))
    if vectors.ndim != 2 or start is None or step is None:
        raise ConfigError(
            f"templates: {path}: expected vectors [K, P] with COEFF0/COEFF1 or CRVAL1/CDELT1, "
            f"found shape {vectors.shape}, start {start}, step {step}"
        )
    return vectors, 10.0 ** (start + step * np.arange(vectors.shape[1])), header


def _fits_basis(path: Path) -> Basis:
    vectors, wavelength, _ = _fits_vectors(path)
    return Basis(restframe.resample(wavelength, vectors), wavelength[0], wavelength[-1])


def _named_stars(path: Path) -> tuple[np.ndarray, list[tuple[str, float]]]:
    vectors, wavelength, header = _fits_vectors(path)
    names = [str(header.get(f"NAME{row}", "")) for row in range(len(vectors))]
    classes = [spectral_class(name) for name in names]
    kept = [row for row, found in enumerate(classes) if found is not None]
    if not kept:
        raise ConfigError(f"templates: {path}: expected NAMEn keys with spectral types")
    stars = _normalise(restframe.resample(wavelength, vectors[kept]))
    return stars, [found for found in classes if found is not None]


def _normalise(spectra: np.ndarray) -> np.ndarray:
    grid = restframe.rest_wavelength()
    window = (grid > 5300) & (grid < 5700)
    level = np.median(spectra[:, window], axis=1, keepdims=True)
    return np.maximum(spectra / level, 0.0).astype(np.float32)


def _arrays(path: Path, *names: str) -> dict[str, np.ndarray]:
    with np.load(_need(path), allow_pickle=False) as archive:
        missing = set(names) - set(archive.files)
        if missing:
            raise ConfigError(f"templates: {path}: expected {sorted(names)}, lacks {missing}")
        return {name: archive[name] for name in archive.files}


def _mastar(path: Path, stars: np.ndarray, classes: list) -> tuple[np.ndarray, list]:
    """Return the MaStar spectra, each classified by the nearest named star."""
    arrays = _arrays(path, "wave", "flux")
    wavelength, flux = arrays["wave"], arrays["flux"].astype(np.float64)
    filled = [np.interp(wavelength, wavelength[f > 0], f[f > 0]) for f in flux]
    spectra = _normalise(restframe.resample(wavelength, np.stack(filled)))
    grid = restframe.rest_wavelength()
    used = (grid > max(3750.0, wavelength[0])) & (grid < 8900.0)
    normal = [i for i, (letter, number) in enumerate(classes) if np.isfinite(number)]
    known = np.log(np.maximum(stars[normal][:, used][:, ::4], 1e-3))
    found = []
    for spectrum in spectra:
        distance = np.abs(known - np.log(np.maximum(spectrum[used][::4], 1e-3))).mean(axis=1)
        found.append(classes[normal[int(np.argmin(distance))]])
    return spectra, found


def _star_bases(path: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    letters = ("B", "A", "F", "G", "K", "M", "WD")
    arrays = _arrays(
        path, *(f"{a}_{part}" for a in letters for part in ("wave", "basis", "archetype_coeff"))
    )
    return {
        letter: (
            restframe.resample(arrays[f"{letter}_wave"], arrays[f"{letter}_basis"]),
            arrays[f"{letter}_archetype_coeff"].astype(np.float64),
        )
        for letter in letters
    }


def _populations(path: Path) -> tuple[dict[str, np.ndarray], tuple[float, float]]:
    arrays = _arrays(path, "wave", "flux", "name")
    wavelength = air_to_vacuum(arrays["wave"])
    spectra = _normalise(restframe.resample(wavelength, arrays["flux"].astype(np.float64)))
    groups: dict[str, list[np.ndarray]] = {"old": [], "mid": [], "young": []}
    for name, spectrum in zip(arrays["name"], spectra, strict=True):
        found = _SSP_NAME.search(str(name))
        if not found:
            raise ConfigError(f"templates: {path}: name {name!r}: expected …_zZ_aAGE (Gyr)")
        age = float(found[2])
        key = "old" if age >= 5.0 else "mid" if age > 0.3 else "young" if age < 0.15 else "mid"
        groups[key].append(spectrum)
    stacked = {key: np.stack(rows) for key, rows in groups.items()}
    return stacked, (float(wavelength[0]), float(wavelength[-1]))
