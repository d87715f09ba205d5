"""A stream's messages leave in the right order and on the right thread."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from talker.speaking import ONE_FRAME, checkpoint, prompt_builder

from engine_lib.errors import InvalidRequestError, OverloadedError
from engine_lib.serving.message import CodesMessage
from engine_lib.serving.metrics import Counter, Metrics
from engine_lib.serving.parse import SpeechRequest
from engine_lib.serving.secret import ServerSecret
from engine_lib.serving.talker_metrics import TalkerMetrics
from engine_lib.serving.talker_stream import QUIET_SECONDS, TalkerParts, TalkerStream
from engine_lib.serving.tracing import Span
from engine_lib.talker.request import CodesChunk, StreamTimes
from engine_lib.talker.step_times import StepTimes
from engine_lib.voices.clone_prompt import VoiceClonePromptItem

SECRET = ServerSecret(b"of the tests")


class Reply:
    """Keeps the answers."""

    def __init__(self, *, is_traced: bool = False) -> None:
        self.is_traced, self.spans = is_traced, list[Span]()
        self.sent: list[CodesChunk] = []
        self.refused: list[Exception] = []
        self.num_questions = 0

    def send(self, tensors: Mapping[str, Any], *, is_final: bool) -> None:
        message = CodesMessage.unpack(tensors, SECRET)
        if message.is_question:
            self.num_questions += 1
            return
        chunk = message.chunk
        assert chunk.is_final == is_final
        self.sent.append(chunk)

    def is_cancelled(self) -> bool:
        return False

    def trace(self, *spans: Span) -> None:
        self.spans += spans

    def refuse(self, error: Exception) -> None:
        self.refused.append(error)


class Sender:
    """Keeps the jobs."""

    def __init__(self) -> None:
        self.jobs: list[tuple[Callable[[], object], bool]] = []

    def put(self, stream_key: str, job: Callable[[], object], *, urgent: bool = False) -> None:
        self.jobs.append((job, urgent))

    def run(self) -> None:
        while self.jobs:
            self.jobs.pop(0)[0]()


class Engine:
    """Accepts requests and forgets them."""

    def __init__(self, hands_out_beside_steps: bool) -> None:
        self.hands_out_beside_steps = hands_out_beside_steps
        self.is_full = False
        self.stats, self.step_times = None, StepTimes()

    def submit(self, request: object, listener: object) -> None:
        if self.is_full:
            raise OverloadedError("full")

    def release(self, stream_key: str) -> None:
        pass


class Talker:
    """A talker's parts, and streams on it."""

    def __init__(self, path: Path, *, hands_out_beside_steps: bool = True) -> None:
        self.path = path
        self.engine, self.sender = Engine(hands_out_beside_steps), Sender()
        self.streams: dict[str, TalkerStream] = {}
        metrics = TalkerMetrics(Metrics(None, {}), cast(Any, self.engine), self.streams, Counter())
        engine, sender, no_voices = cast(Any, self.engine), cast(Any, self.sender), cast(Any, None)
        self._parts = TalkerParts("talker", SECRET, engine, prompt_builder(path), no_voices, sender, metrics, self.streams, {})

    def stream(
        self, voice: VoiceClonePromptItem | None = None, text: str = "Hello.", *, is_traced: bool = False
    ) -> tuple[TalkerStream, Reply]:
        """A stream whose request has been queued or refused."""
        reply = Reply(is_traced=is_traced)
        speech = SpeechRequest(text=text, sampling=checkpoint(self.path).sampling_defaults(), delivery=ONE_FRAME)
        stream = TalkerStream(self._parts, cast(Any, reply), speech, arrived_at=0.0, deadline=None)
        stream.begin(voice)
        return stream, reply


FIRST = CodesChunk("talker/1", 0, np.zeros((1, 4), np.int16))
SECOND = CodesChunk("talker/1", 1, np.zeros((1, 4), np.int16))
LAST = CodesChunk("talker/1", 2, np.zeros((0, 4), np.int16), is_final=True, finish_reason="stop")


def test_the_first_codes_of_a_lone_stream_are_sent_by_the_thread_that_brings_them(tiny_custom_voice: Path) -> None:
    talker = Talker(tiny_custom_voice)
    stream, reply = talker.stream()
    stream.on_chunk(FIRST)
    assert [chunk.index for chunk in reply.sent] == [0]
    stream.on_chunk(SECOND)
    assert [urgent for _, urgent in talker.sender.jobs] == [False]


@pytest.mark.parametrize("hands_out_beside_steps", [True, False])
def test_other_streams_or_steps_do_not_wait_for_it_and_it_overtakes(tiny_custom_voice: Path, hands_out_beside_steps: bool) -> None:
    talker = Talker(tiny_custom_voice, hands_out_beside_steps=hands_out_beside_steps)
    stream, reply = talker.stream()
    if hands_out_beside_steps:
        talker.stream()
    stream.on_chunk(FIRST)
    assert not reply.sent
    assert [urgent for _, urgent in talker.sender.jobs] == [True]


