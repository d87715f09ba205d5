"""The configs of random-weight checkpoints: three sizes, three kinds, in the published layout.

`build_configs` returns the JSON of the files. make_checkpoint.py derives every tensor from them, so a test that overrides a value
here (another head_dim, another layer count) gets a consistent checkpoint.
"""

from __future__ import annotations

import copy
from typing import Any

from random_checkpoint.vocabulary import DIALECTS, LANGUAGES, PUBLISHED_TEXT_VOCAB, SPEAKERS, SPECIAL_TOKENS, first_special_id

Config = dict[str, Any]

SIZES = ("tiny", "0.6b", "1.7b")
KINDS = ("custom_voice", "base", "voice_design")

# hidden, FFN, layers, heads, KV heads, head_dim of the talker, then of its code predictor
_TALKER = {
    "tiny": ((64, 128, 2, 4, 2, 16), (64, 128, 2, 4, 2, 16)),
    "0.6b": ((1024, 3072, 28, 16, 8, 128), (1024, 3072, 5, 16, 8, 128)),
    "1.7b": ((2048, 6144, 28, 16, 8, 128), (1024, 3072, 5, 16, 8, 128)),
}
_DERIVED = (
    "talker_config.rope_scaling.mrope_section",
    "talker_config.code_predictor_config.layer_types",
    "speaker_encoder_config.enc_dim",
)


def _dimensions(dims: tuple[int, ...]) -> Config:
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim")
    return dict(zip(names, dims, strict=True))


def _transformer(dims: tuple[int, ...]) -> Config:
    return _dimensions(dims) | {
        "attention_bias": False,
        "attention_dropout": 0,
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "use_cache": True,
        "use_sliding_window": False,
        "num_code_groups": 16,
    }


def _model_config(size: str, kind: str) -> Config:
    talker, predictor = _TALKER[size]
    speakers = SPEAKERS if kind == "custom_voice" else {}
    speaker_encoder: Config = {"enc_dim": talker[0], "sample_rate": 24000}
    if size == "tiny":
        speaker_encoder |= {
            "mel_dim": 128,
            "enc_channels": [32, 32, 32, 32, 96],
            "enc_kernel_sizes": [5, 3, 3, 3, 1],
            "enc_dilations": [1, 2, 3, 4, 1],
            "enc_attention_channels": 16,
            "enc_res2net_scale": 8,
            "enc_se_channels": 16,
        }
    return {
        "architectures": ["Qwen3TTSForConditionalGeneration"],
        "model_type": "qwen3_tts",
        "tokenizer_type": "qwen3_tts_tokenizer_12hz",
        "tts_model_size": {"tiny": "0b6", "0.6b": "0b6", "1.7b": "1b7"}[size],
        "tts_model_type": kind,
        "transformers_version": "4.57.3",
        "speaker_encoder_config": speaker_encoder,
        "talker_config": _transformer(talker)
        | {
            "model_type": "qwen3_tts_talker",
            "max_position_embeddings": 32768,
            "position_id_per_seconds": 13,
            "rope_scaling": {"interleaved": True, "mrope_section": [], "rope_type": "default", "type": "default"},
            "vocab_size": 3072,
            "text_hidden_size": 64 if size == "tiny" else 2048,
            "text_vocab_size": 0 if size == "tiny" else PUBLISHED_TEXT_VOCAB,
            "codec_pad_id": 2148,
            "codec_bos_id": 2149,
            "codec_eos_token_id": 2150,
            "codec_think_id": 2154,
            "codec_nothink_id": 2155,
            "codec_think_bos_id": 2156,
            "codec_think_eos_id": 2157,
            "codec_language_id": dict(LANGUAGES),
            "spk_id": dict(speakers),
            "spk_is_dialect": {name: DIALECTS.get(name, False) for name in speakers},
            "code_predictor_config": _transformer(predictor)
            | {
                "model_type": "qwen3_tts_talker_code_predictor",
                "max_position_embeddings": 65536,
                "max_window_layers": 28,
                "rope_scaling": None,
                "layer_types": [],
                "vocab_size": 2048,
            },
        },
    }


def _generation_config() -> Config:
    return {
        "do_sample": True,
        "temperature": 0.9,
        "top_k": 50,
        "top_p": 1.0,
        "repetition_penalty": 1.05,
        "subtalker_dosample": True,
        "subtalker_temperature": 0.9,
        "subtalker_top_k": 50,
        "subtalker_top_p": 1.0,
        "max_new_tokens": 2048,
    }


