"""Calls that scripts make of the official class are taken, with one warning for those without effect."""

from __future__ import annotations

import base64
import copy
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from random_voices import recording

import oracle
from api.loading import GREEDY, captured_sampling, load
from engine_lib.api.qwen3_tts import Qwen3TTS
from engine_lib.errors import ConfigError, InvalidRequestError

HELLO: dict[str, Any] = {"text": "Good morning!", "speaker": "ryan"}


@pytest.fixture(scope="module")
def cloner(tiny_base: Path) -> Iterator[Qwen3TTS]:
    with load(tiny_base) as model:
        yield model


@pytest.mark.parametrize(
    "keywords",
    [
        {"trust_remote_code": True},
        {"local_files_only": True, "low_cpu_mem_usage": True, "revision": "main"},
        {"token": "secret", "cache_dir": "/nowhere", "use_safetensors": True},
        {"load_in_4bit": True, "max_memory": {0: "20GiB"}},
    ],
    ids=str,
)
def test_a_keyword_of_transformers_without_effect_is_taken_with_one_warning(keywords: dict[str, Any], tiny_voice_design: Path):
    with pytest.warns(UserWarning, match="no effect here") as warned, load(tiny_voice_design, **keywords) as tts:
        assert tts.config.device == "cpu"
    [warning] = [str(entry.message) for entry in warned if "no effect here" in str(entry.message)]
    assert all(name in warning for name in keywords)
    assert "secret" not in warning


@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
@pytest.mark.parametrize(("dtype", "option"), [(torch.float32, "float32"), ("auto", "auto"), (None, "auto"), ("float32", "float32")])
def test_a_dtype_has_either_of_its_names(name: str, dtype: Any, option: str, tiny_voice_design: Path, recwarn: pytest.WarningsRecorder):
    with load(tiny_voice_design, **{name: dtype}, low_cpu_mem_usage=False, trust_remote_code=None) as tts:
        assert tts.config.dtype == option
    assert not [entry for entry in recwarn if "effect" in str(entry.message)]


@pytest.mark.parametrize("dtype", [torch.float16, torch.half, "float16"])
def test_float16_is_taken_as_auto_with_a_warning(dtype: Any, tiny_voice_design: Path):
    with pytest.warns(UserWarning, match="float16 is not a dtype of this engine; the model runs in bfloat16"):
        load(tiny_voice_design, torch_dtype=dtype).close()


def test_a_slip_of_the_pen_is_still_refused(tiny_voice_design: Path, tts: Qwen3TTS):
    with pytest.raises(ConfigError, match="unknown option trust_remote_cod; allowed: "):
        load(tiny_voice_design, trust_remote_cod=True)
    with pytest.raises(InvalidRequestError, match="temprature: unknown"):
        tts.generate_codes(**HELLO, temprature=0.5)


@pytest.mark.parametrize(
    "keywords",
    [
        {"max_new_tokens": 4096, **GREEDY},
        {"max_new_tokens": 10**9, **GREEDY},
        {"temperature": 0.0, **GREEDY},
        {"top_p": 0.0, **GREEDY},
        {"temperature": 0, "top_p": 0, "subtalker_temperature": 0.0, "subtalker_top_p": 0.0, **GREEDY},
        {"max_new_tokens": np.int64(200), "do_sample": np.bool_(False), "subtalker_dosample": np.bool_(False), "top_k": np.int32(5)},
        {"temperature": np.float32(0.5), "repetition_penalty": np.float64(1.05), **GREEDY},
        {"eos_token_id": 2150, **GREEDY},
    ],
    ids=str,
)
def test_values_that_scripts_give_change_nothing_in_greedy_speech(keywords: dict[str, Any], tts: Qwen3TTS):
    [expected] = tts.generate_codes(**HELLO, **GREEDY)
    [codes] = tts.generate_codes(**HELLO, **keywords)
    assert codes.tolist() == expected.tolist()


