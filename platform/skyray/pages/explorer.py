"""The latent explorer: a map of all objects in one self-contained page.

Two coordinates an object (UMAP of the latents), coloured by any column; the spectrum under the
cursor, its values, and its nearest neighbours on a click. Nothing is loaded from elsewhere.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from skyray.analysis import plots
from skyray.pages import explorer_page
from skyray.pages.page import THEME, text, write_whole

MAX_POINTS = 20_000
_MAX_KINDS = 40
_TITLES = {
    "neg_log_p": "−log p", "neg_log_p_star": "−log p star", "chi2_reduced": "reduced χ²",
    "chi2_whitened": "whitened χ²",
    "chi2_window": "windowed χ²", "snr": "SNR",
}  # fmt: skip
_RAMP = "cividis"  # read alike with any colour vision


def write_explorer(
    path: str | Path,
    latent_2d: np.ndarray,
    columns: Mapping[str, np.ndarray],
    thumbnails: Sequence[np.ndarray] | np.ndarray | None = None,
    title: str = "Latent explorer",
    neighbours: np.ndarray | None = None,
    distances: np.ndarray | None = None,
) -> Path:
    """Write the explorer as one HTML file, whole or not at all, and return its path.

    Parameters
    ----------
    path : path
        The file; its folder is made if it is not there.
    latent_2d : float [N, 2]
        Objects without finite coordinates are left out. N up to `MAX_POINTS`.
    columns : mapping
        Name → array [N]. ``object_id`` names the objects (else the row does). Numbers are coloured
        on a scale between their 1st and 99th percentile; text and booleans by kind, the 39 most
        frequent ones apart.
    thumbnails : float [N, T], optional
        Small spectra on one wavelength grid, any T ≤ 400; NaN leaves a gap. Scaled one by one.
    neighbours : int [N, k], optional
        Rows of the nearest objects, nearest first; -1: none.
    distances : float [N, k], optional

    Raises
    ------
    ValueError
        If a shape does not fit, there are too many points, or a neighbour is not a row.
    """
    page = explorer_html(latent_2d, columns, thumbnails, title, neighbours, distances)
    return write_whole(path, page)


def explorer_html(
    latent_2d: np.ndarray,
    columns: Mapping[str, np.ndarray],
    thumbnails: Sequence[np.ndarray] | np.ndarray | None,
    title: str,
    neighbours: np.ndarray | None,
    distances: np.ndarray | None,
) -> str:
    """Return the explorer's page; see `write_explorer`."""
    data = _data(latent_2d, columns, thumbnails, neighbours, distances)
    options = "".join(
        f'<option value="{number}">{text(column["title"])}</option>'
        for number, column in enumerate(data["columns"])
    )
    # with < written as an escape, no text in the data can end the script element
    content = json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    return "\n".join([
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{text(title)}</title><style>{THEME}{explorer_page.STYLE}</style></head><body>",
        f'<div class="bar"><h1>{text(title)}</h1>',
        f'<label>colour <select id="color">{options}</select></label>',
        '<label>find <input type="search" id="find" placeholder="id, class"></label>',
        '<button id="reset">whole map</button>',
        '<output id="count" aria-live="polite"></output></div>',
        '<main><div class="sky"><canvas id="plot" tabindex="0" role="img" '
        'aria-label="map of the objects: arrow keys move, + and - zoom"></canvas>'
        "<p>drag to move, wheel or pinch to zoom, click for the nearest</p></div>",
        '<aside><div id="legend"></div><h2 id="id"></h2><canvas id="spark" hidden></canvas>'
        '<dl id="values"></dl><div id="nearest"><h3>nearest in latent space</h3>'
        '<ul id="near"></ul></div></aside></main>',
        f'<script type="application/json" id="data">{content}</script>',
        f"<script>{explorer_page.SCRIPT}</script></body></html>",
    ])  # fmt: skip


