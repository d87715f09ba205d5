"""Times of words through every door of a real server with the voice in the box."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from elevenlabs.client import ElevenLabs
from typer.testing import CliRunner

from engine_lib.server.process import TritonServer
from engine_lib.speech.words import word_spans
from gateway.test_elevenlabs import received, send, socket_of
from patience import PATIENCE
from qwen3_tts_client import Client, InvalidRequest, Speech, TimedWord
from qwen3_tts_client.cli import app
from qwen3_tts_gateway.word_times import CharacterTimes

pytestmark = pytest.mark.usefixtures("quiet_log")
TEXT = "There is a small penguin, in the window!"
WORDS = [(start, TEXT[start:end]) for start, end in word_spans(TEXT)]


def speak(triton: TritonServer, **options: Any) -> Speech:
    with Client(f"localhost:{triton.grpc_port}") as client:
        return client.synthesize(TEXT, voice="ada", sampling={"seed": 3}, timeout=PATIENCE, **options)


def test_words_come_with_the_audio_and_change_none_of_it(triton: TritonServer) -> None:
    timed, plain = speak(triton, timestamps="word"), speak(triton)
    assert [(word.index, word.word) for word in timed.words] == WORDS
    assert plain.words == ()
    np.testing.assert_allclose(timed.audio, plain.audio, atol=1e-5)
    times = [time for word in timed.words for time in (word.start, word.end)]
    assert times == sorted(times)
    assert 0.1 < times[0] < 0.25
    assert times[-1] <= timed.seconds
    faster = speak(triton, timestamps="word", speed=2.0)
    np.testing.assert_allclose([word.start for word in faster.words], [word.start / 2 for word in timed.words], atol=0.002)


def test_pieces_of_a_text_have_the_words_of_the_whole(triton: TritonServer) -> None:
    whole = speak(triton, timestamps="word", chunk_frames=[3])
    options: dict[str, Any] = {"voice": "ada", "sampling": {"seed": 3, "non_streaming_mode": False}, "timestamps": "word"}
    with Client(f"localhost:{triton.grpc_port}") as client:
        fed = client.synthesize(TEXT, timeout=PATIENCE, **options)
        del options["sampling"]["non_streaming_mode"]
        pieces = client.synthesize([TEXT[:13], TEXT[13:30], TEXT[30:]], timeout=PATIENCE, **options)
    assert [(word.index, word.word) for word in pieces.words] == [(word.index, word.word) for word in fed.words]
    times, expected = ([(word.start, word.end) for word in speech.words] for speech in (pieces, fed))
    np.testing.assert_allclose(times, expected, atol=0.002)  # the scores of two streams are rounded to 16 bits
    assert [word.word for word in pieces.words] == [word.word for word in whole.words]


def test_the_whole_utterance_in_one_response_has_all_words(triton: TritonServer) -> None:
    parameters = json.dumps({"seed": 3, "timestamps": "word"})
    tensors = {"text": TEXT, "voice": "ada", "sampling_parameters": parameters}
    inputs = [{"name": name, "shape": [1], "datatype": "BYTES", "data": [value]} for name, value in tensors.items()]
    url = f"http://localhost:{triton.http_port}/v2/models/qwen3_tts_offline/infer"
    outputs = {output["name"]: output["data"] for output in httpx.post(url, json={"inputs": inputs}, timeout=PATIENCE).json()["outputs"]}
    assert [word["word"] for word in json.loads(outputs["metadata"][0])["words"]] == [word for _, word in WORDS]


def test_a_value_that_is_none_is_refused_by_name(triton: TritonServer) -> None:
    with pytest.raises(InvalidRequest, match="timestamps: 'letter' is not allowed; choose one of none, word"):
        speak(triton, timestamps="letter")


LINES = ("There is a small penguin.", "My brother has two dogs.", "The cat sleeps.")


@pytest.mark.parametrize("shape", [{}, {"speed": 2.0, "sample_rate": 16000}], ids=["as it is", "faster"])
def test_the_words_of_a_script_are_those_of_its_lines_on_one_clock(triton: TritonServer, shape: dict[str, Any]) -> None:
    entries = [{"text": text, "voice": "ada", "pause_ms": 300 * number} for number, text in enumerate(LINES)]
    options: dict[str, Any] = {"voice": "ada", "sampling": {"seed": 3}, "timeout": PATIENCE, "timestamps": "word"} | shape
    with Client(f"localhost:{triton.grpc_port}") as client:
        script = client.synthesize(json.dumps(entries), text_format="dialogue", **options)
        alone = [client.synthesize(text, **options) for text in LINES]
    expected, begin, index = [], 0.0, 0
    for number, (text, speech) in enumerate(zip(LINES, alone, strict=True)):
        begin += 0.3 * number
        expected += [(word.word, begin + word.start, begin + word.end, index + word.index) for word in speech.words]
        begin, index = begin + speech.seconds, index + len(text)
    assert [(word.word, word.index) for word in script.words] == [(word, index) for word, _, _, index in expected]
    times = [(word.start, word.end) for word in script.words]
    np.testing.assert_allclose(times, [(start, end) for _, start, end, _ in expected], atol=0.003)
    assert script.seconds == pytest.approx(begin, abs=0.003)


def test_subtitles_of_a_long_text_have_its_punctuation(triton: TritonServer, tmp_path: Path) -> None:
    text, file = tmp_path / "long.txt", tmp_path / "long.srt"
    text.write_text("There is a small penguin, in the window!\n\nMy brother has two dogs.")
    url = f"localhost:{triton.grpc_port}"
    arguments = ["say", str(text), "-o", str(tmp_path / "a.wav"), "--url", url, "--voice", "ada", "--timestamps", str(file)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    shown = [line for line in file.read_text().splitlines() if line and not line[0].isdigit()]
    assert " ".join(shown) == "There is a small penguin, in the window! My brother has two dogs."


@pytest.mark.parametrize("suffix", ["srt", "json"])
def test_the_command_line_writes_subtitles(suffix: str, triton: TritonServer, tmp_path: Path) -> None:
    file = tmp_path / f"words.{suffix}"
    url = f"localhost:{triton.grpc_port}"
    result = CliRunner().invoke(app, ["say", TEXT, "-o", str(tmp_path / "a.wav"), "--url", url, "--timestamps", str(file)])
    assert result.exit_code == 0, result.output
    content = file.read_text()
    assert "There is a small penguin, in the window!" in content if suffix == "srt" else len(json.loads(content)["words"]) == len(WORDS)


def test_openai_events_have_words(gateway: str) -> None:
    body = {"input": TEXT, "voice": "ada", "response_format": "pcm", "stream_format": "sse", "timestamps": "word"}
    with httpx.stream("POST", f"{gateway}/v1/audio/speech", json=body, timeout=PATIENCE) as response:
        events = [json.loads(line[6:]) for line in response.iter_lines() if line.startswith("data: {")]
    words = [word for event in events for word in event.get("words", [])]
    assert [(word["index"], word["word"]) for word in words] == WORDS
    assert "words" not in events[0]


def test_elevenlabs_alignments_have_every_character(gateway: str) -> None:
    client = ElevenLabs(api_key="unused", base_url=gateway)
    whole = client.text_to_speech.convert_with_timestamps("ada", text=TEXT, output_format="pcm_24000")
    seconds = len(base64.b64decode(whole.audio_base_64)) / 2 / 24_000
    assert whole.alignment is not None
    assert "".join(whole.alignment.characters) == TEXT
    assert whole.alignment.character_end_times_seconds[-1] == pytest.approx(seconds, abs=0.001)
    assert whole.alignment == whole.normalized_alignment
    pieces = [piece.alignment for piece in client.text_to_speech.stream_with_timestamps("ada", text=TEXT) if piece.alignment]
    assert len(pieces) > 1
    assert "".join(character for piece in pieces for character in piece.characters) == TEXT


@pytest.mark.parametrize("sync_alignment", ["true", "false"])
def test_elevenlabs_sockets_align_all_utterances_of_a_context(gateway: str, sync_alignment: str) -> None:
    with socket_of(gateway, "multi-stream-input", sync_alignment=sync_alignment) as socket:
        for text in (f"{TEXT} ", "Good morning. "):
            send(socket, text=text, context_id="one", flush=True)
        send(socket, close_socket=True)
        audio, messages = received(socket)
    alignments = [message["alignment"] for message in messages if message.get("alignment")]
    assert "".join(character for alignment in alignments for character in alignment["chars"]) == f"{TEXT} Good morning. "
    ends = [alignment["charStartTimesMs"][-1] + alignment["charDurationsMs"][-1] for alignment in alignments]
    milliseconds = len(audio["one"]) / 2 / 24
    assert (ends[-1] if sync_alignment == "true" else sum(ends)) == pytest.approx(milliseconds, abs=len(ends))


def test_characters_between_words_take_the_pause() -> None:
    characters = CharacterTimes(10.0).add("ab, c!", [TimedWord("ab", 0.2, 0.4, 0), TimedWord("c", 0.8, 1.0, 4)], 1.5)
    assert "".join(character for character, _, _ in characters) == "ab, c!"
    assert [start for _, start, _ in characters] == pytest.approx([10.2, 10.3, 10.4, 10.6, 10.8, 11.0])
    assert [end for _, _, end in characters] == pytest.approx([10.3, 10.4, 10.6, 10.8, 11.0, 11.5])
