"""The training corpus: sentences, their prompts in both layouts, and their sound.

All cores of the machine render it. Each worker process renders its own seeds into one file of flat arrays; `load` puts all of them
on the training device.
"""

from __future__ import annotations

import multiprocessing
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
import numpy.typing as npt
import torch

from engine_lib.checkpoint import Checkpoint
from engine_lib.prompt import Prompt, PromptBuilder
from voice_in_the_box.sentences import MAX_CHARACTERS, Sentences
from voice_in_the_box.speech import SAMPLE_RATE, SAMPLES_PER_FRAME, SPEAKERS, Espeak

Ints = npt.NDArray[np.int64]

SHARD_SECONDS = 1200.0
LAYOUTS = (True, False)  # non_streaming_mode
ENGLISH_SHARE = 0.7  # of the prompts name English; the others say auto
MAX_SECONDS = 14.0


@dataclass
class Corpus:
    """Utterances one after the other; each has a prompt in every layout. All tensors are on one device; lengths are on the host.

    Attributes:
        audio: [samples] int16.
        frames: [utterances] frames of each.
        prompt_rows: [utterances, layouts] rows of each prompt.
        row_text, row_code: [rows] int16: text id and codebook-0 id (NO_ID if none) of each input row: for every utterance and
            layout its prompt, then one row per frame; a frame's code is not known before the codec is trained.
    """

    audio: torch.Tensor
    frames: Ints
    prompt_rows: Ints
    row_text: torch.Tensor
    row_code: torch.Tensor

    @property
    def hours(self) -> float:
        """Length of the audio."""
        return len(self.audio) / SAMPLE_RATE / 3600

    @property
    def frame_starts(self) -> Ints:
        """[utterances] index of the first frame of each."""
        starts: Ints = np.cumsum(self.frames) - self.frames
        return starts

    @property
    def row_starts(self) -> Ints:
        """[utterances, layouts] index of the first input row of each."""
        rows = (self.prompt_rows + self.frames[:, None]).ravel()
        starts: Ints = (np.cumsum(rows) - rows).reshape(self.prompt_rows.shape)
        return starts


def render(folder: Path, checkpoint: Path, hours: float, seed: int, processes: int) -> None:
    """Render at least `hours` of speech into shards in `folder`. Call it before CUDA starts, because the workers are forked."""
    folder.mkdir(parents=True, exist_ok=True)
    prompts = PromptBuilder(Checkpoint(checkpoint), max_text_length=MAX_CHARACTERS)
    count = max(processes, round(hours * 3600 / SHARD_SECONDS))
    seconds = hours * 3600 / count
    jobs = [(folder / f"{seed + i}.npz", prompts, seed + i, seconds) for i in range(count)]
    if processes == 1:
        for job in jobs:
            _render_shard(job)
        return
    with multiprocessing.get_context("fork").Pool(processes) as pool:
        pool.map(_render_shard, jobs, chunksize=1)


def _render_shard(job: tuple[Path, PromptBuilder, int, float]) -> None:
    file, prompts, seed, seconds = job
    sentences, random, espeak = iter(Sentences(seed)), Random(seed), Espeak()
    audio, frames, prompt_rows, row_text, row_code = [], [], [], [], []
    total = 0
    while total < seconds * SAMPLE_RATE:
        text, speaker = next(sentences), random.choice(list(SPEAKERS))
        samples = espeak.speak(text, speaker)
        if len(samples) > MAX_SECONDS * SAMPLE_RATE:
            continue
        total += len(samples)
        audio.append((samples * 32767).astype(np.int16))
        frames.append(len(samples) // SAMPLES_PER_FRAME)
        for layout in LAYOUTS:
            language = "english" if random.random() < ENGLISH_SHARE else "auto"
            prompt = prompts.build(text=text, voice=speaker, language=language, non_streaming_mode=layout)
            texts, codes = input_rows(prompt, frames[-1], prompts.config.tts_pad_token_id)
            prompt_rows.append(len(prompt))
            row_text.append(texts)
            row_code.append(codes)
    np.savez(
        file,
        audio=np.concatenate(audio),
        frames=np.array(frames, np.int64),
        prompt_rows=np.array(prompt_rows, np.int64).reshape(-1, len(LAYOUTS)),
        row_text=np.concatenate(row_text),
        row_code=np.concatenate(row_code),
    )


def input_rows(prompt: Prompt, frames: int, pad: int) -> tuple[Ints, Ints]:
    """Text ids and codebook-0 ids of the prompt's rows and of the rows that feed its `frames` frames back, [rows] int16 each."""
    trailing = np.full(frames, pad)
    trailing[: len(prompt.trailing_text_ids)] = prompt.trailing_text_ids[:frames]
    texts = np.concatenate([prompt.text_ids, trailing]).astype(np.int16)
    codes = np.concatenate([prompt.codes[:, 0], np.full(frames, -1)]).astype(np.int16)
    return texts, codes


def load(folder: Path, device: torch.device) -> Corpus:
    """Read all shards of `folder` and delete them, because they are large and can be rendered again in seconds."""
    parts: list[dict[str, Ints]] = []
    audio = []
    for file in sorted(folder.glob("*.npz")):
        with np.load(file) as shard:
            audio.append(torch.from_numpy(shard["audio"]).to(device))
            parts.append({name: shard[name] for name in ("frames", "prompt_rows", "row_text", "row_code")})
        file.unlink()
    frames, prompt_rows, row_text, row_code = (np.concatenate([part[name] for part in parts]) for name in parts[0])
    return Corpus(torch.cat(audio), frames, prompt_rows, torch.from_numpy(row_text).to(device), torch.from_numpy(row_code).to(device))
