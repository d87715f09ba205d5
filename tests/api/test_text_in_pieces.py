"""Streams of a process that speak an iterator of text."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from random_voices import random_voice

from api.loading import GREEDY, is_idle, load
from engine_lib.api.qwen3_tts import Qwen3TTS
from engine_lib.errors import InvalidRequestError, Qwen3TTSError
from patience import PATIENCE, eventually

WORDS = ["Good ", "mor", "ning, ", "", "every", "one.", " 你", "好"]
TEXT = "".join(WORDS)
SHORT: dict[str, Any] = GREEDY | {"max_new_tokens": 21}


def joined(stream: Any) -> Any:
    return np.concatenate([chunk.audio for chunk in stream])


def test_pieces_are_spoken_as_the_whole_text_by_every_kind(
    tts: Qwen3TTS, tiny_base: Path, tiny_voice_design: Path, request: pytest.FixtureRequest
):
    whole, _ = tts.generate_custom_voice(TEXT, "ryan", non_streaming_mode=False, **SHORT)
    chunks = list(tts.stream_custom_voice(iter(WORDS), "ryan", **SHORT))
    np.testing.assert_allclose(joined(chunks), whole[0], atol=1e-5, rtol=0)
    assert chunks[-1].samples_sent == len(whole[0])
    with load(tiny_voice_design) as design:
        whole, _ = design.generate_voice_design(TEXT, "A low voice.", non_streaming_mode=False, **SHORT)
        np.testing.assert_allclose(joined(design.stream_voice_design(iter(WORDS), "A low voice.", **SHORT)), whole[0], atol=1e-5, rtol=0)
    with load(tiny_base) as base:
        for frames in (None, 30):  # in context, the text lies over the frames of the reference
            voice = random_voice(base.checkpoint.config, 1, frames)
            whole, _ = base.generate_voice_clone(TEXT, voice_clone_prompt=voice, **SHORT)
            streamed = joined(base.stream_voice_clone(iter(WORDS), voice_clone_prompt=voice, **SHORT))
            np.testing.assert_allclose(streamed, whole[0], atol=1e-5, rtol=0)


def test_a_cancel_ends_a_stream_that_waits_for_text_and_says_what_was_sent(endless: Path):
    stop = threading.Event()

    def words() -> Iterator[str]:
        yield "Good morning, "
        stop.wait(PATIENCE)

    with load(endless) as tts:
        stream = tts.stream_custom_voice(words(), "ryan", chunk_frames=[1])
        chunks = [next(stream)]
        eventually(lambda: tts._talker.stats().starving == 1, "it waits for text")
        stream.cancel()
        chunks += stream
        assert (chunks[-1].finish_reason, chunks[-1].samples_sent) == ("cancelled", len(joined(chunks)))
        stop.set()
        eventually(lambda: is_idle(tts), "both engines are idle")


def test_what_the_iterator_raises_reaches_the_reader(endless: Path):
    def words() -> Iterator[str]:
        yield "Good "
        raise LookupError("no more words")

    with load(endless) as tts:
        with pytest.raises(LookupError, match="no more words"):
            list(tts.stream_custom_voice(words(), "ryan"))
        for pieces, problem in ((["", "\n"], "text: is empty"), (["a" * 3000] * 2, "text: has 6000"), ([7], "text: is a int")):
            with pytest.raises(InvalidRequestError, match=problem):
                list(tts.stream_custom_voice(iter(pieces), "ryan"))  # type: ignore[arg-type]
        eventually(lambda: is_idle(tts), "both engines are idle")
    with load(endless, text_idle_seconds=0.3) as tts:  # so short for this one alone, because a slow machine may read a piece that late
        stop = threading.Event()
        with pytest.raises(Qwen3TTSError, match="no more of it has come"):
            list(tts.stream_custom_voice((stop.wait(PATIENCE) and "" for _ in range(1)), "ryan"))  # type: ignore[misc]
        stop.set()
        eventually(lambda: is_idle(tts), "both engines are idle")


def test_a_text_in_pieces_is_no_list_and_has_one_layout(tts: Qwen3TTS):
    with pytest.raises(InvalidRequestError, match="non_streaming_mode: True takes the whole text"):
        tts.stream_custom_voice(iter(WORDS), "ryan", non_streaming_mode=True)
    for text in (["a", "b"], 7, b"a"):
        with pytest.raises(InvalidRequestError, match=r"text: is a .*; a stream speaks one string, or an iterator"):
            tts.stream_custom_voice(text, "ryan")  # type: ignore[arg-type]
    with pytest.raises(InvalidRequestError, match="text: is a list_iterator; give a string"):
        tts.generate_custom_voice(iter(WORDS), "ryan")  # type: ignore[arg-type]