def _data(latent_2d, columns, thumbnails, neighbours, distances) -> dict[str, Any]:
    place = np.asarray(latent_2d, np.float64)
    if place.ndim != 2 or place.shape[1] != 2:
        raise ValueError(f"latent_2d: expected shape [N, 2], found {place.shape}")
    rows = len(place)
    kept = np.flatnonzero(np.isfinite(place).all(axis=1))
    if len(kept) > MAX_POINTS:
        raise ValueError(
            f"latent_2d: expected at most {MAX_POINTS:,} objects, found {len(kept):,}; "
            "draw a sample of them"
        )
    given = {**columns, "thumbnails": thumbnails, "neighbours": neighbours, "distances": distances}
    for name, values in given.items():
        if values is not None and len(values) != rows:
            raise ValueError(f"{name}: expected {rows} rows as latent_2d, found {len(values)}")
    ids = np.asarray(columns.get("object_id", np.arange(rows)))[kept]
    data = {
        "ids": [str(one) for one in ids],
        "x": _encode(place[kept, 0], "<f4"), "y": _encode(place[kept, 1], "<f4"),
        "columns": [
            _column(name, np.asarray(values)[kept])
            for name, values in columns.items()
            if name != "object_id"
        ],
        "palette": _palette(), "ramp": _ramp(), "pixels": 0, "k": 0,
    }  # fmt: skip
    if thumbnails is not None and len(kept):
        data |= _thumbnails(np.asarray(thumbnails, np.float64)[kept])
    if neighbours is not None and len(kept):
        data |= _neighbours(np.asarray(neighbours), distances, kept, rows)
    return data


def _encode(values: np.ndarray, dtype: str) -> str:
    return base64.b64encode(np.ascontiguousarray(values).astype(dtype).tobytes()).decode()


def _palette() -> list[str]:
    return [*plots.CYCLE[:6], "#8a94a0", "#8C6D1F", "#5E3C99", "#A6761D"]


def _ramp(steps: int = 17) -> list[list[int]]:
    shares = np.linspace(0.2, 0.95, steps)  # both ends show on light and on dark ground
    colors = matplotlib.colormaps[_RAMP](shares)[:, :3]
    return np.rint(255 * colors).astype(int).tolist()


def _column(name: str, values: np.ndarray) -> dict[str, Any]:
    title = _TITLES.get(name, name.replace("_", " "))
    if values.dtype.kind in "fiu":
        number = values.astype(np.float64)
        finite = number[np.isfinite(number)]
        low, high = np.percentile(finite, (1, 99)) if finite.size else (0.0, 1.0)
        return {"name": name, "title": title, "kinds": None, "low": float(low),
                "high": float(high), "values": _encode(number, "<f4")}  # fmt: skip
    kinds, index, count = np.unique(values.astype(str), return_inverse=True, return_counts=True)
    by_count = np.argsort(-count, kind="stable")
    place = np.empty(len(kinds), np.int64)
    place[by_count] = np.arange(len(kinds))
    names = [str(kinds[i]) for i in by_count[:_MAX_KINDS]]
    if len(kinds) > _MAX_KINDS:
        names[-1] = "other"
    index = np.minimum(place[index.ravel()], _MAX_KINDS - 1)
    return {"name": name, "title": title, "kinds": names, "values": _encode(index, "<u2")}


def _thumbnails(flux_NT: np.ndarray) -> dict[str, Any]:
    """Return spectra in 255 levels between each one's own limits; level 255 is a gap."""
    if flux_NT.ndim != 2 or not 2 <= flux_NT.shape[1] <= 400:
        raise ValueError(f"thumbnails: expected [N, 2 to 400], found {flux_NT.shape}")
    finite = np.isfinite(flux_NT)
    low = np.where(finite, flux_NT, np.inf).min(axis=1, keepdims=True)
    high = np.where(finite, flux_NT, -np.inf).max(axis=1, keepdims=True)
    low, span = np.where(high >= low, low, 0.0), np.where(high > low, high - low, 1.0)
    share = np.where(finite, flux_NT, low) - low
    level = np.where(finite, np.rint(254 * np.clip(share / span, 0, 1)), 255)
    return {"pixels": flux_NT.shape[1], "flux": _encode(level, "u1")}


def _neighbours(rows_NK: np.ndarray, distances, kept: np.ndarray, rows: int) -> dict[str, Any]:
    if rows_NK.ndim != 2 or rows_NK.dtype.kind not in "iu":
        raise ValueError(f"neighbours: expected int [N, k], found {rows_NK.dtype} {rows_NK.shape}")
    if rows_NK.min(initial=0) < -1 or rows_NK.max(initial=-1) >= rows:
        raise ValueError(f"neighbours: expected rows below {rows}, or -1 for none")
    renumber = np.full(rows + 1, -1)  # the last one answers for -1
    renumber[kept] = np.arange(len(kept))
    found = {"k": rows_NK.shape[1], "neighbours": _encode(renumber[rows_NK[kept]], "<i4")}
    if distances is not None:
        if np.shape(distances) != rows_NK.shape:
            raise ValueError(
                f"distances: expected the shape of neighbours {rows_NK.shape}, "
                f"found {np.shape(distances)}"
            )
        found["distances"] = _encode(np.asarray(distances)[kept], "<f4")
    return found
