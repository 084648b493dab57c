"""What the latent explorer looks like, and what it does in the browser."""

from __future__ import annotations

STYLE = """
html, body { height: 100%; }
body { display: grid; grid-template-rows: auto 1fr; }
.bar { display: flex; flex-wrap: wrap; gap: .4rem 1rem; align-items: center; padding: .6rem 1rem;
  border-bottom: 1px solid var(--line); }
.bar label { display: flex; gap: .35rem; align-items: center; color: var(--soft); }
.bar input[type=search] { width: 11rem; }
.bar output { color: var(--soft); margin-left: auto; font-variant-numeric: tabular-nums; }
main { display: grid; grid-template-columns: minmax(0, 1fr) 290px; min-height: 0; }
.sky { position: relative; min-height: 320px; overflow: hidden; }
.sky canvas { position: absolute; inset: 0; width: 100%; height: 100%; touch-action: none;
  cursor: crosshair; }
.sky p { position: absolute; left: 1rem; bottom: .6rem; margin: 0; color: var(--soft);
  font-size: .85rem; pointer-events: none; }
aside { border-left: 1px solid var(--line); background: var(--card); padding: 1rem;
  overflow-y: auto; font-size: .9rem; }
aside h2 { font-size: 1rem; margin: 0 0 .3rem; overflow-wrap: anywhere; }
aside h3 { font-size: .82rem; color: var(--soft); margin: 1rem 0 .3rem; }
aside dl { display: grid; grid-template-columns: 1fr auto; gap: .1rem .6rem; margin: .4rem 0; }
aside dd { text-align: right; overflow-wrap: anywhere; }
aside canvas { width: 100%; height: 70px; display: block; }
#legend { max-height: 34vh; overflow-y: auto; margin-bottom: 1rem; padding-bottom: .6rem;
  border-bottom: 1px solid var(--line); }
#legend button { display: flex; width: 100%; gap: .5rem; align-items: center; border: 0;
  background: none; padding: .1rem 0; text-align: left; }
#legend button[aria-pressed=false] { opacity: .35; }
#legend i { width: 12px; height: 12px; border-radius: 50%; flex: none; }
#legend .scale { height: 12px; border-radius: 4px; }
#legend .ends { display: flex; justify-content: space-between; color: var(--soft); }
#near { list-style: none; margin: 0; padding: 0; }
#near button { display: block; width: 100%; border: 0; background: none; padding: .1rem 0;
  text-align: left; color: var(--accent); overflow-wrap: anywhere; }
#near canvas { height: 34px; }
@media (max-width: 760px) { body { grid-template-rows: auto auto; }
  main { grid-template-columns: minmax(0, 1fr); grid-template-rows: 62vh auto; }
  aside { border-left: 0; border-top: 1px solid var(--line); } }
"""

