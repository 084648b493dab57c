"""Spectra as compact SVG paths: thousands of pixels in a few kilobytes, no line lost.

A path lives in a view box of ``columns`` × `HEIGHT` units that the page stretches to the size of
its panel, so a column is about a screen pixel. Many pixels in a column keep their lowest and
highest value (`envelope`), which is what a screen would show of the full curve.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

HEIGHT = 400  # units of a view box's height: half a screen pixel in a panel of 200


@dataclass(frozen=True, slots=True)
class Frame:
    """A panel's limits and its number of columns.

    Attributes
    ----------
    left, right : float
        Wavelength at the edges, Å, of any frame.
    bottom, top : float
        Value at the edges.
    columns : int
        Width of the view box.
    """

    left: float
    right: float
    bottom: float
    top: float
    columns: int

    def column(self, x: np.ndarray) -> np.ndarray:
        """Return the column of each wavelength, int64; outside the panel it is out of range."""
        return np.floor((x - self.left) / (self.right - self.left) * self.columns).astype(np.int64)

    def row(self, y: np.ndarray) -> np.ndarray:
        """Return the height of each value in view-box units, int64; beyond the edges: at them."""
        share = (np.clip(y, self.bottom, self.top) - self.bottom) / (self.top - self.bottom)
        return np.rint(HEIGHT * (1.0 - share)).astype(np.int64)


def _columns(frame: Frame, x_L: np.ndarray, used_L: np.ndarray):
    """Return the used pixels in the panel, where each column begins among them, and its number."""
    column = frame.column(np.where(used_L, x_L, frame.left))
    pixels = np.flatnonzero(used_L & (column >= 0) & (column < frame.columns))
    column = column[pixels]
    starts = np.flatnonzero(np.diff(column, prepend=-1))
    return pixels, starts, column[starts]


def _runs(column: np.ndarray) -> list[np.ndarray]:
    """Split columns where pixels are missing; coarse grids, with empty columns between, stay."""
    if column.size == 0:
        return []
    step = np.diff(column)
    usual = max(2.0, 2.0 * float(np.median(step))) if step.size else 2.0
    return np.split(np.arange(column.size), np.flatnonzero(step > usual) + 1)


def line(
    frame: Frame, x_L: np.ndarray, y_L: np.ndarray, used_L: np.ndarray, significance: bool = False
) -> str:
    """Return a line through the mean of the used pixels of each column, broken at gaps.

    Parameters
    ----------
    x_L, y_L : float [L]
        Ascending wavelength, and values; values that are not finite are not used.
    used_L : bool [L]
    significance : bool
        Draw Σy / √n of a column instead of its mean: for residuals in units of σ, still in σ.

    Returns
    -------
    str
        The ``d`` of a path; empty where nothing is in the panel.
    """
    pixels, starts, column = _columns(frame, x_L, used_L & np.isfinite(y_L))
    if column.size == 0:
        return ""
    count = np.diff(np.append(starts, pixels.size))
    mean = np.add.reduceat(np.asarray(y_L, np.float64)[pixels], starts) / (
        np.sqrt(count) if significance else count
    )
    height = frame.row(mean)
    return "".join(
        _polyline(column[run], height[run]) if run.size > 1 else _dash(column[run], height[run])
        for run in _runs(column)
    )


def envelope(
    frame: Frame, x_L: np.ndarray, low_L: np.ndarray, high_L: np.ndarray, used_L: np.ndarray
) -> str:
    """Return the area between the lowest and the highest value of each column, broken at gaps.

    With `low_L` = `high_L` = flux this is the extent of the pixels themselves; with flux ∓ σ it is
    their error band. Arguments as for `line`.
    """
    finite = np.isfinite(low_L) & np.isfinite(high_L)
    pixels, starts, column = _columns(frame, x_L, used_L & finite)
    if column.size == 0:
        return ""
    low = frame.row(np.minimum.reduceat(np.asarray(low_L, np.float64)[pixels], starts))
    high = frame.row(np.maximum.reduceat(np.asarray(high_L, np.float64)[pixels], starts))
    parts = []
    for run in _runs(column):
        across = np.concatenate([column[run], column[run][-1:] + 1, column[run][-1:] + 1,
                                 column[run][::-1]])  # fmt: skip
        upper, lower = high[run], low[run]
        up = np.concatenate([upper, upper[-1:], lower[-1:], lower[::-1]])
        parts.append(_polyline(across, up) + "z")
    return "".join(parts)


def shade(frame: Frame, x_L: np.ndarray, marked_L: np.ndarray) -> str:
    """Return full-height stripes over the marked pixels, one for every run of them."""
    change = np.diff(np.concatenate([[False], marked_L, [False]]).astype(np.int8))
    first, last = np.flatnonzero(change == 1), np.flatnonzero(change == -1) - 1
    half = 0.5 * np.gradient(np.asarray(x_L, np.float64))
    left = np.clip(frame.column(x_L[first] - half[first]), 0, frame.columns)
    right = np.clip(frame.column(x_L[last] + half[last]) + 1, 0, frame.columns)
    stripes: list[list[int]] = []
    for start, end in zip(left.tolist(), right.tolist(), strict=True):
        if stripes and start <= stripes[-1][1]:
            stripes[-1][1] = max(end, stripes[-1][1])
        elif end > start:
            stripes.append([start, end])
    return "".join(f"M{a} 0h{b - a}v{HEIGHT}h{a - b}z" for a, b in stripes)


def _dash(column: np.ndarray, height: np.ndarray) -> str:
    return f"M{column[0]} {height[0]}h1"


def _polyline(across: np.ndarray, height: np.ndarray) -> str:
    """Return a polyline in relative steps, the shortest form; a minus sign is a separator."""
    steps = zip(np.diff(across).tolist(), np.diff(height).tolist(), strict=True)
    body = "".join(f"{' ' if dx >= 0 else ''}{dx}{'' if dy < 0 else ' '}{dy}" for dx, dy in steps)
    return f"M{across[0]} {height[0]}l{body.strip()}"


def robust_limits(
    *values: np.ndarray, share: float = 0.4, pad: float = 0.08
) -> tuple[float, float]:
    """Return plot limits that leave out `share` per cent at each end of every finite value set.

    (0, 1) where no value is finite; never of zero height.
    """
    ends = [
        np.percentile(v[np.isfinite(v)], [share, 100 - share])
        for v in map(np.asarray, values)
        if np.isfinite(v).any()
    ]
    if not ends:
        return 0.0, 1.0
    low, high = float(min(e[0] for e in ends)), float(max(e[1] for e in ends))
    if not high > low:
        low, high = low - max(abs(low), 1.0) / 2, high + max(abs(high), 1.0) / 2
    return low - pad * (high - low), high + pad * (high - low)


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return round values inside [low, high], about `count` of them."""
    rough = (high - low) / max(count, 1)
    power = 10.0 ** np.floor(np.log10(rough))
    step = power * min((1, 2, 5, 10), key=lambda m: abs(m * power - rough))
    first = np.ceil(low / step - 1e-9)
    values = (first + np.arange(int(np.floor(high / step + 1e-9) - first) + 1)) * step
    return [float(round(v, 10)) for v in values]
