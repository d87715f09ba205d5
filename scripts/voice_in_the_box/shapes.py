"""The checkpoint's shapes: the published architecture at a size for a repository (12 MB in float16).

random_checkpoint/tensors.py derives the names and shapes of the tensors from these configs, so training, export and the engine
agree.
"""

from __future__ import annotations

from typing import Any

import torch

from random_checkpoint.configs import Config, build_configs
from random_checkpoint.tensors import TensorSpec, speech_tokenizer_tensors, talker_tensors
from voice_in_the_box.speech import SPEAKERS

BPE_VOCAB = 448  # 256 bytes and 192 merges: a token is a few letters, so text and sound advance together
CODEBOOK_SIZE = 128

# The codec vocabulary ends with 1024 ids without sound: tags, language, speakers, EOS.
_FIRST_TAG = CODEBOOK_SIZE
_TAGS = (
    "codec_pad_id",
    "codec_bos_id",
    "codec_eos_token_id",
    "codec_think_id",
    "codec_nothink_id",
    "codec_think_bos_id",
    "codec_think_eos_id",
)

_TALKER = {
    "hidden_size": 192,
    "intermediate_size": 448,
    "num_hidden_layers": 6,
    "num_attention_heads": 3,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "rope_theta": 10000,
    "max_position_embeddings": 4096,
    "text_hidden_size": 128,
    "vocab_size": CODEBOOK_SIZE + 1024,
}
_PREDICTOR = {
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "rope_theta": 10000,
    "vocab_size": CODEBOOK_SIZE,
}
_CODEC = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "codebook_size": CODEBOOK_SIZE,
    "codebook_dim": 128,
    "latent_dim": 128,
    "decoder_dim": 192,
}
# For a test of the whole recipe on a CPU.
_SMOKE = {
    "config": {"talker_config.num_hidden_layers": 2, "talker_config.code_predictor_config.num_hidden_layers": 1},
    "codec": {"decoder_dim": 64, "num_hidden_layers": 1, "latent_dim": 64},
}
# generation_config.json; low temperatures, because the model's distributions are sharp.
_GENERATION = {"temperature": 0.7, "repetition_penalty": 1.0, "subtalker_temperature": 0.7}

PIECE_LENGTH = 90  # characters: of much longer texts it loses words (docs/speech/text.md)


def configs(*, smoke: bool = False) -> dict[str, Config]:
    """`config`, `generation_config` and `speech_tokenizer` of the checkpoint."""
    overrides: dict[str, Any] = {f"talker_config.{name}": value for name, value in _TALKER.items()}
    overrides |= {f"talker_config.code_predictor_config.{name}": value for name, value in _PREDICTOR.items()}
    overrides |= {f"speech_tokenizer.decoder_config.{name}": value for name, value in _CODEC.items()}
    overrides |= {f"generation_config.{name}": value for name, value in _GENERATION.items()}
    overrides |= {f"talker_config.{name}": _FIRST_TAG + i for i, name in enumerate(_TAGS)}
    first_speaker = _FIRST_TAG + len(_TAGS) + 1
    overrides |= {
        "talker_config.codec_language_id": {"english": first_speaker - 1},
        "talker_config.spk_id": {name: first_speaker + i for i, name in enumerate(SPEAKERS)},
        "talker_config.spk_is_dialect": dict.fromkeys(SPEAKERS, False),
    }
    if smoke:
        overrides |= _SMOKE["config"]
        overrides |= {f"speech_tokenizer.decoder_config.{name}": value for name, value in _SMOKE["codec"].items()}
    built = build_configs("tiny", "custom_voice", overrides, bpe_vocab=BPE_VOCAB)
    built["generation_config"]["piece_length"] = PIECE_LENGTH
    return built


def talker_specs(config: dict[str, Config]) -> list[TensorSpec]:
    """Tensors of model.safetensors."""
    return list(talker_tensors(config["config"]))


def codec_specs(config: dict[str, Config]) -> list[TensorSpec]:
    """Tensors of speech_tokenizer/model.safetensors: only the decoder, because the recipe needs no encoder there."""
    return [spec for spec in speech_tokenizer_tensors(config["speech_tokenizer"]) if spec.name.startswith("decoder.")]


def initial_weights(specs: list[TensorSpec], seed: int, device: torch.device) -> dict[str, torch.Tensor]:
    """Initial weights for training, float32: norms are 1, biases are 0, residual branches and logits start small."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for spec in specs:
        value = torch.randn(spec.shape, generator=generator) * spec.scale
        if spec.name.endswith((".bias", ".alpha", ".beta")) or "_codebook" in spec.name:
            value.zero_()  # training replaces unused codebook entries by latents
        elif len(spec.shape) == 1:
            value = torch.full(spec.shape, round(spec.mean, 1))
        elif "head" in spec.name:
            value *= 0.1
        elif spec.name.endswith(("o_proj.weight", "down_proj.weight")) or "codec_embedding" in spec.name:
            value *= 0.3
        weights[spec.name] = value.to(device)
    return weights
