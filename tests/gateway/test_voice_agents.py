"""What the TTS plugins of LiveKit Agents 1.8.9 and Pipecat 1.14.0 send and expect, on a real server.

scripts/try_voice_agents.py runs the plugins themselves.
"""

from __future__ import annotations

import base64
import json
from typing import Any

import httpx
import numpy as np
import pytest
from server.streams import eventually_free
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection

from engine_lib.server.process import TritonServer
from gateway.conftest import RunningGateway
from gateway.test_elevenlabs import received, send, socket_of
from patience import PATIENCE
from qwen3_tts_client import Client

pytestmark = pytest.mark.usefixtures("quiet_log")
SENTENCES = ("There is a small penguin in the window.", "My brother has two dogs.")
LINE_BYTES = 2**17  # aiohttp refuses a longer line


def livekit(gateway: str, **query: Any) -> ClientConnection:
    options = {"model_id": "eleven_turbo_v2_5", "output_format": "pcm_24000", "enable_ssml_parsing": "false", "enable_logging": "true"}
    options |= {"inactivity_timeout": "180", "apply_text_normalization": "auto", "sync_alignment": "true", "auto_mode": "true"}
    return socket_of(gateway, "multi-stream-input", **options | query)


def pipecat(gateway: str, **query: Any) -> ClientConnection:
    options = {"model_id": "eleven_turbo_v2_5", "output_format": "pcm_24000", "auto_mode": "true"}
    return socket_of(gateway, "multi-stream-input", **options | query)


def final(socket: ClientConnection) -> dict[str, Any]:
    """The message that ends a context; those before it are skipped."""
    while True:
        message: dict[str, Any] = json.loads(socket.recv(PATIENCE))
        if message.get("isFinal"):
            return message


def said(messages: list[dict[str, Any]]) -> list[tuple[str, float]]:
    """The words and their beginnings, in seconds, as Pipecat adds them up: a word is complete when a space follows."""
    words, clock, word, begin = [], 0.0, "", 0.0
    for alignment in (message["alignment"] for message in messages if message.get("alignment")):
        starts = alignment["charStartTimesMs"]
        for character, start in zip(alignment["chars"], starts, strict=True):
            if character != " ":
                begin = begin if word else clock + start / 1000
                word += character
            elif word:
                words.append((word, begin))
                word = ""
        clock += (starts[-1] + alignment["charDurationsMs"][-1]) / 1000
    assert word == ""
    return words


@pytest.mark.parametrize("auto_mode", ["true", "True"])  # as Pipecat writes it, and as Python does
def test_a_sentence_is_spoken_to_its_end_before_the_next_one_comes(gateway: str, auto_mode: str) -> None:
    with pipecat(gateway, auto_mode=auto_mode) as socket:
        send(socket, text=" ", context_id="turn")
        send(socket, text=SENTENCES[0], context_id="turn")
        spoken = b""
        messages: list[dict[str, Any]] = []
        while "." not in "".join(character for message in messages for character in (message.get("alignment") or {}).get("chars", [])):
            messages.append(json.loads(socket.recv(PATIENCE)))
            spoken += base64.b64decode(messages[-1]["audio"] or "")
        assert len(spoken) > 2 * 24_000  # before the text goes on
        send(socket, text=SENTENCES[1], context_id="turn")
        send(socket, context_id="turn", flush=True)
        send(socket, context_id="turn", close_context=True)
        messages += received(socket)[1]
    words = said(messages)
    assert [word for word, _ in words] == " ".join(SENTENCES).split()
    times = [time for _, time in words]
    assert times == sorted(set(times))


def test_what_the_language_model_has_written_is_spoken_to_its_end(gateway: str) -> None:
    with livekit(gateway) as socket:
        send(socket, text=" ", voice_settings={}, context_id="turn")
        for sentence in SENTENCES:
            send(socket, text=f"{sentence} ", context_id="turn", flush=True)
        send(socket, text="", context_id="turn", flush=True)
        send(socket, context_id="turn", close_context=True)
        messages = received(socket)[1]
    assert [word for word, _ in said_at_once(messages)] == " ".join(SENTENCES).split()


