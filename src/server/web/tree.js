// Conversations as trees: every message is a node, an edit or another answer is a sibling, and each
// node knows which of its children is shown. No DOM here.

export const ROOT = 'root';
const FORMAT = 'tamis-conversations';

export const newId = () => crypto.getRandomValues(new Uint32Array(3)).join('-');

export function newConversation() {
  return {
    id: newId(), title: 'New conversation', created: new Date().toISOString(),
    nodes: {[ROOT]: {id: ROOT, parent: null, role: 'root', content: '', children: [], active: null}},
  };
}

// {role, content, reasoning, about, finish, error}: the new node, which is shown.
export function addNode(conversation, parent, fields) {
  const node = {id: newId(), parent, content: '', children: [], active: null, ...fields};
  conversation.nodes[node.id] = node;
  conversation.nodes[parent].children.push(node.id);
  conversation.nodes[parent].active = node.id;
  return node;
}

export function removeLeaf(conversation, id) {
  const node = conversation.nodes[id];
  const parent = conversation.nodes[node.parent];
  parent.children = parent.children.filter((child) => child !== id);
  if (parent.active === id) parent.active = parent.children.at(-1) ?? null;
  delete conversation.nodes[id];
}

// The messages that are shown, first to last.
export function shownPath(conversation) {
  const out = [];
  for (let id = conversation.nodes[ROOT].active; id !== null;) {
    out.push(conversation.nodes[id]);
    id = conversation.nodes[id].active;
  }
  return out;
}

// From the first message to this one.
export function pathTo(conversation, id) {
  const out = [];
  for (; id !== ROOT; id = conversation.nodes[id].parent) out.unshift(conversation.nodes[id]);
  return out;
}

export function branchOf(conversation, node) {
  const siblings = conversation.nodes[node.parent].children;
  return {index: siblings.indexOf(node.id), count: siblings.length, siblings};
}

export function exported(conversations) {
  return JSON.stringify({format: FORMAT, version: 1, conversations}, null, 1);
}

const text = (v, fallback = '') => (typeof v === 'string' ? v : fallback);

function readNode(raw, id) {
  if (raw === null || typeof raw !== 'object' || !Array.isArray(raw.children)) {
    throw new Error(`message ${id} is no message`);
  }
  const role = id === ROOT ? 'root' : raw.role;
  if (id !== ROOT && role !== 'user' && role !== 'assistant') {
    throw new Error(`message ${id} has the role ${String(raw.role).slice(0, 40)}`);
  }
  const node = {id, parent: null, role, content: text(raw.content), children: raw.children.map(String),
    active: raw.active === null || raw.active === undefined ? null : String(raw.active)};
  for (const key of ['reasoning', 'about', 'finish', 'error']) {
    if (typeof raw[key] === 'string' && raw[key] !== '') node[key] = raw[key];
  }
  return node;
}

// Copies what is known and checks that it is a tree: a file may come from anywhere.
function readConversation(raw) {
  if (raw === null || typeof raw !== 'object' || raw.nodes === null || typeof raw.nodes !== 'object') {
    throw new Error('a conversation has no messages');
  }
  const nodes = Object.create(null);
  const visit = [[ROOT, null]];
  while (visit.length > 0) {
    const [id, parent] = visit.pop();
    if (!Object.hasOwn(raw.nodes, id)) throw new Error(`message ${id} is missing`);
    if (nodes[id] !== undefined) throw new Error(`message ${id} comes twice`);
    const node = readNode(raw.nodes[id], id);
    node.parent = parent;
    if (!node.children.includes(node.active)) node.active = node.children.at(-1) ?? null;
    nodes[id] = node;
    for (const child of node.children) visit.push([child, id]);
  }
  return {id: newId(), title: text(raw.title, 'Imported').slice(0, 200),
    created: text(raw.created, new Date().toISOString()), nodes};
}

// The conversations of an exported file, under new names. Throws an Error that says what is wrong.
export function imported(json) {
  let file;
  try {
    file = JSON.parse(json);
  } catch {
    throw new Error('it is not JSON');
  }
  if (file?.format !== FORMAT || file.version !== 1 || !Array.isArray(file.conversations)) {
    throw new Error('it was not exported by this page');
  }
  return file.conversations.map(readConversation);
}