def test_numpy_scalars_are_the_numbers_they_hold(tts: Qwen3TTS, monkeypatch: pytest.MonkeyPatch):
    seen = captured_sampling(tts, monkeypatch)
    tts.generate_codes(**HELLO, max_new_tokens=np.int16(4), temperature=np.float64(0.5), top_k=np.int64(3), seed=np.uint8(7))
    assert (seen[0].max_frames, seen[0].temperature, seen[0].top_k, seen[0].seed) == (3, 0.5, 3, 7)


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ({"num_beams": 4, "use_cache": True}, ["num_beams", "use_cache"]),
        ({"streamer": object()}, ["streamer"]),
        ({"ref_audio": "me.wav", "ref_text": "Words."}, ["ref_audio", "ref_text", "custom_voice"]),
    ],
    ids=["num_beams", "streamer", "ref_audio"],
)
def test_arguments_that_the_official_class_ignores_are_ignored_with_one_warning(arguments: dict[str, Any], names: list[str], tts: Qwen3TTS):
    with pytest.warns(UserWarning, match="no effect here") as warned:
        tts.generate_codes(["One.", "Two.", "Three."], "ryan", max_new_tokens=3, **arguments)
    [warning] = [str(entry.message) for entry in warned]
    assert all(name in warning for name in names)


def test_an_instruction_for_a_clone_is_ignored_and_the_warning_says_why(cloner: Qwen3TTS):
    audio = (recording(1.2, 24_000), 24_000)
    arguments: dict[str, Any] = {"text": "Hello.", "ref_audio": audio, "x_vector_only_mode": True, "max_new_tokens": 4} | GREEDY
    [expected] = cloner.generate_codes(**arguments)
    with pytest.warns(UserWarning, match=r"^instruct: no effect here: the checkpoint is of kind base, which does not use it"):
        [codes] = cloner.generate_codes(**arguments, instruct="Whisper.")
    assert codes.tolist() == expected.tolist()


def test_another_end_of_speech_is_refused(tts: Qwen3TTS):
    with pytest.raises(InvalidRequestError, match=r"^eos_token_id: 7 is not allowed; speech ends at 2150"):
        tts.generate_codes(**HELLO, eos_token_id=7)


@pytest.mark.parametrize("value", ["false", "true", 2, 0.5, [True], b"1"])
def test_a_flag_of_another_type_is_refused_by_name(value: Any, tts: Qwen3TTS, cloner: Qwen3TTS):
    with pytest.raises(InvalidRequestError, match=r"^non_streaming_mode: .* give True or False"):
        tts.generate_codes(**HELLO, non_streaming_mode=value)
    modes: list[Any] = [value, [value]] if not isinstance(value, list) else [[value]]
    for mode in modes:
        with pytest.raises(InvalidRequestError, match=r"^x_vector_only_mode: .* give True or False"):
            cloner.create_voice_clone_prompt((recording(1.2, 24_000), 24_000), "Words.", x_vector_only_mode=mode)


def test_a_recording_in_base64_may_have_any_alphabet_and_media_type(cloner: Qwen3TTS, tmp_path: Path):
    file = tmp_path / "voice.wav"
    soundfile.write(file, recording(1.2, 16_000), 16_000)
    data = file.read_bytes()
    plain, for_urls = base64.b64encode(data).decode(), base64.urlsafe_b64encode(data).decode()
    assert "/" in plain
    assert "_" in for_urls
    lines = "\n".join(plain[i : i + 76] for i in range(0, len(plain), 76))
    urls = [f"data:{media};base64,{plain}" for media in ("application/octet-stream", "audio/x-wav", "video/mp4", "")]
    samples, rate = soundfile.read(file, dtype="float32")
    forms: list[Any] = [file, plain, for_urls, lines, *urls, (samples, float(rate)), (samples, np.float64(rate)), (samples, np.int32(rate))]
    x_vector_only: Any = np.bool_(True)
    keys = {item.content_key for item in cloner.create_voice_clone_prompt(forms, x_vector_only_mode=x_vector_only)}
    assert len(keys) == 1


