"""Night-sky emission lines and the pixels they spoil. Pure numpy.

The built-in table ``sky_lines.csv`` holds positions and strengths after Osterbrock et al. (1996,
PASP 108, 277). Shape suffix: L observed pixels.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from skyray.transforms.spectra import air_to_vacuum

HEADER = ("wavelength_air_angstrom", "intensity", "species")


@dataclass(frozen=True)
class SkyLines:
    """Night-sky lines, in the order of their file.

    Attributes
    ----------
    wavelength_vacuum : float64 [lines]
        Vacuum Å.
    intensity : float64 [lines]
        Relative; [O I] 5577 is 26 in the built-in table.
    """

    wavelength_vacuum: np.ndarray
    intensity: np.ndarray


def load_sky_lines(path: str | os.PathLike | None = None) -> SkyLines:
    """Read a table of sky lines; without `path` the built-in one.

    Two formats are told apart by their first line that is neither empty nor a comment (``#``):

    - the built-in table's: comma-separated, header ``wavelength_air_angstrom,intensity,species``;
    - columns separated by white space, without header: wavelength in vacuum nm, intensity, and
      more that are ignored (the format of the list in SPENDER, which comes from PFS).

    Raises
    ------
    ValueError
        If a row is not a wavelength > 0 and an intensity ≥ 0, naming file and line, or if the file
        holds no line at all.
    FileNotFoundError
        If there is no such file.
    """
    file = Path(path) if path is not None else Path(__file__).with_name("sky_lines.csv")
    text = file.read_text(encoding="utf-8").splitlines()
    rows = [(n, row.strip()) for n, row in enumerate(text, 1)]
    rows = [(n, row) for n, row in rows if row and not row.startswith("#")]
    if rows and "," in rows[0][1]:
        header = tuple(name.strip() for name in rows[0][1].split(","))
        if header != HEADER:
            raise ValueError(
                f"{file}, line {rows[0][0]}: expected header {','.join(HEADER)!r}, "
                f"found {rows[0][1]!r}"
            )
        values = [_row(file, n, row, row.split(",")[:2]) for n, row in rows[1:]]
        wavelength, intensity = _columns(file, values)
        return SkyLines(air_to_vacuum(wavelength), intensity)
    wavelength, intensity = _columns(file, [_row(file, n, row, row.split()[:2]) for n, row in rows])
    return SkyLines(10.0 * wavelength, intensity)


def sky_line_mask(
    wavelength_L: np.ndarray, lines: SkyLines, min_intensity: float = 2.0, half_width: float = 5.0
) -> np.ndarray:
    """Return which pixels lie on a bright sky line, bool [L].

    Lines with I > `min_intensity` spoil |λ − λ_line| < `half_width` · (1 + log10(I / min)), as
    SPENDER has it. Intensities are relative, so `min_intensity` belongs to one table: with the
    built-in one 2.0 spoils 16 % of 3600–9824 Å, 0.5 the 25 % of the DESI BGS paper.

    Parameters
    ----------
    wavelength_L : float [L]
        Observed vacuum Å, strictly increasing.
    min_intensity : float
        > 0, in the unit of the table.
    half_width : float
        Å, of a line just above `min_intensity`.
    """
    if min_intensity <= 0 or half_width <= 0:
        raise ValueError(
            f"sky_line_mask: expected min_intensity > 0 and half_width > 0, "
            f"found {min_intensity}, {half_width}"
        )
    wavelength = np.asarray(wavelength_L, dtype=np.float64)
    bright = lines.intensity > min_intensity
    centre = lines.wavelength_vacuum[bright]
    reach = half_width * (1.0 + np.log10(lines.intensity[bright] / min_intensity))
    first = np.searchsorted(wavelength, centre - reach, side="right")
    last = np.searchsorted(wavelength, centre + reach, side="left")
    mask = np.zeros(len(wavelength), dtype=bool)
    for i, j in zip(first, last, strict=True):
        mask[i:j] = True
    return mask


def _row(file: Path, number: int, row: str, cells: list[str]) -> tuple[float, float]:
    try:
        wavelength, intensity = (float(cell) for cell in cells)
    except ValueError:
        wavelength = intensity = math.nan
    if not (0 < wavelength < math.inf and 0 <= intensity < math.inf):
        raise ValueError(
            f"{file}, line {number}: expected a wavelength > 0 and an intensity ≥ 0, found {row!r}"
        )
    return wavelength, intensity


def _columns(file: Path, values: list[tuple[float, float]]) -> tuple[np.ndarray, np.ndarray]:
    if not values:
        raise ValueError(f"{file}: expected sky lines, found none")
    wavelength, intensity = np.array(values, dtype=np.float64).T
    return wavelength, intensity
