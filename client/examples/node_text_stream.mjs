// Words in, audio out on one WebSocket, as an agent needs it (Node.js 22 or newer; 20 with
// --experimental-websocket):
//   node client/examples/node_text_stream.mjs [OUT.pcm [ws://HOST:PORT]]
import { createWriteStream } from "node:fs";

if (typeof WebSocket === "undefined") throw new Error("needs Node.js 22, or 20 with --experimental-websocket");
const [path = "hello.pcm", base = "ws://localhost:8880"] = process.argv.slice(2);
const file = createWriteStream(path);
const socket = new WebSocket(`${base}/v1/audio/speech/stream`);
socket.binaryType = "arraybuffer";
const send = (event) => socket.send(JSON.stringify(event));
socket.onopen = async () => {
  send({ type: "session.config", voice: "alloy", response_format: "pcm" });
  for (const word of "There is a small penguin in the window.".split(/(?<= )/)) {
    send({ type: "input.text", text: word });
    await new Promise((resolve) => setTimeout(resolve, 30));
  }
  send({ type: "input.done" });
};
socket.onmessage = ({ data }) => {
  if (typeof data !== "string") { file.write(new Uint8Array(data)); return; }
  const event = JSON.parse(data);
  console.log(event.type, event.error?.message ?? "");
  if (event.type === "error") process.exitCode = 1;
  if (["session.done", "error"].includes(event.type)) socket.close();
};
socket.onerror = () => {
  console.error(`no gateway answers at ${base}`);
  process.exitCode = 1;
};
socket.onclose = () => file.end();
