"""Stored voices come back unchanged in any process; bad files are refused by name, one by one."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save

from engine_lib.checkpoint_config import CheckpointConfig
from engine_lib.errors import ConfigError, InvalidRequestError, StoreError
from engine_lib.speech.blend import Blend
from engine_lib.voices.clone_prompt import VoiceClonePromptItem
from engine_lib.voices.store import VoiceStore
from engine_lib.voices.store_checks import checked_name
from engine_lib.voices.stored_voice import StoredVoice

FRAMES = 7
MAX_BYTES = 100_000


@pytest.fixture(scope="module")
def config(tiny_base: Path) -> CheckpointConfig:
    return CheckpointConfig.read(tiny_base)


@pytest.fixture
def store(tmp_path: Path) -> VoiceStore:
    return open_store(tmp_path)


def open_store(folder: Path, max_voices: int = 5) -> VoiceStore:
    return VoiceStore(folder / "voices", max_voices=max_voices, max_voice_bytes=MAX_BYTES)


def voice(config: CheckpointConfig, *, x_vector_only: bool = False) -> VoiceClonePromptItem:
    generator = torch.Generator().manual_seed(3)
    codes = torch.randint(
        config.codec.codebook_size, (config.talker.num_code_groups, FRAMES), generator=generator
    ).T  # as encoders give them
    embedding = torch.randn(config.talker.shape.hidden_size, generator=generator)
    if x_vector_only:
        return VoiceClonePromptItem(None, embedding, True, False)
    return VoiceClonePromptItem(codes, embedding, False, True, "größe 大小")


def add(store: VoiceStore, item: VoiceClonePromptItem, name: str = "anna", **changes: Any) -> StoredVoice:
    facts: dict[str, Any] = {"consent": "Anna, by letter", "reference_seconds": 0.5, "reference_sample_rate": 16000, "made_by": "tiny"}
    return store.add(name, item, **facts | changes)


@pytest.mark.parametrize("x_vector_only", [False, True])
def test_a_voice_comes_back_as_it_was_in_another_store_object(tmp_path: Path, config: CheckpointConfig, x_vector_only: bool) -> None:
    item = voice(config, x_vector_only=x_vector_only)
    added = add(open_store(tmp_path), item, "Anna")
    again = open_store(tmp_path)
    assert again.load("ANNA", config).content_key == item.content_key
    assert again.show("anna") == added
    assert again.list() == ([added], {})
    assert (added.name, added.consent, added.reference_text) == ("anna", "Anna, by letter", item.ref_text)


def test_a_loaded_voice_is_read_again_only_when_its_files_change(store: VoiceStore, config: CheckpointConfig) -> None:
    add(store, voice(config))
    first = store.load("anna", config)
    assert store.load("anna", config) is first
    open_store(store.folder.parent).remove("anna")
    with pytest.raises(InvalidRequestError, match="'anna' is not a stored voice; stored: none"):
        store.load("anna", config)
    other = voice(config, x_vector_only=True)
    add(store, other)
    assert store.load("anna", config).content_key == other.content_key


def test_removing_frees_the_name_and_leaves_no_file(store: VoiceStore, config: CheckpointConfig) -> None:
    add(store, voice(config))
    with pytest.raises(InvalidRequestError, match="name: 'anna' is taken"):
        add(store, voice(config))
    store.remove("anna")
    assert [path.name for path in store.folder.iterdir()] == [".lock"]
    with pytest.raises(InvalidRequestError, match="is not a stored voice"):
        store.remove("anna")
    add(store, voice(config))


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "../anna",
        "a/b",
        "a\\b",
        "/etc/passwd",
        ".hidden",
        "-rf",
        "_a",
        "a..b",
        "a.",
        "a b",
        "a\n",
        "a\0b",
        "ä",
        "\u212a",
        "a" * 65,
    ],
)
def test_a_name_that_could_be_a_path_or_an_option_is_refused(store: VoiceStore, config: CheckpointConfig, name: str) -> None:
    for call in (lambda: add(store, voice(config), name), lambda: store.remove(name), lambda: store.show(name)):
        with pytest.raises(InvalidRequestError, match=r"name: .* is not allowed as the name of a voice; give 1 to 64 letters"):
            call()
    with pytest.raises(InvalidRequestError, match="voice: "):
        store.load(name, config)


@pytest.mark.parametrize("name", ["a", "7", "Anna.2-b_c", "a.json", "x" * 64])
def test_ordinary_names_are_allowed_in_any_case(store: VoiceStore, config: CheckpointConfig, name: str) -> None:
    assert checked_name(name) == name.lower()
    add(store, voice(config), name)
    assert store.names() == [name.lower()]


@pytest.mark.parametrize("consent", ["", " \n", "x" * 1001, "\ud800"])
def test_no_voice_is_stored_without_consent(store: VoiceStore, config: CheckpointConfig, consent: str) -> None:
    with pytest.raises(InvalidRequestError, match=r"consent: .*who agreed"):
        add(store, voice(config), consent=consent)
    assert store.names() == []


def test_count_and_size_are_limited_and_the_limit_is_named(tmp_path: Path, config: CheckpointConfig) -> None:
    store = open_store(tmp_path, max_voices=2)
    add(store, voice(config), "a")
    add(store, voice(config), "b")
    with pytest.raises(InvalidRequestError, match=r"holds 2 voices and at most 2 \(voice_store_max_voices\)"):
        add(store, voice(config), "c")
    store.remove("a")
    long = replace(voice(config), ref_code=torch.zeros(4000, config.talker.num_code_groups, dtype=torch.int64))
    with pytest.raises(InvalidRequestError, match="voice_store_max_bytes"):
        add(store, long, "c")
    assert store.names() == ["b"]


def rewrite(store: VoiceStore, **changes: Any) -> None:
    """Replace fields of anna.json."""
    file = store.folder / "anna.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def retensor(store: VoiceStore, **tensors: torch.Tensor | None) -> None:
    """Replace tensors of anna.safetensors, and its digest in anna.json, as an attacker who knows the format can."""
    file = store.folder / "anna.safetensors"
    kept = {name: tensor for name, tensor in (load_file(file) | tensors).items() if tensor is not None}
    forge(store, save(kept))


def forge(store: VoiceStore, content: bytes) -> None:
    (store.folder / "anna.safetensors").write_bytes(content)
    rewrite(store, sha256=hashlib.sha256(content).hexdigest())


def tensors_of(store: VoiceStore) -> bytes:
    return (store.folder / "anna.safetensors").read_bytes()


def write(file: str, content: bytes | str) -> Callable[[VoiceStore], object]:
    return lambda store: (store.folder / file).write_bytes(content.encode() if isinstance(content, str) else content)


def link(file: str, target: str) -> Callable[[VoiceStore], object]:
    def replace_by_link(store: VoiceStore) -> None:
        path = store.folder / file
        path.rename(store.folder.parent / "elsewhere")
        path.symlink_to(store.folder.parent / "elsewhere" if target == "itself" else target)

    return replace_by_link


def unusual(make: Callable[[Path], None]) -> Callable[[VoiceStore], object]:
    def replace_by_it(store: VoiceStore) -> None:
        path = store.folder / "anna.safetensors"
        path.unlink()
        make(path)

    return replace_by_it


HOSTILE: dict[str, tuple[Callable[[VoiceStore], object], str]] = {
    "json is a link": (link("anna.json", "itself"), "anna.json is a symbolic link"),
    "json is a link to a device": (link("anna.json", "/dev/zero"), "symbolic link"),
    "tensors are a link": (link("anna.safetensors", "itself"), "anna.safetensors is a symbolic link"),
    "tensors are a folder": (unusual(Path.mkdir), "not a regular file"),
    "tensors are a pipe nobody writes to": (unusual(os.mkfifo), "not a regular file"),
    "tensors are missing": (unusual(lambda path: None), "is missing"),
    "tensors are cut short": (lambda s: forge(s, tensors_of(s)[:-1]), "cut short"),
    "tensors are only a header": (lambda s: forge(s, tensors_of(s)[:8]), "cut short"),
    "tensors are empty": (lambda s: forge(s, b""), "cut short"),
    "header claims to be huge": (lambda s: forge(s, (2**62).to_bytes(8, "little") + tensors_of(s)[8:]), "cut short"),
    "header is a JSON bomb": (lambda s: forge(s, (60_000).to_bytes(8, "little") + b"[" * 60_000), "cut short"),
    "a pickle": (lambda s: forge(s, b"\x80\x04\x95cos\nsystem\n."), "not a safetensors file"),
    "other tensors than recorded": (lambda s: (s.folder / "anna.safetensors").write_bytes(b"x"), "not the one its .json"),
    "tensors are huge": (lambda s: os.truncate(s.folder / "anna.safetensors", 10**12), "larger than 100000 bytes"),
    "json is huge": (lambda s: os.truncate(s.folder / "anna.json", 10**12), "larger than 100000 bytes"),
    "an extra tensor": (lambda s: retensor(s, more=torch.zeros(1)), "other tensors"),
    "codes are missing": (lambda s: retensor(s, ref_code=None), "other tensors"),
    "codes of another type": (lambda s: retensor(s, ref_code=torch.zeros(3, 16)), "other tensors"),
    "codes of one dimension": (lambda s: retensor(s, ref_code=torch.zeros(16, dtype=torch.int16)), "other tensors"),
    "no codes": (lambda s: retensor(s, ref_code=torch.zeros(0, 16, dtype=torch.int16)), "empty tensor"),
    "x-vector of another width": (lambda s: retensor(s, ref_spk_embedding=torch.zeros(3)), "other tensors"),
    "x-vector with NaN": (
        lambda s: retensor(s, ref_spk_embedding=load_file(s.folder / "anna.safetensors")["ref_spk_embedding"] * np.nan),
        "finite",
    ),
    "json is not JSON": (write("anna.json", "{"), "not valid JSON"),
    "json is not UTF-8": (write("anna.json", b"\xff\xfe{"), "not valid JSON"),
    "json is nested too deeply": (write("anna.json", "[" * 90_000), "not valid JSON"),
    "json has an endless number": (write("anna.json", '{"format_version": ' + "9" * 90_000 + "}"), "not valid JSON"),
    "json is a list": (write("anna.json", "[]"), "not an object of format_version 1"),
    "another format": (lambda s: rewrite(s, format_version=2), "not an object of format_version 1"),
    "an unknown field": (lambda s: rewrite(s, extra=1), "other fields than"),
    "a field of another type": (lambda s: rewrite(s, consent=[]), "consent has another type"),
    "a number for a boolean": (lambda s: rewrite(s, x_vector_only=1), "x_vector_only has another type"),
    "seconds without end": (lambda s: rewrite(s, reference_seconds=float("inf")), "reference_seconds has another type or range"),
    "a width out of range": (lambda s: rewrite(s, enc_dim=10**30), "enc_dim has another type or range"),
    "a lexicon that is a list": (lambda s: rewrite(s, lexicon=["a"]), "lexicon has another type"),
    "a lexicon of numbers": (lambda s: rewrite(s, lexicon={"a": 1}), "its lexicon is not one that a voice can have"),
    "text that is not Unicode": (lambda s: rewrite(s, reference_text="\ud800"), "reference_text has another type"),
    "the name of another voice": (lambda s: rewrite(s, name="bob"), "another name"),
}


@pytest.mark.parametrize(("spoil", "reason"), HOSTILE.values(), ids=HOSTILE)
def test_a_spoilt_voice_is_refused_by_name_and_stops_no_other(
    store: VoiceStore, config: CheckpointConfig, spoil: Callable[[VoiceStore], object], reason: str
) -> None:
    good = add(store, voice(config), "bob")
    add(store, voice(config))
    spoil(store)
    for call in (lambda: store.load("anna", config), lambda: store.show("anna")):
        with pytest.raises(InvalidRequestError, match=r"'anna' cannot be used: .*; remove it and add it again") as error:
            call()
        assert reason in str(error.value)
    voices, refused = store.list()
    assert voices == [good]
    assert list(refused) == ["anna"]
    assert reason in refused["anna"]
    store.load("bob", config)


def test_a_spoilt_voice_can_be_removed_and_what_a_link_pointed_to_stays(store: VoiceStore, config: CheckpointConfig) -> None:
    add(store, voice(config))
    link("anna.json", "itself")(store)
    store.remove("anna")
    assert store.names() == []
    assert (store.folder.parent / "elsewhere").is_file()


def test_codes_and_widths_of_another_checkpoint_are_refused_with_what_made_them(store: VoiceStore, config: CheckpointConfig) -> None:
    add(store, voice(config), made_by="Qwen3-TTS-9.9B-Base")
    wider = replace(config, talker=replace(config.talker, shape=replace(config.talker.shape, hidden_size=48)))
    with pytest.raises(InvalidRequestError, match=r"made by 'Qwen3-TTS-9.9B-Base' and does not fit this checkpoint \(ref_spk_embedding"):
        store.load("anna", wider)
    smaller = replace(config, codec=replace(config.codec, codebook_size=2))
    with pytest.raises(InvalidRequestError, match="ref_code"):
        store.load("anna", smaller)
    assert store.load("anna", config).content_key == voice(config).content_key


def test_files_that_are_no_voices_are_left_alone(store: VoiceStore, config: CheckpointConfig) -> None:
    strangers = ["README.md", ".hidden.json", "not a voice.json", "lonely.safetensors"]
    for name in strangers:
        (store.folder / name).write_text("{}")
    add(store, voice(config))
    assert store.names() == ["anna"]
    assert all((store.folder / name).exists() for name in strangers)


def test_what_an_interrupted_writer_left_is_no_voice_and_goes_with_the_next_write(store: VoiceStore, config: CheckpointConfig) -> None:
    (store.folder / ".anna.json.partial").write_text("half")
    (store.folder / "anna.safetensors").write_text("its .json was never written")
    assert store.list() == ([], {})
    add(store, voice(config))
    assert sorted(path.name for path in store.folder.iterdir()) == [".lock", "anna.json", "anna.safetensors"]
    assert store.load("anna", config).content_key == voice(config).content_key


def add_six(folder: Path) -> int:
    """Try to add six voices. Returns the number added."""
    store, added = open_store(folder), 0
    for number in range(6):
        try:
            add(store, VoiceClonePromptItem(None, torch.ones(4), True, False), f"v{number}")
            added += 1
        except InvalidRequestError:
            pass
    return added


def test_several_processes_share_a_folder_and_its_limit(tmp_path: Path) -> None:
    with ProcessPoolExecutor(3, multiprocessing.get_context("fork")) as processes:
        assert sum(processes.map(add_six, [tmp_path] * 3)) == 5
    voices, refused = open_store(tmp_path).list()
    assert ([found.name for found in voices], refused) == (["v0", "v1", "v2", "v3", "v4"], {})


def test_a_folder_that_cannot_be_used_stops_the_load_and_one_that_cannot_be_written_is_named(
    tmp_path: Path, config: CheckpointConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"voice_store: .* cannot be used: .*name a folder"):
        VoiceStore(tmp_path / "file", max_voices=1, max_voice_bytes=1024)
    store = open_store(tmp_path)
    (store.folder / ".lock").symlink_to(tmp_path / "file")
    with pytest.raises(StoreError, match="voice_store: the folder cannot be written"):
        add(store, voice(config))


def test_a_folder_that_goes_away_is_named(store: VoiceStore, config: CheckpointConfig) -> None:
    store.folder.rmdir()
    for call in (store.names, store.list, lambda: store.load("anna", config), lambda: add(store, voice(config)), lambda: store.remove("a")):
        with pytest.raises(StoreError, match="voice_store: the folder cannot be"):
            call()


def test_the_folder_is_made_for_its_owner_only(store: VoiceStore) -> None:
    assert store.folder.stat().st_mode & 0o777 == 0o700


def test_a_blend_is_a_voice_of_its_own_and_keeps_what_it_is_made_of(store: VoiceStore, config: CheckpointConfig) -> None:
    anna, ben = voice(config), voice(config, x_vector_only=True)
    ben = replace(ben, ref_spk_embedding=-2 * ben.ref_spk_embedding.flip(0))
    add(store, anna)
    add(store, ben, "ben", consent="Ben, by phone", made_by="other")
    added = store.add_blend("Duo", "anna:3+ben:1")
    assert (added.blend, added.consent, added.made_by) == ("anna:0.75+ben:0.25", "anna: Anna, by letter; ben: Ben, by phone", "tiny, other")
    store.remove("anna")
    assert open_store(store.folder.parent).show("duo") == added
    item = store.load("duo", config)
    assert (item.x_vector_only_mode, item.ref_code) == (True, None)
    mixed = Blend.parse("a:3+b:1").mix([anna.ref_spk_embedding.numpy(), ben.ref_spk_embedding.numpy()])
    np.testing.assert_array_equal(item.ref_spk_embedding.numpy(), mixed)
    with pytest.raises(InvalidRequestError, match=r"^name: 'duo' is taken"):
        store.add_blend("duo", "ben")
    with pytest.raises(InvalidRequestError, match=r"^blend: in the blend, 'anna' is not a stored voice; stored: ben, duo$"):
        store.add_blend("trio", "anna+ben")
    wide = replace(ben, ref_spk_embedding=torch.ones(2 * len(ben.ref_spk_embedding)))
    add(store, wide, "wide", consent="w" * 1000)
    with pytest.raises(InvalidRequestError, match=r"^blend: its voices are of checkpoints of different sizes \(ben: 64, wide: 128\)"):
        store.add_blend("trio", "ben+wide")
    with pytest.raises(InvalidRequestError, match=r"^consent: those of the voices have 1006 characters together; give one of at most"):
        store.add_blend("trio", "wide")
    assert store.add_blend("trio", "wide", consent="As for wide.").consent == "As for wide."
    assert "blend" not in json.loads((store.folder / "ben.json").read_text())  # so older servers read it
