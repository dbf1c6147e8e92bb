// The server's API: requests, streams of events, and errors in plain words.

export class ApiFailure extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

function plainWords(status, error, retryAfter) {
  const said = error?.message ?? '';
  if (status === 401) return 'This server wants an API key. Enter it in the settings.';
  if (status === 429) return `The server is busy: ${said}. Try again in ${retryAfter ?? 'a few'} seconds.`;
  if (error?.code === 'context_length_exceeded') {
    return `This does not fit into the model's context (${said}). Begin a new conversation, edit an earlier ` +
      'message, or ask for a shorter answer in the settings.';
  }
  if (status === 503) return `The server cannot answer now: ${said}.`;
  if (status >= 500) return `The server failed: ${said || status}. Other requests are served; try again.`;
  if (status === 413) return 'This is larger than the server takes (--max-body).';
  if (status === 400 && error?.param) return `The server refused a setting (${error.param}): ${said}.`;
  return `The server refused this (${status}): ${said || 'no reason given'}.`;
}

async function failureOf(response) {
  let error;
  try {
    error = (await response.json()).error;
  } catch {
    error = undefined;  // not ours: a proxy's page
  }
  return new ApiFailure(plainWords(response.status, error, response.headers.get('Retry-After')), response.status);
}

async function ask(path, key, options = {}) {
  const headers = {...(options.body === undefined ? {} : {'Content-Type': 'application/json'}),
    ...(key ? {Authorization: `Bearer ${key}`} : {})};
  let response;
  try {
    response = await fetch(path, {...options, headers, cache: 'no-store'});
  } catch (e) {
    if (e.name === 'AbortError') throw e;
    if (key && /header|ISO-8859|ByteString/i.test(e.message)) {
      throw new ApiFailure('The API key has characters that no key can have.');
    }
    throw new ApiFailure('The server does not answer. Is it running, and can this machine reach it?');
  }
  if (!response.ok) throw await failureOf(response);
  return response;
}

export const getJson = async (path, key) => (await ask(path, key)).json();

export const postJson = async (path, key, body) =>
  (await ask(path, key, {method: 'POST', body: JSON.stringify(body)})).json();

// 'ok', or what the server says instead.
export async function health() {
  try {
    await ask('health', '');
    return 'ok';
  } catch (e) {
    return e.message;
  }
}

// The events of a stream, parsed; an event that is an error is thrown.
export async function* stream(path, key, body, signal) {
  const response = await ask(path, key, {method: 'POST', body: JSON.stringify(body), signal});
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = '';
  for (;;) {
    let part;
    try {
      part = await reader.read();
    } catch (e) {
      if (e.name === 'AbortError') throw e;
      throw new ApiFailure('The connection broke before the answer was complete.');
    }
    if (part.done) throw new ApiFailure('The connection ended before the answer was complete.');
    rest += part.value;
    for (let end; (end = rest.indexOf('\n\n')) !== -1; rest = rest.slice(end + 2)) {
      const event = rest.slice(0, end);
      if (!event.startsWith('data: ')) continue;  // a ping
      if (event === 'data: [DONE]') return;
      const data = JSON.parse(event.slice(6));
      if (data.error) throw new ApiFailure(plainWords(data.error.type === 'server_error' ? 500 : 400, data.error));
      yield data;
    }
  }
}
