"""Speech with known word times: what the heads of a talker are judged by."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from engine_lib.api.qwen3_tts import Qwen3TTS
from engine_lib.speech.words import word_spans

Codes = npt.NDArray[np.int16]
SPOKEN_FILE = "spoken.jsonl"
TOGETHER = 8  # texts that are spoken at a time


@dataclass
class Spoken:
    """One text that the checkpoint has spoken.

    Attributes:
        fields: of PromptBuilder.build: text, voice, language, instruct, non_streaming_mode.
        codes: [frames, num_code_groups].
        audio: [samples] float32.
        starts: index in the text of each word whose time is known, and the second at which it begins.
    """

    fields: dict[str, Any]
    codes: Codes
    audio: npt.NDArray[np.float32]
    starts: list[tuple[int, float]] = field(default_factory=list)


def speak(tts: Qwen3TTS, texts: Sequence[str], voices: Iterable[str | None], fields: dict[str, Any], layout: bool) -> list[Spoken]:
    """Speak all texts in one layout (non_streaming_mode), each with the next of `voices`; `fields`: language and instruct."""
    spoken, named = [], list(zip(texts, cycle(voices), strict=False))
    kind = tts.checkpoint.config.kind
    with tqdm(total=len(named), desc=f"speaking, {'text in the prompt' if layout else 'text fed'}", unit="text", disable=None) as progress:
        for first in range(0, len(named), TOGETHER):
            part = named[first : first + TOGETHER]
            arguments = {name: [value] * len(part) for name, value in fields.items() if value is not None}
            if kind == "custom_voice":
                arguments["speaker"] = [voice or "" for _, voice in part]
            codes = tts.generate_codes([text for text, _ in part], **arguments, non_streaming_mode=layout, seed=first)
            audio, _ = tts.decode(list(codes))
            for (text, voice), its_codes, its_audio in zip(part, codes, audio, strict=True):
                whole = {"text": text, "voice": voice if kind == "custom_voice" else None, "non_streaming_mode": layout} | fields
                spoken.append(Spoken(whole, its_codes, its_audio))
            progress.update(len(part))
    return spoken


def write_spoken(folder: Path, spoken: Sequence[Spoken], sample_rate: int) -> Path:
    """Write each as NNNN.wav and NNNN.npy (its codes), and a JSONL file that a recogniser's times are added to; returns that file."""
    import soundfile

    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for number, one in enumerate(spoken):
        soundfile.write(folder / f"{number:04}.wav", one.audio, sample_rate)
        np.save(folder / f"{number:04}.npy", one.codes)
        lines.append(json.dumps({"audio": f"{number:04}.wav", **one.fields, "words": None}, ensure_ascii=False))
    file = folder / SPOKEN_FILE
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


def read_timed(file: Path) -> list[Spoken]:
    """What `write_spoken` has written, once `words` of each line is a list of {"word", "start"} of a recogniser.

    Raises:
        ValueError: a line is not one of these; the message says which.
    """
    spoken = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        try:
            values = json.loads(line)
            name, words = values.pop("audio"), values.pop("words")
            heard = [(str(word["word"]), float(word["start"])) for word in words]
            codes = np.load(file.parent / Path(name).with_suffix(".npy"))
        except (KeyError, TypeError, ValueError, OSError) as error:
            raise ValueError(f"{file}, line {number}: {type(error).__name__}: {error}") from None
        spoken.append(Spoken(values, codes, np.zeros(0, np.float32), matched(values["text"], heard)))
    return spoken


def matched(text: str, heard: Sequence[tuple[str, float]]) -> list[tuple[int, float]]:
    """Index in `text` and start of the words that a recogniser has heard as they are written, letter case and punctuation aside."""
    spans = word_spans(text)
    ours, theirs = [_plain(text[start:end]) for start, end in spans], [_plain(word) for word, _ in heard]
    pairs = []
    for block in SequenceMatcher(None, ours, theirs, autojunk=False).get_matching_blocks():
        pairs += [(spans[block.a + i][0], heard[block.b + i][1]) for i in range(block.size)]
    return pairs


def _plain(word: str) -> str:
    return "".join(character for character in word.casefold() if character.isalnum())
