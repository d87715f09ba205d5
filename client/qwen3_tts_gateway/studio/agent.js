// A text fed word by word, as a language model writes it.

/** Yields the words of `text` with their spaces, `pace()` a second; `onWord(count)` has the letters sent so far. */
export async function* words(text, pace, onWord, signal) {
  let sent = 0;
  for (const word of text.match(/\s*\S+\s*$|\s*\S+/g) || []) {
    if (signal.aborted) return;
    sent += word.length;
    onWord(sent);
    yield word;
    await new Promise((resolve) => { setTimeout(resolve, 1000 / pace()); });
  }
}
