// The scatter map. Data: see skyray/pages/scatter_map.py. Every drawing projects all points to the
// canvas (screenX, screenY, depth), in two or three dimensions alike; what lies under the cursor is
// looked up there.
'use strict';
(() => {
const data = JSON.parse(document.getElementById('data').textContent);
const by = id => document.getElementById(id);
const decode = (text, type) => {
  const raw = atob(text), bytes = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
  return new type(bytes.buffer);
};
const make = (name, parts = [], changes = {}) => {
  const element = Object.assign(document.createElement(name), changes);
  element.append(...parts);
  return element;
};
const N = data.ids.length;
const maps = data.maps.map(map => bounded(decode(map.place, Float32Array), map.dimensions));
const columns = data.columns.map(column =>
  ({...column, values: decode(column.values, column.kinds ? Uint16Array : Float32Array)}));
const pixels = data.pixels, flux = pixels ? decode(data.flux, Uint8Array) : null;
const near = data.k ? decode(data.neighbours, Int32Array) : null;
const distances = data.distances ? decode(data.distances, Float32Array) : null;
const ringed = new Set(data.ringed);
const sheet = data.sheet ? new Image() : null;
const canvas = by('plot'), paper = canvas.getContext('2d');
const screenX = new Float32Array(N), screenY = new Float32Array(N), depth = new Float32Array(N);
const shades = new Array(N), shown = new Uint8Array(N).fill(1);
const view = {scale: 1, base: 1, x: 0, y: 0, yaw: .6, pitch: .35};
let map = maps[0], color = null, hidden = new Set(), found = null, onlyRinged = false;
let order = [], hover = -1, chosen = -1, due = false;

// middle and reach of a map: its box in a plane, the sphere of 98 % of the points in space
function bounded(place, dimensions) {
  const low = Array(dimensions).fill(Infinity), high = Array(dimensions).fill(-Infinity);
  for (let i = 0; i < place.length; i++) {
    const axis = i % dimensions;
    low[axis] = Math.min(low[axis], place[i]); high[axis] = Math.max(high[axis], place[i]);
  }
  const middle = low.map((v, k) => place.length ? (v + high[k]) / 2 : 0);
  const size = low.map((v, k) => place.length ? (high[k] - v) || 1 : 1);
  let reach = 1;
  if (dimensions === 3 && place.length) {
    const radii = Array.from({length: place.length / 3}, (_, i) => Math.hypot(
      ...middle.map((m, k) => place[3 * i + k] - m))).sort((a, b) => a - b);
    reach = radii[Math.floor(.98 * (radii.length - 1))] || 1;
  }
  return {place, dimensions, middle, size, reach};
}

// what a person reads
const number = value => !Number.isFinite(value) ? '–' :
  Number.isInteger(value) && Math.abs(value) < 1e7 ? String(value) :
  Math.abs(value) >= 1e5 || (value && Math.abs(value) < 1e-3) ? value.toExponential(2) :
  String(Number(value.toPrecision(4)));
const hue = kind => data.palette[kind % data.palette.length];
const theme = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
function ramp(share) {
  const t = Math.min(Math.max(share, 0), 1) * (data.ramp.length - 1), i = Math.floor(t);
  const a = data.ramp[i], b = data.ramp[Math.min(i + 1, data.ramp.length - 1)], f = t - i;
  return 'rgb(' + a.map((v, k) => Math.round(v + f * (b[k] - v))).join(',') + ')';
}

// projection
function fit() {
  const w = canvas.clientWidth, h = canvas.clientHeight;
  view.base = map.dimensions === 3 ? .42 * Math.min(w, h) / map.reach :
    .9 * Math.min(w / map.size[0], h / map.size[1]);
  view.scale = view.base; view.x = w / 2; view.y = h / 2;
}
function project() {
  const {place, middle, dimensions} = map;
  if (dimensions === 2) {
    for (let i = 0; i < N; i++) {
      screenX[i] = view.x + view.scale * (place[2 * i] - middle[0]);
      screenY[i] = view.y - view.scale * (place[2 * i + 1] - middle[1]);
    }
    return;
  }
  const [a, b, c, d] = [Math.cos(view.yaw), Math.sin(view.yaw), Math.cos(view.pitch),
    Math.sin(view.pitch)];
  for (let i = 0; i < N; i++) {
    const x = place[3 * i] - middle[0], y = place[3 * i + 1] - middle[1];
    const z = place[3 * i + 2] - middle[2];
    const u = a * x + b * z, v = a * z - b * x, t = c * y - d * v;
    depth[i] = Math.max(-2, Math.min(2, (d * y + c * v) / map.reach));
    const closer = view.scale / (1 - .28 * depth[i]);
    screenX[i] = view.x + closer * u; screenY[i] = view.y - closer * t;
  }
}

// drawing
function paint() {
  for (let i = 0; i < N; i++) {
    const value = color.values[i];
    shades[i] = color.kinds ? hue(value) :
      Number.isFinite(value) ? ramp((value - color.low) / (color.high - color.low || 1)) : null;
    shown[i] = color.kinds && hidden.has(value) ? 0 : 1;
  }
  order = [...Array(N).keys()];
  if (color.kinds) {  // rare kinds on top
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
  }
  paper.setTransform(dense, 0, 0, dense, 0, 0);
  paper.clearRect(0, 0, w, h);
  project();
  const solid = map.dimensions === 3;
  const size = Math.min(12, Math.max(2.4, 170 / Math.sqrt(N + 1)) *
    Math.sqrt(Math.max(1, view.scale / view.base)));
  const sorted = solid ? order.slice().sort((i, j) => depth[i] - depth[j]) : order;
  for (const i of sorted) {
    const a = screenX[i], b = screenY[i];
    if (!shown[i] || a < -9 || b < -9 || a > w + 9 || b > h + 9) continue;
    const faint = (found && !found.has(i)) || (onlyRinged && !ringed.has(i));
    paper.fillStyle = shades[i] || '#8a94a0';
    paper.globalAlpha = faint ? .12 : solid ? Math.min(1, .65 + .3 * depth[i]) : .75;
    const one = solid ? size * (1 + .4 * depth[i]) : size;
    if (one < 3) { paper.fillRect(a - one / 2, b - one / 2, one, one); continue; }
    paper.beginPath(); paper.arc(a, b, one / 2, 0, 7); paper.fill();
  }
  paper.globalAlpha = 1;
  const ink = theme('--ink');
  for (const i of ringed) if (shown[i]) ring(i, size / 2 + 3, ink, 1.3);
  if (chosen >= 0 && near) for (let k = 0; k < data.k; k++) {
    const j = near[chosen * data.k + k];
    if (j >= 0) ring(j, 6, theme('--soft'), 2);
  }
  if (chosen >= 0) ring(chosen, 9, theme('--model'), 2);
  if (hover >= 0) ring(hover, 7, theme('--accent'), 2);
}
function ring(i, radius, shade, width) {
  paper.strokeStyle = shade; paper.lineWidth = width;
  paper.beginPath(); paper.arc(screenX[i], screenY[i], radius, 0, 7); paper.stroke();
}
const later = () => { if (!due) { due = true; requestAnimationFrame(draw); } };

// the object one looks at
function spark(target, i) {
  const pen = target.getContext('2d'), small = target.className === 'spark';
  const height = target.height = small ? 68 : 160, step = 600 / pixels;
  target.width = 600;
  pen.strokeStyle = theme('--ink'); pen.lineWidth = 2; pen.lineJoin = 'round';
  pen.beginPath();
  let up = false;
  for (let p = 0; p < pixels; p++) {
    const value = flux[i * pixels + p];
    if (value === 255) { up = false; continue; }
    const a = step * (p + .5), b = height - 4 - value / 254 * (height - 8);
    if (up) pen.lineTo(a, b); else pen.moveTo(a, b);
    up = true;
  }
  pen.stroke();
}
function picture(target, i) {
  const {width, height, sheetColumns} = data;
  target.width = width; target.height = height;
  if (sheet.complete) target.getContext('2d').drawImage(sheet, (i % sheetColumns) * width,
    Math.floor(i / sheetColumns) * height, width, height, 0, 0, width, height);
}
function show(i) {
  by('id').textContent = i < 0 ? 'no object' : data.ids[i];
  by('values').replaceChildren(...(i < 0 ? [] : columns.flatMap(column => {
    const value = column.values[i];
    return [make('dt', [column.title]),
      make('dd', [column.kinds ? column.kinds[value] || '–' : number(value)])];
  })));
  by('spark').hidden = !flux || i < 0;
  by('picture').hidden = !sheet || i < 0;
  if (flux && i >= 0) spark(by('spark'), i);
  if (sheet && i >= 0) picture(by('picture'), i);
}
function choose(i) {
  chosen = i;
  show(i);
  const list = [];
  if (near && i >= 0) for (let k = 0; k < data.k; k++) {
    const j = near[i * data.k + k];
    if (j < 0) continue;
    const button = make('button');
    if (sheet) { button.append(make('canvas', [], {className: 'picture'}));
      picture(button.firstChild, j); }
    button.append(data.ids[j]);
    if (distances) button.append(make('span', [number(distances[i * data.k + k])]));
    button.addEventListener('click', () => choose(j));
    const item = make('li', [button]);
    if (flux) { item.append(make('canvas', [], {className: 'spark'})); spark(item.lastChild, j); }
    list.push(item);
  }
  by('near').replaceChildren(...list);
  by('nearest').hidden = !list.length;
  later();
}

// legend, colours, search
function toggle(name, count, dot, pressed, act, kind = '') {
  const button = make('button', [dot, name, make('span', [String(count)])], {className: kind});
  button.setAttribute('aria-pressed', String(pressed));
  button.addEventListener('click', () => { act(); paint(); legend(); later(); });
  return button;
}
function legend() {
  const parts = [];
  if (color.kinds) color.kinds.forEach((kind, k) => {
    const dot = make('i'), total = color.values.reduce((n, v) => n + (v === k), 0);
    dot.style.background = hue(k);
    parts.push(toggle(kind || '(none)', total, dot, !hidden.has(k),
      () => hidden.has(k) ? hidden.delete(k) : hidden.add(k)));
  });
  else {
    const scale = make('div', [], {className: 'scale'});
    scale.style.background = 'linear-gradient(90deg,' +
      data.ramp.map(c => 'rgb(' + c.join(',') + ')').join(',') + ')';
    parts.push(scale, make('div', [color.low, (color.low + color.high) / 2, color.high].map(
      v => make('span', [number(v)])), {className: 'ends'}));
  }
  if (ringed.size) parts.push(toggle(data.ringedTitle || 'ringed', ringed.size, make('i'),
    onlyRinged, () => { onlyRinged = !onlyRinged; }, 'ring'));
  by('legend').replaceChildren(...parts);
}
function pick() {
  color = columns[Number(by('color').value)] || {kinds: [''], values: new Uint16Array(N)};
  hidden = new Set();
  paint(); legend(); later();
}
function find() {
  const words = by('find').value.toLowerCase().split(/\s+/).filter(Boolean);
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

// pointer, wheel and keys
function at(mx, my) {
  let best = -1, least = 144;
  for (let i = 0; i < N; i++) {
    const gap = (screenX[i] - mx) ** 2 + (screenY[i] - my) ** 2 - 4 * depth[i];
    if (shown[i] && gap < least) { least = gap; best = i; }
  }
  return best;
}
function zoom(mx, my, factor) {
  const scale = Math.min(Math.max(view.scale * factor, view.base / 3), view.base * 400);
  const real = scale / view.scale;
  view.x = mx - real * (mx - view.x); view.y = my - real * (my - view.y); view.scale = scale;
  later();
}
function drag(dx, dy, shift) {
  if (map.dimensions === 3 && !shift) {
    view.yaw += dx / 160;
    view.pitch = Math.max(-1.5, Math.min(1.5, view.pitch + dy / 160));
  } else { view.x += dx; view.y += dy; }
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
  } else drag(now[0] - was[0], now[1] - was[1], event.shiftKey);
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
  const w = canvas.clientWidth / 2, h = canvas.clientHeight / 2;
  const step = map.dimensions === 3 ? 16 : 40;
  const move = {ArrowLeft: [step, 0], ArrowRight: [-step, 0], ArrowUp: [0, step],
    ArrowDown: [0, -step]}[event.key];
  if (move) { drag(...move, event.shiftKey); event.preventDefault(); }
  else if (event.key === '+' || event.key === '=') zoom(w, h, 1.4);
  else if (event.key === '-') zoom(w, h, 1 / 1.4);
  else if (event.key === 'Escape') choose(-1);
});
by('reset').addEventListener('click', () => { start(); choose(-1); });
by('color').addEventListener('input', pick);
by('find').addEventListener('input', find);
if (by('map')) by('map').addEventListener('input', () => {
  map = maps[Number(by('map').value)]; start(); });
function start() {
  fit(); depth.fill(0);
  by('hint').textContent = (map.dimensions === 3 ? 'drag to turn, shift and drag to move' :
    'drag to move') + ', wheel or pinch to zoom' + (near ? ', click for the nearest' : '');
  later();
}
if (sheet) { sheet.onload = () => choose(chosen); sheet.src = data.sheet; }
matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => choose(chosen));
new ResizeObserver(start).observe(canvas);
start(); pick(); find();
choose(data.ringed.length ? data.ringed[0] : N ? 0 : -1);
})();
