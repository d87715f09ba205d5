"""CheckpointConfig: sizes, ids and defaults of a checkpoint folder, parsed from its JSON files.

Field meanings are those of qwen-tts 0.1.1 (configuration_qwen3_tts.py, configuration_qwen3_tts_tokenizer_v2.py). Settings that
this engine does not implement (biases in attention, sliding windows in the talker, scaled RoPE) are refused here, by name.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

from engine_lib.checkpoint_files import CODEC, Fields
from engine_lib.errors import CheckpointError
from engine_lib.speech.pieces import MIN_PIECE_LENGTH

KINDS = ("custom_voice", "base", "voice_design")
ROPE_SECTION = "rope_parameters"
TYPE, KEYS = "qwen3_tts", {"talker_config", "tts_model_type"}  # a checkpoint's, and what it has


@dataclass(frozen=True)
class DecoderShape:
    """Shape of one causal transformer with RMSNorm, RoPE, grouped heads and SwiGLU."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float

    def sharded(self, count: int) -> DecoderShape:
        """The shape of one of `count` equal shards: each has its own heads and its own part of the feed-forward layers."""
        return replace(
            self,
            intermediate_size=self.intermediate_size // count,
            num_attention_heads=self.num_attention_heads // count,
            num_key_value_heads=self.num_key_value_heads // count,
        )


@dataclass(frozen=True)
class CodePredictorConfig:
    """The code predictor ("sub-talker"): codebooks 1..num_code_groups-1 of a frame."""

    shape: DecoderShape
    vocab_size: int


@dataclass(frozen=True)
class TalkerConfig:
    """The talker: codebook 0 of every frame."""

    shape: DecoderShape
    vocab_size: int
    text_vocab_size: int
    text_hidden_size: int
    num_code_groups: int
    max_position_embeddings: int
    codec_eos_token_id: int
    codec_think_id: int
    codec_nothink_id: int
    codec_think_bos_id: int
    codec_think_eos_id: int
    codec_pad_id: int
    codec_bos_id: int
    speaker_ids: Mapping[str, int]
    speaker_dialects: Mapping[str, str | None]
    language_ids: Mapping[str, int]
    code_predictor: CodePredictorConfig

    @property
    def languages(self) -> list[str]:
        """The languages a request may name, sorted. A dialect comes with its speaker."""
        return sorted(name for name in self.language_ids if "dialect" not in name)


@dataclass(frozen=True)
class CodecDecoderConfig:
    """The codec decoder of `speech_tokenizer/`: codes to audio."""

    shape: DecoderShape
    codebook_size: int
    codebook_dim: int
    num_quantizers: int
    latent_dim: int
    decoder_dim: int
    sliding_window: int
    upsampling_ratios: tuple[int, ...]
    upsample_rates: tuple[int, ...]
    sample_rate: int

    @property
    def samples_per_frame(self) -> int:
        """Audio samples of one codec frame."""
        return prod(self.upsampling_ratios) * prod(self.upsample_rates)


@dataclass(frozen=True)
class SpeakerEncoderConfig:
    """The ECAPA-TDNN of `base` checkpoints: log-mel frames to an x-vector. Each block has one width, kernel and dilation."""

    mel_dim: int
    enc_dim: int
    enc_channels: tuple[int, ...]
    enc_kernel_sizes: tuple[int, ...]
    enc_dilations: tuple[int, ...]
    enc_attention_channels: int
    enc_res2net_scale: int
    enc_se_channels: int


@dataclass(frozen=True)
class ReferenceEncoderConfig:
    """The Mimi encoder of `speech_tokenizer/`: audio to codes.

    Attributes:
        num_quantizers: codebooks of a frame; the encoder's first ones.
        samples_per_frame: audio samples of one frame.
        mimi: fields of transformers' MimiConfig, in a form that transformers 4 and 5 both take.
    """

    num_quantizers: int
    samples_per_frame: int
    mimi: Mapping[str, Any]


