"""An unusable checkpoint folder is refused at load; the message names the file, field or weight."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from engine_lib.checkpoint import Checkpoint, Shard, Weights
from engine_lib.errors import CheckpointError
from engine_lib.sampling import SamplingParams
from engine_lib.talker.device.model import TalkerModel
from make_checkpoint import make_checkpoint

CPU = torch.device("cpu")
# A weight of each part of the talker, to be removed or misshaped.
TALKER_WEIGHTS = [
    "talker.model.text_embedding.weight",
    "talker.model.codec_embedding.weight",
    "talker.model.layers.2.self_attn.k_proj.weight",
    "talker.model.layers.0.mlp.gate_proj.weight",
    "talker.model.norm.weight",
    "talker.text_projection.linear_fc2.bias",
    "talker.codec_head.weight",
    "talker.code_predictor.model.codec_embedding.14.weight",
    "talker.code_predictor.model.layers.0.self_attn.q_norm.weight",
    "talker.code_predictor.lm_head.7.weight",
    "talker.code_predictor.small_to_mtp_projection.bias",
]


@pytest.fixture
def folder(tiny_custom_voice_1b7: Path, tmp_path: Path) -> Path:
    """Return a copy that a test may damage."""
    return Path(shutil.copytree(tiny_custom_voice_1b7, tmp_path / "checkpoint"))


def edit(file: Path, key: str, value: Any) -> None:
    """Set the dotted `key` of a JSON file; None removes it."""
    root = node = json.loads(file.read_text())
    *parents, leaf = key.split(".")
    for parent in parents:
        node = node[parent]
    if value is None:
        del node[leaf]
    else:
        node[leaf] = value
    file.write_text(json.dumps(root))


def load_talker(folder: Path) -> TalkerModel:
    return TalkerModel(Checkpoint(folder), dtype=torch.float32, device=CPU, max_positions=8)


# Files


def test_what_is_no_folder_is_refused(tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"model_path: '.*/nowhere' is not a folder"):
        Checkpoint(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="is not a folder"):
        Checkpoint(str(tmp_path / "file"))


@pytest.mark.parametrize("file", ["config.json", "generation_config.json", "speech_tokenizer/config.json"])
def test_a_missing_or_broken_json_file_is_named(folder: Path, file: str):
    (folder / file).write_bytes(b'{"tts_model_type": "cust')
    with pytest.raises(CheckpointError, match=f"{file} is not valid JSON"):
        Checkpoint(folder)
    (folder / file).write_bytes(b"\xff\xfe{}")
    with pytest.raises(CheckpointError, match=f"{file} is not valid JSON"):
        Checkpoint(folder)
    (folder / file).write_text("[]")
    with pytest.raises(CheckpointError, match=f"{file} does not hold a JSON object"):
        Checkpoint(folder)
    (folder / file).unlink()
    if file == "generation_config.json":  # tools that fine-tune may leave it out
        assert Checkpoint(folder).sampling_defaults() == SamplingParams()
        return
    with pytest.raises(CheckpointError, match=rf"{file} is missing; (the folder is not a complete|copy speech_tokenizer from)"):
        Checkpoint(folder)


@pytest.mark.parametrize("size", [0, 100, 100_000])
def test_a_weight_file_that_was_downloaded_in_part_is_called_that(folder: Path, size: int):
    os.truncate(folder / "model.safetensors", size)
    with pytest.raises(CheckpointError, match=r"model.safetensors cannot be read: .*; the file is incomplete, .*: download it again$"):
        Weights(folder)


@pytest.mark.parametrize("file", ["model.safetensors", "speech_tokenizer/model.safetensors"])
def test_a_missing_or_broken_weight_file_is_named(folder: Path, file: str):
    part = (folder / file).parent
    (folder / file).write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00not a header!")
    with pytest.raises(CheckpointError, match=rf"{file} cannot be read"):
        Weights(part)
    (folder / file).unlink()
    with pytest.raises(CheckpointError, match=rf"{file} is missing; .*, and there is no model.safetensors.index.json either$"):
        Weights(part)
    (part / "pytorch_model.bin").touch()
    with pytest.raises(CheckpointError, match=r"either; pytorch_model.bin is not read: give the weights as model.safetensors"):
        Weights(part)
    (folder / file).symlink_to("../../blobs/0123abcd")
    with pytest.raises(CheckpointError, match=rf"{file} is a link to a file that is gone or was never completely downloaded"):
        Weights(part)


# Fields


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("tts_model_type", None, r"config.json: tts_model_type is None; str expected"),
        ("tts_model_type", "singing", r"tts_model_type is 'singing'; supported: custom_voice, base, voice_design"),
        ("tts_pad_token_id", "151671", r"tts_pad_token_id is '151671'; int expected"),
        ("talker_config", None, r"talker_config is None; dict expected"),
        ("talker_config.hidden_size", None, r"config.json \(talker_config\): hidden_size is None; int expected"),
        ("talker_config.num_code_groups", True, r"num_code_groups is True; int expected"),
        ("talker_config.rms_norm_eps", "tiny", r"rms_norm_eps is 'tiny'; float expected"),
        ("talker_config.attention_bias", True, r"\(talker_config\): attention_bias is True; only False is supported"),
        ("talker_config.use_sliding_window", True, r"\(talker_config\): use_sliding_window is True"),
        ("talker_config.hidden_act", "gelu", r"\(talker_config\): hidden_act is 'gelu'; only 'silu' is supported"),
        ("talker_config.rope_scaling.rope_type", "yarn", r"\(talker_config\): rope_scaling type 'yarn' is not supported"),
        (
            "talker_config.code_predictor_config.attention_bias",
            True,
            r"\(talker_config.code_predictor_config\): attention_bias is True; only False is supported",
        ),
        ("talker_config.code_predictor_config.rope_scaling", {"type": "linear"}, r"rope_scaling type 'linear' is not supported"),
        ("talker_config.code_predictor_config.num_code_groups", 8, r"num_code_groups differs from the talker's \(16\)"),
        ("talker_config.code_predictor_config.head_dim", 2.5, r"head_dim is 2.5; int expected"),
        ("talker_config.num_hidden_layers", 0, r"num_hidden_layers is 0; a whole number from 1 to"),
        ("talker_config.max_position_embeddings", 10**18, r"max_position_embeddings is 1000.*; a whole number from 1 to"),
        ("talker_config.rms_norm_eps", 10**400, r"rms_norm_eps is 1000.*; a number above 0"),
        ("talker_config.rope_theta", float("nan"), r"rope_theta is nan; a number above 0"),
        ("talker_config.rope_scaling", "yarn", r"rope_scaling is 'yarn'; dict expected"),
    ],
)
def test_a_field_that_is_missing_or_not_supported_is_named(folder: Path, key: str, value: Any, message: str):
    edit(folder / "config.json", key, value)
    with pytest.raises(CheckpointError, match=message):
        Checkpoint(folder)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("decoder_config.sliding_window", None, r"speech_tokenizer/config.json \(decoder_config\): sliding_window is None; int expected"),
        ("decoder_config.upsample_rates", 8, r"upsample_rates is 8; list expected"),
        ("decoder_config.hidden_act", "relu", r"hidden_act is 'relu'; only 'silu' is supported"),
        ("decoder_config.upsample_rates", [8, "x"], r"upsample_rates is \[8, 'x'\]; whole numbers from 1"),
        ("decoder_config.sliding_window", 0, r"sliding_window is 0; a whole number from 1"),
        ("output_sample_rate", 0, r"output_sample_rate is 0; a whole number from 1"),
        ("output_sample_rate", None, r"output_sample_rate is None; int expected"),
    ],
)
def test_a_field_of_the_codec_that_is_missing_or_not_supported_is_named(folder: Path, key: str, value: Any, message: str):
    edit(folder / "speech_tokenizer" / "config.json", key, value)
    with pytest.raises(CheckpointError, match=message):
        Checkpoint(folder)


def test_a_head_dim_that_is_left_out_follows_from_the_heads(folder: Path):
    edit(folder / "config.json", "talker_config.head_dim", None)
    assert Checkpoint(folder).config.talker.shape.head_dim == 96 // 6


def test_the_published_ids_and_sizes_are_read(tiny_published_ids: Path):
    config = Checkpoint(tiny_published_ids).config
    assert (config.kind, config.size) == ("custom_voice", "0b6")
    assert (config.tts_pad_token_id, config.tts_bos_token_id, config.tts_eos_token_id) == (151671, 151672, 151673)
    assert config.talker.speaker_ids["ryan"] == 3061
    assert config.talker.speaker_dialects["eric"] == "sichuan_dialect"
    assert config.talker.speaker_dialects["ryan"] is None
    assert config.talker.language_ids["german"] == 2053
    assert config.codec.samples_per_frame == 1920


def test_sampling_starts_from_what_the_checkpoint_says(folder: Path):
    edit(folder / "generation_config.json", "temperature", 0.5)
    edit(folder / "generation_config.json", "subtalker_top_k", None)
    edit(folder / "generation_config.json", "unheard_of", 3)
    sampling = Checkpoint(folder).sampling_defaults()
    assert (sampling.temperature, sampling.subtalker_top_k, sampling.repetition_penalty) == (0.5, 50, 1.05)


# Ids

TALKER_IDS = [f"codec_{name}" for name in ("eos_token_id", "think_id", "nothink_id", "think_bos_id", "think_eos_id", "pad_id", "bos_id")]
TEXT_IDS = ["tts_bos_token_id", "tts_eos_token_id", "tts_pad_token_id"]


@pytest.mark.parametrize("value", [-1, 3072, 5000, 10**6, 10**30, "5", 5.0, True, None])
@pytest.mark.parametrize("name", TALKER_IDS)
def test_a_special_code_that_is_no_row_of_the_codec_table_is_named(folder: Path, name: str, value: Any):
    edit(folder / "config.json", f"talker_config.{name}", value)
    with pytest.raises(CheckpointError, match=rf"config.json \(talker_config\): {name} is {value!r}; (an id from 0 to 3071|int) expected"):
        Checkpoint(folder)


@pytest.mark.parametrize("name", TEXT_IDS)
def test_a_special_token_that_is_no_row_of_the_text_table_is_named(folder: Path, name: str):
    rows = Checkpoint(folder).config.talker.text_vocab_size
    for value in (-1, rows):
        edit(folder / "config.json", name, value)
        with pytest.raises(CheckpointError, match=rf"config.json: {name} is {value}; an id from 0 to {rows - 1} expected"):
            Checkpoint(folder)
    edit(folder / "config.json", name, rows - 1)
    Checkpoint(folder)


@pytest.mark.parametrize("value", [-1, 3072, 5000, 10**6, "5", 2.5, True, None, [7]])
@pytest.mark.parametrize("name", ["spk_id", "codec_language_id"])
def test_the_id_of_a_speaker_or_language_that_is_no_row_is_named(folder: Path, name: str, value: Any):
    edit(folder / "config.json", f"talker_config.{name}", {"good": 3071, "Bad": value})
    edit(folder / "config.json", "talker_config.spk_is_dialect", {})
    with pytest.raises(CheckpointError) as error:
        Checkpoint(folder)
    assert f"config.json (talker_config): {name}['Bad'] is {value!r}; an id from 0 to 3071 expected" in str(error.value)


@pytest.mark.parametrize("name", ["spk_id", "codec_language_id", "spk_is_dialect"])
def test_names_that_are_no_object_or_come_twice_are_refused(folder: Path, name: str):
    edit(folder / "config.json", f"talker_config.{name}", ["anna", "ben"])
    with pytest.raises(CheckpointError, match=rf"{name} is \['anna', 'ben'\]; dict expected"):
        Checkpoint(folder)
    if name != "spk_is_dialect":
        edit(folder / "config.json", f"talker_config.{name}", {"anna": 1, "Anna": 2})
        with pytest.raises(CheckpointError, match=rf"{name} has 'Anna' twice"):
            Checkpoint(folder)


@pytest.mark.parametrize("dialect", ["klingon", True, 2062, ["sichuan_dialect"]])
def test_a_dialect_that_is_no_language_is_named(folder: Path, dialect: Any):
    edit(folder / "config.json", "talker_config.spk_is_dialect", {"eric": dialect})
    with pytest.raises(CheckpointError) as error:
        Checkpoint(folder)
    assert f"spk_is_dialect['eric'] is {dialect!r}; false or one of " in str(error.value)


def test_a_dialect_is_found_in_any_case(folder: Path):
    edit(folder / "config.json", "talker_config.spk_is_dialect", {"Eric": "Sichuan_Dialect", "ryan": False})
    config = Checkpoint(folder).config.talker
    assert config.language_ids[config.speaker_dialects["eric"] or ""]


@pytest.mark.parametrize(
    ("file", "key", "value", "message"),
    [
        (
            "speech_tokenizer/config.json",
            "decoder_config.num_quantizers",
            8,
            "num_code_groups is 16; the codec in speech_tokenizer needs 8",
        ),
        ("speech_tokenizer/config.json", "decoder_config.codebook_size", 1024, "code_predictor_config.vocab_size is 2048; .* needs 1024"),
        ("config.json", "talker_config.code_predictor_config.vocab_size", 4096, "code_predictor_config.vocab_size is 4096; .* needs 2048"),
    ],
)
def test_codebooks_that_talker_and_codec_do_not_share_are_refused(folder: Path, file: str, key: str, value: int, message: str):
    edit(folder / file, key, value)
    with pytest.raises(CheckpointError, match=message):
        Checkpoint(folder).config.check_codebooks()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("max_new_tokens", "8192", "max_new_tokens is '8192'; int expected"),
        ("max_new_tokens", 1, "max_new_tokens is 1; a number from 2 expected"),
        ("piece_length", 5, "piece_length is 5; a number from 20 expected"),
        ("temperature", -1, "temperature: -1.0 is not allowed"),
        ("top_p", 0, "top_p: 0.0 is not allowed"),
        ("do_sample", "false", "do_sample: 'false' is not allowed"),
    ],
)
def test_a_value_of_generation_config_that_no_request_may_have_is_named_at_load(folder: Path, name: str, value: Any, message: str):
    edit(folder / "generation_config.json", name, value)
    with pytest.raises(CheckpointError, match=f"generation_config.json: {message}"):
        Checkpoint(folder).sampling_defaults()


def test_a_tokenizer_with_more_ids_than_the_text_table_has_rows_is_refused(folder: Path):
    highest = max(Checkpoint(folder).tokenizer.get_vocab().values())
    edit(folder / "config.json", "talker_config.text_vocab_size", highest)
    for name in TEXT_IDS:
        edit(folder / "config.json", name, 0)
    with pytest.raises(CheckpointError, match=f"the tokenizer has an id {highest}; the text table of config.json has {highest} rows"):
        _ = Checkpoint(folder).tokenizer


# Folders that are none


def test_a_hub_id_is_told_how_to_download_it_or_where_it_lies(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    with pytest.raises(CheckpointError, match=r"'Qwen/Some-TTS' is not a folder; .* hf download Qwen/Some-TTS --local-dir Some-TTS"):
        Checkpoint("Qwen/Some-TTS")
    snapshot = tmp_path / "hub" / "models--Qwen--Some-TTS" / "snapshots" / "0123abcd"
    snapshot.parent.mkdir(parents=True)
    folder.rename(snapshot)
    with pytest.raises(CheckpointError, match=f"nothing is downloaded here. Give {snapshot}"):
        Checkpoint("Qwen/Some-TTS")
    with pytest.raises(
        CheckpointError, match=f"is a cache of the Hugging Face hub; give the folder of a model in it: {snapshot.parents[1]}"
    ):
        Checkpoint(tmp_path / "hub")
    monkeypatch.setenv("HOME", str(snapshot.parent))
    assert Checkpoint(f"~/{snapshot.name}").path == snapshot


@pytest.mark.parametrize(
    "file", ["config.json", "vocab.json", "merges.txt", "model.safetensors", "speech_tokenizer/model.safetensors", "generation_config.json"]
)
def test_a_pointer_of_git_lfs_is_called_that(folder: Path, file: str):
    (folder / file).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 1234\n")
    with pytest.raises(CheckpointError, match=rf"{file} is a pointer of Git LFS, not the file itself; run git lfs pull"):
        _ = Checkpoint(folder).weights(), Checkpoint(folder).speech_tokenizer_weights(), Checkpoint(folder).tokenizer


@pytest.mark.parametrize("file", ["vocab.json", "merges.txt"])
def test_a_missing_file_of_the_tokenizer_is_named(folder: Path, file: str):
    (folder / file).unlink()
    with pytest.raises(CheckpointError, match=f"{file} is missing; the folder is not a complete Qwen3-TTS checkpoint"):
        _ = Checkpoint(folder).tokenizer


# Weights


@pytest.mark.parametrize("name", TALKER_WEIGHTS)
def test_a_missing_or_misshaped_weight_is_named(folder: Path, name: str):
    tensors = load_file(folder / "model.safetensors")
    weight = tensors.pop(name)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=f"weight {name} is missing"):
        load_talker(folder)
    save_file(tensors | {name: weight[:-1].clone()}, folder / "model.safetensors")
    shape, wrong = tuple(weight.shape), (len(weight) - 1, *weight.shape[1:])
    with pytest.raises(CheckpointError) as error:
        load_talker(folder)
    assert str(error.value).endswith(f"weight {name} has shape {wrong}; {shape} expected")


def test_shards_give_the_weights_of_one_file(tiny_custom_voice: Path, tmp_path: Path):
    sharded = make_checkpoint(tmp_path / "sharded", shards=3)
    assert not (sharded / "model.safetensors").exists()
    whole, parts = Weights(tiny_custom_voice), Weights(sharded)
    assert parts.names() == whole.names()
    tensors = load_file(tiny_custom_voice / "model.safetensors")
    for name, tensor in tensors.items():
        for weights in (whole, parts):
            assert torch.equal(weights.take(name, tensor.shape, dtype=tensor.dtype, device=CPU), tensor), name
    a, b = load_talker(tiny_custom_voice), load_talker(sharded)
    assert torch.equal(a.text_table, b.text_table)
    assert torch.equal(a.code_predictor.heads, b.code_predictor.heads)


def test_a_missing_shard_or_a_broken_index_is_named(tmp_path: Path):
    sharded = make_checkpoint(tmp_path / "sharded", shards=2)
    (sharded / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model-00002-of-00002.safetensors is missing"):
        Weights(sharded)
    for text in ("{", "{}", "[]", '{"weight_map": 3}', '{"weight_map": {"a": 1}}', '{"weight_map": {"a": "../b"}}'):
        (sharded / "model.safetensors.index.json").write_text(text)
        with pytest.raises(CheckpointError, match=r"model.safetensors.index.json.*(weight_map|JSON)"):
            Weights(sharded)


def test_what_was_taken_stays_when_its_file_is_written_over(tiny_custom_voice: Path, tmp_path: Path):
    """A file that gets shorter would even end the process, at the first use of what is still the file itself."""
    folder = shutil.copytree(tiny_custom_voice, tmp_path / "written_over")
    checkpoint = Checkpoint(folder)
    talker, weights = checkpoint.config.talker, checkpoint.weights()
    name, shape = "talker.model.codec_embedding.weight", (talker.vocab_size, talker.shape.hidden_size)
    own: dict[str, Any] = {"dtype": torch.float32, "device": torch.device("cpu")}
    shard = weights.take_shard(name, shape, Shard(0, 2), dim=0, **own)
    taken = [weights.take(name, shape, **own).numpy(), shard.numpy(), *checkpoint.speaker_embeddings().values()]
    before = [array.copy() for array in taken]
    with (folder / "model.safetensors").open("r+b") as file:
        file.write(bytes((folder / "model.safetensors").stat().st_size))
    for array, as_it_was in zip(taken, before, strict=True):
        np.testing.assert_array_equal(array, as_it_was)


def test_weights_arrive_in_the_dtype_that_was_asked_for(tiny_custom_voice: Path):
    taken = Weights(tiny_custom_voice).take("talker.codec_head.weight", (3072, 64), dtype=torch.bfloat16, device=CPU)
    assert taken.dtype == torch.bfloat16
