"""Random-weight checkpoints load in the official package, are reproducible, and resemble speech."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

import oracle
from make_checkpoint import _fill, make_checkpoint
from random_checkpoint.configs import build_configs
from random_checkpoint.tensors import speech_tokenizer_tensors
from random_checkpoint.tokenizer import BPE_VOCAB

FIXTURES = ["tiny_custom_voice", "tiny_custom_voice_1b7", "tiny_base", "tiny_voice_design"]
TEXTS = [
    "Hello, how are you?",
    "\n",
    "\n\nTwo newlines first",
    " ",
    "   three spaces first",
    "\ttab first",
    "trailing newline\n",
    "trailing \n \n",
    "\r\nWindows",
    "😀 smile 👩‍👩‍👧",
    "你好，今天天气很好。",
    "e\u0301 decomposed",
    "assistant\nassistant",
    "user",
    "12,345.67 %",
    "iPhone's",
    "<|im_end|>",
    "[:3]",
]


def digests(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def tensor_names(*files: Path) -> set[str]:
    names: set[str] = set()
    for file in files:
        with safe_open(file, "pt") as f:
            names |= set(f.keys())
    return names


def reference_audio() -> tuple[np.ndarray, int]:
    """Return two seconds of a noisy tone at 24 kHz."""
    t = np.arange(48000, dtype=np.float32) / 24000
    noise = np.random.default_rng(0).standard_normal(48000).astype(np.float32)
    return (0.2 * np.sin(2 * np.pi * 220 * t) + 0.05 * noise).astype(np.float32), 24000


@pytest.mark.parametrize("fixture", FIXTURES)
def test_the_official_package_loads_every_kind_without_missing_or_unexpected_keys(fixture: str, request: pytest.FixtureRequest):
    path = request.getfixturevalue(fixture)
    official = oracle.load_official(path).model
    assert tensor_names(path / "model.safetensors") == set(official.state_dict())
    codec = official.speech_tokenizer.model
    assert tensor_names(path / "speech_tokenizer" / "model.safetensors") == set(codec.state_dict())
    with safe_open(path / "model.safetensors", "pt") as f:
        for name in f.keys():  # noqa: SIM118 - safe_open has no iterator
            assert torch.equal(f.get_tensor(name), official.state_dict()[name]), name


@pytest.mark.parametrize("fixture", FIXTURES)
def test_the_official_package_speaks_with_every_kind(fixture: str, request: pytest.FixtureRequest):
    model = oracle.load_official(request.getfixturevalue(fixture))
    arguments: dict[str, Any] = {"text": "Good morning!", "language": "english", "max_new_tokens": 6}
    reference_frames = 0
    match model.model.tts_model_type:
        case "custom_voice":
            method, arguments["speaker"], arguments["instruct"] = "generate_custom_voice", "ryan", "Whisper."
        case "voice_design":
            method, arguments["instruct"] = "generate_voice_design", "A warm, low voice."
        case _:
            method, arguments["ref_audio"], arguments["ref_text"] = "generate_voice_clone", reference_audio(), "Hello."
            reference_frames = 25
    [codes], [wav] = oracle.official_codes(model, method, torch_seed=0, **arguments)
    assert codes.shape[1] == 16
    assert 2 <= len(codes) - reference_frames <= 5
    assert wav.shape == (1920 * (len(codes) - reference_frames),)


def test_the_same_arguments_write_the_same_bytes(tiny_custom_voice: Path, tmp_path: Path):
    again = make_checkpoint(tmp_path / "again")
    assert digests(again) == digests(tiny_custom_voice)
    other = make_checkpoint(tmp_path / "other", seed=1)
    assert digests(other)["model.safetensors"] != digests(again)["model.safetensors"]


def test_shards_hold_the_same_tensors_as_one_file(tiny_custom_voice: Path, tmp_path: Path):
    sharded = make_checkpoint(tmp_path / "sharded", shards=3)
    index = json.loads((sharded / "model.safetensors.index.json").read_text())
    assert not (sharded / "model.safetensors").exists()
    assert len(set(index["weight_map"].values())) == 3
    with safe_open(tiny_custom_voice / "model.safetensors", "pt") as whole:
        assert set(whole.keys()) == set(index["weight_map"])
        for name, file in index["weight_map"].items():
            with safe_open(sharded / file, "pt") as part:
                assert torch.equal(part.get_tensor(name), whole.get_tensor(name)), name
    oracle.load_official(sharded)


def test_bfloat16_rounds_the_talker_and_leaves_the_codec_alone(tiny_custom_voice: Path, tmp_path: Path):
    half = make_checkpoint(tmp_path / "half", dtype="bfloat16")
    name = "talker.codec_head.weight"
    with safe_open(half / "model.safetensors", "pt") as a, safe_open(tiny_custom_voice / "model.safetensors", "pt") as b:
        assert torch.equal(a.get_tensor(name), b.get_tensor(name).to(torch.bfloat16))
    codec = "speech_tokenizer/model.safetensors"
    assert digests(half)[codec] == digests(tiny_custom_voice)[codec]


def test_rewriting_a_folder_leaves_no_old_weights(tmp_path: Path):
    make_checkpoint(tmp_path / "c", shards=2)
    make_checkpoint(tmp_path / "c")
    assert sorted(p.name for p in (tmp_path / "c").glob("model*")) == ["model.safetensors"]


@pytest.mark.parametrize("fixture", ["tiny_custom_voice", "tiny_published_ids"])
def test_the_role_is_three_tokens_and_the_tail_five_for_any_text(fixture: str, request: pytest.FixtureRequest):
    path = request.getfixturevalue(fixture)
    model, config = oracle.load_official(path), json.loads((path / "config.json").read_text())
    tokenizer = model.processor.tokenizer
    start, end = config["im_start_token_id"], config["im_end_token_id"]
    role = [start, *tokenizer.convert_tokens_to_ids(["assistant", "Ċ"])]
    for text in TEXTS:
        ids = model._tokenize_texts([model._build_assistant_text(text)])[0][0].tolist()
        assert ids[:3] == role, text
        assert ids[-5:] == [end, role[2], *role], text
        assert tokenizer.decode(ids[3:-5]) == unicodedata.normalize("NFC", text)
        reference = model._tokenize_texts([model._build_ref_text(text)])[0][0].tolist()
        assert reference == ids[:-3], text


def test_published_text_ids_follow_from_the_published_vocabulary(tiny_published_ids: Path):
    config = json.loads((tiny_published_ids / "config.json").read_text())
    names = ["<|im_start|>", "<|im_end|>", "<tts_pad>", "<tts_text_bos>", "<tts_text_eod>"]
    ids = [151644, 151645, 151671, 151672, 151673]
    assert oracle.load_official(tiny_published_ids).processor.tokenizer.convert_tokens_to_ids(names) == ids
    assert [config[f"{key}_token_id"] for key in ("im_start", "im_end", "tts_pad", "tts_bos", "tts_eos")] == ids


def test_the_text_shows_which_pattern_split_it(tiny_custom_voice: Path, tiny_published_ids: Path):
    """The official package asks for fix_mistral_regex, which takes effect for vocabularies above 100,000 tokens only."""
    own, other = (oracle.load_official(p).processor.tokenizer for p in (tiny_custom_voice, tiny_published_ids))
    assert own.tokenize("iPhone") == ["iPhone"]
    assert other.tokenize("iPhone") != ["iPhone"]


@pytest.mark.parametrize("size", ["tiny", "0.6b"])
def test_audio_neither_clips_nor_vanishes(size: str):
    """The decoder is the same in both published sizes. Built from its specs, since 0.6b need not be written to disk."""
    package = oracle.import_official()
    from qwen_tts.core.tokenizer_12hz.modeling_qwen3_tts_tokenizer_v2 import Qwen3TTSTokenizerV2Config, Qwen3TTSTokenizerV2Decoder

    assert package.Qwen3TTSModel
    config = build_configs(size, "custom_voice", bpe_vocab=BPE_VOCAB)["speech_tokenizer"]
    with torch.device("meta"):
        decoder = Qwen3TTSTokenizerV2Decoder._from_config(Qwen3TTSTokenizerV2Config(**config).decoder_config)
    weights = {s.name.removeprefix("decoder."): _fill(s, 0) for s in speech_tokenizer_tensors(config) if s.name.startswith("decoder.")}
    decoder.load_state_dict(weights, assign=True)
    rotary = decoder.pre_transformer.rotary_emb
    rotary.inv_freq, _ = rotary.rope_init_fn(decoder.config, "cpu")  # not a weight, so still on the meta device
    codes = torch.randint(2048, (1, 16, 24), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        wav = decoder.eval()(codes)[0, 0]
    assert wav.shape == (24 * 1920,)
    rms = wav.square().mean().sqrt().item()
    assert 0.02 < rms < 0.3
    assert wav.abs().max().item() < 1.0
    assert abs(wav.mean().item()) < 0.1 * rms


@pytest.mark.parametrize("fixture", ["tiny_custom_voice", "tiny_custom_voice_1b7"])
def test_sampled_speech_varies_ends_by_itself_and_has_logits_without_near_ties(fixture: str, request: pytest.FixtureRequest):
    model = oracle.load_official(request.getfixturevalue(fixture))
    seen: list[torch.Tensor] = []
    hook = model.model.talker.codec_head.register_forward_hook(lambda _m, _i, out: seen.append(out[0, -1:, :2048]))
    try:
        asked: dict[str, Any] = {"text": TEXTS, "language": "auto", "speaker": "vivian", "max_new_tokens": 40}
        codes, _ = oracle.official_codes(model, torch_seed=0, decode=False, **asked)
    finally:
        hook.remove()
    lengths = [len(c) for c in codes]
    assert sum(n < 39 for n in lengths) >= len(TEXTS) // 6, lengths
    assert sum(lengths) / len(lengths) >= 20, lengths
    assert all(len({tuple(frame) for frame in c.tolist()}) == len(c) for c in codes)
    logits = torch.cat(seen[: lengths[0]])  # of the first text, as long as it speaks
    assert 2 < logits.std(dim=1).mean() < 5
    best = logits.topk(2).values
    assert (best[:, 0] - best[:, 1]).median() > 0.1


def test_an_eos_gain_of_zero_never_ends(tmp_path: Path):
    model = oracle.load_official(make_checkpoint(tmp_path / "endless", eos_gain=0.0))
    asked: dict[str, Any] = {"text": TEXTS[0], "language": "auto", "speaker": "ryan", "max_new_tokens": 40}
    codes, _ = oracle.official_codes(model, torch_seed=0, decode=False, **asked)
    assert [len(c) for c in codes] == [39]


def test_unknown_override_keys_and_arguments_are_refused(tmp_path: Path):
    with pytest.raises(KeyError, match="num_hiden_layers"):
        make_checkpoint(tmp_path, overrides={"talker_config.num_hiden_layers": 3})
    with pytest.raises(ValueError, match=r"0\.7b"):
        make_checkpoint(tmp_path, size="0.7b")
    with pytest.raises(ValueError, match="float8"):
        make_checkpoint(tmp_path, dtype="float8")
