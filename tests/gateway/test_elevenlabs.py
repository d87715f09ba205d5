"""ElevenLabs' package, and the messages of LiveKit's and Pipecat's plugins, on a real server."""

from __future__ import annotations

import base64
import io
import json
from contextlib import suppress
from typing import Any

import httpx
import numpy as np
import pytest
import soundfile
from elevenlabs.client import ElevenLabs
from elevenlabs.core.api_error import ApiError
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection

from gateway.conftest import connect
from patience import PATIENCE

pytestmark = pytest.mark.usefixtures("quiet_log")
TEXT = "There is a small penguin in the window."


@pytest.fixture
def client(gateway: str) -> ElevenLabs:
    return ElevenLabs(api_key="unused", base_url=gateway)


def test_a_text_is_converted_whole_and_streamed(client: ElevenLabs) -> None:
    whole = b"".join(client.text_to_speech.convert("ada", text=TEXT, model_id="eleven_flash_v2_5", output_format="mp3_44100_128"))
    samples, rate = soundfile.read(io.BytesIO(whole))
    assert rate == 44_100
    assert len(samples) > rate
    parts = list(client.text_to_speech.stream("ada", text=TEXT, output_format="pcm_16000"))
    assert len(b"".join(parts)) > 2 * 16_000
    phone = b"".join(client.text_to_speech.convert("ada", text=TEXT, output_format="ulaw_8000"))
    assert len(phone) > 8000


def test_a_search_finds_only_what_was_searched_for(client: ElevenLabs) -> None:
    """Programs take the first voice of the answer."""
    searches: list[dict[str, Any]] = [{"search": "Ben"}, {"search": " en "}, {"voice_ids": ["Ben"]}, {"search": "b", "category": "premade"}]
    for search in searches:
        found = client.voices.search(**search)
        assert [voice.name for voice in found.voices] == ["ben"], search
        assert found.total_count == 1
    for search in ({"search": "rachel"}, {"category": "cloned"}, {"voice_ids": ["21m00Tcm4TlvDq8ikWAM"]}):
        assert client.voices.search(**search).voices == [], search


def test_voices_are_listed_and_an_unknown_format_is_refused(client: ElevenLabs) -> None:
    for found in (client.voices.get_all(), client.voices.search(), client.voices.search(category="premade", page_size=10)):
        assert [voice.name for voice in found.voices] == ["ada", "ben"]
    assert client.voices.get("Ada").voice_id == "ada"
    with pytest.raises(ApiError) as refused:
        b"".join(client.text_to_speech.convert("ada", text=TEXT, output_format="mp3_7_1"))
    assert refused.value.status_code == 400
    assert "output_format" in str(refused.value.body)


def test_models_are_listed_with_their_languages(client: ElevenLabs) -> None:
    [model] = client.models.list()
    assert (model.model_id, model.can_do_text_to_speech) == ("qwen3_tts", True)
    assert model.languages
    assert ("en", "English") in [(language.language_id, language.name) for language in model.languages]


def test_a_setting_of_the_voice_may_be_null_and_a_wrong_one_is_named(gateway: str) -> None:
    def answer(settings: object) -> httpx.Response:
        body = {"text": "Hello.", "voice_settings": settings}
        return httpx.post(f"{gateway}/v1/text-to-speech/ada?output_format=pcm_8000", json=body, timeout=PATIENCE)

    for good in ({"speed": None, "stability": None}, {}, None):
        assert answer(good).status_code == 200
    for bad, param in (({"speed": 9}, "voice_settings.speed"), ({"speed": True}, "voice_settings.speed"), ("slow", "voice_settings")):
        refused = answer(bad)
        assert (refused.status_code, refused.json()["error"]["param"]) == (422, param)


def socket_of(gateway: str, path: str, voice: str = "ada", **query: Any) -> ClientConnection:
    parameters = "&".join(f"{name}={value}" for name, value in ({"output_format": "pcm_24000"} | query).items())
    return connect(
        f"{gateway.replace('http', 'ws')}/v1/text-to-speech/{voice}/{path}?{parameters}", additional_headers={"xi-api-key": "unused"}
    )


def send(socket: ClientConnection, **message: Any) -> None:
    socket.send(json.dumps(message))


def received(socket: ClientConnection, contexts: int = 1) -> tuple[dict[str | None, bytes], list[dict[str, Any]]]:
    """Audio by context, until so many contexts are final; all messages."""
    audio: dict[str | None, bytes] = {}
    messages: list[dict[str, Any]] = []
    while sum(bool(message.get("isFinal")) for message in messages) < contexts:
        messages.append(json.loads(socket.recv(PATIENCE)))
        name = messages[-1].get("contextId")
        audio[name] = audio.get(name, b"") + base64.b64decode(messages[-1].get("audio") or "")
    return audio, messages


def test_one_text_in_pieces_as_the_package_sends_it(gateway: str) -> None:
    with socket_of(gateway, "stream-input", model_id="any") as socket:
        send(socket, text=" ", try_trigger_generation=True, voice_settings=None, generation_config={"chunk_length_schedule": [50]})
        for word in TEXT.split():
            send(socket, text=f"{word} ", try_trigger_generation=True)
        send(socket, text="")
        audio, messages = received(socket)
        assert len(audio[None]) > 2 * 24_000
        assert messages[0]["alignment"] is messages[0]["normalizedAlignment"] is None
        with pytest.raises(ConnectionClosed) as closed:
            socket.recv(PATIENCE)
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1000


