// The Inspect view: an answer's tokens, and what the attention of each read.
//
// A record is {prompt: [text], tokens: [{text, position, kept, read: [{position, layers, dense}]}]}:
// prompt has the text of each token of the prompt, position counts them first, layers has the share of
// each layer, dense what dense attention would give, kept how much of it each layer's selection holds.
import {byId, make, percent} from './dom.js';

// More context than this is shown around what was read only, so that the page stays quick.
const MOST_SHOWN = 20000, AROUND = 30;

let record = null, chosen = 0, pinned = 0, contextSpans = new Map(), lit = [];

const mean = (layers) => layers.reduce((sum, x) => sum + x, 0) / layers.length;
const quoted = (text) => JSON.stringify(text).slice(1, -1).replaceAll('\\"', '"');

function textAt(position) {
  if (position < record.prompt.length) return record.prompt[position];
  return record.tokens[position - record.prompt.length]?.text ?? '·';
}

const layerCount = () => record.tokens.find((t) => t.read.length > 0)?.read[0].layers.length ?? 0;

// Of numbers by layer, that of the chosen layer or the mean of all.
function chosenOf(layers) {
  const layer = byId('inspect-layer').value;
  return layer === 'all' ? mean(layers) : layers[Number(layer)];
}

function sorted(token) {
  return token.read.map((r) => ({...r, share: chosenOf(r.layers), wouldBe: chosenOf(r.dense)}))
    .sort((a, b) => b.share - a.share);
}

function fillLayers() {
  const select = byId('inspect-layer');
  select.replaceChildren(make('option', {value: 'all'}, 'all, on average'));
  for (let i = 0; i < layerCount(); ++i) select.append(make('option', {value: String(i)}, `layer ${i}`));
}

function fillAnswer() {
  byId('answer-tokens').replaceChildren(...record.tokens.map((t, i) =>
    make('span', {id: `answer-${i}`, role: 'option', aria: {selected: 'false'}}, t.text || '·')));
}

// All of the context, or for a long one the surroundings of what this token read.
function fillContext(token) {
  const total = record.prompt.length + record.tokens.length;
  const whole = total <= MOST_SHOWN;
  if (whole && contextSpans.size > 0) return;
  const wanted = [];
  if (whole) {
    wanted.push([0, total]);
  } else {
    for (const position of token.read.map((r) => r.position).sort((a, b) => a - b)) {
      const from = Math.max(position - AROUND, 0), to = Math.min(position + AROUND, total);
      if (wanted.length > 0 && from <= wanted.at(-1)[1]) wanted.at(-1)[1] = to;
      else wanted.push([from, to]);
    }
  }
  contextSpans = new Map();
  const out = document.createDocumentFragment();
  let last = 0;
  for (const [from, to] of wanted) {
    if (from > last) out.append(make('span', {className: 'gap'}, `\n… ${from - last} tokens …\n`));
    for (let p = from; p < to; ++p) {
      const span = make('span', {}, textAt(p));
      contextSpans.set(p, span);
      out.append(span);
    }
    last = to;
  }
  byId('context-tokens').replaceChildren(out);
}

function light(token, reads) {
  for (const span of lit) {
    span.className = '';
    span.style.removeProperty('--share');
    span.style.removeProperty('--dense');
    span.removeAttribute('title');
  }
  lit = [];
  const most = Math.max(...reads.map((r) => Math.max(r.share, r.wouldBe)), 0);
  // The square root keeps small shares visible beside a large one.
  const strength = (share) => (share > 0 ? 0.15 + 0.75 * Math.sqrt(share / most) : 0).toFixed(3);
  for (const r of reads) {
    const span = contextSpans.get(r.position);
    if (span === undefined || !(r.share > 0)) continue;
    span.className = 'lit';
    span.style.setProperty('--share', strength(r.share));
    span.style.setProperty('--dense', strength(r.wouldBe));
    span.title = `position ${r.position}: ${percent(r.share)}, densely ${percent(r.wouldBe)}`;
    lit.push(span);
  }
  for (const [p, span] of contextSpans) {
    const later = p >= token.position;
    if (later !== (span.dataset.later === 'yes')) span.dataset.later = later ? 'yes' : 'no';
  }
}

