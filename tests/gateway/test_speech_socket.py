"""The WebSocket that takes text while it is written, on a real server."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection
from websockets.typing import Origin

from gateway.conftest import connect
from patience import PATIENCE

pytestmark = pytest.mark.usefixtures("quiet_log")
TEXT = "There is a small penguin in the window."
LONG_TEXT = "My brother has two dogs and a very small cat. " * 20


class Session:
    """One socket."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket

    def send(self, kind: str, **values: Any) -> None:
        self.socket.send(json.dumps({"type": kind} | values))

    def say(self, words: Sequence[str]) -> None:
        for word in words:
            self.send("input.text", text=word)
        self.send("input.done")

    def receive(self) -> dict[str, Any] | bytes:
        message = self.socket.recv(PATIENCE)
        return message if isinstance(message, bytes) else dict(json.loads(message))

    def until(self, kind: str) -> tuple[bytes, list[dict[str, Any]]]:
        """The audio and the events up to one of this type."""
        audio, events = b"", [{"type": ""}]
        while events[-1]["type"] != kind:
            message = self.receive()
            if isinstance(message, bytes):
                audio += message
            else:
                events.append(message)
        return audio, events[1:]


@pytest.fixture
def session(gateway: str) -> Iterator[Session]:
    with connect(gateway.replace("http", "ws") + "/v1/audio/speech/stream") as socket:
        yield Session(socket)


def test_words_become_audio_and_the_socket_takes_the_next_text(session: Session) -> None:
    session.send("session.config", voice="ben", seed=7)
    session.say([f"{word} " for word in TEXT.split()])
    audio, events = session.until("session.done")
    assert [event["type"] for event in events] == ["audio.start", "audio.done", "session.done"]
    assert events[1]["finish_reason"] == "stop"
    samples = np.frombuffer(audio, np.int16)
    assert len(samples) == events[1]["samples_sent"] > 24_000
    assert np.abs(samples.astype(int)).max() > 1000
    session.say(["Good ", "morning."])
    more, _ = session.until("session.done")
    assert len(more) > 0


def test_other_names_of_the_same_events_are_known(session: Session) -> None:
    session.send("session.config", voice=None, response_format=None)  # as left out
    session.send("input_text.append", text="Good morning.")
    session.send("input_text.end")
    audio, events = session.until("session.done")
    assert len(audio) > 0
    assert events[0]["format"] == "pcm"


def test_a_cancel_says_how_much_was_sent_and_frees_the_server(session: Session) -> None:
    session.say([LONG_TEXT])
    while not isinstance(session.receive(), bytes):
        pass
    session.send("input.cancel")
    _, events = session.until("audio.cancelled")
    assert events[-1]["samples_sent"] > 0
    session.send("input.text", text="Good ")
    session.send("input.cancel")  # mostly before it has begun to speak
    audio, events = session.until("audio.cancelled")
    assert events[-1]["samples_sent"] == len(audio) // 2  # what was sent before is not counted again
    session.say(["Good morning."])
    assert session.until("session.done")[1][0]["type"] == "audio.start"


def test_a_client_that_leaves_frees_the_server(session: Session) -> None:
    session.say([LONG_TEXT])
    while not isinstance(session.receive(), bytes):
        pass
    session.socket.close()  # the fixture `triton` waits until the server is free


@pytest.mark.parametrize(
    ("event", "param", "message"),
    [
        ("nonsense", None, "not valid JSON"),
        ("[]", None, "no JSON object"),
        ("{}", "type", "type"),
        ("[" * 100_000, None, "not valid JSON"),
        ("[" + "[]," * 600_000, None, "too many values"),
        (b"{}", None, "binary"),
        ('{"type": "input.text", "text": "\\ud800"}', None, "half a character"),
        ('{"type": "dance"}', "type", "input.text, input.done"),
        ('{"type": "input.text", "text": 5}', "text", "give a string"),
        ('{"type": "input.done"}', "type", "send input.text first"),
        ('{"type": "session.config", "speed": 9}', "speed", "4"),
    ],
)
def test_a_wrong_event_is_refused_with_its_field_and_the_socket_stays_open(
    session: Session, event: str | bytes, param: str | None, message: str
) -> None:
    session.socket.send(event)
    refused = session.receive()
    assert isinstance(refused, dict)
    assert refused["type"] == "error"
    assert refused["error"]["param"] == param
    assert message in refused["error"]["message"]
    session.say(["Good morning."])
    assert session.until("session.done")[1][-2]["finish_reason"] == "stop"


def test_the_rest_of_a_text_that_was_refused_is_not_spoken(session: Session) -> None:
    session.send("session.config", voice="nobody")
    session.say(["There is ", "a small penguin ", "in the window."])
    audio, events = session.until("session.done")
    assert audio == b""
    assert [event["type"] for event in events if event["type"] != "audio.start"] == ["error", "session.done"]
    assert "ada" in events[-2]["error"]["message"]


def test_an_utterance_that_fails_leaves_the_next_one_whole(session: Session) -> None:
    session.send("session.config", voice="nobody")
    for _ in range(10):  # the refusal comes while the text is sent, before it or after
        session.say([f"{word} " for word in TEXT.split()])
        session.until("session.done")
    session.send("session.config", voice="ben")
    session.say(["Good morning."])
    assert session.until("session.done")[1][-2]["finish_reason"] == "stop"


def test_pages_of_other_origins_are_not_let_in_and_bytes_that_are_no_text_end_their_socket_alone(gateway: str) -> None:
    address = gateway.replace("http", "ws") + "/v1/audio/speech/stream"
    for path, origin, status, code in (
        ("/v1/audio/speech/stream", "https://page.example", 403, "origin"),
        ("/v1/audio/speech/stream", "null", 403, "origin"),  # of a frame in a sandbox, which any page can have
        ("/nowhere", gateway, 404, "not_found"),
    ):
        with pytest.raises(InvalidStatus) as refused:
            connect(gateway.replace("http", "ws") + path, origin=Origin(origin))
        answer = refused.value.response
        assert answer.body is not None
        assert (answer.status_code, json.loads(answer.body)["error"]["code"]) == (status, code)
        assert "x-request-id" in answer.headers
    with connect(address, origin=Origin(gateway)) as socket:
        socket.send(b"\xff\xfe", text=True)
        with pytest.raises(ConnectionClosed):
            socket.recv(PATIENCE)
    assert socket.close_code == 1007  # and the fixture `quiet_log` finds no traceback


def test_a_socket_without_an_event_is_left(gateway: str) -> None:
    with connect(gateway.replace("http", "ws") + "/v1/audio/speech/stream?idle_seconds=1") as socket:
        assert json.loads(socket.recv(PATIENCE))["error"]["code"] == "idle"
        with pytest.raises(ConnectionClosed):
            socket.recv(PATIENCE)