def said_at_once(messages: list[dict[str, Any]]) -> list[tuple[str, float]]:
    """The same of alignments that all count from the beginning."""
    merged: dict[str, list[Any]] = {"chars": [], "charStartTimesMs": [], "charDurationsMs": []}
    for alignment in (message["normalizedAlignment"] for message in messages if message.get("normalizedAlignment")):
        for name, values in merged.items():
            values += alignment[name]
    return said([{"alignment": merged}])


def test_spaces_that_the_protocol_asks_for_are_no_text(triton: TritonServer, gateway: str) -> None:
    with livekit(gateway, auto_mode="false", seed="3") as socket:
        send(socket, text=" ", voice_settings={}, context_id="turn")
        for word in " ".join(SENTENCES).split():
            send(socket, text=f"{word} ", context_id="turn")
        send(socket, text="", context_id="turn", flush=True)
        send(socket, context_id="turn", close_context=True)
        audio = received(socket)[0]["turn"]
    with Client(f"localhost:{triton.grpc_port}") as client:
        expected = client.synthesize(iter([" ".join(SENTENCES)]), voice="ada", sampling={"seed": 3}, timeout=PATIENCE).audio
    np.testing.assert_allclose(np.frombuffer(audio, "<i2") / 32768, expected, atol=2e-4)


def test_livekit_interrupts_while_the_language_model_writes(endless: TritonServer, endless_gateway: RunningGateway) -> None:
    with livekit(endless_gateway.url, voice="alloy") as socket:
        send(socket, text=" ", voice_settings={}, context_id="turn")
        for sentence in SENTENCES * 5:
            send(socket, text=f"{sentence} ", context_id="turn", flush=True)
        assert json.loads(socket.recv(PATIENCE))["audio"]
        send(socket, context_id="turn", close_context=True)
        assert final(socket)["contextId"] == "turn"
        eventually_free(endless)


def test_pipecat_interrupts_what_has_been_closed(endless: TritonServer, endless_gateway: RunningGateway) -> None:
    with pipecat(endless_gateway.url, voice="alloy") as socket:
        send(socket, text=" ", context_id="turn")
        for sentence in SENTENCES * 5:
            send(socket, text=sentence, context_id="turn")
        send(socket, context_id="turn", flush=True)
        send(socket, context_id="turn", close_context=True)
        assert json.loads(socket.recv(PATIENCE))["audio"]
        send(socket, context_id="turn", close_context=True)
        assert final(socket)["contextId"] == "turn"
        eventually_free(endless)


def test_an_unknown_voice_closes_the_socket_and_says_which_there_are(gateway: str) -> None:
    with pipecat(gateway, voice="nobody") as socket:
        assert json.loads(socket.recv(PATIENCE))["message"] == "voice: 'nobody' is unknown; allowed: ada, ben"
        with pytest.raises(ConnectionClosed) as closed:
            socket.recv(PATIENCE)
    assert closed.value.rcvd is not None
    assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (1008, "voice: 'nobody' is unknown; allowed: ada, ben")


def test_a_context_that_fails_ends(gateway: str) -> None:
    with pipecat(gateway, model_id="", language_code="klingon") as socket:
        send(socket, text=" ", context_id="turn")
        send(socket, text=SENTENCES[0], context_id="turn")
        message = final(socket)
        assert message["contextId"] == "turn"
        assert message["message"].startswith("language_code")


def test_lines_of_timed_audio_are_as_short_as_pipecat_reads_them(gateway: str) -> None:
    body = {"text": " ".join(SENTENCES), "model_id": "eleven_turbo_v2_5"}
    address = f"{gateway}/v1/text-to-speech/alloy/stream/with-timestamps"
    lines = httpx.post(address, params={"output_format": "pcm_48000"}, json=body, timeout=PATIENCE).content.splitlines()
    assert len(lines) > 2
    assert max(map(len, lines)) < LINE_BYTES / 2
