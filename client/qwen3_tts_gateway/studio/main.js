// The studio: what is written is spoken, heard and drawn while it is made. This file joins the parts.
import { ApiError, postSpeech, speak, speakWords } from "./api.js";
import { Blending } from "./blend.js";
import { Cloning, loadInfo } from "./clone.js";
import { Player } from "./player.js";
import { Waveform } from "./waveform.js";
import { save, wavFile } from "./sound_file.js";
import { watchServer } from "./server_view.js";
import { watchKey } from "./key_field.js";
import { words } from "./agent.js";

const RATE = 24000; // Hz, of PCM from the gateway
const TAKES = 20; // kept for listening again
const LANGUAGES = ["auto", "chinese", "english", "french", "german", "italian", "japanese", "korean", "portuguese", "russian", "spanish"];
const FIELDS = { input: "text", voice: "voice", language: "language", speed: "speed", instructions: "style" }; // request field -> element
const element = (id) => document.getElementById(id);
const isMac = /Mac|iPhone|iPad/.test(navigator.platform);

let mode = "whole"; // or "agent"
let take = null; // the one that is shown
let running = null; // AbortController of the take that is being made
let heardFrom = 0; // second of the take at which the player began

const player = new Player(({ played, gaps, isOver }) => {
  if (!take) return;
  wave.move(Math.min(heardFrom + played / RATE, wave.seconds));
  if (gaps > take.gaps) { take.gaps = gaps; showFigures(); }
  if (isOver && !running) { isPlaying = false; showButtons(); }
});
let isPlaying = false;
const wave = new Waveform(element("wave"), (second) => playFrom(second));
const cloning = new Cloning(refreshVoices);
const blending = new Blending(refreshVoices, fail);

// ---- speaking

async function start() {
  const text = element("text").value.trim();
  fail("");
  if (!text) { fail("Write what to say first."); element("text").focus(); return; }
  running?.abort();
  const control = new AbortController(), body = requestBody(text);
  running = control;
  const current = { text, body, mode, parts: [], gaps: 0, begun: 0, firstAudio: null, made: null, state: "speaking" };
  show(current);
  try {
    await player.open(RATE);
    player.start();
    heardFrom = 0;
    isPlaying = true;
    current.begun = performance.now();
    for await (const samples of pieces(current, control.signal)) {
      if (!samples.length) continue;
      const isFirst = current.firstAudio === null;
      current.firstAudio ??= performance.now() - current.begun;
      current.parts.push(samples);
      if (isFirst) showButtons();
      current.made = performance.now() - current.begun;
      if (take === current) { wave.push(samples); player.push(samples); showFigures(); }
    }
    current.state = "done";
  } catch (error) {
    current.state = control.signal.aborted ? "cancelled" : "failed";
    if (current.state === "failed") fail(error.message, error instanceof ApiError ? error.field : null);
  }
  if (running === control) running = null;
  if (take === current) { if (current.state === "done") player.end(); else { player.stop(); isPlaying = false; } wave.finish(); showFigures(); }
  if (current.parts.length) keep(current);
  showButtons();
}

function pieces(current, signal) {
  if (current.mode === "whole") return speak(current.body, signal);
  const { input, ...options } = current.body;
  showSent(input, 0);
  const pace = () => Number(element("pace").value);
  return speakWords(words(input, pace, (sent) => showSent(input, sent), signal), options, signal);
}

function requestBody(text) {
  const body = { model: "qwen3-tts", input: text, seed: Math.floor(Math.random() * 2 ** 31) };
  const set = (name, value) => { if (value) body[name] = value; };
  set("voice", blending.voice);
  set("language", element("language").value === "auto" ? "" : element("language").value);
  set("instructions", element("style").value.trim());
  if (Number(element("speed").value) !== 1) body.speed = Number(element("speed").value);
  if (cloning.once && element("voice").value === "") Object.assign(body, cloning.once);
  return body;
}

function cancel() { running?.abort(); }

// ---- listening again

async function playFrom(second) {
  if (!take?.parts.length) return;
  await player.open(RATE);
  player.start();
  heardFrom = second;
  isPlaying = true;
  let skip = Math.round(second * RATE);
  for (const part of take.parts) {
    if (skip < part.length) player.push(skip > 0 ? part.slice(skip) : part);
    skip -= part.length;
  }
  if (take.state !== "speaking") player.end();
  showButtons();
}

function togglePlaying() {
  if (isPlaying) { player.stop(); isPlaying = false; showButtons(); return; }
  playFrom(wave.position >= wave.seconds - 0.05 ? 0 : wave.position);
}

async function download() {
  const format = element("format").value, name = `${take.text.slice(0, 40).replace(/[^\p{L}\p{N}]+/gu, "_").replace(/^_|_$/g, "") || "speech"}.${format}`;
  if (format === "wav") { save(wavFile(take.parts, RATE), name); return; }
  // The same seed speaks the same again, so the server encodes what was heard.
  const button = element("download");
  button.disabled = true;
  button.textContent = "Encoding …";
  try {
    save(await (await postSpeech({ ...take.body, response_format: format, stream: false })).blob(), name);
  } catch (error) {
    fail(error.message);
  }
  button.textContent = "Download";
  showButtons();
}

// ---- the page

function fail(message, field = null) {
  const name = FIELDS[field];
  for (const id of Object.values(FIELDS)) element(id).removeAttribute("aria-invalid");
  if (name) element(name).setAttribute("aria-invalid", "true");
  element("error").textContent = message;
  element("error").hidden = !message;
}

