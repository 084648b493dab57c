"""The map of alerts as one self-contained page: points by subset, cutouts under the cursor."""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from skyray.analysis import plots
from skyray.families.alerts.embedding import Embedding

MAX_POINTS = 20_000
_SPRITE_COLUMNS = 50

_STYLE = """
:root { color-scheme: light dark; --ink: #1b2430; --soft: #66717d; --ground: #fff;
  --line: #d8dde3; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8ecf0; --soft: #9aa5b1; --ground: #14181d; --line: #333b45; } }
body { margin: 0; font: 15px/1.4 system-ui, sans-serif; color: var(--ink);
  background: var(--ground); }
header { display: flex; flex-wrap: wrap; gap: .5rem 1.2rem; align-items: center;
  padding: .7rem 1rem; border-bottom: 1px solid var(--line); }
h1 { font-size: 1.05rem; margin: 0; }
main { display: grid; grid-template-columns: minmax(0, 1fr) 300px; height: calc(100vh - 58px); }
#plot { width: 100%; height: 100%; cursor: crosshair; display: block; }
aside { border-left: 1px solid var(--line); padding: 1rem; overflow-y: auto; }
#stamps { width: 100%; image-rendering: pixelated; background: #000; display: block; }
dl { display: grid; grid-template-columns: 1fr auto; gap: .1rem .6rem; overflow-wrap: anywhere; }
dt { color: var(--soft); } dd { margin: 0; text-align: right; }
#legend button { display: flex; gap: .5rem; align-items: center; border: 0; background: none;
  color: inherit; font: inherit; padding: .15rem 0; cursor: pointer; }
#legend button[aria-pressed=false] { opacity: .35; }
#legend i { width: 12px; height: 12px; border-radius: 50%; }
@media (max-width: 760px) { main { grid-template-columns: minmax(0, 1fr);
  grid-template-rows: 60vh auto; height: auto; }
  aside { border-left: 0; border-top: 1px solid var(--line); } }
"""

_SCRIPT = """
'use strict';
(() => {
const data = JSON.parse(document.getElementById('data').textContent);
const by = id => document.getElementById(id);
const floats = text => { const raw = atob(text), b = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) b[i] = raw.charCodeAt(i);
  return new Float32Array(b.buffer); };
const maps = data.maps.map(floats), N = data.ids.length, hidden = new Set();
const canvas = by('plot'), paper = canvas.getContext('2d');
const sprite = new Image(); sprite.onload = () => show(chosen); sprite.src = data.sprite;
let map = maps[0], chosen = 0, box = null;
function fit() {
  let a = [Infinity, -Infinity], b = [Infinity, -Infinity];
  for (let i = 0; i < N; i++) { a = [Math.min(a[0], map[2*i]), Math.max(a[1], map[2*i])];
    b = [Math.min(b[0], map[2*i+1]), Math.max(b[1], map[2*i+1])]; }
  box = [a[0], (a[1] - a[0]) || 1, b[0], (b[1] - b[0]) || 1];
}
const at = i => [20 + (map[2*i] - box[0]) / box[1] * (canvas.clientWidth - 40),
  canvas.clientHeight - 20 - (map[2*i+1] - box[2]) / box[3] * (canvas.clientHeight - 40)];
function draw() {
  const scale = devicePixelRatio || 1;
  canvas.width = canvas.clientWidth * scale; canvas.height = canvas.clientHeight * scale;
  paper.setTransform(scale, 0, 0, scale, 0, 0);
  for (let i = 0; i < N; i++) { if (hidden.has(data.kind[i])) continue;
    const [x, y] = at(i); paper.fillStyle = data.colors[data.kind[i]]; paper.globalAlpha = .7;
    paper.beginPath(); paper.arc(x, y, 3, 0, 7); paper.fill(); }
  paper.globalAlpha = 1; paper.strokeStyle = getComputedStyle(document.body).color;
  for (const i of data.agreed) { const [x, y] = at(i);
    paper.beginPath(); paper.arc(x, y, 8, 0, 7); paper.stroke(); }
  if (N) { const [x, y] = at(chosen); paper.lineWidth = 2;
    paper.beginPath(); paper.arc(x, y, 5, 0, 7); paper.stroke(); paper.lineWidth = 1; }
}
function show(i) {
  if (!N) return; chosen = i;
  const stamps = by('stamps'), T = data.side, C = data.planes, p = stamps.getContext('2d');
  stamps.width = C * T; stamps.height = T;
  const row = Math.floor(i / data.columns), column = i % data.columns;
  if (sprite.complete) p.drawImage(sprite, column * C * T, row * T, C * T, T, 0, 0, C * T, T);
  by('id').textContent = data.ids[i]; const list = by('values'); list.replaceChildren();
  for (const [name, values] of Object.entries(data.columnsOf)) {
    const dt = document.createElement('dt'), dd = document.createElement('dd');
    dt.textContent = name; dd.textContent = values[i] ?? '–'; list.append(dt, dd); }
  draw();
}
canvas.addEventListener('pointermove', event => {
  let best = -1, near = 400;
  for (let i = 0; i < N; i++) { if (hidden.has(data.kind[i])) continue;
    const [x, y] = at(i), d = (x - event.offsetX) ** 2 + (y - event.offsetY) ** 2;
    if (d < near) { near = d; best = i; } }
  if (best >= 0 && best !== chosen) show(best);
});
data.kinds.forEach((name, k) => {
  const button = document.createElement('button'), dot = document.createElement('i');
  dot.style.background = data.colors[k]; button.setAttribute('aria-pressed', 'true');
  button.append(dot, name || 'unlabelled');
  button.onclick = () => { hidden.has(k) ? hidden.delete(k) : hidden.add(k);
    button.setAttribute('aria-pressed', String(!hidden.has(k))); draw(); };
  by('legend').append(button);
});
data.models.forEach((name, k) => by('model').append(new Option(name, k)));
by('model').onchange = event => { map = maps[event.target.value]; fit(); draw(); };
addEventListener('resize', draw); fit(); show(data.agreed[0] ?? 0);
})();
"""


