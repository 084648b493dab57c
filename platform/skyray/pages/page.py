"""What all pages share: their frame, their look, escaped text, values and data as people read them.

A page is one self-contained HTML file. Style sheets and scripts lie in ``assets/`` and are written
into it; nothing is loaded from elsewhere, so that it can be mailed, archived or opened from a
cluster's file system. It follows the reader's light or dark setting.
"""

from __future__ import annotations

import base64
import html
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

_ASSETS = Path(__file__).with_name("assets")
_LOOK = "look.css"


def document(
    title: str,
    body: Sequence[str],
    style: str,
    script: str | None = None,
    data: Mapping[str, Any] | None = None,
) -> str:
    """Return a whole page.

    Parameters
    ----------
    title : str
    body : sequence of str
        HTML; whoever makes it escapes what it shows with `text`.
    style : str
        Name of a style sheet in ``assets/``, which comes after the look that all pages share.
    script : str, optional
        Name of a script in ``assets/``.
    data : mapping, optional
        JSON values that the script finds in the element ``data``.
    """
    end = []
    if data is not None:
        # with < written as an escape, no text in the data can end the script element
        content = json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
        end.append(f'<script type="application/json" id="data">{content}</script>')
    if script is not None:
        end.append(f"<script>{_asset(script)}</script>")
    return "\n".join([
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{text(title)}</title>",
        f"<style>{_asset(_LOOK)}{_asset(style)}</style></head><body>",
        *body, *end, "</body></html>\n",
    ])  # fmt: skip


def _asset(name: str) -> str:
    return (_ASSETS / name).read_text(encoding="utf-8")


def text(value: Any) -> str:
    """Return a value escaped for HTML text and quoted attributes."""
    return html.escape(str(value), quote=True)


def readable(value: Any) -> str:
    """Return a value as a person reads it: 4 significant digits, thousands apart, – for none."""
    if value is None or (isinstance(value, float | np.floating) and not math.isfinite(value)):
        return "–"
    if isinstance(value, bool | np.bool_):
        return "yes" if value else "no"
    if isinstance(value, int | np.integer):
        return f"{value:,}"
    if isinstance(value, float | np.floating):
        size = abs(value)
        shown = f"{value:.4g}" if size < 1e4 or size >= 1e6 else f"{value:,.0f}"
        return shown.replace("-", "−", 1) if shown.startswith("-") else shown
    if isinstance(value, list | tuple):
        return ", ".join(readable(item) for item in value)
    return str(value)


def encoded(values: np.ndarray, dtype: str) -> str:
    """Return an array's values as little-endian bytes of a dtype (``<f4``) in base64."""
    return base64.b64encode(np.ascontiguousarray(values).astype(dtype).tobytes()).decode()


def data_url(content: bytes, kind: str) -> str:
    """Return bytes as an address that holds them."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def picture_sheet(pictures: np.ndarray, columns: int = 40) -> str:
    """Return small pictures in one JPEG, `columns` a row, as a data URL.

    Parameters
    ----------
    pictures : uint8 [N, H, W] or [N, H, W, 3]
        Grey or colour, row 0 on top.
    """
    rows, height, width = pictures.shape[:3]
    lines = -(-max(rows, 1) // columns)
    sheet = np.zeros((lines * columns, *pictures.shape[1:]), np.uint8)
    sheet[:rows] = pictures
    tiled = sheet.reshape(lines, columns, height, width, -1).swapaxes(1, 2)
    tiled = tiled.reshape(lines * height, columns * width, -1)
    stream = io.BytesIO()
    image = Image.fromarray(tiled if tiled.shape[2] == 3 else tiled[..., 0])
    image.save(stream, "JPEG", quality=85)
    return data_url(stream.getvalue(), "image/jpeg")


def write_whole(path: str | Path, page: str) -> Path:
    """Write a page beside its place, then move it there; makes the folder; returns the path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    part.write_text(page, encoding="utf-8")
    return part.replace(path)
