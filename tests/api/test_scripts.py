"""Scripts in process: each line sounds as a call of its own, and all of them are one stream."""

from __future__ import annotations

import gc
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from voices.recordings import recordings

from api.loading import GREEDY, is_idle, load
from engine_lib.api.qwen3_tts import Qwen3TTS
from engine_lib.api.speech_stream import SpeechChunk
from engine_lib.errors import InvalidRequestError, Qwen3TTSError
from engine_lib.speech.script import Line, Script
from engine_lib.talker.device.worker import TalkerWorker
from patience import PATIENCE, eventually

LINES = ("Good morning!", "How are you today?", "I am well.")


def speaks(tts: Qwen3TTS, monkeypatch: pytest.MonkeyPatch, *lines: Line, pause_after_ms: int = 0) -> None:
    """From now on every text is this script."""
    script = Script(lines, pause_after_ms)
    monkeypatch.setattr(type(tts._utterances._texts), "compile", lambda *_arguments: script)


def heard(chunks: Sequence[SpeechChunk], line: int) -> npt.NDArray[np.float32]:
    return np.concatenate([chunk.audio for chunk in chunks if chunk.line == line])


def assert_ends_as(audio: npt.NDArray[np.float32], alone: npt.NDArray[np.float32]) -> None:
    """The audio of a line is that of a call of its own, behind the pause and the seam before it."""
    np.testing.assert_allclose(audio[-len(alone) :], alone, atol=1e-5, rtol=0)