def write_map_page(
    path: Path,
    embedding: Embedding,
    object_id_N: Sequence[str],
    subset_N: Sequence[str],
    thumbnail_NCTT: np.ndarray,
    columns: Mapping[str, Sequence[Any]] | None = None,
    title: str = "Alerts as the networks see them",
) -> Path:
    """Write the page and return its path. Nothing is loaded from elsewhere.

    Parameters
    ----------
    thumbnail_NCTT : uint8 [N, C, T, T]
        Stamps to show, as `family.thumbnails` makes them.
    columns : mapping, optional
        Name → values [N] that are shown beside the stamps.

    Raises
    ------
    ValueError
        If rows do not agree, or there are more than `MAX_POINTS`.
    """
    rows = len(object_id_N)
    given = {"subset": subset_N, "thumbnail": thumbnail_NCTT, **(columns or {})}
    wrong = {name: len(values) for name, values in given.items() if len(values) != rows}
    if wrong or embedding.place_MN2.shape[1] != rows:
        raise ValueError(f"map page: expected {rows} rows everywhere, found {wrong}")
    if rows > MAX_POINTS:
        raise ValueError(f"map page: expected at most {MAX_POINTS:,} alerts, found {rows:,}")
    kinds, kind = np.unique(np.asarray(subset_N, dtype=str), return_inverse=True)
    data = {
        "ids": [str(name) for name in object_id_N], "models": list(embedding.names),
        "maps": [_encoded(place) for place in np.nan_to_num(embedding.place_MN2)],
        "kinds": kinds.tolist(), "kind": kind.tolist(),
        "colors": [plots.CYCLE[i % len(plots.CYCLE)] for i in range(len(kinds))],
        "agreed": np.flatnonzero(embedding.agreed_N).tolist(),
        "columnsOf": {name: [_shown(v) for v in values] for name, values in given.items()
                      if name != "thumbnail"},
        "sprite": _sprite(thumbnail_NCTT), "columns": _SPRITE_COLUMNS,
        "side": int(thumbnail_NCTT.shape[-1]), "planes": int(thumbnail_NCTT.shape[1]),
    }  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".part")
    aside.write_text(_page(data, title), encoding="utf-8")
    aside.replace(path)
    return path


def _page(data: Mapping[str, Any], title: str) -> str:
    # with < written as an escape, no text in the data can end the script element
    content = json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    return "\n".join([
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head><body>",
        f"<header><h1>{html.escape(title)}</h1><label>model <select id='model'></select></label>",
        "<span>circled: outliers all models agree on</span></header>",
        '<main><canvas id="plot" role="img" aria-label="map of the alerts"></canvas><aside>',
        '<div id="legend"></div><h2 id="id" style="font-size:1rem"></h2>',
        '<canvas id="stamps"></canvas><dl id="values"></dl></aside></main>',
        f'<script type="application/json" id="data">{content}</script>',
        f"<script>{_SCRIPT}</script></body></html>",
    ])  # fmt: skip


def _encoded(values: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(values, "<f4").tobytes()).decode()


def _shown(value: Any) -> str | None:
    if isinstance(value, float | np.floating):
        return f"{value:.4g}" if np.isfinite(value) else None
    return None if value is None else str(value)


def _sprite(thumbnail_NCTT: np.ndarray) -> str:
    """Return all stamps in one JPEG, 50 alerts a row, as a data URL."""
    rows, planes, side = thumbnail_NCTT.shape[:3]
    height = -(-max(rows, 1) // _SPRITE_COLUMNS)
    canvas = np.zeros((height * _SPRITE_COLUMNS, side, planes * side), np.uint8)
    canvas[:rows] = thumbnail_NCTT[:, :, ::-1].transpose(0, 2, 1, 3).reshape(rows, side, -1)
    tiles = canvas.reshape(height, _SPRITE_COLUMNS, side, planes * side).transpose(0, 2, 1, 3)
    stream = io.BytesIO()
    Image.fromarray(tiles.reshape(height * side, -1)).save(stream, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()