def test_a_tensor_is_the_recording_that_it_holds_as_torchaudio_loads_it_too(cloner: Qwen3TTS):
    samples = recording(1.2, 24_000)
    tensor = torch.from_numpy(samples)
    forms: list[Any] = [(samples, 24_000), (tensor, 24_000), (tensor[None], 24_000), (torch.stack([tensor, tensor]), torch.tensor(24_000))]
    items = cloner.create_voice_clone_prompt(forms, x_vector_only_mode=True)
    assert len({item.content_key for item in items}) == 1


@pytest.mark.parametrize(
    ("audio", "message"),
    [((24_000, np.zeros(24_000)), r"is \(int, ndarray\); give \(samples, sample rate\)"), (torch.zeros(24_000), "is an array without its")],
    ids=["swapped", "tensor"],
)
def test_a_recording_in_another_order_or_without_its_rate_says_what_to_give(audio: Any, message: str, cloner: Qwen3TTS):
    with pytest.raises(InvalidRequestError, match=f"^ref_audio: {message}"):
        cloner.create_voice_clone_prompt(audio, "Words.")


@pytest.mark.parametrize("text", ["/no/such/folder/" + "a" * 300, "data:audio/wav;base64,####", "/" * 5000, "\0", "päth/" * 100])
def test_a_string_that_is_neither_file_nor_recording_is_refused(text: str, cloner: Qwen3TTS):
    with pytest.raises(InvalidRequestError, match=r"^ref_audio: "):
        cloner.create_voice_clone_prompt(text, "Words.")


@pytest.mark.parametrize("x_vector_only", [False, True])
def test_prompt_items_of_the_official_package_are_taken(x_vector_only: bool, cloner: Qwen3TTS):
    audio = (recording(1.2, 24_000), 24_000)
    theirs = oracle.load_official(cloner.checkpoint.path).create_voice_clone_prompt(audio, "Words.", x_vector_only_mode=x_vector_only)
    ours = cloner.create_voice_clone_prompt(audio, "Words.", x_vector_only_mode=x_vector_only)
    arguments: dict[str, Any] = {"text": "Good morning!", "max_new_tokens": 6} | GREEDY
    [expected] = cloner.generate_codes(**arguments, voice_clone_prompt=ours)
    for prompt in (theirs, theirs[0], tuple(theirs)):
        [codes] = cloner.generate_codes(**arguments, voice_clone_prompt=prompt)
        assert codes.tolist() == expected.tolist()


@pytest.mark.parametrize("device_map", ["auto", "balanced", {"": "cpu"}])
def test_a_device_map_that_leaves_the_choice_is_taken(device_map: Any, tiny_voice_design: Path):
    options: dict[str, Any] = {"max_num_seqs": 1, "codec_slots": 1, "max_model_len": 64}
    with Qwen3TTS.from_pretrained(tiny_voice_design, device_map=device_map, **options) as tts:
        assert tts.config.device in ("auto", "cpu")


@pytest.mark.parametrize(
    ("name", "instead"),
    [
        ("model", "get_supported_speakers"),
        ("processor", "give texts"),
        ("device", "config.device"),
        ("generate_defaults", "generation_config"),
    ],
)
def test_an_attribute_of_the_official_object_says_what_there_is_instead(name: str, instead: str, tts: Qwen3TTS):
    assert not hasattr(tts, name)
    with pytest.raises(AttributeError, match=rf"^'Qwen3TTS' object has no attribute '{name}'; .*{instead}"):
        getattr(tts, name)
    with pytest.raises(AttributeError, match=rf"^'Qwen3TTS' object has no attribute '{name}s'$"):
        getattr(tts, f"{name}s")


@pytest.mark.parametrize("copy_of", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_loaded_model_is_not_copied_and_says_where_to_load_it(copy_of: Callable[[object], object], tts: Qwen3TTS):
    """As multiprocessing's spawn and caches of notebooks try."""
    with pytest.raises(TypeError, match="a Qwen3TTS cannot be copied, pickled or sent to a process: its engines run; load it there"):
        copy_of(tts)
