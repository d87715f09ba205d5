"""Speak the sounds of docs/speech.md with the voice in the box, on a server of its own.

python scripts/speech_samples.py docs/speech
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout that is not installed, too
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "client"))

import soundfile

from benching.arguments import HelpFormatter
from benching.server import running_server
from qwen3_tts_client import Client
from qwen3_tts_client.words import write_words
from voice_in_the_box import VOICE_IN_THE_BOX

SAMPLES: dict[str, dict[str, Any]] = {
    "long_form": {
        "text": "Good morning. My brother has two dogs and a very small cat. The cat sleeps in the garden.\n\n"
        "There is a small penguin in the window. It looks at the red car behind the house.",
        "long_form": True,
    },
    "ssml": {
        "text": '<speak><s>There is a small penguin in the window.</s><break time="700ms"/>'
        '<prosody rate="slow"><s>There is a small penguin in the window.</s></prosody>'
        '<prosody rate="fast" volume="soft"><s>There is a small penguin in the window.</s></prosody></speak>',
        "text_format": "ssml",
    },
    "dialogue": {
        "text": '[{"voice": "ada", "text": "Good morning."}, {"voice": "ben", "text": "Good morning.", "pause_ms": 300}, '
        '{"voice": "ada", "text": "There is a small penguin in the window.", "pause_ms": 400}]',
        "text_format": "dialogue",
    },
    "lexicon": {"text": "There is a small pgn in the win.", "lexicon": {"pgn": "penguin", "win": "window"}},
    "telephone": {
        "text": "Good morning. There is a small penguin in the window.",
        "audio_format": "mulaw",
        "sample_rate": 8000,
        "trim_silence": True,
    },
    "timestamps": {"text": "My brother has two dogs and a very small cat.", "timestamps": "word"},
    "blend": {"text": "There is a small penguin in the window.", "voice": "ada:0.75+ben:0.25"},
}


def main() -> None:
    """Write a file for each sample, and subtitles for the one with timestamps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=HelpFormatter)
    parser.add_argument("folder", type=Path, help="for the sounds; docs/speech has them")
    folder = parser.parse_args().folder
    with (
        running_server(VOICE_IN_THE_BOX, {"device": "cpu"}, mps=False, log_file=None) as (server, _),
        Client(f"localhost:{server.grpc_port}") as client,
    ):
        for name, request in SAMPLES.items():
            options = {key: value for key, value in request.items() if key != "text"}
            speech = client.synthesize(request["text"], sampling={"seed": 7}, **options)
            soundfile.write(folder / f"{name}.ogg", speech.audio, speech.sample_rate)
            print(f"{name}: {speech.seconds:.1f} s, {speech.finish_reason}", flush=True)
            if speech.words:
                write_words(folder / f"{name}.srt", speech.words, request["text"])


if __name__ == "__main__":
    main()
