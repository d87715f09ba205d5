// The gateway's API as the page uses it. Addresses are relative, so that a proxy may put the page under any path.

/** An answer other than 2xx; `field` is the field of the request that it is about, or null; `status` is 0 if no answer came. */
export class ApiError extends Error {
  constructor(message, field = null, status = 0) { super(message); this.field = field; this.status = status; }
}

// The key that the gateway asks for, if it has keys. It lives as long as the tab; a private window keeps it as long as the page.
const KEY = "api-key";
let key = "";
try { key = sessionStorage.getItem(KEY) || ""; } catch { /* not kept */ }
export function setKey(value) {
  key = value;
  try { sessionStorage.setItem(KEY, value); } catch { /* not kept */ }
}

async function checked(response) {
  if (response.ok) return response;
  const body = await response.json().catch(() => null);
  throw new ApiError(body?.error?.message || `the server answered ${response.status}`, body?.error?.param ?? null, response.status);
}

async function ask(path, init = {}) {
  const headers = { ...init.headers, ...(key && { Authorization: `Bearer ${key}` }) };
  try {
    return await checked(await fetch(path, { ...init, headers }));
  } catch (error) {
    if (error.status === 401) dispatchEvent(new Event("keyneeded"));
    if (error instanceof TypeError) throw new ApiError("the gateway cannot be reached; is it running?");
    throw error;
  }
}

export const getJson = async (path) => (await ask(path)).json();
export const postForm = async (path, form) => (await ask(path, { method: "POST", body: form })).json();
export const remove = (path) => ask(path, { method: "DELETE" });
export const postSpeech = (body, signal) =>
  ask("v1/audio/speech", { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), signal });

/** PCM16 bytes in any pieces -> float32 samples. */
class Samples {
  constructor() { this.odd = new Uint8Array(0); }

  take(bytes) {
    const whole = new Uint8Array(this.odd.length + bytes.length);
    whole.set(this.odd);
    whole.set(bytes, this.odd.length);
    const even = whole.length & ~1;
    this.odd = whole.slice(even);
    const view = new DataView(whole.buffer, 0, even), samples = new Float32Array(even / 2);
    for (let i = 0; i < samples.length; i += 1) samples[i] = view.getInt16(2 * i, true) / 32768;
    return samples;
  }
}

/** Speak a whole text; yields Float32Array pieces at 24 kHz as they arrive. */
export async function* speak(body, signal) {
  const response = await postSpeech({ ...body, response_format: "pcm", stream: true }, signal);
  const reader = response.body.getReader(), samples = new Samples();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      yield samples.take(value);
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** Speak words while they come: `words` is an async iterator of pieces of text. Yields as speak() does. */
export async function* speakWords(words, body, signal) {
  const url = new URL("v1/audio/speech/stream", location.href);
  url.protocol = url.protocol.replace("http", "ws");
  if (key) url.searchParams.set("api_key", key); // a browser gives a WebSocket no header
  const socket = new WebSocket(url), samples = new Samples(), received = [];
  let wake = () => {}, end = null;
  const put = (item) => { received.push(item); wake(); };
  socket.binaryType = "arraybuffer";
  socket.onmessage = ({ data }) => {
    if (typeof data !== "string") { put({ samples: samples.take(new Uint8Array(data)) }); return; }
    const event = JSON.parse(data);
    if (event.type === "error") end = new ApiError(event.error?.message || "the stream failed", event.error?.param ?? null);
    if (["session.done", "audio.cancelled"].includes(event.type)) put({ isEnd: true });
  };
  socket.onclose = () => { end = end || new ApiError("the gateway closed the connection"); put({ error: end }); };
  const cancel = () => { if (socket.readyState === WebSocket.OPEN) socket.send(JSON.stringify({ type: "input.cancel" })); socket.close(); };
  signal.addEventListener("abort", cancel);
  try {
    await new Promise((resolve) => { socket.addEventListener("open", resolve); socket.addEventListener("close", resolve); });
    const send = (event) => { if (socket.readyState === WebSocket.OPEN) socket.send(JSON.stringify(event)); };
    send({ type: "session.config", ...body, response_format: "pcm" });
    (async () => {
      for await (const text of words) send({ type: "input.text", text });
      send({ type: "input.done" });
    })();
    for (;;) {
      while (!received.length) await new Promise((resolve) => { wake = resolve; });
      const item = received.shift();
      if (signal.aborted) throw new DOMException("cancelled", "AbortError");
      if (item.isEnd) return;
      if (item.error) throw item.error;
      yield item.samples;
    }
  } finally {
    signal.removeEventListener("abort", cancel);
    socket.close();
  }
}
