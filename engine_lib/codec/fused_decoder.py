"""The decoder on a GPU in few launches. Its twin is CodecDecoder.forward; only rounding differs.

Every layer with a past has its input in one workspace. Streams are packed there: the rows of each behind its past, one stream behind
the other (engine_lib.kernels.packed). One launch copies all pasts there from the arena, the kernel that computes a layer's input
writes it behind them, and one launch at the end copies the new pasts back. The attention layers move their pasts themselves.
Importing this module needs Triton's compiler.
"""

from __future__ import annotations

import math

import torch

from engine_lib.codec.arena import StateArena
from engine_lib.codec.decoder import LAYER_NORM_EPSILON, CodecDecoder, ConvNeXtStage, Linear, ResidualUnit, SnakeBeta, SnakeStage
from engine_lib.codec.fused_weights import FusedWeights, each, snake_of
from engine_lib.codec.plan import Plan
from engine_lib.codec.step_limits import MOST_FRAMES
from engine_lib.codec.streaming import CausalConv
from engine_lib.kernels.causal_conv import causal_conv
from engine_lib.kernels.codec_step import Begun, begin_step, end_step
from engine_lib.kernels.depthwise_norm import depthwise_norm
from engine_lib.kernels.elementwise import rms_norm_rows
from engine_lib.kernels.mono_conv import mono_conv
from engine_lib.kernels.packed import Frames, Packed
from engine_lib.kernels.residual_unit import Product, residual_unit, unit_tile_for
from engine_lib.kernels.stream_past import PastTable, move_pasts
from engine_lib.kernels.window_attention import window_attention
from engine_lib.layers.fused import forward_fused

ALIGNMENT = 128  # bytes; buffers of the workspace begin at multiples


