"""Rest-frame spectral templates: linear bases of a class, each with a prior on its coefficients.

One log-wavelength grid serves all: pixel ``i`` lies at ``10 ** (i · LOG_STEP)`` Å in vacuum, so
that a redshift is a shift by whole pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.ndimage import gaussian_filter1d

LOG_STEP = 1e-4  # dex: 69 km/s, the pixel of SDSS
LIGHT_KMS = 299792.458
PIXEL_KMS = LOG_STEP * np.log(10.0) * LIGHT_KMS
LYMAN_ALPHA = 1215.67
GALAXY, QSO, STAR = "GALAXY", "QSO", "STAR"


@dataclass(frozen=True)
class TemplateBasis:
    """A linear basis of one kind of object.

    Attributes
    ----------
    spectype, subtype : str
        ``GALAXY``, ``QSO`` or ``STAR``, and what else names the basis.
    first : int
        Pixel of the log grid at which the vectors begin.
    vectors : float64 [K, P]
        F_λ in the rest frame. Outside their range a template is 0.
    variance : float64 [K]
        Prior variance of the coefficients of a spectrum whose rms is 1; ``inf`` leaves a
        coefficient free, as all are in the files of surveys.
    redshift : tuple of float
        The lowest and highest redshift to try.
    forest : bool
        Whether the vectors are free of absorption by intergalactic hydrogen, which is then applied
        at every redshift (see `skyray.models.redshift_scan`).
    lsf_kms : float
        σ of the line spread the vectors already have.
    stride : int
        Pixels put together before the scan, for objects whose lines are wide: the steps in redshift
        are as much coarser.
    """

    spectype: str
    subtype: str
    first: int
    vectors: np.ndarray
    variance: np.ndarray
    redshift: tuple[float, float]
    forest: bool = False
    lsf_kms: float = 0.0
    stride: int = 1
    troughs: tuple[tuple[float, float], ...] = ()
    rarity: float = 0.0

    @property
    def name(self) -> str:
        return f"{self.spectype}/{self.subtype}" if self.subtype else self.spectype

    def wavelength(self) -> np.ndarray:
        """Return the rest wavelengths of the vectors, vacuum Å, float64 [P]."""
        return 10.0 ** (LOG_STEP * (self.first + np.arange(self.vectors.shape[1])))

    def absorbed(self, rest: np.ndarray) -> np.ndarray:
        """Return where rest wavelengths (Å) lie behind the forest or in troughs, bool."""
        found = (rest < LYMAN_ALPHA) & self.forest
        for low, high in self.troughs:
            found |= (rest > low) & (rest < high)
        return found

    def broadened(self, lsf_kms: float) -> TemplateBasis:
        """Return the basis as a spectrograph of this line spread (σ, km/s) sees it.

        A basis that is already wider stays as it is.
        """
        wanted = np.sqrt(max(lsf_kms**2 - self.lsf_kms**2, 0.0)) / PIXEL_KMS
        if wanted < 0.05:
            return self
        vectors = gaussian_filter1d(self.vectors, wanted, axis=1, mode="nearest")
        return replace(self, vectors=vectors, lsf_kms=lsf_kms)


def on_log_grid(wavelength: np.ndarray, vectors: np.ndarray) -> tuple[int, np.ndarray]:
    """Return the first pixel and vectors [K, P] of templates tabulated at `wavelength` [Q] Å.

    Linear interpolation; only pixels inside the table.
    """
    position = np.log10(np.asarray(wavelength, np.float64)) / LOG_STEP
    first, last = int(np.ceil(position[0] - 1e-6)), int(np.floor(position[-1] + 1e-6))
    pixels = np.arange(first, last + 1)
    return first, np.stack([np.interp(pixels, position, row) for row in vectors])


def to_arrays(bases: Sequence[TemplateBasis]) -> dict[str, np.ndarray]:
    """Return bases as plain arrays (float32 vectors), to be kept beside a model or in a file."""
    arrays = {}
    for number, basis in enumerate(bases):
        arrays[f"{number}/vectors"] = basis.vectors.astype(np.float32)
        arrays[f"{number}/variance"] = basis.variance.astype(np.float64)
        arrays[f"{number}/range"] = np.array([*basis.redshift, basis.lsf_kms, basis.rarity])
        grid = [basis.first, int(basis.forest), basis.stride]
        if basis.troughs:
            arrays[f"{number}/troughs"] = np.array(basis.troughs, np.float64)
        arrays[f"{number}/grid"] = np.array(grid, np.int64)
        name = f"{basis.spectype}\n{basis.subtype}".encode()
        arrays[f"{number}/name"] = np.frombuffer(name, np.uint8)
    return arrays


def from_arrays(arrays: Mapping[str, np.ndarray]) -> list[TemplateBasis]:
    """Return the bases that `to_arrays` turned into arrays."""
    bases = []
    for number in range(sum(key.endswith("/vectors") for key in arrays)):
        low, high, lsf, rarity = np.asarray(arrays[f"{number}/range"], np.float64)
        first, forest, stride = map(int, arrays[f"{number}/grid"])
        name = np.asarray(arrays[f"{number}/name"], np.uint8).tobytes().decode()
        spectype, _, subtype = name.partition("\n")
        troughs = np.asarray(arrays.get(f"{number}/troughs", np.zeros((0, 2))), np.float64)
        bases.append(
            TemplateBasis(
                spectype, subtype, first,
                np.asarray(arrays[f"{number}/vectors"], np.float64),
                np.asarray(arrays[f"{number}/variance"], np.float64),
                (float(low), float(high)), bool(forest), float(lsf), stride,
                tuple(map(tuple, troughs.tolist())), float(rarity),
            )
        )  # fmt: skip
    return bases
