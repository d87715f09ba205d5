"""Checkpoints that people make speak as in the official package: fine-tuned, sharded, cast, cached."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from api.loading import GREEDY, load
from safetensors.torch import load_file, save_file

import oracle
from engine_lib.checkpoint import Checkpoint, Weights
from engine_lib.checkpoint_files import checkpoint_name
from engine_lib.errors import CheckpointError
from engine_lib.talker.device.model import TalkerModel

SPEECH: dict[str, Any] = {"text": "Good morning!", "language": "english", **GREEDY, "max_new_tokens": 8}
TABLE = "talker.model.codec_embedding.weight"
ROW = 3000  # in which finetuning/sft_12hz.py of the Qwen3-TTS repository puts its speaker


def fine_tuned(base: Path, folder: Path, speaker: str, dtype: torch.dtype = torch.bfloat16) -> Path:
    """What that script makes of a base checkpoint: a copy with another kind, one speaker, and all weights in one file of one dtype."""
    shutil.copytree(base, folder)
    config = json.loads((folder / "config.json").read_text())
    config["tts_model_type"] = "custom_voice"
    config["talker_config"] |= {"spk_id": {speaker: ROW}, "spk_is_dialect": {speaker: False}}
    (folder / "config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False))
    whole = Weights(folder)
    tensors = {name: whole.stored(name).to(dtype) for name in whole.names() if not name.startswith("speaker_encoder")}
    generator = torch.Generator().manual_seed(7)
    tensors[TABLE][ROW] = torch.randn(tensors[TABLE].shape[1], generator=generator).to(dtype) * tensors[TABLE].std()
    save_file(tensors, folder / "model.safetensors")
    return folder


def codes(folder: Path, speaker: str) -> list[list[int]]:
    """Greedy codes of the engine, in float32."""
    with load(folder) as tts:
        [made] = tts.generate_codes(speaker=speaker, **SPEECH)
    rows: list[list[int]] = made.tolist()
    return rows


def official_codes(folder: Path, speaker: str) -> list[list[int]]:
    [expected], _ = oracle.official_codes(folder, speaker=speaker, decode=False, **SPEECH)
    rows: list[list[int]] = expected.tolist()
    return rows


@pytest.fixture(scope="module")
def tuned(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the checkpoint of the first epoch; tests must not change it."""
    return fine_tuned(tiny_base, tmp_path_factory.mktemp("output") / "checkpoint-epoch-0", "speaker_test")


@pytest.fixture(scope="module")
def expected(tuned: Path) -> list[list[int]]:
    """Return what the official package says with it."""
    return official_codes(tuned, "speaker_test")


@pytest.fixture
def copy(tuned: Path, tmp_path: Path) -> Path:
    """Return a copy that a test may change."""
    return Path(shutil.copytree(tuned, tmp_path / "copy"))


def test_what_the_official_script_makes_speaks_as_in_the_official_package(tuned: Path, expected: list[list[int]]) -> None:
    assert codes(tuned, "speaker_test") == expected
    assert Checkpoint(tuned).config.kind == "custom_voice"


def test_a_folder_of_epochs_names_them(tuned: Path) -> None:
    with pytest.raises(CheckpointError, match=rf"has no config.json; give a checkpoint in it: {tuned}$"):
        Checkpoint(tuned.parent)


def test_speakers_may_be_written_in_any_case_and_script(copy: Path, expected: list[list[int]]) -> None:
    """The official package finds only names in lower case."""
    config = json.loads((copy / "config.json").read_text())
    config["talker_config"] |= {"spk_id": {"Anna Maria": ROW, "小明": ROW, "Other": 2900}, "spk_is_dialect": {}}
    (copy / "config.json").write_text(json.dumps(config))
    with load(copy) as tts:
        assert tts.get_supported_speakers() == ["anna maria", "other", "小明"]
        for name in ("ANNA maria", "小明"):
            [made] = tts.generate_codes(speaker=name, **SPEECH)
            assert made.tolist() == expected


def test_optional_files_may_be_missing(copy: Path, expected: list[list[int]]) -> None:
    """The official package needs the first."""
    for file in ("generation_config.json", "speech_tokenizer/preprocessor_config.json"):
        (copy / file).unlink()
    assert codes(copy, "speaker_test") == expected


def test_a_missing_codec_is_said_with_the_way_to_get_it(copy: Path) -> None:
    shutil.rmtree(copy / "speech_tokenizer")
    with pytest.raises(CheckpointError) as error:
        Checkpoint(copy)
    advice = "copy speech_tokenizer from the checkpoint that this one was made from, or run: hf download Qwen/Qwen3-TTS-Tokenizer-12Hz"
    assert f"speech_tokenizer/config.json is missing; {advice} --local-dir {copy}/speech_tokenizer" in str(error.value)


