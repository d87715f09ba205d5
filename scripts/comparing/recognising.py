"""What was said, and by whom: a command or a model that the user names listens to files of sound."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile
import soxr
import torch

from engine_lib.checkpoint import Checkpoint
from engine_lib.voices.speaker_encoder import SAMPLE_RATE, SpeakerEncoder

ONE, ALL = "{file}", "{files}"
Embedding = npt.NDArray[np.float64]
Hear = Callable[[Sequence[Path]], list[str]]
Embed = Callable[[Sequence[Path]], list[Embedding]]


def recogniser(name: str, device: str) -> Hear:
    """A recogniser that gives the words of each file.

    Args:
        name: a command with {file} or {files} in it, or else a model for transformers' pipeline "automatic-speech-recognition".
        device: of that pipeline.
    """
    if ONE in name or ALL in name:
        return lambda files: run(name, files)
    from transformers import pipeline

    model = pipeline("automatic-speech-recognition", model=name, device=None if device == "auto" else device)
    rate = model.feature_extractor.sampling_rate

    def hear(files: Sequence[Path]) -> list[str]:
        return [str(model({"raw": _samples(file, rate), "sampling_rate": rate})["text"]) for file in files]

    return hear


def embedder(command: str | None, checkpoint: Path) -> Embed | None:
    """What gives a vector for the speaker of each file: a command, else the speaker encoder of a base checkpoint; None if it has none."""
    if command is not None:
        return lambda files: [_vector(line) for line in run(command, files)]
    read = Checkpoint(checkpoint)
    if read.config.speaker_encoder is None:
        return None
    encoder = SpeakerEncoder(read.weights(), read.config.speaker_encoder, device=torch.device("cpu"))

    @torch.inference_mode()
    def embed(files: Sequence[Path]) -> list[Embedding]:
        return [encoder([torch.from_numpy(_samples(file, SAMPLE_RATE))])[0].double().numpy() for file in files]

    return embed


def run(command: str, files: Sequence[Path]) -> list[str]:
    """The output of a command about each file.

    Args:
        command: with {file}: it is run for each file, and its whole output belongs to that; with {files}: it is run once with all of
            them, and prints a line for each, in their order.

    Raises:
        ValueError: it cannot be run, fails, or prints another number of lines.
    """
    parts = shlex.split(command)
    if ALL in parts:
        at = parts.index(ALL)
        lines = _output([*parts[:at], *map(str, files), *parts[at + 1 :]]).splitlines()
        if len(lines) != len(files):
            raise ValueError(f"{parts[0]} printed {len(lines)} lines about {len(files)} files; it must print one for each")
        return lines
    if not any(ONE in part for part in parts):
        raise ValueError(f"{command!r} names no {ONE} and no {ALL} of its own")
    return [" ".join(_output([part.replace(ONE, str(file)) for part in parts]).split()) for file in files]


def _output(arguments: list[str]) -> str:
    try:
        done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    except OSError as error:
        raise ValueError(f"{arguments[0]} cannot be run: {error.strerror or error}") from None
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it printed no error"])[-1]
        raise ValueError(f"{arguments[0]} ended with {done.returncode}: {last}")
    return done.stdout


def _vector(line: str) -> Embedding:
    numbers = re.findall(r"-?\d[\d.]*(?:[eE][+-]?\d+)?", line)
    if len(numbers) < 2:
        raise ValueError(f"{line[:60]!r} is no vector; print the numbers of the speaker's embedding, as 0.1 -0.2 0.3")
    return np.array(numbers, np.float64)


def _samples(file: Path, rate: int) -> npt.NDArray[np.float32]:
    samples, found = soundfile.read(file, dtype="float32", always_2d=True)
    mono = np.ascontiguousarray(samples.mean(1))
    return mono if found == rate else np.asarray(soxr.resample(mono, found, rate), np.float32)