def test_a_reference_goes_first_and_the_first_codes_do_not_overtake_it(tiny_base: Path) -> None:
    talker = Talker(tiny_base)
    config = checkpoint(tiny_base).config.talker
    codes = torch.zeros(3, config.num_code_groups, dtype=torch.int64)
    voice = VoiceClonePromptItem(codes, torch.zeros(config.shape.hidden_size), x_vector_only_mode=False, icl_mode=True, ref_text="Hi.")
    stream, reply = talker.stream(voice)
    stream.on_start()
    stream.on_chunk(FIRST)
    assert not reply.sent
    assert [urgent for _, urgent in talker.sender.jobs] == [False, False]
    talker.sender.run()
    assert [(chunk.is_reference, chunk.index) for chunk in reply.sent] == [(True, 0), (False, 0)]


def test_a_stream_that_is_spoken_anew_gives_the_codec_its_whole_past(tiny_base: Path) -> None:
    talker = Talker(tiny_base)
    config = checkpoint(tiny_base).config.talker
    codes = torch.ones(3, config.num_code_groups, dtype=torch.int64)
    voice = VoiceClonePromptItem(codes, torch.zeros(config.shape.hidden_size), x_vector_only_mode=False, icl_mode=True, ref_text="Hi.")
    stream, reply = talker.stream(voice)
    frames = np.full((2, config.num_code_groups), 7, np.int16)
    stream.on_chunk(CodesChunk(stream.stream_key, 5, frames, is_reference=True))
    talker.sender.run()
    [past] = reply.sent
    assert past.is_reference
    assert past.codes[:, 0].tolist() == [1, 1, 1, 7, 7]


def test_a_stream_is_open_until_its_last_message_has_been_sent(tiny_custom_voice: Path) -> None:
    talker = Talker(tiny_custom_voice)
    stream, reply = talker.stream()
    stream.on_chunk(LAST)
    assert list(talker.streams) == [stream.stream_key]
    talker.sender.run()
    assert not talker.streams
    assert [chunk.finish_reason for chunk in reply.sent] == ["stop"]


def test_the_codec_is_asked_about_a_stream_that_sends_nothing(tiny_custom_voice: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    talker = Talker(tiny_custom_voice)
    stream, reply = talker.stream()
    now = time.monotonic()
    asked = []
    for seconds, chunk in ((0.0, None), (0.1, FIRST), (QUIET_SECONDS, None), (QUIET_SECONDS + 0.2, None), (5.0, SECOND), (9.0, None)):
        monkeypatch.setattr("time.monotonic", lambda seconds=seconds: now + seconds)
        if chunk is not None:
            stream.on_chunk(chunk)
        stream.look_after()
        asked.append(reply.num_questions)
    assert asked == [1, 1, 1, 2, 2, 3]


@pytest.mark.parametrize(("is_full", "text", "kind"), [(True, "Hello.", OverloadedError), (False, " ", InvalidRequestError)])
def test_a_refused_stream_is_answered_once_and_is_not_open(
    tiny_custom_voice: Path, is_full: bool, text: str, kind: type[Exception]
) -> None:
    talker = Talker(tiny_custom_voice)
    talker.engine.is_full = is_full
    _, reply = talker.stream(text=text)
    assert not talker.streams
    assert [type(error) for error in reply.refused] == [kind]


@pytest.mark.parametrize("num_parts", [1, 2, 3, 4])
def test_a_traced_stream_ends_with_a_span_for_each_of_its_parts(tiny_custom_voice: Path, num_parts: int) -> None:
    talker = Talker(tiny_custom_voice)
    stream, reply = talker.stream(is_traced=True)
    if num_parts > 1:  # it has begun
        times = [float(part) if part < num_parts else 0.0 for part in (1, 2, 3)]
        stream.on_times(StreamTimes(stream.stream_key, *times))
    for chunk in (FIRST, LAST):
        stream.on_chunk(chunk)
    talker.sender.run()
    parts = [("waiting", 0.0), ("prefill", 1.0), ("first frame", 2.0), ("speaking", 3.0)][:num_parts]
    assert [span[:2] for span in reply.spans] == parts
    assert [span.end for span in reply.spans[:-1]] == [begin for _, begin in parts[1:]]
    assert [span.numbers for span in reply.spans] == [{}] * (num_parts - 1) + [{"finish_reason": "stop", "chunks": 2}]


def test_a_stream_that_is_not_traced_has_no_spans(tiny_custom_voice: Path) -> None:
    talker = Talker(tiny_custom_voice)
    stream, reply = talker.stream()
    stream.on_chunk(LAST)
    talker.sender.run()
    assert not reply.spans