@dataclass(frozen=True)
class CheckpointConfig:
    """The settings that this engine uses from the JSON files of one checkpoint folder."""

    kind: str
    size: str
    talker: TalkerConfig
    codec: CodecDecoderConfig
    speaker_encoder: SpeakerEncoderConfig | None  # this field and the next: None unless kind is base
    reference_encoder: ReferenceEncoderConfig | None
    tts_bos_token_id: int
    tts_eos_token_id: int
    tts_pad_token_id: int
    generation_defaults: Mapping[str, Any]

    @classmethod
    def read(cls, folder: Path) -> CheckpointConfig:
        """Parse config.json, generation_config.json and speech_tokenizer/config.json of `folder`.

        Raises:
            CheckpointError: a file or field is missing, or a setting is not supported.
        """
        model = Fields(folder / "config.json")
        if model.values.get("model_type", TYPE) != TYPE and not model.values.keys() >= KEYS:
            raise CheckpointError(f"{model.where}: model_type is {model.values['model_type']!r:.100}; give a Qwen3-TTS checkpoint ({TYPE})")
        talker = model.nested("talker_config")
        kind = model.get("tts_model_type", str)
        if kind not in KINDS:
            raise CheckpointError(f"{model.where}: tts_model_type is {kind!r}; supported: {', '.join(KINDS)}")
        generation_file = folder / "generation_config.json"  # tools that fine-tune may leave it out
        generation = Fields(generation_file, None if os.path.lexists(generation_file) else {})
        if generation.values.get("max_new_tokens") is not None and generation.get("max_new_tokens", int) < 2:
            raise CheckpointError(f"{generation.where}: max_new_tokens is {generation.values['max_new_tokens']}; a number from 2 expected")
        if generation.values.get("piece_length") is not None and generation.get("piece_length", int) < MIN_PIECE_LENGTH:
            least = f"a number from {MIN_PIECE_LENGTH} expected"
            raise CheckpointError(f"{generation.where}: piece_length is {generation.values['piece_length']}; {least}")
        tokenizer = Fields(folder / CODEC / "config.json")
        talker_config, codec = _talker_config(talker), _codec_config(tokenizer)
        text_rows = talker_config.text_vocab_size
        return cls(
            kind=kind,
            size=model.get("tts_model_size", str),
            talker=talker_config,
            codec=codec,
            speaker_encoder=_speaker_encoder_config(model, talker) if kind == "base" else None,
            reference_encoder=_reference_encoder_config(tokenizer, talker) if kind == "base" else None,
            tts_bos_token_id=model.get_id("tts_bos_token_id", text_rows),
            tts_eos_token_id=model.get_id("tts_eos_token_id", text_rows),
            tts_pad_token_id=model.get_id("tts_pad_token_id", text_rows),
            generation_defaults=generation.values,
        )

    @property
    def piece_length(self) -> int | None:
        """Characters of the longest texts that it has learnt; published checkpoints do not say, fine-tuned and small ones may."""
        return self.generation_defaults.get("piece_length")

    def check_codebooks(self) -> None:
        """Check that the codes of the talker are those of the codec: each indexes tables of both.

        Raises:
            CheckpointError: they differ.
        """
        talker, codec = self.talker, self.codec
        for name, value, needed in (
            ("num_code_groups", talker.num_code_groups, codec.num_quantizers),
            ("code_predictor_config.vocab_size", talker.code_predictor.vocab_size, codec.codebook_size),
            ("vocab_size", min(talker.vocab_size, codec.codebook_size), codec.codebook_size),
        ):
            if value != needed:
                raise CheckpointError(f"config.json (talker_config): {name} is {value}; the codec in speech_tokenizer needs {needed}")


def _talker_config(talker: Fields) -> TalkerConfig:
    predictor = talker.nested("code_predictor_config")
    for section in (talker, predictor):
        section.must_be("attention_bias", False)
        section.must_be("use_sliding_window", False)
        section.must_be("hidden_act", "silu")
        for name in ("rope_scaling", ROPE_SECTION):
            rope = section.nested(name).values if section.values.get(name) else {}
            rope_type = rope.get("rope_type", rope.get("type", "default"))
            if rope_type != "default":
                raise CheckpointError(f"{section.where}: {name} type {rope_type!r} is not supported; only 'default' is")
    rows = talker.get_size("vocab_size")
    language_ids = talker.get_ids("codec_language_id", rows)
    num_code_groups = talker.get_size("num_code_groups")
    if predictor.get_size("num_code_groups") != num_code_groups:
        raise CheckpointError(f"{predictor.where}: num_code_groups differs from the talker's ({num_code_groups})")
    return TalkerConfig(
        shape=_decoder_shape(talker),
        vocab_size=rows,
        text_vocab_size=talker.get_size("text_vocab_size"),
        text_hidden_size=talker.get_size("text_hidden_size"),
        num_code_groups=num_code_groups,
        max_position_embeddings=talker.get_size("max_position_embeddings"),
        codec_eos_token_id=talker.get_id("codec_eos_token_id", rows),
        codec_think_id=talker.get_id("codec_think_id", rows),
        codec_nothink_id=talker.get_id("codec_nothink_id", rows),
        codec_think_bos_id=talker.get_id("codec_think_bos_id", rows),
        codec_think_eos_id=talker.get_id("codec_think_eos_id", rows),
        codec_pad_id=talker.get_id("codec_pad_id", rows),
        codec_bos_id=talker.get_id("codec_bos_id", rows),
        speaker_ids=talker.get_ids("spk_id", rows),
        speaker_dialects=talker.get_names("spk_is_dialect", language_ids),
        language_ids=language_ids,
        code_predictor=CodePredictorConfig(shape=_decoder_shape(predictor), vocab_size=predictor.get_size("vocab_size")),
    )


