"""Files of a checkpoint that cannot be read are named; one that changes later changes no weight."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from engine_lib.checkpoint import Checkpoint, Weights
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
