"""Options of a model come from its config.pbtxt and the environment, and a bad one is named."""

from __future__ import annotations

import json

import pytest

from engine_lib.errors import ConfigError
from engine_lib.serving.options import engine_config


def arguments(**parameters: str) -> dict[str, str]:
    values = {name: {"string_value": value} for name, value in parameters.items()}
    return {"model_config": json.dumps({"parameters": values}), "model_repository": "/models/talker"}


def test_parameters_become_options_and_empty_ones_keep_the_default() -> None:
    config = engine_config(arguments(model_path="/ckpt", max_num_seqs="3", device=""), {})
    assert (config.model_path, config.max_num_seqs, config.device) == ("/ckpt", 3, "auto")


def test_the_environment_wins() -> None:
    assert engine_config(arguments(model_path="/a"), {"QWEN3_TTS_MODEL_PATH": "/b"}).model_path == "/b"


def test_the_python_backends_own_parameters_are_left_alone() -> None:
    assert engine_config(arguments(model_path="/a", FORCE_CPU_ONLY_INPUT_TENSORS="no"), {}).model_path == "/a"


def test_a_path_may_begin_at_the_models_folder() -> None:
    assert engine_config(arguments(model_path="$$TRITON_MODEL_DIRECTORY/../ckpt"), {}).model_path == "/models/talker/../ckpt"


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"model_path": "/a", "max_nun_seqs": "3"}, "unknown option max_nun_seqs"),
        ({"model_path": "/a", "Max_Nun_Seqs": "3"}, "unknown option Max_Nun_Seqs"),
        ({"model_path": "/a", "MAX_NUM_SEQS": "3"}, "MAX_NUM_SEQS: is no name of a parameter; write max_num_seqs"),
        ({"model_path": "/a", "QWEN3_TTS_DEVICE": "cpu"}, "QWEN3_TTS_DEVICE: is no name of a parameter; write device"),
        ({"model_path": "/a", "max_num_seqs": "0"}, "max_num_seqs: 0 is outside 1"),
        ({}, "model_path: is not set; give .* QWEN3_TTS_MODEL_PATH"),
    ],
)
def test_a_bad_option_is_named(parameters: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        engine_config(arguments(**parameters), {})
