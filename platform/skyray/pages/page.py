"""What self-contained HTML pages share: colours, escaped text, numbers, and writing them whole."""

from __future__ import annotations

import html
import math
from pathlib import Path
from typing import Any

import numpy as np

THEME = """
:root { color-scheme: light dark; --ink: #1b2430; --soft: #5b6876; --line: #d9dfe6;
  --ground: #f6f7f9; --card: #ffffff; --accent: #0072b2; --model: #d55e00; --pixels: #c6ced8;
  --band: #dde4eb; --masked: #e6ebf1; --mark: #e69f00; --near: #0072b2; --good: #009e73; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6eaf0; --soft: #9aa7b5; --line: #323c48;
  --ground: #12171d; --card: #1a2129; --accent: #56b4e9; --model: #ff8f3f; --pixels: #46525f;
  --band: #2b3540; --masked: #222b35; --mark: #e69f00; --near: #56b4e9; --good: #2fc79a; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink);
  font: 15px/1.45 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0; }
a { color: var(--accent); }
button, input, select { font: inherit; color: inherit; background: var(--card);
  border: 1px solid var(--line); border-radius: 6px; padding: .25rem .55rem; }
button { cursor: pointer; }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
.facts { display: flex; flex-wrap: wrap; gap: .3rem 1.4rem; margin: .5rem 0 0; }
.facts div { display: flex; gap: .4rem; }
dt { color: var(--soft); }
dd { margin: 0; font-variant-numeric: tabular-nums; }
"""


def text(value: Any) -> str:
    """Return a value escaped for HTML text and quoted attributes."""
    return html.escape(str(value), quote=True)


def number(value: Any) -> str:
    """Return a value as a person reads it: 4 significant digits, – for none."""
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
    return str(value)


def write_whole(path: str | Path, page: str) -> Path:
    """Write a page beside its place, then move it there; makes the folder; returns the path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    part.write_text(page, encoding="utf-8")
    return part.replace(path)
