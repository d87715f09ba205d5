// Plays samples in the order in which they come, on the audio thread. Silence where none has come yet, counted as a gap.
class Queue extends AudioWorkletProcessor {
  constructor() {
    super();
    this.clear();
    this.port.onmessage = ({ data }) => {
      if (data.samples) this.parts.push(data.samples);
      if (data.ended) this.ended = true;
      if (data.clear) this.clear();
    };
  }

  clear() { this.parts = []; this.offset = 0; this.played = 0; this.gaps = 0; this.ended = this.starved = this.told = false; this.blocks = 0; }

  process(_inputs, outputs) {
    const out = outputs[0][0];
    let filled = 0;
    while (filled < out.length && this.parts.length) {
      const part = this.parts[0];
      const count = Math.min(out.length - filled, part.length - this.offset);
      out.set(part.subarray(this.offset, this.offset + count), filled);
      filled += count;
      this.offset += count;
      if (this.offset === part.length) { this.parts.shift(); this.offset = 0; }
    }
    this.played += filled;
    const isStarved = filled < out.length && this.played > 0 && !this.ended;
    if (isStarved && !this.starved) this.gaps += 1;
    this.starved = isStarved;
    const isOver = this.ended && !this.parts.length;
    // Sixteen blocks are 85 ms at 24 kHz: often enough for the line in the waveform.
    if (++this.blocks % 16 === 0 || (isOver && !this.told)) this.port.postMessage({ played: this.played, gaps: this.gaps, isOver });
    this.told = isOver;
    return true;
  }
}
registerProcessor("queue", Queue);
