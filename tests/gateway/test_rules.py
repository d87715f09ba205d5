"""The gateway's rules without a server: voices, languages, routes, limits, keys, recordings."""

from __future__ import annotations

import base64
import hashlib
import io
from pathlib import Path

import numpy as np
import pytest
import soundfile
from pydantic import ValidationError

from qwen3_tts_client.errors import InvalidRequest
from qwen3_tts_client.protocol import TEXT_OPTIONS
from qwen3_tts_client.voices import ServedModel, Voice, VoiceList
from qwen3_tts_gateway.elevenlabs import SynthesisRequest
from qwen3_tts_gateway.elevenlabs_formats import encoding_named
from qwen3_tts_gateway.errors import ELEVENLABS_FIELDS, FIELDS, ApiError, api_error
from qwen3_tts_gateway.keys import Keys, new_key
from qwen3_tts_gateway.languages import language_of
from qwen3_tts_gateway.limits import Limits
from qwen3_tts_gateway.recordings import decoded, recording_of
from qwen3_tts_gateway.routing import route
from qwen3_tts_gateway.settings import GatewaySettings, SettingsError, metrics_url
from qwen3_tts_gateway.speech_request import SpeechRequest
from qwen3_tts_gateway.text_feed import TextFeed
from qwen3_tts_gateway.voice_names import OPENAI_VOICES, voice_of

SETTINGS = GatewaySettings()
CUSTOM = ServedModel("qwen3_tts", "custom_voice", ("english",))
BASE = ServedModel("qwen3_tts_base", "base", ("english",))
VIVIAN = Voice(name="vivian", source="built-in", models=("qwen3_tts",))
ANNA = Voice(name="anna", source="stored", models=("qwen3_tts_base",))
BOTH = VoiceList((VIVIAN, ANNA), {}, True, (CUSTOM, BASE))


def request(**values: object) -> SpeechRequest:
    return SpeechRequest.model_validate({"input": "Hello.", **values})


def test_the_thirteen_names_of_openai_never_fail_whatever_the_server_has() -> None:
    assert len(OPENAI_VOICES) == 13
    for name in OPENAI_VOICES:
        assert voice_of(name, ["vivian", "serena", "ryan", "aiden", "uncle_fu"], {}) is not None
        assert voice_of(name.upper(), ["ada", "ben"], {}) in ("ada", "ben")
        assert voice_of(name, ["anna"], {}) is None


def test_an_own_name_goes_before_openais_and_an_unknown_one_stays() -> None:
    assert voice_of("Alloy", ["vivian", "serena"], {"alloy": "vivian"}) == "vivian"
    assert voice_of("nobody", ["vivian"], {}) == "nobody"
    assert voice_of("VIVIAN", ["vivian"], {}) == "vivian"
    assert voice_of("", ["vivian"], {}) is voice_of(" ", ["vivian"], {}) is None
    assert voice_of(" Vivian ", ["vivian"], {}) == "vivian"
    assert voice_of("alloy:0.7 + Me:0.3+bob", ["vivian", "serena"], {"me": "vivian"}) == "serena:0.7+vivian:0.3+bob"
    assert voice_of("a+b", ["a+b", "vivian"], {}) == "a+b"


@pytest.mark.parametrize(
    ("given", "language"),
    [("en", "english"), ("en-GB", "english"), ("zh_CN", "chinese"), ("English", "english"), ("Auto", "auto"), ("j", "japanese")],
)
def test_languages_have_many_names(given: str, language: str) -> None:
    assert language_of(given) == language


def test_no_language_is_left_to_the_server_and_an_unknown_one_too() -> None:
    assert language_of(None) is language_of(" ") is None
    assert language_of("Klingon") == "klingon"


@pytest.mark.parametrize(
    ("values", "model", "voice"),
    [
        ({}, "qwen3_tts", None),
        ({"voice": "vivian"}, "qwen3_tts", "vivian"),
        ({"voice": "anna"}, "qwen3_tts_base", "anna"),
        ({"voice": "anna", "model": "qwen3_tts"}, "qwen3_tts", "anna"),  # the server says what is wrong
        ({"voice": "alloy", "ref_audio": "AAAA"}, "qwen3_tts_base", None),
        ({"model": "qwen3_tts_base"}, "qwen3_tts_base", "anna"),
        ({"task_type": "base"}, "qwen3_tts_base", "anna"),
        ({"model": "tts-1-hd", "voice": {"id": "Anna"}}, "qwen3_tts_base", "anna"),
    ],
)
def test_a_request_finds_its_model(values: dict[str, object], model: str, voice: str | None) -> None:
    found = route(request(**values), BOTH, SETTINGS)
    assert (found.model, found.voice) == (model, voice)


def test_a_design_without_a_model_that_designs_is_refused() -> None:
    with pytest.raises(ApiError, match="task_type: no model here designs voices"):
        route(request(task_type="VoiceDesign"), BOTH, SETTINGS)
    assert route(request(task_type="VoiceDesign"), VoiceList((), {}, False), SETTINGS).model == "qwen3_tts"  # nobody knows


