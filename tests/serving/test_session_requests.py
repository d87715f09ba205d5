"""Requests about an open stream reach it by its session alone, also while its voice is encoded."""

from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from talker.speaking import ONE_FRAME, checkpoint, prompt_builder

from engine_lib.errors import InvalidRequestError, NotFoundError
from engine_lib.serving.message import CodesMessage
from engine_lib.serving.metrics import Counter, Metrics
from engine_lib.serving.parse import Reference, SpeechRequest
from engine_lib.serving.request_values import RequestValues, session_key
from engine_lib.serving.secret import ServerSecret
from engine_lib.serving.session_requests import SessionRequests
from engine_lib.serving.talker_metrics import TalkerMetrics
from engine_lib.serving.talker_stream import TalkerParts, TalkerStream
from engine_lib.talker.request import FurtherText, Request
from engine_lib.talker.step_times import StepTimes
from engine_lib.voices.clone_prompt import VoiceClonePromptItem

SECRET = ServerSecret(b"of the tests")
SESSION = "an id that is long and random"
RECORDING = Reference(audio=np.zeros(10, np.float32), sample_rate=10, x_vector_only=True)


class Engine:
    """Keeps what it is given."""

    hands_out_beside_steps = False

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.texts: list[FurtherText] = []
        self.cancelled: list[tuple[str, str]] = []
        self.stats, self.step_times, self.config = None, StepTimes(), SimpleNamespace(max_model_len=100)

    def reserve(self, stream_key: str, turn: object = None) -> None:
        pass

    release = reserve

    def submit(self, request: Request, listener: object) -> None:
        self.requests.append(request)

    def feed(self, text: FurtherText) -> bool:
        self.texts.append(text)
        return True

    def cancel(self, stream_key: str, error: str = "") -> None:
        self.cancelled.append((stream_key, error))


class Sender:
    """Runs each job at once."""

    def put(self, stream_key: str, job: Any, *, urgent: bool = False) -> None:
        job()


class Reply:
    """Keeps the answers."""

    request_id = ""
    is_traced = False

    def __init__(self) -> None:
        self.sent: list[str] = []
        self.is_finished = False

    def send(self, tensors: Any, *, is_final: bool) -> None:
        self.sent.append(CodesMessage.unpack(tensors, SECRET).chunk.finish_reason)

    def finish(self) -> None:
        self.is_finished = True

    def refuse(self, error: Exception) -> None:
        raise error


class Talker:
    """A talker's parts, with a stream that is open and has a session."""

    def __init__(self, path: Path, text: str = "", *, is_open: bool = True, voice: Any = None) -> None:
        self.engine, self.reply, self.voice = Engine(), Reply(), Future[VoiceClonePromptItem]()
        streams: dict[str, TalkerStream] = {}
        metrics = TalkerMetrics(Metrics(None, {}), cast(Any, self.engine), streams, Counter())
        voices = cast(Any, SimpleNamespace(encode=lambda *_: self.voice))
        engine, sender = cast(Any, self.engine), cast(Any, Sender())
        self.parts = TalkerParts("talker", SECRET, engine, prompt_builder(path), voices, sender, metrics, streams, {})
        self._sampling = checkpoint(path).sampling_defaults()
        self.requests = SessionRequests(self.parts.sessions, max_text_length=4000)
        self.stream = self.open(text, is_open=is_open)
        self.stream.begin(voice)

    def open(self, text: str = "", *, is_open: bool = True) -> TalkerStream:
        session = session_key(RequestValues({}, f'{{"session": "{SESSION}"}}'))
        speech = SpeechRequest(text=text, sampling=self._sampling, delivery=ONE_FRAME, session=session, text_is_open=is_open)
        return TalkerStream(self.parts, cast(Any, self.reply), speech, arrived_at=0.0, deadline=None)

    def tell(self, action: str, text: str | None = None, session: str = SESSION) -> bool:
        fields = {"session": session, "session_action": action} | ({} if text is None else {"text": text})
        tensors = {name: np.array([value.encode()], np.object_) for name, value in fields.items()}
        reply = Reply()
        was_one = self.requests.handle(tensors, "", cast(Any, reply))
        assert reply.is_finished == was_one
        return was_one

    @property
    def text(self) -> list[int]:
        return [i for text in self.engine.texts for i in text.text_ids.tolist()]