function show(chosen) {
  take = chosen;
  player.stop();
  isPlaying = false;
  wave.clear(RATE);
  for (const part of chosen.parts) wave.push(part);
  if (chosen.state !== "speaking") wave.finish();
  showFigures();
  showButtons();
}

const seconds = (parts) => parts.reduce((sum, part) => sum + part.length, 0) / RATE;

function showFigures() {
  const length = seconds(take.parts);
  element("first-audio").textContent = take.firstAudio === null ? "–" : `${Math.round(take.firstAudio)} ms`;
  element("length").textContent = length ? `${length.toFixed(1)} s` : "–";
  element("real-time").textContent = take.made && length ? `${((1000 * length) / take.made).toFixed(1)} ×` : "–";
  element("gaps").textContent = take.firstAudio === null ? "–" : take.gaps;
  const state = { speaking: "speaking", done: "done", cancelled: "cancelled", failed: "failed" }[take.state];
  if (element("state").textContent !== state) element("state").textContent = state;
}

function showButtons() {
  element("cancel").disabled = !running;
  element("play").disabled = !take?.parts.length;
  element("play").textContent = isPlaying ? "Pause" : "Play";
  element("download").disabled = !take?.parts.length || take.state === "speaking";
  for (const option of element("format").options) option.disabled = take?.mode === "agent" && option.value !== "wav";
  if (element("format").selectedOptions[0]?.disabled) element("format").value = "wav";
}

function keep(current) {
  const item = document.createElement("li"), text = document.createElement("span"), length = document.createElement("span"), button = document.createElement("button");
  text.textContent = current.text;
  text.title = current.text;
  length.textContent = `${seconds(current.parts).toFixed(1)} s`;
  length.className = "muted number";
  button.type = "button";
  button.textContent = "Show";
  button.setAttribute("aria-label", `Show the take: ${current.text.slice(0, 60)}`);
  button.addEventListener("click", () => { running?.abort(); show(current); playFrom(0); });
  item.append(text, length, button);
  element("takes").prepend(item);
  if (element("takes").children.length > TAKES) element("takes").lastChild.remove();
}

function showSent(text, count) {
  element("agent-sent").textContent = text.slice(0, count);
  element("agent-rest").textContent = text.slice(count);
}

function choose(next) {
  mode = next;
  const isAgent = mode === "agent";
  for (const name of ["whole", "agent"]) {
    element(`tab-${name}`).setAttribute("aria-selected", String(name === mode));
    element(`tab-${name}`).tabIndex = name === mode ? 0 : -1;
  }
  element("compose-panel").setAttribute("aria-labelledby", `tab-${mode}`);
  for (const part of document.querySelectorAll(".agent-only")) part.hidden = !isAgent;
  element("agent-view").hidden = !isAgent;
  element("mode-hint").textContent = isAgent ? "The words are sent one by one, as a language model writes them." : "The whole text is sent at once.";
  showSent(element("text").value.trim(), 0);
}

async function refreshVoices(wanted) {
  const info = await loadInfo().catch(() => null);
  if (!info) return;
  const select = element("voice"), chosen = wanted || select.value;
  const option = (value, text) => Object.assign(document.createElement("option"), { value, textContent: text });
  const first = cloning.once ? "the recording" : "default";
  const groups = [["Built in", "built-in"], ["Stored", "stored"]].map(([label, source]) => {
    const group = Object.assign(document.createElement("optgroup"), { label });
    group.append(...info.voices.filter((voice) => voice.source === source).map((voice) => option(voice.id, voice.id)));
    return group;
  });
  select.replaceChildren(option("", first), ...groups.filter((group) => group.children.length));
  select.value = [...select.options].some(({ value }) => value === chosen) ? chosen : "";
  if (cloning.once && wanted === undefined) select.value = "";
  cloning.show(info);
  blending.show(info);
}

for (const name of LANGUAGES) element("language").append(Object.assign(document.createElement("option"), { value: name, textContent: name === "auto" ? "from the text" : name[0].toUpperCase() + name.slice(1) }));
if (isMac) element("speak").querySelector("kbd").textContent = "⌘ ↵";
element("compose-panel").addEventListener("submit", (event) => { event.preventDefault(); start(); });
element("cancel").addEventListener("click", cancel);
element("play").addEventListener("click", togglePlaying);
element("download").addEventListener("click", download);
element("speed").addEventListener("input", ({ target }) => { element("speed-value").textContent = `${Number(target.value).toFixed(2)} ×`; });
element("pace").addEventListener("input", ({ target }) => { element("pace-value").textContent = target.value; });
element("text").addEventListener("input", ({ target }) => { element("count").textContent = target.value.length > 400 ? `${target.value.length} / 4096` : ""; showSent(target.value.trim(), 0); });
for (const name of ["whole", "agent"]) {
  const tab = element(`tab-${name}`);
  tab.addEventListener("click", () => choose(name));
  tab.addEventListener("keydown", ({ key }) => {
    if (!["ArrowLeft", "ArrowRight"].includes(key)) return;
    choose(name === "whole" ? "agent" : "whole");
    element(`tab-${mode}`).focus();
  });
}
addEventListener("keydown", (event) => {
  if (event.key === "Escape" && running) { event.preventDefault(); cancel(); }
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); start(); }
});
choose("whole");
watchKey();
watchServer(refreshVoices);
