// A small part of Markdown as DOM nodes: code blocks, lists, headings, paragraphs, bold, emphasis and
// code. Links and images stay the text that they are, so that no answer makes the browser fetch one.
import {make} from './dom.js';

const INLINE = /`([^`]+)`|\*\*([^*]+)\*\*|\*([^*\s][^*]*)\*/g;

function inline(text) {
  const out = [];
  let at = 0;
  for (const m of text.matchAll(INLINE)) {
    if (m.index > at) out.push(text.slice(at, m.index));
    if (m[1] !== undefined) out.push(make('code', {}, m[1]));
    else if (m[2] !== undefined) out.push(make('strong', {}, m[2]));
    else out.push(make('em', {}, m[3]));
    at = m.index + m[0].length;
  }
  if (at < text.length) out.push(text.slice(at));
  return out;
}

function paragraph(lines) {
  const node = make('p');
  lines.forEach((line, i) => {
    if (i > 0) node.append(make('br'));
    node.append(...inline(line));
  });
  return node;
}

const ITEM = /^\s{0,6}(?:([-*+])|(\d{1,6})[.)])\s+(.*)$/;
const FENCE = /^\s{0,3}```/;
const HEADING = /^(#{1,6})\s+(.*)$/;

export function markdown(text) {
  const out = document.createDocumentFragment();
  const lines = text.split('\n');
  let plain = [];
  const flush = () => {
    if (plain.length > 0) out.append(paragraph(plain));
    plain = [];
  };
  for (let i = 0; i < lines.length;) {
    const line = lines[i];
    const item = ITEM.exec(line);
    const heading = HEADING.exec(line);
    if (FENCE.test(line)) {
      flush();
      const code = [];
      for (++i; i < lines.length && !FENCE.test(lines[i]); ++i) code.push(lines[i]);
      ++i;
      out.append(make('pre', {tabIndex: 0}, make('code', {}, code.join('\n'))));
    } else if (item) {
      flush();
      const list = make(item[1] ? 'ul' : 'ol');
      if (item[2] && item[2] !== '1') list.start = Number(item[2]);
      for (let m; i < lines.length && (m = ITEM.exec(lines[i])) && !m[1] === !item[1]; ++i) {
        list.append(make('li', {}, ...inline(m[3])));
      }
      out.append(list);
    } else if (heading) {
      flush();
      out.append(make(`h${Math.min(heading[1].length + 2, 6)}`, {}, ...inline(heading[2])));
      ++i;
    } else {
      if (line.trim() === '') flush();
      else plain.push(line);
      ++i;
    }
  }
  flush();
  return out;
}
