"""Causal layers that decode a stream piece by piece, with the same result as for the whole stream.

Each of them computes a step from its own input and the `num_past` steps before it, so a stream keeps only these: the
left inputs of a convolution, the past keys and values of attention. A new stream's past is zeros, which is the official
padding. Whole-sequence decoding is the same forward over one long piece.

Activations are [batch, time, ...]: time is dimension 1 throughout, channels are last.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import nn

from engine_lib.ops.rope import apply_rope


class StreamState(Protocol):
    """The state that the streams of one batch keep between pieces."""

    positions: torch.Tensor
    """[batch] int64: frames each stream has decoded before this piece."""

    def extend(self, layer: StreamingLayer, x: torch.Tensor) -> torch.Tensor:
        """Put the past of `layer` before `x` [batch, time, ...] and keep the last steps of both as its next past.

        Returns:
            [batch, num_past + time, ...].
        """
        ...


class StreamingLayer(nn.Module):
    """A layer with a past.

    Attributes:
        num_past: steps kept.
        step_shape: shape of one step.
    """

    def __init__(self, num_past: int, step_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.num_past, self.step_shape = num_past, step_shape

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights and of the past."""
        return next(self.buffers()).dtype


class CausalConv(StreamingLayer):
    """Convolution over time that sees (kernel - 1) * dilation steps to the left."""

    weight: torch.Tensor
    bias: torch.Tensor

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor, *, dilation: int = 1, groups: int = 1) -> None:
        """
        Args:
            weight: [out, in / groups, kernel]; a kernel of 1 has one group.
            bias: [out].
        """
        _, into, kernel = weight.shape
        super().__init__((kernel - 1) * dilation, (into * groups,))
        self.dilation, self.groups = dilation, groups
        # One tap is a plain product; more taps are a 2-D convolution of height 1, because only that keeps channels last in memory.
        image = weight[:, :, None].contiguous(memory_format=torch.channels_last)
        self.register_buffer("weight", image if self.num_past else weight[:, :, 0].contiguous())
        self.register_buffer("bias", bias)

    def forward(self, x: torch.Tensor, state: StreamState) -> torch.Tensor:
        """[batch, time, in] to [batch, time, out]."""
        if not self.num_past:
            return F.linear(x, self.weight, self.bias)
        image = state.extend(self, x).unsqueeze(1).permute(0, 3, 1, 2)
        out = F.conv2d(image, self.weight, self.bias, dilation=(1, self.dilation), groups=self.groups)
        return out.permute(0, 2, 3, 1).squeeze(1)


class CausalTransposedConv(nn.Module):
    """Transposed convolution with a kernel that is a multiple of its stride; the official layer trims the overhang at the end.

    Its `stride` outputs at one step depend on kernel / stride inputs, so it is a causal convolution that computes them as
    channels. It keeps inputs, not unfinished outputs, and the bias is added once for any cut of the stream.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor, stride: int) -> None:
        """
        Args:
            weight: [in, out, kernel].
            bias: [out].
        """
        super().__init__()
        into, self.out, kernel = weight.shape
        self.stride = stride
        # Tap k = lag * stride + phase weighs the input `lag` steps back; a convolution lists its oldest input first.
        by_lag = weight.view(into, self.out, kernel // stride, stride).flip(2)
        self.conv = CausalConv(by_lag.permute(3, 1, 0, 2).flatten(0, 1), bias.repeat(stride))

    def forward(self, x: torch.Tensor, state: StreamState) -> torch.Tensor:
        """[batch, time, in] to [batch, time * stride, out]."""
        return self.conv(x, state).reshape(len(x), -1, self.out)


class SlidingWindowAttention(StreamingLayer):
    """Self-attention in which a frame sees itself and the window - 1 frames before it. Keys are kept after RoPE."""

    qkv: torch.Tensor
    output: torch.Tensor

    def __init__(self, qkv: torch.Tensor, output: torch.Tensor, *, heads: int, kv_heads: int, head_dim: int, window: int) -> None:
        """
        Args:
            qkv: [(heads + 2 * kv_heads) * head_dim, hidden], queries, keys and values packed.
            output: [hidden, heads * head_dim].
        """
        super().__init__(window - 1, (2 * kv_heads, head_dim))
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, head_dim
        self.register_buffer("qkv", qkv)
        self.register_buffer("output", output)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, mask: torch.Tensor, state: StreamState) -> torch.Tensor:
        """
        Args:
            x: [batch, frames, hidden].
            cos, sin: [batch, frames, head_dim / 2], at each frame's position in its stream.
            mask: from `window_mask`.

        Returns:
            [batch, frames, hidden].
        """
        qkv = F.linear(x, self.qkv).unflatten(2, (-1, self.head_dim))
        qk, v = qkv.split((self.heads + self.kv_heads, self.kv_heads), dim=2)
        q, k = apply_rope(qk, cos, sin).split((self.heads, self.kv_heads), dim=2)
        k, v = state.extend(self, torch.cat((k, v), dim=2)).transpose(1, 2).chunk(2, dim=1)
        attended = F.scaled_dot_product_attention(q.transpose(1, 2), k, v, attn_mask=mask, enable_gqa=self.heads != self.kv_heads)
        return F.linear(attended.transpose(1, 2).flatten(2), self.output)


def window_mask(positions: torch.Tensor, frames: int, window: int) -> torch.Tensor:
    """The keys that each query of a piece sees.

    Args:
        positions: [batch] int64, frames decoded before the piece.
        frames: queries in the piece.
        window: keys a query sees at most, its own included.

    Returns:
        [batch, 1, frames, window - 1 + frames] bool; the first window - 1 keys are the past, some of it before the stream began.
    """
    keys = torch.arange(window - 1 + frames, device=positions.device)
    ahead = keys - torch.arange(frames, device=positions.device)[:, None]
    in_window = (ahead >= 0) & (ahead < window)
    in_stream = keys >= window - 1 - positions[:, None]
    return (in_window & in_stream[:, None])[:, None]
