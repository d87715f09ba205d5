// Blend two voices: the second one, its share, and the blend as a stored voice.
import { postForm } from "./api.js";

const element = (id) => document.getElementById(id);
const MARKS = /[+:]/; // of a blend; a name that has one cannot be a part

export class Blending {
  /**
   * @param {(name: string) => void} onStored called with the name of a blend that is a voice now
   * @param {(message: string) => void} fail shows what is wrong; "" for nothing
   */
  constructor(onStored, fail) {
    this.onStored = onStored;
    this.fail = fail;
    this.voices = new Map(); // name -> {source, models}
    this.hasStore = false;
    for (const id of ["voice", "blend"]) element(id).addEventListener("change", () => this.offer());
    element("share").addEventListener("input", () => this.showShares());
    element("store-blend").addEventListener("click", () => this.store());
    element("blend-name").addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.ctrlKey || event.metaKey) return;
      event.preventDefault(); // it is inside the form that speaks
      this.store();
    });
  }

  /** The voice of a request: "" is the default one. */
  get voice() {
    const [first, second] = this.names, share = Number(element("share").value) / 100;
    return second ? `${first}:${(1 - share).toFixed(2)}+${second}:${share.toFixed(2)}` : first;
  }

  get names() { return [element("voice").value, element("blend").value]; }

  /** Take what there is to blend. */
  show(info) {
    this.voices = new Map(info.voices.map((voice) => [voice.id, voice]));
    this.hasStore = info.has_store;
    this.offer();
  }

  /** Offer the voices that the chosen one can be blended with: those of its model. */
  offer() {
    const select = element("blend"), chosen = select.value, first = this.voices.get(element("voice").value);
    const partners = first && !MARKS.test(first.id) ? [...this.voices.values()].filter((voice) => voice.id !== first.id && !MARKS.test(voice.id) && this.model(first, voice)) : [];
    const none = first ? (partners.length ? "nothing" : "no voice fits") : "choose a voice";
    select.replaceChildren(new Option(none, ""), ...partners.map(({ id }) => new Option(id, id)));
    select.value = partners.some(({ id }) => id === chosen) ? chosen : "";
    select.disabled = !partners.length;
    element("blend-row").hidden = !select.value;
    element("blend-store").hidden = !(this.hasStore && this.names.every((name) => this.voices.get(name)?.source === "stored"));
    this.showShares();
  }

  /** A model that speaks with both. */
  model(first, second) { return first.models.find((model) => second.models.includes(model)); }

  showShares() {
    const [first, second] = this.names, share = Number(element("share").value), text = `${100 - share} % ${first}, ${share} % ${second}`;
    element("share-value").textContent = text;
    element("share").setAttribute("aria-valuetext", text);
  }

  async store() {
    const name = element("blend-name").value.trim(), form = new FormData();
    this.fail(name ? "" : "Give the blend a name.");
    if (!name) { element("blend-name").focus(); return; }
    form.set("name", name);
    form.set("blend", this.voice);
    element("store-blend").disabled = true;
    try {
      await postForm("v1/audio/voices", form);
      element("blend-name").value = element("blend").value = ""; // the new voice is not blended again
      this.onStored(name.toLowerCase());
    } catch (error) {
      this.fail(error.message);
    }
    element("store-blend").disabled = false;
  }
}
