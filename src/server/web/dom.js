// Small helpers for building the page. Text only ever becomes text nodes.

export const byId = (id) => document.getElementById(id);

// make('p', {className: 'x', onclick: f, aria: {label: 'y'}}, 'text', node, ...)
export function make(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === 'aria') {
      for (const [key, v] of Object.entries(value)) node.setAttribute(`aria-${key}`, v);
    } else if (name === 'role') {
      node.setAttribute('role', value);
    } else if (name === 'dataKey') {
      node.dataset.key = value;  // finds the focus again when the page is drawn anew
    } else {
      node[name] = value;
    }
  }
  node.append(...children);
  return node;
}

export const button = (text, onclick, properties = {}) =>
  make('button', {type: 'button', onclick, ...properties}, text);

export const percent = (x) => (x >= 0.0995 ? `${Math.round(x * 100)}\u00a0%` : `${(x * 100).toFixed(1)}\u00a0%`);
