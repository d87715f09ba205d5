"""Messages and answers survive the trip through tensors, which are those of config.pbtxt."""

from __future__ import annotations

import base64
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from engine_lib.delivery import AudioFormat, ChunkPolicy, Delivery
from engine_lib.serving.backend import Tensors
from engine_lib.serving.message import AudioAnswer, CodesMessage
from engine_lib.serving.secret import ServerSecret
from engine_lib.speech.audio.settings import AudioSettings
from engine_lib.talker.request import CodesChunk
from engine_lib.talker.script.lines import LinePart

MODEL_REPOSITORY = Path(__file__).parents[2] / "model_repository"
SECRET = ServerSecret(b"of the tests")
TRITON_TYPES = {"INT16": np.int16, "INT32": np.int32, "FP32": np.float32, "UINT8": np.uint8, "BOOL": np.bool_, "STRING": np.object_}


AUDIO = AudioSettings(16000, 1.5, -3.0, True, -16.0, 5, "talker/ada")


def message(audio_format: AudioFormat = AudioFormat.FLOAT32, part: LinePart | None = None, **changes: object) -> CodesMessage:
    codes = np.arange(32, dtype=np.int16).reshape(2, 16)
    fields: dict[str, object] = {"codes": codes, "stream_key": "k", "index": 3} | changes
    delivery = Delivery((1, 2), ChunkPolicy.ADAPTIVE, audio_format, AUDIO, sparse_answers=True)
    return CodesMessage(CodesChunk(**fields), delivery, part=part)  # type: ignore[arg-type]


def answer(audio_format: AudioFormat, metadata: str = "") -> AudioAnswer:
    audio = np.array([0.0, 0.5, -1.0, 1.0, 2.0], np.float32)
    return AudioAnswer(audio, 24000, 7, False, "", "", audio_format, metadata)


def configured(model: str, section: str) -> dict[str, type]:
    """Names and numpy types of the tensors a config.pbtxt lists."""
    text = (MODEL_REPOSITORY / model / "config.pbtxt").read_text()
    block = re.search(rf"^{section} \[\n(.*?)^\]", text, re.MULTILINE | re.DOTALL)
    assert block is not None
    return {name: TRITON_TYPES[kind] for name, kind in re.findall(r'name: "(\w+)" data_type: TYPE_(\w+)', block[1])}


def types(tensors: Tensors) -> dict[str, type]:
    return {name: tensor.dtype.type for name, tensor in tensors.items()}


@pytest.mark.parametrize(
    "original",
    [
        message(),
        message(audio_format=AudioFormat.PCM16_BASE64),
        message(is_reference=True),
        message(part=LinePart(3, 2), metadata='{"line": 4}'),
        message(part=LinePart(3, 0, 5000), codes=np.empty((0, 16), np.int16)),
        message(codes=np.empty((0, 16), np.int16), is_final=True, finish_reason="error", error="größer als erlaubt"),
    ],
    ids=["frames", "as base64", "reference", "of a script", "silence", "final"],
)
def test_a_message_is_the_same_after_unpacking(original: CodesMessage) -> None:
    unpacked = CodesMessage.unpack(original.pack(SECRET), SECRET)
    np.testing.assert_array_equal(unpacked.chunk.codes, original.chunk.codes)
    assert unpacked.chunk.codes.shape == original.chunk.codes.shape
    for name in ("stream_key", "index", "is_final", "finish_reason", "error", "is_reference", "metadata"):
        assert getattr(unpacked.chunk, name) == getattr(original.chunk, name)
    assert (unpacked.delivery, unpacked.part) == (original.delivery, original.part)


def test_unpacked_codes_are_a_copy() -> None:
    tensors = message().pack(SECRET)
    unpacked = CodesMessage.unpack(tensors, SECRET)
    tensors["codes"][:] = -1
    assert unpacked.chunk.codes.min() == 0


@pytest.mark.parametrize("header", [b"", b"\0" * 11, b"\0" * 12 + b"\xff"])
def test_a_broken_header_is_refused(header: bytes) -> None:
    tensors = message().pack(SECRET)
    for signature in (b"", SECRET.sign(header + tensors["codes"].tobytes())):
        with pytest.raises(ValueError, match="header: "):
            CodesMessage.unpack(tensors | {"header": np.frombuffer(signature + header, np.uint8)}, SECRET)