// A share, and below it what dense attention would give.
function shareCell(share, dense) {
  const td = make('td', {}, percent(share),
    make('small', {}, make('span', {className: 'unseen'}, ', densely '), percent(dense)));
  td.style.setProperty('--share', Math.sqrt(share).toFixed(3));
  td.style.setProperty('--dense', Math.sqrt(dense).toFixed(3));
  return td;
}

function fillTable(token, reads) {
  const layers = layerCount();
  const head = [['Token', 'token'], ['At', 'position'], ['Mean', 'mean of the layers'],
    ...Array.from({length: layers}, (_, i) => [String(i), `layer ${i}`])];
  const table = byId('reads');
  table.tHead.replaceChildren(
    make('tr', {}, ...head.map(([text, abbr]) => make('th', {scope: 'col', abbr, title: abbr}, text))));
  table.tFoot.replaceChildren(make('tr', {},
    make('th', {scope: 'row', colSpan: 2, title: 'the part of dense attention that the selection holds'}, 'Kept'),
    ...[mean(token.kept), ...token.kept].map((kept) => make('td', {}, percent(kept)))));
  table.tBodies[0].replaceChildren(...reads.map((r) => make('tr', {},
    make('td', {}, quoted(textAt(r.position))), make('td', {}, String(r.position)),
    shareCell(mean(r.layers), mean(r.dense)), ...r.layers.map((share, i) => shareCell(share, r.dense[i])))));
}

function fillKept(token) {
  const kept = chosenOf(token.kept);
  byId('kept').value = kept;
  byId('kept-text').textContent = `The selection holds ${percent(kept)} of dense attention`;
}

function scrollTo(span) {
  const box = byId('context-tokens');
  const top = span.offsetTop - box.offsetTop - box.clientHeight / 2;
  const calm = matchMedia('(prefers-reduced-motion: reduce)').matches;
  box.scrollTo({top, behavior: calm ? 'auto' : 'smooth'});
}

function choose(index) {
  byId(`answer-${chosen}`)?.setAttribute('aria-selected', 'false');
  chosen = index;
  const option = byId(`answer-${index}`);
  option.setAttribute('aria-selected', 'true');
  byId('answer-tokens').setAttribute('aria-activedescendant', option.id);
  const token = record.tokens[index];
  const reads = sorted(token);
  fillContext(token);
  light(token, reads);
  fillTable(token, reads);
  fillKept(token);
  if (lit.length > 0) scrollTo(lit[0]);
  byId('inspect-state').textContent = `“${quoted(token.text)}” read most: ` +
    reads.slice(0, 3).map((r) => `“${quoted(textAt(r.position))}” ${percent(r.share)}` +
      ` (densely ${percent(r.wouldBe)})`).join(', ');
}

function onKey(event) {
  const last = record.tokens.length - 1;
  const to = {ArrowRight: chosen + 1, ArrowDown: chosen + 1, ArrowLeft: chosen - 1, ArrowUp: chosen - 1,
    Home: 0, End: last, PageDown: chosen + 20, PageUp: chosen - 20}[event.key];
  if (to === undefined) return;
  event.preventDefault();
  pinned = Math.min(Math.max(to, 0), last);
  choose(pinned);
  byId(`answer-${pinned}`).scrollIntoView({block: 'nearest'});
}

const optionOf = (event) => {
  const span = event.target.closest?.('[role=option]');
  return span ? Number(span.id.slice('answer-'.length)) : null;
};

export function bindInspect(close) {
  const answer = byId('answer-tokens');
  answer.addEventListener('mouseover', (e) => {
    const i = optionOf(e);
    if (i !== null && i !== chosen) choose(i);
  });
  answer.addEventListener('mouseleave', () => record && choose(pinned));
  answer.addEventListener('click', (e) => {
    const i = optionOf(e);
    if (i !== null) choose(pinned = i);
  });
  answer.addEventListener('keydown', onKey);
  byId('inspect-layer').addEventListener('change', () => choose(chosen));
  byId('inspect-close').addEventListener('click', close);
  byId('inspect').addEventListener('keydown', (e) => { if (e.key === 'Escape') close(); });
}

export function showInspect(of) {
  record = of;
  chosen = pinned = 0;
  contextSpans = new Map();
  lit = [];
  fillLayers();
  fillAnswer();
  byId('inspect').hidden = false;
  choose(0);
  byId('inspect-title').focus();
}