def test_without_the_list_of_voices_a_request_goes_to_the_default_model_as_it_is() -> None:
    found = route(request(voice="vivian"), VoiceList((), {}, False), SETTINGS)
    assert (found.model, found.voice, found.kind) == ("qwen3_tts", "vivian", "")


def test_fields_become_options_of_the_server() -> None:
    fields = {"lang_code": "en-US", "max_new_tokens": 9, "seed": 3, "initial_codec_chunk_frames": 3, "on_runaway": "retry"}
    options = request(**fields, do_sample=False, instructions="").options()
    assert options["language"] == "english"
    assert options["sampling"] == {"max_frames": 9, "seed": 3, "do_sample": False}
    assert options["chunk_frames"] == [3, 4, 8]
    assert options["on_runaway"] == "retry"
    assert options["instruct"] is None
    neutral = ("speed", "sample_rate", "volume_db", "loudness", "trim_silence")
    assert [options[name] for name in neutral] == [None] * 5  # type: ignore[literal-required]
    shaped = request(speed=1.5, response_format="opus", sample_rate=22050, volume_db=-3, loudness="voice", trim_silence=True).options()
    assert [shaped[name] for name in neutral] == [1.5, 48000, -3.0, "voice", True]  # type: ignore[literal-required]
    assert request(response_format="mulaw").options()["sample_rate"] == 8000
    elevenlabs = SynthesisRequest.model_validate({"text": "Hello.", "voice_settings": {"speed": 2}}).spoken("ada").request.options()
    assert elevenlabs["speed"] == 2.0
    assert [options[name] for name in TEXT_OPTIONS] == [None] * 6  # type: ignore[literal-required]
    text = {"text_format": "ssml", "long_form": True, "lexicon": {"a": "b"}, "normalize_text": True, "sentence_pause_ms": 0}
    assert {name: value for name, value in request(**text).options().items() if name in TEXT_OPTIONS and value is not None} == text
    for wrong in (
        {"temperature": float("nan")},
        {"speed": 4.1},
        {"sample_rate": 7999},
        {"on_runaway": "auto"},
        {"response_format": "ogg"},
        {"task_type": "VoiceClone"},
        {"speed": True},
        {"seed": False},
        {"loudness": True},
        {"input": ""},
    ):
        with pytest.raises(ValidationError):
            request(**wrong)


def test_fields_of_a_clone_that_say_nothing_are_not_sent_to_a_model_that_clones_none() -> None:
    options = request(ref_text="", x_vector_only_mode=False).options()
    assert (options["reference_text"], options["x_vector_only"]) == (None, None)


def test_a_lexicon_that_no_server_takes_is_refused_by_name() -> None:
    with pytest.raises(ApiError, match=r"lexicon: it has .* characters as ASCII JSON; allowed: 15000"):
        request(lexicon={f"{number:0150}": "word" for number in range(100)}).options()


def test_a_field_that_is_null_has_its_default() -> None:
    fields = dict.fromkeys(["voice", "speed", "response_format", "stream", "stream_format", "long_form", "text_format"])
    assert request(**fields) == request()
    with pytest.raises(ValidationError):
        request(input=None)


@pytest.mark.parametrize(
    ("fields", "name", "param"),
    [(FIELDS, "max_frames", "max_new_tokens"), (FIELDS, "seed", "seed"), (ELEVENLABS_FIELDS, "language", "language_code")],
)
def test_a_refusal_names_the_field_of_the_request_and_not_the_servers(fields: dict[str, str], name: str, param: str) -> None:
    refused = api_error(InvalidRequest(f"{name}: 0 is not allowed", field=name), fields)
    assert (refused.message, refused.param) == (f"{param}: 0 is not allowed", param)


@pytest.mark.parametrize("name", ["mp3_²", "pcm_١٦٠٠٠", "pcm_" + "9" * 5000, "pcm_8000_", "pcm", "ogg_48000", "PCM_8000", ""])
def test_a_format_of_elevenlabs_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(ApiError, match="output_format: ") as refused:
        encoding_named(name)
    assert (refused.value.status, refused.value.param) == (400, "output_format")
    assert len(refused.value.message) < 250


def test_a_piece_that_is_too_long_leaves_the_text_as_it_was() -> None:
    feed = TextFeed(5)
    feed.put("one")
    with pytest.raises(InvalidRequest):
        feed.put("three")
    feed.put("2")
    assert feed.text == "one2"


def test_limits_of_all_and_of_one_caller() -> None:
    limits = Limits(GatewaySettings(max_streams=3, max_streams_per_caller=2))
    with limits.stream("a"), limits.stream("a"):
        with pytest.raises(ApiError) as refused, limits.stream("a"):
            pass
        assert (refused.value.status, refused.value.code) == (429, "too_many_streams")
        with limits.stream("b"):
            with pytest.raises(ApiError) as refused, limits.stream("c"):
                pass
            assert (refused.value.status, refused.value.retry_after) == (503, 1)
    assert limits.open_streams == 0


