// The page: conversations, answers as they stream, and the views.
import {ApiFailure, getJson, health, postJson, stream} from './api.js';
import {button, byId, make} from './dom.js';
import {bindInspect, showInspect} from './inspect.js';
import {apiKey, bindSettings, loadSettings, requestFields, saveSettings, settings} from './settings.js';
import {ROOT, addNode, exported, imported, newConversation, pathTo, removeLeaf, shownPath} from './tree.js';
import {editField, messageItem} from './view.js';

const STORED = 'tamis.conversations';
const records = new Map();  // what each token read, by message; not stored: it is large
let conversations = [], current = null, running = null, live = null;

// --- what is said outside of messages ---

function complain(text, ...actions) {
  byId('alert').replaceChildren(...(text ? [make('span', {}, text), ...actions,
    button('Close', () => complain(''))] : []));
}

// Whole sentences, so that a screen reader is not interrupted by every token.
let unspoken = '';
function speak(text, all = false) {
  unspoken += text;
  const end = all ? unspoken.length : unspoken.search(/[.!?:]\s[^]*$|\n[^]*$/) + 1;
  if (end <= 0) return;
  const box = byId('spoken');
  box.append(make('p', {}, unspoken.slice(0, end)));
  unspoken = unspoken.slice(end);
  while (box.childElementCount > 20) box.firstChild.remove();
}

// --- conversations ---

function store() {
  try {
    if (settings.keep_chats) localStorage.setItem(STORED, JSON.stringify(conversations));
    else localStorage.removeItem(STORED);
  } catch {
    complain('This browser has no room left for conversations. Export what you want to keep, and delete some.');
  }
}

function loadStored() {
  try {
    conversations = JSON.parse(localStorage.getItem(STORED)) ?? [];
  } catch {
    conversations = [];
  }
  if (!Array.isArray(conversations) || conversations.length === 0) conversations = [newConversation()];
  current = conversations[0];
}

function open(conversation) {
  current = conversation;
  byId('list').classList.remove('open');
  byId('show-list').setAttribute('aria-expanded', 'false');
  closeInspect(false);
  draw();
}

function begin() {
  if (current.nodes[ROOT].children.length > 0) conversations.unshift(newConversation());
  open(conversations[0].nodes[ROOT].children.length > 0 ? current : conversations[0]);
  byId('message').focus();
}

function remove(conversation) {
  if (!confirm(`Delete “${conversation.title}” for good?`)) return;
  if (running?.conversation === conversation) running.controller.abort();
  conversations = conversations.filter((c) => c !== conversation);
  if (conversations.length === 0) conversations = [newConversation()];
  store();
  open(current === conversation ? conversations[0] : current);
  byId('new').focus();
}

