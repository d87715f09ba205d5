// Speak from Node.js 18 or newer, raw PCM as it comes: node client/examples/node.mjs [OUT.pcm [BASE_URL]]
// To hear it: ffplay -f s16le -ar 24000 hello.pcm
import { createWriteStream } from "node:fs";

const [path = "hello.pcm", base = "http://localhost:8880/v1"] = process.argv.slice(2);
const start = performance.now();
const response = await fetch(`${base}/audio/speech`, {
  method: "POST",
  headers: { "Content-Type": "application/json" },
  body: JSON.stringify({ model: "qwen3-tts", voice: "alloy", input: "Nice to meet you.", response_format: "pcm" }),
});
if (!response.ok) throw new Error((await response.json()).error.message);
const file = createWriteStream(path); // 16 bit, mono, 24 kHz
let bytes = 0;
for await (const part of response.body) {
  if (!bytes) console.log(`first audio after ${Math.round(performance.now() - start)} ms`);
  bytes += part.length;
  file.write(part);
}
file.end(() => console.log(`${(bytes / 48000).toFixed(2)} s of audio`));
