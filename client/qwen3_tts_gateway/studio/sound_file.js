// Sound files made and read in the browser: WAV for downloads and references, any format for uploads.

/** Float32Array pieces, mono -> Blob of a 16-bit WAV file. */
export function wavFile(parts, sampleRate) {
  const count = parts.reduce((sum, part) => sum + part.length, 0);
  const bytes = new ArrayBuffer(44 + 2 * count), view = new DataView(bytes);
  const word = (at, text) => [...text].forEach((letter, i) => view.setUint8(at + i, letter.charCodeAt(0)));
  word(0, "RIFF"); view.setUint32(4, 36 + 2 * count, true); word(8, "WAVEfmt ");
  view.setUint32(16, 16, true); view.setUint16(20, 1, true); view.setUint16(22, 1, true);
  view.setUint32(24, sampleRate, true); view.setUint32(28, 2 * sampleRate, true); view.setUint16(32, 2, true); view.setUint16(34, 16, true);
  word(36, "data"); view.setUint32(40, 2 * count, true);
  let at = 44;
  for (const part of parts) for (const sample of part) { view.setInt16(at, Math.max(-32768, Math.min(32767, Math.round(sample * 32768))), true); at += 2; }
  return new Blob([bytes], { type: "audio/wav" });
}

/** A recording in any format that the browser reads -> {file: WAV Blob, mono at 24 kHz, seconds}. */
export async function reference(blob) {
  const context = new OfflineAudioContext(1, 1, 24000);
  let decoded;
  try {
    decoded = await context.decodeAudioData(await blob.arrayBuffer());
  } catch {
    throw new Error("this file is no sound that the browser can read; try WAV or MP3");
  }
  const channels = Array.from({ length: decoded.numberOfChannels }, (_, i) => decoded.getChannelData(i));
  const mono = channels[0].map((_, i) => channels.reduce((sum, channel) => sum + channel[i], 0) / channels.length);
  return { file: wavFile([mono], decoded.sampleRate), seconds: decoded.duration };
}

export async function base64(blob) {
  const bytes = new Uint8Array(await blob.arrayBuffer());
  let text = "";
  for (let i = 0; i < bytes.length; i += 32768) text += String.fromCharCode(...bytes.subarray(i, i + 32768));
  return btoa(text);
}

export function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}