# Data: columns of the plot as base64 arrays, see explorer.explorer_html. A grid of cells finds the
# point under the cursor without a look at every point.
SCRIPT = """
'use strict';
(() => {
const data = JSON.parse(document.getElementById('data').textContent);
const by = id => document.getElementById(id);
const decode = (text, type) => {
  const raw = atob(text), bytes = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
  return new type(bytes.buffer);
};
const N = data.ids.length, x = decode(data.x, Float32Array), y = decode(data.y, Float32Array);
const columns = data.columns.map(column => ({name: column.name, kinds: column.kinds,
  title: column.title, low: column.low, high: column.high,
  values: decode(column.values, column.kinds ? Uint16Array : Float32Array)}));
const pixels = data.pixels, flux = pixels ? decode(data.flux, Uint8Array) : null;
const near = data.k ? decode(data.neighbours, Int32Array) : null;
const distances = data.distances ? decode(data.distances, Float32Array) : null;
const canvas = by('plot'), paper = canvas.getContext('2d');
let view = null, hover = -1, chosen = -1, color = null, hidden = new Set(), found = null;
let due = false;
let shades = new Array(N), shown = new Uint8Array(N).fill(1), order = [];

function ramp(share) {
  const t = Math.min(Math.max(share, 0), 1) * (data.ramp.length - 1), i = Math.floor(t);
  const a = data.ramp[i], b = data.ramp[Math.min(i + 1, data.ramp.length - 1)], f = t - i;
  return 'rgb(' + a.map((v, k) => Math.round(v + f * (b[k] - v))).join(',') + ')';
}
const number = value => !Number.isFinite(value) ? '–' :
  Math.abs(value) >= 1e5 || (value && Math.abs(value) < 1e-3) ? value.toExponential(2) :
  String(Number(value.toPrecision(4)));
const hue = kind => data.palette[kind % data.palette.length];

const cells = 64, grid = new Map();
const ends = values => values.reduce((e, v) => [Math.min(e[0], v), Math.max(e[1], v)],
  [Infinity, -Infinity]);
const [left, right] = N ? ends(x) : [0, 1], [low, high] = N ? ends(y) : [0, 1];
const cellX = v => Math.min(Math.floor((v - left) / (right - left || 1) * cells), cells - 1);
const cellY = v => Math.min(Math.floor((v - low) / (high - low || 1) * cells), cells - 1);
for (let i = 0; i < N; i++) {
  const key = cellX(x[i]) * cells + cellY(y[i]);
  if (!grid.has(key)) grid.set(key, []);
  grid.get(key).push(i);
}

function fit() {
  const w = canvas.clientWidth, h = canvas.clientHeight;
  const scale = 0.92 * Math.min(w / (right - left || 1), h / (high - low || 1));
  view = {scale, x: w / 2 - scale * (left + right) / 2, y: h / 2 + scale * (low + high) / 2};
}
const px = i => view.x + view.scale * x[i], py = i => view.y - view.scale * y[i];

function paintColors() {
  for (let i = 0; i < N; i++) {
    const value = color.values[i];
    shades[i] = color.kinds ? hue(value) :
      Number.isFinite(value) ? ramp((value - color.low) / (color.high - color.low || 1)) : null;
    shown[i] = color.kinds && hidden.has(value) ? 0 : 1;
  }
  order = [...Array(N).keys()];
  if (color.kinds) {
    const size = new Map();
    for (let i = 0; i < N; i++) size.set(color.values[i], (size.get(color.values[i]) || 0) + 1);
    order.sort((a, b) => size.get(color.values[b]) - size.get(color.values[a]));
  } else order.sort((a, b) => (Number.isFinite(color.values[a]) ? color.values[a] : -Infinity) -
    (Number.isFinite(color.values[b]) ? color.values[b] : -Infinity) || 0);
}
function draw() {
  due = false;
  const dense = window.devicePixelRatio || 1, w = canvas.clientWidth, h = canvas.clientHeight;
  if (canvas.width !== Math.round(w * dense) || canvas.height !== Math.round(h * dense)) {
    canvas.width = Math.round(w * dense); canvas.height = Math.round(h * dense);
    if (!view) fit();
  }
  paper.setTransform(dense, 0, 0, dense, 0, 0);
  paper.clearRect(0, 0, w, h);
  const size = Math.min(7, Math.max(1.8, 90 / Math.sqrt(N + 1)) *
    Math.sqrt(Math.max(1, view.scale / view.base)));
  let last = '';
  for (const i of order) {
    if (!shown[i]) continue;
    const a = px(i), b = py(i);
    if (a < -5 || b < -5 || a > w + 5 || b > h + 5) continue;
    const shade = shades[i] || '#8a94a0';
    if (shade !== last) paper.fillStyle = last = shade;
    paper.globalAlpha = found && !found.has(i) ? .08 : .8;
    paper.fillRect(a - size / 2, b - size / 2, size, size);
  }
  paper.globalAlpha = 1;
  if (chosen >= 0 && near) for (let k = 0; k < data.k; k++) {
    const j = near[chosen * data.k + k];
    if (j >= 0) ring(j, 6, getComputedStyle(document.body).color);
  }
  if (chosen >= 0) ring(chosen, 9, '#d55e00');
  if (hover >= 0) ring(hover, 7, '#0072b2');
}
function ring(i, radius, shade) {
  paper.strokeStyle = shade; paper.lineWidth = 2;
  paper.beginPath(); paper.arc(px(i), py(i), radius, 0, 7); paper.stroke();
}
const later = () => { if (!due) { due = true; requestAnimationFrame(draw); } };

function at(mx, my) {
  const reach = 12 / view.scale, cx = (mx - view.x) / view.scale, cy = (view.y - my) / view.scale;
  let best = -1, least = reach * reach;
  const from = Math.max(cellX(cx - reach), 0), to = Math.max(cellX(cx + reach), 0);
  for (let i = from; i <= to; i++)
    for (let j = Math.max(cellY(cy - reach), 0); j <= Math.max(cellY(cy + reach), 0); j++)
      for (const p of grid.get(i * cells + j) || []) {
        const d = (x[p] - cx) ** 2 + (y[p] - cy) ** 2;
        if (shown[p] && d < least) { least = d; best = p; }
      }
  return best;
}
function zoom(mx, my, factor) {
  const scale = Math.min(Math.max(view.scale * factor, view.base / 3), view.base * 400);
  const real = scale / view.scale;
  view.x = mx - real * (mx - view.x); view.y = my - real * (my - view.y); view.scale = scale;
  later();
}
function spark(target, i) {
  const pen = target.getContext('2d');
  target.width = 2 * pixels; target.height = 140;
  pen.strokeStyle = getComputedStyle(document.body).color; pen.lineWidth = 1.5;
  pen.beginPath();
  let up = false;
  for (let p = 0; p < pixels; p++) {
    const value = flux[i * pixels + p];
    if (value === 255) { up = false; continue; }
    const b = 136 - value / 254 * 132;
    if (up) pen.lineTo(2 * p, b); else pen.moveTo(2 * p, b);
    up = true;
  }
  pen.stroke();
}
function show(i) {
  by('id').textContent = i < 0 ? 'no object' : data.ids[i];
  by('values').replaceChildren(...(i < 0 ? [] : columns.flatMap(column => {
    const value = column.values[i], name = document.createElement('dt');
    const cell = document.createElement('dd');
    name.textContent = column.title;
    cell.textContent = column.kinds ? column.kinds[value] || '–' : number(value);
    return [name, cell];
  })));
  by('spark').hidden = !flux || i < 0;
  if (flux && i >= 0) spark(by('spark'), i);
}
function choose(i) {
  chosen = i;
  show(i);
  const list = [];
  if (near && i >= 0) for (let k = 0; k < data.k; k++) {
    const j = near[i * data.k + k];
    if (j < 0) continue;
    const item = document.createElement('li'), button = document.createElement('button');
    button.textContent = data.ids[j] +
      (distances ? ', ' + number(distances[i * data.k + k]) : '');
    button.addEventListener('click', () => choose(j));
    item.append(button);
    if (flux) {
      const small = document.createElement('canvas');
      item.append(small); spark(small, j);
    }
    list.push(item);
  }
  by('near').replaceChildren(...list);
  by('nearest').hidden = !list.length;
  later();
}
function legend() {
  const parts = [];
  if (color.kinds) color.kinds.forEach((kind, k) => {
    const button = document.createElement('button'), dot = document.createElement('i');
    const total = color.values.reduce((n, v) => n + (v === k), 0);
    dot.style.background = hue(k);
    button.append(dot, (kind || '(none)') + ' (' + total + ')');
    button.setAttribute('aria-pressed', String(!hidden.has(k)));
    button.addEventListener('click', () => {
      if (hidden.has(k)) hidden.delete(k); else hidden.add(k);
      paintColors(); legend(); later();
    });
    parts.push(button);
  });
  else {
    const scale = document.createElement('div'), row = document.createElement('div');
    scale.className = 'scale'; row.className = 'ends';
    scale.style.background = 'linear-gradient(90deg,' +
      data.ramp.map(c => 'rgb(' + c.join(',') + ')').join(',') + ')';
    for (const v of [color.low, (color.low + color.high) / 2, color.high]) {
      const end = document.createElement('span');
      end.textContent = number(v); row.append(end);
    }
    parts.push(scale, row);
  }
  by('legend').replaceChildren(...parts);
}
function pick() {
  color = columns[Number(by('color').value)] || {kinds: [''], values: new Uint16Array(N)};
  hidden = new Set();
  paintColors(); legend(); later();
}
function find() {
  const words = by('find').value.toLowerCase().split(/\\s+/).filter(Boolean);
  found = null;
  if (words.length) {
    found = new Set();
    const text = columns.filter(c => c.kinds);
    for (let i = 0; i < N; i++) {
      const line = (data.ids[i] + ' ' + text.map(c => c.kinds[c.values[i]]).join(' '))
        .toLowerCase();
      if (words.every(word => line.includes(word))) found.add(i);
    }
  }
  by('count').textContent = (found ? found.size + ' of ' : '') + N + ' objects';
  if (found && found.size === 1) choose([...found][0]);
  later();
}

const fingers = new Map();
let moved = 0;
const place = event => {
  const box = canvas.getBoundingClientRect();
  return [event.clientX - box.left, event.clientY - box.top];
};
canvas.addEventListener('pointerdown', event => {
  if (!fingers.size) moved = 0;
  canvas.setPointerCapture(event.pointerId);
  fingers.set(event.pointerId, place(event));
});
canvas.addEventListener('pointermove', event => {
  const now = place(event), was = fingers.get(event.pointerId);
  if (!was) {
    const i = at(...now);
    if (i !== hover) { hover = i; show(i >= 0 ? i : chosen); later(); }
    return;
  }
  const other = [...fingers].find(([id]) => id !== event.pointerId);
  moved += Math.hypot(now[0] - was[0], now[1] - was[1]);
  if (other) {
    const span = p => Math.hypot(p[0] - other[1][0], p[1] - other[1][1]) || 1;
    zoom(...other[1], span(now) / span(was));
  } else { view.x += now[0] - was[0]; view.y += now[1] - was[1]; later(); }
  fingers.set(event.pointerId, now);
});
const lift = event => {
  if (fingers.delete(event.pointerId) && event.type === 'pointerup' && moved < 5)
    choose(at(...place(event)));
};
canvas.addEventListener('pointerup', lift);
canvas.addEventListener('pointercancel', lift);
canvas.addEventListener('wheel', event => {
  event.preventDefault();
  zoom(...place(event), Math.exp(-event.deltaY * (event.deltaMode ? .05 : .0016)));
}, {passive: false});
canvas.addEventListener('keydown', event => {
  const w = canvas.clientWidth / 2, h = canvas.clientHeight / 2, step = 40;
  const move = {ArrowLeft: [step, 0], ArrowRight: [-step, 0], ArrowUp: [0, step],
    ArrowDown: [0, -step]}[event.key];
  if (move) { view.x += move[0]; view.y += move[1]; later(); event.preventDefault(); }
  else if (event.key === '+' || event.key === '=') zoom(w, h, 1.4);
  else if (event.key === '-') zoom(w, h, 1 / 1.4);
  else if (event.key === 'Escape') choose(-1);
});
by('reset').addEventListener('click', () => { start(); choose(-1); });
by('color').addEventListener('input', pick);
by('find').addEventListener('input', find);
function start() { fit(); view.base = view.scale; later(); }
new ResizeObserver(start).observe(canvas);
start(); pick(); find(); show(-1);
by('nearest').hidden = true;
})();
"""
