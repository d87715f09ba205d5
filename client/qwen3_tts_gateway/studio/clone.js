// Clone a voice: record or upload a reference, use it for one take, or store it with the person's consent.
import { base64, reference } from "./sound_file.js";
import { getJson, postForm, remove } from "./api.js";

const element = (id) => document.getElementById(id);
const LONGEST = 30; // seconds of a recording

export class Cloning {
  /** @param {() => void} onVoices called when the list of stored voices has changed */
  constructor(onVoices) {
    this.onVoices = onVoices;
    this.once = null; // fields of the next request, if the reference is used once
    this.recorded = null;
    element("record").addEventListener("click", () => this.toggleRecording());
    element("file").addEventListener("change", ({ target }) => { if (target.files[0]) this.take(target.files[0]); target.value = ""; });
    element("use-once").addEventListener("click", () => this.useOnce());
    element("clone").addEventListener("submit", (event) => { event.preventDefault(); this.store(); });
    element("timbre-only").addEventListener("change", ({ target }) => { element("reference-text").disabled = target.checked; });
  }

  fail(message) { element("clone-error").textContent = message; element("clone-error").hidden = !message; }

  async toggleRecording() {
    if (this.recorder) { this.recorder.stop(); return; }
    this.fail("");
    if (!navigator.mediaDevices) { this.fail("Browsers record only on localhost or over HTTPS. Upload a file instead."); return; }
    let stream;
    try {
      stream = await navigator.mediaDevices.getUserMedia({ audio: { channelCount: 1, echoCancellation: false, noiseSuppression: false } });
    } catch (error) {
      this.fail(`The microphone cannot be used: ${error.message}`);
      return;
    }
    const parts = [], button = element("record"), start = performance.now();
    this.recorder = new MediaRecorder(stream);
    this.recorder.ondataavailable = ({ data }) => parts.push(data);
    const clock = setInterval(() => {
      const seconds = (performance.now() - start) / 1000;
      button.textContent = `Stop · ${seconds.toFixed(0)} s`;
      if (seconds > LONGEST) this.recorder?.stop();
    }, 200);
    this.recorder.onstop = () => {
      clearInterval(clock);
      for (const track of stream.getTracks()) track.stop();
      this.recorder = null;
      button.textContent = "Record";
      button.classList.remove("recording");
      this.take(new Blob(parts));
    };
    this.recorder.start();
    button.textContent = "Stop";
    button.classList.add("recording");
  }

  async take(blob) {
    this.fail("");
    try {
      this.recorded = await reference(blob);
    } catch (error) {
      this.fail(error.message);
      return;
    }
    const player = element("reference-player");
    player.src = URL.createObjectURL(this.recorded.file);
    player.hidden = false;
    element("reference").textContent = `${this.recorded.seconds.toFixed(1)} seconds, one channel.`;
    element("use-once").disabled = element("store").disabled = false;
  }

  /** The words, or "" for the timbre alone; false, with a message, if they are missing. */
  words() {
    if (element("timbre-only").checked) return "";
    const text = element("reference-text").value.trim();
    if (text) return text;
    this.fail("Write the words of the recording, or choose the timbre alone.");
    element("reference-text").focus();
    return false;
  }

  async useOnce() {
    this.fail("");
    const text = this.words();
    if (text === false) return;
    const audio = `data:audio/wav;base64,${await base64(this.recorded.file)}`;
    this.once = text ? { ref_audio: audio, ref_text: text } : { ref_audio: audio, x_vector_only_mode: true };
    this.onVoices();
  }

  async store() {
    this.fail("");
    const text = this.words();
    if (text === false) return;
    const name = element("voice-name").value.trim(), consent = element("consent").value.trim();
    if (!name || !consent) { this.fail("A stored voice needs a name, and who agreed to it."); return; }
    const form = new FormData();
    form.set("name", name);
    form.set("consent", consent);
    form.set("audio_sample", this.recorded.file, "reference.wav");
    if (text) form.set("ref_text", text); else form.set("x_vector_only_mode", "true");
    try {
      await postForm("v1/audio/voices", form);
      element("reference").textContent = `${name} is stored.`;
      this.onVoices(name);
    } catch (error) {
      this.fail(error.message);
    }
  }

  /** Show what can be cloned here, and the stored voices. */
  show(info) {
    const off = element("clone-off");
    element("clone").hidden = !info.can_clone;
    off.hidden = Boolean(info.can_clone);
    if (!info.can_clone) off.textContent = "No Base checkpoint is loaded, and only those clone voices.";
    element("clone").querySelector("details").hidden = !info.has_store;
    element("stored").replaceChildren(...info.voices.filter((voice) => voice.source === "stored").map((voice) => {
      const item = document.createElement("li"), name = document.createElement("span"), button = document.createElement("button");
      name.textContent = voice.id;
      button.type = "button";
      button.textContent = "Delete";
      button.setAttribute("aria-label", `Delete the voice ${voice.id}`);
      button.addEventListener("click", async () => {
        if (!confirm(`Delete the voice ${voice.id}? It cannot be brought back.`)) return;
        try { await remove(`v1/audio/voices/${encodeURIComponent(voice.id)}`); this.onVoices(); } catch (error) { this.fail(error.message); }
      });
      item.append(name, button);
      return item;
    }));
  }
}

export const loadInfo = () => getJson("v1/studio/info");
