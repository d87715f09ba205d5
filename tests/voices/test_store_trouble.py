"""A store in trouble: locked for ever, on a full disk, with odd things in it, or with half a voice."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from engine_lib.errors import InvalidRequestError, StoreError
from engine_lib.voices.clone_prompt import VoiceClonePromptItem
from engine_lib.voices.store import VoiceStore


@pytest.fixture
def store(tmp_path: Path) -> VoiceStore:
    return VoiceStore(tmp_path / "voices", max_voices=5, max_voice_bytes=100_000)


def add(store: VoiceStore, consent: str = "Anna, by letter") -> None:
    item = VoiceClonePromptItem(None, torch.ones(4), True, False)
    store.add("anna", item, consent=consent, reference_seconds=2.0, reference_sample_rate=24000, made_by="tiny")


def test_a_writer_that_keeps_the_lock_keeps_nobody_waiting_for_ever(store: VoiceStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine_lib.voices.folder.LOCK_SECONDS", 0.05)
    add(store)
    with (store.folder / ".lock").open() as stopped:
        fcntl.flock(stopped, fcntl.LOCK_EX)
        with pytest.raises(StoreError, match=r"voice_store: another process has kept the folder locked for 0\.05 s"):
            store.remove("anna")
    store.remove("anna")


@pytest.mark.parametrize("has_room_for", [0, 1])
def test_a_full_disk_is_named_and_leaves_nothing(store: VoiceStore, monkeypatch: pytest.MonkeyPatch, has_room_for: int) -> None:
    room = [has_room_for]  # files of the two of a voice

    def full(_descriptor: int) -> None:
        room[0] -= 1
        if room[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match="voice_store: the folder cannot be written: No space left on device"):
        add(store)
    assert [file.name for file in store.folder.iterdir()] == [".lock"]


def test_a_folder_in_the_place_of_a_voice_is_named(store: VoiceStore) -> None:
    (store.folder / "odd.json").mkdir()
    with pytest.raises(InvalidRequestError, match=r"^name: odd.json is a folder"):
        store.remove("odd")


@pytest.mark.parametrize("consent", ["", " ", "\0", "\x01\x02", "..."])
def test_a_consent_says_something(store: VoiceStore, consent: str) -> None:
    with pytest.raises(InvalidRequestError, match=r"^consent: has no letter or digit"):
        add(store, consent)


def is_left_by_a_killed_writer(store: VoiceStore) -> None:
    """A voice's tensors, without its facts."""
    script = (
        "import os, signal, sys; from engine_lib.voices import store; from voices import test_store_trouble as test\n"
        "write = store.write_file\n"
        "def killed(file, content):\n"
        "    write(file, content)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "store.write_file = killed\n"
        "test.add(store.VoiceStore(sys.argv[1], max_voices=5, max_voice_bytes=100_000))"
    )
    folders = [str(Path(__file__).parents[1]), *sys.path]
    ended = subprocess.run([sys.executable, "-c", script, store.folder], env=os.environ | {"PYTHONPATH": os.pathsep.join(folders)})
    assert ended.returncode == -signal.SIGKILL
    assert [file.name for file in store.folder.iterdir() if file.suffix] == ["anna.safetensors"]


def test_tensors_that_a_killed_writer_has_left_are_removed_at_a_start(store: VoiceStore, monkeypatch: pytest.MonkeyPatch) -> None:
    is_left_by_a_killed_writer(store)
    again = partial(VoiceStore, store.folder, max_voices=5, max_voice_bytes=100_000)
    again()
    assert (store.folder / "anna.safetensors").exists()  # its facts may yet come: someone copies a backup back
    monkeypatch.setattr("engine_lib.voices.store.ORPHAN_SECONDS", -1.0)
    with (store.folder / ".lock").open() as busy:
        fcntl.flock(busy, fcntl.LOCK_EX)
        again()  # another server writes, and may be between the two files
        assert (store.folder / "anna.safetensors").exists()
    again()
    assert [file.name for file in store.folder.iterdir()] == [".lock"]
    add(store)
    again()
    assert again().names() == ["anna"]
    assert (store.folder / "anna.safetensors").exists()


def test_tensors_that_a_killed_writer_has_left_go_with_the_next_write(store: VoiceStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine_lib.voices.store.ORPHAN_SECONDS", -1.0)
    is_left_by_a_killed_writer(store)
    (store.folder / "bea.safetensors").mkdir()
    (store.folder / "model.safetensors").write_bytes(b"\x30\0\0\0\0\0\0\0" + b'{"text_projection.weight": ..')  # someone else's
    add(store)
    assert {file.name for file in store.folder.iterdir()} == {
        ".lock", "anna.json", "anna.safetensors", "bea.safetensors", "model.safetensors"
    }  # fmt: skip
