"""A spectrum as panels of SVG: the whole of it, its residuals, and zooms on the main lines."""

from __future__ import annotations

import math

import numpy as np

from skyray.pages import svg
from skyray.pages.page import text

# Rest wavelengths in vacuum, Å; those an eye needs first come first and keep their names on phones.
LINES = {
    "[O II]": 3728.48, "H": 3969.59, "K": 3934.78, "Hβ": 4862.68, "[O III]": 5008.24,
    "Mg b": 5176.7, "Na D": 5894.6, "Hα": 6564.61, "[S II]": 6725.5, "Mg II": 2798.75,
    "Hδ": 4102.89, "G": 4305.6, "Hγ": 4341.68, "[O I]": 6302.05,
    "[N II]": 6585.27, "Ca II": 8544.4, "Lyα": 1215.67, "C IV": 1549.06, "C III]": 1908.73,
    "Si IV": 1396.76,
}  # fmt: skip
MAIN_LINES = 9
ZOOMS = {
    "4000 Å break": (3820.0, 4180.0),
    "Hβ and [O III]": (4800.0, 5070.0),
    "Hα, [N II] and [S II]": (6470.0, 6790.0),
}
ZOOM_LINES = {
    "[O III] 4960": 4960.3, "[O III] 5008": 5008.24, "[N II] 6550": 6549.86, "[N II] 6585": 6585.27,
    "[S II]": 6718.29, "6733": 6732.67, "Hε": 3971.2, "K": 3934.78, "Hδ": 4102.89,
    "Hβ": 4862.68, "Hα": 6564.61, "H8": 3890.15,
}  # fmt: skip
_COLUMNS, _ZOOM_COLUMNS, _SPARK_COLUMNS = 720, 200, 150
_SIGMA = 6.0  # the residual panel's limits
_LABEL_LEVELS, _LABEL_PIXELS = 3, (1000, 300)  # widths for which labels are kept apart


def spectrum_panels(
    name: str,
    wavelength_L: np.ndarray,
    flux_L: np.ndarray,
    ivar_L: np.ndarray,
    masked_L: np.ndarray,
    model_L: np.ndarray,
    redshift: float,
) -> str:
    """Return a spectrum's figures: the whole of it over residuals, and one zoom a line group.

    Parameters
    ----------
    name : str
        Of the object, for those who hear the page.
    wavelength_L : float [L]
        Observed vacuum Å, ascending.
    flux_L, ivar_L : float [L]
        Any unit and its inverse variance, 0: not measured.
    masked_L : bool [L]
    model_L : float [L]
        In the unit of the flux; NaN where there is none.
    redshift : float
        NaN draws the observed frame.
    """
    z = redshift if math.isfinite(redshift) else 0.0
    rest = np.asarray(wavelength_L, np.float64) / (1.0 + z)
    flux, ivar, model = (np.asarray(a, np.float64) for a in (flux_L, ivar_L, model_L))
    measured = (ivar > 0) & np.isfinite(ivar) & np.isfinite(flux)
    used = measured & ~np.asarray(masked_L, bool)
    if not measured.any():
        return '<div class="none">nothing measured</div>'
    panels = _Panels(rest, flux, ivar, model, measured, used)
    zooms = "".join(panels.zoom(title, *limits) for title, limits in ZOOMS.items())
    return f'{panels.whole(name)}<div class="zooms">{zooms}</div>'


def spark(wavelength: np.ndarray, flux: np.ndarray) -> str:
    """Return a spectrum as a line without axes; empty where there is nothing to draw."""
    x, y = np.asarray(wavelength), np.asarray(flux, np.float64)
    if x.size < 2 or not np.isfinite(y).any():
        return ""
    frame = svg.Frame(float(x[0]), float(x[-1]), *svg.robust_limits(y), _SPARK_COLUMNS)
    return (
        f'<svg class="spark" viewBox="0 0 {_SPARK_COLUMNS} {svg.HEIGHT}" '
        f'preserveAspectRatio="none" aria-hidden="true"><path d="{svg.line(frame, x, y, y == y)}"/>'
        "</svg>"
    )


