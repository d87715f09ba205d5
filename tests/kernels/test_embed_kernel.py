"""embed_frames against its twin."""

from __future__ import annotations

import random
from dataclasses import dataclass

import pytest
import torch

from engine_lib.kernels.embed import embed_frames, embed_frames_torch
from kernels.compare import assert_near


@dataclass
class State:
    frames: torch.Tensor
    codes: torch.Tensor
    text_ids: torch.Tensor


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_input_rows_equal_the_sum_of_their_embeddings(rng: random.Random, device: torch.device, dtype: torch.dtype) -> None:
    groups, hidden, columns = rng.randint(2, 16), rng.randint(1, 600), rng.randint(1, 20)
    sizes = [rng.randint(3, 30) for _ in range(groups)]
    offsets = torch.tensor([0, *sizes[:-1]], device=device).cumsum(0)
    code_table, text_table = (torch.randn(size, hidden, device=device).to(dtype) for size in (sum(sizes), 50))
    state = State(
        frames=torch.randint(0, 2 * columns, (7,), device=device),  # past the text too
        codes=torch.stack([torch.randint(-1, size, (7,), device=device) for size in sizes], dim=1),
        text_ids=torch.randint(-1, 50, (7, columns), device=device),
    )
    slots = torch.randperm(7, device=device)[:5]
    out = torch.full((5, hidden), torch.nan, dtype=dtype, device=device)
    embed_frames(slots, state, code_table, offsets, text_table, out)
    assert_near(out, embed_frames_torch(slots, state, code_table.float(), offsets, text_table.float()))
