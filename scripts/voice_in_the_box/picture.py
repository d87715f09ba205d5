"""Speak a sentence with the voice in the box, and draw it above the same from its teacher, espeak-ng.

    python scripts/voice_in_the_box/picture.py CHECKPOINT docs/voice_in_the_box.png docs/voice_in_the_box.wav

Each has its waveform and its log-mel spectrogram; all share one time axis. The audio file contains only the checkpoint's speech.
The checkpoint speaks in this process, on the CPU; the same seed gives the same picture.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import soundfile
import torch
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # runs from a checkout that is not installed, too
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benching.arguments import HelpFormatter
from engine_lib.api.qwen3_tts import Qwen3TTS
from voice_in_the_box.codec_model import MEL_HOP, LogMel
from voice_in_the_box.speech import SAMPLE_RATE, SPEAKERS, Audio, Espeak

TEXT = "Good morning! There is a small penguin in the window."  # training never sees it; see sentences.is_held_out
DECIBELS = 20 / np.log(10)  # per unit of the natural logarithm of a magnitude
RANGE = 70  # decibels that are drawn, down from the loudest
TICKS = {0.5: "0.5", 1: "1", 2: "2", 4: "4", 8: "8"}  # kHz


def draw(text: str, sounds: dict[str, Audio], path: Path) -> None:
    """Draw `sounds`, by title, into `path`."""
    log_mel = LogMel()
    mel_of = torch.argmax(log_mel.filters, dim=0).numpy() * SAMPLE_RATE / 2000 / (len(log_mel.filters) - 1)  # kHz of each filter's peak
    seconds = max(map(len, sounds.values())) / SAMPLE_RATE
    figure = Figure(figsize=(8, 5), layout="constrained")
    rows = figure.subplots(2 * len(sounds), 1, sharex=True, height_ratios=[1, 2] * len(sounds))
    for (title, audio), wave, mel in zip(sounds.items(), rows[::2], rows[1::2], strict=True):
        wave.plot(np.arange(len(audio)) / SAMPLE_RATE, audio, color="#24527a", linewidth=0.4)
        wave.set(ylim=(-1, 1), yticks=[])
        wave.set_title(title, loc="left", fontsize=10)
        loudness = log_mel(torch.from_numpy(audio)[None])[0].numpy() * DECIBELS
        extent = (0, loudness.shape[1] * MEL_HOP / SAMPLE_RATE, -0.5, len(loudness) - 0.5)
        top = float(loudness.max())
        mel.imshow(
            loudness, origin="lower", aspect="auto", extent=extent, cmap="magma", vmin=top - RANGE, vmax=top, interpolation="nearest"
        )
        mel.set(yticks=np.interp(list(TICKS), mel_of, np.arange(len(mel_of))), yticklabels=TICKS.values(), ylabel="kHz, mel scale")
    rows[-1].set(xlim=(0, seconds), xlabel="seconds")
    figure.suptitle(f"“{text}”", fontsize=12)
    figure.savefig(path, dpi=100)


def main() -> None:
    """Read the command line, speak, draw, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="folder written by train.py, or the shipped one")
    parser.add_argument("picture", type=Path, metavar="PICTURE", help="image to write; .png, .svg or .pdf")
    parser.add_argument("audio", type=Path, metavar="AUDIO", help="sound to write, 24 kHz, 16 bits; .wav or .flac")
    parser.add_argument("--text", default=TEXT, help=f"text to speak (default: {TEXT})")
    parser.add_argument("--speaker", choices=SPEAKERS, default="ada", help="speaker (default: ada)")
    parser.add_argument("--seed", type=int, default=1, help="seed of sampling; another one sounds a little different (default: 1)")
    arguments = parser.parse_args()
    text, speaker = arguments.text, arguments.speaker
    with Qwen3TTS.from_pretrained(arguments.checkpoint, device="cpu", max_num_seqs=1) as tts:
        [spoken], _ = tts.generate_custom_voice(text, speaker, "english", seed=arguments.seed)
    sounds = {f"the voice in the box, speaker {speaker}": spoken, "espeak-ng, its teacher": Espeak().speak(text, speaker)}
    draw(text, sounds, arguments.picture)
    soundfile.write(arguments.audio, spoken, SAMPLE_RATE, subtype="PCM_16")
    kilobytes = arguments.audio.stat().st_size / 1000
    print(f"{len(spoken) / SAMPLE_RATE:.2f} s in {arguments.audio} ({kilobytes:.0f} kB), drawn in {arguments.picture}")


if __name__ == "__main__":
    main()
