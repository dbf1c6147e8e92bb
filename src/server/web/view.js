// One message on the page.
import {button, make} from './dom.js';
import {markdown} from './markdown.js';
import {branchOf} from './tree.js';

const NAMES = {user: 'You', assistant: 'Model'};
const FINISH = {length: 'Cut: the limit of tokens was reached.', stopped: 'You stopped this answer.'};

function thoughts(node) {
  const text = make('div', {className: 'plain'}, node.reasoning ?? '');
  const details = make('details', {hidden: !node.reasoning}, make('summary', {}, 'Thoughts'), text);
  return {details, text};
}

function branchControls(conversation, node, actions) {
  const {index, count, siblings} = branchOf(conversation, node);
  if (count < 2) return [];
  // Not `disabled`: a button that loses the focus at the last version would leave the keyboard nowhere.
  const go = (label, text, to, key) => {
    const off = to < 0 || to >= count;
    return button(text, () => { if (!off) actions.show(siblings[to]); },
      {aria: {label, disabled: String(off)}, dataKey: `${node.parent} ${key}`});
  };
  return [go('Earlier version', '‹', index - 1, 'earlier'),
    make('span', {aria: {label: `version ${index + 1} of ${count}`}, role: 'img'}, `${index + 1}/${count}`),
    go('Later version', '›', index + 1, 'later')];
}

function tools(conversation, node, state, actions) {
  const out = [...branchControls(conversation, node, actions)];
  const add = (text, action) => out.push(
    button(text, action, {disabled: state.busy, dataKey: `${node.id} ${text}`}));
  add('Edit', () => actions.edit(node));
  if (node.role === 'assistant') {
    add('Answer again', () => actions.again(node));
    if (state.hasRecord(node)) add('Inspect', () => actions.inspect(node));
  }
  out.push(button('Copy', () => actions.copy(node), {dataKey: `${node.id} Copy`}));
  return make('div', {className: 'tools row'}, ...out);
}

// The item, and update() for an answer that grows.
export function messageItem(conversation, node, state, actions) {
  const {details, text: thought} = thoughts(node);
  const text = make('div', {className: 'text'});
  const end = make('p', {className: 'about'});
  const failed = make('p', {className: 'failed'});
  const item = make('li', {className: node.role}, make('p', {className: 'who'}, NAMES[node.role]),
    details, text, failed, end);
  const update = () => {
    details.hidden = !node.reasoning;
    if (thought.textContent !== (node.reasoning ?? '')) thought.textContent = node.reasoning ?? '';
    if (node.role === 'assistant') {
      text.replaceChildren(markdown(node.content));
    } else {
      text.replaceChildren(make('p', {className: 'plain'}, node.content));
    }
    failed.textContent = node.error ?? '';
    failed.hidden = !node.error;
    end.textContent = [FINISH[node.finish], node.about].filter(Boolean).join(' ');
    end.hidden = end.textContent === '';
  };
  update();
  item.dataset.id = node.id;
  if (state.running !== node.id) item.append(tools(conversation, node, state, actions));
  return {item, update};
}

// Replaces the text of a message by a field. done(text) or done(null).
export function editField(item, node, done) {
  const field = make('textarea', {rows: Math.min(12, node.content.split('\n').length + 2), value: node.content,
    aria: {label: 'Edited message'}});
  const save = node.role === 'user' ? 'Send as a new branch' : 'Keep as a new branch';
  const form = make('form', {onsubmit: (e) => { e.preventDefault(); done(field.value); }}, field,
    make('div', {className: 'row'}, make('button', {type: 'submit', className: 'main'}, save),
      button('Cancel', () => done(null))));
  form.addEventListener('keydown', (e) => { if (e.key === 'Escape') done(null); });
  item.querySelector('.text').replaceWith(form);
  item.querySelector('.tools').remove();
  field.focus();
}
