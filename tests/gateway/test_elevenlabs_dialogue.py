"""ElevenLabs' dialogues: its own package on a real server."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncGenerator, Iterator
from typing import Any

import numpy as np
import pytest
from elevenlabs import DialogueInput, VoiceSegment
from elevenlabs.client import ElevenLabs
from elevenlabs.core.api_error import ApiError
from websockets.sync.client import ClientConnection

from engine_lib.server.process import TritonServer
from gateway.conftest import connect
from patience import PATIENCE
from qwen3_tts_client import Client
from qwen3_tts_client.protocol import AudioChunk
from qwen3_tts_gateway.voice_segments import VoiceSegments

pytestmark = pytest.mark.usefixtures("quiet_log")
SAID = [("ada", "There is a small penguin."), ("onyx", "Good morning! [pause:300ms] How are you today?"), ("ada", "Bye.")]
INPUTS = [DialogueInput(voice_id=voice, text=text) for voice, text in SAID]
TEXT = "".join(text for _, text in SAID)
SPOKEN = {"inputs": INPUTS, "output_format": "pcm_24000", "seed": 3}


@pytest.fixture
def client(gateway: str) -> ElevenLabs:
    return ElevenLabs(api_key="unused", base_url=gateway)


def samples(audio: bytes) -> np.ndarray:
    return np.frombuffer(audio, "<i2").astype(np.int32)


def test_a_dialogue_is_what_the_server_makes_of_it(client: ElevenLabs, triton: TritonServer) -> None:
    entries = [{"voice": "ben" if voice == "onyx" else voice, "text": text} for voice, text in SAID]
    with Client(f"localhost:{triton.grpc_port}") as plain:
        said = plain.synthesize(json.dumps(entries), text_format="dialogue", sampling={"seed": 3}, timeout=PATIENCE)
    expected = np.round(said.audio * 32767)
    whole = samples(b"".join(client.text_to_dialogue.convert(**SPOKEN, model_id="eleven_v3", settings={"stability": 0.5})))
    streamed = samples(b"".join(client.text_to_dialogue.stream(**SPOKEN)))
    for heard in (whole, streamed):
        np.testing.assert_allclose(heard, expected, atol=2)


def test_a_dialogue_with_times_says_who_speaks_when(client: ElevenLabs) -> None:
    answer = client.text_to_dialogue.convert_with_timestamps(**SPOKEN)
    seconds = len(base64.b64decode(answer.audio_base_64)) / 2 / 24_000
    assert answer.alignment is not None
    assert "".join(answer.alignment.characters) == TEXT
    segments = answer.voice_segments
    assert [segment.dialogue_input_index for segment in segments] == [0, 1, 2]
    check_segments(segments, answer.alignment.characters)
    assert segments[-1].end_time_seconds == pytest.approx(seconds, abs=0.001)

    pieces = list(client.text_to_dialogue.stream_with_timestamps(**SPOKEN))
    spoken = b"".join(base64.b64decode(piece.audio_base_64) for piece in pieces)
    assert len(spoken) / 2 / 24_000 == pytest.approx(seconds)
    timed = [piece for piece in pieces if piece.alignment]
    assert len(timed) > 3
    assert "".join(character for piece in timed for character in piece.alignment.characters) == TEXT
    assert all(not piece.voice_segments for piece in pieces if not piece.alignment)
    for piece in timed:
        check_segments(piece.voice_segments, piece.alignment.characters)


def check_segments(segments: list[VoiceSegment], characters: list[str]) -> None:
    """They cover the characters, each with those of its own entry."""
    assert [0, *(segment.character_end_index for segment in segments)] == [
        *(segment.character_start_index for segment in segments),
        len(characters),
    ]
    for segment in segments:
        voice, text = SAID[segment.dialogue_input_index]
        assert segment.voice_id == voice
        assert "".join(characters[segment.character_start_index : segment.character_end_index]) in text
    times = [time for segment in segments for time in (segment.start_time_seconds, segment.end_time_seconds)]
    assert times == sorted(times)


@pytest.fixture
def socket(gateway: str) -> Iterator[ClientConnection]:
    query = "model_id=eleven_v3&output_format=pcm_24000&language_code=en&enable_logging=true&sync_alignment=true"
    with connect(f"{gateway.replace('http', 'ws')}/v1/text-to-dialogue/multi-stream-input?{query}") as opened:
        yield opened


def send(socket: ClientConnection, **message: Any) -> None:
    socket.send(json.dumps(message))


def until_final(socket: ClientConnection) -> list[dict[str, Any]]:
    messages = [json.loads(socket.recv(PATIENCE))]
    while not messages[-1]["is_final"]:
        messages.append(json.loads(socket.recv(PATIENCE)))
    return messages


def test_livekit_streams_text_to_a_voice(socket: ClientConnection) -> None:
    """As its plugin does for eleven_v3; it reads alignments from where the audio of their message begins."""
    send(socket, context_id="one", voices=["ada"], voice_settings={"stability": 0.5})
    for word in SAID[0][1].split():
        send(socket, context_id="one", inputs=[{"text": f"{word} ", "voice_id": "ada"}])
    send(socket, context_id="one", keep_alive=True)
    send(socket, context_id="one", inputs=[{"text": "", "voice_id": "ada"}], flush=True)
    send(socket, context_id="one", close_context=True)
    text, ends, milliseconds = "", [0.0], 0.0
    for message in until_final(socket):
        assert message["context_id"] == "one"
        if alignment := message.get("alignment"):
            text += "".join(alignment["chars"])
            starts = [milliseconds + start for start in alignment["char_start_times_ms"]]
            assert starts[0] == pytest.approx(ends[-1], abs=150 if len(ends) == 1 else 2)  # the first word follows a silence
            ends += [start + length for start, length in zip(starts, alignment["char_durations_ms"], strict=True)]
        milliseconds += len(base64.b64decode(message["audio"] or "")) / 2 / 24
    assert text == f"{SAID[0][1]} "
    assert ends[-1] == pytest.approx(milliseconds, abs=2)
    assert milliseconds > 1000


def test_voices_of_a_context_speak_in_turn_and_one_that_is_unknown_ends_it_alone(socket: ClientConnection) -> None:
    seconds = {}
    for name, voices in (("ada", ["ada"]), ("both", ["ada", "ben"])):
        send(socket, context_id=name, inputs=[{"text": "Good morning. ", "voice_id": voice} for voice in voices], flush=True)
        send(socket, context_id=name, close_context=True)
        seconds[name] = sum(len(base64.b64decode(message["audio"] or "")) for message in until_final(socket)) / 2 / 24_000
    assert seconds["both"] > 1.5 * seconds["ada"] > 0.5
    send(socket, context_id="other", inputs=[{"text": "Good morning. ", "voice_id": "nobody"}], flush=True)
    [refused] = until_final(socket)
    assert (refused["context_id"], "nobody" in refused["message"]) == ("other", True)
    send(socket, context_id="last", inputs=[{"text": "Bye. "}])
    assert json.loads(socket.recv(PATIENCE))["message"].startswith("inputs.0: voice_id")


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"text": "Bye. "}, "inputs: dict is not allowed; give a list"),
        (["Bye. "], "inputs.0: str is not allowed; give an object with text"),
    ],
)
def test_what_is_no_list_of_pieces_is_refused(socket: ClientConnection, inputs: object, message: str) -> None:
    send(socket, inputs=inputs)
    assert json.loads(socket.recv(PATIENCE))["message"].startswith(message)


@pytest.mark.parametrize(
    ("changed", "status", "param"),
    [
        ({"inputs": [INPUTS[0], DialogueInput(voice_id="nobody", text="Hello.")]}, 400, "inputs.1.voice_id"),
        ({"inputs": [INPUTS[0], DialogueInput(voice_id="ben", text=" ")]}, 400, "inputs"),
        ({"inputs": [DialogueInput(voice_id="ben", text="x" * 100_001)]}, 400, "inputs"),
        ({"inputs": [{"text": "Hello."}]}, 422, "inputs.0.voice_id"),
        ({"inputs": []}, 422, "inputs"),
        ({"language_code": "klingon"}, 400, "language_code"),
        ({"output_format": "mp3_7"}, 400, "output_format"),
        ({"audio_effects": {"background_noise_id": "cafe"}}, 400, "audio_effects"),
    ],
)
def test_what_cannot_be_spoken_is_refused_by_name(client: ElevenLabs, changed: dict[str, object], status: int, param: str) -> None:
    with pytest.raises(ApiError) as refused:
        b"".join(client.text_to_dialogue.stream(**{**SPOKEN, **changed}))
    error = refused.value.body["error"]
    assert (refused.value.status_code, error["param"]) == (status, param)
    assert error["message"].startswith(param)


async def test_without_times_of_words_segments_are_those_of_the_audio() -> None:
    """Lines of the server are no entries: the first one has a pause within, the second one nothing to speak."""
    begins = [0, 0, 9, 15]

    async def chunks() -> AsyncGenerator[AudioChunk, None]:
        for index, begin in enumerate(begins):
            yield AudioChunk(np.zeros(12_000, np.float32), 24_000, index, False, "", metadata={"line": 1, "begin": begin})
        yield AudioChunk(np.zeros(0, np.float32), 24_000, 4, True, "stop", metadata={"line": 3, "begin": 15})

    segments = VoiceSegments([("ada", "One. [..] Two."), ("ben", "!"), ("ada", "Three.")])
    heard = [chunk async for chunk in segments.of(chunks())]
    assert len(heard) == 5
    assert [
        (segment["voice_id"], segment["dialogue_input_index"], segment["start_time_seconds"], segment["end_time_seconds"])
        for segment in segments.take([])
    ] == [("ada", 0, 0.0, 1.5), ("ada", 2, 1.5, 2.0)]
    assert segments.take([]) == []
