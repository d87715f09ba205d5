// Player: sound that is played while it arrives, without a gap between its pieces.

export class Player {
  /** @param {(at: {played: number, gaps: number, isOver: boolean}) => void} onPosition called with samples played since start() */
  constructor(onPosition) { this.onPosition = onPosition; }

  /** Make the audio output ready. Browsers allow it only in answer to a click or a key. */
  async open(sampleRate) {
    if (this.context?.sampleRate === sampleRate) { await this.context.resume(); return; }
    await this.context?.close();
    this.context = new AudioContext({ sampleRate, latencyHint: "interactive" });
    // Without HTTPS, and away from localhost, browsers have no worklet. Pieces are then scheduled one behind the other.
    this.output = this.context.audioWorklet ? await workletOutput(this.context) : scheduledOutput(this.context);
    this.output.onPosition = (at) => this.onPosition(at);
    await this.context.resume();
  }

  start() { this.output.clear(); this.isOpen = true; }
  push(samples) { if (this.isOpen && samples.length) this.output.push(samples); }
  end() { if (this.isOpen) this.output.end(); }
  stop() { this.isOpen = false; this.output?.clear(); }
}

async function workletOutput(context) {
  await context.audioWorklet.addModule(new URL("player-worklet.js", import.meta.url));
  const node = new AudioWorkletNode(context, "queue", { numberOfInputs: 0, outputChannelCount: [1] });
  node.connect(context.destination);
  const output = {
    push: (samples) => node.port.postMessage({ samples }),
    end: () => node.port.postMessage({ ended: true }),
    clear: () => node.port.postMessage({ clear: true }),
    onPosition: () => {},
  };
  node.port.onmessage = ({ data }) => output.onPosition(data);
  return output;
}

function scheduledOutput(context) {
  let sources = [], next = 0, pushed = 0, gaps = 0, timer = 0, isEnded = false;
  const output = { onPosition: () => {} };
  output.clear = () => {
    clearInterval(timer);
    for (const source of sources) source.stop();
    sources = []; next = pushed = gaps = 0; isEnded = false;
    timer = setInterval(() => {
      if (!pushed) return;
      const played = Math.max(0, pushed - Math.round(Math.max(0, next - context.currentTime) * context.sampleRate));
      const isOver = isEnded && context.currentTime >= next;
      output.onPosition({ played, gaps, isOver });
      if (isOver) clearInterval(timer);
    }, 80);
  };
  output.push = (samples) => {
    const buffer = context.createBuffer(1, samples.length, context.sampleRate);
    buffer.copyToChannel(samples, 0);
    const source = context.createBufferSource();
    source.buffer = buffer;
    source.connect(context.destination);
    if (next < context.currentTime) { if (pushed) gaps += 1; next = context.currentTime + 0.02; }
    source.start(next);
    next += buffer.duration;
    pushed += samples.length;
    sources.push(source);
  };
  output.end = () => { isEnded = true; };
  return output;
}
