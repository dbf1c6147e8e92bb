// What the user chose, kept in this browser. The key is kept apart: for this tab, or for good.
import {byId} from './dom.js';

const DEFAULTS = {
  system: '', temperature: '', top_p: '', max_tokens: '', seed: '', thinking: false, attention: 'auto',
  index_topk: '', inspect_on: false, inspect_top: '8', keep_key: false, keep_chats: true, theme: 'system',
};
const STORED = 'tamis.settings', KEY = 'tamis.key';
const NUMBERS = ['temperature', 'top_p', 'max_tokens', 'seed', 'index_topk'];

// A browser may forbid storage; then nothing outlives the page.
function attempt(f) {
  try {
    return f();
  } catch {
    return null;
  }
}

export const settings = {...DEFAULTS};
let key = '';

export const apiKey = () => key;

export function loadSettings() {
  const stored = attempt(() => JSON.parse(localStorage.getItem(STORED))) ?? {};
  for (const name of Object.keys(DEFAULTS)) {
    if (typeof stored[name] === typeof DEFAULTS[name]) settings[name] = stored[name];
  }
  key = attempt(() => sessionStorage.getItem(KEY) ?? localStorage.getItem(KEY)) ?? '';
}

export function saveSettings() {
  attempt(() => localStorage.setItem(STORED, JSON.stringify(settings)));
  attempt(() => { sessionStorage.removeItem(KEY); localStorage.removeItem(KEY); });
  if (key) attempt(() => (settings.keep_key ? localStorage : sessionStorage).setItem(KEY, key));
}

// Fills the fields and calls `changed` after every change of one.
export function bindSettings(changed) {
  for (const name of Object.keys(DEFAULTS)) {
    const field = byId(name);
    if (field === null) continue;
    const property = field.type === 'checkbox' ? 'checked' : 'value';
    field[property] = settings[name];
    field.addEventListener('change', () => {
      settings[name] = field[property];
      saveSettings();
      changed();
    });
  }
  const field = byId('key');
  field.value = key;
  field.addEventListener('change', () => {
    key = field.value.trim();
    saveSettings();
    changed();
  });
}

// The fields of a request; what is empty is left to the server.
export function requestFields() {
  const out = {enable_thinking: settings.thinking};
  for (const name of NUMBERS) {
    if (settings[name] !== '') out[name] = Number(settings[name]);
  }
  if (settings.attention !== 'auto') out.attention = settings.attention;
  if (settings.inspect_on) {
    out.return_selection = Math.min(Math.max(Number(settings.inspect_top) || 8, 1), 64);
    out.logprobs = true;  // names the tokens
  }
  return out;
}
