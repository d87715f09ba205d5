"""CodecDecoder: frames of codes to samples, piece by piece (official: Qwen3TTSTokenizerV2Decoder).

codebooks -> causal conv -> sliding-window transformer -> upsampling ConvNeXt stages -> upsampling SnakeBeta stages -> samples.
Constants are folded into the weights at load, in float32: LayerScale and ConvNeXt's gamma into the products before them, SnakeBeta's
exponentials; in float64 cluster usage and output projection into the codebooks.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn

from engine_lib.checkpoint import Weights
from engine_lib.checkpoint_config import CodecDecoderConfig
from engine_lib.codec.streaming import CausalConv, CausalTransposedConv, SlidingWindowAttention, StreamingLayer, StreamState, window_mask
from engine_lib.layers.snake import snake_beta
from engine_lib.ops.norm import rms_norm
from engine_lib.ops.rope import inverse_frequencies, rope_cos_sin

# (name below "decoder.", *shape) -> float32 tensor on the decoder's device, or of the given dtype and device
Take = Callable[..., torch.Tensor]

USAGE_EPSILON = 1e-5
LAYER_NORM_EPSILON = 1e-6
SNAKE_EPSILON = 1e-9
RESIDUAL_DILATIONS = (1, 3, 9)


class CodecDecoder(nn.Module):
    """The decoder of `speech_tokenizer/`. It holds only weights; callers pass the state of the streams."""

    def __init__(self, weights: Weights, config: CodecDecoderConfig, *, dtype: torch.dtype, device: torch.device) -> None:
        """Take the weights `decoder.*`.

        Raises:
            CheckpointError: a weight is missing or has another shape.
        """
        super().__init__()
        self.dtype = dtype

        def take(name: str, *shape: int, dtype: torch.dtype = torch.float32, device: torch.device = device) -> torch.Tensor:
            return weights.take(f"decoder.{name}", shape, dtype=dtype, device=device)

        latent, rates = config.latent_dim, config.upsample_rates
        widths = [config.decoder_dim // 2**i for i in range(len(rates) + 1)]
        self.codebooks = Codebooks(take, config).to(device)
        self.pre_conv = _conv(take, "pre_conv.conv", config.codebook_dim, latent, kernel=3)
        self.transformer = SlidingWindowTransformer(take, config)
        self.upsample = nn.ModuleList(ConvNeXtStage(take, f"upsample.{i}", latent, rate) for i, rate in enumerate(config.upsampling_ratios))
        self.widen = _conv(take, "decoder.0.conv", latent, widths[0], kernel=7)
        self.synthesis = nn.ModuleList(
            SnakeStage(take, f"decoder.{i + 1}.block", into, out, rate)
            for i, (rate, (into, out)) in enumerate(zip(rates, pairwise(widths), strict=True))
        )
        self.last_snake = SnakeBeta(take, f"decoder.{len(rates) + 1}", widths[-1])
        self.to(dtype)
        # It stays float32: an audio sample needs more digits than bfloat16 has, and this layer is cheap.
        self.to_audio = _conv(take, f"decoder.{len(rates) + 2}.conv", widths[-1], 1, kernel=7)

    def streaming_layers(self) -> list[StreamingLayer]:
        """The layers with a past that a stream has to keep."""
        return [module for module in self.modules() if isinstance(module, StreamingLayer)]

    def forward(self, codes: torch.Tensor, state: StreamState) -> torch.Tensor:
        """Decode the next frames of each stream.

        Args:
            codes: [batch, frames, num_quantizers] int64, each below codebook_size.
            state: state of the same streams, in this order; it is updated, except for its positions.

        Returns:
            [batch, frames * samples_per_frame] float32, not yet clamped to -1..1.
        """
        return self.synthesise(self.codebooks(codes), state)

    def synthesise(self, latents: torch.Tensor, state: StreamState) -> torch.Tensor:
        """`forward` after the codebooks: latents [batch, frames, codebook_dim] to samples. Gradients flow, so training can use it."""
        x = self.pre_conv(latents, state)
        x = self.transformer(x, state)
        for stage in self.upsample:
            x = stage(x, state)
        x = self.widen(x, state)
        for stage in self.synthesis:
            x = stage(x, state)
        return self.to_audio(self.last_snake(x).float(), state).squeeze(2)


class Codebooks(nn.Module):
    """All codebooks in one table, already projected; the first has its own output projection, the others share one.

    The projection is computed on the CPU in float64, because cuBLAS picks its algorithm by the share of the GPU that a process has,
    and with some shares leaves parts unwritten (devices.check_products). So codes give the same bits on every device.
    """

    table: torch.Tensor
    offsets: torch.Tensor

    def __init__(self, take: Take, config: CodecDecoderConfig) -> None:
        super().__init__()
        size, dim = config.codebook_size, config.codebook_dim
        books, exact = [], {"dtype": torch.float64, "device": torch.device("cpu")}
        for part, count in (("rvq_first", 1), ("rvq_rest", config.num_quantizers - 1)):
            name = f"quantizer.{part}"
            projection = take(f"{name}.output_proj.weight", dim, dim // 2, 1, **exact)[:, :, 0]
            for i in range(count):
                book = f"{name}.vq.layers.{i}._codebook"
                usage = take(f"{book}.cluster_usage", size, **exact).clamp(min=USAGE_EPSILON)
                books.append(take(f"{book}.embedding_sum", size, dim // 2, **exact) / usage[:, None] @ projection.T)
        self.register_buffer("table", torch.cat(books).float())
        self.register_buffer("offsets", torch.arange(config.num_quantizers, device=self.table.device) * size)

    def forward(self, codes: torch.Tensor) -> torch.Tensor:
        """[batch, frames, num_quantizers] int64 to [batch, frames, codebook_dim]."""
        return F.embedding(codes + self.offsets, self.table).sum(2)


class SlidingWindowTransformer(nn.Module):
    """Pre-norm transformer with RoPE; a frame sees itself and sliding_window - 1 frames before it."""

    norm: torch.Tensor

    def __init__(self, take: Take, config: CodecDecoderConfig) -> None:
        super().__init__()
        shape, name = config.shape, "pre_transformer"
        self.window, self.eps = config.sliding_window, shape.rms_norm_eps
        self.input_proj = _linear(take, f"{name}.input_proj", config.latent_dim, shape.hidden_size)
        self.layers = nn.ModuleList(SlidingWindowLayer(take, f"{name}.layers.{i}", config) for i in range(shape.num_hidden_layers))
        self.register_buffer("norm", take(f"{name}.norm.weight", shape.hidden_size))
        self.output_proj = _linear(take, f"{name}.output_proj", shape.hidden_size, config.latent_dim)
        self.frequencies = inverse_frequencies(shape.head_dim, shape.rope_theta, self.norm.device)  # no buffer: stays float32

    def forward(self, x: torch.Tensor, state: StreamState) -> torch.Tensor:
        """[batch, frames, latent] to the same."""
        frames = x.shape[1]
        positions = state.positions[:, None] + torch.arange(frames, device=x.device)
        cos, sin = rope_cos_sin(positions, self.frequencies, x.dtype)
        mask = window_mask(state.positions, frames, self.window)
        x = self.input_proj(x)
        for layer in self.layers:
            x = layer(x, cos, sin, mask, state)
        return self.output_proj(rms_norm(x, self.norm, self.eps))


class SlidingWindowLayer(nn.Module):
    """Attention and SwiGLU; the scale of each residual branch (LayerScale) is in its last weight."""

    input_norm: torch.Tensor
    post_attention_norm: torch.Tensor

    def __init__(self, take: Take, name: str, config: CodecDecoderConfig) -> None:
        super().__init__()
        shape = config.shape
        hidden, ffn, heads, kv_heads = shape.hidden_size, shape.intermediate_size, shape.num_attention_heads, shape.num_key_value_heads
        q_size, kv_size = heads * shape.head_dim, kv_heads * shape.head_dim
        self.eps = shape.rms_norm_eps
        self.register_buffer("input_norm", take(f"{name}.input_layernorm.weight", hidden))
        self.register_buffer("post_attention_norm", take(f"{name}.post_attention_layernorm.weight", hidden))
        sizes = {"q": q_size, "k": kv_size, "v": kv_size}
        self.attention = SlidingWindowAttention(
            torch.cat([take(f"{name}.self_attn.{part}_proj.weight", size, hidden) for part, size in sizes.items()]),
            take(f"{name}.self_attn_layer_scale.scale", hidden)[:, None] * take(f"{name}.self_attn.o_proj.weight", hidden, q_size),
            heads=heads,
            kv_heads=kv_heads,
            head_dim=shape.head_dim,
            window=config.sliding_window,
        )
        self.gate_up = Linear(torch.cat([take(f"{name}.mlp.{part}_proj.weight", ffn, hidden) for part in ("gate", "up")]))
        scale = take(f"{name}.mlp_layer_scale.scale", hidden)
        self.down = Linear(scale[:, None] * take(f"{name}.mlp.down_proj.weight", hidden, ffn))

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, mask: torch.Tensor, state: StreamState) -> torch.Tensor:
        """[batch, frames, hidden] to the same; the rest as in SlidingWindowAttention."""
        x = x + self.attention(rms_norm(x, self.input_norm, self.eps), cos, sin, mask, state)
        gate, up = self.gate_up(rms_norm(x, self.post_attention_norm, self.eps)).chunk(2, dim=-1)
        return x + self.down(F.silu(gate) * up)


class ConvNeXtStage(nn.Module):
    """Transposed convolution that raises the frame rate, then a ConvNeXt block (Liu et al. 2022), causal in time."""

    norm_weight: torch.Tensor
    norm_bias: torch.Tensor

    def __init__(self, take: Take, name: str, width: int, rate: int) -> None:
        super().__init__()
        block = f"{name}.1"
        self.raise_rate = _transposed_conv(take, f"{name}.0.conv", width, width, kernel=rate, stride=rate)
        self.depthwise = CausalConv(
            take(f"{block}.dwconv.conv.weight", width, 1, 7), take(f"{block}.dwconv.conv.bias", width), groups=width
        )
        self.register_buffer("norm_weight", take(f"{block}.norm.weight", width))
        self.register_buffer("norm_bias", take(f"{block}.norm.bias", width))
        self.expand = _linear(take, f"{block}.pwconv1", width, 4 * width)
        gamma = take(f"{block}.gamma", width)
        weight, bias = take(f"{block}.pwconv2.weight", width, 4 * width), take(f"{block}.pwconv2.bias", width)
        self.contract = Linear(gamma[:, None] * weight, gamma * bias)

    def forward(self, x: torch.Tensor, state: StreamState) -> torch.Tensor:
        """[batch, time, width] to [batch, time * rate, width]."""
        x = self.raise_rate(x, state)
        normed = F.layer_norm(self.depthwise(x, state), self.norm_weight.shape, self.norm_weight, self.norm_bias, LAYER_NORM_EPSILON)
        return x + self.contract(F.gelu(self.expand(normed)))


class SnakeStage(nn.Module):
    """SnakeBeta, a transposed convolution that raises the rate and halves the width, three residual units."""

    def __init__(self, take: Take, name: str, into: int, out: int, rate: int) -> None:
        super().__init__()
        self.snake = SnakeBeta(take, f"{name}.0", into)
        self.raise_rate = _transposed_conv(take, f"{name}.1.conv", into, out, kernel=2 * rate, stride=rate)
        self.units = nn.ModuleList(ResidualUnit(take, f"{name}.{i + 2}", out, dilation) for i, dilation in enumerate(RESIDUAL_DILATIONS))

    def forward(self, x: torch.Tensor, state: StreamState) -> torch.Tensor:
        """[batch, time, into] to [batch, time * rate, out]."""
        x = self.raise_rate(self.snake(x), state)
        for unit in self.units:
            x = unit(x, state)
        return x


class ResidualUnit(nn.Module):
    """Two convolutions, the first dilated, each after a SnakeBeta."""

    def __init__(self, take: Take, name: str, width: int, dilation: int) -> None:
        super().__init__()
        self.snake1 = SnakeBeta(take, f"{name}.act1", width)
        self.conv1 = _conv(take, f"{name}.conv1.conv", width, width, kernel=7, dilation=dilation)
        self.snake2 = SnakeBeta(take, f"{name}.act2", width)
        self.conv2 = _conv(take, f"{name}.conv2.conv", width, width, kernel=1)

    def forward(self, x: torch.Tensor, state: StreamState) -> torch.Tensor:
        """[batch, time, width] to the same."""
        return x + self.conv2(self.snake2(self.conv1(self.snake1(x), state)), state)


class SnakeBeta(nn.Module):
    """x + sin(alpha x)^2 / beta, with alpha and beta for each channel. Both are stored as logarithms."""

    def __init__(self, take: Take, name: str, width: int) -> None:
        super().__init__()
        # No buffers: they stay float32.
        self.alpha = take(f"{name}.alpha", width).exp()
        self.inverse_beta = 1.0 / (take(f"{name}.beta", width).exp() + SNAKE_EPSILON)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., width] to the same."""
        return snake_beta(x, self.alpha, self.inverse_beta)


class Linear(nn.Module):
    """x W^T + b."""

    weight: torch.Tensor
    bias: torch.Tensor | None

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., in] to [..., out]."""
        return F.linear(x, self.weight, self.bias)


def _linear(take: Take, name: str, into: int, out: int) -> Linear:
    return Linear(take(f"{name}.weight", out, into), take(f"{name}.bias", out))


def _conv(take: Take, name: str, into: int, out: int, *, kernel: int, dilation: int = 1) -> CausalConv:
    return CausalConv(take(f"{name}.weight", out, into, kernel), take(f"{name}.bias", out), dilation=dilation)


def _transposed_conv(take: Take, name: str, into: int, out: int, *, kernel: int, stride: int) -> CausalTransposedConv:
    return CausalTransposedConv(take(f"{name}.weight", into, out, kernel), take(f"{name}.bias", out), stride)