def _codec_config(tokenizer: Fields) -> CodecDecoderConfig:
    decoder = tokenizer.nested("decoder_config")
    decoder.must_be("attention_bias", False)
    decoder.must_be("hidden_act", "silu")
    return CodecDecoderConfig(
        shape=_decoder_shape(decoder),
        codebook_size=decoder.get_size("codebook_size"),
        codebook_dim=decoder.get_size("codebook_dim"),
        num_quantizers=decoder.get_size("num_quantizers"),
        latent_dim=decoder.get_size("latent_dim"),
        decoder_dim=decoder.get_size("decoder_dim"),
        sliding_window=decoder.get_size("sliding_window"),
        upsampling_ratios=decoder.get_sizes("upsampling_ratios"),
        upsample_rates=decoder.get_sizes("upsample_rates"),
        sample_rate=tokenizer.get_size("output_sample_rate"),
    )


def _speaker_encoder_config(model: Fields, talker: Fields) -> SpeakerEncoderConfig:
    """Fields missing in a published config.json have the defaults of the official Qwen3TTSSpeakerEncoderConfig."""
    encoder = model.nested("speaker_encoder_config")
    encoder.must_be("sample_rate", 24000)
    encoder.must_be("enc_dim", talker.get_size("hidden_size"))  # an x-vector is a row of the talker's input
    channels = encoder.get_sizes("enc_channels", (512, 512, 512, 512, 1536))
    kernel_sizes = encoder.get_sizes("enc_kernel_sizes", (5, 3, 3, 3, 1))
    dilations = encoder.get_sizes("enc_dilations", (1, 2, 3, 4, 1))
    if not 3 <= len(channels) == len(kernel_sizes) == len(dilations):
        raise CheckpointError(f"{encoder.where}: enc_channels, enc_kernel_sizes and enc_dilations need one length, at least 3")
    return SpeakerEncoderConfig(
        mel_dim=encoder.get_size("mel_dim", 128),
        enc_dim=encoder.get_size("enc_dim"),
        enc_channels=channels,
        enc_kernel_sizes=kernel_sizes,
        enc_dilations=dilations,
        enc_attention_channels=encoder.get_size("enc_attention_channels", 128),
        enc_res2net_scale=encoder.get_size("enc_res2net_scale", 8),
        enc_se_channels=encoder.get_size("enc_se_channels", 128),
    )


def _reference_encoder_config(tokenizer: Fields, talker: Fields) -> ReferenceEncoderConfig:
    encoder = tokenizer.nested("encoder_config")
    for name, supported in (("audio_channels", 1), ("use_causal_conv", True), ("pad_mode", "constant"), ("rope_scaling", None)):
        encoder.must_be(name, supported)
    for section, name in ((encoder, "sampling_rate"), (tokenizer, "input_sample_rate")):
        section.must_be(name, 24000)
    tokenizer.must_be("encoder_valid_num_quantizers", talker.get_size("num_code_groups"))
    samples_per_frame = 2 * prod(encoder.get_sizes("upsampling_ratios", (8, 6, 5, 4)))
    tokenizer.must_be("encode_downsample_rate", samples_per_frame)
    settings = {name: value for name, value in encoder.values.items() if not name.startswith("rope_")}
    return ReferenceEncoderConfig(
        num_quantizers=tokenizer.get_size("encoder_valid_num_quantizers"),
        samples_per_frame=samples_per_frame,
        mimi=settings | {"rope_theta": _rope(encoder).get_positive("rope_theta", 10000.0)},
    )


def _decoder_shape(section: Fields) -> DecoderShape:
    hidden_size, heads = section.get_size("hidden_size"), section.get_size("num_attention_heads")
    return DecoderShape(
        hidden_size=hidden_size,
        intermediate_size=section.get_size("intermediate_size"),
        num_hidden_layers=section.get_size("num_hidden_layers"),
        num_attention_heads=heads,
        num_key_value_heads=section.get_size("num_key_value_heads"),
        head_dim=section.get_size("head_dim") if section.values.get("head_dim") is not None else hidden_size // heads,
        rms_norm_eps=section.get_positive("rms_norm_eps"),
        rope_theta=_rope(section).get_positive("rope_theta"),
    )


def _rope(section: Fields) -> Fields:
    """The section that has rope_theta: transformers 5 writes one of its own."""
    return section.nested(ROPE_SECTION) if section.values.get(ROPE_SECTION) else section
