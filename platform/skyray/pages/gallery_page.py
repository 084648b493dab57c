"""What the gallery looks like, and what it does in the browser."""

from __future__ import annotations

STYLE = """
.top, main { max-width: 1280px; margin: 0 auto; padding: 0 1rem; }
.top { padding-top: 1.4rem; }
.help { color: var(--soft); font-size: .87rem; margin: .6rem 0; }
kbd { border: 1px solid var(--line); border-radius: 4px; padding: 0 .3rem; background: var(--card);
  font: .85em ui-monospace, monospace; }
.bar { position: sticky; top: 0; z-index: 5; background: var(--ground);
  border-bottom: 1px solid var(--line); }
.bar form { max-width: 1280px; margin: 0 auto; padding: .5rem 1rem; display: flex;
  flex-wrap: wrap; gap: .4rem .8rem; align-items: center; font-size: .9rem; }
.bar label { display: flex; gap: .35rem; align-items: center; color: var(--soft); }
.bar input[type=search] { width: 10rem; } .bar input[type=number] { width: 4.5rem; }
.bar output { margin-left: auto; color: var(--soft); font-variant-numeric: tabular-nums; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  margin: 1rem 0; padding: .8rem 1rem 1rem; scroll-margin-top: 4rem;
  content-visibility: auto; contain-intrinsic-size: auto 620px; }
.card:focus { outline: 2px solid var(--accent); }
.card[hidden] { display: none; }
.card > header { display: flex; flex-wrap: wrap; gap: .2rem 1rem; align-items: baseline; }
.card h2 { font-size: 1.05rem; margin: 0; overflow-wrap: anywhere; }
.card h2 a { color: inherit; text-decoration: none; }
.card h2 b { color: var(--accent); margin-right: .4rem; }
.card header span { color: var(--soft); font-size: .9rem; font-variant-numeric: tabular-nums; }
.card header .chip { color: var(--ink); border: 1px solid var(--line); border-radius: 99px;
  padding: 0 .6rem; }
.card header nav { margin-left: auto; font-size: .88rem; display: flex; gap: .9rem; }
.body { display: grid; grid-template-columns: minmax(0, 1fr) 270px; gap: .4rem 1.2rem; }
.side { font-size: .88rem; padding-top: 1.1rem; }
.side h3, figcaption { font-size: .82rem; font-weight: 600; color: var(--soft); margin: 0; }
.side dl { display: grid; grid-template-columns: 1fr auto; gap: .1rem .6rem; margin: 0 0 .8rem; }
.side dd { text-align: right; font-weight: 600; }
.side ol { list-style: none; margin: .2rem 0 .8rem; padding: 0; }
.side li { margin-bottom: .35rem; overflow-wrap: anywhere; }
.side li span { color: var(--soft); float: right; font-variant-numeric: tabular-nums; }
.spark { display: block; width: 100%; height: 38px; }
.spark path { fill: none; stroke: var(--near); stroke-width: 1; vector-effect: non-scaling-stroke; }
figure { margin: .9rem 0 0; }
.plot { position: relative; margin: 0 0 1.25rem 2.9rem; height: 190px;
  border: 1px solid var(--line); border-top: 0; border-right: 0; }
.plot.short { height: 70px; } .plot.zoom { height: 130px; }
.first { margin-bottom: .25rem; }
.plot svg { position: absolute; inset: 0; width: 100%; height: 100%; }
.plot path { fill: none; vector-effect: non-scaling-stroke; }
.plot .m { fill: var(--masked); } .plot .p { fill: var(--pixels); }
.plot .h { fill: var(--pixels); opacity: .45; } .plot .b { fill: var(--band); }
.plot .f { stroke: var(--ink); stroke-width: 1; stroke-linejoin: round; }
.plot .o { stroke: var(--model); stroke-width: 1.4; stroke-linejoin: round; }
.plot .g { stroke: var(--soft); stroke-width: .7; stroke-dasharray: 3 3; }
.plot i { position: absolute; top: 0; bottom: 0; width: 0; border-left: 1px dotted var(--mark); }
.plot i b { position: absolute; left: 3px; white-space: nowrap; font: 500 11px/1.1 system-ui,
  sans-serif; color: var(--model); }
.plot u { position: absolute; text-decoration: none; color: var(--soft); white-space: nowrap;
  font: 11px/1 system-ui, sans-serif; font-variant-numeric: tabular-nums; }
.plot u.x { top: calc(100% + 5px); transform: translateX(-50%); }
.plot u.y { right: calc(100% + 5px); transform: translateY(-50%); }
.plot .cursor { border-left: 1px solid var(--accent); }
.plot .cursor b { top: auto; bottom: 3px; padding: 1px 4px; color: var(--ink);
  background: var(--card); border: 1px solid var(--line); border-radius: 4px; }
.plot .cursor.flip b { left: auto; right: 3px; }
.zooms { display: grid; grid-template-columns: repeat(3, minmax(0, 1fr)); gap: 0 .6rem; }
.none { color: var(--soft); font-size: .85rem; height: 130px; display: grid; place-items: center;
  border: 1px dashed var(--line); border-radius: 6px; margin-left: .4rem; }
.marks { display: flex; flex-wrap: wrap; gap: .3rem; border: 0; margin: 0; padding: 0; }
.marks legend { font-size: .82rem; font-weight: 600; color: var(--soft); padding: 0; }
.marks button[aria-pressed=true] { color: #fff; background: #0072b2; border-color: #0072b2; }
.marks input { width: 100%; }
.card[data-mark=artefact] { opacity: .65; }
.card[data-mark=interesting] { border-left: 5px solid var(--mark); }
.card[data-mark=known] { border-left: 5px solid var(--good); }
.compact .short, .compact .zooms, .compact .near { display: none; }
.compact .card { contain-intrinsic-size: auto 300px; }
@media (max-width: 800px) { .body { grid-template-columns: minmax(0, 1fr); }
  .zooms { grid-template-columns: minmax(0, 1fr); } .card { padding: .7rem; }
  .bar { position: static; } .card { scroll-margin-top: .5rem; }
  .side .spark { height: 30px; } .plot .minor b { display: none; }
  .card header nav { margin-left: 0; } .plot { margin-left: 2.4rem; } }
@media print { .bar, .help, .marks { display: none; } .card { break-inside: avoid; } }
"""

