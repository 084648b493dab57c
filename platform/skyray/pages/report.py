"""One self-contained page for the result of a job: numbers, tables and figures in index.html.

Knows no particular family. No scripts and nothing loaded from elsewhere, so the page can be mailed,
archived or opened from a cluster's file system; it follows the reader's light or dark setting.
"""

from __future__ import annotations

import base64
import html
import math
import mimetypes
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from skyray.runtime import places

Rows = Sequence[Mapping[str, Any]]

_STYLE = """
:root { color-scheme: light dark; --ink: #1b2430; --soft: #5b6876; --line: #d9dfe6;
  --ground: #f6f7f9; --card: #ffffff; --accent: #0072b2; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6eaf0; --soft: #9aa7b5; --line: #323c48;
  --ground: #12171d; --card: #1a2129; --accent: #56b4e9; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .7rem; }
.when { color: var(--soft); margin: .2rem 0 1.4rem; font-size: .9rem; }
.facts { display: grid; grid-template-columns: repeat(auto-fill, minmax(180px, 1fr)); gap: .7rem; }
.fact { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: .6rem .9rem; overflow-wrap: anywhere; }
.fact b { display: block; font-weight: 500; font-size: .82rem; color: var(--soft); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; background: var(--card); font-size: .92rem;
  font-variant-numeric: tabular-nums; border: 1px solid var(--line); }
th, td { padding: .35rem .8rem; border-bottom: 1px solid var(--line); text-align: left; }
td.number, th.number { text-align: right; }
thead th { color: var(--soft); font-weight: 600; }
figure { margin: 0 0 1.4rem; background: #ffffff; border: 1px solid var(--line);
  border-radius: 10px; padding: .8rem; color: #1b2430; }
figure img { display: block; max-width: 100%; height: auto; margin: 0 auto; }
figcaption { color: #5b6876; font-size: .88rem; padding-top: .4rem; text-align: center; }
a { color: var(--accent); }
"""


def write_report(
    folder: str | Path,
    title: str,
    summary: Mapping[str, Any],
    figures: Sequence[Path] = (),
    tables: Mapping[str, Mapping[str, Any] | Rows] | None = None,
    links: Mapping[str, str] | None = None,
) -> Path:
    """Write ``index.html`` into `folder` and return its path.

    Parameters
    ----------
    folder : path
        Made if it is not there.
    title : str
    summary : mapping
        Name → value, shown as tiles at the top.
    figures : sequence of path
        PNG, JPEG or SVG files, embedded; the caption comes from the file's name.
    tables : mapping
        Heading → rows (mappings with the same keys), or one mapping shown as name and value.
    links : mapping
        Text → address (a file beside the page, an MLflow page).

    Raises
    ------
    FileNotFoundError
        If a figure is not there.
    """
    when = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head><body><main>",
        f'<h1>{html.escape(title)}</h1><p class="when">{when}</p>',
        _facts(summary),
        *(_table(heading, rows) for heading, rows in (tables or {}).items()),
        _figures(figures),
        _links(links or {}),
        "</main></body></html>",
    ]
    path = Path(folder) / "index.html"
    places.write_bytes(path, "\n".join(part for part in parts if part).encode())
    return path


def format_value(value: Any) -> str:
    """Return a value as a person reads it: 4 significant digits, thousands apart, – for none."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        size = abs(value)
        return f"{value:.4g}" if size < 1e4 or size >= 1e6 else f"{value:,.0f}"
    if isinstance(value, list | tuple):
        return ", ".join(format_value(item) for item in value)
    return str(value)


def _facts(summary: Mapping[str, Any]) -> str:
    tiles = [
        f'<div class="fact"><b>{html.escape(str(name))}</b>{html.escape(format_value(value))}</div>'
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

    def cell(tag: str, name: str, text: str) -> str:
        kind = ' class="number"' if name in numeric else ""
        return f"<{tag}{kind}>{html.escape(text)}</{tag}>"

    head = "".join(cell("th", name, str(name).replace("_", " ")) for name in columns)
    body = "".join(
        f"<tr>{''.join(cell('td', name, format_value(row.get(name))) for name in columns)}</tr>"
        for row in rows
    )
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f'<h2>{html.escape(heading)}</h2><div class="scroll">{table}</div>'


def _is_numeric(values: Sequence[Any]) -> bool:
    given = [value for value in values if value is not None]
    return bool(given) and all(
        isinstance(value, int | float) and not isinstance(value, bool) for value in given
    )


def _figures(figures: Sequence[Path]) -> str:
    if not figures:
        return ""
    return "<h2>Figures</h2>" + "".join(_figure(Path(path)) for path in figures)


def _figure(path: Path) -> str:
    kind = mimetypes.guess_type(path.name)[0]
    if kind not in ("image/png", "image/jpeg", "image/svg+xml"):
        raise ValueError(f"{path}: figure: expected PNG, JPEG or SVG, found {kind}")
    data = base64.b64encode(path.read_bytes()).decode()
    caption = html.escape(path.stem.replace("_", " "))
    image = f'<img src="data:{kind};base64,{data}" alt="{caption}" loading="lazy">'
    return f"<figure>{image}<figcaption>{caption}</figcaption></figure>"


def _links(links: Mapping[str, str]) -> str:
    items = [
        f'<li><a href="{html.escape(address, quote=True)}">{html.escape(text)}</a></li>'
        for text, address in links.items()
    ]
    return f"<h2>Further</h2><ul>{''.join(items)}</ul>" if items else ""
