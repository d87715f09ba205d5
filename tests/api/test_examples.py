"""Scripts written for the official package run when they import this library instead.

Each test follows one of its example scripts (its wheel has none): the same calls, keywords and list shapes, on tiny
checkpoints and with few tokens. The keywords are those of the scripts, also if they have no effect on this machine.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf
import torch
from random_voices import recording

import engine_lib
from engine_lib import Qwen3TTS as Qwen3TTSModel
from engine_lib import VoiceClonePromptItem
from engine_lib.errors import ConfigError

COMMON: dict[str, Any] = {
    "max_new_tokens": 16,
    "do_sample": True,
    "top_k": 50,
    "top_p": 1.0,
    "temperature": 0.9,
    "repetition_penalty": 1.05,
    "subtalker_dosample": True,
    "subtalker_top_k": 50,
    "subtalker_top_p": 1.0,
    "subtalker_temperature": 0.9,
}
TEXTS = ["Good one. Okay, fine, I'm just gonna leave this here. Goodbye.", "其实我真的有发现，我是一个特别善于观察别人情绪的人。"]
LANGUAGES = ["Chinese", "English"]


def load(path: Path) -> Qwen3TTSModel:
    return Qwen3TTSModel.from_pretrained(
        str(path), device_map="cpu", dtype=torch.float32, attn_implementation="flash_attention_2", max_num_seqs=4, codec_slots=4
    )


def assert_written(result: tuple[list[Any], int], count: int, folder: Path) -> None:
    """Fails unless `result` is `count` waveforms that a script can write to files."""
    wavs, sr = result
    assert len(wavs) == count
    for i, wav in enumerate(wavs):
        sf.write(folder / f"{i}.wav", wav, sr)
        written, rate = sf.read(folder / f"{i}.wav")
        assert rate == 24000
        assert 0 < len(written) <= (COMMON["max_new_tokens"] - 1) * 1920
        assert np.isfinite(written).all()


@pytest.fixture(scope="module")
def base(tiny_base: Path) -> Iterator[Qwen3TTSModel]:
    with load(tiny_base) as tts:
        yield tts


@pytest.mark.parametrize("xvec_only", [False, True])
def test_the_script_for_base_checkpoints(xvec_only: bool, base: Qwen3TTSModel, tmp_path: Path):
    paths = [str(tmp_path / "clone_1.wav"), str(tmp_path / "clone_2.wav")]
    for path, seconds in zip(paths, (2.1, 1.3), strict=True):
        sf.write(path, recording(seconds, 44_100, 2), 44_100)
    texts = ["Okay. Yeah. You know what? You blew it!", "甚至出现交易几乎停滞的情况。"]
    single: dict[str, Any] = {"ref_audio": paths[0], "ref_text": texts[0], "x_vector_only_mode": xvec_only}
    batch: dict[str, Any] = {"ref_audio": paths, "ref_text": texts, "x_vector_only_mode": [xvec_only, xvec_only]}
    one: dict[str, Any] = {"text": TEXTS[0], "language": "Auto"} | COMMON
    two: dict[str, Any] = {"text": TEXTS, "language": LANGUAGES} | COMMON
    for prompt, speech, count in ((single, one, 1), (single, two, 2), (batch, two, 2)):
        assert_written(base.generate_voice_clone(**speech, **prompt), count, tmp_path)
        prompt_items = base.create_voice_clone_prompt(**prompt)
        assert_written(base.generate_voice_clone(**speech, voice_clone_prompt=prompt_items), count, tmp_path)


def test_the_script_for_voice_design_checkpoints(tiny_voice_design: Path, tmp_path: Path):
    with load(tiny_voice_design) as tts:
        one = tts.generate_voice_design(text=TEXTS[1], language="Chinese", instruct="音调偏高且起伏明显", max_new_tokens=16)
        assert_written(one, 1, tmp_path)
        instructs = ["音调偏高且起伏明显", "Speak in an incredulous tone, but with a hint of panic."]
        assert_written(tts.generate_voice_design(text=TEXTS, language=LANGUAGES, instruct=instructs, max_new_tokens=16), 2, tmp_path)


def test_the_script_for_custom_voice_checkpoints(tiny_custom_voice_1b7: Path, tmp_path: Path):
    with load(tiny_custom_voice_1b7) as tts:
        one = tts.generate_custom_voice(
            text=TEXTS[1], language="Chinese", speaker="Vivian", instruct="用特别愤怒的语气说", max_new_tokens=16
        )
        assert_written(one, 1, tmp_path)
        speakers, instructs = ["Vivian", "Ryan"], ["", "Very happy."]
        batch = tts.generate_custom_voice(text=TEXTS, language=LANGUAGES, speaker=speakers, instruct=instructs, max_new_tokens=16)
        assert_written(batch, 2, tmp_path)


def test_a_designed_voice_is_cloned_and_reused(tiny_voice_design: Path, base: Qwen3TTSModel, tmp_path: Path):
    said = "Please wait a moment, I am almost there."
    with load(tiny_voice_design) as designer:
        for seed in range(20):  # random weights: not every text lasts the second that a reference must
            ref_wavs, sr = designer.generate_voice_design(
                text=said, language="English", instruct="A bright voice.", max_new_tokens=17, seed=seed
            )
            if len(ref_wavs[0]) >= sr:
                break
    voice_clone_prompt = base.create_voice_clone_prompt(ref_audio=(ref_wavs[0], sr), ref_text=said)
    for text, language in zip(TEXTS, LANGUAGES, strict=True):
        assert_written(
            base.generate_voice_clone(text=text, language=language, voice_clone_prompt=voice_clone_prompt, **COMMON), 1, tmp_path
        )
    both = base.generate_voice_clone(text=TEXTS, language=LANGUAGES, voice_clone_prompt=voice_clone_prompt, **COMMON)
    assert_written(both, 2, tmp_path)


def test_a_saved_prompt_is_loaded_as_the_official_demo_does(base: Qwen3TTSModel, tmp_path: Path):
    [item] = base.create_voice_clone_prompt((recording(1.2, 24_000), 24_000), "Words.")
    names = ("ref_code", "ref_spk_embedding", "x_vector_only_mode", "icl_mode", "ref_text")
    loaded = VoiceClonePromptItem(**{name: getattr(item, name) for name in names})
    assert loaded.content_key == item.content_key
    assert_written(base.generate_voice_clone("Hello.", voice_clone_prompt=[loaded], **COMMON), 1, tmp_path)


@pytest.mark.parametrize("device_map", ["cpu", torch.device("cpu"), {"": "cpu"}, {"talker": torch.device("cpu"), "codec": "cpu"}])
def test_a_device_map_of_one_device_is_that_device(device_map: Any, tiny_voice_design: Path):
    with Qwen3TTSModel.from_pretrained(tiny_voice_design, device_map=device_map, max_num_seqs=1, codec_slots=1) as tts:
        assert tts.config.device == "cpu"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"device_map": {"a": "cuda:0", "b": "cuda:1"}}, "device_map: .* is not one device; .* tensor_parallel_size"),
        ({"attn_implementation": "paged"}, "attn_implementation: 'paged' .* flash_attention_2, .* attention_backend"),
        ({"dtype": torch.float64}, "dtype: 'float64' .* bfloat16"),
        ({"trust_remote": True}, "unknown option trust_remote; allowed: "),
    ],
    ids=str,
)
def test_a_keyword_that_cannot_be_heeded_is_refused_by_name(arguments: dict[str, Any], message: str, tiny_voice_design: Path):
    with pytest.raises(ConfigError, match=f"^{message}"):
        Qwen3TTSModel.from_pretrained(tiny_voice_design, **arguments)


def test_importing_the_library_loads_nothing_until_it_is_used():
    code = "import sys, engine_lib; assert 'torch' not in sys.modules; engine_lib.Qwen3TTSError; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="Qwen4TTS"):
        _ = engine_lib.Qwen4TTS
