"""Names, shapes and scales of every tensor of a checkpoint, derived from its configs.

The scales keep random weights useful. Audio neither clips nor vanishes. Logits are spread, so that an argmax has no near ties.
Every module contributes so much (LayerScale and ConvNeXt gammas far above their training init) that an omitted or misplaced one
exceeds a test's tolerance.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from random_checkpoint.configs import Config

LOGIT_STD = 3.5
AUDIO_GAIN = 0.15
MIMI_BOOK_SCALE = 0.25


@dataclass(frozen=True)
class TensorSpec:
    """One tensor: `fill` is the rule that makes weights of random values, `scale` and `mean` give their range."""

    name: str
    shape: tuple[int, ...]
    scale: float
    mean: float = 0.0
    fill: str = "normal"  # normal | usage | codebook | zero_sum | initialized
    eos_row: int | None = None

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


def _linear(name: str, out: int, into: int, gain: float = 1.0, bias: bool = False) -> Iterator[TensorSpec]:
    yield TensorSpec(f"{name}.weight", (out, into), gain / math.sqrt(into))
    if bias:
        yield TensorSpec(f"{name}.bias", (out,), 0.05)


def _conv(name: str, out: int, into: int, kernel: int, gain: float = 1.0, bias: bool = True) -> Iterator[TensorSpec]:
    yield TensorSpec(f"{name}.weight", (out, into, kernel), gain / math.sqrt(into * kernel))
    if bias:
        yield TensorSpec(f"{name}.bias", (out,), 0.05)


def _transposed_conv(name: str, into: int, out: int, kernel: int, stride: int, gain: float = 1.0) -> Iterator[TensorSpec]:
    yield TensorSpec(f"{name}.weight", (into, out, kernel), gain / math.sqrt(into * kernel / stride))
    yield TensorSpec(f"{name}.bias", (out,), 0.05)


def _norm(name: str, width: int, bias: bool = False) -> Iterator[TensorSpec]:
    yield TensorSpec(f"{name}.weight", (width,), 0.1, mean=1.0)
    if bias:
        yield TensorSpec(f"{name}.bias", (width,), 0.05)


def _attention(name: str, c: Config, qk_norm: bool) -> Iterator[TensorSpec]:
    hidden, width, kv_width = c["hidden_size"], c["num_attention_heads"] * c["head_dim"], c["num_key_value_heads"] * c["head_dim"]
    bias = bool(c["attention_bias"])
    # Without a norm on queries and keys, a gain prevents flat attention.
    gain = 1.0 if qk_norm else 1.3
    yield from _linear(f"{name}.q_proj", width, hidden, gain, bias=bias)
    yield from _linear(f"{name}.k_proj", kv_width, hidden, gain, bias=bias)
    yield from _linear(f"{name}.v_proj", kv_width, hidden, bias=bias)
    yield from _linear(f"{name}.o_proj", hidden, width, bias=bias)
    if qk_norm:
        for norm in ("q_norm", "k_norm"):
            yield TensorSpec(f"{name}.{norm}.weight", (c["head_dim"],), 0.1, mean=1.2)


def _gated_layers(name: str, c: Config, *, qk_norm: bool, layer_scale: bool) -> Iterator[TensorSpec]:
    hidden, ffn = c["hidden_size"], c["intermediate_size"]
    for i in range(c["num_hidden_layers"]):
        layer = f"{name}.layers.{i}"
        yield from _attention(f"{layer}.self_attn", c, qk_norm)
        yield from _linear(f"{layer}.mlp.gate_proj", ffn, hidden)
        yield from _linear(f"{layer}.mlp.up_proj", ffn, hidden)
        yield from _linear(f"{layer}.mlp.down_proj", hidden, ffn, 1.5)
        yield from _norm(f"{layer}.input_layernorm", hidden)
        yield from _norm(f"{layer}.post_attention_layernorm", hidden)
        if layer_scale:
            yield TensorSpec(f"{layer}.self_attn_layer_scale.scale", (hidden,), 0.05, mean=0.3)
            yield TensorSpec(f"{layer}.mlp_layer_scale.scale", (hidden,), 0.05, mean=0.3)
    yield from _norm(f"{name}.norm", hidden)


def talker_tensors(config: Config) -> Iterator[TensorSpec]:
    """Yield the talker, its code predictor and, for base checkpoints, the speaker encoder (all of model.safetensors)."""
    talker = config["talker_config"]
    predictor = talker["code_predictor_config"]
    hidden, text_hidden = talker["hidden_size"], talker["text_hidden_size"]
    yield TensorSpec("talker.model.text_embedding.weight", (talker["text_vocab_size"], text_hidden), 1.0)
    yield TensorSpec("talker.model.codec_embedding.weight", (talker["vocab_size"], hidden), 0.5)
    yield from _gated_layers("talker.model", talker, qk_norm=True, layer_scale=False)
    yield from _linear("talker.text_projection.linear_fc1", text_hidden, text_hidden, bias=True)
    yield from _linear("talker.text_projection.linear_fc2", hidden, text_hidden, 1.6, bias=True)
    yield TensorSpec(
        "talker.codec_head.weight", (talker["vocab_size"], hidden), LOGIT_STD / math.sqrt(hidden), eos_row=talker["codec_eos_token_id"]
    )

    name, width = "talker.code_predictor", predictor["hidden_size"]
    if width != hidden:
        yield from _linear(f"{name}.small_to_mtp_projection", width, hidden, bias=True)
    for i in range(talker["num_code_groups"] - 1):
        yield TensorSpec(f"{name}.model.codec_embedding.{i}.weight", (predictor["vocab_size"], hidden), 0.5)
        yield TensorSpec(f"{name}.lm_head.{i}.weight", (predictor["vocab_size"], width), LOGIT_STD / math.sqrt(width))
    yield from _gated_layers(f"{name}.model", predictor, qk_norm=True, layer_scale=False)
    if config["tts_model_type"] == "base":
        yield from _speaker_encoder(config["speaker_encoder_config"])


def _speaker_encoder(c: Config) -> Iterator[TensorSpec]:
    channels = c.get("enc_channels", [512, 512, 512, 512, 1536])
    kernels = c.get("enc_kernel_sizes", [5, 3, 3, 3, 1])
    squeeze, attention = c.get("enc_se_channels", 128), c.get("enc_attention_channels", 128)
    scale = c.get("enc_res2net_scale", 8)
    relu = math.sqrt(2.0)
    name = "speaker_encoder"
    # Log-mel values lie around -5, so the first layer gets a small gain.
    yield from _conv(f"{name}.blocks.0.conv", channels[0], c.get("mel_dim", 128), kernels[0], 0.3)
    for i in range(1, len(channels) - 1):
        block, width = f"{name}.blocks.{i}", channels[i]
        yield from _conv(f"{block}.tdnn1.conv", width, channels[i - 1], 1, relu)
        for j in range(scale - 1):
            yield from _conv(f"{block}.res2net_block.blocks.{j}.conv", width // scale, width // scale, kernels[i], relu)
        yield from _conv(f"{block}.tdnn2.conv", width, width, 1, relu)
        yield from _conv(f"{block}.se_block.conv1", squeeze, width, 1, relu)
        yield from _conv(f"{block}.se_block.conv2", width, squeeze, 1)
    last = channels[-1]
    yield from _conv(f"{name}.mfa.conv", last, last, kernels[-1], relu)
    yield from _conv(f"{name}.asp.tdnn.conv", attention, 3 * last, 1)
    yield from _conv(f"{name}.asp.conv", last, attention, 1)
    yield from _conv(f"{name}.fc", c["enc_dim"], 2 * last, 1, 0.5)


def speech_tokenizer_tensors(config: Config) -> Iterator[TensorSpec]:
    """Yield the codec decoder and the Mimi encoder (all of speech_tokenizer/model.safetensors)."""
    yield from _codec_decoder(config["decoder_config"])
    yield from _mimi_encoder(config["encoder_config"])


def _codebook(name: str, size: int, dim: int, scale: float, *, sum_name: str) -> Iterator[TensorSpec]:
    yield TensorSpec(f"{name}.cluster_usage", (size,), 1.0, fill="usage")
    yield TensorSpec(f"{name}.{sum_name}", (size, dim), scale, fill="codebook")


def _codec_decoder(c: Config) -> Iterator[TensorSpec]:
    dim, latent, books = c["codebook_dim"] // 2, c["latent_dim"], c["num_quantizers"]
    for part, count in (("rvq_first", 1), ("rvq_rest", books - 1)):
        name = f"decoder.quantizer.{part}"
        # Never used in decoding, but published, and expected by the official package.
        yield from _conv(f"{name}.input_proj", dim, c["codebook_dim"], 1, bias=False)
        yield from _conv(f"{name}.output_proj", c["codebook_dim"], dim, 1, bias=False)
        for i in range(count):
            scale = 1.0 / math.sqrt(count)
            yield from _codebook(f"{name}.vq.layers.{i}._codebook", c["codebook_size"], dim, scale, sum_name="embedding_sum")
    yield from _conv("decoder.pre_conv.conv", latent, c["codebook_dim"], 3)
    yield from _linear("decoder.pre_transformer.input_proj", c["hidden_size"], latent, bias=True)
    yield from _linear("decoder.pre_transformer.output_proj", latent, c["hidden_size"], bias=True)
    yield from _gated_layers("decoder.pre_transformer", c, qk_norm=False, layer_scale=True)
    for i, factor in enumerate(c["upsampling_ratios"]):
        name = f"decoder.upsample.{i}"
        yield from _transposed_conv(f"{name}.0.conv", latent, latent, factor, factor)
        yield from _conv(f"{name}.1.dwconv.conv", latent, 1, 7)
        yield from _norm(f"{name}.1.norm", latent, bias=True)
        yield from _linear(f"{name}.1.pwconv1", 4 * latent, latent, bias=True)
        yield from _linear(f"{name}.1.pwconv2", latent, 4 * latent, bias=True)
        yield TensorSpec(f"{name}.1.gamma", (latent,), 0.1, mean=0.3)

    width = c["decoder_dim"]
    yield from _conv("decoder.decoder.0.conv", width, latent, 7)
    for i, rate in enumerate(c["upsample_rates"]):
        block = f"decoder.decoder.{i + 1}.block"
        yield from _snake(f"{block}.0", width)
        yield from _transposed_conv(f"{block}.1.conv", width, width // 2, 2 * rate, rate, 0.6)
        width //= 2
        for j in range(3):
            yield from _snake(f"{block}.{j + 2}.act1", width)
            yield from _conv(f"{block}.{j + 2}.conv1.conv", width, width, 7, 0.6)
            yield from _snake(f"{block}.{j + 2}.act2", width)
            yield from _conv(f"{block}.{j + 2}.conv2.conv", width, width, 1, 0.4)
    last = len(c["upsample_rates"]) + 1
    yield from _snake(f"decoder.decoder.{last}", width)
    # Taps that sum to zero keep the activations' positive mean out of the audio.
    yield TensorSpec(f"decoder.decoder.{last + 1}.conv.weight", (1, width, 7), AUDIO_GAIN / math.sqrt(width * 7), fill="zero_sum")
    yield TensorSpec(f"decoder.decoder.{last + 1}.conv.bias", (1,), 0.001)


def _snake(name: str, width: int) -> Iterator[TensorSpec]:
    yield TensorSpec(f"{name}.alpha", (width,), 0.2)
    yield TensorSpec(f"{name}.beta", (width,), 0.2)


def _mimi_encoder(c: Config) -> Iterator[TensorSpec]:
    width, kernel = c["num_filters"], c["kernel_size"]
    yield from _conv("encoder.encoder.layers.0.conv", width, c["audio_channels"], kernel, 4.0)
    index = 1
    for ratio in reversed(c["upsampling_ratios"]):
        for _ in range(c["num_residual_layers"]):
            inner = width // c["compress"]
            yield from _conv(f"encoder.encoder.layers.{index}.block.1.conv", inner, width, c["residual_kernel_size"])
            yield from _conv(f"encoder.encoder.layers.{index}.block.3.conv", width, inner, 1)
            index += 1
        index += 1  # an ELU
        yield from _conv(f"encoder.encoder.layers.{index}.conv", 2 * width, width, 2 * ratio, 1.2)
        width *= 2
        index += 1
    index += 1  # an ELU
    hidden, ffn = c["hidden_size"], c["intermediate_size"]
    yield from _conv(f"encoder.encoder.layers.{index}.conv", hidden, width, c["last_kernel_size"], 1.2)
    for i in range(c["num_hidden_layers"]):
        layer = f"encoder.encoder_transformer.layers.{i}"
        yield from _attention(f"{layer}.self_attn", c, qk_norm=False)
        yield from _linear(f"{layer}.mlp.fc1", ffn, hidden)
        yield from _linear(f"{layer}.mlp.fc2", hidden, ffn)
        yield from _norm(f"{layer}.input_layernorm", hidden, bias=True)
        yield from _norm(f"{layer}.post_attention_layernorm", hidden, bias=True)
        yield TensorSpec(f"{layer}.self_attn_layer_scale.scale", (hidden,), 0.05, mean=0.3)
        yield TensorSpec(f"{layer}.mlp_layer_scale.scale", (hidden,), 0.05, mean=0.3)
    yield from _conv("encoder.downsample.conv", hidden, hidden, 4, bias=False)
    inner = c["vector_quantization_hidden_dimension"]
    for part, count in (
        ("semantic", c["num_semantic_quantizers"]),
        ("acoustic", c["num_quantizers"] - c["num_semantic_quantizers"]),
    ):
        name = f"encoder.quantizer.{part}_residual_vector_quantizer"
        yield from _conv(f"{name}.input_proj", inner, hidden, 1, bias=False)
        yield from _conv(f"{name}.output_proj", hidden, inner, 1, bias=False)
        for i in range(count):
            book = f"{name}.layers.{i}.codebook"
            yield TensorSpec(f"{book}.initialized", (1,), 0.0, fill="initialized")
            yield from _codebook(book, c["codebook_size"], c["codebook_dim"], MIMI_BOOK_SCALE * 0.95**i, sum_name="embed_sum")
