"""What is spoken in a soak, and the rule by which each stream is compared with its solo run.

Streams are greedy: then the codes of a float32 server are the same in any batch, and samples differ by rounding alone, because the
codec's sums have another order in another cohort. In bfloat16 a batch moves codes, so there only the form of a stream is compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt

from qwen3_tts_client import AsyncClient
from qwen3_tts_client.load.texts import LONGEST, random_turns
from qwen3_tts_client.protocol import AudioChunk

GREEDY = {"do_sample": False, "subtalker_dosample": False}
SAMPLES_PER_FRAME, SAMPLE_RATE = 1920, 24_000
AUDIO, FORM = "audio", "form"  # what is compared


@dataclass(frozen=True)
class Utterance:
    """A request: its text and its sampling parameters."""

    text: str
    sampling: dict[str, Any]


@dataclass(frozen=True)
class Spoken:
    """A stream that has ended.

    Attributes:
        audio: all samples, float32.
        sizes: samples of each chunk.
    """

    audio: npt.NDArray[np.float32]
    sizes: tuple[int, ...]
    finish_reason: str


def utterances(count: int, seed: int, most_frames: int = LONGEST) -> list[Utterance]:
    """Texts of the length of spoken turns, 8 to 250 frames; of these the ones with at most `most_frames`."""
    turns = (Utterance(text, {**(options.get("sampling") or {}), **GREEDY}) for text, options in random_turns(np.random.default_rng(seed)))
    return list(islice((turn for turn in turns if turn.sampling["max_frames"] <= most_frames), count))


def joined(chunks: Sequence[AudioChunk]) -> Spoken:
    """The stream of these chunks.

    Raises:
        ValueError: they are not in order, or the last one is not the final one.
    """
    if [chunk.index for chunk in chunks] != list(range(len(chunks))):
        raise ValueError(f"chunks came in the order {[chunk.index for chunk in chunks]}")
    if [chunk.is_final for chunk in chunks] != [False] * (len(chunks) - 1) + [True]:
        raise ValueError("the final chunk is missing or is not the last one")
    audio = np.concatenate([chunk.audio for chunk in chunks])
    return Spoken(audio, tuple(len(chunk.audio) for chunk in chunks), chunks[-1].finish_reason)


async def speak_alone(client: AsyncClient, voice: str | None, utterance: Utterance) -> Spoken:
    """The solo run of an utterance."""
    async with aclosing(client.stream(utterance.text, voice=voice, sampling=utterance.sampling)) as stream:
        return joined([chunk async for chunk in stream])


@dataclass(frozen=True)
class Rule:
    """How a stream must resemble its solo run.

    Attributes:
        compared: AUDIO: chunks, reason and samples, within `tolerance`. FORM: a reason of a whole stream, and with `length` as many
            samples as were asked for.
    """

    compared: str
    tolerance: float

    def fault(self, utterance: Utterance, solo: Spoken, spoken: Spoken) -> str:
        """What is wrong with `spoken`; "" if nothing is."""
        if not np.isfinite(spoken.audio).all():
            return "samples that are no numbers"
        if self.compared == FORM:
            expected = utterance.sampling["max_frames"] * SAMPLES_PER_FRAME
            if spoken.finish_reason == "length" and len(spoken.audio) != expected:
                return f"{len(spoken.audio)} samples, not {expected}"
            return "" if spoken.finish_reason in ("length", "stop") else f"it ended with {spoken.finish_reason}"
        if (spoken.finish_reason, spoken.sizes) != (solo.finish_reason, solo.sizes):
            return (
                f"{spoken.finish_reason} after {len(spoken.audio)} samples in {len(spoken.sizes)} chunks; "
                f"alone {solo.finish_reason} after {len(solo.audio)} in {len(solo.sizes)}"
            )
        apart = np.abs(spoken.audio - solo.audio)
        if apart.max(initial=0.0) <= self.tolerance:
            return ""
        return f"samples differ by {apart.max():.1e}, from frame {int(np.argmax(apart > self.tolerance)) // SAMPLES_PER_FRAME} on"


def difference(solo: Spoken, spoken: Spoken) -> float | None:
    """The largest difference of two samples; None if the streams have other lengths."""
    if len(solo.audio) != len(spoken.audio):
        return None
    return float(np.abs(solo.audio - spoken.audio).max(initial=0.0))