HELP = (
    "<kbd>j</kbd> next, <kbd>k</kbd> previous, <kbd>i</kbd> interesting, <kbd>a</kbd> artefact, "
    "<kbd>n</kbd> known, <kbd>/</kbd> find. Marks and notes stay in this browser; export them as "
    "CSV. Grey: range of the pixels (zooms: ±1σ); dark line: their mean; orange: the model; "
    "stripes: masked, not used. Below, (flux − model) / σ: grey for pixels, line for bins."
)

# Objects are the articles of the page: without a script everything can still be read.
SCRIPT = """
'use strict';
(() => {
const main = document.querySelector('main'), cards = [...main.querySelectorAll('.card')];
const by = id => document.getElementById(id);
const KEY = 'skyray.outliers.marks';
let marks = {};
try { marks = JSON.parse(localStorage.getItem(KEY)) || {}; } catch (error) { marks = {}; }
const keep = () => {
  try { localStorage.setItem(KEY, JSON.stringify(marks)); }
  catch (error) { by('count').title = 'marks cannot be stored here: export before closing'; }
};
const scores = new Map(cards.map(card => [card, JSON.parse(card.dataset.scores)]));
const seen = () => cards.filter(card => !card.hidden);
let current = null;

function paint(card) {
  const entry = marks[card.dataset.id] || {};
  card.dataset.mark = entry.mark || '';
  card.querySelectorAll('.marks button').forEach(button =>
    button.setAttribute('aria-pressed', String(button.value === entry.mark)));
  const note = card.querySelector('.marks input');
  if (document.activeElement !== note) note.value = entry.note || '';
}
function count() {
  const marked = cards.filter(card => card.dataset.mark).length;
  by('count').textContent = seen().length + ' of ' + cards.length + ' shown, ' + marked + ' marked';
}
function change(card, values) {
  const entry = Object.assign({}, marks[card.dataset.id], values);
  if (entry.mark || entry.note) marks[card.dataset.id] = entry; else delete marks[card.dataset.id];
  keep(); paint(card); count();
}
function toggle(card, mark) {
  const had = (marks[card.dataset.id] || {}).mark;
  change(card, {mark: had === mark ? '' : mark});
}
function filter() {
  const words = by('find').value.toLowerCase().split(/\\s+/).filter(Boolean);
  const label = by('label').value, mark = by('mark').value;
  for (const card of cards) {
    const entry = marks[card.dataset.id] || {};
    const text = (card.dataset.text + ' ' + (entry.note || '')).toLowerCase();
    card.hidden = !(words.every(word => text.includes(word)) &&
      (!label || card.dataset.label === label.slice(1)) &&
      (!mark || (mark === 'none' ? !entry.mark : entry.mark === mark)));
  }
  count();
}
function sort() {
  const name = by('sort').value, sign = by('reverse').checked ? -1 : 1;
  const value = card => name === 'rank' ? -Number(card.dataset.rank) : scores.get(card)[name];
  cards.sort((a, b) => {
    const x = value(a), y = value(b);
    if (x == null || y == null) return (x == null) - (y == null);
    return sign * (y - x) || a.dataset.rank - b.dataset.rank;
  });
  main.append(...cards);
}
function go(card) {
  if (!card) return;
  current = card;
  card.focus({preventScroll: true});
  card.scrollIntoView({block: 'start'});
}
function step(by) {
  const list = seen(), at = list.indexOf(current);
  go(list[at < 0 ? 0 : Math.min(Math.max(at + by, 0), list.length - 1)]);
}
function cell(value) {
  let text = value == null ? '' : String(value);
  if (/^[=+@\\t]/.test(text) || (/^-/.test(text) && isNaN(text))) text = "'" + text;
  return /[",\\n\\r]/.test(text) ? '"' + text.replace(/"/g, '""') + '"' : text;
}
function csv() {
  const names = [...new Set(cards.flatMap(card => Object.keys(scores.get(card))))];
  const fields = ['rank', 'id', 'label', 'ra', 'dec', 'redshift'];
  const rows = [['rank', 'object_id', 'label', 'ra', 'dec', 'redshift', ...names, 'mark', 'note']];
  for (const card of [...cards].sort((a, b) => a.dataset.rank - b.dataset.rank)) {
    const entry = marks[card.dataset.id] || {};
    rows.push([...fields.map(field => card.dataset[field]),
      ...names.map(name => scores.get(card)[name]), entry.mark, entry.note]);
  }
  return rows.map(row => row.map(cell).join(',')).join('\\r\\n') + '\\r\\n';
}
function save() {
  const link = document.createElement('a');
  link.href = URL.createObjectURL(new Blob(['\\ufeff' + csv()], {type: 'text/csv'}));
  link.download = 'outliers_marked.csv';
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}
function follow(event) {
  const plot = event.target.closest && event.target.closest('.plot');
  const old = document.querySelector('.cursor');
  if (old && old.parentNode !== plot) old.remove();
  if (!plot) return;
  const box = plot.getBoundingClientRect(), data = plot.dataset;
  const share = Math.min(Math.max((event.clientX - box.left) / box.width, 0), 1);
  const rest = Number(data.left) + share * (data.right - data.left);
  let cursor = plot.querySelector('.cursor');
  if (!cursor) {
    cursor = document.createElement('i');
    cursor.className = 'cursor';
    cursor.append(document.createElement('b'));
    plot.append(cursor);
  }
  cursor.classList.toggle('flip', share > .6);
  cursor.style.left = 100 * share + '%';
  const z = plot.closest('.card').dataset.redshift;
  cursor.firstChild.textContent = rest.toFixed(1) + ' Å rest' +
    (z === '' ? '' : ', ' + (rest * (1 + Number(z))).toFixed(1) + ' Å observed');
}

for (const id of ['find', 'label', 'mark']) by(id).addEventListener('input', filter);
for (const id of ['sort', 'reverse']) by(id).addEventListener('input', sort);
by('compact').addEventListener('input', () =>
  main.classList.toggle('compact', by('compact').checked));
by('export').addEventListener('click', save);
by('bar').addEventListener('submit', event => {
  event.preventDefault();
  const card = cards.find(one => one.dataset.rank === by('jump').value);
  if (card && card.hidden) {
    by('find').value = by('label').value = by('mark').value = '';
    filter();
  }
  go(card);
});
main.addEventListener('click', event => {
  const card = event.target.closest('.card');
  if (card) current = card;
  const button = event.target.closest('.marks button');
  if (button) toggle(card, button.value);
});
main.addEventListener('input', event => {
  if (event.target.matches('.marks input'))
    change(event.target.closest('.card'), {note: event.target.value.trim()});
});
main.addEventListener('pointermove', follow);
document.addEventListener('keydown', event => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.matches && event.target.matches('input, select, textarea')) {
    if (event.key === 'Escape') event.target.blur();
    return;
  }
  const mark = {i: 'interesting', a: 'artefact', n: 'known'}[event.key];
  if (event.key === 'j') step(1);
  else if (event.key === 'k') step(-1);
  else if (event.key === '/') { event.preventDefault(); by('find').focus(); }
  else if (mark && current && !current.hidden) toggle(current, mark);
});
cards.forEach(paint);
filter();
})();
"""