def test_the_rate_of_one_caller_does_not_touch_another() -> None:
    limits = Limits(GatewaySettings(requests_per_minute=2))
    for _ in range(2):
        with limits.stream("a"):
            pass
    with pytest.raises(ApiError) as refused, limits.stream("a"):
        pass
    assert refused.value.status == 429
    assert refused.value.retry_after is not None
    assert 0 < refused.value.retry_after <= 30
    with limits.stream("b"):
        assert limits.open_streams == 1


def test_a_key_is_known_by_its_hash_in_any_header_that_clients_send(tmp_path: Path) -> None:
    key, line = new_key("reception")
    file = tmp_path / "keys"
    file.write_text(f"# who may speak\n\n{line}  # until May\nother {hashlib.sha256(b'x').hexdigest()}\n")
    keys = Keys(file)
    assert key not in file.read_text()
    assert keys.name_of({b"authorization": f"Bearer {key}".encode()}) == "reception"
    assert keys.name_of({b"xi-api-key": key.encode()}) == "reception"
    assert keys.name_of({}, f"api_key={key}") == "reception"
    assert keys.name_of({b"authorization": b"Bearer x"}) == keys.name_of({b"authorization": b"bearer  x"}) == "other"
    assert keys.name_of({b"authorization": b"Bearer y"}) is keys.name_of({}) is None


@pytest.mark.parametrize("content", ["", "only-a-name\n", "name 1234\n"])
def test_a_file_without_keys_or_with_another_line_stops_the_start(tmp_path: Path, content: str) -> None:
    file = tmp_path / "keys"
    file.write_text(content)
    with pytest.raises(SettingsError, match="keys_file"):
        Keys(file)
    with pytest.raises(SettingsError, match="cannot be read"):
        Keys(tmp_path / "missing")


def flac(seconds: float, channels: int = 1, rate: int = 8000) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, np.zeros((round(seconds * rate), channels), np.float32), rate, format="FLAC")
    return file.getvalue()


def test_a_recording_is_read_from_base64() -> None:
    clip = recording_of("data:audio/flac;codecs=flac;base64," + base64.b64encode(flac(2, 2)).decode(), "ref_audio")
    assert (len(clip.audio), clip.audio.ndim, clip.sample_rate) == (16_000, 1, 8000)
    assert clip.audio.dtype == np.float32


@pytest.mark.parametrize(
    "given",
    [
        "{lines}",  # as `base64 FILE` and Python's encodebytes write it
        " {line}\r\n",
        "data:audio/flac;base64,{lines}",
        "DATA:audio/flac;Base64,{line}",
        "data:;base64,{line}",
        'data:audio/webm;codecs="opus";base64,{line}',
    ],
)
def test_base64_may_have_line_breaks_and_a_data_url_any_type(given: str) -> None:
    content = flac(2)
    text = given.format(line=base64.b64encode(content).decode(), lines=base64.encodebytes(content).decode())
    assert len(recording_of(text, "ref_audio").audio) == 16_000


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("https://example.org/a.wav", "an address is not allowed"),
        ("file:///etc/passwd", "an address is not allowed"),
        ("data:audio/wav,RIFF", "an address is not allowed"),
        ("/etc/passwd!", "not base64"),
        (base64.b64encode(b"no audio").decode(), "cannot be read as audio"),
        ("", "cannot be read as audio"),
    ],
)
def test_what_is_no_recording_is_refused_by_name(text: str, message: str) -> None:
    with pytest.raises(ApiError, match=f"ref_audio: .*{message}") as refused:
        recording_of(text, "ref_audio")
    assert refused.value.param == "ref_audio"


def test_a_small_file_of_hours_is_refused() -> None:
    with pytest.raises(ApiError, match="longer than 120 s"):
        decoded(flac(600), "ref_audio")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backends": ()}, "backend"),
        ({"backends": ("http://a:8001",)}, "backend"),
        ({"backends": ("a:0",)}, "backend"),
        ({"backends": ("::1:8001",)}, r"backend: .*of IPv6 as \[::1\]:PORT"),
        ({"backends": ("::1",)}, "backend"),
        ({"backends": ("a:1", "a:1")}, "twice"),
        ({"max_streams": 0}, "max_streams"),
        ({"max_bodies_bytes": 999, "max_body_bytes": 1000}, "max_bodies_bytes"),
        ({"encoder_processes": 0}, "encoder_processes"),
        ({"timeout": -1.0}, "timeout"),
        ({"timeout": float("nan")}, "timeout"),
        ({"stall_seconds": 0.0}, "stall_seconds"),
    ],
)
def test_a_wrong_setting_is_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        GatewaySettings(**options)  # type: ignore[arg-type]


def test_the_metrics_of_a_server_are_beside_it() -> None:
    assert metrics_url("tts-1:8001", 8002) == "http://tts-1:8002/metrics"
    assert metrics_url("[::1]:8001", 8002) == "http://[::1]:8002/metrics"
    assert metrics_url("tts-1:8001", 0) == ""