class _Panels:
    """Draws one object; arrays [L] as in `spectrum_panels`, wavelengths in the rest frame."""

    def __init__(self, rest, flux, ivar, model, measured, used):
        self.rest, self.flux, self.model = rest, flux, model
        self.measured, self.used = measured, used
        self.sigma = np.full(flux.shape, np.nan)
        self.sigma[measured] = 1.0 / np.sqrt(ivar[measured])
        shown = rest[measured]
        self.left, self.right = float(shown[0]), float(shown[-1])
        if not self.right > self.left:
            self.right = self.left + 1.0

    def whole(self, name: str) -> str:
        """Return the whole spectrum, and below it the residuals in units of σ."""
        frame = svg.Frame(self.left, self.right, *self._limits(), _COLUMNS)
        paths = [
            ("m", svg.shade(frame, self.rest, ~self.used)),
            ("h", self._extent(frame, self.measured & ~self.used)),
            ("p", self._extent(frame, self.used)),
            ("f", svg.line(frame, self.rest, self.flux, self.used)),
            ("o", svg.line(frame, self.rest, self.model, np.isfinite(self.model))),
        ]
        marks = _line_marks(LINES, frame, _LABEL_PIXELS[0])
        plot = _plot("plot first", frame, paths, marks + _y_ticks(frame, 4), f"spectrum of {name}")
        return (
            f"<figure><figcaption>rest-frame spectrum, normalised flux against Å in vacuum"
            f"</figcaption>{plot}{self._residual(name)}</figure>"
        )

    def _limits(self) -> tuple[float, float]:
        """Return flux limits from smoothed pixels, so that noise spikes do not set the scale."""
        flux = self.flux[self.used] if self.used.any() else self.flux[self.measured]
        width = min(5, flux.size)
        smooth = np.convolve(flux, np.ones(width) / width, mode="valid")
        low, high = svg.robust_limits(smooth, self.model, share=0.25)
        low = min(low, 0.0) if low > -0.2 * abs(high) else low
        return low, high + 0.22 * (high - low)  # room for the names of the lines

    def _extent(self, frame: svg.Frame, used: np.ndarray) -> str:
        return svg.envelope(frame, self.rest, self.flux, self.flux, used)

    def _residual(self, name: str) -> str:
        frame = svg.Frame(self.left, self.right, -_SIGMA, _SIGMA, _COLUMNS)
        residual = (self.flux - self.model) / self.sigma
        zero, three = frame.row(np.array([0.0, 3.0, -3.0]))[0], frame.row(np.array([3.0, -3.0]))
        rules = "".join(f"M0 {at}h{_COLUMNS}" for at in (zero, *three))
        paths = [
            ("m", svg.shade(frame, self.rest, ~self.used)),
            ("p", svg.envelope(frame, self.rest, residual, residual, self.used)),
            ("g", rules),
            ("f", svg.line(frame, self.rest, residual, self.used, significance=True)),
        ]
        extra = _x_ticks(frame, 8) + _y_ticks(frame, 3, "σ")
        label = f"residuals of {name}, flux minus model in units of σ"
        return _plot("plot short", frame, paths, extra, label)

    def zoom(self, title: str, left: float, right: float) -> str:
        """Return the pixels of a line group with their 1σ band, or a note that it has none."""
        inside = (self.rest >= left) & (self.rest <= right)
        if (inside & self.measured).sum() < 10:
            return (
                f"<figure><figcaption>{text(title)}</figcaption>"
                '<div class="none">not covered</div></figure>'
            )
        seen = inside & (self.used if (inside & self.used).any() else self.measured)
        low, high = svg.robust_limits(self.flux[seen], self.model[inside], share=0.0)
        frame = svg.Frame(left, right, low, high + 0.15 * (high - low), _ZOOM_COLUMNS)
        paths = [
            ("m", svg.shade(frame, self.rest[inside], ~self.used[inside])),
            ("b", svg.envelope(frame, self.rest, self.flux - self.sigma, self.flux + self.sigma,
                               self.measured)),
            ("f", svg.line(frame, self.rest, self.flux, self.measured)),
            ("o", svg.line(frame, self.rest, self.model, np.isfinite(self.model))),
        ]  # fmt: skip
        extra = _line_marks(ZOOM_LINES, frame, _LABEL_PIXELS[1])
        extra += _x_ticks(frame, 4) + _y_ticks(frame, 3)
        plot = _plot("plot zoom", frame, paths, extra, title)
        return f"<figure><figcaption>{text(title)}</figcaption>{plot}</figure>"


def _plot(kind: str, frame: svg.Frame, paths: list[tuple[str, str]], extra: str, label: str) -> str:
    drawn = "".join(f'<path class="{name}" d="{d}"/>' for name, d in paths if d)
    return (
        f'<div class="{kind}" data-left="{frame.left:.3f}" data-right="{frame.right:.3f}">'
        f'<svg viewBox="0 0 {frame.columns} {svg.HEIGHT}" preserveAspectRatio="none" role="img" '
        f'aria-label="{text(label)}">{drawn}</svg>{extra}</div>'
    )


def _percent(value: float) -> str:
    return f"{100 * value:.2f}".rstrip("0").rstrip(".") + "%"


def _x_ticks(frame: svg.Frame, count: int) -> str:
    return "".join(
        f'<u class="x" style="left:{_percent((at - frame.left) / (frame.right - frame.left))}">'
        f"{at:g}</u>"
        for at in svg.ticks(frame.left, frame.right, count)
    )


def _y_ticks(frame: svg.Frame, count: int, unit: str = "") -> str:
    return "".join(
        f'<u class="y" style="top:{_percent((frame.top - at) / (frame.top - frame.bottom))}">'
        f"{at:g}{unit}</u>".replace(">-", ">−")
        for at in svg.ticks(frame.bottom, frame.top, count)
    )


def _line_marks(lines: dict[str, float], frame: svg.Frame, width: int) -> str:
    """Mark the lines in the panel; names that would touch in a panel `width` wide go lower."""
    inside = [
        (at, name, order)
        for order, (name, at) in enumerate(lines.items())
        if frame.left < at < frame.right
    ]
    taken, parts = [-math.inf] * _LABEL_LEVELS, []
    for at, name, order in sorted(inside):
        share = (at - frame.left) / (frame.right - frame.left)
        free = [level for level in range(_LABEL_LEVELS) if taken[level] <= share * width]
        level = free[0] if free else taken.index(min(taken))
        taken[level] = share * width + 8 + 6.2 * len(name)
        side = "right:3px;left:auto;" if share * width > width - 8 - 6.2 * len(name) else ""
        minor = ' class="minor"' if lines is LINES and order >= MAIN_LINES else ""
        parts.append(
            f'<i{minor} style="left:{_percent(share)}">'
            f'<b style="{side}top:{2 + 12 * level}px">{text(name)}</b></i>'
        )
    return "".join(parts)
