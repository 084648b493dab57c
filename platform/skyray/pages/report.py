"""The page of a job's result: numbers, tables, figures and links in ``index.html``, no scripts."""

from __future__ import annotations

import mimetypes
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from skyray.pages.page import data_url, document, readable, text, write_whole

Rows = Sequence[Mapping[str, Any]]


def write_report(
    folder: str | Path,
    title: str,
    summary: Mapping[str, Any],
    figures: Sequence[Path] | Mapping[Path, str] = (),
    tables: Mapping[str, Mapping[str, Any] | Rows] | None = None,
    links: Mapping[str, str] | None = None,
) -> Path:
    """Write ``index.html`` into `folder`, whole or not at all, and return its path.

    Parameters
    ----------
    folder : path
        Of this machine; made if it is not there.
    title : str
    summary : mapping
        Name → value, shown as tiles at the top.
    figures : sequence of path, or mapping
        PNG, JPEG or SVG files, embedded; path → caption, or the caption comes from the file's name.
    tables : mapping
        Heading → rows (mappings with the same keys), or one mapping shown as name and value.
    links : mapping
        Text → address (a file beside the page, an MLflow page).

    Raises
    ------
    FileNotFoundError
        If a figure is not there.
    ValueError
        If a figure is no image.
    """
    when = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    parts = [
        f'<main><h1>{text(title)}</h1><p class="when">{when}</p>',
        _facts(summary),
        *(_table(heading, rows) for heading, rows in (tables or {}).items()),
        _figures(figures),
        _links(links or {}),
        "</main>",
    ]
    page = document(title, [part for part in parts if part], "report.css")
    return write_whole(Path(folder) / "index.html", page)


def _facts(summary: Mapping[str, Any]) -> str:
    tiles = [
        f'<div class="fact"><b>{text(name)}</b>{text(readable(value))}</div>'
        for name, value in summary.items()
    ]
    return f'<section class="facts">{"".join(tiles)}</section>' if tiles else ""


def _table(heading: str, rows: Mapping[str, Any] | Rows) -> str:
    if isinstance(rows, Mapping):
        rows = [{"name": name, "value": value} for name, value in rows.items()]
    if not rows:
        return ""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    numeric = {name for name in columns if _is_numeric([row.get(name) for row in rows])}

    def cell(tag: str, name: str, content: str) -> str:
        kind = ' class="number"' if name in numeric else ""
        return f"<{tag}{kind}>{text(content)}</{tag}>"

    head = "".join(cell("th", name, str(name).replace("_", " ")) for name in columns)
    body = "".join(
        f"<tr>{''.join(cell('td', name, readable(row.get(name))) for name in columns)}</tr>"
        for row in rows
    )
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f'<h2>{text(heading)}</h2><div class="scroll">{table}</div>'


def _is_numeric(values: Sequence[Any]) -> bool:
    given = [value for value in values if value is not None]
    return bool(given) and all(
        isinstance(value, int | float | np.number) and not isinstance(value, bool)
        for value in given
    )


def _figures(figures: Sequence[Path] | Mapping[Path, str]) -> str:
    if not figures:
        return ""
    captions = figures if isinstance(figures, Mapping) else {}
    return "<h2>Figures</h2>" + "".join(_figure(Path(p), captions.get(p)) for p in figures)


def _figure(path: Path, caption: str | None = None) -> str:
    kind = mimetypes.guess_type(path.name)[0]
    if kind not in ("image/png", "image/jpeg", "image/svg+xml"):
        raise ValueError(f"{path}: figure: expected PNG, JPEG or SVG, found {kind}")
    caption = text(caption or path.stem.replace("_", " "))
    image = f'<img src="{data_url(path.read_bytes(), kind)}" alt="{caption}" loading="lazy">'
    return f"<figure>{image}<figcaption>{caption}</figcaption></figure>"


def _links(links: Mapping[str, str]) -> str:
    items = [f'<li><a href="{text(to)}">{text(name)}</a></li>' for name, to in links.items()]
    return f"<h2>Further</h2><ul>{''.join(items)}</ul>" if items else ""