function download(name, text) {
  const link = make('a', {href: URL.createObjectURL(new Blob([text], {type: 'application/json'})), download: name});
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

async function importFile(file) {
  try {
    const added = imported(await file.text());
    conversations.unshift(...added);
    store();
    if (added.length > 0) open(added[0]);
    complain('');
  } catch (e) {
    complain(`“${file.name}” cannot be imported: ${e.message}.`);
  }
}

// --- drawing ---

const actions = {
  show(id) {
    current.nodes[current.nodes[id].parent].active = id;
    store();
    draw();
  },
  edit(node) {
    const item = document.querySelector(`[data-id="${CSS.escape(node.id)}"]`);
    editField(item, node, (text) => {
      if (text === null || text === node.content) {
        draw();
        document.querySelector(`[data-key="${CSS.escape(node.id)} Edit"]`)?.focus();
        return;
      }
      const fields = {role: node.role, content: text};
      if (node.role === 'assistant' && node.reasoning) fields.reasoning = node.reasoning;
      const changed = addNode(current, node.parent, fields);
      store();
      if (node.role === 'user') answer(changed.id);
      else draw();
      byId('message').focus();
    });
  },
  again: (node) => answer(node.parent),
  async inspect(node) {
    const record = records.get(node.id);
    try {
      await namePrompt(record);
      byId('chat').hidden = true;
      inspected = node.id;
      showInspect(record);
    } catch (e) {
      complain(e.message);
    }
  },
  async copy(node) {
    try {
      await navigator.clipboard.writeText(node.content);
      byId('rate').textContent = 'Copied.';
    } catch {
      complain('The browser does not let this page copy here. Select the text instead.');
    }
  },
};

function drawList() {
  byId('conversations').replaceChildren(...conversations.map((c) => make('li', {},
    button(c.title, () => open(c), {dataKey: `open ${c.id}`, ...(c === current ? {aria: {current: 'true'}} : {})}),
    button('✕', () => remove(c), {aria: {label: `Delete ${c.title}`}}))));
}

function draw() {
  const key = document.activeElement?.dataset?.key;
  const list = byId('messages');
  const state = {busy: running !== null, running: running?.node.id,
    hasRecord: (node) => records.get(node.id)?.tokens.length > 0};
  live = null;
  list.replaceChildren(...shownPath(current).map((node) => {
    const view = messageItem(current, node, state, actions);
    if (node.id === running?.node.id) live = view;
    return view.item;
  }));
  list.scrollTop = list.scrollHeight;
  drawList();
  byId('stop').hidden = running === null;
  byId('send').disabled = running !== null;
  if (key) document.querySelector(`[data-key="${CSS.escape(key)}"]`)?.focus();
}

let planned = false;
function drawLive() {
  if (planned) return;
  planned = true;
  requestAnimationFrame(() => {
    planned = false;
    if (live === null) return;
    const list = byId('messages');
    const atEnd = list.scrollHeight - list.scrollTop - list.clientHeight < 60;
    live.update();
    if (atEnd) list.scrollTop = list.scrollHeight;
  });
}

// --- answers ---

function messagesFor(conversation, id) {
  const out = pathTo(conversation, id).filter((n) => n.role === 'user' || n.content || n.reasoning).map((n) => ({
    role: n.role, content: n.content, ...(n.reasoning ? {reasoning_content: n.reasoning} : {})}));
  return settings.system.trim() === '' ? out : [{role: 'system', content: settings.system}, ...out];
}

function showProgress(p) {
  byId('progress').hidden = p === null;
  if (p === null) return;
  const done = p.processed;
  byId('prompt-progress').max = Math.max(p.total, 1);
  byId('prompt-progress').value = done;
  byId('progress-text').textContent = `Reading the prompt: ${done} of ${p.total} tokens` +
    (p.cache > 0 ? `, ${p.cache} of them known` : '');
}

function aboutOf(usage, timings) {
  const n = usage.completion_tokens, known = usage.prompt_tokens_details?.cached_tokens ?? 0;
  const speed = timings?.predicted_per_second > 0 ? `, ${timings.predicted_per_second.toFixed(1)} tokens/s` : '';
  return `${n} tokens${speed}. Prompt: ${usage.prompt_tokens} tokens` + (known ? `, ${known} of them known` : '') +
    (timings ? `, ${(timings.prompt_ms / 1000).toFixed(2)} s.` : '.');
}

function readDelta(node, choice) {
  const delta = choice?.delta ?? {};
  if (delta.reasoning_content) node.reasoning = (node.reasoning ?? '') + delta.reasoning_content;
  if (delta.content) {
    node.content += delta.content;
    speak(delta.content);
  }
  if (choice?.finish_reason) node.finish = choice.finish_reason;
  return Boolean(delta.content || delta.reasoning_content);
}

const decoder = new TextDecoder();
function readRecord(record, choice) {
  const named = choice?.logprobs?.content ?? [];
  (choice?.selection ?? []).forEach((s, i) => record.tokens.push({...s,
    text: named[i] ? decoder.decode(new Uint8Array(named[i].bytes)) : '·'}));
}

async function streamInto(run, body, record) {
  let first = 0, pieces = 0;
  for await (const event of stream('v1/chat/completions', apiKey(), body, run.controller.signal)) {
    if (event.prompt_progress) showProgress(event.prompt_progress);
    const choice = event.choices?.[0];
    readRecord(record, choice);
    if (readDelta(run.node, choice)) {
      ++pieces;
      const now = performance.now();
      if (pieces === 1) {
        first = now;
        showProgress(null);
      } else if (now - first > 300) {
        byId('rate').textContent = `about ${((pieces - 1) * 1000 / (now - first)).toFixed(1)} tokens/s`;
      }
    }
    if (event.usage) run.node.about = aboutOf(event.usage, event.timings);
    drawLive();
  }
}

// Asks for the answer to this message, which becomes one more branch below it.
async function answer(parent) {
  if (running) return;
  complain('');
  const conversation = current;
  for (const id of conversation.nodes[parent].children) {
    const old = conversation.nodes[id];
    if (old.error && !old.content && !old.reasoning && old.children.length === 0) removeLeaf(conversation, id);
  }
  const messages = messagesFor(conversation, parent);
  const node = addNode(conversation, parent, {role: 'assistant'});
  const run = running = {conversation, node, controller: new AbortController()};
  const record = {messages, thinking: settings.thinking, prompt: null, tokens: []};
  byId('rate').textContent = '';
  draw();
  try {
    await streamInto(run, {messages, stream: true, stream_options: {include_usage: true}, return_progress: true,
      ...requestFields()}, record);
  } catch (e) {
    if (e.name === 'AbortError') node.finish = 'stopped';
    else node.error = e instanceof ApiFailure ? e.message : `This page failed: ${e.message}`;
    if (e.status === 401) askForKey();
    if (!(e instanceof ApiFailure) && e.name !== 'AbortError') console.error(e);
  }
  if (record.tokens.length > 0) records.set(node.id, record);
  running = null;
  showProgress(null);
  speak(node.error ?? '', true);
  byId('rate').textContent = node.about ?? '';
  store();
  draw();
}

function send() {
  const field = byId('message');
  const text = field.value;
  if (running || text.trim() === '') return;
  const parent = shownPath(current).at(-1)?.id ?? ROOT;
  if (parent === ROOT) current.title = text.trim().split('\n')[0].slice(0, 60);
  const node = addNode(current, parent, {role: 'user', content: text});
  field.value = '';
  store();
  answer(node.id);
}

// --- Inspect ---

let inspected = null;

// The text of the prompt's tokens, from the same template that the answer's request went through.
async function namePrompt(record) {
  if (record.prompt !== null) return;
  const reply = await postJson('tokenize', apiKey(), {messages: record.messages, enable_thinking: record.thinking,
    return_token_strs: true});
  if (reply.count !== record.tokens[0].position) {
    throw new Error('The prompt is not the one that the answer was written for. Answer again to inspect it.');
  }
  record.prompt = reply.token_strs;
}

function closeInspect(focus = true) {
  if (byId('inspect').hidden) return;
  byId('inspect').hidden = true;
  byId('chat').hidden = false;
  if (focus) document.querySelector(`[data-key="${CSS.escape(inspected)} Inspect"]`)?.focus();
}

// --- the server, the theme, and the start ---

function askForKey() {
  byId('settings').showModal();
  byId('key').focus();
}

async function findModel() {
  byId('model').textContent = 'Looking for the model …';
  for (let state; (state = await health()) !== 'ok';) {
    byId('model').textContent = state;
    await new Promise((resolve) => setTimeout(resolve, 1500));
  }
  try {
    const props = await getJson('props', apiKey());
    const defaults = props.default_generation_settings;
    byId('model').textContent = `${props.model_alias}, context of ${defaults.n_ctx} tokens`;
    byId('temperature').placeholder = String(Math.round(defaults.params.temperature * 1000) / 1000);
    byId('top_p').placeholder = String(Math.round(defaults.params.top_p * 1000) / 1000);
    if (props.chat_format === null) {
      complain('This checkpoint has no chat format. Start the server with --chat-format, or use /v1/completions.');
    }
  } catch (e) {
    byId('model').textContent = '';
    complain(e.message, button('Try again', findModel));
    if (e.status === 401) askForKey();
  }
}

const THEMES = ['system', 'light', 'dark'];
function applyTheme() {
  byId('theme').textContent = `Theme: ${settings.theme}`;
  if (settings.theme === 'system') delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = settings.theme;
}

// The same switch in the settings and below the message.
function linkChecks(quick, full) {
  byId(quick).checked = byId(full).checked;
  byId(quick).addEventListener('change', () => {
    byId(full).checked = byId(quick).checked;
    byId(full).dispatchEvent(new Event('change'));
  });
  byId(full).addEventListener('change', () => { byId(quick).checked = byId(full).checked; });
}

function bind() {
  byId('composer').addEventListener('submit', (e) => { e.preventDefault(); send(); });
  byId('message').addEventListener('keydown', (e) => {
    if (e.key === 'Enter' && !e.shiftKey && !e.isComposing) {
      e.preventDefault();
      send();
    }
  });
  byId('stop').addEventListener('click', () => { running?.controller.abort(); byId('message').focus(); });
  byId('new').addEventListener('click', begin);
  byId('import').addEventListener('click', () => byId('import-file').click());
  byId('import-file').addEventListener('change', async (e) => {
    if (e.target.files.length > 0) await importFile(e.target.files[0]);
    e.target.value = '';
  });
  byId('export').addEventListener('click', () => download('conversation.json', exported([current])));
  byId('export-all').addEventListener('click', () => download('conversations.json', exported(conversations)));
  byId('show-list').addEventListener('click', () => {
    const isOpen = byId('list').classList.toggle('open');
    byId('show-list').setAttribute('aria-expanded', String(isOpen));
  });
  byId('open-settings').addEventListener('click', () => byId('settings').showModal());
  byId('settings').addEventListener('close', () => byId('message').focus());
  byId('key').addEventListener('change', findModel);
  byId('theme').addEventListener('click', () => {
    settings.theme = THEMES[(THEMES.indexOf(settings.theme) + 1) % THEMES.length];
    saveSettings();
    applyTheme();
  });
  linkChecks('quick-thinking', 'thinking');
  linkChecks('quick-inspect', 'inspect_on');
  bindInspect(() => closeInspect());
}

loadSettings();
bindSettings(store);
applyTheme();
loadStored();
bind();
draw();
findModel();
