// Waveform: the sound as bars that grow while it arrives, what has been played in another colour, and a time scale.

const BIN_SECONDS = 0.02;
const LEAST_SECONDS = 4; // a shorter sound does not fill the width while it grows

export class Waveform {
  /** @param {HTMLCanvasElement} canvas @param {(second: number) => void} onSeek */
  constructor(canvas, onSeek) {
    this.canvas = canvas;
    this.onSeek = onSeek;
    this.clear(24000);
    new ResizeObserver(() => this.draw()).observe(canvas);
    addEventListener("themechange", () => this.draw());
    canvas.addEventListener("pointerdown", (event) => this.seek((event.offsetX / canvas.clientWidth) * this.viewSeconds));
    canvas.addEventListener("keydown", (event) => {
      const to = { ArrowLeft: this.position - 1, ArrowRight: this.position + 1, Home: 0, End: this.seconds }[event.key];
      if (to === undefined) return;
      event.preventDefault();
      this.seek(to);
    });
  }

  get seconds() { return this.samples / this.rate; }
  get viewSeconds() { return Math.max(this.isWhole ? BIN_SECONDS : LEAST_SECONDS, this.seconds); }

  clear(rate) { this.rate = rate; this.samples = 0; this.peaks = []; this.position = 0; this.isWhole = false; this.schedule(); }

  /** No more comes. */
  finish() { this.isWhole = true; this.schedule(); }

  push(part) {
    const bin = Math.round(this.rate * BIN_SECONDS);
    for (let i = 0; i < part.length; i += 1) {
      const at = Math.floor((this.samples + i) / bin);
      const level = Math.abs(part[i]);
      if (!(this.peaks[at] >= level)) this.peaks[at] = level;
    }
    this.samples += part.length;
    this.schedule();
  }

  move(second) { this.position = second; this.schedule(); }
  seek(second) { if (this.samples) this.onSeek(Math.min(Math.max(0, second), this.seconds)); }

  schedule() {
    if (this.isScheduled) return;
    this.isScheduled = true;
    requestAnimationFrame(() => { this.isScheduled = false; this.draw(); });
  }

  draw() {
    const { canvas } = this, ratio = devicePixelRatio || 1, width = canvas.clientWidth, height = 120;
    if (canvas.width !== Math.round(width * ratio)) { canvas.width = Math.round(width * ratio); canvas.height = height * ratio; }
    const style = getComputedStyle(document.documentElement), colour = (name) => style.getPropertyValue(name).trim();
    const context = canvas.getContext("2d");
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, width, height);
    const middle = (height - 18) / 2, perSecond = width / this.viewSeconds;
    this.drawScale(context, width, height, perSecond, colour);
    const step = 3, perBar = Math.max(1, (step / perSecond) / BIN_SECONDS);
    for (let x = 0; x < width; x += step) {
      const first = Math.floor((x / perSecond) / BIN_SECONDS);
      if (first >= this.peaks.length) break;
      let peak = 0;
      for (let i = first; i < Math.min(first + Math.ceil(perBar), this.peaks.length); i += 1) peak = Math.max(peak, this.peaks[i] || 0);
      const half = Math.max(1, Math.min(1, peak) ** 0.6 * (middle - 4)); // quiet sounds are seen, as they are heard
      context.fillStyle = x / perSecond <= this.position ? colour("--wave") : colour("--wave-rest");
      context.fillRect(x, middle - half, step - 1, 2 * half);
    }
    if (this.samples) {
      context.fillStyle = colour("--ink");
      context.fillRect(Math.min(this.position * perSecond, width - 2), 2, 2, height - 22);
    }
    canvas.setAttribute("aria-valuemax", this.seconds.toFixed(1));
    canvas.setAttribute("aria-valuenow", this.position.toFixed(1));
    canvas.setAttribute("aria-valuetext", `${this.position.toFixed(1)} of ${this.seconds.toFixed(1)} seconds`);
  }

  drawScale(context, width, height, perSecond, colour) {
    const every = [0.5, 1, 2, 5, 10, 30, 60, 120, 300, 600].find((seconds) => seconds * perSecond > 60) || 1800;
    context.fillStyle = colour("--soft");
    context.font = "11px system-ui, sans-serif";
    for (let second = 0; second * perSecond < width - 20; second += every) {
      context.fillRect(second * perSecond, height - 18, 1, 4);
      context.fillText(second < 60 ? `${second} s` : `${Math.floor(second / 60)}:${String(second % 60).padStart(2, "0")}`, second * perSecond + 3, height - 5);
    }
  }
}
