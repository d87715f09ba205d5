"""Streams: the audio of a whole utterance in chunks along a ramp; leaving a stream cancels it."""

from __future__ import annotations

import gc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from api.loading import SAMPLES_PER_FRAME, is_idle, load
from engine_lib.api.qwen3_tts import Qwen3TTS
from patience import PATIENCE, eventually


def test_a_stream_joined_is_generate_with_the_same_seed(tts: Qwen3TTS):
    arguments: dict[str, Any] = {"text": "Good morning! How are you today?", "speaker": "ryan", "language": "english", "seed": 5}
    [expected], _ = tts.generate_custom_voice(**arguments)
    chunks = list(tts.stream_custom_voice(**arguments))
    np.testing.assert_allclose(np.concatenate([chunk.audio for chunk in chunks]), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("ramp", [None, [3], [1, 5, 2]])
def test_chunks_grow_along_the_ramp_and_the_last_is_empty(endless: Path, ramp: list[int] | None):
    with load(endless, chunk_frames=(2, 4)) as tts:
        chunks = list(tts.stream_custom_voice("Good morning!", "ryan", chunk_frames=ramp, max_new_tokens=21))
    wanted = {None: [2, 4, 4, 4, 4, 2], "3": [3] * 6 + [2], "152": [1, 5] + [2] * 7}["".join(map(str, ramp)) if ramp else None]
    assert [len(chunk.audio) // SAMPLES_PER_FRAME for chunk in chunks] == [*wanted, 0]
    assert [chunk.index for chunk in chunks] == list(range(len(chunks)))
    assert [chunk.is_final for chunk in chunks] == [False] * len(wanted) + [True]
    assert [chunk.finish_reason for chunk in chunks] == [""] * len(wanted) + ["length"]


def test_a_stream_that_ends_by_itself_says_stop_and_is_over(tts: Qwen3TTS):
    stream = tts.stream_custom_voice("Good morning!", "ryan", seed=1)
    assert list(stream)[-1].finish_reason == "stop"
    assert list(stream) == []


@pytest.mark.parametrize("speed", [1.0, 1.5])
def test_readers_that_share_a_stream_get_each_chunk_once_and_all_end(speed: float, tts: Qwen3TTS):
    arguments: dict[str, Any] = {"text": "Good morning!", "speaker": "ryan", "seed": 5, "chunk_frames": [1], "speed": speed}
    expected = [chunk.index for chunk in tts.stream_custom_voice(**arguments)]
    stream = tts.stream_custom_voice(**arguments)
    with ThreadPoolExecutor(3) as pool:
        readers = [pool.submit(lambda: [chunk.index for chunk in stream]) for _ in range(3)]
        try:
            heard = [index for reader in readers for index in reader.result(PATIENCE)]
        finally:
            for _ in readers:  # a reader that waits for ever would keep the test from ending
                stream._chunks.put(ZeroDivisionError())
    assert sorted(heard) == expected


def break_after_the_first_chunk(tts: Qwen3TTS) -> None:
    for chunk in tts.stream_custom_voice("Good morning!", "ryan"):
        assert len(chunk.audio)
        break


def close_after_the_first_chunk(tts: Qwen3TTS) -> None:
    stream = tts.stream_custom_voice("Good morning!", "ryan")
    next(stream)
    stream.close()
    assert list(stream) == []


def raise_inside_the_loop(tts: Qwen3TTS) -> None:
    def listen() -> None:
        for _ in tts.stream_custom_voice("Good morning!", "ryan"):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        listen()


def never_ask_for_a_chunk(tts: Qwen3TTS) -> None:
    tts.stream_custom_voice("Good morning!", "ryan")


@pytest.mark.parametrize("leave", [break_after_the_first_chunk, close_after_the_first_chunk, raise_inside_the_loop, never_ask_for_a_chunk])
def test_leaving_a_stream_frees_the_talker_and_the_codec(leave: Callable[[Qwen3TTS], None], endless: Path):
    with load(endless, max_model_len=4096, num_kv_blocks=300) as tts:
        leave(tts)
        gc.collect()  # one of them leaves by an exception, which keeps its frame alive
        eventually(lambda: is_idle(tts), "both engines are idle")
        assert tts._talker.stats().num_frames < 1000