class FusedDecoder:
    """Decodes the frames of a plan, with the weights of `decoder` and the state in `arena`."""

    def __init__(self, decoder: CodecDecoder, arena: StateArena) -> None:
        self._decoder, self._arena, self._packed = decoder, arena, FusedWeights(decoder)
        self._workspaces: dict[tuple[int, int], Workspace] = {}
        self._memory = torch.empty(0, dtype=torch.uint8, device=arena.rows.device)

    def __call__(self, plan: Plan) -> torch.Tensor:
        """Decode the frames of a step and count them. The first call with a shape makes its workspace, so it must not be captured.

        Args:
            plan: on the device. No stream has more than MOST_FRAMES frames, except for the last, whose frames are not computed.

        Returns:
            [frames, samples_per_frame] float32 as from `finished_samples`.
        """
        decoder, positions = self._decoder, self._arena.positions
        frames = Frames(plan.starts, plan.stream_of)
        inputs = self._workspace(frames)
        step = _Step(self._packed, frames, inputs)
        first, table, frequencies = decoder.pre_conv, decoder.codebooks.table, decoder.transformer.frequencies
        begun = begin_step(positions, plan.slots, plan.place, plan.codes, table, frequencies, inputs.new_steps(first), frames)
        move_pasts(self._arena.rows, inputs.memory, inputs.table, plan.slots, frames, save=False)
        x = self._attend(step.conv(first), plan.slots, begun, step)
        for i, stage in enumerate(each(decoder.upsample, ConvNeXtStage)):
            is_last = i + 1 == len(decoder.upsample)
            x = self._raise_rate(stage, x, step, out=inputs.new_steps(decoder.widen) if is_last else None)
        self._synthesise(step)
        last = decoder.to_audio
        audio = mono_conv(inputs[last], self._packed.taps[last][0], last.bias, frames, self._packed.rates[last])

        move_pasts(self._arena.rows, inputs.memory, inputs.table, plan.slots, frames, save=True)
        return end_step(audio.view(len(frames), -1), positions, plan.slots, begun.before, frames)

    def _attend(self, x: Packed, slots: torch.Tensor, begun: Begun, step: _Step) -> Packed:
        """The sliding-window transformer: frames of the latent width to the same."""
        transformer, packed, frames = self._decoder.transformer, self._packed.transformer, step.frames

        def attend(layer: int, qkv: torch.Tensor) -> torch.Tensor:
            past = self._arena.past(packed.attention[layer])
            return window_attention(qkv, begun.cos, begun.sin, past, slots, begun.before, frames=frames, most=MOST_FRAMES)

        hidden = step.linear(transformer.input_proj, x, 1).values.view(len(frames), -1)
        # Always the products whose sums do not depend on the number of rows.
        rows = forward_fused(packed, hidden, attend, few=True)
        normed = rms_norm_rows(rows, transformer.norm, transformer.eps)
        return step.linear(transformer.output_proj, Packed(normed.flatten()), 1)

    def _raise_rate(self, stage: ConvNeXtStage, x: Packed, step: _Step, out: Packed | None) -> Packed:
        """An upsampling ConvNeXt stage, written to `out`; None allocates."""
        packed, layer = self._packed, stage.depthwise
        rate = packed.rates[layer]
        raised = step.inputs.new_steps(layer)
        step.product(stage.raise_rate.conv, x, rate // stage.raise_rate.stride, out=raised)
        normed = depthwise_norm(
            step.inputs[layer],
            packed.depthwise[layer],
            layer.bias,
            stage.norm_weight,
            stage.norm_bias,
            LAYER_NORM_EPSILON,
            frames=step.frames,
            rate=rate,
        )
        wide = step.linear(stage.expand, Packed(normed.flatten()), rate, gelu=True)
        return step.linear(stage.contract, wide, rate, residual=raised, out=out)

    def _synthesise(self, step: _Step) -> None:
        """From the input of `widen` to the input of `to_audio`. The kernel that computes an input also applies the SnakeBeta before it."""
        decoder, inputs, rates = self._decoder, step.inputs, self._packed.rates
        stages = each(decoder.synthesis, SnakeStage)
        widen = decoder.widen
        step.product(widen, inputs[widen], rates[widen], snake=stages[0].snake, snake_out=inputs.new_steps(stages[0].raise_rate.conv))
        for i, stage in enumerate(stages):
            units = each(stage.units, ResidualUnit)
            raising, rate = stage.raise_rate.conv, rates[units[0].conv1]
            x = step.empty(units[0].conv1, rate)
            first = inputs.new_steps(units[0].conv1)
            step.product(raising, inputs[raising], rates[raising], out=x, snake=units[0].snake1, snake_out=first)
            for j, unit in enumerate(units):
                if j + 1 < len(units):
                    out, snake, following = step.empty(unit.conv1, rate), units[j + 1].snake1, units[j + 1].conv1
                elif i + 1 < len(stages):
                    out, snake, following = None, stages[i + 1].snake, stages[i + 1].raise_rate.conv
                else:
                    out, snake, following = None, decoder.last_snake, decoder.to_audio
                step.unit(unit, rate, residual=x, out=out, snake=snake, snake_out=inputs.new_steps(following))
                x = x if out is None else out

    def _workspace(self, frames: Frames) -> Workspace:
        key = frames.num_streams, len(frames)
        if key not in self._workspaces:
            places, size = Workspace.layout(self._packed.rates, *key)
            if size > len(self._memory):  # earlier shapes keep the smaller one
                self._memory = torch.zeros(size, dtype=torch.uint8, device=self._memory.device)
            self._workspaces[key] = Workspace(places, self._packed.rates, self._memory, self._arena)
        return self._workspaces[key]


class Workspace:
    """The inputs of all layers with a past, for steps of one shape."""

    def __init__(
        self, places: dict[CausalConv, tuple[int, int]], rates: dict[CausalConv, int], memory: torch.Tensor, arena: StateArena
    ) -> None:
        """
        Args:
            places: offset and size of each layer's input in `memory`, in bytes.
            memory: [bytes] uint8; steps of other shapes may share it.
        """
        self.memory = memory
        self._inputs, entries = {}, []
        for layer, (offset, size) in places.items():
            gap = layer.num_past * math.prod(layer.step_shape)
            self._inputs[layer] = Packed(memory[offset : offset + size].view(layer.dtype), gap)
            step = math.prod(layer.step_shape) * layer.dtype.itemsize
            entries.append([arena.offset(layer), offset, rates[layer] * step, layer.num_past * step])
        unit = torch.int32 if all(value % 4 == 0 for entry in entries for value in entry) else torch.int16
        units = torch.tensor(entries, dtype=torch.int64) // unit.itemsize
        self.table = PastTable(units.to(memory.device), int(units[:, 3].max()), unit)

    @staticmethod
    def layout(rates: dict[CausalConv, int], streams: int, frames: int) -> tuple[dict[CausalConv, tuple[int, int]], int]:
        """Lay the inputs out one after the other, with room for the past of one more stream: the places, and the size in all."""
        places, end = {}, 0
        for layer, rate in rates.items():
            size = ((streams + 1) * layer.num_past + frames * rate) * math.prod(layer.step_shape) * layer.dtype.itemsize
            places[layer] = (end, size)
            end += -(-size // ALIGNMENT) * ALIGNMENT
        return places, end

    def __getitem__(self, layer: CausalConv) -> Packed:
        """The input of `layer`: rows, each stream's past in front of its own."""
        return self._inputs[layer]

    def new_steps(self, layer: CausalConv) -> Packed:
        """The part of that input that a step fills."""
        packed = self._inputs[layer]
        return Packed(packed.values[packed.gap :], packed.gap)


class _Step:
    """The products of one step."""

    def __init__(self, packed: FusedWeights, frames: Frames, inputs: Workspace) -> None:
        self._packed, self.frames, self.inputs = packed, frames, inputs

    def conv(self, layer: CausalConv) -> Packed:
        """A convolution with a past, without an epilogue."""
        rate, weight = self._packed.rates[layer], self._packed.taps[layer]
        out = Packed(weight.new_empty(len(self.frames) * rate * len(weight)))
        self.product(layer, self.inputs[layer], rate, out=out)
        return out

    def product(
        self,
        layer: CausalConv,
        x: Packed,
        rate: int,
        *,
        residual: Packed | None = None,
        out: Packed | None = None,
        snake: SnakeBeta | None = None,
        snake_out: Packed | None = None,
    ) -> None:
        """A convolution of rows, `rate` a frame."""
        weight, constants = self._packed.taps[layer], None if snake is None else snake_of(snake)
        causal_conv(
            x,
            weight,
            layer.bias,
            self.frames,
            rate,
            dilation=layer.dilation,
            residual=residual,
            out=out,
            snake=constants,
            snake_out=snake_out,
        )

    def unit(self, unit: ResidualUnit, rate: int, *, residual: Packed, out: Packed | None, snake: SnakeBeta, snake_out: Packed) -> None:
        """A residual unit of rows, `rate` a frame, and the SnakeBeta behind it: in one kernel if that is faster."""
        x, weight = self.inputs[unit.conv1], self._packed.taps[unit.conv1]
        tile = unit_tile_for(len(self.frames) * rate, len(weight), weight.dtype)
        if tile is None:
            inner = self.empty(unit.conv1, rate)
            self.product(unit.conv1, x, rate, snake=unit.snake2, snake_out=inner)
            self.product(unit.conv2, inner, rate, residual=residual, out=out, snake=snake, snake_out=snake_out)
            return
        first = Product(weight, unit.conv1.bias, snake_of(unit.snake2))
        second = Product(self._packed.taps[unit.conv2], unit.conv2.bias, snake_of(snake))
        dilation = unit.conv1.dilation
        residual_unit(x, first, second, self.frames, rate, dilation=dilation, residual=residual, out=out, snake_out=snake_out, tile=tile)

    def linear(
        self, layer: Linear, x: Packed, rate: int, *, gelu: bool = False, residual: Packed | None = None, out: Packed | None = None
    ) -> Packed:
        """A linear layer, written to `out`; None allocates."""
        assert layer.bias is not None
        out = out or Packed(x.values.new_empty(len(self.frames) * rate * len(layer.weight)))
        causal_conv(x, layer.weight[:, None], layer.bias, self.frames, rate, gelu=gelu, residual=residual, out=out)
        return out

    def empty(self, layer: CausalConv, rate: int) -> Packed:
        """Memory for rows as wide as the input of `layer`."""
        return Packed(layer.weight.new_empty(len(self.frames) * rate * math.prod(layer.step_shape)))
