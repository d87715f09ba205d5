"""Files of a checkpoint that cannot be read are named; one that changes later changes no weight."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine_lib.checkpoint import Checkpoint, Shard, Weights
from engine_lib.errors import CheckpointError

ROOT = Path(__file__).parents[1]


@pytest.fixture
def folder(tiny_custom_voice_1b7: Path, tmp_path: Path) -> Path:
    """Return a copy that a test may damage."""
    return Path(shutil.copytree(tiny_custom_voice_1b7, tmp_path / "checkpoint"))


def a_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def a_link_to_itself(file: Path) -> None:
    file.unlink()
    file.symlink_to(file.name)


def deep_json(file: Path) -> None:
    file.write_text("[" * 200_000)


def a_number_too_long(file: Path) -> None:
    file.write_text('{"a": ' + "9" * 5000 + "}")


@pytest.mark.parametrize("file", ["config.json", "generation_config.json", "speech_tokenizer/config.json"])
@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (a_folder, "cannot be read: Is a"),
        (a_link_to_itself, "cannot be read: Too many"),
        (deep_json, "not valid"),
        (a_number_too_long, "not valid"),
    ],
)
def test_a_json_file_that_cannot_be_read_is_named(folder: Path, file: str, damage: Callable[[Path], None], reason: str):
    damage(folder / file)
    with pytest.raises(CheckpointError, match=f"{file}.* {reason}"):
        Checkpoint(folder)


# Without root's privilege to read every file, if root runs the tests.
ORDINARY = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.getuid() == 0 else []
READER = """
import sys
from pathlib import Path
from engine_lib.checkpoint_files import checkpoint_folder, why_unreadable
from engine_lib.errors import CheckpointError
folder = Path(sys.argv[1])
print(why_unreadable(folder / "private", "whatever a library says"))
(folder / "inside").chmod(0)
try:
    checkpoint_folder(folder / "inside")
except CheckpointError as error:
    print(error)