def _speech_tokenizer_config(size: str) -> Config:
    tiny = size == "tiny"
    decoder = _dimensions((32, 64, 2, 4, 4, 8) if tiny else (512, 1024, 8, 16, 16, 64)) | {
        "attention_bias": False,
        "attention_dropout": 0.0,
        "codebook_dim": 32 if tiny else 512,
        "codebook_size": 2048,
        "decoder_dim": 96 if tiny else 1536,
        "hidden_act": "silu",
        "latent_dim": 64 if tiny else 1024,
        "layer_scale_initial_scale": 0.01,
        "max_position_embeddings": 8000,
        "num_quantizers": 16,
        "num_semantic_quantizers": 1,
        "rms_norm_eps": 1e-05,
        "rope_theta": 10000,
        "sliding_window": 72,
        "upsample_rates": [8, 5, 4, 3],
        "upsampling_ratios": [2, 2],
    }
    encoder = _dimensions((64, 128, 2, 4, 4, 16) if tiny else (512, 2048, 8, 8, 8, 64)) | {
        "_frame_rate": 12.5,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "audio_channels": 1,
        "codebook_dim": 32 if tiny else 256,
        "codebook_size": 2048,
        "compress": 2,
        "dilation_growth_rate": 2,
        "hidden_act": "gelu",
        "initializer_range": 0.02,
        "kernel_size": 7,
        "last_kernel_size": 3,
        "layer_scale_initial_scale": 0.01,
        "max_position_embeddings": 8000,
        "model_type": "mimi",
        "norm_eps": 1e-05,
        "num_filters": 8 if tiny else 64,
        "num_quantizers": 32,
        "num_residual_layers": 1,
        "num_semantic_quantizers": 1,
        "pad_mode": "constant",
        "residual_kernel_size": 3,
        "rope_theta": 10000.0,
        "sampling_rate": 24000,
        "sliding_window": 250,
        "trim_right_ratio": 1.0,
        "upsample_groups": 64 if tiny else 512,
        "upsampling_ratios": [8, 6, 5, 4],
        "use_cache": False,
        "use_causal_conv": True,
        "use_conv_shortcut": False,
        "vector_quantization_hidden_dimension": 32 if tiny else 256,
    }
    return {
        "architectures": ["Qwen3TTSTokenizerV2Model"],
        "model_type": "qwen3_tts_tokenizer_12hz",
        "transformers_version": "4.57.3",
        "input_sample_rate": 24000,
        "output_sample_rate": 24000,
        "encode_downsample_rate": 1920,
        "decode_upsample_rate": 1920,
        "encoder_valid_num_quantizers": 16,
        "encoder_config": encoder,
        "decoder_config": decoder,
    }


def _apply(configs: dict[str, Config], key: str, value: Any) -> None:
    """Set one dotted key; its first part may name a file, else the key is of config.json."""
    first, _, rest = key.partition(".")
    node, path = (configs[first], rest) if first in configs and rest else (configs["config"], key)
    *parents, leaf = path.split(".")
    for part in parents:
        child = node.get(part)
        if not isinstance(child, dict):
            raise KeyError(f"override {key!r}: {part!r} is not a section; allowed here: {sorted(node)}")
        node = child
    if leaf not in node:
        raise KeyError(f"override {key!r}: no such value; allowed here: {sorted(node)}")
    node[leaf] = value


def build_configs(size: str, kind: str, overrides: Config | None = None, *, bpe_vocab: int) -> dict[str, Config]:
    """Return `config`, `generation_config` and `speech_tokenizer` with overrides applied and dependent values adjusted.

    `bpe_vocab` is the number of ordinary text tokens. A small checkpoint's special tokens come right after them; a text vocabulary of
    the published size keeps the published ids.
    """
    if size not in SIZES or kind not in KINDS:
        raise ValueError(f"size={size!r}, kind={kind!r}: size must be one of {SIZES} and kind one of {KINDS}")
    overrides = copy.deepcopy(overrides or {})
    configs = {
        "config": _model_config(size, kind),
        "generation_config": _generation_config(),
        "speech_tokenizer": _speech_tokenizer_config(size),
    }
    talker = configs["config"]["talker_config"]
    if not talker["text_vocab_size"]:
        talker["text_vocab_size"] = -(-(bpe_vocab + len(SPECIAL_TOKENS)) // 64) * 64
    for key in sorted(overrides, key=lambda k: k in _DERIVED):
        if key not in _DERIVED:
            _apply(configs, key, overrides[key])

    half = talker["head_dim"] // 2
    side = half * 20 // 64  # the published proportions: 24, 20, 20 of 64
    predictor = talker["code_predictor_config"]
    talker["rope_scaling"]["mrope_section"] = [half - 2 * side, side, side]
    predictor["layer_types"] = ["full_attention"] * predictor["num_hidden_layers"]
    configs["config"]["speaker_encoder_config"]["enc_dim"] = talker["hidden_size"]
    for key in _DERIVED:
        if key in overrides:
            _apply(configs, key, overrides[key])

    first = first_special_id(talker["text_vocab_size"], bpe_vocab)
    ids = {token: first + i for i, token in enumerate(SPECIAL_TOKENS)}
    configs["config"] |= {
        "im_start_token_id": ids["<|im_start|>"],
        "im_end_token_id": ids["<|im_end|>"],
        "tts_pad_token_id": ids["<tts_pad>"],
        "tts_bos_token_id": ids["<tts_text_bos>"],
        "tts_eos_token_id": ids["<tts_text_eod>"],
    }
    return configs
