"""The codec's kernels against their twins, and the fused decoder against the plain one."""

from __future__ import annotations

import random

import pytest
import torch

from engine_lib.kernels.causal_conv import Snake, causal_conv, causal_conv_torch
from engine_lib.kernels.depthwise_norm import depthwise_norm, depthwise_norm_torch
from engine_lib.kernels.mono_conv import mono_conv, mono_conv_torch
from engine_lib.kernels.stream_past import PastTable, move_pasts, move_pasts_torch
from engine_lib.kernels.window_attention import window_attention, window_attention_torch
from engine_lib.ops.rope import inverse_frequencies, rope_cos_sin
from kernels.compare import assert_near

DTYPES = [torch.float32, torch.bfloat16]


def poisoned(*shape: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    return torch.full(shape, torch.nan, dtype=dtype, device=device)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("behind", ["", "gelu", "residual", "snake", "gelu residual snake"])
def test_a_convolution_and_what_follows_it_equal_their_twin(
    rng: random.Random, device: torch.device, dtype: torch.dtype, behind: str
) -> None:
    streams, time, inner, taps, dilation = (
        rng.randint(1, 3),
        rng.randint(1, 9),
        rng.choice([3, 16, 40]),
        rng.choice([1, 2, 7]),
        rng.choice([1, 3]),
    )
    width, rate = rng.choice([1, 5, 24]), rng.choice([1, 2])
    channels = width * rate

    def random_tensor(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device=device).to(dtype)

    x = random_tensor(streams, (taps - 1) * dilation + time, inner)
    weight, bias = random_tensor(channels, taps, inner) / (taps * inner) ** 0.5, random_tensor(channels)
    residual = random_tensor(streams, 2 + time, channels)[:, 2:] if "residual" in behind else None
    snake = Snake(torch.rand(width, device=device) * 2, torch.rand(width, device=device)) if "snake" in behind else None
    out = poisoned(streams, time, channels, dtype=dtype, device=device)
    head = poisoned(streams, 4 + time, channels, dtype=torch.float32, device=device)  # the next layer's input
    gelu = "gelu" in behind

    causal_conv(
        x, weight, bias, residual=residual, out=out, dilation=dilation, gelu=gelu, snake=snake, snake_out=head[:, 4:] if snake else None
    )

    wide = None if residual is None else residual.float()
    truth, snaked = causal_conv_torch(x.float(), weight.float(), bias.float(), residual=wide, dilation=dilation, gelu=gelu, snake=snake)
    assert_near(out, truth)
    assert head[:, :4].isnan().all()
    if snaked is not None:
        assert_near(head[:, 4:].to(dtype), snaked)


@pytest.mark.parametrize("dtype", DTYPES)
def test_attention_over_a_window_equals_its_twin_and_moves_the_past_on(
    rng: random.Random, device: torch.device, dtype: torch.dtype
) -> None:
    streams, frames, kv_heads, group = rng.randint(1, 3), rng.choice([1, 2, 4, 8]), rng.choice([1, 2]), rng.choice([1, 2])
    half, num_past = rng.choice([4, 16]), rng.choice([3, 71])
    slots = torch.randperm(5, device=device)[:streams]
    positions = torch.randint(0, 2 * num_past, (streams,), device=device)
    rows = torch.randn(5, num_past * 2 * kv_heads * 2 * half + 8, device=device).to(dtype)
    past = rows[:, 8:].view(5, num_past, 2 * kv_heads, 2 * half)
    qkv = torch.randn(streams * frames, (group + 2) * kv_heads * 2 * half, device=device).to(dtype)
    angles = positions[:, None] + torch.arange(frames, device=device)
    cos, sin = rope_cos_sin(angles, inverse_frequencies(2 * half, 1e4, device), dtype)
    twin_past = past.float().clone()
    before = past.clone()
    truth = window_attention_torch(qkv.float(), cos.float(), sin.float(), twin_past, slots, positions)

    out = window_attention(qkv, cos, sin, past, slots, positions)

    assert_near(out, truth)
    assert_near(past, twin_past)
    others = [slot for slot in range(5) if slot not in slots.tolist()]
    assert torch.equal(past[others], before[others])


@pytest.mark.parametrize("dtype", DTYPES)
def test_depthwise_convolution_and_norm_equal_their_twin(rng: random.Random, device: torch.device, dtype: torch.dtype) -> None:
    streams, time, width = rng.randint(1, 3), rng.randint(1, 6), rng.choice([5, 32, 48])
    x = torch.randn(streams, 6 + time, width, device=device).to(dtype)
    weight, bias, scale, shift = (torch.randn(shape, device=device).to(dtype) for shape in ((7, width), (width,), (width,), (width,)))
    out = depthwise_norm(x, weight, bias, scale, shift, 1e-6)
    truth = depthwise_norm_torch(x.float(), weight.float(), bias.float(), scale.float(), shift.float(), 1e-6)
    assert_near(out, truth)


def test_the_last_convolution_equals_its_twin(rng: random.Random, device: torch.device) -> None:
    x = torch.randn(rng.randint(1, 3), 6 + rng.randint(1, 150), rng.choice([6, 96]), device=device)
    weight, bias = torch.randn(7, x.shape[2], device=device), torch.randn(1, device=device)
    assert_near(mono_conv(x, weight, bias), mono_conv_torch(x, weight, bias))


@pytest.mark.parametrize("unit", [torch.int16, torch.int32])
@pytest.mark.parametrize("save", [False, True])
def test_pasts_are_moved_to_their_places_and_nothing_else_is(
    rng: random.Random, device: torch.device, unit: torch.dtype, save: bool
) -> None:
    size, lengths = unit.itemsize, [rng.randint(1, 5000) for _ in range(3)]
    slots = torch.randperm(4, device=device)[:3]
    entries, in_row, in_workspace = [], 0, 0
    for length in lengths:
        tail = rng.randint(0, 50)
        entries.append([in_row, in_workspace, length + tail, length, tail])
        in_row, in_workspace = in_row + length + 3, in_workspace + 3 * (length + tail) + 5
    arena = torch.randint(0, 256, (4, in_row * size), dtype=torch.uint8, device=device)
    workspace = torch.randint(0, 256, (in_workspace * size,), dtype=torch.uint8, device=device)
    table = PastTable(torch.tensor(entries, device=device), max(lengths), unit)
    twins = arena.clone(), workspace.clone()
    move_pasts(arena, workspace, table, slots, save=save)
    move_pasts_torch(*twins, table, slots, save=save)
    assert torch.equal(arena, twins[0])
    assert torch.equal(workspace, twins[1])


# Few samples a frame, because the interpreter runs every program by itself.
SHORT_FRAMES = {
    f"speech_tokenizer.decoder_config.{name}": value
    for name, value in {
        "upsampling_ratios": [2, 1],
        "upsample_rates": [3, 2],
        "sliding_window": 5,
        "num_key_value_heads": 2,
        "num_hidden_layers": 2,
    }.items()
}