"""


def test_what_may_not_be_read_is_said_so(tmp_path: Path):
    (tmp_path / "inside").mkdir()
    (tmp_path / "private").touch(0o000)
    command = [*ORDINARY, sys.executable, "-c", READER, str(tmp_path)]
    weights, folder = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    (tmp_path / "inside").chmod(0o700)
    assert weights == f"{tmp_path / 'private'} cannot be read: Permission denied"
    assert folder.startswith(f"model_path: '{tmp_path / 'inside'}' may not be read by user {os.getuid()}; ")


def test_the_path_of_a_checkpoint_may_be_any_nonsense():
    for path in ("x" * 5000, "a\0b"):
        with pytest.raises(CheckpointError, match=r"^model_path: .* is not a folder"):
            Checkpoint(path)


def test_a_file_that_changes_later_changes_no_weight(folder: Path):
    weights = Weights(folder)
    name = "talker.model.norm.weight"
    [size] = weights.stored(name).shape
    taken = weights.take(name, (size,), dtype=torch.float32, device=torch.device("cpu"))
    before = taken.clone()
    assert before.any()
    file = folder / "model.safetensors"
    with file.open("r+b") as content:
        content.write(bytes(file.stat().st_size))
    assert torch.equal(taken, before)


# What people have instead of a checkpoint, or half of one


@pytest.mark.parametrize("path", ["", "  "])
def test_the_path_of_a_variable_that_was_not_set_is_called_empty(path: str):
    with pytest.raises(CheckpointError, match=r"^model_path: is empty; give a checkpoint folder"):
        Checkpoint(path)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_a_file_of_a_checkpoint_is_told_to_be_its_folder(folder: Path, file: str):
    with pytest.raises(CheckpointError, match=rf"{file}' is not a folder; give a checkpoint folder in .*, perhaps the one that it is in$"):
        Checkpoint(folder / file)


def test_the_address_of_a_page_is_its_hub_id():
    with pytest.raises(CheckpointError, match=r"is not a folder; nothing .* hf download Some-Org/Some-TTS --local-dir Some-TTS$"):
        Checkpoint("https://huggingface.co/Some-Org/Some-TTS")


@pytest.mark.parametrize("config", [{"model_type": "whisper"}, {"model_type": "qwen3_omni_moe", "talker_config": {}}])
def test_a_checkpoint_of_another_family_is_called_that(config: dict[str, Any], folder: Path):
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=rf"config.json: model_type is '{config['model_type']}'; give a Qwen3-TTS checkpoint"):
        Checkpoint(folder)


def test_the_codec_alone_is_called_that(folder: Path):
    with pytest.raises(CheckpointError, match="model_type is 'qwen3_tts_tokenizer_12hz'; give a Qwen3-TTS checkpoint"):
        Checkpoint(folder / "speech_tokenizer")


def test_a_folder_of_gguf_files_is_called_that(tmp_path: Path):
    (tmp_path / "tts-q4_k.gguf").touch()
    with pytest.raises(CheckpointError, match=r"has tts-q4_k.gguf and no config.json; GGUF is not read"):
        Checkpoint(tmp_path)


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "model.pt", "model.gguf", "model.fp16.safetensors", "model-00001-of-00002.safetensors"]
)
def test_weights_of_another_name_or_format_are_named(name: str, folder: Path):
    (folder / "model.safetensors").rename(folder / name)
    with pytest.raises(CheckpointError, match=rf"either; {name} is not read: give the weights as model.safetensors, in the layout of"):
        Weights(folder)


def changed(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Path:
    save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("wrapper", ["module.", "model.", "_orig_mod.", "module._orig_mod."])
def test_weights_saved_with_what_wraps_the_model_are_those_of_the_model(wrapper: str, folder: Path):
    expected = load_file(folder / "model.safetensors")
    weights = Weights(changed(folder, lambda tensors: {f"{wrapper}{name}": tensor for name, tensor in tensors.items()}))
    assert weights.names() == sorted(expected)
    for name in ("talker.model.norm.weight", "talker.codec_head.weight"):
        assert torch.equal(
            weights.take(name, expected[name].shape, dtype=torch.float32, device=torch.device("cpu")), expected[name].float()
        )
    name = "talker.model.codec_embedding.weight"
    [row] = weights.rows(name, expected[name].shape, [3])
    assert row.tolist() == expected[name][3].float().tolist()


def packed(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: torch.zeros(8, 2, dtype=torch.uint32) if tensor.ndim == 2 else tensor for name, tensor in tensors.items()}


def as_codes(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"{name.removesuffix('weight')}qweight" if name.endswith("_proj.weight") else name: tensor for name, tensor in tensors.items()}


def unmerged(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {f"base_model.{name}": tensor for name, tensor in tensors.items()}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (packed, r"weight talker.model.layers.0.self_attn.q_proj.weight is torch.uint32; a quantised checkpoint is not supported"),
        (as_codes, r"weight talker.model.layers.0.self_attn.q_proj.weight is missing; a quantised checkpoint is not supported"),
        (unmerged, r"is missing; base_model.talker.model.layers.0.self_attn.q_proj.weight is there: .* with adapters merged"),
    ],
)
def test_weights_that_a_tool_has_changed_say_what_to_give(change: Any, message: str, folder: Path):
    weights = Weights(changed(folder, change))
    with pytest.raises(CheckpointError, match=message):
        weights.take("talker.model.layers.0.self_attn.q_proj.weight", (96, 96), dtype=torch.float32, device=torch.device("cpu"))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_of_a_training_that_went_wrong_are_named(value: float, folder: Path):
    name = "talker.codec_head.weight"

    def spoilt(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        tensors[name][-1, -1] = value
        return tensors

    weights = Weights(changed(folder, spoilt))
    own: dict[str, Any] = {"dtype": torch.bfloat16, "device": torch.device("cpu")}
    shape = weights.stored(name).shape
    with pytest.raises(CheckpointError, match=f"weight {name} holds NaN or infinity; training went wrong"):
        weights.take(name, shape, **own)
    with pytest.raises(CheckpointError, match=f"weight {name} holds NaN or infinity; training went wrong"):
        weights.take_shard(name, shape, Shard(1, 2), dim=1, **own)
    weights.take_shard(name, shape, Shard(0, 2), dim=1, **own)


def test_a_tokenizer_without_the_tokens_around_a_text_is_refused(folder: Path):
    """It would read them as words, and the official package does."""
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(CheckpointError, match=r"the tokenizer has no token <\|im_start\|>; copy tokenizer_config.json from the original"):
        _ = Checkpoint(folder).tokenizer
