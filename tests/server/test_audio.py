"""Speed, rates, levels and telephony through a real server: what the chain makes of the plain stream."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tritonclient.grpc as triton

from engine_lib.server.process import TritonServer
from engine_lib.speech.audio.chain import AudioChain
from engine_lib.speech.audio.encoding import alaw, mulaw, pcm16
from engine_lib.speech.audio.loudness import loudness
from engine_lib.speech.audio.settings import AudioSettings
from engine_lib.speech.audio.stage import joined
from patience import eventually
from server.streams import Chunk, Stream, assert_same_speech, audio_of, eventually_free, inputs, metric

SAMPLING = {"seed": 20, "max_frames": 24, "do_sample": False, "subtalker_dosample": False}
CODES = {"pcm16": pcm16, "mulaw": mulaw, "alaw": alaw}


def spoken(server: TritonServer, **fields: Any) -> list[Chunk]:
    with Stream(server, inputs(sampling=SAMPLING | fields)) as stream:
        return stream.all()


@pytest.fixture(scope="module")
def plain(server: TritonServer) -> npt.NDArray[np.float32]:
    return audio_of(spoken(server))


@pytest.mark.parametrize(
    "fields",
    [
        {"sample_rate": 8000},
        {"sample_rate": 48000, "speed": 0.5, "volume_db": -6},
        {"speed": 1.5, "trim_silence": True, "fade_ms": 5, "chunk_frames": [1]},
        {"volume_db": 3},
    ],
    ids=["rate", "slow", "fast and trimmed", "louder"],
)
def test_a_stream_is_what_the_chain_makes_of_the_plain_one(
    server: TritonServer, plain: npt.NDArray[np.float32], fields: dict[str, Any]
) -> None:
    chunks = spoken(server, **fields)
    settings = AudioSettings(**{name: value for name, value in fields.items() if name != "chunk_frames"})
    chain = AudioChain(settings, 24000)
    expected = joined([chain.process(plain), chain.finish(is_cut=chunks[-1].finish_reason == "length")])
    assert {chunk.sample_rate for chunk in chunks} == {fields.get("sample_rate", 24000)}
    assert (chunks[-1].is_final, chunks[-1].audio.size, chunks[-1].has_final_flag) == (True, 0, True)
    assert all(chunk.audio.size for chunk in chunks[:-1])
    assert audio_of(chunks).size == expected.size
    np.testing.assert_allclose(audio_of(chunks), expected, atol=1e-4)


@pytest.mark.parametrize("audio_format", CODES)
def test_telephony_comes_as_text(server: TritonServer, audio_format: str) -> None:
    chunks = spoken(server, audio_format=audio_format, sample_rate=8000)
    sent = b"".join(base64.b64decode(chunk.audio_base64) for chunk in chunks)
    assert_same_speech(sent, CODES[audio_format](audio_of(spoken(server, sample_rate=8000))), audio_format)
    assert not audio_of(chunks).size


def test_a_whole_answer_has_the_rate_and_the_samples_of_the_stream(server: TritonServer) -> None:
    fields = {"sample_rate": 16000, "speed": 0.8, "audio_format": "mulaw"}
    with triton.InferenceServerClient(f"localhost:{server.grpc_port}") as client:
        answer = client.infer("qwen3_tts_offline", inputs(sampling=SAMPLING | fields))
    assert answer.as_numpy("sample_rate").tolist() == [16000]
    whole = base64.b64decode(answer.as_numpy("audio_base64")[0])
    assert_same_speech(whole, b"".join(base64.b64decode(chunk.audio_base64) for chunk in spoken(server, **fields)), "mulaw")


def test_a_voice_has_one_gain_once_a_whole_utterance_was_heard(server: TritonServer) -> None:
    first, second = (audio_of(spoken(server, loudness=-30, max_frames=40)) for _ in range(2))
    loud = np.abs(first) > 0.01
    ratios = second[loud] / first[loud]
    assert np.ptp(ratios) < 1e-2
    assert loudness(second, 24000) == pytest.approx(-30, abs=1)
    assert loudness(first, 24000) != pytest.approx(-30, abs=1)


def test_samples_beyond_full_scale_are_cut_off_and_counted(server: TritonServer) -> None:
    before = metric(server, "clipped_samples_total")
    assert np.abs(audio_of(spoken(server, volume_db=20))).max() == 1
    eventually(lambda: metric(server, "clipped_samples_total") > before, "the samples that were cut off are counted")


def test_a_cancelled_stream_with_a_chain_ends_and_frees_everything(small_server: TritonServer) -> None:
    for _ in range(5):
        with Stream(small_server, inputs(sampling={"seed": 1, "speed": 0.5, "sample_rate": 8000})) as stream:
            stream.next()
    eventually_free(small_server)
