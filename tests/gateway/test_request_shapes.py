"""What other clients send: Open WebUI, SillyTavern, LiveKit, vLLM-Omni's and nano-vllm's."""

from __future__ import annotations

import base64
import io
import json

import httpx
import numpy as np
import soundfile

from gateway.conftest import TEXT


def events(body: str) -> list[str]:
    """The data of server-sent events."""
    return [line.removeprefix("data:").strip() for line in body.splitlines() if line.startswith("data:")]


def test_open_webui_gets_an_mp3_and_the_lists_it_asks_for(http: httpx.Client) -> None:
    answer = http.post("/v1/audio/speech", json={"model": "tts-1", "input": TEXT, "voice": "alloy", "user": "7"})
    assert answer.headers["content-type"] == "audio/mpeg"
    assert soundfile.info(io.BytesIO(answer.content)).format == "MP3"
    assert {voice["id"] for voice in http.get("/v1/audio/voices").json()["voices"]} == {"ada", "ben"}
    assert [model["id"] for model in http.get("/v1/audio/models").json()["models"]] == ["qwen3_tts"]


def test_sillytavern_gets_a_whole_mp3(http: httpx.Client) -> None:
    body = {"model": "tts-1", "input": TEXT, "voice": "shimmer", "response_format": "mp3", "speed": 1}
    answer = http.post("/v1/audio/speech", json=body)
    assert answer.status_code == 200
    assert soundfile.info(io.BytesIO(answer.content)).frames > 24_000


def test_livekit_gets_events_with_mp3_until_done(http: httpx.Client) -> None:
    body = {"model": "gpt-4o-mini-tts", "voice": "ash", "input": TEXT, "response_format": "mp3", "speed": 1.0, "stream_format": "sse"}
    with http.stream("POST", "/v1/audio/speech", json=body) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        data = events(answer.read().decode())
    assert data[-1] == "[DONE]"
    *deltas, done = map(json.loads, data[:-1])
    assert {delta["type"] for delta in deltas} == {"speech.audio.delta"}
    audio = b"".join(base64.b64decode(delta["audio"]) for delta in deltas)
    samples, rate = soundfile.read(io.BytesIO(audio))
    assert done["type"] == "speech.audio.done"
    assert done["finish_reason"] == "stop"
    usage = done["usage"]
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"] == len(TEXT) + usage["output_tokens"]
    assert 0 <= len(samples) / rate - usage["output_tokens"] * 0.08 < 0.2  # priming, and the last frame of an MP3


def test_events_of_a_dialogue_name_the_line_and_its_speaker(http: httpx.Client) -> None:
    said = [{"voice": "ada", "text": "Good morning."}, {"voice": "ben", "text": "Good evening."}]
    body = {"input": json.dumps(said), "text_format": "dialogue", "response_format": "pcm", "stream_format": "sse", "max_new_tokens": 5}
    *deltas, done = map(json.loads, events(http.post("/v1/audio/speech", json=body).text)[:-1])
    assert [(delta["line"], delta["speaker"]) for delta in deltas] == sorted((delta["line"], delta["speaker"]) for delta in deltas)
    assert {(delta["line"], delta["speaker"]) for delta in deltas} == {(1, "ada"), (2, "ben")}
    assert done["finish_reason"] == "length"


def test_fields_of_vllm_omni_and_nano_vllm_work(http: httpx.Client) -> None:
    omni = {"input": TEXT, "voice": "ada", "language": "English", "task_type": "CustomVoice", "seed": 3, "max_new_tokens": 7}
    omni |= {"response_format": "pcm", "stream": True, "initial_codec_chunk_frames": 3, "x_vector_only_mode": None}
    nano = {"text": TEXT, "speaker": "ada", "language": "English", "seed": 3, "max_new_tokens": 7, "response_format": "pcm"}
    one, other = (http.post("/v1/audio/speech", json=body) for body in (omni, nano))
    first, second = (np.frombuffer(answer.content, "<i2").astype(np.int32) for answer in (one, other))
    assert len(first) == 7 * 1920
    np.testing.assert_allclose(first, second, atol=1)  # other chunks, the same speech


def test_telephony_is_mu_law_at_8_khz(http: httpx.Client) -> None:
    body = {"input": TEXT, "voice": "ben", "response_format": "mulaw", "max_new_tokens": 15, "stream": False}
    answer = http.post("/v1/audio/speech", json=body)
    assert answer.headers["content-type"] == "audio/PCMU"
    assert len(answer.content) == 15 * 640


def test_a_whole_wav_says_its_length_and_a_whole_body_its_finish_reason(http: httpx.Client) -> None:
    body = {"input": TEXT, "response_format": "wav", "max_new_tokens": 10, "stream": False}
    answer = http.post("/v1/audio/speech", json=body)
    assert soundfile.info(io.BytesIO(answer.content)).frames == 10 * 1920
    assert int.from_bytes(answer.content[40:44], "little") == 10 * 1920 * 2
    assert answer.headers["x-finish-reason"] == "length"


def test_a_batch_gives_every_item_its_audio_or_its_error(http: httpx.Client) -> None:
    items = [{"input": TEXT}, {"input": TEXT, "voice": "nobody"}, {"input": TEXT, "response_format": "pcm", "voice": "ben"}]
    body = {"items": items, "voice": "ada", "response_format": "wav", "max_new_tokens": 5}
    answer = http.post("/v1/audio/speech/batch", json=body).json()
    assert (answer["total"], answer["succeeded"], answer["failed"]) == (3, 2, 1)
    good, bad, raw = answer["results"]
    assert soundfile.info(io.BytesIO(base64.b64decode(good["audio_data"]))).frames == 5 * 1920
    assert (bad["status"], bad["error"]["param"], bad["audio_data"]) == ("error", "voice", None)
    assert np.frombuffer(base64.b64decode(raw["audio_data"]), "<i2").size == 5 * 1920
    assert http.post("/v1/audio/speech/batch", json={"items": [{"input": TEXT}] * 33}).json()["error"]["param"] == "items"
    assert http.post("/v1/audio/speech/batch", json={"items": [{"input": ""}]}).json()["error"]["param"] == "items.0.input"
