"""Files of a checkpoint that cannot be read are named; one that changes later changes no weight."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from engine_lib.checkpoint import Checkpoint, Weights
from engine_lib.errors import CheckpointError


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
