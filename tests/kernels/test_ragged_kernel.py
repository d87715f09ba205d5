"""The ragged kernels against their twins, and the ragged decoder against the plain one."""

from __future__ import annotations

import random
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pytest
import torch
from codec.random_steps import InBuckets

from engine_lib.checkpoint import Checkpoint
from engine_lib.codec.ragged_decoder import RaggedDecoder
from engine_lib.codec.runner import CodecRunner
from engine_lib.kernels.causal_conv import Snake, causal_conv_ragged, causal_conv_ragged_torch
from engine_lib.kernels.depthwise_norm import depthwise_norm_ragged, depthwise_norm_torch
from engine_lib.kernels.mono_conv import mono_conv_ragged, mono_conv_torch
from engine_lib.kernels.ragged import Frames, Packed
from engine_lib.kernels.stream_past import PastTable, move_pasts_ragged, move_pasts_ragged_torch
from engine_lib.kernels.window_attention import window_attention_ragged, window_attention_ragged_torch
from engine_lib.ops.rope import inverse_frequencies, rope_cos_sin
from kernels.compare import assert_near
from kernels.test_codec_kernel import DTYPES, SHORT_FRAMES
from make_checkpoint import make_checkpoint

TINY_FRAMES = SHORT_FRAMES | {
    f"speech_tokenizer.decoder_config.{name}": value
    for name, value in {"upsampling_ratios": [2], "upsample_rates": [2, 2], "num_hidden_layers": 1}.items()
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
    starts = frames.starts.tolist()
    parts = [
        packed.values[start * rate * width + stream * packed.gap :][: (end - start) * rate * width]
        for stream, (start, end) in enumerate(pairwise(starts[:-1]))
    ]
    return torch.cat(parts).view(-1, width)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("behind", ["", "gelu residual snake"])
def test_a_ragged_convolution_equals_its_twin_and_writes_nothing_else(
    rng: random.Random, device: torch.device, dtype: torch.dtype, behind: str
) -> None:
    frames, needed = random_frames(rng, device)
    rate, taps, dilation, inner = rng.choice([1, 3, 6]), rng.choice([1, 2, 7]), rng.choice([1, 3]), rng.choice([3, 16, 40])
    width, steps = rng.choice([1, 5, 24]), rng.choice([1, 2])
    channels, gap = width * steps, (taps - 1) * dilation * inner

    def packed(row: int, gap: int, fill: Any = torch.randn, of: torch.dtype = dtype) -> Packed:
        size = len(frames) * rate * row + (frames.num_streams + 1) * gap
        return Packed(fill(size, device=device).to(of), gap)

    x = packed(inner, gap)
    weight, bias = torch.randn(channels, taps, inner, device=device).to(dtype), torch.randn(channels, device=device).to(dtype)
    weight /= (taps * inner) ** 0.5
    residual = packed(channels, 4 * channels) if behind else None
    snake = Snake(torch.rand(width, device=device) * 2, torch.rand(width, device=device)) if behind else None
    out, head = (packed(channels, gap, torch.zeros, of) for gap, of in ((0, dtype), (6 * width, torch.float32)))
    options: dict[str, Any] = {"dilation": dilation, "gelu": bool(behind), "snake": snake}
    causal_conv_ragged(x, weight, bias, frames, rate, residual=residual, out=out, snake_out=head if snake else None, **options)

    wide, rest = Packed(x.values.float(), x.gap), None if residual is None else Packed(residual.values.float(), residual.gap)
    truth, snaked = causal_conv_ragged_torch(wide, weight.float(), bias.float(), frames, rate, residual=rest, **options)
    assert_near(rows_of(out, frames, rate, channels), truth)
    assert not out.values[needed * rate * channels :].any(), "rows that are not needed were written"
    if snaked is not None:
        written = rows_of(head, frames, rate, channels)
        assert_near(written.to(dtype), snaked)
        assert (head.values != 0).sum() <= written.numel(), "the gaps were written"


@pytest.mark.parametrize("dtype", DTYPES)
def test_ragged_attention_equals_its_twin_and_moves_each_past_on(rng: random.Random, device: torch.device, dtype: torch.dtype) -> None:
    frames, needed = random_frames(rng, device, most=9)
    streams, kv_heads, group, half, num_past = len(frames.starts) - 1, rng.choice([1, 2]), rng.choice([1, 2]), 4, rng.choice([3, 71])
    slots = torch.randperm(8, device=device)[:streams]
    before = torch.randint(0, 2 * num_past, (streams,), device=device)
    past = torch.randn(8, num_past, 2 * kv_heads, 2 * half, device=device).to(dtype)
    qkv = torch.randn(len(frames), (group + 2) * kv_heads * 2 * half, device=device).to(dtype)
    place = torch.arange(len(frames), device=device) - frames.starts[frames.stream_of]
    cos, sin = rope_cos_sin(before[frames.stream_of] + place, inverse_frequencies(2 * half, 1e4, device), dtype)
    twin = past.float().clone()
    truth = window_attention_ragged_torch(qkv.float(), cos.float(), sin.float(), twin, slots, before, frames)

    out = window_attention_ragged(qkv, cos, sin, past, slots, before, frames=frames, most=9)

    assert_near(out[:needed], truth)
    assert_near(past, twin)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_ragged_depthwise_convolution_equals_its_twin(rng: random.Random, device: torch.device, dtype: torch.dtype) -> None:
    (frames, _), rate, width = random_frames(rng, device), rng.choice([1, 2, 5]), rng.choice([5, 48])
    x = torch.randn((len(frames) * rate + (frames.num_streams + 1) * 6) * width, device=device).to(dtype)
    weight, bias, scale, shift = (torch.randn(shape, device=device).to(dtype) for shape in ((7, width), (width,), (width,), (width,)))
    out = depthwise_norm_ragged(Packed(x, 6 * width), weight, bias, scale, shift, 1e-6, frames=frames, rate=rate)
    for stream, (start, end) in enumerate(pairwise(frames.starts[:-1].tolist())):
        if start < end:
            own = x.view(-1, width)[start * rate + stream * 6 :][: 6 + (end - start) * rate].float()
            truth = depthwise_norm_torch(own[None], weight.float(), bias.float(), scale.float(), shift.float(), 1e-6)[0]
            assert_near(out[start * rate : end * rate], truth)


def test_the_ragged_last_convolution_equals_its_twin(rng: random.Random, device: torch.device) -> None:
    (frames, _), rate, width = random_frames(rng, device), rng.choice([3, 40]), rng.choice([6, 96])
    x = torch.randn((len(frames) * rate + (frames.num_streams + 1) * 6) * width, device=device)
    weight, bias = torch.randn(7, width, device=device), torch.randn(1, device=device)
    out = mono_conv_ragged(Packed(x, 6 * width), weight, bias, frames, rate)
    for stream, (start, end) in enumerate(pairwise(frames.starts[:-1].tolist())):
        if start < end:
            own = x.view(-1, width)[start * rate + stream * 6 :][: 6 + (end - start) * rate]
            assert_near(out[start * rate : end * rate], mono_conv_torch(own[None], weight, bias)[0])


@pytest.mark.parametrize("save", [False, True])
def test_ragged_pasts_are_moved_to_their_places_and_nothing_else_is(rng: random.Random, device: torch.device, save: bool) -> None:
    frames, _ = random_frames(rng, device)
    streams = len(frames.starts) - 1
    slots = torch.randperm(6, device=device)[:streams]
    entries, in_row, in_workspace = [], 0, 0
    for _ in range(3):
        length, frame = rng.randint(1, 3000), rng.randint(1, 500)
        entries.append([in_row, in_workspace, frame, length, 0])
        in_row, in_workspace = in_row + length + 3, in_workspace + streams * length + len(frames) * frame + 5
    arena = torch.randint(0, 256, (6, in_row * 4), dtype=torch.uint8, device=device)
    workspace = torch.randint(0, 256, (in_workspace * 4,), dtype=torch.uint8, device=device)
    table = PastTable(torch.tensor(entries, device=device), max(entry[3] for entry in entries), torch.int32)
    twins = arena.clone(), workspace.clone()
    move_pasts_ragged(arena, workspace, table, slots, frames, save=save)
    move_pasts_ragged_torch(*twins, table, slots, frames, save=save)
    assert torch.equal(arena, twins[0])
    assert torch.equal(workspace, twins[1])


def test_the_ragged_decoder_equals_the_plain_one_with_the_same_bits_in_any_company(
    rng: random.Random, device: torch.device, tmp_path: Path
) -> None:
    checkpoint = Checkpoint(make_checkpoint(tmp_path / "tiny_frames", overrides=TINY_FRAMES))
    codec = checkpoint.config.codec
    plain, fused = (CodecRunner(checkpoint, 4, dtype=torch.float32, device=device) for _ in range(2))
    fused._forward = RaggedDecoder(fused.decoder, fused.arena)
    fused.graphs = cast(Any, InBuckets(fused, (1, 3)))  # the company has room to spare

    def codes() -> npt.NDArray[np.int64]:  # of one frame, because a frame costs the interpreter seconds
        return np.random.default_rng(rng.randrange(2**32)).integers(0, codec.codebook_size, (1, codec.num_quantizers))

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
