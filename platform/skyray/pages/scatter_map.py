"""A map of objects in one self-contained page: points in two or three dimensions.

Points are coloured by any column; the object under the cursor is shown with its picture, its
spectrum and its values, on a click with its nearest neighbours. Several maps of the same objects
share a page. Arrays travel as base64, columns as they are given.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from skyray.analysis import plots
from skyray.pages.page import document, encoded, picture_sheet, text, write_whole

MAX_POINTS = 20_000
_MAX_KINDS = 40
_SHEET_COLUMNS = 50
_RAMP = "cividis"  # read alike with any colour vision
_PALETTE = [*plots.CYCLE[:6], "#8a94a0", "#8C6D1F", "#5E3C99", "#A6761D"]


@dataclass(frozen=True, slots=True)
class Points:
    """The objects of a map, and what is shown of them.

    Attributes
    ----------
    places : mapping
        Name of a map → float [N, 2] or [N, 3]; those of three dimensions can be turned. Objects
        without finite coordinates in any map are left out. N up to `MAX_POINTS`.
    columns : mapping
        Name → array [N]. ``object_id`` names the objects (else the row does). Numbers are coloured
        on a scale between their 1st and 99th percentile; text and booleans by kind, of many
        kinds the 39 most frequent ones apart.
    pictures : uint8 [N, H, W] or [N, H, W, 3], optional
        Row 0 on top.
    spectra : float [N, T], optional
        Small spectra on one wavelength grid, any T ≤ 400; NaN leaves a gap. Scaled one by one.
    neighbours : int [N, k], optional
        Rows of the nearest objects, nearest first; -1: none.
    distances : float [N, k], optional
    ringed : bool [N], optional
        Objects that get a ring.

    Raises
    ------
    ValueError
        If a shape does not fit, there are too many points, or a neighbour is not a row.
    """

    places: Mapping[str, np.ndarray]
    columns: Mapping[str, np.ndarray]
    pictures: np.ndarray | None = None
    spectra: np.ndarray | None = None
    neighbours: np.ndarray | None = None
    distances: np.ndarray | None = None
    ringed: np.ndarray | None = None

    def __post_init__(self):
        if not self.places:
            raise ValueError("places: expected one map at least, found none")
        rows = len(next(iter(self.places.values())))
        given = {name: getattr(self, name) for name in self.__slots__[2:]}
        for name, values in {**self.places, **self.columns, **given}.items():
            if values is not None and len(values) != rows:
                raise ValueError(f"{name}: expected {rows} rows, found {len(values)}")
        for name, place in self.places.items():
            if np.ndim(place) != 2 or np.shape(place)[1] not in (2, 3):
                raise ValueError(
                    f"places: {name}: expected [N, 2] or [N, 3], found {np.shape(place)}"
                )
        kept = int(self.finite().sum())
        if kept > MAX_POINTS:
            raise ValueError(
                f"places: expected at most {MAX_POINTS:,} objects, found {kept:,}; draw a sample "
                "of them"
            )
        self._check_shown(rows)

    def _check_shown(self, rows: int) -> None:
        if self.spectra is not None and (
            np.ndim(self.spectra) != 2 or not 2 <= np.shape(self.spectra)[1] <= 400
        ):
            raise ValueError(f"spectra: expected [N, 2 to 400], found {np.shape(self.spectra)}")
        if self.pictures is not None and (
            self.pictures.dtype != np.uint8
            or (self.pictures.ndim != 3 and self.pictures.shape[3:] != (3,))
        ):
            raise ValueError(
                "pictures: expected uint8 [N, H, W] or [N, H, W, 3], found "
                f"{self.pictures.dtype} {self.pictures.shape}"
            )
        near = self.neighbours
        if near is None:
            return
        if near.ndim != 2 or near.dtype.kind not in "iu":
            raise ValueError(f"neighbours: expected int [N, k], found {near.dtype} {near.shape}")
        if near.min(initial=0) < -1 or near.max(initial=-1) >= rows:
            raise ValueError(f"neighbours: expected rows below {rows}, or -1 for none")
        if self.distances is not None and np.shape(self.distances) != near.shape:
            raise ValueError(
                f"distances: expected the shape of neighbours {near.shape}, "
                f"found {np.shape(self.distances)}"
            )

    def finite(self) -> np.ndarray:
        """Return which objects have a place in every map, bool [N]."""
        return np.logical_and.reduce(
            [np.isfinite(np.asarray(p, float)).all(axis=1) for p in self.places.values()]
        )


def write_scatter_map(
    path: str | Path,
    points: Points,
    title: str,
    *,
    color_by: str = "",
    ringed_title: str = "",
    note: str = "",
    titles: Mapping[str, str] | None = None,
) -> Path:
    """Write the map as one HTML file, whole or not at all, and return its path.

    Parameters
    ----------
    path : path
        Of this machine; its folder is made if it is not there.
    points : Points
    color_by : str
        Column that colours the points first; else the first one.
    ringed_title : str
        What a ring means.
    note : str
        How the map was made, beside the title.
    titles : mapping, optional
        Column → how a person calls it; else its name without underscores.
    """
    data = _data(points, titles or {}) | {"ringedTitle": ringed_title}
    columns = data["columns"]
    chosen = next((i for i, one in enumerate(columns) if one["name"] == color_by), 0)
    colors = _options([one["title"] for one in columns], chosen)
    maps = f'<label>map <select id="map">{_options(list(points.places), 0)}</select></label>'
    solid = data["maps"] and all(one["dimensions"] == 3 for one in data["maps"])
    body = [
        f'<div class="bar"><h1>{text(title)}</h1>',
        maps if len(points.places) > 1 else "",
        f'<label>colour <select id="color">{colors}</select></label>',
        '<label>find <input type="search" id="find" placeholder="id, class"></label>',
        '<button id="reset">whole map</button>',
        f"<span>{text(note)}</span>" if note else "",
        '<output id="count" aria-live="polite"></output></div>',
        '<main><div class="sky"><canvas id="plot" tabindex="0" role="img" aria-label="map of the '
        f'objects: arrow keys {"turn" if solid else "move"}, + and - zoom"></canvas>',
        '<p id="hint"></p></div><aside><div id="legend"></div><h2 id="id"></h2>',
        '<canvas id="picture" hidden></canvas><canvas id="spark" hidden></canvas>',
        '<dl id="values"></dl><div id="nearest"><h3>nearest</h3><ul id="near"></ul></div>',
        "</aside></main>",
    ]  # fmt: skip
    page = document(title, [b for b in body if b], "scatter_map.css", "scatter_map.js", data)
    return write_whole(path, page)


def _options(names: list[str], chosen: int) -> str:
    return "".join(
        f'<option value="{i}"{" selected" if i == chosen else ""}>{text(name)}</option>'
        for i, name in enumerate(names)
    )


def _data(points: Points, titles: Mapping[str, str]) -> dict[str, Any]:
    kept = np.flatnonzero(points.finite())
    rows = len(next(iter(points.places.values())))
    ids = np.asarray(points.columns.get("object_id", np.arange(rows)))[kept]
    places = {name: np.asarray(place, np.float64)[kept] for name, place in points.places.items()}
    ringed = np.zeros(rows, bool) if points.ringed is None else np.asarray(points.ringed, bool)
    data = {
        "ids": [str(one) for one in ids],
        "maps": [
            {"name": name, "dimensions": place.shape[1], "place": encoded(place, "<f4")}
            for name, place in places.items()
        ],
        "columns": [
            _column(name, titles.get(name, name.replace("_", " ")), np.asarray(values)[kept])
            for name, values in points.columns.items()
            if name != "object_id"
        ],
        "ringed": np.flatnonzero(ringed[kept]).tolist(),
        "palette": _PALETTE, "ramp": _ramp(), "pixels": 0, "k": 0, "sheet": None,
    }  # fmt: skip
    if points.spectra is not None and len(kept):
        data |= _spectra(np.asarray(points.spectra, np.float64)[kept])
    if points.pictures is not None and len(kept):
        _, height, width = points.pictures.shape[:3]
        data |= {"sheet": picture_sheet(points.pictures[kept], _SHEET_COLUMNS),
                 "sheetColumns": _SHEET_COLUMNS, "width": width, "height": height}  # fmt: skip
    if points.neighbours is not None and len(kept):
        data |= _neighbours(points.neighbours, points.distances, kept, rows)
    return data


def _ramp(steps: int = 17) -> list[list[int]]:
    shares = np.linspace(0.2, 0.95, steps)  # both ends show on light and on dark ground
    colors = matplotlib.colormaps[_RAMP](shares)[:, :3]
    return np.rint(255 * colors).astype(int).tolist()


def _column(name: str, title: str, values: np.ndarray) -> dict[str, Any]:
    if values.dtype.kind in "fiu":
        number = values.astype(np.float64)
        finite = number[np.isfinite(number)]
        low, high = np.percentile(finite, (1, 99)) if finite.size else (0.0, 1.0)
        return {"name": name, "title": title, "kinds": None, "low": float(low),
                "high": float(high), "values": encoded(number, "<f4")}  # fmt: skip
    kinds, index, count = np.unique(values.astype(str), return_inverse=True, return_counts=True)
    few = len(kinds) <= len(_PALETTE)  # by name: a class then has its colour in every map
    ordered = np.arange(len(kinds)) if few else np.argsort(-count, kind="stable")
    place = np.empty(len(kinds), np.int64)
    place[ordered] = np.arange(len(kinds))
    names = [str(kinds[i]) for i in ordered[:_MAX_KINDS]]
    if len(kinds) > _MAX_KINDS:
        names[-1] = "other"
    index = np.minimum(place[index.ravel()], _MAX_KINDS - 1)
    return {"name": name, "title": title, "kinds": names, "values": encoded(index, "<u2")}


def _spectra(flux_NT: np.ndarray) -> dict[str, Any]:
    """Return spectra in 255 levels between each one's own limits; level 255 is a gap."""
    finite = np.isfinite(flux_NT)
    low = np.where(finite, flux_NT, np.inf).min(axis=1, keepdims=True)
    high = np.where(finite, flux_NT, -np.inf).max(axis=1, keepdims=True)
    low, span = np.where(high >= low, low, 0.0), np.where(high > low, high - low, 1.0)
    share = np.where(finite, flux_NT, low) - low
    level = np.where(finite, np.rint(254 * np.clip(share / span, 0, 1)), 255)
    return {"pixels": flux_NT.shape[1], "flux": encoded(level, "u1")}


def _neighbours(near_NK: np.ndarray, distances, kept: np.ndarray, rows: int) -> dict[str, Any]:
    renumber = np.full(rows + 1, -1)  # the last one answers for -1
    renumber[kept] = np.arange(len(kept))
    found = {"k": near_NK.shape[1], "neighbours": encoded(renumber[near_NK[kept]], "<i4")}
    if distances is not None:
        found["distances"] = encoded(np.asarray(distances)[kept], "<f4")
    return found