def test_each_line_of_a_stream_sounds_as_a_call_of_its_own(tts: Qwen3TTS, monkeypatch: pytest.MonkeyPatch) -> None:
    voices = ("ryan", "serena", "ryan")
    alone, _ = tts.generate_custom_voice(list(LINES), list(voices), "english", **GREEDY, max_new_tokens=12)
    lines = [Line(text=text, voice=voice, pause_ms=50 * i) for i, (text, voice) in enumerate(zip(LINES, voices, strict=True))]
    speaks(tts, monkeypatch, *lines, pause_after_ms=30)
    chunks = list(tts.stream_custom_voice("-", "ryan", "english", **GREEDY, max_new_tokens=12))
    assert [chunk.index for chunk in chunks] == list(range(len(chunks)))
    assert [chunk.is_final for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert [chunk.speaker for chunk in chunks if chunk.line == 2] == ["serena"] * sum(chunk.line == 2 for chunk in chunks)
    np.testing.assert_allclose(heard(chunks, 1), alone[0], atol=1e-5, rtol=0)
    assert_ends_as(heard(chunks, 2), alone[1])
    assert_ends_as(heard(chunks, 3)[: -30 * 24], alone[2])
    cut = [number for number, reason in enumerate(alone.finish_reasons, 1) if reason == "length"]
    assert chunks[-1].finish_reason == ("length" if cut else "stop")
    assert chunks[-1].metadata.get("cut_lines", []) == cut
    assert chunks[-1].samples_sent == sum(len(chunk.audio) for chunk in chunks)
    [whole], _ = tts.generate_custom_voice("-", "ryan", "english", **GREEDY, max_new_tokens=12)
    np.testing.assert_allclose(np.concatenate([chunk.audio for chunk in chunks]), whole, atol=1e-5, rtol=0)
    eventually(lambda: is_idle(tts), "both engines are idle")


def test_all_lines_have_one_seed_and_a_fresh_one_each_time(tiny_custom_voice: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with load(tiny_custom_voice) as tts:
        # In float32 a matrix product over one row and over many differ in the last bit, which can change a sample.
        tts._talker.worker = TalkerWorker(tts.checkpoint, tts.config, device=torch.device("cpu"), dtype=torch.float64)
        speaks(tts, monkeypatch, *(Line(text="Good morning!") for _ in range(2)))
        first, second = (list(tts.stream_custom_voice("-", "ryan", max_new_tokens=9)) for _ in range(2))
        assert_ends_as(heard(first, 2), heard(first, 1))
        assert not np.array_equal(heard(first, 1), heard(second, 1))
        any_seed = list(tts.stream_custom_voice("-", "ryan", max_new_tokens=9, seed=-1))
        assert_ends_as(heard(any_seed, 2), heard(any_seed, 1))


def test_a_reference_primes_every_line(tiny_base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with load(tiny_base) as tts:
        voice = tts.create_voice_clone_prompt((recordings(3, 1.1)[0], 24000), "Some words.")
        arguments: dict[str, Any] = {"voice_clone_prompt": voice, **GREEDY, "max_new_tokens": 6}
        alone, _ = tts.generate_voice_clone(list(LINES[:2]), **arguments)
        speaks(tts, monkeypatch, *(Line(text=text) for text in LINES[:2]))
        chunks = list(tts.stream_voice_clone("-", **arguments))
        for number in (1, 2):
            assert_ends_as(heard(chunks, number), alone[number - 1])
        assert {chunk.speaker for chunk in chunks} == {None}
        eventually(lambda: is_idle(tts), "both engines are idle")


@pytest.mark.parametrize(("how", "leave_at"), [("drop", 1), ("cancel", 2), ("close", 3)])
def test_a_script_that_is_left_in_any_line_leaves_nothing_behind(
    how: str, leave_at: int, tts: Qwen3TTS, monkeypatch: pytest.MonkeyPatch
) -> None:
    speaks(tts, monkeypatch, *(Line(text=text, pause_ms=20) for text in LINES))
    receive, is_left = tts._talker._receive, threading.Event()

    def waiting(sequence: Any, *others: Any) -> None:
        if how == "cancel" and sequence.request.stream_key.endswith(f".{len(LINES)}"):
            assert is_left.wait(PATIENCE)  # or the whole script would be spoken before a slow reader hears line 2
        receive(sequence, *others)

    monkeypatch.setattr(tts._talker, "_receive", waiting)
    stream = tts.stream_custom_voice("-", "ryan", max_new_tokens=8, chunk_frames=[1])
    for chunk in stream:
        if chunk.line == leave_at and how == "close":
            stream.close()
        elif chunk.line == leave_at and how == "cancel":
            stream.cancel()
            is_left.set()
        elif chunk.line == leave_at:
            break
    if how == "cancel":
        assert stream.finish_reason == "cancelled"
    del stream
    gc.collect()
    eventually(lambda: is_idle(tts), "both engines are idle")
    assert not tts._talker._room._turns


def test_a_bad_line_is_refused_by_its_number_before_anything_is_spoken(tts: Qwen3TTS, monkeypatch: pytest.MonkeyPatch) -> None:
    for bad, problem in (
        (Line(text="Hm.", voice="nobody"), "speaker: line 2: 'nobody' is unknown"),
        (Line(text="Hm.", language="klingon"), "language: line 2: 'klingon' is unknown"),
        (Line(text="a " * 600), "text: line 2: has "),
    ):
        speaks(tts, monkeypatch, Line(text="Good morning!"), bad)
        with pytest.raises(InvalidRequestError) as error:
            tts.stream_custom_voice("-", "ryan")
        assert str(error.value).startswith(problem)
    speaks(tts, monkeypatch, Line(text="Good morning!"), Line(text="Hm."))
    with pytest.raises(InvalidRequestError, match="language: 'klingon' is unknown"):
        tts.stream_custom_voice("-", "ryan", "klingon")
    with pytest.raises(InvalidRequestError, match="generate_codes"):
        tts.generate_codes("-", "ryan")
    assert is_idle(tts)
    assert not tts._talker._room._turns


def test_a_script_counts_as_one_request_and_its_later_lines_are_not_refused(endless: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with load(endless, max_num_seqs=1, max_waiting_requests=1) as tts:
        speaks(tts, monkeypatch, *(Line(text=text) for text in LINES))
        streams = [tts.stream_custom_voice("-", "ryan", max_new_tokens=8) for _ in range(2)]
        with pytest.raises(Qwen3TTSError, match="2 requests are open and at most 2 are allowed"):
            tts.stream_custom_voice("-", "ryan")
        for stream in streams:
            chunks = list(stream)
            assert chunks[-1].metadata["cut_lines"] == [1, 2, 3]
            assert [len(heard(chunks, line)) // 1920 for line in (1, 2, 3)] == [7, 7, 7]
        eventually(lambda: is_idle(tts), "both engines are idle")


def test_an_engine_that_dies_ends_a_script_with_an_error(endless: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with load(endless, max_model_len=4096, num_kv_blocks=600) as tts:
        speaks(tts, monkeypatch, *(Line(text=text) for text in LINES))
        stream = tts.stream_custom_voice("-", "ryan", max_new_tokens=2000)
        next(stream)
        tts._talker.shutdown()
        with pytest.raises(Qwen3TTSError, match="shutting down"):
            list(stream)
        eventually(lambda: not tts._talker._room._turns, "the place is free")


@pytest.mark.parametrize("line", [1, 2, 3])
def test_a_line_that_goes_wrong_ends_the_script_behind_the_lines_before_it(
    line: int, tts: Qwen3TTS, monkeypatch: pytest.MonkeyPatch
) -> None:
    speaks(tts, monkeypatch, *(Line(text=text) for text in LINES))
    receive = tts._talker._receive

    def failing(sequence: Any, codes: Any, has_ended: bool, has_failed: bool, *others: Any) -> None:
        is_bad = sequence.request.stream_key.endswith(f".{line}") and len(sequence.frames) == 2
        receive(sequence, codes, has_ended and not is_bad, has_failed or is_bad, *others)

    monkeypatch.setattr(tts._talker, "_receive", failing)
    chunks: list[SpeechChunk] = []
    with pytest.raises(Qwen3TTSError, match="not a number or not a code"):
        chunks.extend(tts.stream_custom_voice("-", "ryan", "english", **GREEDY, max_new_tokens=5, chunk_frames=[1]))
    monkeypatch.undo()
    assert {chunk.line for chunk in chunks} == set(range(1, line + 1))
    eventually(lambda: is_idle(tts), "both engines are idle")
    assert not tts._talker._room._turns
