// Objects are the articles of the page: without a script everything can still be read.
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
  const words = by('find').value.toLowerCase().split(/\s+/).filter(Boolean);
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
  if (/^[=+@\t]/.test(text) || (/^-/.test(text) && isNaN(text))) text = "'" + text;
  return /[",\n\r]/.test(text) ? '"' + text.replace(/"/g, '""') + '"' : text;
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
  return rows.map(row => row.map(cell).join(',')).join('\r\n') + '\r\n';
}
function save() {
  const link = document.createElement('a');
  link.href = URL.createObjectURL(new Blob(['\ufeff' + csv()], {type: 'text/csv'}));
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
