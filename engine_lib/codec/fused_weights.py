"""FusedWeights: the decoder's weights as the kernels read them. Needs Triton's compiler."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import nn

from engine_lib.codec.decoder import (
    CodecDecoder,
    ConvNeXtStage,
    ResidualUnit,
    SlidingWindowLayer,
    SlidingWindowTransformer,
    SnakeBeta,
    SnakeStage,
)
from engine_lib.codec.streaming import CausalConv, StreamingLayer
from engine_lib.kernels.causal_conv import Snake
from engine_lib.layers.fused import PackedLayer

M = TypeVar("M", bound=nn.Module)


class FusedWeights:
    """
    Attributes:
        transformer: for `forward_fused`.
        taps: weight of each convolution, [out, taps, in / groups].
        depthwise: weight of each depthwise convolution, [taps, width].
        rates: steps a frame of the input of each convolution with a past.
    """

    def __init__(self, decoder: CodecDecoder) -> None:
        self.transformer = PackedTransformer.of(decoder.transformer)
        self.taps = {layer: taps_of(layer) for layer in decoder.modules() if isinstance(layer, CausalConv)}
        depthwise = [stage.depthwise for stage in each(decoder.upsample, ConvNeXtStage)]
        self.depthwise = {layer: layer.weight[:, 0, 0].T.contiguous() for layer in depthwise}
        self.rates = rates_of(decoder)


@dataclass(frozen=True)
class PackedTransformer:
    """The transformer as `forward_fused` reads it, and its attention layers, which own the pasts."""

    layers: list[PackedLayer]
    eps: float
    attention: list[StreamingLayer]

    @classmethod
    def of(cls, transformer: SlidingWindowTransformer) -> PackedTransformer:
        layers = each(transformer.layers, SlidingWindowLayer)
        packed = [
            PackedLayer(
                layer.input_norm,
                layer.attention.qkv,
                layer.attention.output,
                layer.post_attention_norm,
                layer.gate_up.weight,
                layer.down.weight,
            )
            for layer in layers
        ]
        return cls(packed, transformer.eps, [layer.attention for layer in layers])


def each(modules: nn.ModuleList, kind: type[M]) -> list[M]:
    """The modules of a list that holds one kind."""
    return [module for module in modules if isinstance(module, kind)]


def taps_of(layer: CausalConv) -> torch.Tensor:
    """The weight of `layer` as [out, taps, in / groups]; a view of it."""
    return layer.weight[:, :, 0].transpose(1, 2) if layer.num_past else layer.weight[:, None]


def rates_of(decoder: CodecDecoder) -> dict[CausalConv, int]:
    """Steps a frame of every convolution with a past."""
    rates, rate = {decoder.pre_conv: 1}, 1
    for block in each(decoder.upsample, ConvNeXtStage):
        rate *= block.raise_rate.stride
        rates[block.depthwise] = rate
    rates[decoder.widen] = rate
    for stage in each(decoder.synthesis, SnakeStage):
        rates[stage.raise_rate.conv] = rate
        rate *= stage.raise_rate.stride
        rates |= {unit.conv1: rate for unit in each(stage.units, ResidualUnit)}
    rates[decoder.to_audio] = rate
    return {layer: rate for layer, rate in rates.items() if layer.num_past}


def snake_of(layer: SnakeBeta) -> Snake:
    """The constants of a SnakeBeta."""
    return Snake(layer.alpha, layer.inverse_beta)
