"""Many texts and callers at once: each result is the same as alone; a failure ends only its own list."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from api.loading import GREEDY, is_idle, load
from engine_lib.api.qwen3_tts import Qwen3TTS
from engine_lib.codec.runner import StepAudio
from engine_lib.errors import InvalidRequestError, OverloadedError, Qwen3TTSError
from engine_lib.talker.device.worker import TalkerWorker
from patience import PATIENCE, eventually


def test_more_texts_than_the_batch_holds_wait_for_their_turn(tts: Qwen3TTS):
    arguments: dict[str, Any] = {"speaker": "ryan", "language": "english", "max_new_tokens": 7} | GREEDY
    texts = [f"Sentence number {i}, and no other." for i in range(2 * tts.config.max_num_seqs + 1)]
    together, _ = tts.generate_custom_voice(text=texts, **arguments)
    for text, wav in zip(texts, together, strict=True):
        [alone], _ = tts.generate_custom_voice(text=text, **arguments)
        np.testing.assert_allclose(wav, alone, atol=1e-4, rtol=0)


@pytest.mark.parametrize("method", ["generate_custom_voice", "generate_codes"])
def test_a_list_for_which_there_is_no_place_is_refused_and_leaves_nothing_running(method: str, endless: Path):
    with load(endless, max_num_seqs=2, codec_slots=2, max_waiting_requests=2, max_model_len=4096, num_kv_blocks=600) as tts:
        with ExitStack() as others:
            for _ in range(4):
                others.enter_context(tts.stream_custom_voice("Good morning!", "ryan", max_new_tokens=3000))
            with pytest.raises(OverloadedError, match="at most 4 are allowed"):
                getattr(tts, method)(["Good morning!"] * 4, "ryan")
        eventually(lambda: is_idle(tts), "both engines are idle")
        assert getattr(tts, method)("Good morning!", "ryan", max_new_tokens=3)


def test_two_lists_that_want_the_same_places_are_both_spoken(tiny_custom_voice: Path):
    texts = [f"Sentence number {i}, and no other." for i in range(30)]
    with load(tiny_custom_voice, max_num_seqs=2, codec_slots=2, max_waiting_requests=2) as tts, ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(tts.generate_codes, texts, "ryan", max_new_tokens=3, **GREEDY) for _ in range(2)]
        first, second = (call.result(PATIENCE) for call in calls)
        for mine, yours in zip(first, second, strict=True):
            np.testing.assert_array_equal(mine, yours)
        eventually(lambda: is_idle(tts), "both engines are idle")


def test_an_interactive_text_starts_before_a_batch_text_that_came_earlier(endless: Path):
    with load(endless, max_num_seqs=1, codec_slots=1, max_model_len=4096, num_kv_blocks=600) as tts:
        arguments: dict[str, Any] = {"text": "Good morning!", "speaker": "ryan", "max_new_tokens": 3000}
        running = tts.stream_custom_voice(**arguments)
        next(running)
        batch = tts.stream_custom_voice(**arguments, request_priority="batch", client="night")
        interactive = tts.stream_custom_voice(**arguments)
        running.close()
        with interactive, batch:
            next(interactive)
            assert tts._talker.stats().waiting_batch == 1
        eventually(lambda: is_idle(tts), "both engines are idle")


def test_a_text_too_long_for_the_engine_takes_the_others_of_its_list_along(endless: Path):
    with load(endless, max_model_len=128) as tts:
        with pytest.raises(InvalidRequestError):
            tts.generate_codes(["Good morning!", "again and " * 100], "ryan")
        eventually(lambda: is_idle(tts), "both engines are idle")
        assert tts._talker.stats().num_frames < 100


def test_a_text_that_fails_ends_the_others_of_its_list(endless: Path, monkeypatch: pytest.MonkeyPatch):
    with load(endless, max_model_len=4096, num_kv_blocks=600) as tts:
        step = tts._codec.runner.step

        def failing_in_slot_0(slots: Sequence[int], pieces: Sequence[np.ndarray]) -> StepAudio:
            audio = step(slots, pieces)
            for slot, row in zip(slots, audio.read(), strict=True):
                row[:] = np.nan if slot == 0 else row
            return audio

        monkeypatch.setattr(tts._codec.runner, "step", failing_in_slot_0)
        with pytest.raises(Qwen3TTSError, match="numbers") as failure:
            tts.generate_custom_voice(["Good morning!"] * 3, "ryan")
        eventually(lambda: is_idle(tts), "both engines are idle")
        assert tts._talker.stats().num_frames < 1000
        assert failure.traceback  # it keeps alive all that the call held


def test_threads_that_call_at_once_get_what_each_gets_alone(tiny_custom_voice: Path):
    calls: list[dict[str, Any]] = [
        {"text": f"This is caller number {i}.", "speaker": speaker, "seed": i, "max_new_tokens": 12}
        for i, speaker in enumerate(["ryan", "eric", "vivian", "serena", "dylan", "aiden", "sohee", "ono_anna"])
    ]
    with load(tiny_custom_voice) as tts:
        # In float32 a matrix product over one row and over many differ in the last bit, which can change a sample.
        tts._talker.worker = TalkerWorker(tts.checkpoint, tts.config, device=torch.device("cpu"), dtype=torch.float64)
        alone = [tts.generate_custom_voice(**call)[0][0] for call in calls]
        barrier = threading.Barrier(len(calls))

        def speak(i: int) -> np.ndarray:
            barrier.wait(PATIENCE)
            if i % 2:
                return tts.generate_custom_voice(**calls[i])[0][0]
            return np.concatenate([chunk.audio for chunk in tts.stream_custom_voice(**calls[i])])

        with ThreadPoolExecutor(len(calls)) as pool:
            together = list(pool.map(speak, range(len(calls)), timeout=PATIENCE))
        eventually(lambda: is_idle(tts), "both engines are idle")
    for i, (wav, expected) in enumerate(zip(together, alone, strict=True)):
        assert wav.shape == expected.shape, i
        np.testing.assert_allclose(wav, expected, atol=1e-5, rtol=0)
