"""Options: typed, checked, overridden by the environment; errors name option, value, allowed values."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from print_options import options_page

from engine_lib.config import EngineConfig, unknown_variables
from engine_lib.errors import ConfigError

NOTHING: dict[str, str] = {}  # an environment without overrides


def test_defaults_are_valid_and_documented():
    config = EngineConfig.from_options({}, NOTHING)
    assert config == EngineConfig()
    for spec in fields(EngineConfig):
        assert spec.metadata["help"].endswith("."), spec.name


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("max_num_seqs", "8", 8),
        ("max_num_seqs", " 8 ", 8),
        ("max_num_seqs", 8, 8),
        ("gpu_memory_utilization", "0.5", 0.5),
        ("codec_idle_timeout", 3, 3.0),
        ("enforce_eager", "true", True),
        ("enforce_eager", " Yes", True),
        ("enforce_eager", "on", True),
        ("enforce_eager", "1", True),
        ("enforce_eager", "OFF", False),
        ("enforce_eager", "no", False),
        ("enforce_eager", "0", False),
        ("enforce_eager", False, False),
        ("chunk_frames", "1,2,4", (1, 2, 4)),
        ("chunk_frames", " 3 ", (3,)),
        ("chunk_frames", [2, 2], (2, 2)),
        ("chunk_frames", (5,), (5,)),
        ("dtype", "bfloat16", "bfloat16"),
        ("max_waiting_requests", "0", 0),
        ("model_path", "/models/voice", "/models/voice"),
    ],
)
def test_an_option_may_be_a_string_or_a_typed_value(name: str, text: Any, value: Any):
    config = EngineConfig.from_options({name: text}, NOTHING)
    assert getattr(config, name) == value
    assert type(getattr(config, name)) is type(value)


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("max_num_seqs", "0", "1 to 1024"),
        ("max_num_seqs", "1025", "1 to 1024"),
        ("max_num_seqs", "many", "a whole number"),
        ("max_num_seqs", "", "a whole number"),
        ("max_num_seqs", 2.0, "a whole number"),
        ("max_num_seqs", True, "a whole number"),
        ("max_num_seqs", None, "a whole number"),
        ("max_model_len", -1, "16 to 1048576"),
        ("max_waiting_requests", 2**70, "0 to 2147483647"),
        ("text_idle_seconds", "inf", "0.1 to 2147483647"),
        ("codec_idle_timeout", 1e308, "0.1 to 2147483647"),
        ("num_threads", "100000000", "0 to 4096"),
        ("gpu_memory_utilization", "1.5", "0.05 to 0.98"),
        ("gpu_memory_utilization", "nan", "0.05 to 0.98"),
        ("gpu_memory_utilization", "half", "a number"),
        ("enforce_eager", "maybe", "true or false"),
        ("enforce_eager", 2, "true or false"),
        ("dtype", "float16", "auto, float32, bfloat16"),
        ("attention_backend", "fast", "auto, torch, triton, flash-attn"),
        ("device", 0, "a string"),
        ("chunk_frames", "", "whole numbers separated by commas"),
        ("chunk_frames", "1,two", "whole numbers separated by commas"),
        ("chunk_frames", "1;2", "whole numbers separated by commas"),
        ("chunk_frames", 4, "whole numbers separated by commas"),
        ("chunk_frames", [1.5], "whole numbers separated by commas"),
        ("chunk_frames", (1, 0), "1 to 64"),
        ("chunk_frames", (1, 65), "1 to 64"),
    ],
)
def test_a_bad_value_is_named_with_what_is_allowed(name: str, value: Any, allowed: str):
    with pytest.raises(ConfigError) as error:
        EngineConfig.from_options({name: value}, NOTHING)
    message = str(error.value)
    assert message.startswith(f"{name}: ")
    assert allowed in message
    assert str(value) in message


def test_a_bad_value_is_quoted_in_part_and_may_hold_no_nul():
    with pytest.raises(ConfigError) as error:
        EngineConfig.from_options({"max_num_seqs": "9" * 5000}, NOTHING)
    assert len(str(error.value)) < 250
    with pytest.raises(ConfigError, match=r"^voice_store: .* holds a NUL character"):
        EngineConfig(voice_store="a\0b")


def test_an_unknown_option_is_named_with_those_that_exist():
    with pytest.raises(ConfigError, match=r"unknown option max_seqs, speed; allowed: model_path, .*max_num_seqs"):
        EngineConfig.from_options({"speed": "1", "max_seqs": "2", "dtype": "auto"}, NOTHING)


def test_the_environment_overrides_an_option():
    environment = {"QWEN3_TTS_MAX_NUM_SEQS": "5", "QWEN3_TTS_CHUNK_FRAMES": "2,8", "QWEN3_TTS_UNRELATED": "x", "MAX_MODEL_LEN": "99"}
    config = EngineConfig.from_options({"max_num_seqs": "7", "max_model_len": "64"}, environment)
    assert (config.max_num_seqs, config.max_model_len, config.chunk_frames) == (5, 64, (2, 8))


def test_a_bad_value_from_the_environment_is_refused_like_any_other():
    with pytest.raises(ConfigError, match="max_num_seqs: 'all' is not a whole number; give 1 to 1024"):
        EngineConfig.from_options({"max_num_seqs": "7"}, {"QWEN3_TTS_MAX_NUM_SEQS": "all"})


def test_the_environment_of_the_process_is_read_where_none_is_given(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("QWEN3_TTS_KV_BLOCK_SIZE", "32")
    assert EngineConfig.from_options({}).kv_block_size == 32


def test_every_running_stream_needs_a_codec_slot():
    with pytest.raises(ConfigError, match=r"codec_slots: 4 is less than max_num_seqs \(8\)"):
        EngineConfig(max_num_seqs=8, codec_slots=4)
    assert EngineConfig(max_num_seqs=8, codec_slots=8).codec_slots == 8


def test_the_shortest_recording_may_not_be_longer_than_the_longest():
    with pytest.raises(ConfigError, match=r"reference_min_seconds: 9 is more than reference_max_seconds \(5\)"):
        EngineConfig(reference_min_seconds=9, reference_max_seconds=5)


def test_the_page_of_options_is_that_of_the_code() -> None:
    assert (Path(__file__).parents[1] / "docs" / "options.md").read_text(encoding="utf-8") == options_page()


def test_a_name_that_python_cannot_give_to_a_file_is_refused_with_the_remedy():
    code = "from engine_lib.config import EngineConfig\ntry: EngineConfig(voice_store='/\\u58f0')\nexcept ValueError as error: print(error)"
    ascii_only = os.environ | {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}
    run = subprocess.run([sys.executable, "-c", code], env=ascii_only, capture_output=True, text=True, check=True)
    assert re.match(r"voice_store: '/.u58f0' is not ASCII, .*; give a symbolic link with an ASCII name", run.stdout)


def test_a_variable_that_sets_no_option_is_named_with_the_nearest_one() -> None:
    environment = {"QWEN3_TTS_MAX_NUM_SEQ": "5", "QWEN3_TTS_MAX_NUM_SEQS": "5", "QWEN3_TTS_URL": "x", "QWEN3_TTS_QQQ": "", "PATH": "/"}
    assert unknown_variables(environment) == [
        "the environment variable QWEN3_TTS_MAX_NUM_SEQ has no effect; did you mean QWEN3_TTS_MAX_NUM_SEQS?",
        "the environment variable QWEN3_TTS_QQQ has no effect",
    ]