def test_shards_of_any_name_and_left_over_ones_are_read_as_in_the_official_package(copy: Path, expected: list[list[int]]) -> None:
    """Fine-tuning a sharded checkpoint leaves its old shards beside the new single file, which counts."""
    tensors = load_file(copy / "model.safetensors")
    names = sorted(tensors)
    shards = {"tuned-a.safetensors": names[::2], "tuned-b.safetensors": names[1::2]}
    index = {"metadata": {}, "weight_map": {name: file for file, part in shards.items() for name in part}}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    for file, part in shards.items():
        save_file({name: torch.zeros_like(tensors[name]) for name in part}, copy / file)
    assert codes(copy, "speaker_test") == expected
    for file, part in shards.items():
        save_file({name: tensors[name] for name in part}, copy / file, metadata={"format": "pt"})
    (copy / "model.safetensors").unlink()
    assert codes(copy, "speaker_test") == official_codes(copy, "speaker_test") == expected


def test_weights_of_any_mix_of_dtypes_speak_as_in_the_official_package(tiny_base: Path, tmp_path: Path) -> None:
    folder = fine_tuned(tiny_base, tmp_path / "mixed", "speaker_test", torch.float32)
    kinds = (torch.float16, torch.bfloat16, torch.float32)
    tensors = load_file(folder / "model.safetensors")
    save_file({name: tensor.to(kinds[i % 3]) for i, (name, tensor) in enumerate(tensors.items())}, folder / "model.safetensors")
    assert codes(folder, "speaker_test") == official_codes(folder, "speaker_test")


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float8_e4m3fn])
def test_quantised_weights_are_refused_by_name(copy: Path, dtype: torch.dtype) -> None:
    tensors = load_file(copy / "model.safetensors")
    name = "talker.model.layers.0.mlp.gate_proj.weight"
    save_file(tensors | {name: tensors[name].to(dtype)}, copy / "model.safetensors")
    with pytest.raises(CheckpointError, match=rf"weight {name} is {dtype}; a quantised checkpoint is not supported"):
        TalkerModel(Checkpoint(copy), dtype=torch.float32, device=torch.device("cpu"), max_positions=8)


def test_an_adapter_is_called_that(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"is an adapter \(LoRA\), not a checkpoint; merge it into its model"):
        Checkpoint(tmp_path)


# The hub's cache


def in_cache(tuned: Path, hub: Path, revision: str) -> Path:
    """The files of `tuned` as the hub's cache keeps them: blobs, and a snapshot of links to them."""
    model = hub / "models--me--tuned-tts"
    for number, file in enumerate(sorted(path for path in tuned.rglob("*") if path.is_file())):
        blob, link = model / "blobs" / f"{revision}{number}", model / "snapshots" / revision / file.relative_to(tuned)
        for folder in (blob.parent, link.parent):
            folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, blob)
        link.symlink_to(Path(*[".."] * (len(link.relative_to(model).parts) - 1), "blobs", blob.name))
    return model


def test_a_model_in_the_hubs_cache_is_its_revision_main(tuned: Path, tmp_path: Path, expected: list[list[int]]) -> None:
    model = in_cache(tuned, tmp_path, "0a")
    first = model / "snapshots" / "0a"
    assert Checkpoint(model).path == first
    assert codes(model, "speaker_test") == official_codes(first, "speaker_test") == expected
    in_cache(tuned, tmp_path, "0b")
    with pytest.raises(CheckpointError, match=rf"has several revisions in the hub's cache, and none is main; give one: {first}, "):
        Checkpoint(model)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text("0b")
    assert Checkpoint(model).path == model / "snapshots" / "0b"
    assert checkpoint_name(Checkpoint(model).path) == "me/tuned-tts"
    for blob in (model / "blobs").glob("0b*"):
        blob.unlink()
    with pytest.raises(CheckpointError, match=r"config.json is a link to a file that is gone or was never completely downloaded"):
        Checkpoint(model / "snapshots" / "0b")


def test_rope_parameters_of_transformers_5_are_read(tiny_custom_voice: Path, tmp_path: Path) -> None:
    folder = tmp_path / "saved"
    shutil.copytree(tiny_custom_voice, folder)
    config = json.loads((folder / "config.json").read_text())
    talker = config["talker_config"]
    rope = {"rope_type": "default", "mrope_section": [24, 20, 20], "interleaved": True}
    for section in (talker, talker["code_predictor_config"]):
        section["rope_parameters"] = rope | {"rope_theta": section.pop("rope_theta")}
        section.pop("rope_scaling", None)
    (folder / "config.json").write_text(json.dumps(config))
    assert Checkpoint(folder).config == Checkpoint(tiny_custom_voice).config
    talker["rope_parameters"]["rope_type"] = "yarn"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"\(talker_config\): rope_parameters type 'yarn' is not supported"):
        Checkpoint(folder)
