"""Clusters in three dimensions as one self-contained page: turn, zoom, look at each galaxy."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from skyray.analysis import plots
from skyray.pages.page import THEME, text, write_whole

_ATLAS_COLUMNS = 40
_STYLE = """
html, body { height: 100%; } body { display: grid; grid-template-rows: auto 1fr; }
.bar { display: flex; flex-wrap: wrap; gap: .4rem 1rem; align-items: center; padding: .6rem 1rem;
  border-bottom: 1px solid var(--line); }
main { display: grid; grid-template-columns: minmax(0, 1fr) 250px; min-height: 0; }
.space { position: relative; min-height: 320px; }
.space canvas { position: absolute; inset: 0; width: 100%; height: 100%; touch-action: none;
  cursor: grab; }
aside { border-left: 1px solid var(--line); background: var(--card); padding: 1rem; }
#picture { width: 192px; height: 192px; image-rendering: pixelated; border-radius: 6px; }
#legend button { display: flex; gap: .5rem; align-items: center; border: 0; background: none; }
#legend button[aria-pressed=false] { opacity: .35; }
#legend i { width: 12px; height: 12px; border-radius: 50%; }
aside dl { display: grid; grid-template-columns: 1fr auto; gap: .1rem .6rem; }
aside dd { text-align: right; overflow-wrap: anywhere; }
"""
_SCRIPT = """
'use strict';
(() => {
const data = JSON.parse(document.getElementById('data').textContent);
const by = id => document.getElementById(id);
const canvas = by('plot'), pen = canvas.getContext('2d');
const raw = atob(data.place), bytes = Uint8Array.from(raw, c => c.charCodeAt(0));
const place = new Float32Array(bytes.buffer), N = data.rows.length;
const hidden = new Set(), at = new Float32Array(3 * N);
let yaw = .6, pitch = .35, zoom = 1, grip = null, hover = -1;
const atlas = new Image();
if (data.atlas) { atlas.onload = () => show(hover); atlas.src = data.atlas; }
function draw() {
  const dense = window.devicePixelRatio || 1, w = canvas.clientWidth, h = canvas.clientHeight;
  canvas.width = w * dense; canvas.height = h * dense;
  pen.setTransform(dense, 0, 0, dense, 0, 0); pen.clearRect(0, 0, w, h);
  const [a, b, c, d] = [Math.cos(yaw), Math.sin(yaw), Math.cos(pitch), Math.sin(pitch)];
  const scale = .42 * Math.min(w, h) * zoom, order = [];
  for (let i = 0; i < N; i++) {
    const x = place[3 * i], y = place[3 * i + 1], z = place[3 * i + 2];
    const u = a * x + b * z, v = a * z - b * x, t = c * y - d * v, depth = d * y + c * v;
    const near = 1 / (1 - .28 * depth);
    at[3 * i] = w / 2 + scale * u * near; at[3 * i + 1] = h / 2 - scale * t * near;
    at[3 * i + 2] = depth;
    if (!hidden.has(data.rows[i].kind)) order.push(i);
  }
  order.sort((i, j) => at[3 * i + 2] - at[3 * j + 2]);
  for (const i of order) {
    const size = 3.2 * (1 + .45 * at[3 * i + 2]);
    pen.globalAlpha = Math.min(1, .65 + .3 * at[3 * i + 2]);
    pen.fillStyle = data.palette[data.rows[i].kind % data.palette.length];
    pen.beginPath(); pen.arc(at[3 * i], at[3 * i + 1], size, 0, 7); pen.fill();
    if (data.rows[i].wrong) { pen.strokeStyle = '#d55e00'; pen.lineWidth = 1.5; pen.stroke(); }
  }
  pen.globalAlpha = 1;
  if (hover >= 0) { pen.strokeStyle = getComputedStyle(document.body).color; pen.lineWidth = 2;
    pen.beginPath(); pen.arc(at[3 * hover], at[3 * hover + 1], 9, 0, 7); pen.stroke(); }
}
function show(i) {
  by('name').textContent = i < 0 ? 'point at a galaxy' : data.rows[i].id;
  by('values').replaceChildren(...(i < 0 ? [] : data.rows[i].values.flatMap(([name, value]) => {
    const term = document.createElement('dt'), cell = document.createElement('dd');
    term.textContent = name; cell.textContent = value; return [term, cell]; })));
  const picture = by('picture'); picture.hidden = !data.atlas || i < 0;
  if (data.atlas && i >= 0 && atlas.complete) { const s = data.side;
    picture.width = picture.height = s;
    picture.getContext('2d').drawImage(atlas, s * (i % data.columns),
      s * Math.floor(i / data.columns), s, s, 0, 0, s, s); }
}
canvas.addEventListener('pointerdown', e => { grip = [e.clientX, e.clientY];
  canvas.setPointerCapture(e.pointerId); });
canvas.addEventListener('pointerup', () => { grip = null; });
canvas.addEventListener('pointermove', e => {
  if (grip) { yaw += (e.clientX - grip[0]) / 160;
    pitch = Math.max(-1.5, Math.min(1.5, pitch + (e.clientY - grip[1]) / 160));
    grip = [e.clientX, e.clientY]; draw(); return; }
  const box = canvas.getBoundingClientRect(), x = e.clientX - box.left, y = e.clientY - box.top;
  let best = -1, least = 144;
  for (let i = 0; i < N; i++) { if (hidden.has(data.rows[i].kind)) continue;
    const gap = (at[3 * i] - x) ** 2 + (at[3 * i + 1] - y) ** 2 - 4 * at[3 * i + 2];
    if (gap < least) { least = gap; best = i; } }
  if (best !== hover) { hover = best; show(best); draw(); } });
canvas.addEventListener('wheel', e => { e.preventDefault();
  zoom = Math.max(.3, Math.min(8, zoom * Math.exp(-e.deltaY * .0015))); draw(); },
  { passive: false });
canvas.addEventListener('keydown', e => {
  const turn = { ArrowLeft: [-.1, 0], ArrowRight: [.1, 0], ArrowUp: [0, -.1],
    ArrowDown: [0, .1] }[e.key];
  if (turn) { yaw += turn[0]; pitch += turn[1]; e.preventDefault(); draw(); } });
by('legend').replaceChildren(...data.kinds.map((kind, k) => {
  const button = document.createElement('button'), dot = document.createElement('i');
  dot.style.background = data.palette[k % data.palette.length];
  button.append(dot, kind); button.setAttribute('aria-pressed', 'true');
  button.addEventListener('click', () => {
    if (hidden.has(k)) hidden.delete(k); else hidden.add(k);
    button.setAttribute('aria-pressed', String(!hidden.has(k))); draw(); });
  return button; }));
new ResizeObserver(draw).observe(canvas); show(-1);
})();
"""


def write_clusters(
    path: str | Path,
    place_N3: np.ndarray,
    columns: Mapping[str, np.ndarray],
    thumbnails: np.ndarray | None = None,
    title: str = "Clusters",
) -> Path:
    """Write the page, whole or not at all, and return its path.

    Parameters
    ----------
    place_N3 : float [N, 3]
    columns : mapping
        ``object_id`` and ``label`` [N]; others are shown beside the picture. Where ``label_pred``
        is given, mistakes are ringed.
    thumbnails : uint8 [N, T, T, 3], optional
        Row 0 on top.

    Raises
    ------
    ValueError
        If a shape does not fit.
    """
    place = np.asarray(place_N3, np.float32)
    if place.ndim != 2 or place.shape[1] != 3:
        raise ValueError(f"place: expected [N, 3], found {place.shape}")
    for name, values in {**columns, "thumbnails": thumbnails}.items():
        if values is not None and len(values) != len(place):
            raise ValueError(f"{name}: expected {len(place)} rows, found {len(values)}")
    kinds, index = np.unique(np.asarray(columns["label"], str), return_inverse=True)
    centred = place - place.mean(axis=0)
    reach = np.percentile(np.linalg.norm(centred, axis=1), 98) if len(place) else 1.0
    data = {
        "place": base64.b64encode((centred / max(reach, 1e-9)).tobytes()).decode(),
        "kinds": kinds.tolist(),
        "palette": list(plots.CYCLE),
        "rows": [_row(columns, i, int(index[i])) for i in range(len(place))],
        **_atlas(thumbnails),
    }
    # with < written as an escape, no text in the data can end the script element
    content = json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    page = "\n".join([
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{text(title)}</title><style>{THEME}{_STYLE}</style></head><body>",
        f'<div class="bar"><h1>{text(title)}</h1>'
        "<span>t-SNE of the penultimate features; drag to turn, wheel to zoom; "
        "mistakes are ringed</span></div>",
        '<main><div class="space"><canvas id="plot" tabindex="0" role="img" '
        'aria-label="clusters in three dimensions: arrow keys turn them"></canvas></div>',
        '<aside><div id="legend"></div><h2 id="name"></h2>'
        '<canvas id="picture" hidden></canvas><dl id="values"></dl></aside></main>',
        f'<script type="application/json" id="data">{content}</script>',
        f"<script>{_SCRIPT}</script></body></html>",
    ])  # fmt: skip
    return write_whole(path, page)


def _row(columns: Mapping[str, np.ndarray], row: int, kind: int) -> dict:
    shown = [
        (name.replace("_", " "), f"{v:.3f}" if isinstance(v, float | np.floating) else str(v))
        for name, v in ((n, values[row]) for n, values in columns.items() if n != "object_id")
    ]
    predicted = columns.get("label_pred")
    wrong = predicted is not None and str(predicted[row]) != str(columns["label"][row])
    return {"id": str(columns["object_id"][row]), "kind": kind, "wrong": wrong, "values": shown}


def _atlas(thumbnails: np.ndarray | None) -> dict:
    """Return all pictures in one JPEG, as a data address."""
    if thumbnails is None or not len(thumbnails):
        return {"atlas": None}
    side = thumbnails.shape[1]
    rows = -(-len(thumbnails) // _ATLAS_COLUMNS)
    sheet = np.zeros((rows * side, _ATLAS_COLUMNS * side, 3), np.uint8)
    for number, picture in enumerate(thumbnails):
        y, x = divmod(number, _ATLAS_COLUMNS)
        sheet[y * side : (y + 1) * side, x * side : (x + 1) * side] = picture
    stream = io.BytesIO()
    Image.fromarray(sheet).save(stream, "JPEG", quality=85)
    coded = base64.b64encode(stream.getvalue()).decode()
    return {"atlas": f"data:image/jpeg;base64,{coded}", "side": side, "columns": _ATLAS_COLUMNS}