def whole(path: Path, text: str, voice: VoiceClonePromptItem | None = None) -> list[int]:
    prompt = prompt_builder(path).build(text=text, non_streaming_mode=False, voice_prompt=voice)
    return [*prompt.text_ids.tolist(), *prompt.trailing_text_ids.tolist()]


def test_pieces_reach_the_engine_and_the_last_ends_the_text(tiny_custom_voice: Path) -> None:
    talker = Talker(tiny_custom_voice, "Good ")
    assert talker.engine.requests[0].text_is_open
    assert talker.tell("append", "morn")
    assert talker.tell("append", "")
    assert talker.tell("append", "ing.")
    assert talker.tell("end", " Bye")
    assert talker.text == whole(tiny_custom_voice, "Good morning. Bye")
    assert [text.is_last for text in talker.engine.texts] == [False, False, False, True]
    with pytest.raises(InvalidRequestError, match="session_action: 'append' is not allowed: the stream has the end of its text"):
        talker.tell("append", "more")
    assert talker.tell("cancel")
    assert talker.engine.cancelled == [(talker.stream.stream_key, "")]


def test_a_request_without_an_action_is_none_of_these(tiny_custom_voice: Path) -> None:
    talker = Talker(tiny_custom_voice)
    assert not talker.tell("")
    assert not talker.requests.handle({}, '{"text": "session_action"}', cast(Any, Reply()))


def test_only_the_id_opens_the_stream(tiny_custom_voice: Path) -> None:
    talker = Talker(tiny_custom_voice)
    assert SESSION not in talker.parts.sessions  # its digest is
    for session in (SESSION[:-1], SESSION + " ", talker.stream.stream_key, next(iter(talker.parts.sessions))):
        with pytest.raises(NotFoundError, match="session: no open stream"):
            talker.tell("append", "Hello.", session)
    with pytest.raises(InvalidRequestError, match="session: has 15 bytes; give at least 16"):
        talker.tell("append", "Hello.", "a" * 15)
    with pytest.raises(InvalidRequestError, match="session: is that of an open stream"):
        talker.open()
    assert list(talker.parts.streams) == [talker.stream.stream_key]


def test_text_that_cannot_be_spoken_ends_the_stream_and_a_piece_that_is_refused_does_not(tiny_custom_voice: Path) -> None:
    talker = Talker(tiny_custom_voice, "Good ")
    with pytest.raises(InvalidRequestError, match="text: has 4001 characters"):
        talker.tell("append", "a" * 3996)
    assert not talker.engine.cancelled
    with pytest.raises(InvalidRequestError, match="text: takes "):
        talker.tell("append", "word " * 100)
    [(_, error)] = talker.engine.cancelled
    assert error.startswith("INVALID_ARG: text: takes ")


def test_text_and_cancel_do_not_wait_for_the_voice(tiny_base: Path) -> None:
    config = checkpoint(tiny_base).config.talker
    voice = VoiceClonePromptItem(None, torch.zeros(config.shape.hidden_size), x_vector_only_mode=True, icl_mode=False)
    talker = Talker(tiny_base, "Good ", voice=RECORDING)
    talker.tell("append", "morning")
    talker.tell("end", ".")
    assert not talker.engine.requests
    talker.voice.set_result(voice)
    assert len(talker.engine.requests) == 1
    assert talker.text == whole(tiny_base, "Good morning.", voice)

    talker = Talker(tiny_base, "Good ", voice=RECORDING)
    talker.tell("cancel")
    assert talker.reply.sent == ["cancelled"]
    assert (talker.parts.streams, talker.parts.sessions) == ({}, {})
    assert talker.voice.cancelled()
    with pytest.raises(NotFoundError):
        talker.tell("append", "more")