def test_a_message_that_was_changed_or_comes_from_elsewhere_is_refused() -> None:
    tensors = message().pack(SECRET)
    one_more_frame = np.concatenate([tensors["codes"], tensors["codes"][:1]])
    other_header = tensors["header"].copy()
    other_header[-1] ^= 1
    for changes, secret in (
        ({}, ServerSecret(b"of another server")),
        ({"codes": tensors["codes"] + 1}, SECRET),
        ({"codes": one_more_frame}, SECRET),
        ({"header": other_header}, SECRET),
        ({"header": tensors["header"][:33]}, SECRET),
    ):
        with pytest.raises(ValueError, match="no signature of this server"):
            CodesMessage.unpack(tensors | changes, secret)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"codes": np.zeros((65, 16), np.int16)}, "codes: has 65 frames; a chunk has at most 64"),
        ({"codes": np.zeros((101, 16), np.int16), "is_reference": True}, "at most 100 frames of 64 codes are allowed"),
        ({"codes": np.zeros((1, 65), np.int16)}, "at most 100 frames of 64 codes are allowed"),
        ({"codes": np.zeros(16, np.int16)}, "at most 100 frames of 64 codes are allowed"),
        ({"stream_key": ""}, "stream_key: has 0 characters; 1 to 300 are allowed"),
        ({"stream_key": "k" * 301}, "stream_key: has 301 characters; 1 to 300 are allowed"),
        ({"stream_key": "k" * 300_000}, "header: has shape [300"),
        ({"index": -1}, "index: -1 is not allowed"),
        ({"index": 2**31}, "index: 2147483648 is not allowed"),
        ({"finish_reason": "tired"}, "finish_reason, error: 'tired' with 0 characters"),
        ({"metadata": "x" * 300_000}, "header: has shape [300"),
        ({"part": LinePart(-1)}, "line, index: -1, 0 are not allowed"),
        ({"part": LinePart(2**31)}, "line, index: 2147483648, 0 are not allowed"),
        ({"part": LinePart(0, -1)}, "line, index: 0, -1 are not allowed"),
        ({"part": LinePart(0, 0, 1)}, "silence_ms: 1 is not allowed with 2 frames"),
        ({"part": LinePart(0, 0, 5001), "codes": np.empty((0, 16), np.int16)}, "silence_ms: 5001 is not allowed with 0 frames"),
        ({"part": LinePart(0, 0, -1), "codes": np.empty((0, 16), np.int16)}, "silence_ms: -1 is not allowed"),
    ],
)
def test_a_message_beyond_the_limits_is_refused_even_if_it_is_signed(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError) as error:
        CodesMessage.unpack(message(**changes).pack(SECRET), SECRET, max_reference_frames=100)
    assert problem in str(error.value)


def test_a_reference_may_have_more_frames_than_a_chunk_and_a_long_error_is_cut() -> None:
    reference = message(codes=np.zeros((100, 16), np.int16), is_reference=True).pack(SECRET)
    assert len(CodesMessage.unpack(reference, SECRET, max_reference_frames=100).chunk.codes) == 100
    long = message(is_final=True, finish_reason="error", error="😀" * 5000, stream_key="😀" * 300)
    assert CodesMessage.unpack(long.pack(SECRET), SECRET).chunk.error == "😀" * 1000


def test_the_configs_list_exactly_the_tensors_that_travel() -> None:
    packed = types(message().pack(SECRET))
    assert configured("talker", "output") == packed
    assert configured("codec_decoder", "input") == packed
    answered = types(answer(AudioFormat.FLOAT32, "{}").pack())
    assert configured("codec_decoder", "output") == answered
    assert configured("qwen3_tts", "output") == answered


def test_the_ensemble_takes_what_the_talker_takes_but_control_requests() -> None:
    talker = configured("talker", "input")
    assert talker.pop("cancel") is talker.pop("silence") is talker.pop("store_voice") is np.object_
    assert talker.pop("hold") is np.float32
    assert configured("qwen3_tts", "input") == talker


def test_an_answer_without_metadata_has_no_tensor_for_it() -> None:
    assert "metadata" not in answer(AudioFormat.FLOAT32).pack()
    assert answer(AudioFormat.FLOAT32, '{"line": 1}').pack()["metadata"].tolist() == [b'{"line": 1}']


def test_a_sparse_answer_has_only_what_tells_its_client_something_new() -> None:
    floats, text = answer(AudioFormat.FLOAT32), answer(AudioFormat.PCM16, '{"line": 1}')
    assert list(floats.pack(known_rate=24000)) == ["audio"]
    assert list(floats.pack(known_rate=0)) == list(floats.pack(known_rate=8000)) == ["audio", "sample_rate"]
    assert list(text.pack(known_rate=24000)) == ["audio", "audio_base64", "metadata"]
    assert list(replace(floats, finish_reason="stop", error="e").pack(known_rate=24000)) == ["audio", "finish_reason", "error"]
    for whole in (floats, text):
        assert {name: whole.pack()[name].tolist() for name in whole.pack(24000)} == as_lists(whole.pack(24000))
    last = replace(floats, is_final=True)
    assert as_lists(last.pack(known_rate=24000)) == as_lists(last.pack())


def as_lists(tensors: Tensors) -> dict[str, Any]:
    return {name: tensor.tolist() for name, tensor in tensors.items()}


def test_what_is_told_of_a_chunk_travels_and_the_scores_behind_it_do_not() -> None:
    told = '{"words":[{"word":"Grüße","start":0.1,"end":0.4,"index":0}]}'
    sent = message(scores=np.zeros((2, 1, 5), np.float16), metadata=told)
    chunk = CodesMessage.unpack(sent.pack(SECRET), SECRET).chunk
    assert (chunk.metadata, chunk.scores) == (told, None)
    audio = np.zeros(4, np.float32)
    tensors = AudioAnswer(audio, 24000, 7, False, "", "", AudioFormat.FLOAT32, told).pack()
    assert tensors["metadata"][0].decode() == told
    assert "metadata" not in answer(AudioFormat.FLOAT32).pack()


def test_audio_travels_as_floats_or_as_base64_but_never_as_both() -> None:
    floats, text = answer(AudioFormat.FLOAT32).pack(), answer(AudioFormat.PCM16_BASE64).pack()
    assert (len(floats["audio"]), floats["audio_base64"][0]) == (5, b"")
    assert len(text["audio"]) == 0
    samples = np.frombuffer(base64.b64decode(text["audio_base64"][0]), "<i2")
    np.testing.assert_array_equal(samples, [0, 16384, -32767, 32767, 32767])
