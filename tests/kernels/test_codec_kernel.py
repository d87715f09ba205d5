"""The codec's kernels against their twins, and the fused decoder against the plain one."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pytest
import torch
from codec.random_steps import InBuckets

from engine_lib.checkpoint import Checkpoint
from engine_lib.codec.fused_decoder import FusedDecoder
from engine_lib.codec.runner import CodecRunner
from engine_lib.kernels.causal_conv import Snake, causal_conv, causal_conv_torch
from engine_lib.kernels.depthwise_norm import depthwise_norm, depthwise_norm_torch
from engine_lib.kernels.mono_conv import mono_conv, mono_conv_torch
from engine_lib.kernels.packed import Frames, Packed
from engine_lib.kernels.stream_past import PastTable, move_pasts, move_pasts_torch
from engine_lib.kernels.window_attention import window_attention, window_attention_torch
from engine_lib.ops.rope import inverse_frequencies, rope_cos_sin
from kernels.compare import assert_near
from make_checkpoint import make_checkpoint

DTYPES = [torch.float32, torch.bfloat16]
# Few samples a frame, because the interpreter runs every program by itself.
SHORT_FRAMES = {
    f"speech_tokenizer.decoder_config.{name}": value
    for name, value in {
        "upsampling_ratios": [2, 1],
        "upsample_rates": [2, 2],
        "sliding_window": 5,
        "num_key_value_heads": 2,
        "num_hidden_layers": 1,
    }.items()
}


def random_frames(rng: random.Random, device: torch.device, most: int = 4) -> tuple[Frames, int]:
    """Frames of a few streams, some without any, some of the last stream, which are not needed; and how many are needed."""
    sizes = [rng.randint(0, most) for _ in range(rng.randint(1, 4))]
    sizes[0] += not sum(sizes)
    sizes.append(rng.randint(0, 3))
    starts = torch.tensor([0, *np.cumsum(sizes)], device=device)
    stream_of = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes)).to(device)
    return Frames(starts, stream_of), sum(sizes[:-1])


def rows_of(packed: Packed, frames: Frames, rate: int, width: int) -> torch.Tensor:
    """The rows that are needed, [rows, width]."""
    return torch.cat([*packed.rows(frames, rate, width)])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("behind", ["", "gelu", "residual", "snake", "gelu residual snake"])
def test_a_convolution_and_what_follows_it_equal_their_twin_and_nothing_else_is_written(
    rng: random.Random, device: torch.device, dtype: torch.dtype, behind: str
) -> None:
    frames, needed = random_frames(rng, device)
    rate, taps, dilation, inner = rng.choice([1, 3, 6]), rng.choice([1, 2, 7]), rng.choice([1, 3]), rng.choice([3, 16, 40])
    width, steps = rng.choice([1, 5, 24]), rng.choice([1, 2])
    channels, gap = width * steps, (taps - 1) * dilation * inner

    def packed(row: int, gap: int, of: torch.dtype = dtype, fill: float | None = None) -> Packed:
        values = torch.randn(len(frames) * rate * row + (frames.num_streams + 1) * gap, device=device)
        return Packed((values if fill is None else values.fill_(fill)).to(of), gap)

    x = packed(inner, gap)
    weight, bias = torch.randn(channels, taps, inner, device=device).to(dtype), torch.randn(channels, device=device).to(dtype)
    weight /= (taps * inner) ** 0.5
    residual = packed(channels, 4 * channels) if "residual" in behind else None
    snake = Snake(torch.rand(width, device=device) * 2, torch.rand(width, device=device)) if "snake" in behind else None
    out, head = packed(channels, 0, fill=torch.nan), packed(channels, 6 * width, torch.float32, fill=torch.nan)
    options: dict[str, Any] = {"dilation": dilation, "gelu": "gelu" in behind, "snake": snake}
    causal_conv(x, weight, bias, frames, rate, residual=residual, out=out, snake_out=head if snake else None, **options)

    wide, rest = Packed(x.values.float(), x.gap), None if residual is None else Packed(residual.values.float(), residual.gap)
    truth, snaked = causal_conv_torch(wide, weight.float(), bias.float(), frames, rate, residual=rest, **options)
    assert_near(rows_of(out, frames, rate, channels), truth)
    assert out.values[needed * rate * channels :].isnan().all(), "rows that are not needed were written"
    if snaked is not None:
        written = rows_of(head, frames, rate, channels)
        assert_near(written.to(dtype), snaked)
        assert head.values.isfinite().sum() == written.numel(), "the gaps were written"


def test_a_convolution_refuses_a_gap_that_does_not_fit_its_taps(device: torch.device) -> None:
    frames = Frames(torch.tensor([0, 2, 2], device=device), torch.zeros(2, dtype=torch.int64, device=device))
    weight, bias, values = torch.ones(4, 3, 5, device=device), torch.ones(4, device=device), torch.ones(20, device=device)
    with pytest.raises(ValueError, match="x: a gap of 5 values does not fit 3 taps 1 apart"):
        causal_conv(Packed(values, 5), weight, bias, frames, 1, out=Packed(values))
    with pytest.raises(ValueError, match="x: 19 values; 20 are needed"):
        causal_conv(Packed(values[1:], 10), weight, bias, frames, 1, out=Packed(values))


@pytest.mark.parametrize("dtype", DTYPES)
def test_attention_over_a_window_equals_its_twin_and_moves_each_past_on(
    rng: random.Random, device: torch.device, dtype: torch.dtype
) -> None:
    frames, needed = random_frames(rng, device, most=9)
    streams, kv_heads, group = len(frames.starts) - 1, rng.choice([1, 2]), rng.choice([1, 2])
    half, num_past = rng.choice([4, 16]), rng.choice([3, 71])
    slots = torch.randperm(8, device=device)[:streams]
    before = torch.randint(0, 2 * num_past, (streams,), device=device)
    rows = torch.randn(8, num_past * 2 * kv_heads * 2 * half + 8, device=device).to(dtype)
    past = rows[:, 8:].view(8, num_past, 2 * kv_heads, 2 * half)
    qkv = torch.randn(len(frames), (group + 2) * kv_heads * 2 * half, device=device).to(dtype)
    place = torch.arange(len(frames), device=device) - frames.starts[frames.stream_of]
    cos, sin = rope_cos_sin(before[frames.stream_of] + place, inverse_frequencies(2 * half, 1e4, device), dtype)
    twin, kept = past.float().clone(), rows.clone()
    truth = window_attention_torch(qkv.float(), cos.float(), sin.float(), twin, slots, before, frames)

    out = window_attention(qkv, cos, sin, past, slots, before, frames=frames, most=9)

    assert_near(out[:needed], truth)
    assert_near(past, twin)
    moved = {int(slots[stream]) for stream, _, _ in frames.of_streams()}
    others = [slot for slot in range(8) if slot not in moved]
    assert torch.equal(rows[others], kept[others])
    assert torch.equal(rows[:, :8], kept[:, :8])


@pytest.mark.parametrize("dtype", DTYPES)
def test_depthwise_convolution_and_norm_equal_their_twin(rng: random.Random, device: torch.device, dtype: torch.dtype) -> None:
    (frames, needed), rate, width = random_frames(rng, device), rng.choice([1, 2, 5]), rng.choice([5, 32, 48])
    x = torch.randn((len(frames) * rate + (frames.num_streams + 1) * 6) * width, device=device).to(dtype)
    weight, bias, scale, shift = (torch.randn(shape, device=device).to(dtype) for shape in ((7, width), (width,), (width,), (width,)))
    out = depthwise_norm(Packed(x, 6 * width), weight, bias, scale, shift, 1e-6, frames=frames, rate=rate)
    wide, weights = Packed(x.float(), 6 * width), (weight.float(), bias.float(), scale.float(), shift.float())
    truth = depthwise_norm_torch(wide, *weights, 1e-6, frames=frames, rate=rate)
    assert_near(out[: needed * rate], truth)


def test_the_last_convolution_equals_its_twin(rng: random.Random, device: torch.device) -> None:
    (frames, needed), rate, width = random_frames(rng, device), rng.choice([3, 40]), rng.choice([6, 96])
    x = Packed(torch.randn((len(frames) * rate + (frames.num_streams + 1) * 6) * width, device=device), 6 * width)
    weight, bias = torch.randn(7, width, device=device), torch.randn(1, device=device)
    out = mono_conv(x, weight, bias, frames, rate)
    assert_near(out[: needed * rate], mono_conv_torch(x, weight, bias, frames, rate))


@pytest.mark.parametrize("unit", [torch.int16, torch.int32])
@pytest.mark.parametrize("save", [False, True])
def test_pasts_are_moved_to_their_places_and_nothing_else_is(
    rng: random.Random, device: torch.device, unit: torch.dtype, save: bool
) -> None:
    frames, _ = random_frames(rng, device)
    streams = len(frames.starts) - 1
    slots = torch.randperm(6, device=device)[:streams]
    entries, in_row, in_workspace = [], 0, 0
    for _ in range(3):
        length, frame = rng.randint(1, 5000), rng.randint(1, 500)
        entries.append([in_row, in_workspace, frame, length])
        in_row, in_workspace = in_row + length + 3, in_workspace + streams * length + len(frames) * frame + 5
    arena = torch.randint(0, 256, (6, in_row * unit.itemsize), dtype=torch.uint8, device=device)
    workspace = torch.randint(0, 256, (in_workspace * unit.itemsize,), dtype=torch.uint8, device=device)
    table = PastTable(torch.tensor(entries, device=device), max(entry[3] for entry in entries), unit)
    twins = arena.clone(), workspace.clone()
    move_pasts(arena, workspace, table, slots, frames, save=save)
    move_pasts_torch(*twins, table, slots, frames, save=save)
    assert torch.equal(arena, twins[0])
    assert torch.equal(workspace, twins[1])


def test_the_fused_decoder_equals_the_plain_one_with_the_same_bits_in_any_company(
    rng: random.Random, device: torch.device, tmp_path: Path
) -> None:
    checkpoint = Checkpoint(make_checkpoint(tmp_path / "short_frames", overrides=SHORT_FRAMES))
    codec = checkpoint.config.codec
    plain, fused = (CodecRunner(checkpoint, 4, dtype=torch.float32, device=device) for _ in range(2))
    fused._forward = FusedDecoder(fused.decoder, fused.arena)
    most = 4 if device.type == "cuda" else 1  # a frame costs the interpreter seconds
    fused.graphs = cast(Any, InBuckets(fused, (most, 3 * most)))  # the company has room to spare

    def codes() -> npt.NDArray[np.int64]:
        return np.random.default_rng(rng.randrange(2**32)).integers(0, codec.codebook_size, (rng.randint(1, most), codec.num_quantizers))

    place = rng.randrange(2)
    for is_first in (True, False):
        piece = codes()
        slots, pieces = [1], [codes()]
        slots.insert(place, 0)
        pieces.insert(place, piece)
        if not is_first:
            fused.restore(3, fused.state(0))
            [alone] = fused.step([3], [piece]).read()
        among = fused.step(slots, pieces).read()
        for expected, row in zip(plain.step(slots, pieces).read(), among, strict=True):
            np.testing.assert_allclose(row, expected, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(among[place], alone)
