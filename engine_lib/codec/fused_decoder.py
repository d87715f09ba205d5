"""The decoder on a GPU in few launches. Its twin is CodecDecoder.forward; only rounding differs.

Every layer with a past has its input in one workspace, the past before the new steps. One launch copies all pasts there from
the arena, the kernel that computes a layer's input writes it after them, and one launch at the end copies the new pasts back. The
attention layers move their pasts themselves. Importing this module needs Triton's compiler.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import nn

from engine_lib.codec.arena import BatchState, StateArena
from engine_lib.codec.decoder import (
    LAYER_NORM_EPSILON,
    CodecDecoder,
    ConvNeXtStage,
    Linear,
    ResidualUnit,
    SnakeBeta,
    SnakeStage,
)
from engine_lib.codec.fused_weights import FusedWeights, each, snake_of
from engine_lib.codec.streaming import CausalConv
from engine_lib.kernels.causal_conv import causal_conv
from engine_lib.kernels.depthwise_norm import depthwise_norm
from engine_lib.kernels.elementwise import rms_norm_rows
from engine_lib.kernels.mono_conv import mono_conv
from engine_lib.kernels.stream_past import PastTable, move_pasts
from engine_lib.kernels.window_attention import window_attention
from engine_lib.layers.fused import forward_fused
from engine_lib.ops.rope import rope_cos_sin

M = TypeVar("M", bound=nn.Module)

ALIGNMENT = 128  # bytes; buffers of the workspace begin at multiples


class FusedDecoder:
    """Decodes the next frames of the streams of one batch, with the weights of `decoder` and the state in `arena`."""

    def __init__(self, decoder: CodecDecoder, arena: StateArena) -> None:
        self._decoder, self._arena = decoder, arena
        packed = FusedWeights(decoder)
        self._transformer, self._weights, self._depthwise = packed.transformer, packed.taps, packed.depthwise
        self._no_bias, self._rates = packed.no_bias, packed.rates
        self._workspaces: dict[tuple[int, int], Workspace] = {}
        self._memory = torch.empty(0, dtype=torch.uint8, device=arena.rows.device)

    def __call__(self, codes: torch.Tensor, state: BatchState) -> torch.Tensor:
        """As CodecDecoder.forward. The first call with a shape makes its workspace, so it must not be captured."""
        batch, frames = codes.shape[:2]
        inputs = self._workspace(batch, frames)
        decoder = self._decoder
        move_pasts(self._arena.rows, inputs.memory, inputs.table, state.slots, save=False)

        books = decoder.codebooks
        torch.sum(F.embedding(codes + books.offsets, books.table), 2, out=inputs.new_steps(decoder.pre_conv))
        x = self._attend(self._conv(decoder.pre_conv, inputs[decoder.pre_conv]), state)
        for i, stage in enumerate(each(decoder.upsample, ConvNeXtStage)):
            is_last = i + 1 == len(decoder.upsample)
            x = self._raise_rate(stage, x, inputs, out=inputs.new_steps(decoder.widen) if is_last else None)
        self._synthesise(inputs)
        audio = mono_conv(inputs[decoder.to_audio], *self._mono())

        move_pasts(self._arena.rows, inputs.memory, inputs.table, state.slots, save=True)
        return audio

    def _conv(self, layer: CausalConv, x: torch.Tensor) -> torch.Tensor:
        """A convolution without an epilogue."""
        weight = self._weights[layer]
        out = x.new_empty(len(x), x.shape[1] - layer.num_past, len(weight))
        causal_conv(x, weight, layer.bias, dilation=layer.dilation, out=out)
        return out

    def _attend(self, x: torch.Tensor, state: BatchState) -> torch.Tensor:
        """The sliding-window transformer: [batch, frames, latent] to the same."""
        batch, frames = x.shape[:2]
        transformer = self._decoder.transformer
        positions = state.positions[:, None] + torch.arange(frames, device=x.device)
        cos, sin = rope_cos_sin(positions, transformer.frequencies, x.dtype)

        def attend(layer: int, qkv: torch.Tensor) -> torch.Tensor:
            past = state.past(self._transformer.attention[layer])
            return window_attention(qkv, cos, sin, past, state.slots, state.positions)

        hidden = x.new_empty(batch, frames, len(transformer.norm))
        _linear(transformer.input_proj, x, out=hidden)
        rows = forward_fused(self._transformer, hidden.flatten(0, 1), attend, product=self._product)
        normed = rms_norm_rows(rows, transformer.norm, transformer.eps).view(batch, frames, -1)
        out = torch.empty_like(x)
        _linear(transformer.output_proj, normed, out=out)
        return out

    def _product(self, x: torch.Tensor, weight: torch.Tensor, residual: torch.Tensor | None) -> torch.Tensor:
        """See forward_fused. Not by cuBLAS, which fails with some shares of a GPU: see devices.check_products."""
        out = x.new_empty(1, len(x), len(weight))
        residuals = None if residual is None else residual[None]
        causal_conv(x[None], weight[:, None], self._no_bias[: len(weight)], residual=residuals, out=out)
        return out[0]

    def _raise_rate(self, stage: ConvNeXtStage, x: torch.Tensor, inputs: Workspace, out: torch.Tensor | None) -> torch.Tensor:
        """An upsampling ConvNeXt stage, written to `out` [batch, time * rate, width]; None allocates."""
        raised = inputs.new_steps(stage.depthwise)
        causal_conv(x, self._weights[stage.raise_rate.conv], stage.raise_rate.conv.bias, out=_grouped(raised, x.shape[1]))
        normed = depthwise_norm(
            inputs[stage.depthwise],
            self._depthwise[stage.depthwise],
            stage.depthwise.bias,
            stage.norm_weight,
            stage.norm_bias,
            LAYER_NORM_EPSILON,
        )
        wide = normed.new_empty(*normed.shape[:2], len(stage.expand.weight))
        _linear(stage.expand, normed, out=wide, gelu=True)
        out = torch.empty_like(normed) if out is None else out
        _linear(stage.contract, wide, out=out, residual=raised)
        return out

    def _synthesise(self, inputs: Workspace) -> None:
        """From the input of `widen` to the input of `to_audio`. The kernel that computes an input also applies the SnakeBeta before it."""
        decoder = self._decoder
        stages = each(decoder.synthesis, SnakeStage)
        self._conv_into(decoder.widen, inputs, stages[0].snake, inputs.new_steps(stages[0].raise_rate.conv))
        for i, stage in enumerate(stages):
            units = each(stage.units, ResidualUnit)
            layer = stage.raise_rate.conv
            first = inputs.new_steps(units[0].conv1)
            x = torch.empty_like(first, memory_format=torch.contiguous_format)
            time = first.shape[1] * first.shape[2] // len(self._weights[layer])
            causal_conv(
                inputs[layer],
                self._weights[layer],
                layer.bias,
                out=_grouped(x, time),
                snake=snake_of(units[0].snake1),
                snake_out=_grouped(first, time),
            )
            for j, unit in enumerate(units):
                inner = torch.empty_like(x)
                self._conv_into(unit.conv1, inputs, unit.snake2, inner)
                if j + 1 < len(units):
                    out, snake, following = torch.empty_like(x), units[j + 1].snake1, units[j + 1].conv1
                elif i + 1 < len(stages):
                    out, snake, following = None, stages[i + 1].snake, stages[i + 1].raise_rate.conv
                else:
                    out, snake, following = None, decoder.last_snake, decoder.to_audio
                causal_conv(
                    inner,
                    self._weights[unit.conv2],
                    unit.conv2.bias,
                    residual=x,
                    out=out,
                    snake=snake_of(snake),
                    snake_out=inputs.new_steps(following),
                )
                x = x if out is None else out

    def _conv_into(self, layer: CausalConv, inputs: Workspace, snake: SnakeBeta, out: torch.Tensor) -> None:
        """snake(conv) of a layer's input, written to `out`."""
        causal_conv(inputs[layer], self._weights[layer], layer.bias, dilation=layer.dilation, snake=snake_of(snake), snake_out=out)

    def _mono(self) -> tuple[torch.Tensor, torch.Tensor]:
        layer = self._decoder.to_audio
        return self._weights[layer][0], layer.bias

    def _workspace(self, batch: int, frames: int) -> Workspace:
        key = batch, frames
        if key not in self._workspaces:
            layout = Workspace.layout(self._rates, batch, frames)
            if layout.size > len(self._memory):  # earlier shapes keep the smaller one
                self._memory = torch.zeros(layout.size, dtype=torch.uint8, device=self._memory.device)
            self._workspaces[key] = Workspace(layout, self._memory, self._arena)
        return self._workspaces[key]


