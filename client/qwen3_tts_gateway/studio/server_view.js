// The live view of the server: is it ready, how many streams, how soon they are heard.
import { getJson } from "./api.js";

const SECOND = 1000;
const element = (id) => document.getElementById(id);

/** Ask the gateway again and again while the page is visible; `onReady` is called each time the server becomes ready. */
export function watchServer(onReady) {
  let wasReady = false, timer = null;
  async function look() {
    let status = null;
    if (!document.hidden) {
      try { status = await getJson("v1/studio/status"); } catch (error) { status = { ready: false, reason: error.status === 401 ? "a key is needed" : "gateway not reached" }; }
      show(status);
      if (status.ready && !wasReady) onReady();
      wasReady = status.ready;
    }
    timer = setTimeout(look, status && !status.ready ? 3 * SECOND : SECOND);
  }
  look();
  addEventListener("keychange", () => { clearTimeout(timer); look(); });
}

function show(status) {
  const health = element("health");
  health.className = `health ${status.ready ? "ready" : "down"}`;
  const text = status.ready ? "ready" : status.reason || "not ready";
  // A live region speaks when its text changes, so it is set only then.
  if (element("health-text").textContent !== text) element("health-text").textContent = text;
  element("streams").textContent = status.streams ?? "–";
  element("waiting").textContent = status.waiting ?? "–";
  if (status.first_audio) showHistogram(status.first_audio);
}

/** @param {{bounds: number[], counts: number[]}} histogram bounds in seconds; counts has one more, above the last bound */
function showHistogram({ bounds, counts }) {
  const total = counts.reduce((sum, count) => sum + count, 0);
  element("histogram-count").textContent = total ? `· ${total}` : "";
  if (!total) return;
  const first = counts.findIndex((count) => count), last = counts.length - 1 - [...counts].reverse().findIndex((count) => count);
  const from = Math.max(0, first - 2), to = Math.min(counts.length - 1, last + 2), most = Math.max(...counts);
  const bars = counts.slice(from, to + 1).map((count, i) => {
    const bar = document.createElement("i");
    bar.style.height = count ? `${Math.max(3, (100 * count) / most)}%` : "0";
    bar.title = `${range(bounds, from + i)}: ${count}`;
    return bar;
  });
  element("histogram").replaceChildren(...bars);
  element("histogram-text").textContent = `half within ${quantile(bounds, counts, total, 0.5)}, 95 % within ${quantile(bounds, counts, total, 0.95)}`;
}

const milliseconds = (seconds) => (seconds < 1 ? `${Math.round(seconds * 1000)} ms` : `${seconds.toFixed(1)} s`);
const range = (bounds, i) => (i < bounds.length ? `up to ${milliseconds(bounds[i])}` : `above ${milliseconds(bounds.at(-1))}`);

function quantile(bounds, counts, total, share) {
  let below = 0;
  for (let i = 0; i < counts.length; i += 1) {
    below += counts[i];
    if (below >= share * total) return i < bounds.length ? milliseconds(bounds[i]) : `over ${milliseconds(bounds.at(-1))}`;
  }
  return "–";
}