def test_contexts_speak_side_by_side_and_end_one_by_one(gateway: str) -> None:
    with socket_of(gateway, "multi-stream-input", auto_mode="true", sync_alignment="true", inactivity_timeout=180) as socket:
        for name in ("one", "two"):
            send(socket, text=" ", voice_settings={"stability": 0.5, "speed": 1.0}, context_id=name)
        send(socket, text="There is a small penguin ", context_id="one")
        send(socket, text="Good morning. ", context_id="two", flush=True)
        send(socket, text="")  # keeps the connection alive
        send(socket, text="", context_id="one")
        send(socket, text="in the window. ", context_id="one")
        send(socket, context_id="one", flush=True)
        send(socket, text="My brother has two dogs. ", context_id="one", flush=True)
        for name in ("one", "two"):
            send(socket, text="", context_id=name, flush=True)
            send(socket, context_id=name, close_context=True)
        audio, messages = received(socket, 2)
    assert len(audio["one"]) > len(audio["two"]) > 24_000
    assert {message["contextId"] for message in messages if message.get("isFinal")} == {"one", "two"}
    assert np.abs(np.frombuffer(audio["one"], np.int16).astype(int)).max() > 1000


def test_close_context_ends_what_is_not_flushed_and_frees_the_name(gateway: str) -> None:
    """As in the package's description of the field: no further audio, except for what has been flushed."""
    with socket_of(gateway, "multi-stream-input") as socket:
        send(socket, text="My brother has two dogs and a very small cat. " * 40, context_id="agent")  # two minutes
        assert json.loads(socket.recv(PATIENCE))["audio"]  # spoken as it comes
        send(socket, text="But ", context_id="agent", close_context=True)
        audio, _ = received(socket)
        assert len(audio["agent"]) < 60 * 2 * 24_000
        for number in range(20):  # interrupted at once, so that none of them is open any more
            send(socket, text="But ", context_id=f"turn {number}")
            send(socket, context_id=f"turn {number}", close_context=True)
        received(socket, 20)
        for _ in range(2):  # two turns at once, of one name
            send(socket, text="Good morning. ", context_id="agent", flush=True)
            send(socket, context_id="agent", close_context=True)
        audio, _ = received(socket, 2)
        assert len(audio["agent"]) > 2 * 24_000


@pytest.mark.parametrize(
    ("query", "message", "field"),
    [
        ({"output_format": "mp4_1"}, {"text": "Hello. "}, "output_format"),
        ({"inactivity_timeout": "999"}, {"text": "Hello. "}, "inactivity_timeout"),
        ({"model_id": "", "language_code": "klingon"}, {"text": "Hello. ", "flush": True}, "language_code"),
        ({}, {"text": ["Hello."]}, "text"),
        ({}, {"text": 0}, "text"),
        ({}, {"text": "Hello. ", "context_id": "x" * 257}, "context_id"),
        ({}, {"text": "Hello. ", "voice_settings": {"speed": 40}}, "voice_settings.speed"),
        ({}, {"text": "Hello. ", "voice_settings": {"speed": True}}, "voice_settings.speed"),
        ({}, {"text": "Hello. ", "voice_settings": "slow"}, "voice_settings"),
        ({}, {"text": "Hello. ", "context_id": 5}, "context_id: 5 is not allowed; give a string"),
        ({}, {"text": "Hello. ", "context_id": ["a"]}, "context_id"),
        ({}, {"text": "Hello. ", "flush": "false"}, "flush: 'false' is not allowed; give true or false"),
        ({}, {"text": "Hello. ", "close_context": "false"}, "close_context"),
        ({}, {"text": "Hello. ", "close_socket": 0}, "close_socket"),
        ({"auto_mode": "maybe"}, {"text": "Hello. "}, "auto_mode: 'maybe' is not allowed; give true or false"),
        ({"sync_alignment": "on"}, {"text": "Hello. "}, "sync_alignment"),
    ],
)
def test_what_is_not_allowed_closes_the_socket_with_the_field(
    gateway: str, query: dict[str, str], message: dict[str, Any], field: str
) -> None:
    with socket_of(gateway, "stream-input", **query) as socket:
        with suppress(ConnectionClosed):  # what the address says is refused before any message
            send(socket, **message)
        refused = json.loads(socket.recv(PATIENCE))
        assert refused["message"].startswith(field)
        with pytest.raises(ConnectionClosed):
            socket.recv(PATIENCE)


def test_a_context_that_fails_says_so_and_disturbs_no_other(gateway: str) -> None:
    with socket_of(gateway, "multi-stream-input") as socket:
        send(socket, text="x" * 5000 + " ", context_id="long")
        refused = json.loads(socket.recv(PATIENCE))
        assert refused["message"].startswith("text")


def test_a_client_that_leaves_frees_the_server(gateway: str) -> None:
    with socket_of(gateway, "multi-stream-input", inactivity_timeout=1) as socket:
        for name in ("one", "two"):
            send(socket, text="My brother has two dogs and a very small cat. " * 20, context_id=name, flush=True)
        for _ in range(4):
            assert json.loads(socket.recv(PATIENCE))["audio"]  # the fixture `triton` waits until the server is free
