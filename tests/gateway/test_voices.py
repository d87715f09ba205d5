"""Voices over HTTP, and how requests find the model: a server with a checkpoint of each kind."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import soundfile
from openai import BadRequestError, OpenAI
from random_voices import recording

from engine_lib.server.process import TritonServer
from gateway.conftest import TEXT, RunningGateway
from patience import PATIENCE

WORDS, CONSENT = "What the reference says.", "The reader agreed."
CUT = {"max_new_tokens": 3, "response_format": "pcm", "stream": False}


@pytest.fixture(scope="module")
def http(three_kinds: TritonServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    with (
        RunningGateway([three_kinds], tmp_path_factory.mktemp("gateway") / "log", "--voice-name", "reader=anna") as gateway,
        httpx.Client(base_url=gateway.url, timeout=PATIENCE) as client,
    ):
        yield client


def wav(seconds: float = 1.5) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, recording(seconds, 22_050, 2), 22_050, format="WAV")
    return file.getvalue()


def speech(http: httpx.Client, **body: Any) -> httpx.Response:
    answer = http.post("/v1/audio/speech", json={"input": TEXT, **CUT, **body})
    assert answer.status_code == 200, answer.text
    assert 0 < len(answer.content) <= 3 * 1920 * 2
    return answer


def test_a_voice_is_added_listed_spoken_with_and_deleted(http: httpx.Client) -> None:
    form = {"name": "Anna", "consent": CONSENT, "ref_text": WORDS, "lexicon": '{"SQL": "sequel"}'}
    added = http.post("/v1/audio/voices", data=form, files={"audio_sample": ("anna.wav", wav(), "audio/wav")}).json()
    assert (added["id"], added["object"], added["type"]) == ("anna", "audio.voice", "audio_sample")
    assert added["created_at"] > 1_700_000_000
    assert added["lexicon_words"] == 1
    listed = {voice["id"]: voice for voice in http.get("/v1/audio/voices").json()["data"]}
    assert listed["anna"] == added
    assert listed["vivian"]["type"] == "built_in"
    assert http.get("/v1/audio/voices/ANNA").json() == added
    assert [consent["voice"] for consent in http.get("/v1/audio/voice_consents").json()["data"]] == ["anna"]
    assert http.get("/v1/audio/voice_consents/cons_anna").json()["object"] == "audio.voice_consent"
    for name in ("anna", "reader"):  # the second is the operator's other name for it
        answer = speech(http, voice=name, model="tts-1")
        assert (answer.headers["x-voice"], answer.headers["x-model"]) == ("anna", "qwen3_tts_base")
    assert http.delete("/v1/audio/voices/anna").json() == {"id": "anna", "object": "audio.voice.deleted", "deleted": True}
    assert http.delete("/v1/audio/voices/anna").status_code == 404
    assert http.get("/v1/audio/voice_consents/cons_anna").status_code == 404


@pytest.mark.parametrize(
    ("form", "files", "status", "param"),
    [
        ({"name": "x"}, True, 422, "consent"),
        ({"name": "x", "consent": "yes"}, False, 422, "audio_sample"),
        ({"consent": "yes"}, True, 422, "name"),
        ({"name": "../x", "consent": "yes"}, True, 400, "name"),
        ({"name": "x", "consent": "yes", "type": "prompt", "prompt": "deep"}, False, 400, "type"),
        ({"name": "x", "consent": "yes", "lexicon": "[1]"}, True, 400, "lexicon"),
        ({"name": "x", "consent": "yes", "lexicon": '{"a": 1}'}, True, 400, "lexicon"),
        ({"name": "x", "blend": "anna+ben"}, True, 400, "blend"),
        ({"name": "x", "blend": "vivian+ryan"}, False, 400, "blend"),
    ],
)
def test_a_voice_that_lacks_something_is_refused_by_name(
    http: httpx.Client, form: dict[str, str], files: bool, status: int, param: str
) -> None:
    sample = {"audio_sample": ("a.wav", wav(), "audio/wav")} if files else {"other": ("a", b"", "text/plain")}
    answer = http.post("/v1/audio/voices", data=form, files=sample)
    assert (answer.status_code, answer.json()["error"]["param"]) == (status, param)


def test_what_is_no_recording_is_refused(http: httpx.Client) -> None:
    answer = http.post("/v1/audio/voices", data={"name": "x", "consent": "yes"}, files={"audio_sample": ("a.wav", b"RIFF", "audio/wav")})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "audio_sample")
    short = http.post("/v1/audio/voices", data={"name": "x", "consent": "yes"}, files={"audio_sample": ("a.wav", wav(0.01), "audio/wav")})
    assert (short.status_code, short.json()["error"]["param"]) == (400, "audio_sample")
    assert http.post("/v1/audio/voice_consents", json={}).json()["error"]["code"] == "not_supported"


@pytest.mark.parametrize("prefix", ["data:audio/wav;base64,", ""])
def test_a_reference_is_spoken_by_the_model_that_clones(http: httpx.Client, prefix: str) -> None:
    audio = prefix + base64.b64encode(wav()).decode()
    answer = speech(http, voice="alloy", ref_audio=audio, ref_text=WORDS)
    assert (answer.headers["x-model"], answer.headers["x-voice"]) == ("qwen3_tts_base", "default")
    speech(http, ref_audio=audio, x_vector_only_mode=True, task_type="Base")


def test_a_request_finds_the_model_of_its_name_its_task_or_its_voice(http: httpx.Client) -> None:
    assert speech(http, voice="vivian").headers["x-model"] == "qwen3_tts"
    assert speech(http, voice="alloy", model="qwen3_tts_design", instructions="A deep voice.").headers["x-model"] == "qwen3_tts_design"
    assert speech(http, task_type="VoiceDesign", instructions="A deep voice.").headers["x-model"] == "qwen3_tts_design"
    assert speech(http, voice="nova").headers["x-voice"] == "vivian"
    assert {model["id"]: model["kind"] for model in http.get("/v1/models").json()["data"]} == {
        "qwen3_tts": "custom_voice",
        "qwen3_tts_base": "base",
        "qwen3_tts_design": "voice_design",
    }


def test_a_dialogue_of_elevenlabs_has_voices_of_several_models(http: httpx.Client) -> None:
    form = {"name": "eva", "consent": CONSENT}
    http.post("/v1/audio/voices", data=form, files={"audio_sample": ("eva.wav", wav(), "audio/wav")}).raise_for_status()
    inputs = [{"voice_id": voice, "text": "Hi."} for voice in ("vivian", "eva", "vivian")]
    lines = http.post("/v1/text-to-dialogue/stream/with-timestamps?output_format=pcm_8000", json={"inputs": inputs}).text.splitlines()
    segments = [segment for line in lines for segment in json.loads(line)["voice_segments"]]
    said = [(segment["dialogue_input_index"], segment["voice_id"]) for segment in segments]
    assert list(dict.fromkeys(said)) == [(0, "vivian"), (1, "eva"), (2, "vivian")] == sorted(set(said))
    assert http.delete("/v1/audio/voices/eva").status_code == 200


def test_openais_client_stores_a_voice_speaks_with_it_and_deletes_it(http: httpx.Client) -> None:
    with OpenAI(base_url=f"{str(http.base_url).rstrip('/')}/v1", api_key="unused", max_retries=0, timeout=PATIENCE) as client:
        stored = client.audio.voices.create(name="bob", audio_sample=("bob.wav", wav()), consent=CONSENT)
        assert (stored.id, stored.type) == ("bob", "audio_sample")
        assert [consent.name for consent in client.audio.voice_consents.list()] == ["bob"]
        speech = client.audio.speech.create(model="tts-1", voice={"id": stored.id}, input=TEXT, extra_body=CUT)
        assert speech.response.headers["x-voice"] == "bob"
        assert client.audio.voices.delete("bob").deleted
        with pytest.raises(BadRequestError) as refused:
            client.audio.voices.create(name="deep", type="prompt", prompt="A deep voice.")
    assert refused.value.param == "type"


def test_a_blend_is_spoken_and_stored(http: httpx.Client) -> None:
    for name in ("anna", "ben"):
        form = {"name": name, "consent": CONSENT}
        http.post("/v1/audio/voices", data=form, files={"audio_sample": (f"{name}.wav", wav(), "audio/wav")}).raise_for_status()
    answer = speech(http, voice="reader:0.7+Ben:0.3", model="tts-1")  # reader is anna's other name
    assert (answer.headers["x-voice"], answer.headers["x-model"]) == ("anna%3A0.7%2Bben%3A0.3", "qwen3_tts_base")
    added = http.post("/v1/audio/voices", data={"name": "duo", "blend": "anna:0.7+ben:0.3"}, files={"other": ("a", b"", "text/plain")})
    assert (added.json()["id"], added.json()["blend"]) == ("duo", "anna:0.7+ben:0.3")
    assert speech(http, voice="duo").headers["x-model"] == "qwen3_tts_base"
    assert speech(http, voice="vivian+ryan").headers["x-model"] == "qwen3_tts"
    refused = http.post("/v1/audio/speech", json={"input": TEXT, "voice": "vivian+nobody", **CUT})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "voice")
    assert "in the blend, 'nobody' is unknown" in refused.json()["error"]["message"]
    for name in ("anna", "ben", "duo"):
        assert http.delete(f"/v1/audio/voices/{name}").status_code == 200