@dataclass(frozen=True)
class WorkspaceLayout:
    """The places of the inputs of one step shape: layer -> (offset in bytes, shape)."""

    places: dict[CausalConv, tuple[int, tuple[int, int, int]]]
    size: int


class Workspace:
    """The inputs of all layers with a past, for one (batch, frames)."""

    def __init__(self, layout: WorkspaceLayout, memory: torch.Tensor, arena: StateArena) -> None:
        """`memory`: [bytes] uint8; steps of other shapes may share it."""
        self.memory = memory
        self._inputs = {}
        entries = []
        for layer, (offset, shape) in layout.places.items():
            size = math.prod(shape) * layer.dtype.itemsize
            self._inputs[layer] = memory[offset : offset + size].view(layer.dtype).view(shape)
            step = shape[2] * layer.dtype.itemsize
            entries.append([arena.offset(layer), offset, shape[1] * step, layer.num_past * step, (shape[1] - layer.num_past) * step])
        unit = torch.int32 if all(value % 4 == 0 for entry in entries for value in entry) else torch.int16
        units = torch.tensor(entries, dtype=torch.int64) // unit.itemsize
        self.table = PastTable(units.to(memory.device), int(units[:, 3].max()), unit)

    @staticmethod
    def layout(rates: dict[CausalConv, int], batch: int, frames: int) -> WorkspaceLayout:
        """Lay the inputs out one after the other."""
        places, end = {}, 0
        for layer, rate in rates.items():
            shape = (batch, layer.num_past + frames * rate, *layer.step_shape)
            places[layer] = (end, shape)
            end += -(-math.prod(shape) * layer.dtype.itemsize // ALIGNMENT) * ALIGNMENT
        return WorkspaceLayout(places, end)  # type: ignore[arg-type]  # step_shape is (width,) for a convolution

    def __getitem__(self, layer: CausalConv) -> torch.Tensor:
        """The input of `layer` with its past: [batch, num_past + time, width]."""
        return self._inputs[layer]

    def new_steps(self, layer: CausalConv) -> torch.Tensor:
        """The part of that input that a step fills: [batch, time, width]."""
        return self._inputs[layer][:, layer.num_past :]


def _grouped(x: torch.Tensor, time: int) -> torch.Tensor:
    """[batch, time * rate, width] as [batch, time, rate * width], without a copy."""
    return x.unflatten(1, (time, -1)).flatten(2)


def _linear(layer: Linear, x: torch.Tensor, *, out: torch.Tensor, gelu: bool = False, residual: torch.Tensor | None = None) -> None:
    assert layer.bias is not None
    causal_conv(x, layer.weight[:, None], layer.bias, gelu=gelu, residual=residual, out=out)
